#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::cmp::Ordering;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::object::Object;
use crate::samples::rule;

fn rules() -> impl Strategy<Value = Vec<Arc<RouteRule>>> {
    vec(rule(), 1..6).prop_map(|objects| {
        let by_key: std::collections::BTreeMap<_, _> = objects.into_iter().map(|o| (o.key(), o)).collect();
        let rule = |object| match object {
            Object::RouteRule(rule) => Some(rule),
            _ => None,
        };
        by_key.into_values().filter_map(rule).collect()
    })
}

fn entries(rules: &[Arc<RouteRule>]) -> Vec<(&RouteRule, usize, &RouteMatch)> {
    let of = |rule: &'_ Arc<RouteRule>| rule.spec.matches.len();
    let mut all = Vec::new();
    for rule in rules {
        for position in 0..of(rule) {
            all.push((rule.as_ref(), position, &rule.spec.matches[position]));
        }
    }
    all
}

/// The documented order in plain words, one criterion after the other.
fn naive(a: &(&RouteRule, usize, &RouteMatch), b: &(&RouteRule, usize, &RouteMatch)) -> Ordering {
    fn path(entry: &RouteMatch) -> (u8, usize) {
        let call = match &entry.grpc {
            Some(GrpcMatch { service: Some(_), method: Some(_) }) => (3, 0),
            Some(GrpcMatch { service: Some(service), method: None }) => (1, service.len() + 1),
            _ => (1, 0),
        };
        call.max(match &entry.path {
            Some(path) if path.kind == PathMatchType::Exact => (3, 0),
            Some(path) if path.kind == PathMatchType::RegularExpression => (2, 0),
            Some(path) if path.value.ends_with('/') => (1, path.value.len() - 1),
            Some(path) => (1, path.value.len()),
            None => (1, 0),
        })
    }
    let has_method = |entry: &RouteMatch| entry.method.is_some() || entry.grpc.is_some();
    // A consumer rule asks who calls in every entry.
    let asks_who = |rule: &RouteRule, entry: &RouteMatch| {
        let of = rule.spec.service_namespace.as_ref();
        entry.source.is_some() || of.is_some_and(|of| Some(of) != rule.metadata.namespace.as_ref())
    };
    let more_first = |a: usize, b: usize| b.cmp(&a);
    let ((rule_a, at_a, a), (rule_b, at_b, b)) = (a, b);
    let created = |rule: &RouteRule| rule.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let mut decided = vec![
        rule_b.spec.priority.cmp(&rule_a.spec.priority),
        path(b).cmp(&path(a)),
        has_method(b).cmp(&has_method(a)),
        more_first(a.headers.len() + a.cookies.len(), b.headers.len() + b.cookies.len()),
        more_first(a.query_params.len(), b.query_params.len()),
        asks_who(rule_b, b).cmp(&asks_who(rule_a, a)),
    ];
    decided.push(match (created(rule_a), created(rule_b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    });
    decided.push(rule_a.metadata.namespace.cmp(&rule_b.metadata.namespace));
    decided.push(rule_a.metadata.name.cmp(&rule_b.metadata.name));
    decided.push(at_a.cmp(at_b));
    decided.into_iter().find(|ordering| ordering.is_ne()).unwrap_or(Ordering::Equal)
}

proptest! {
    #[test]
    fn the_order_is_total_and_does_not_depend_on_what_came_first(rules in rules()) {
        let entries = entries(&rules);
        for (i, a) in entries.iter().enumerate() {
            for (j, b) in entries.iter().enumerate() {
                let rank = |(rule, position, entry): &(&'_ RouteRule, usize, &RouteMatch)| {
                    let rank = Rank::new(rule, *position, entry);
                    format!("{rank:?}")
                };
                let order = Rank::new(a.0, a.1, a.2).cmp(&Rank::new(b.0, b.1, b.2));
                prop_assert_eq!(order, naive(a, b), "{} and {}", rank(a), rank(b));
                prop_assert_eq!(order.is_eq(), i == j);
            }
        }
    }
}
