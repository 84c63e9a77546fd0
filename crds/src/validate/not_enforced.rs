//! What this build accepts but does not act on yet, as one list that is to become empty. An object that uses any of it is
//! taken, with a warning: silence would be worse than a refusal.

use crate::findings::{Finding, Reason};
use crate::retry_policy::RetryPolicySpec;

use super::Report;

const YET: &str = "is accepted, but this build does not act on it yet";

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
