//! `CircuitPolicy`: when to stop asking an instance or a version, and when to try again.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::route_rule::{AgentCount, CannedResponse, Condition};
use crate::target::TargetRef;
use crate::validate::circuit_policy::{
    CHECK_INTERVAL, CHECK_TIMEOUT, DEFAULT_CHECK_TIMEOUT, DEFAULT_MAX_TIMEOUT, DEFAULT_MIN_REQUESTS, OPEN, WINDOW,
};
use crate::values::{Duration, Percent};

/// When to stop asking an instance or a version, and when to try again. Every default is the one that is shown in the
/// documents; an empty spec with a target is a working policy.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "switchyard.dev",
    version = "v1alpha1",
    kind = "CircuitPolicy",
    plural = "circuitpolicies",
    shortname = "cp",
    category = "switchyard",
    namespaced,
    status = "CircuitPolicyStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Target","type":"string","jsonPath":".spec.targetRefs[0].name"}"#,
    printcolumn = r#"{"name":"Scope","type":"string","jsonPath":".spec.scope"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::cel::circuit_policy()))]
pub struct CircuitPolicySpec {
    /// What the policy is for: Services of this namespace, or versions of them.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-validations" = crate::cel::targets()))]
    pub target_refs: Vec<TargetRef>,
    /// What is taken out: one instance, or the whole destination.
    #[serde(default)]
    pub scope: CircuitScope,
    /// Failures in a row that open the circuit.
    #[serde(default = "five")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub failure_threshold: i32,
    /// The share of failures in the window that opens it.
    #[serde(default = "half")]
    pub error_rate_threshold: Percent,
    /// The share counts only when the window holds at least so many requests.
    #[serde(default = "twenty")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub minimum_requests: i32,
    /// The length of the sliding window, from 1s to 10m.
    #[serde(default = "ten_seconds")]
    #[schemars(extend("x-kubernetes-validations" = crate::cel::within(WINDOW)))]
    pub window: Duration,
    /// Slow replies open it by a share of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_calls: Option<SlowCalls>,
    /// How long the circuit stays open before it lets probes through.
    #[serde(default = "sixty_seconds")]
    #[schemars(extend("x-kubernetes-validations" = crate::cel::within(OPEN)))]
    pub timeout: Duration,
    /// How that time grows while probes fail.
    #[serde(default)]
    pub backoff: CircuitBackoff,
    /// Probes in a row that must succeed to close it.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 100))]
    pub success_threshold: i32,
    /// Probes that may be under way at a time.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 100))]
    pub half_open_requests: i32,
    /// What counts as a failure: ServerError, ConnectFailure, Timeout, Reset, RefusedStream, a status such as `429`, or a
    /// gRPC status by its name, such as `RESOURCE_EXHAUSTED`.
    #[serde(default = "default_failures")]
    #[schemars(length(min = 1, max = 32), inner(regex(pattern = crate::validate::conditions::PATTERN)))]
    pub failures: Vec<String>,
    /// With the scope Instance: no more than this share of the target's instances is out at a time, rounded down, but at least
    /// one; and of two or more not all, unless it is 100%.
    #[serde(default = "half")]
    pub max_ejection_percent: Percent,
    /// Checks of the instances that are made beside the traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// With the scope Instance: whether what other nodes see of an instance makes a node's circuit of it open sooner.
    #[serde(default)]
    pub correlation: Correlation,
    /// Bounds on what is under way at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// What callers get while the circuit is open. Absent: 503 with `Retry-After`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
    /// Holds the circuit by hand.
    #[serde(default, rename = "override")]
    pub hold: Override,
}

/// What a circuit stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CircuitScope {
    /// One circuit for each instance: a bad one is taken out, the others go on.
    #[default]
    Instance,
    /// One circuit for all instances of a destination together.
    Destination,
}

/// Whether nodes tell one another of instances that fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Correlation {
    /// Where two other nodes or more see an instance fail, a node needs fewer failures of its own until its circuit opens, but at least
    /// one; and the status says how many nodes see it so.
    #[default]
    Enabled,
    /// Each node goes by what it sees itself, and tells nobody.
    Disabled,
}

/// Slow replies, which open a circuit by a share of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SlowCalls {
    /// From how long on a reply is slow: the time to its head, once the instance has all of the request.
    pub duration: Duration,
    /// The share of slow replies that opens the circuit.
    pub rate_threshold: Percent,
}

/// How the open time grows while probes fail.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CircuitBackoff {
    /// Each time it is this many times as long, from 1 to 100.
    #[serde(default = "doubles")]
    #[schemars(range(min = 1, max = 100))]
    pub multiplier: f64,
    /// But never longer than this.
    #[serde(default = "ten_minutes")]
    #[schemars(extend("x-kubernetes-validations" = crate::cel::within(OPEN)))]
    pub max_timeout: Duration,
    /// Shorter or longer at random by up to this share, so that nodes do not probe at once.
    #[serde(default = "tenth")]
    pub jitter: Percent,
}

impl Default for CircuitBackoff {
    fn default() -> Self {
        Self { multiplier: doubles(), max_timeout: ten_minutes(), jitter: tenth() }
    }
}

/// Checks of the instances that are made beside the traffic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::cel::health_check()))]
pub struct HealthCheck {
    /// HTTP: a GET of this path must be answered 2xx.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), extend("x-kubernetes-validations" = crate::cel::path_start()))]
    pub path: Option<String>,
    /// The gRPC health checking protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcCheck>,
    /// A connection that is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpCheck>,
    /// Time between two checks.
    #[serde(default = "ten_seconds")]
    #[schemars(extend("x-kubernetes-validations" = crate::cel::within(CHECK_INTERVAL)))]
    pub interval: Duration,
    /// How long a check may take.
    #[serde(default = "one_second")]
    #[schemars(extend("x-kubernetes-validations" = crate::cel::within(CHECK_TIMEOUT)))]
    pub timeout: Duration,
    /// Failed checks in a row that take an instance out.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 100))]
    pub unhealthy_threshold: i32,
    /// Good checks in a row that bring it back.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 100))]
    pub healthy_threshold: i32,
}

/// The gRPC health checking protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GrpcCheck {
    /// The service that is asked for. Absent: the server as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub service: Option<String>,
}

/// A check by connecting has no settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TcpCheck {}

/// Bounds on what is under way at a time, per node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::cel::limits()))]
pub struct Limits {
    /// Connections to the destination.
    #[serde(default = "thousand_and_a_bit")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_connections: i32,
    /// Requests that wait for a connection.
    #[serde(default = "thousand_and_a_bit")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_pending_requests: i32,
    /// Requests under way.
    #[serde(default = "thousand_and_a_bit")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_requests: i32,
    /// Fewer requests than maxRequests, as many as are answered in good time. Absent: off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<AdaptiveLimit>,
}

/// A limit of requests under way that follows their latency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdaptiveLimit {
    /// The limit is never lower, and begins there.
    #[serde(default = "ten")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_requests: i32,
    /// How much longer than without load replies may take, from 10% to 100%.
    #[serde(default = "half")]
    #[schemars(extend("x-kubernetes-validations" = crate::cel::tolerance()))]
    pub latency_tolerance: Percent,
}

/// What callers get while a circuit is open; exactly one is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::cel::fallback()))]
pub struct Fallback {
    /// Another destination that takes the requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<FallbackDestination>,
    /// A fixed reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<CannedResponse>,
}

/// Another destination that takes the requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FallbackDestination {
    /// The Service.
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::names::LABEL))]
    pub service: String,
    /// Only instances of this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::names::LABEL_VALUE))]
    pub version: Option<String>,
}

/// A circuit held by hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Override {
    /// Not held: the traffic decides.
    #[default]
    None,
    /// Open whatever happens.
    ForceOpen,
    /// Closed whatever happens.
    ForceClosed,
}

/// What has become of a policy, and the circuits that are not closed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CircuitPolicyStatus {
    /// The generation that all of this was found for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted, ResolvedRefs, Conflicted, Programmed and Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub conditions: Vec<Condition>,
    /// How many agents have the policy in force, of how many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agents: Option<AgentCount>,
    /// Circuits that are open or half-open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub circuits: Vec<CircuitStatus>,
    /// Instances that some nodes see fail, whether or not their circuits are open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub instances: Vec<InstanceStatus>,
}

/// An instance that some nodes see fail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceStatus {
    /// The Service.
    pub destination: String,
    /// The instance.
    pub instance: String,
    /// Nodes that have asked it lately.
    pub nodes: u32,
    /// Those of them that see it fail.
    pub failing: u32,
    /// Those of these that cannot reach it: no connection comes about, or no reply in time.
    pub unreachable: u32,
    /// What that says, and where to look.
    pub message: String,
}

/// A circuit that is not closed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CircuitStatus {
    /// The Service, with its version if the circuit is for one.
    pub destination: String,
    /// The instance, where the circuit is for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Open or HalfOpen.
    pub state: String,
    /// Since when, RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    pub since: String,
    /// Why it opened.
    pub reason: String,
    /// How many nodes see it so.
    pub nodes: u32,
}

fn default_failures() -> Vec<String> {
    ["ServerError", "ConnectFailure", "Timeout", "Reset"].map(str::to_owned).into()
}

fn one() -> i32 {
    1
}
fn two() -> i32 {
    2
}
fn three() -> i32 {
    3
}
fn five() -> i32 {
    5
}
fn ten() -> i32 {
    DEFAULT_MIN_REQUESTS
}
fn twenty() -> i32 {
    20
}
fn thousand_and_a_bit() -> i32 {
    1024
}
fn doubles() -> f64 {
    2.0
}
fn tenth() -> Percent {
    Percent::whole(10)
}
fn half() -> Percent {
    Percent::whole(50)
}
fn one_second() -> Duration {
    DEFAULT_CHECK_TIMEOUT
}
fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}
fn sixty_seconds() -> Duration {
    Duration::from_secs(60)
}
fn ten_minutes() -> Duration {
    DEFAULT_MAX_TIMEOUT
}
