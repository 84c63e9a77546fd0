//! What this build accepts but does not act on yet, as one list that is to become empty. An object that uses any of it is
//! taken, with a warning: silence would be worse than a refusal.

use crate::circuit_policy::CircuitPolicySpec;
use crate::findings::{Finding, Reason};
use crate::retry_policy::RetryPolicySpec;
use crate::route_rule::{RouteMatch, RouteRule};

use super::Report;

const YET: &str = "is accepted, but this build does not act on it yet";
const MATCH: &str = "not looked at yet";
const CONSUMER: &str = "rules for another namespace's Service are not in force yet";
const NO_DESTINATION: &str = "rules that have filters and no destination are not in force yet";

/// Why nothing of a rule is in force, if that is so whatever its matches ask for.
pub fn rule_left_out(rule: &RouteRule) -> Option<&'static str> {
    if is_consumer_rule(rule) {
        return Some(CONSUMER);
    }
    rule.spec.destinations.is_empty().then_some(NO_DESTINATION)
}

/// Why a match entry is left out, if it is: this build does not look at all that it asks for, and it must not stand for more
/// requests than its author meant.
pub fn entry_left_out(entry: &RouteMatch) -> Option<String> {
    let fields: Vec<&str> = unenforced_conditions(entry).collect();
    let are = match fields.as_slice() {
        [] => return None,
        ["grpc" | "source"] => "is",
        _ => "are",
    };
    Some(format!("{} {are} {MATCH}", fields.join(" and ")))
}

/// Whether a rule is for callers of its own namespace only, to a Service of another. An object that is in no file has its
/// namespace; in a file an absent one is `default`.
fn is_consumer_rule(rule: &RouteRule) -> bool {
    let own = rule.metadata.namespace.as_deref().unwrap_or("default");
    rule.spec.service_namespace.as_deref().is_some_and(|of| of != own)
}

fn unenforced_conditions(entry: &RouteMatch) -> impl Iterator<Item = &'static str> {
    let used =
        [("cookies", !entry.cookies.is_empty()), ("grpc", entry.grpc.is_some()), ("source", entry.source.is_some())];
    used.into_iter().filter(|(_, used)| *used).map(|(field, _)| field)
}

pub(super) fn route_rule(rule: &RouteRule, report: &mut Report) {
    let spec = &rule.spec;
    if is_consumer_rule(rule) {
        report.not_enforced("spec.serviceNamespace", &format!("{CONSUMER}: this rule is left out"));
    }
    for (i, entry) in spec.matches.iter().enumerate() {
        for field in unenforced_conditions(entry) {
            let message = format!("is {MATCH}: this match entry is left out until it is enforced");
            report.not_enforced(format!("spec.matches[{i}].{field}"), &message);
        }
    }
    for (i, destination) in spec.destinations.iter().enumerate() {
        report.fields(&[(&format!("spec.destinations[{i}].filters"), !destination.filters.is_empty())]);
    }
    for i in 0..spec.filters.len() {
        report.not_enforced(format!("spec.filters[{i}]"), YET);
    }
    report.fields(&[("spec.stickiness", spec.stickiness.is_some())]);
}

pub(super) fn circuit_policy(spec: &CircuitPolicySpec, report: &mut Report) {
    report.fields(&[("spec.healthCheck", spec.health_check.is_some())]);
}

pub(super) fn retry_policy(spec: &RetryPolicySpec, report: &mut Report) {
    report.fields(&[("spec.hedge", spec.hedge.is_some())]);
}

impl Report {
    fn fields(&mut self, fields: &[(&str, bool)]) {
        for (field, _) in fields.iter().filter(|(_, used)| *used) {
            self.not_enforced(*field, YET);
        }
    }

    fn not_enforced(&mut self, field: impl Into<String>, message: &str) {
        self.findings.push(Finding::warning(Reason::NotEnforced, field, message));
    }
}
