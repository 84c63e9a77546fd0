//! A Service's rules: their matches in order of precedence, and what becomes of the requests that match.
//!
//! A rule of another namespace than its Service's (a consumer rule) asks, in each of its entries, for callers of its own
//! namespace. An entry that no request can meet is left out, and a rule with no other is left out whole
//! (`a_rule_never_matches_more_than_it_says`).

use std::borrow::Cow;

use switchyard_crds::route_rule::{PathMatchType, RouteMatch, SourceMatch, ValueMatchType, WhenUnavailable};
use switchyard_crds::validate::{consumer_namespace, entry_left_out};
use switchyard_crds::values::Duration;
use switchyard_crds::{Finding, Reason, RouteRule};
use switchyard_proto::{path, v1};

use crate::compile::destinations::Present;
use crate::compile::order::Rank;
use crate::compile::{conflicts, destinations, filters, name_of, policies, qualified, warning};
use crate::object::{Service, ServicePort};
use crate::world::World;

/// The entry of a rule that has none: everything matches.
pub(super) static EVERYTHING: RouteMatch = RouteMatch {
    path: None,
    method: None,
    headers: Vec::new(),
    query_params: Vec::new(),
    cookies: Vec::new(),
    grpc: None,
    source: None,
};

/// The rules of a Service, sorted by name, and all their matches, the one that is asked first in front.
pub fn compile(
    world: &World,
    service: &Service,
    present: &mut Present<'_>,
    findings: &mut Vec<Finding>,
) -> (Vec<v1::Rule>, Vec<v1::Match>) {
    let mut taken: Vec<&RouteRule> = Vec::new();
    let rules: Vec<&RouteRule> = world.rules_of(&service.key()).collect();
    for rule in rules.iter().copied() {
        check_port(service, rule, findings);
        destinations::check(world, rule, present, findings);
        if entries(rule).next().is_some() {
            taken.push(rule);
        }
    }
    findings.extend(conflicts::analyse(service, &rules));
    let mut ranked: Vec<(Rank<'_>, v1::Match)> = Vec::new();
    for (at, rule) in taken.iter().enumerate() {
        for (position, entry) in entries(rule) {
            let rank = Rank::new(rule, position, &entry);
            ranked.push((rank, compile_match(at as u32, rule, position, &entry)));
        }
    }
    ranked.sort_by(|(a, _), (b, _)| a.cmp(b));
    let rules = taken.iter().map(|rule| compile_rule(world, rule, findings)).collect();
    (rules, ranked.into_iter().map(|(_, entry)| entry).collect())
}

/// The entries of a rule that requests can meet, with their positions. Those of a consumer rule name its namespace.
fn entries(rule: &RouteRule) -> impl Iterator<Item = (usize, Cow<'_, RouteMatch>)> {
    let everything = rule.spec.matches.is_empty().then_some(&EVERYTHING);
    let all = rule.spec.matches.iter().chain(everything).enumerate();
    all.filter(|(_, entry)| entry_left_out(rule, entry).is_none()).map(|(position, entry)| {
        let entry = match consumer_namespace(rule) {
            None => Cow::Borrowed(entry),
            Some(namespace) => {
                let source =
                    SourceMatch { namespace: Some(namespace.to_owned()), ..entry.source.clone().unwrap_or_default() };
                Cow::Owned(RouteMatch { source: Some(source), ..entry.clone() })
            }
        };
        (position, entry)
    })
}

fn compile_rule(world: &World, rule: &RouteRule, findings: &mut Vec<Finding>) -> v1::Rule {
    let name = name_of(rule);
    let limit = |duration: Option<Duration>| duration.map(Duration::as_millis).filter(|millis| *millis > 0);
    let timeouts = rule.spec.timeouts.unwrap_or_default();
    let retry = rule.spec.retry_policy.as_ref().and_then(|wanted| {
        let policy = world.retry_policy(&name.namespace, wanted);
        if policy.is_none() {
            let message =
                format!("there is no RetryPolicy {}/{wanted}; the Service's own holds, if any", name.namespace);
            findings.push(warning(&name, Reason::UnresolvedRef, "spec.retryPolicy", message));
        }
        policy.map(|policy| policies::retry(policy, v1::Selector::default()))
    });
    v1::Rule {
        name: qualified(&name),
        generation: rule.metadata.generation.unwrap_or_default(),
        destinations: rule.spec.destinations.iter().map(|to| destinations::compile(rule, to)).collect(),
        request_timeout_ms: limit(timeouts.request),
        backend_request_timeout_ms: limit(timeouts.backend_request),
        retry,
        fail_when_unavailable: rule.spec.when_unavailable == WhenUnavailable::Fail,
        stickiness: rule.spec.stickiness.as_ref().map(filters::stickiness),
        filters: filters::compile(rule, &rule.spec.filters),
    }
}

fn compile_match(at: u32, rule: &RouteRule, position: usize, entry: &RouteMatch) -> v1::Match {
    let text = |kind: v1::MatchType, value: &str| v1::StringMatch { r#type: kind.into(), value: value.to_owned() };
    // What has no normal form was refused.
    let normal = |value: &'_ str| path::normal(value).map_or_else(|_| value.to_owned(), Cow::into_owned);
    let path = entry.path.as_ref().and_then(|path| match path.kind {
        PathMatchType::Exact => Some(text(v1::MatchType::Exact, &normal(&path.value))),
        PathMatchType::RegularExpression => Some(text(v1::MatchType::RegularExpression, &path.value)),
        // `/api/` and `/api` are the same prefix, and `/` is everything.
        PathMatchType::PathPrefix => match normal(&path.value).trim_end_matches('/') {
            "" => None,
            prefix => Some(text(v1::MatchType::Prefix, prefix)),
        },
    });
    let named = |name: String, kind, value: &Option<String>| v1::NamedMatch {
        name,
        r#match: Some(text(value_match(kind), value.as_deref().unwrap_or_default())),
    };
    let header = |header: &switchyard_crds::route_rule::HeaderMatch| {
        named(header.name.to_ascii_lowercase(), header.kind, &header.value)
    };
    let query =
        |param: &switchyard_crds::route_rule::QueryParamMatch| named(param.name.clone(), param.kind, &param.value);
    let cookie =
        |cookie: &switchyard_crds::route_rule::CookieMatch| named(cookie.name.clone(), cookie.kind, &cookie.value);
    let grpc = entry.grpc.as_ref().map(|grpc| v1::GrpcMatch {
        service: grpc.service.clone().unwrap_or_default(),
        method: grpc.method.clone().unwrap_or_default(),
    });
    // One that asks for nothing is met by callers that nobody knows too.
    let source =
        entry.source.as_ref().filter(|source| **source != SourceMatch::default()).map(|source| v1::SourceMatch {
            namespace: source.namespace.clone().unwrap_or_default(),
            labels: source.labels.clone(),
            service_account: source.service_account.clone().unwrap_or_default(),
        });
    v1::Match {
        rule: at,
        port: port_number(rule.spec.port),
        path,
        method: entry.method.clone().unwrap_or_default(),
        headers: entry.headers.iter().map(header).collect(),
        query_params: entry.query_params.iter().map(query).collect(),
        cookies: entry.cookies.iter().map(cookie).collect(),
        grpc,
        source,
        position: if rule.spec.matches.is_empty() { -1 } else { i32::try_from(position).unwrap_or(i32::MAX) },
    }
}

fn value_match(kind: ValueMatchType) -> v1::MatchType {
    match kind {
        ValueMatchType::Exact => v1::MatchType::Exact,
        ValueMatchType::Prefix => v1::MatchType::Prefix,
        ValueMatchType::RegularExpression => v1::MatchType::RegularExpression,
        ValueMatchType::Present => v1::MatchType::Present,
        ValueMatchType::Absent => v1::MatchType::Absent,
    }
}

/// A port as the wire has it: 0 where none is given.
pub(crate) fn port_number(port: Option<i32>) -> u32 {
    port.and_then(|port| u32::try_from(port).ok()).unwrap_or_default()
}

/// What is spoken on a port: `appProtocol` decides, else what the port's name begins with.
pub fn protocol(port: &ServicePort) -> v1::Protocol {
    let prefix = || port.name.split('-').next().unwrap_or_default();
    match port.app_protocol.as_deref().unwrap_or_else(prefix).to_ascii_lowercase().as_str() {
        "http" | "kubernetes.io/ws" | "ws" => v1::Protocol::Http1,
        "http2" | "h2c" | "kubernetes.io/h2c" | "grpc" => v1::Protocol::Http2,
        "tcp" | "https" | "tls" | "kubernetes.io/wss" | "wss" => v1::Protocol::Tcp,
        _ => v1::Protocol::Unspecified,
    }
}

fn check_port(service: &Service, rule: &RouteRule, findings: &mut Vec<Finding>) {
    let Some(wanted) = rule.spec.port else {
        let mut ports = service.tcp_ports().peekable();
        if ports.peek().is_some() && ports.all(|port| protocol(port) == v1::Protocol::Tcp) {
            let message = format!("no port of Service {} is HTTP, so no request matches the rule", service.key());
            findings.push(warning(&name_of(rule), Reason::Suspicious, "spec.service", message));
        }
        return;
    };
    let found = service.tcp_ports().find(|port| i32::from(port.port) == wanted);
    let (reason, message) = match found {
        None => (
            Reason::UnresolvedRef,
            format!("Service {} has no port {wanted}{}", service.key(), destinations::ports_in_words(service)),
        ),
        Some(port) if protocol(port) == v1::Protocol::Tcp => (
            Reason::Suspicious,
            format!("port {wanted} of Service {} is not HTTP, so no request of it matches a rule", service.key()),
        ),
        Some(_) => return,
    };
    findings.push(warning(&name_of(rule), reason, "spec.port", message));
}
