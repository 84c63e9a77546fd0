//! `RouteRule`: how requests to one Service are routed.
//!
//! The types say what a user may write; bounds that a schema can express stand here as attributes and end up in the
//! generated YAML, everything else is in [`crate::validate`].

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{Duration, Percent, Seconds};

/// One rule for the requests to one Service: which requests it is for, and where they go.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "switchyard.dev",
    version = "v1alpha1",
    kind = "RouteRule",
    plural = "routerules",
    shortname = "rr",
    category = "switchyard",
    namespaced,
    status = "RouteRuleStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Service","type":"string","jsonPath":".spec.service"}"#,
    printcolumn = r#"{"name":"Priority","type":"integer","jsonPath":".spec.priority"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Programmed","type":"integer","jsonPath":".status.agents.programmed"}"#,
    printcolumn = r#"{"name":"Agents","type":"integer","jsonPath":".status.agents.total"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::cel::route_rule()))]
pub struct RouteRuleSpec {
    /// The Service whose requests this rule routes.
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::names::LABEL))]
    pub service: String,
    /// The Service's namespace, where it is not this rule's own. Such a rule holds for callers in the rule's namespace
    /// only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::names::LABEL))]
    pub service_namespace: Option<String>,
    /// Only requests to this port of the Service. Absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// Rules with a higher priority are asked first.
    #[serde(default)]
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    pub priority: i32,
    /// The rule is for requests that any of these describes. None: every request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub matches: Vec<RouteMatch>,
    /// Where the requests go, shared out by weight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub destinations: Vec<Destination>,
    /// Keeps a user in the same destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stickiness: Option<Stickiness>,
    /// What is changed about requests and replies, and what is answered at once. They act in an order of their own, whatever their order
    /// here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = crate::cel::filters()))]
    pub filters: Vec<Filter>,
    /// Limits of time. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// A RetryPolicy of this namespace, by name. Absent: the one attached to the Service, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = crate::names::SUBDOMAIN))]
    pub retry_policy: Option<String>,
    /// What becomes of the share of a destination that has no ready instance.
    #[serde(default)]
    pub when_unavailable: WhenUnavailable,
}

/// What becomes of the share of a destination that has no ready instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WhenUnavailable {
    /// The rule's other destinations take it over, by their weights.
    #[default]
    Redistribute,
    /// Those requests are answered 503.
    Fail,
}

/// What must hold of a request; all that is given must.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteMatch {
    /// The request's path. Absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// The request's method, such as GET. Absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32), regex(pattern = crate::names::METHOD))]
    pub method: Option<String>,
    /// Header fields; names fold case, repeated fields are joined with a comma.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = crate::cel::headers()))]
    pub headers: Vec<HeaderMatch>,
    /// Query parameters; of one that is repeated, the first value counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = crate::cel::named()))]
    pub query_params: Vec<QueryParamMatch>,
    /// Cookies; of one that is sent twice, the first counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = crate::cel::named()))]
    pub cookies: Vec<CookieMatch>,
    /// The gRPC service and method that is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcMatch>,
    /// Who calls. A caller that is not known meets no entry that asks for something here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceMatch>,
}

/// A match on the path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::cel::path_match()))]
pub struct PathMatch {
    /// How the value is compared.
    #[serde(default, rename = "type")]
    pub kind: PathMatchType,
    /// The path, its beginning, or a regular expression for all of it.
    #[schemars(length(min = 1, max = 1024))]
    pub value: String,
}

/// How a path is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PathMatchType {
    /// The same path, however it is spelt.
    Exact,
    /// The same segments at the beginning: `/api` matches `/api` and `/api/x`, not `/apis`.
    #[default]
    PathPrefix,
    /// A regular expression (RE2 syntax) that matches the whole path.
    RegularExpression,
}

/// How a header, query parameter or cookie is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ValueMatchType {
    /// The same value.
    #[default]
    Exact,
    /// The value begins so.
    Prefix,
    /// A regular expression (RE2 syntax) that matches the whole value.
    RegularExpression,
    /// It is there, with whatever value.
    Present,
    /// It is not there.
    Absent,
}

/// What three kinds of match have in common, each with its own rule for names.
macro_rules! named_match {
    ($(#[$doc:meta])* $type:ident, $pattern:expr, $rules:expr $(, #[$value:meta])?) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "camelCase")]
        #[schemars(extend("x-kubernetes-validations" = $rules))]
        pub struct $type {
            /// How the value is compared.
            #[serde(default, rename = "type")]
            pub kind: ValueMatchType,
            /// Its name.
            #[schemars(length(min = 1, max = 256), regex(pattern = $pattern))]
            pub name: String,
            /// What it is compared with; not given for Present and Absent.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(length(max = 4096))]
            $(#[$value])?
            pub value: Option<String>,
        }
    };
}

named_match!(
    /// A match on a header field.
    HeaderMatch,
    crate::names::TOKEN,
    crate::cel::header_match(),
    #[schemars(regex(pattern = crate::names::NO_CONTROLS))]
);
named_match!(
    /// A match on a query parameter.
    QueryParamMatch,
    "^.+$",
    crate::cel::named_match()
);
named_match!(
    /// A match on a cookie.
    CookieMatch,
    crate::names::TOKEN,
    crate::cel::named_match()
);

/// A match on the gRPC service, the method, or both.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GrpcMatch {
    /// The full name of the service, such as `shop.Cart`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = crate::names::GRPC_SERVICE))]
    pub service: Option<String>,
    /// The method, such as `AddItem`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = crate::names::GRPC_METHOD))]
    pub method: Option<String>,
}

/// A match on the workload that calls.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceMatch {
    /// The caller's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::names::LABEL))]
    pub namespace: Option<String>,
    /// Labels of the caller's Pod; all must be there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::cel::labels")]
    pub labels: BTreeMap<String, String>,
    /// The caller's ServiceAccount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = crate::names::SUBDOMAIN))]
    pub service_account: Option<String>,
}

/// A place that requests go to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// The Service whose instances take the requests.
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::names::LABEL))]
    pub service: String,
    /// The Service's namespace. Absent: the rule's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::names::LABEL))]
    pub namespace: Option<String>,
    /// The Service's port. Absent: the one that the request came for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// Only instances of this version: the Pod's label `app.kubernetes.io/version`, else its label `version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::names::LABEL_VALUE))]
    pub version: Option<String>,
    /// Only instances with all of these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::cel::labels")]
    pub subset: BTreeMap<String, String>,
    /// The share, relative to the other destinations'; 0 means none.
    #[serde(default = "default_weight")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub weight: i32,
    /// What is changed about the requests that go here, and their replies: RequestHeaderModifier, ResponseHeaderModifier and
    /// RequestMirror.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = crate::cel::destination_filters()))]
    pub filters: Vec<Filter>,
}

fn default_weight() -> i32 {
    1
}

/// Limits of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::cel::timeouts()))]
pub struct Timeouts {
    /// For the whole request, all tries together. 0s: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Duration>,
    /// For each try. 0s: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_request: Option<Duration>,
}

/// Keeps a user in the same destination, also when weights move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Stickiness {
    /// What tells one user from another.
    pub on: StickyKey,
}

/// What tells one user from another; exactly one is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::cel::sticky_key()))]
pub struct StickyKey {
    /// The value of this header field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = crate::names::TOKEN))]
    pub header: Option<String>,
    /// The value of a cookie, which is set where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<StickyCookie>,
    /// The caller's address.
    #[serde(default, rename = "sourceIP", skip_serializing_if = "Option::is_none")]
    pub source_ip: Option<StickySource>,
}

/// A cookie that keeps a user in the same destination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StickyCookie {
    /// Its name.
    #[schemars(length(min = 1, max = 256), regex(pattern = crate::names::TOKEN))]
    pub name: String,
    /// How long it lives. Absent: for the browser's session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = crate::cel::cookie_ttl()))]
    pub ttl: Option<Duration>,
}

/// Sticking by the caller's address has no settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StickySource {}

/// A change to a request or its reply. `type` names the one field that is given beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::cel::filter()))]
pub struct Filter {
    /// Which change.
    #[serde(rename = "type")]
    pub kind: FilterType,
    /// Changes to the request's header fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_header_modifier: Option<HeaderModifier>,
    /// Changes to the reply's header fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_header_modifier: Option<HeaderModifier>,
    /// Another host or path for the instance to see.
    #[serde(rename = "urlRewrite", default, skip_serializing_if = "Option::is_none")]
    pub url_rewrite: Option<UrlRewrite>,
    /// A redirect as the reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_redirect: Option<RequestRedirect>,
    /// A copy of the request for another Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_mirror: Option<RequestMirror>,
    /// Faults on purpose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// A fixed reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct_response: Option<CannedResponse>,
    /// Cross-origin requests (the WHATWG Fetch standard).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
}

/// The kinds of filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FilterType {
    /// `requestHeaderModifier`
    RequestHeaderModifier,
    /// `responseHeaderModifier`
    ResponseHeaderModifier,
    /// `urlRewrite`
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
    /// `requestRedirect`
    RequestRedirect,
    /// `requestMirror`
    RequestMirror,
    /// `fault`
    Fault,
    /// `directResponse`
    DirectResponse,
    /// `cors`
    #[serde(rename = "CORS")]
    Cors,
}

/// Changes to header fields: set replaces, add appends, remove deletes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeaderModifier {
    /// Fields that get this value instead of any other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub set: Vec<HeaderValue>,
    /// Fields that get this value beside what is there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub add: Vec<HeaderValue>,
    /// Fields that are taken away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(length(max = 256), regex(pattern = crate::names::TOKEN)),
        extend("x-kubernetes-validations" = crate::cel::removed_fields())
    )]
    pub remove: Vec<String>,
}

/// A header field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeaderValue {
    /// Its name.
    #[schemars(
        length(min = 1, max = 256),
        regex(pattern = crate::names::TOKEN),
        extend("x-kubernetes-validations" = crate::cel::field_name())
    )]
    pub name: String,
    /// Its value.
    #[schemars(length(max = 4096), regex(pattern = crate::names::FIELD_VALUE))]
    pub value: String,
}

/// Another host or path for the instance to see.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UrlRewrite {
    /// The Host that the instance sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = crate::names::SUBDOMAIN))]
    pub hostname: Option<String>,
    /// The path that the instance sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathModifier>,
}

/// How a path is changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::cel::path_modifier()))]
pub struct PathModifier {
    /// Which of the two is given.
    #[serde(rename = "type")]
    pub kind: PathModifierType,
    /// The new path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), regex(pattern = crate::names::SENT_PATH))]
    pub replace_full_path: Option<String>,
    /// What stands for the prefix that the rule matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), regex(pattern = crate::names::SENT_PATH_OR_EMPTY))]
    pub replace_prefix_match: Option<String>,
}

/// How a path is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PathModifierType {
    /// All of it.
    ReplaceFullPath,
    /// The matched prefix of it.
    ReplacePrefixMatch,
}

/// A redirect as the reply; what is not given stays as in the request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::cel::redirect()))]
pub struct RequestRedirect {
    /// `http` or `https`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^https?$"))]
    pub scheme: Option<String>,
    /// The host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = crate::names::SUBDOMAIN))]
    pub hostname: Option<String>,
    /// The port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// The path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathModifier>,
    /// The status: 301, 302, 303, 307 or 308.
    #[serde(default = "default_redirect_status")]
    #[schemars(range(min = 301, max = 308))]
    pub status_code: i32,
}

fn default_redirect_status() -> i32 {
    302
}

/// A copy of the request for another Service, whose reply nobody waits for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestMirror {
    /// The Service that gets the copy.
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::names::LABEL))]
    pub service: String,
    /// Only instances of this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::names::LABEL_VALUE))]
    pub version: Option<String>,
    /// The Service's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// The share of requests that are copied.
    #[serde(default = "all")]
    pub percent: Percent,
}

fn all() -> Percent {
    Percent::whole(100)
}

/// Faults on purpose, to try how callers take them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::cel::fault()))]
pub struct Fault {
    /// Requests that are held up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<FaultDelay>,
    /// Requests that are answered with an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<FaultAbort>,
}

/// Requests that are held up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FaultDelay {
    /// For how long.
    pub duration: Duration,
    /// The share of requests.
    #[serde(default = "all")]
    pub percent: Percent,
}

/// Requests that are answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FaultAbort {
    /// The status of the answer.
    #[schemars(range(min = 200, max = 599))]
    pub status: i32,
    /// The share of requests.
    #[serde(default = "all")]
    pub percent: Percent,
}

/// A fixed reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::cel::canned_response()))]
pub struct CannedResponse {
    /// Its status.
    #[schemars(range(min = 200, max = 599))]
    pub status: i32,
    /// Its header fields.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers: Vec<HeaderValue>,
    /// Its body; text, unless a `content-type` says otherwise.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 65536))]
    pub body: String,
}

/// Cross-origin requests (the WHATWG Fetch standard).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::cel::cors()))]
pub struct Cors {
    /// Origins that may ask: `scheme://host`, with or without a port; the host may be `*` or begin with `*.`. `*` alone is all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 256), regex(pattern = crate::names::ORIGIN)))]
    pub allow_origins: Vec<String>,
    /// Methods they may use besides GET, HEAD and POST. `*` alone is all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 32), regex(pattern = crate::names::METHOD_OR_ANY)))]
    pub allow_methods: Vec<String>,
    /// Header fields they may send. `*` alone is all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 256), regex(pattern = crate::names::TOKEN)))]
    pub allow_headers: Vec<String>,
    /// Header fields of the reply that they may read. `*` alone is all of them, without credentials.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 256), regex(pattern = crate::names::TOKEN)))]
    pub expose_headers: Vec<String>,
    /// Whether they may send credentials.
    #[serde(default)]
    pub allow_credentials: bool,
    /// How long a preflight's answer may be kept: a number of seconds or a duration. Absent: 5s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Seconds>,
}

/// What has become of a rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteRuleStatus {
    /// The generation that all of this was found for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted, ResolvedRefs, Conflicted, Programmed and Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub conditions: Vec<Condition>,
    /// How many agents have the rule in force, of how many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agents: Option<AgentCount>,
    /// Where requests go now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub destinations: Vec<DestinationStatus>,
}

/// How many agents have something in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentCount {
    /// Agents that acknowledged this generation.
    pub programmed: u32,
    /// Agents that are to have it: those connected, and those cut off whose node is still there.
    pub total: u32,
}

/// One destination as it is in force.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DestinationStatus {
    /// The Service.
    pub service: String,
    /// The version, if the rule names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The weight in force.
    pub weight: i32,
    /// Ready instances.
    pub instances: u32,
}

/// One thing that holds of an object, or does not (the Kubernetes API conventions' condition).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What is spoken of.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    #[schemars(regex(pattern = "^(True|False|Unknown)$"))]
    pub status: String,
    /// The generation that this was found for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When the status changed last, RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    pub last_transition_time: String,
    /// Why, as one word.
    pub reason: String,
    /// Why, and what to do.
    pub message: String,
}
