#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderValue, Method};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use switchyard_proto::v1;

use super::*;
use crate::table::Workload;

const WORDS: [&str; 7] = ["a", "b", "ab", "abc", "ba", "", "a b"];
const NAMES: [&str; 14] = ["x", "y", "z", "n0", "n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8", "n9", "host"];
const PATTERNS: [&str; 12] =
    ["a", "a|b", "(?:ab)+", "a.*", ".*b", "[ab]*", "(a|b)c?", "(?i)AB", "a{2}b?", "", r"\w+", "a b"];
const SEGMENTS: [&str; 6] = ["a", "b", "ab", "a.b", "%2F", "x"];
const METHODS: [&str; 3] = ["GET", "POST", "PUT"];

fn word() -> impl Strategy<Value = String> {
    select(&WORDS[..]).prop_map(str::to_owned)
}

/// Few names as a rule, so that they meet; now and then many.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![4 => select(&NAMES[..3]), 1 => select(&NAMES[..])].prop_map(str::to_owned)
}

fn path() -> impl Strategy<Value = String> {
    vec(select(&SEGMENTS[..]), 0..4).prop_map(|segments| format!("/{}", segments.join("/")))
}

fn matched(kind: v1::MatchType, value: String) -> v1::StringMatch {
    v1::StringMatch { r#type: kind.into(), value }
}

fn path_match() -> impl Strategy<Value = v1::StringMatch> {
    prop_oneof![
        path().prop_map(|path| matched(v1::MatchType::Exact, path)),
        path().prop_map(|path| matched(v1::MatchType::Prefix, path)),
        (path(), select(&PATTERNS[..]))
            .prop_map(|(path, pattern)| matched(v1::MatchType::RegularExpression, format!("{path}(?:{pattern})"))),
        select(&PATTERNS[..]).prop_map(|pattern| matched(v1::MatchType::RegularExpression, format!("/{pattern}"))),
    ]
}

fn named_match() -> impl Strategy<Value = v1::NamedMatch> {
    let matched = prop_oneof![
        4 => word().prop_map(|value| matched(v1::MatchType::Exact, value)),
        1 => word().prop_map(|value| matched(v1::MatchType::Prefix, value)),
        1 => select(&PATTERNS[..]).prop_map(|pattern| matched(v1::MatchType::RegularExpression, pattern.to_owned())),
        1 => Just(matched(v1::MatchType::Present, String::new())),
        1 => Just(matched(v1::MatchType::Absent, String::new())),
    ];
    (name(), matched).prop_map(|(name, matched)| v1::NamedMatch { name, r#match: Some(matched) })
}

fn source() -> impl Strategy<Value = v1::SourceMatch> {
    (word(), btree_map(name(), word(), 0..2), word()).prop_map(|(namespace, labels, service_account)| v1::SourceMatch {
        namespace,
        labels,
        service_account,
    })
}

fn entry() -> impl Strategy<Value = v1::Match> {
    let named = || vec(named_match(), 0..2);
    let call = (select(vec!["", "a", "ab"]), select(vec!["", "b", "x"]));
    (
        (option::weighted(0.1, select(vec![80u32, 81])), option::weighted(0.5, path_match())),
        option::weighted(0.2, select(&METHODS[..])),
        (named(), named(), named()),
        option::weighted(0.1, call),
        option::weighted(0.1, source()),
    )
        .prop_map(|((port, path), method, (headers, query_params, cookies), call, source)| v1::Match {
            port: port.unwrap_or_default(),
            path,
            method: method.unwrap_or_default().to_owned(),
            headers,
            query_params,
            cookies,
            grpc: call.map(|(service, method)| v1::GrpcMatch { service: service.into(), method: method.into() }),
            source,
            ..v1::Match::default()
        })
}

#[derive(Clone, Debug)]
struct Asked {
    method: Method,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
    port: u16,
    grpc: bool,
    caller: Option<Workload>,
}

impl Asked {
    fn view(&self) -> View<'_> {
        View {
            method: &self.method,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &self.headers,
            port: self.port,
            grpc: self.grpc,
            caller: self.caller.as_ref(),
        }
    }
}

fn asked() -> impl Strategy<Value = Asked> {
    let pairs = || vec((name(), word()), 0..4);
    let caller = (word(), word(), btree_map(name(), word(), 0..3));
    let caller = caller.prop_map(|(namespace, service_account, labels)| Workload {
        namespace,
        service_account,
        labels,
        ..Workload::default()
    });
    (
        (select(&METHODS[..]), path(), select(vec![80u16, 81]), any::<bool>()),
        (pairs(), option::of(pairs()), vec(pairs(), 0..3)),
        option::weighted(0.7, caller),
    )
        .prop_map(|((method, path, port, grpc), (fields, query, cookies), caller)| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers
                    .append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(&value).unwrap());
            }
            for pairs in cookies {
                let field = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("; ");
                headers.append("cookie", field.parse().unwrap());
            }
            let query = query.map(|pairs| {
                let pair = |(name, value): &(String, String)| format!("{name}={}", value.replace(' ', "+"));
                pairs.iter().map(pair).collect::<Vec<_>>().join("&")
            });
            Asked { method: method.parse().unwrap(), path, query, headers, port, grpc, caller }
        })
}

fn compiled(wire: &[v1::Match]) -> Vec<Entry> {
    let numbered = (0..).zip(wire).map(|(rule, entry)| v1::Match { rule, ..entry.clone() });
    numbered.map(|entry| Entry::compile(&entry).unwrap()).collect()
}

/// The first that holds, asked one by one.
fn walk<'e>(entries: &'e [Entry], view: &View<'_>) -> Option<&'e Entry> {
    entries.iter().find(|entry| entry.holds(view).is_ok())
}

fn agree(entries: &[Entry], index: &Index, asked: &Asked) -> Result<(), TestCaseError> {
    let rule = |entry: Option<&Entry>| entry.map(|entry| (entry.rule, entry.to_string()));
    let view = asked.view();
    prop_assert_eq!(rule(index.first(entries, &view)), rule(walk(entries, &view)));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn the_index_finds_what_a_walk_finds(wire in vec(entry(), 0..60), asked in vec(asked(), 1..12)) {
        let entries = compiled(&wire);
        let index = Index::new(&entries);
        for asked in &asked {
            agree(&entries, &index, asked)?;
        }
    }

    /// One kind of thing is asked for by many entries, so that buckets are parted again and again.
    #[test]
    fn so_it_does_where_many_entries_share_what_they_ask_for(
        of in (entry(), entry(), entry()),
        mix in vec((0..3usize, 0..3usize, 0..3usize), 1..80),
        asked in vec(asked(), 1..12),
    ) {
        let of = [of.0, of.1, of.2];
        let mixed = mix.iter().map(|(path, headers, rest)| v1::Match {
            path: of[*path].path.clone(),
            headers: of[*headers].headers.clone(),
            cookies: of[*headers].cookies.clone(),
            ..of[*rest].clone()
        });
        let entries = compiled(&mixed.collect::<Vec<_>>());
        let index = Index::new(&entries);
        for asked in &asked {
            agree(&entries, &index, asked)?;
        }
    }
}

fn header(name: &str, value: &str) -> v1::NamedMatch {
    v1::NamedMatch { name: name.into(), r#match: Some(matched(v1::MatchType::Exact, value.into())) }
}

/// How many entries are asked before the answer is known.
fn asked_for(entries: &[Entry], view: &View<'_>) -> usize {
    let index = Index::new(entries);
    let mut search = Search { entries, view, best: u32::MAX, asked: 0 };
    search.bucket(&index.root);
    search.asked
}

#[test]
fn of_ten_thousand_entries_few_are_asked_in_every_shape() {
    let numbered = |make: &dyn Fn(usize) -> v1::Match| (0..10_000).map(make).collect::<Vec<_>>();
    let path = |kind, value: String| Some(matched(kind, value));
    let regex = v1::MatchType::RegularExpression;
    let shapes: [(&str, Vec<v1::Match>); 11] = [
        (
            "exact paths",
            numbered(&|i| v1::Match {
                path: path(v1::MatchType::Exact, format!("/item-{i}/abc")),
                ..Default::default()
            }),
        ),
        (
            "prefixes",
            numbered(&|i| v1::Match { path: path(v1::MatchType::Prefix, format!("/item-{i}")), ..Default::default() }),
        ),
        (
            "patterns that begin alike",
            numbered(&|i| v1::Match { path: path(regex, format!("/item-{i}/[a-z]+")), ..Default::default() }),
        ),
        (
            "patterns that end alike",
            numbered(&|i| v1::Match { path: path(regex, format!(r"/[a-z]+-{i}/\w+")), ..Default::default() }),
        ),
        (
            "alternatives",
            numbered(&|i| v1::Match {
                path: path(regex, format!("/(item|thing)-{i}/(abc|def)")),
                ..Default::default()
            }),
        ),
        (
            "values of a header on one path",
            numbered(&|i| v1::Match {
                path: path(v1::MatchType::Prefix, "/item-7777".into()),
                headers: vec![header("x-tenant", &i.to_string())],
                ..Default::default()
            }),
        ),
        (
            "names of headers",
            numbered(&|i| v1::Match { headers: vec![header(&format!("x-{i}"), "1")], ..Default::default() }),
        ),
        (
            "values of a query parameter",
            numbered(&|i| v1::Match { query_params: vec![header("tenant", &i.to_string())], ..Default::default() }),
        ),
        (
            "values of a cookie",
            numbered(&|i| v1::Match { cookies: vec![header("tenant", &i.to_string())], ..Default::default() }),
        ),
        (
            "two things that both are common",
            numbered(&|i| v1::Match {
                headers: vec![header("x-row", &(i / 100).to_string())],
                cookies: vec![header("column", &(i % 100).to_string())],
                ..Default::default()
            }),
        ),
        (
            "callers",
            numbered(&|i| v1::Match {
                source: Some(v1::SourceMatch { namespace: format!("n{i}"), ..Default::default() }),
                ..Default::default()
            }),
        ),
    ];
    let mut asked = Asked {
        method: Method::GET,
        path: "/item-7777/abc".into(),
        query: Some("a=b&tenant=7777".into()),
        headers: HeaderMap::new(),
        port: 80,
        grpc: false,
        caller: Some(Workload { namespace: "n7777".into(), labels: BTreeMap::new(), ..Workload::default() }),
    };
    for (name, value) in [("x-tenant", "7777"), ("x-7777", "1"), ("x-row", "77"), ("cookie", "tenant=7777; column=77")]
    {
        asked.headers.append(name, value.parse().unwrap());
    }
    for (shape, wire) in shapes {
        let entries = compiled(&wire);
        let found = Index::new(&entries).first(&entries, &asked.view()).map(|entry| entry.rule);
        assert_eq!(found, Some(7777), "{shape}");
        let few = asked_for(&entries, &asked.view());
        assert!(few <= 8, "{shape}: {few} entries are asked");
    }
}

#[test]
fn a_long_value_is_matched_too() {
    let long = "a".repeat(100_000);
    let wire = v1::NamedMatch {
        name: "x".into(),
        r#match: Some(matched(v1::MatchType::RegularExpression, "([a-z]{1,5}b?){1,50}.*".into())),
    };
    let entries = compiled(&[v1::Match { query_params: vec![wire], ..Default::default() }]);
    entries[0].check().unwrap();
    let asked = |value: &str| Asked {
        method: Method::GET,
        path: "/".into(),
        query: Some(format!("x={value}")),
        headers: HeaderMap::new(),
        port: 80,
        grpc: false,
        caller: None,
    };
    assert!(walk(&entries, &asked(&long).view()).is_some());
    assert!(walk(&entries, &asked("").view()).is_none());
}
