//! What no schema can say of an object by itself: fields that contradict one another, values that cannot work, and what
//! is likely a mistake. Rules that look at other objects are the controller's.
//!
//! An object gets all its findings at once. Every rule but that of regular expressions has a twin that the API server asks:
//! [`crate::cel`], with the bounds and messages that are constants here.

use std::collections::BTreeMap;

use crate::findings::{Finding, Reason};
use crate::{names, shape};

/// What counts as a failure.
pub mod conditions;

pub(crate) mod circuit_policy;
mod filters;
mod patterns;
pub(crate) mod retry_policy;
mod route_rule;
mod targets;

pub use circuit_policy::validate_circuit_policy;
pub use patterns::{REGEX_NFA_BYTES, usable};
pub use retry_policy::validate_retry_policy;
pub use route_rule::{consumer_namespace, entry_left_out, validate_route_rule};

pub(crate) const NOWHERE: &str = "no request could go anywhere: give a destination with a weight above 0, or a filter of \
     type RequestRedirect or DirectResponse, or of type Fault with an abort of 100%";
pub(crate) const ANSWERED: &str = "no request goes to a destination where a RequestRedirect or a DirectResponse answers them \
     all: take one of the two out";
pub(crate) const FILTER_TWICE: &str = "but for RequestMirror, a type of filter is given once";
pub(crate) const REDIRECT_REWRITE: &str =
    "RequestRedirect, URLRewrite and DirectResponse exclude one another: what is answered at once is not passed on";
pub(crate) const DESTINATION_FILTER: &str = "a destination takes the filters RequestHeaderModifier, ResponseHeaderModifier and \
     RequestMirror; the others are given for the rule";
pub(crate) const UNTOUCHED: &str = "no filter touches the fields that say whose a message is (Host; urlRewrite.hostname changes that), \
     how long it is, or what is for one connection only, nor those that begin with x-switchyard-";
pub(crate) const FIELD_TWICE: &str =
    "is set, added or removed already: of each field there is one change, and names fold case";
pub(crate) const PREFIX_ONLY: &str =
    "ReplacePrefixMatch needs a prefix: every match has a path of type PathPrefix, or none, which is the prefix `/`";
pub(crate) const NO_BODY: &str = "a reply with status 204, 205 or 304 has no body";
pub(crate) const ALONE: &str = "`*` is all there is: it stands alone";
pub(crate) const COOKIE_TTL: &str =
    "a cookie that lives for 0s is gone at once; leave the field out for the browser's session";
pub(crate) const PATH_START: &str = "a path begins with `/`";
pub(crate) const PATH_ONLY: &str =
    "a path has no `?`, `#`, space or control character in it; queryParams match the query";
pub(crate) const PATH_NORMAL: &str = "no request has such a path when rules are asked: `.` and `..` are resolved, slashes in a row are one, a \
     backslash is a slash, and behind `%` two hexadecimal digits stand, not 00";
pub(crate) const HEADER_BLANK: &str =
    "a header field's value has no white space at either end, so no request would match";
pub(crate) const CLASH: &str = "a name is asked for with two values, or as Absent and otherwise: no request has both; for either, \
     write two matches";
pub(crate) const MATCH_VALUE: &str = "a value is given, except for Present and Absent, which have none";
pub(crate) const ONE_STICKY_KEY: &str = "exactly one of header, cookie and sourceIP is given";
pub(crate) const FILTER_FIELD: &str = "the field that `type` names is given, and no other";
pub(crate) const FAULT_NONE: &str = "a delay, an abort or both are given";
pub(crate) const REDIRECT_STATUS: &str = "a redirect's status is 301, 302, 303, 307 or 308";
pub(crate) const ONE_CHECK: &str = "exactly one of path, grpc and tcp is given";
pub(crate) const ONE_FALLBACK: &str = "exactly one of destination and response is given";
pub(crate) const MIN_ABOVE_MAX: &str = "minRequests is above limits.maxRequests";
pub(crate) const FALLBACK_ITSELF: &str =
    "the policy's own target stands in for itself: when its circuit is open, so is the fallback's";
pub(crate) const NO_TIME: &str = "0s leaves no time for any try; leave the field out for no limit";
pub(crate) const LABEL_KEYS: &str = "a label's key is a name of 1 to 63 letters, digits, `-`, `_` and `.`, before which a domain and a \
     slash may stand";
pub(crate) const TARGETS: &str = "each target is given once";
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

    /// Labels whose keys are spelt as no label's can be. Of their values the shape tells.
    /// What is said of a list's or a map's members together is said at the list or map: there the schema's own rules say it too.
    fn labels(&mut self, field: &str, labels: &BTreeMap<String, String>) {
        for key in labels.keys() {
            if let Some(fault) = names::label_key_fault(key) {
                self.error(field, format!("{key:?} {fault}"));
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
