#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use regex_automata::meta::Regex;
use serde_json::{Value, json};
use switchyard_crds::findings::ExampleRequest;
use switchyard_crds::route_rule::{PathMatchType, RouteMatch, ValueMatchType};

use super::*;
use crate::compile::order::Specificity;
use crate::compile::qualified;
use crate::object::ServicePort;

/// A request as a plain evaluator sees it.
#[derive(Clone, Debug, Default)]
struct Plain {
    port: u16,
    method: String,
    path: String,
    query: BTreeMap<String, Vec<u8>>,
    headers: BTreeMap<String, String>,
    cookies: BTreeMap<String, String>,
    /// `namespace`, `ServiceAccount` and `label NAME`, as far as the caller is known.
    caller: BTreeMap<String, String>,
}

impl Plain {
    /// Reads what a finding shows.
    fn read(example: &ExampleRequest) -> Self {
        let (path, query) = example.path.split_once('?').unwrap_or((&example.path, ""));
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap();
            (name.to_owned(), value.to_owned())
        };
        let parameter = |pair: &[u8]| {
            let at = pair.iter().position(|byte| *byte == b'=').unwrap();
            (String::from_utf8(pair[..at].to_vec()).unwrap(), pair[at + 1..].to_vec())
        };
        let mut headers: BTreeMap<_, _> = example.headers.iter().cloned().collect();
        let host = headers.remove("host").unwrap_or("a.shop:80".to_owned());
        let cookies = headers.remove("cookie").map(|all| all.split("; ").map(pair).collect()).unwrap_or_default();
        let caller = example.caller.iter().flat_map(|all| all.split(", "));
        let caller = caller.map(|part| match part.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => part.split_once(' ').map(|(name, value)| (name.to_owned(), value.to_owned())).unwrap(),
        });
        Self {
            port: host.split_once(':').unwrap().1.parse().unwrap(),
            method: example.method.clone(),
            path: path.to_owned(),
            query: query.split('&').filter(|text| !text.is_empty()).map(|text| parameter(&decoded(text))).collect(),
            headers,
            cookies,
            caller: caller.collect(),
        }
    }

    fn is_taken_by(&self, rule: &RouteRule, entry: &RouteMatch) -> bool {
        let own = rule.metadata.namespace.clone().unwrap();
        let caller = |name: &str, wanted: &str| self.caller.get(name).is_some_and(|value| value == wanted);
        let grpc = entry.grpc.as_ref().is_none_or(|grpc| {
            let Some((service, method)) = self.path[1..].rsplit_once('/') else { return false };
            let is = |wanted: &Option<String>, part: &str| wanted.as_ref().map_or(!part.is_empty(), |w| *w == *part);
            let content_type = self.headers.get("content-type").is_some_and(|kind| kind == "application/grpc");
            content_type && is(&grpc.service, service) && is(&grpc.method, method)
        });
        let source = entry.source.as_ref().is_none_or(|source| {
            source.namespace.as_ref().is_none_or(|namespace| caller("namespace", namespace))
                && source.service_account.as_ref().is_none_or(|account| caller("ServiceAccount", account))
                && source.labels.iter().all(|(name, value)| caller(&format!("label {name}"), value))
        });
        rule.spec.port.is_none_or(|port| port == i32::from(self.port))
            && entry.path.as_ref().is_none_or(|path| match path.kind {
                PathMatchType::Exact => path.value == self.path,
                PathMatchType::RegularExpression => whole(&path.value, self.path.as_bytes()),
                PathMatchType::PathPrefix => {
                    let wanted: Vec<&str> = path.value.split('/').filter(|part| !part.is_empty()).collect();
                    let parts: Vec<&str> = self.path.split('/').skip(1).collect();
                    parts.len() >= wanted.len() && parts[..wanted.len()] == wanted[..]
                }
            })
            && entry.method.as_ref().is_none_or(|method| *method == self.method)
            && entry
                .headers
                .iter()
                .all(|m| value(m.kind, m.value.as_deref(), bytes(self.headers.get(&m.name.to_ascii_lowercase()))))
            && entry
                .query_params
                .iter()
                .all(|m| value(m.kind, m.value.as_deref(), self.query.get(&m.name).map(Vec::as_slice)))
            && entry.cookies.iter().all(|m| value(m.kind, m.value.as_deref(), bytes(self.cookies.get(&m.name))))
            && grpc
            && source
            && rule.spec.service_namespace.as_ref().is_none_or(|of| *of == own || caller("namespace", &own))
    }
}

fn decoded(text: &str) -> Vec<u8> {
    let mut parts = text.split('%');
    let mut out = parts.next().unwrap().as_bytes().to_vec();
    for part in parts {
        out.push(u8::from_str_radix(&part[..2], 16).unwrap());
        out.extend_from_slice(&part.as_bytes()[2..]);
    }
    out
}

fn bytes(found: Option<&String>) -> Option<&[u8]> {
    found.map(String::as_bytes)
}

fn value(kind: ValueMatchType, wanted: Option<&str>, found: Option<&[u8]>) -> bool {
    let wanted = wanted.unwrap_or_default();
    match (kind, found) {
        (ValueMatchType::Absent, found) => found.is_none(),
        (_, None) => false,
        (ValueMatchType::Exact, Some(found)) => wanted.as_bytes() == found,
        (ValueMatchType::Prefix, Some(found)) => found.starts_with(wanted.as_bytes()),
        (ValueMatchType::RegularExpression, Some(found)) => whole(wanted, found),
        (ValueMatchType::Present, Some(_)) => true,
    }
}

fn whole(expression: &str, value: &[u8]) -> bool {
    Regex::new(&format!(r"\A(?:{expression})\z")).unwrap().is_match(value)
}

/// All entries that take a request, the first to be asked in front: the rule, and what is decided before age.
fn takers(rules: &[&RouteRule], request: &Plain) -> Vec<(usize, Specificity)> {
    let mut found = Vec::new();
    for (at, rule) in rules.iter().enumerate() {
        let everything = RouteMatch::default();
        let entries: Vec<&RouteMatch> =
            if rule.spec.matches.is_empty() { vec![&everything] } else { rule.spec.matches.iter().collect() };
        for (position, entry) in entries.into_iter().enumerate() {
            if request.is_taken_by(rule, entry) {
                let meta = &rule.metadata;
                let created = meta.creation_timestamp.as_ref().map(|time| time.0);
                let age = (created.is_none(), created, meta.namespace.clone(), meta.name.clone(), position);
                found.push((Specificity::new(rule, entry), age, at));
            }
        }
    }
    found.sort();
    found.into_iter().map(|(specificity, _, at)| (at, specificity)).collect()
}

fn select<T: Clone + std::fmt::Debug + 'static>(of: &[T]) -> impl Strategy<Value = T> + use<T> {
    prop::sample::select(of.to_vec())
}

const PATHS: [&str; 9] = ["/", "/a", "/a/", "/a/b", "/ab", "/b/x", "/a/x/y", "/s/m", "/1"];
const VALUES: [&str; 6] = ["1", "12", "2", "a", "ab", ""];

fn named(names: &'static [&'static str]) -> impl Strategy<Value = Vec<Value>> {
    let expressions = ["1.*", "[0-9]+", "a|1", "[^1]", "(?i)A.", "1?2?", "a.*|.*a", r"\w\b.*"];
    let test = prop_oneof![
        4 => select(&VALUES).prop_map(|value| json!({"value": value})),
        1 => select(&VALUES).prop_map(|value| json!({"type": "Prefix", "value": value})),
        2 => select(&expressions).prop_map(|value| json!({"type": "RegularExpression", "value": value})),
        1 => Just(json!({"type": "Present"})),
        1 => Just(json!({"type": "Absent"})),
    ];
    let one = (select(names), test).prop_map(|(name, mut test)| {
        test["name"] = json!(name);
        test
    });
    vec(one, 0..3)
}

fn entry() -> impl Strategy<Value = Value> {
    let expressions = ["/[a-z]+", "/a(/.*)?", "/(a|b)/x", ".*", "/.*b", "/a/[^/]+/y", "/[0-9]*", "/(?:a|b)?"];
    let path = prop_oneof![
        2 => Just(Value::Null),
        2 => select(&PATHS).prop_map(|value| json!({"type": "Exact", "value": value})),
        3 => select(&PATHS).prop_map(|value| json!({"value": value})),
        3 => select(&expressions).prop_map(|value| json!({"type": "RegularExpression", "value": value})),
    ];
    let grpc = option::weighted(
        0.1,
        (option::of(Just("s")), option::of(Just("m"))).prop_map(|(s, m)| json!({"service": s, "method": m})),
    );
    let source = option::weighted(
        0.1,
        (option::of(select(&["web", "ops"])), prop::bool::ANY).prop_map(|(namespace, has_label)| {
            json!({"namespace": namespace, "labels": if has_label { json!({"app": "x"}) } else { json!({}) }})
        }),
    );
    let some = (option::weighted(0.3, select(&["GET", "POST"])), grpc, source);
    (path, some, named(&["x", "X", "y"]), named(&["q"]), named(&["c"])).prop_map(
        |(path, (method, grpc, source), headers, query, cookies)| {
            let mut entry = json!({
                "method": method, "headers": headers, "queryParams": query, "cookies": cookies, "grpc": grpc, "source": source,
            });
            if !path.is_null() {
                entry["path"] = path;
            }
            entry
        },
    )
}

fn rules() -> impl Strategy<Value = Vec<RouteRule>> {
    let one = (vec(entry(), 0..3), 0..2, option::weighted(0.2, select(&[80, 81])), option::of(1..3), any::<bool>());
    let one = one.prop_map(|(matches, priority, port, day, consumes)| {
        let namespace = if consumes { "web" } else { "shop" };
        let created = day.map(|day| format!("2026-01-0{day}T00:00:00Z"));
        let value = json!({
            "apiVersion": "switchyard.dev/v1alpha1", "kind": "RouteRule",
            "metadata": {"name": "", "namespace": namespace, "creationTimestamp": created},
            "spec": {"service": "a", "serviceNamespace": "shop", "port": port, "priority": priority, "matches": matches},
        });
        serde_json::from_value::<RouteRule>(value).unwrap()
    });
    vec(one, 1..7).prop_map(|mut rules| {
        rules.iter_mut().enumerate().for_each(|(at, rule)| rule.metadata.name = Some(format!("r{at}")));
        rules
    })
}

fn requests() -> impl Strategy<Value = Vec<Plain>> {
    let pairs = |names: &'static [&'static str]| {
        prop::collection::btree_map(
            select(names).prop_map(str::to_owned),
            select(&VALUES).prop_map(str::to_owned),
            0..3,
        )
    };
    let caller = prop_oneof![
        2 => Just(BTreeMap::new()),
        2 => (select(&["web", "ops", "shop"]), any::<bool>()).prop_map(|(namespace, has_label)| {
            let mut caller = BTreeMap::from([("namespace".to_owned(), namespace.to_owned())]);
            if has_label {
                caller.insert("label app".to_owned(), "x".to_owned());
            }
            caller
        }),
    ];
    let one = (
        select(&[80, 81]),
        select(&["GET", "POST", "PUT"]),
        select(&PATHS),
        pairs(&["q"]).prop_map(|all| all.into_iter().map(|(name, value)| (name, value.into_bytes())).collect()),
        (pairs(&["x", "y"]), prop::bool::ANY).prop_map(|(mut headers, is_grpc)| {
            if is_grpc {
                headers.insert("content-type".to_owned(), "application/grpc".to_owned());
            }
            headers
        }),
        pairs(&["c"]),
        caller,
    );
    let one = one.prop_map(|(port, method, path, query, headers, cookies, caller)| Plain {
        port,
        method: method.to_owned(),
        path: path.to_owned(),
        query,
        headers,
        cookies,
        caller,
    });
    vec(one, 1..60)
}

fn service() -> Service {
    let port = |port| ServicePort { name: format!("p{port}"), port, ..ServicePort::default() };
    Service {
        namespace: "shop".to_owned(),
        name: "a".to_owned(),
        ports: vec![port(80), port(81)],
        ..Service::default()
    }
}

fn position(rules: &[&RouteRule], name: &str) -> usize {
    rules.iter().position(|rule| qualified(&name_of(*rule)) == name).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_example_does_what_is_said_of_it(rules in rules()) {
        let rules: Vec<&RouteRule> = rules.iter().collect();
        for finding in analyse(&service(), &rules) {
            let own = position(&rules, &format!("{}/{}", finding.object.namespace, finding.object.name));
            let others: Vec<usize> = finding.others.iter().map(|name| position(&rules, name)).collect();
            let Some(example) = &finding.example else {
                prop_assert!(finding.reason == Reason::Shadowed && others.is_empty(), "{:?}", finding);
                continue;
            };
            let takers = takers(&rules, &Plain::read(example));
            prop_assert!(takers.iter().any(|(rule, _)| *rule == own), "{:?} {:?}", finding, takers);
            match finding.reason {
                Reason::Shadowed => prop_assert!(takers[0].0 != own, "{:?}", finding),
                _ => {
                    // The first of the best class gets it, and this rule is of that class too.
                    let tied: Vec<usize> = takers.iter().filter(|(_, s)| *s == takers[0].1).map(|(rule, _)| *rule).collect();
                    prop_assert!(tied.contains(&own) && tied[0] != own, "{:?} {:?}", finding, takers);
                    prop_assert!(others.iter().any(|other| tied.contains(other)), "{:?} {:?}", finding, takers);
                }
            }
        }
    }

    #[test]
    fn where_nothing_is_reported_no_request_says_otherwise(rules in rules(), requests in requests()) {
        let rules: Vec<&RouteRule> = rules.iter().collect();
        let findings = analyse(&service(), &rules);
        let of = |rule: usize, reason: Reason| {
            let name = name_of(rules[rule]);
            findings.iter().find(move |finding| finding.object == name && finding.reason == reason)
        };
        for request in requests {
            let takers = takers(&rules, &request);
            let Some((winner, best)) = takers.first() else { continue };
            prop_assert!(of(*winner, Reason::Shadowed).is_none(), "{:?} reaches {:?}", request, of(*winner, Reason::Shadowed));
            let mut tied: Vec<usize> = takers.iter().filter(|(_, s)| s == best).map(|(rule, _)| *rule).collect();
            tied.dedup();
            for younger in tied.iter().skip(1).filter(|rule| *rule != winner && of(**rule, Reason::Shadowed).is_none()) {
                let name = qualified(&name_of(rules[*winner]));
                let finding = of(*younger, Reason::Conflicted);
                prop_assert!(finding.is_some_and(|f| f.others.contains(&name)), "{:?}: {} beside {:?}", request, name, finding);
            }
        }
    }

    #[test]
    fn a_rule_that_is_not_called_shadowed_has_a_request_that_reaches_it(rules in rules()) {
        let rules: Vec<&RouteRule> = rules.iter().collect();
        let service = service();
        let entries = Entries::of(&service, &rules);
        let work = Work::new(STEPS_PER_SERVICE);
        let index = Index::new(&entries, 0..entries.entries.len());
        let question = Question { entries: &entries, index: &index, work: &work, host: "a.shop".to_owned() };
        let findings = analyse(&service, &rules);
        for rule in 0..rules.len() {
            let own = entries.entries.iter().enumerate().filter(|(_, entry)| entry.rule == rule);
            let reached = own.map(|(at, _)| question.ask(&[at], Takers::Before(at))).collect::<Vec<_>>();
            // Where Unicode words end is not told after a byte that is not ASCII, and no request is shown that needs bytes which are no
            // text: those that other expressions than these leave over.
            let is_clear = !reached.iter().any(|reach| matches!(reach, Reach::Unclear));
            let text = format!("{rules:?}");
            prop_assert!(is_clear || [r"\\b", ".*", "[^"].iter().any(|part| text.contains(part)), "all else can be told");
            let requests = reached.iter().filter_map(|reach| match reach {
                Reach::Request(request) => Some(Plain::read(&words::shown(&question, request))),
                _ => None,
            });
            for request in requests.clone() {
                prop_assert_eq!(takers(&rules, &request)[0].0, rule, "{:?}", request);
            }
            let name = name_of(rules[rule]);
            let is_shadowed = findings.iter().any(|f| f.object == name && f.reason == Reason::Shadowed);
            prop_assert_eq!(is_shadowed, is_clear && requests.count() == 0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_moves_is_what_other_rules_take_than_before(before in rules(), after in rules(), requests in requests()) {
        let (before, after): (Vec<&RouteRule>, Vec<&RouteRule>) = (before.iter().collect(), after.iter().collect());
        // A rule does the same as before if it is the same rule.
        let is_same = |from: Option<usize>, to: Option<usize>| match (from, to) {
            (Some(from), Some(to)) => name_of(before[from]) == name_of(after[to]),
            (from, to) => from.is_none() && to.is_none(),
        };
        let found = moved(&service(), &before, &after, &is_same);
        let winner = |rules: &[&RouteRule], request: &Plain| takers(rules, request).first().map(|(rule, _)| *rule);
        for moved in &found {
            let request = Plain::read(&moved.example);
            prop_assert_eq!(winner(&before, &request), moved.from, "{:?}", moved);
            prop_assert_eq!(winner(&after, &request), moved.to, "{:?}", moved);
        }
        for request in requests {
            let (from, to) = (winner(&before, &request), winner(&after, &request));
            let is_told = found.iter().any(|moved| (moved.from, moved.to) == (from, to));
            prop_assert!(is_same(from, to) || is_told, "{:?}: {:?} to {:?}", request, from, to);
        }
    }
}
