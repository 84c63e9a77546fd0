//! The rules of the schema that go beyond the shape of a value (CEL, `x-kubernetes-validations`): with them an API server refuses,
//! with no webhook at hand, what [`crate::validate`] refuses, at the same field and in the same words.
//!
//! Keeps true: each rule of `validate` has its twin here or in the shape, and none refuses what `validate` takes; a corpus is held
//! against a real API server (`tests/tests/admission.rs`). Two things CEL cannot do, so that
//! - a regular expression is judged by `validate` only: CEL knows another syntax, and not how large one gets;
//! - a rule about two entries of a list, or about the key of a map, names the list or the map, not the entry.
//!
//! An API server reckons beforehand what a rule can cost at most, times how often it can be asked (64 matches with 16 headers each),
//! and takes no schema with a rule that is too dear: each text, list and map that a rule reads has a bound.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use crate::names;
use crate::validate::{self, circuit_policy, retry_policy};
use crate::values::Duration;

fn rule(rule: &str, message: &str) -> Value {
    json!({"rule": rule, "message": message})
}

/// A rule whose message has values in it.
fn telling(rule: &str, message: &str) -> Value {
    json!({"rule": rule, "messageExpression": message})
}

/// A rule about one field of the value that it is asked of.
fn at(field: &str, mut rule: Value) -> Value {
    rule["fieldPath"] = format!(".{field}").into();
    rule
}

/// Text that begins with a slash.
pub(crate) fn path_start() -> [Value; 1] {
    [rule("self.startsWith('/')", validate::PATH_START)]
}

/// A duration from `least` to `most`.
pub(crate) fn within((least, most): (Duration, Duration)) -> [Value; 2] {
    let side = |holds, limit, is| {
        telling(&format!("duration(self) {holds} duration('{limit}')"), &format!("self + ' is {is} than {limit}'"))
    };
    [side(">=", least, "shorter"), side("<=", most, "longer")]
}

/// A map of labels, as they are spelt.
pub(crate) fn labels(_: &mut SchemaGenerator) -> Schema {
    let key = format!("self.all(key, key.indexOf('/') <= 253 && key.matches(r'{}'))", names::LABEL_KEY);
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {"type": "string", "maxLength": 63, "pattern": names::LABEL_VALUE_OR_EMPTY},
        "x-kubernetes-validations": [rule(&key, validate::LABEL_KEYS)],
    })
}

/// What a policy is attached to: Services only ...
pub(crate) fn target() -> [Value; 1] {
    [at("group", rule("!has(self.group) || self.group == ''", validate::TARGET_GROUP))]
}

/// ... and each thing once.
pub(crate) fn targets() -> [Value; 1] {
    let part = |t| format!("has({t}.subset) && {t}.subset.size() > 0");
    let same = format!(
        "a.name == b.name && {} && ({} ? {} && a.subset == b.subset : !({}))",
        same_version("a", "b"),
        part("a"),
        part("b"),
        part("b")
    );
    [rule(&format!("self.all(a, self.exists_one(b, {same}))"), validate::TARGETS)]
}

fn same_version(a: &str, b: &str) -> String {
    format!("has({a}.version) == has({b}.version) && (!has({a}.version) || {a}.version == {b}.version)")
}

/// A rule sends requests somewhere, or answers them; a prefix is replaced only where there is one.
pub(crate) fn route_rule() -> [Value; 3] {
    let goes = "has(self.destinations) && self.destinations.exists(d, d.weight > 0)";
    let answered = "has(self.filters) && self.filters.exists(f, f.type in ['RequestRedirect', 'DirectResponse'])";
    // The pattern lets no other share begin so.
    let aborted = "has(self.filters) && self.filters.exists(f, has(f.fault) && has(f.fault.abort) && \
        f.fault.abort.percent.startsWith('100'))";
    let replaces =
        |field: &str| format!("has(f.{field}) && has(f.{field}.path) && f.{field}.path.type == 'ReplacePrefixMatch'");
    let prefixes = format!(
        "!has(self.filters) || !self.filters.exists(f, {} || {}) || !has(self.matches) || \
        self.matches.all(m, !has(m.path) || m.path.type == 'PathPrefix')",
        replaces("urlRewrite"),
        replaces("requestRedirect"),
    );
    [
        at("destinations", rule(&format!("{goes} || {answered} || {aborted}"), validate::NOWHERE)),
        at("destinations", rule(&format!("!({goes} && {answered})"), validate::ANSWERED)),
        at("filters", rule(&prefixes, validate::PREFIX_ONLY)),
    ]
}

/// Filters of one rule get along with one another.
pub(crate) fn filters() -> [Value; 2] {
    let answers = "self.filter(f, f.type in ['RequestRedirect', 'URLRewrite', 'DirectResponse']).map(f, f.type)";
    [once(), rule(&format!("{answers}.all(t, {answers}.all(other, t == other))"), validate::REDIRECT_REWRITE)]
}

/// The same of a destination, which does not take all of them.
pub(crate) fn destination_filters() -> [Value; 2] {
    let some = "self.all(f, f.type in ['RequestHeaderModifier', 'ResponseHeaderModifier', 'RequestMirror'])";
    [once(), rule(some, validate::DESTINATION_FILTER)]
}

fn once() -> Value {
    rule("self.all(f, f.type == 'RequestMirror' || self.exists_one(g, g.type == f.type))", validate::FILTER_TWICE)
}

/// A filter leaves some header fields alone ...
pub(crate) fn field_name() -> [Value; 1] {
    [rule(&touchable("self"), validate::UNTOUCHED)]
}

/// ... also in a list of their names.
pub(crate) fn removed_fields() -> [Value; 1] {
    [rule(&format!("self.all(name, {})", touchable("name")), validate::UNTOUCHED)]
}

fn touchable(name: &str) -> String {
    let fields = names::UNTOUCHED_FIELDS.map(|field| format!("'{field}'")).join(", ");
    format!("!({name}.lowerAscii() in [{fields}]) && !{name}.lowerAscii().startsWith('{}')", names::OWN_FIELDS)
}

/// A reply has a body only if its status lets it.
pub(crate) fn canned_response() -> [Value; 1] {
    [at("body", rule("!has(self.body) || self.body == '' || !(self.status in [204, 205, 304])", validate::NO_BODY))]
}

/// All is said alone.
pub(crate) fn cors() -> [Value; 4] {
    ["allowOrigins", "allowMethods", "allowHeaders", "exposeHeaders"].map(|list| {
        at(
            list,
            rule(&format!("!has(self.{list}) || self.{list}.size() < 2 || !('*' in self.{list})"), validate::ALONE),
        )
    })
}

/// A cookie lives.
pub(crate) fn cookie_ttl() -> [Value; 1] {
    [rule("duration(self) > duration('0s')", validate::COOKIE_TTL)]
}

/// A path that is compared as text is one.
pub(crate) fn path_match() -> [Value; 3] {
    let odd = r"//|\\|/(\.|%2[eE]){1,2}(/|$)|%($|[^0-9a-fA-F]|[0-9a-fA-F]($|[^0-9a-fA-F])|00)";
    let text = "self.type == 'RegularExpression'";
    [
        at("value", rule(&format!("{text} || self.value.startsWith('/')"), validate::PATH_START)),
        at("value", rule(&format!(r"{text} || !self.value.matches(r'[?# \x00-\x1f\x7f]')"), validate::PATH_ONLY)),
        at("value", rule(&format!("{text} || !self.value.matches(r'{odd}')"), validate::PATH_NORMAL)),
    ]
}

/// A header, query parameter or cookie match has a value if its type asks for one.
pub(crate) fn named_match() -> Vec<Value> {
    vec![rule("(self.type in ['Present', 'Absent']) != has(self.value)", validate::MATCH_VALUE)]
}

/// The same of a header, whose value must be one that a header field can have.
pub(crate) fn header_match() -> Vec<Value> {
    let begins = r"self.value.startsWith(' ') || self.value.startsWith('\t')";
    let ends = r"self.value.endsWith(' ') || self.value.endsWith('\t')";
    let blank = format!("self.type in ['Exact', 'Prefix'] && ({begins}) || self.type == 'Exact' && ({ends})");
    let blank = rule(&format!("!has(self.value) || !({blank})"), validate::HEADER_BLANK);
    [named_match(), vec![at("value", blank)]].concat()
}

/// Header matches of one entry: some request can meet all of them.
pub(crate) fn headers() -> [Value; 1] {
    clash("a.name.lowerAscii() != b.name.lowerAscii()")
}

/// The same of query parameters or cookies, whose names do not fold case.
pub(crate) fn named() -> [Value; 1] {
    clash("a.name != b.name")
}

fn clash(others: &str) -> [Value; 1] {
    // In lists, because each text would be reckoned as long as it may be: too dear for every pair.
    let value = "a.type == 'Exact' && b.type == 'Exact' && has(a.value) && has(b.value) && [a.value] != [b.value]";
    let absence = "a.type == 'Absent' && b.type != 'Absent'";
    [rule(&format!("self.all(a, self.all(b, {others} || !({value} || {absence})))"), validate::CLASH)]
}

/// No try has longer than all together.
pub(crate) fn timeouts() -> [Value; 1] {
    // 0s means none.
    let fits = "!has(self.request) || !has(self.backendRequest) || duration(self.request) == duration('0s') || \
        duration(self.backendRequest) <= duration(self.request)";
    let message = "self.backendRequest + ' for one try is longer than ' + self.request + ' for the whole request (timeouts.request)'";
    [at("backendRequest", telling(fits, message))]
}

/// Exactly one thing tells users apart.
pub(crate) fn sticky_key() -> [Value; 1] {
    [rule(&one_of(["header", "cookie", "sourceIP"]), validate::ONE_STICKY_KEY)]
}

fn one_of(fields: [&str; 3]) -> String {
    format!("{} == 1", fields.map(|field| format!("(has(self.{field}) ? 1 : 0)")).join(" + "))
}

/// `type` names the one field that is given.
pub(crate) fn filter() -> [Value; 1] {
    by_type(&[
        ("RequestHeaderModifier", "requestHeaderModifier"),
        ("ResponseHeaderModifier", "responseHeaderModifier"),
        ("URLRewrite", "urlRewrite"),
        ("RequestRedirect", "requestRedirect"),
        ("RequestMirror", "requestMirror"),
        ("Fault", "fault"),
        ("DirectResponse", "directResponse"),
        ("CORS", "cors"),
    ])
}

/// The same of how a path is changed.
pub(crate) fn path_modifier() -> [Value; 1] {
    by_type(&[("ReplaceFullPath", "replaceFullPath"), ("ReplacePrefixMatch", "replacePrefixMatch")])
}

fn by_type(fields: &[(&str, &str)]) -> [Value; 1] {
    let each: Vec<_> =
        fields.iter().map(|(kind, field)| format!("(self.type == '{kind}') == has(self.{field})")).collect();
    [rule(&each.join(" && "), validate::FILTER_FIELD)]
}

/// A redirect's status is one.
pub(crate) fn redirect() -> [Value; 1] {
    [at("statusCode", rule("self.statusCode in [301, 302, 303, 307, 308]", validate::REDIRECT_STATUS))]
}

/// A fault does something.
pub(crate) fn fault() -> [Value; 1] {
    [rule("has(self.delay) || has(self.abort)", validate::FAULT_NONE)]
}

/// An open time only grows; a fallback is something else than what it stands in for.
pub(crate) fn circuit_policy() -> [Value; 2] {
    let most = "duration(self.backoff.maxTimeout)";
    let default = circuit_policy::DEFAULT_MAX_TIMEOUT;
    let grows = format!("{most} >= duration(self.timeout) || {most} == duration('{default}')");
    let shrinks = "self.backoff.maxTimeout + ' is shorter than spec.timeout, which is ' + self.timeout + ': an open time only grows'";
    let itself = format!(
        "!has(self.fallback) || !has(self.fallback.destination) || !self.targetRefs.exists(t, \
        t.name == self.fallback.destination.service && {} && (!has(t.subset) || t.subset.size() == 0))",
        same_version("t", "self.fallback.destination"),
    );
    [
        at("backoff.maxTimeout", telling(&grows, shrinks)),
        at("fallback.destination", rule(&itself, validate::FALLBACK_ITSELF)),
    ]
}

/// One way to check, and each check over before the next begins.
pub(crate) fn health_check() -> [Value; 2] {
    let default = circuit_policy::DEFAULT_CHECK_TIMEOUT;
    let fits =
        format!("duration(self.timeout) <= duration(self.interval) || duration(self.timeout) == duration('{default}')");
    let longer =
        "self.timeout + ' for a check is longer than ' + self.interval + ' between two (healthCheck.interval)'";
    [rule(&one_of(["path", "grpc", "tcp"]), validate::ONE_CHECK), at("timeout", telling(&fits, longer))]
}

/// A limit that adapts has room to.
pub(crate) fn limits() -> [Value; 1] {
    let (least, default) = ("self.adaptive.minRequests", circuit_policy::DEFAULT_MIN_REQUESTS);
    let fits = format!("!has(self.adaptive) || {least} <= self.maxRequests || {least} == {default}");
    [at("adaptive.minRequests", rule(&fits, validate::MIN_ABOVE_MAX))]
}

/// More than noise.
pub(crate) fn tolerance() -> [Value; 1] {
    let least = circuit_policy::LEAST_TOLERANCE;
    // Two digits before the point are ten or more, unless the first is a zero.
    let small = "self.matches(r'^(0[0-9]|[0-9])[.%]')";
    [telling(&format!("!{small}"), &format!("self + ' is less than {least}'"))]
}

/// One thing stands in.
pub(crate) fn fallback() -> [Value; 1] {
    [rule("has(self.destination) != has(self.response)", validate::ONE_FALLBACK)]
}

/// Times that contradict one another.
pub(crate) fn retry_policy() -> [Value; 2] {
    let delay = "self.initialDelay + ' is longer than spec.maxDelay, which is ' + self.maxDelay";
    let each =
        "!has(self.perTryTimeout) || !has(self.timeout) || duration(self.perTryTimeout) <= duration(self.timeout)";
    let longer =
        "self.perTryTimeout + ' for one try is longer than ' + self.timeout + ' for all together (spec.timeout)'";
    [
        at("initialDelay", telling("duration(self.initialDelay) <= duration(self.maxDelay)", delay)),
        at("perTryTimeout", telling(each, longer)),
    ]
}

/// A time in which something can be done.
pub(crate) fn some_time() -> [Value; 1] {
    [rule("duration(self) > duration('0s')", validate::NO_TIME)]
}

/// What is kept of a body.
pub(crate) fn body() -> [Value; 1] {
    let most = retry_policy::MAX_BODY;
    [telling(&format!("quantity(self).compareTo(quantity('{most}')) <= 0"), &format!("self + ' is above {most}'"))]
}
