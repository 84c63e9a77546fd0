//! Which rule wins: the one place that decides it. Agents get a sorted list and walk it, so that all agree by
//! construction.
//!
//! What is ranked is one entry of a rule's `matches`. The order is total: two ranks are equal only for the same entry of
//! the same rule (`the_order_is_total_and_does_not_depend_on_what_came_first`). It is the Gateway API's order, with what
//! that leaves open decided: of two regular expressions neither is more specific; a gRPC match counts as the path that it stands for
//! (a service alone as a prefix of one segment) and as a method; an object with no `creationTimestamp` (from a file) counts as
//! younger than every one that has one. A consumer rule counts as one that asks who calls, for it does.

use std::cmp::Reverse;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::ObjectMeta;
use switchyard_crds::RouteRule;
use switchyard_crds::route_rule::{GrpcMatch, PathMatch, PathMatchType, RouteMatch};
use switchyard_crds::validate::consumer_namespace;
use switchyard_proto::path;

/// The place of an entry: the lesser is asked first. The fields stand in the order in which they decide.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank<'a> {
    specificity: Specificity,
    age: Age<'a>,
    position: usize,
}

/// All that decides before age does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Specificity {
    priority: Reverse<i32>,
    path: PathRank,
    method: Reverse<bool>,
    headers_and_cookies: Reverse<usize>,
    query_params: Reverse<usize>,
    source: Reverse<bool>,
}

/// The more specific is the lesser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PathRank {
    Exact,
    RegularExpression,
    /// Its length in characters, without a trailing slash.
    Prefix(Reverse<usize>),
}

/// The older is the lesser; of those of one age, the one whose name comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Age<'a> {
    created: Created<'a>,
    namespace: &'a str,
    name: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Created<'a> {
    At(&'a Time),
    Unknown,
}

impl<'a> Rank<'a> {
    /// The rank of the entry at `position` of a rule's matches.
    pub fn new(rule: &'a RouteRule, position: usize, entry: &RouteMatch) -> Self {
        Self { specificity: Specificity::new(rule, entry), age: Age::of(&rule.metadata), position }
    }
}

impl Specificity {
    /// How specific an entry of a rule is. All entries of a consumer rule ask who calls.
    pub fn new(rule: &RouteRule, entry: &RouteMatch) -> Self {
        Self {
            priority: Reverse(rule.spec.priority),
            path: PathRank::new(entry.path.as_ref()).min(PathRank::of_call(entry.grpc.as_ref())),
            method: Reverse(entry.method.is_some() || entry.grpc.is_some()),
            headers_and_cookies: Reverse(entry.headers.len() + entry.cookies.len()),
            query_params: Reverse(entry.query_params.len()),
            source: Reverse(entry.source.is_some() || consumer_namespace(rule).is_some()),
        }
    }
}

impl PathRank {
    fn new(path: Option<&PathMatch>) -> Self {
        match path {
            None => Self::Prefix(Reverse(0)),
            Some(path) => match path.kind {
                PathMatchType::Exact => Self::Exact,
                PathMatchType::RegularExpression => Self::RegularExpression,
                PathMatchType::PathPrefix => Self::prefix(&path.value),
            },
        }
    }

    /// As long as its normal form: another spelling makes nothing more specific.
    fn prefix(path: &str) -> Self {
        let normal = path::normal(path).unwrap_or(path.into());
        Self::Prefix(Reverse(normal.trim_end_matches('/').chars().count()))
    }

    fn of_call(grpc: Option<&GrpcMatch>) -> Self {
        match grpc.map(|grpc| (&grpc.service, &grpc.method)) {
            Some((Some(_), Some(_))) => Self::Exact,
            Some((Some(service), None)) => Self::prefix(&format!("/{service}")),
            _ => Self::new(None),
        }
    }
}

impl<'a> Age<'a> {
    /// The age of an object, with its name for where that does not decide.
    pub fn of(meta: &'a ObjectMeta) -> Self {
        Self {
            created: meta.creation_timestamp.as_ref().map_or(Created::Unknown, Created::At),
            namespace: meta.namespace.as_deref().unwrap_or_default(),
            name: meta.name.as_deref().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests;
