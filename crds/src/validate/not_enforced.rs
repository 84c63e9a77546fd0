//! What this build accepts but does not act on yet, as one list that is to become empty. An object that uses any of it is
//! taken, with a warning: silence would be worse than a refusal.

use crate::circuit_policy::{CircuitPolicySpec, Override};
use crate::findings::{Finding, Reason};
use crate::retry_policy::RetryPolicySpec;
use crate::route_rule::{RouteMatch, RouteRuleSpec};
use crate::values::Percent;

use super::Report;

const YET: &str = "is accepted, but this build does not act on it yet";
const MATCH: &str = "is not looked at yet: this match entry is left out until it is enforced";

/// Whether this build looks at all that a match entry asks for. One that asks for more is left out: it must not stand for
/// more requests than its author meant.
pub fn enforced(entry: &RouteMatch) -> bool {
    unenforced_conditions(entry).next().is_none()
}

fn unenforced_conditions(entry: &RouteMatch) -> impl Iterator<Item = &'static str> {
    let used =
        [("cookies", !entry.cookies.is_empty()), ("grpc", entry.grpc.is_some()), ("source", entry.source.is_some())];
    used.into_iter().filter(|(_, used)| *used).map(|(field, _)| field)
}

pub(super) fn route_rule(spec: &RouteRuleSpec, report: &mut Report) {
    if spec.service_namespace.is_some() {
        report.not_enforced(
            "spec.serviceNamespace",
            "rules for another namespace's Service are not in force yet: this rule is left out",
        );
    }
    for (i, entry) in spec.matches.iter().enumerate() {
        for field in unenforced_conditions(entry) {
            report.not_enforced(format!("spec.matches[{i}].{field}"), MATCH);
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
    report.fields(&[
        ("spec.slowCalls", spec.slow_calls.is_some()),
        // The default is no wish of anybody's.
        ("spec.maxEjectionPercent", spec.max_ejection_percent != Percent::whole(50)),
        ("spec.healthCheck", spec.health_check.is_some()),
        ("spec.limits", spec.limits.is_some()),
        ("spec.fallback", spec.fallback.is_some()),
        ("spec.override", spec.hold != Override::None),
    ]);
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
