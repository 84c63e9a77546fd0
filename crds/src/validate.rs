//! What no schema can say of an object by itself: fields that contradict one another, values that cannot work, and what
//! is likely a mistake. Rules that look at other objects are the controller's.
//!
//! An object gets all its findings at once. Where a rule can also be stated to the API server, the schema states it with
//! the same message: the constants here.

use std::collections::BTreeMap;

use crate::findings::{Finding, Reason};
use crate::{names, shape};

/// What counts as a failure.
pub mod conditions;

mod circuit_policy;
mod not_enforced;
mod patterns;
mod retry_policy;
mod route_rule;
mod targets;

pub use circuit_policy::validate_circuit_policy;
pub use not_enforced::{entry_left_out, rule_left_out};
pub use patterns::{REGEX_NFA_BYTES, whole_match};
pub use retry_policy::validate_retry_policy;
pub use route_rule::validate_route_rule;

pub(crate) const NOWHERE: &str = "no request could go anywhere: give a destination with a weight above 0, or a filter of \
     type RequestRedirect or DirectResponse";
pub(crate) const PATH_START: &str = "a path begins with `/`";
pub(crate) const PATH_ONLY: &str =
    "a path has no `?`, `#`, space or control character in it; queryParams match the query";
pub(crate) const HEADER_BLANK: &str =
    "a header field's value has no white space at either end, so no request would match";
pub(crate) const MATCH_VALUE: &str = "a value is given, except for Present and Absent, which have none";
pub(crate) const ONE_STICKY_KEY: &str = "exactly one of header, cookie and sourceIP is given";
pub(crate) const FILTER_FIELD: &str = "the field that `type` names is given, and no other";
pub(crate) const FAULT_NONE: &str = "a delay, an abort or both are given";
pub(crate) const REDIRECT_STATUS: &str = "a redirect's status is 301, 302, 303, 307 or 308";
pub(crate) const ONE_CHECK: &str = "exactly one of path, grpc and tcp is given";
pub(crate) const ONE_FALLBACK: &str = "exactly one of destination and response is given";
pub(crate) const TARGET_GROUP: &str = "only Services can be targets; their group is empty";

/// Collects the findings of one object.
#[derive(Default)]
struct Report {
    findings: Vec<Finding>,
}

impl Report {
    fn error(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.findings.push(Finding::error(Reason::Invalid, field, message));
    }

    fn suspicious(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.findings.push(Finding::warning(Reason::Suspicious, field, message));
    }

    fn require(&mut self, holds: bool, field: impl Into<String>, message: impl Into<String>) {
        if !holds {
            self.error(field, message);
        }
    }

    /// Labels that are spelt as no label can be.
    fn labels(&mut self, field: &str, labels: &BTreeMap<String, String>) {
        for (key, value) in labels {
            let field = format!("{field}[{key}]");
            if let Some(fault) = names::label_key_fault(key) {
                self.error(field, format!("{key:?} {fault}"));
            } else if let Some(fault) = names::label_value_fault(value) {
                self.error(field, format!("{value:?} {fault}"));
            }
        }
    }

    fn finish(mut self) -> Vec<Finding> {
        self.findings.truncate(shape::MAX_FINDINGS);
        self.findings
    }
}

#[cfg(test)]
mod tests;
