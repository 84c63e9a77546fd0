//! What no schema can say of a `RouteRule`.

use crate::findings::Finding;
use crate::route_rule::{
    HeaderMatch, PathMatch, PathMatchType, RouteMatch, RouteRule, Stickiness, Timeouts, ValueMatchType,
};
use crate::values::Duration;

use super::{Report, filters, patterns};

/// What is wrong with a rule, or likely a mistake; all of it.
pub fn validate_route_rule(rule: &RouteRule) -> Vec<Finding> {
    let spec = &rule.spec;
    let mut report = Report::default();
    for (i, entry) in spec.matches.iter().enumerate() {
        report.route_match(&format!("spec.matches[{i}]"), entry);
        if let Some(why) = entry_left_out(rule, entry) {
            report.suspicious(format!("spec.matches[{i}].source.namespace"), why);
        }
    }
    for (i, destination) in spec.destinations.iter().enumerate() {
        let field = format!("spec.destinations[{i}]");
        report.labels(&format!("{field}.subset"), &destination.subset);
        report.destination_filters(&format!("{field}.filters"), &destination.filters);
    }
    let goes = spec.destinations.iter().any(|d| d.weight > 0);
    let answered = spec.filters.iter().any(filters::answers);
    report.require(
        goes || answered || spec.filters.iter().any(filters::aborts_all),
        "spec.destinations",
        super::NOWHERE,
    );
    report.require(!(goes && answered), "spec.destinations", super::ANSWERED);
    report.rule_filters(spec);
    if let Some(stickiness) = &spec.stickiness {
        report.stickiness(stickiness, spec.destinations.len());
    }
    if let Some(timeouts) = &spec.timeouts {
        report.timeouts(timeouts);
    }
    report.finish()
}

/// The namespace whose callers alone a rule is for: its own, where its Service is of another. An object that is in no file has its
/// namespace; in a file an absent one is `default`.
pub fn consumer_namespace(rule: &RouteRule) -> Option<&str> {
    let own = rule.metadata.namespace.as_deref().unwrap_or("default");
    rule.spec.service_namespace.as_deref().filter(|of| *of != own).map(|_| own)
}

/// Why no request can meet an entry of a rule, if that is so: who calls would have to be of two namespaces.
pub fn entry_left_out(rule: &RouteRule, entry: &RouteMatch) -> Option<String> {
    let own = consumer_namespace(rule)?;
    let asked = entry.source.as_ref()?.namespace.as_deref().filter(|asked| *asked != own)?;
    Some(format!(
        "no caller is of namespace {asked} and of {own}: a rule for a Service of another namespace is for callers of its own"
    ))
}

/// White space that HTTP allows around a header field's value.
const BLANK: [char; 2] = [' ', '\t'];

/// What header, query parameter and cookie matches have in common.
struct Named<'a> {
    kind: ValueMatchType,
    name: &'a str,
    value: Option<&'a str>,
}

macro_rules! named {
    ($matches:expr) => {
        $matches
            .iter()
            .map(|m| Named { kind: m.kind, name: &m.name, value: m.value.as_deref() })
            .collect::<Vec<Named<'_>>>()
    };
}

impl Report {
    fn route_match(&mut self, field: &str, entry: &RouteMatch) {
        if let Some(path) = &entry.path {
            self.path_match(&format!("{field}.path.value"), path);
        }
        self.named(&format!("{field}.headers"), "header", &named!(entry.headers), str::eq_ignore_ascii_case);
        self.named(&format!("{field}.queryParams"), "query parameter", &named!(entry.query_params), |a, b| a == b);
        self.named(&format!("{field}.cookies"), "cookie", &named!(entry.cookies), |a, b| a == b);
        if entry.method.as_deref() == Some("CONNECT") {
            self.suspicious(
                format!("{field}.method"),
                "no request has it: CONNECT is answered 501 before any rule is asked",
            );
        }
        for (i, header) in entry.headers.iter().enumerate() {
            self.header_value(&format!("{field}.headers[{i}].value"), header);
        }
        if let Some(source) = &entry.source {
            self.labels(&format!("{field}.source.labels"), &source.labels);
        }
    }

    fn path_match(&mut self, field: &str, path: &PathMatch) {
        if path.kind == PathMatchType::RegularExpression {
            return self.regex(field, &path.value);
        }
        self.require(path.value.starts_with('/'), field, super::PATH_START);
        let foreign = |c: char| "?# ".contains(c) || c.is_ascii_control();
        self.require(!path.value.contains(foreign), field, super::PATH_ONLY);
        self.require(can_be_normal(&path.value), field, super::PATH_NORMAL);
    }

    /// A value that no header field can have: the white space around it is not part of a field's value (RFC 9110, section 5.5).
    fn header_value(&mut self, field: &str, header: &HeaderMatch) {
        let value = header.value.as_deref().unwrap_or_default();
        let around = match header.kind {
            ValueMatchType::Exact => value.starts_with(BLANK) || value.ends_with(BLANK),
            ValueMatchType::Prefix => value.starts_with(BLANK),
            _ => false,
        };
        self.require(!around, field, super::HEADER_BLANK);
    }

    fn regex(&mut self, field: &str, expression: &str) {
        if let Err(message) = patterns::usable(expression) {
            self.error(field, message);
        }
    }

    fn named(&mut self, field: &str, what: &str, matches: &[Named<'_>], same: fn(&str, &str) -> bool) {
        for (i, this) in matches.iter().enumerate() {
            let whole = field;
            let field = format!("{field}[{i}]");
            let valueless = matches!(this.kind, ValueMatchType::Present | ValueMatchType::Absent);
            self.require(valueless != this.value.is_some(), &field, super::MATCH_VALUE);
            if let (ValueMatchType::RegularExpression, Some(value)) = (this.kind, this.value) {
                self.regex(&format!("{field}.value"), value);
            }
            for earlier in matches[..i].iter().filter(|earlier| same(earlier.name, this.name)) {
                if let Some(message) = clash(earlier, this, what) {
                    self.error(whole, message);
                    break;
                }
            }
        }
    }

    fn stickiness(&mut self, stickiness: &Stickiness, destinations: usize) {
        let on = &stickiness.on;
        if let Some(ttl) = on.cookie.as_ref().and_then(|cookie| cookie.ttl) {
            self.require(ttl.as_millis() > 0, "spec.stickiness.on.cookie.ttl", super::COOKIE_TTL);
        }
        if destinations < 2 {
            let message = "there are no two destinations that a user could be kept in one of";
            self.suspicious("spec.stickiness", message);
        }
        let given = [on.header.is_some(), on.cookie.is_some(), on.source_ip.is_some()];
        self.require(given.into_iter().filter(|g| *g).count() == 1, "spec.stickiness.on", super::ONE_STICKY_KEY);
    }

    fn timeouts(&mut self, timeouts: &Timeouts) {
        // 0s means none.
        let given = |timeout: Option<Duration>| timeout.filter(|t| t.as_millis() > 0);
        if let (Some(whole), Some(each)) = (given(timeouts.request), given(timeouts.backend_request))
            && each > whole
        {
            let message = format!("{each} for one try is longer than {whole} for the whole request (timeouts.request)");
            self.error("spec.timeouts.backendRequest", message);
        }
    }
}

/// Whether a path can be one of a request. Requests come before rules in a normal form (how a path is spelt in it, a rule need not know).
fn can_be_normal(path: &str) -> bool {
    let is_dots = |segment: &str| {
        let decoded = segment.replace("%2e", ".").replace("%2E", ".");
        decoded == "." || decoded == ".."
    };
    let encoded = path.split('%').skip(1).all(|rest| {
        let digits = rest.get(..2).unwrap_or_default();
        digits.len() == 2 && digits != "00" && digits.bytes().all(|b| b.is_ascii_hexdigit())
    });
    encoded && !path.contains("//") && !path.contains('\\') && !path.split('/').any(is_dots)
}

/// Why no request has both, if none can.
fn clash(earlier: &Named<'_>, this: &Named<'_>, what: &str) -> Option<String> {
    use ValueMatchType::{Absent, Exact};
    let name = this.name;
    match (earlier.kind, this.kind) {
        (Exact, Exact) if earlier.value != this.value => Some(format!(
            "the {what} {name:?} is asked for twice, with {:?} and {:?}: no request has both; for either, write two matches",
            earlier.value.unwrap_or_default(),
            this.value.unwrap_or_default(),
        )),
        (Absent, other) | (other, Absent) if other != Absent => {
            Some(format!("the {what} {name:?} is asked for as Absent and as {other:?}: no request has both"))
        }
        _ => None,
    }
}
