//! `RetryPolicy`: when to ask again, how long to wait before, and how much of that the destination must bear.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::route_rule::{AgentCount, Condition};
use crate::target::TargetRef;
use crate::validate::retry_policy::BUDGET_WINDOW;
use crate::values::{Duration, Percent, Size};

/// When to ask again. Every default is the one that is shown in the documents; an empty spec with a target is a working
/// policy.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "switchyard.dev",
    version = "v1alpha1",
    kind = "RetryPolicy",
    plural = "retrypolicies",
    shortname = "rp",
    category = "switchyard",
    namespaced,
    status = "RetryPolicyStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Target","type":"string","jsonPath":".spec.targetRefs[0].name"}"#,
    printcolumn = r#"{"name":"Retries","type":"integer","jsonPath":".spec.maxRetries"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::cel::retry_policy()))]
pub struct RetryPolicySpec {
    /// What the policy is for: Services of this namespace, or versions of them. None: only rules that name it use it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = crate::cel::targets()))]
    pub target_refs: Vec<TargetRef>,
    /// Retries after the first try; 0 turns retrying off.
    #[serde(default = "three")]
    #[schemars(range(min = 0, max = 10))]
    pub max_retries: i32,
    /// How the wait grows from one retry to the next.
    #[serde(default)]
    pub strategy: Strategy,
    /// The wait before the first retry.
    #[serde(default = "one_second")]
    pub initial_delay: Duration,
    /// No wait is longer than this.
    #[serde(default = "thirty_seconds")]
    pub max_delay: Duration,
    /// For Exponential: each wait is this many times the one before, from 1 to 100.
    #[serde(default = "doubles")]
    #[schemars(range(min = 1, max = 100))]
    pub multiplier: f64,
    /// Each wait is shorter or longer at random by up to this share.
    #[serde(default = "tenth")]
    pub jitter: Percent,
    /// How long one try may take. Absent: the rule's `timeouts.backendRequest`, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = crate::cel::some_time()))]
    pub per_try_timeout: Option<Duration>,
    /// How long all tries together may take, waits included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = crate::cel::some_time()))]
    pub timeout: Option<Duration>,
    /// What is retried: ServerError, ConnectFailure, Reset, RefusedStream, Timeout, a status such as `429`, or a gRPC status
    /// by its name, such as `UNAVAILABLE`.
    #[serde(default = "default_retry_on")]
    #[schemars(length(min = 1, max = 32), inner(regex(pattern = crate::validate::conditions::PATTERN)))]
    pub retry_on: Vec<String>,
    /// Methods that may be sent twice. A request that never reached an instance is retried whatever its method.
    #[serde(default = "idempotent_methods")]
    #[schemars(length(max = 16), inner(length(max = 32), regex(pattern = crate::names::METHOD)))]
    pub methods: Vec<String>,
    /// A reply's `Retry-After` is waited for, where it is longer than the wait would be.
    #[serde(default = "yes")]
    pub respect_retry_after: bool,
    /// A retry goes to an instance that was not tried yet, where there is one.
    #[serde(default = "yes")]
    pub avoid_previous_instances: bool,
    /// A retry may go to another destination of the rule.
    #[serde(default)]
    pub rechoose_destination: bool,
    /// How much retries may add to the load.
    #[serde(default)]
    pub budget: Budget,
    /// How much of a request's body is kept for sending it again.
    #[serde(default = "sixty_four_kibibytes")]
    #[schemars(extend("x-kubernetes-validations" = crate::cel::body()))]
    pub max_body_bytes: Size,
    /// Asks another instance as well while the first is slow, and takes the first good answer. A retry like others in all else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge: Option<Hedge>,
}

/// How the wait grows from one retry to the next. `d` is `initialDelay`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Strategy {
    /// d, d, d, d ...
    Fixed,
    /// d, 2d, 3d, 4d ...
    Linear,
    /// d, d·m, d·m², d·m³ ... with m the `multiplier`.
    #[default]
    Exponential,
    /// d, d, 2d, 3d, 5d ...
    Fibonacci,
    /// Random between d and three times the wait before.
    DecorrelatedJitter,
}

/// How much retries may add to the load, per Service and node. Retries that wait in back-off count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Budget {
    /// Retries, as a share of the requests in the window.
    #[serde(default = "fifth")]
    pub ratio: Percent,
    /// And so many per second whatever the traffic.
    #[serde(default = "ten")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub min_per_second: i32,
    /// How far back requests count, from 1s to 60s.
    #[serde(default = "ten_seconds")]
    #[schemars(extend("x-kubernetes-validations" = crate::cel::within(BUDGET_WINDOW)))]
    pub window: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self { ratio: fifth(), min_per_second: ten(), window: ten_seconds() }
    }
}

/// Asks another instance as well while the first is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hedge {
    /// How long to wait for the one before.
    pub after: Duration,
    /// How many more are asked at most; each is one of `maxRetries`.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 3))]
    pub max: i32,
}

/// What has become of a policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetryPolicyStatus {
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
}

fn default_retry_on() -> Vec<String> {
    ["ServerError", "ConnectFailure", "Reset", "RefusedStream", "Timeout"].map(str::to_owned).into()
}
fn idempotent_methods() -> Vec<String> {
    ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"].map(str::to_owned).into()
}
fn yes() -> bool {
    true
}
fn one() -> i32 {
    1
}
fn three() -> i32 {
    3
}
fn ten() -> i32 {
    10
}
fn doubles() -> f64 {
    2.0
}
fn tenth() -> Percent {
    Percent::whole(10)
}
fn fifth() -> Percent {
    Percent::whole(20)
}
fn one_second() -> Duration {
    Duration::from_secs(1)
}
fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}
fn thirty_seconds() -> Duration {
    Duration::from_secs(30)
}
fn sixty_four_kibibytes() -> Size {
    Size::from_bytes(64 * 1024)
}
