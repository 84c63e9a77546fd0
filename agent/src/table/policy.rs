//! The policies as the data path uses them: plain numbers, and sets of outcomes that can be asked.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use switchyard_proto::v1;

use crate::admit::window::Millis;
use crate::admit::{adaptive, breaker, limits};
use crate::refusal::Canned;
use crate::retry::backoff::{Backoff, Strategy};
use crate::retry::budget::{Budget, Limits};
use crate::retry::hedge::Hedge;

/// How one try ended, as everything that judges it sees it: breaker, retry, metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An HTTP status, and a gRPC status where the call is gRPC's.
    Reply {
        /// The HTTP status.
        status: u16,
        /// The gRPC status (0 to 16), once it is known.
        grpc: Option<u8>,
    },
    /// No connection could be had; the request never left.
    ConnectFailure,
    /// The instance refused the stream before it looked at it (RFC 9113 section 8.7).
    RefusedStream,
    /// The connection or stream broke before the reply was whole.
    Reset,
    /// It took longer than it may.
    Timeout,
    /// The caller broke off, or sent a body that cannot be read: it says nothing about the instance.
    CallersFault,
    /// It took longer than it may because the caller's own body did not come, or the caller did not read: nor does this.
    CallersBody,
    /// It took longer than the caller waits, and no other limit is over: nor does this.
    CallersLimit,
    /// It was not sent: there are as many connections, or requests that wait for one, as there may be. Nor does this.
    Overloaded(limits::Bound),
}

impl Outcome {
    /// Whether the instance cannot have acted on the request, so that sending it again is safe whatever the method.
    pub fn never_processed(self) -> bool {
        matches!(self, Self::ConnectFailure | Self::RefusedStream)
    }

    /// Whether the instance was not reached: no connection came about, or no reply in time (`answered`: one had begun). One that broke a
    /// connection, or refused a stream, was there to do so.
    pub fn is_unreached(self, answered: bool) -> bool {
        match self {
            Self::ConnectFailure => true,
            Self::Timeout => !answered,
            _ => false,
        }
    }

    /// Whether it says nothing about the instance.
    pub fn says_nothing(self) -> bool {
        matches!(self, Self::CallersFault | Self::CallersBody | Self::CallersLimit | Self::Overloaded(_))
    }

    /// Whether the instance is at fault, whatever policies say.
    pub fn is_failure(self) -> bool {
        match self {
            Self::Reply { status, grpc } => status >= 500 || grpc.is_some_and(is_grpc_server_error),
            Self::ConnectFailure | Self::RefusedStream | Self::Reset | Self::Timeout => true,
            Self::CallersFault | Self::CallersBody | Self::CallersLimit | Self::Overloaded(_) => false,
        }
    }

    /// One word for it, for metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Reply { grpc: Some(code), .. } if code != 0 => "grpc-status",
            Self::Reply { status, .. } if status >= 500 => "server-error",
            Self::Reply { .. } => "status",
            Self::ConnectFailure => "connect-failure",
            Self::RefusedStream => "refused-stream",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::CallersFault | Self::CallersBody | Self::CallersLimit => "caller",
            Self::Overloaded(_) => "overloaded",
        }
    }
}

/// gRPC statuses that say the server, not the caller, is at fault: UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE and
/// DATA_LOSS. They are to gRPC what 5xx is to HTTP.
const GRPC_SERVER_ERRORS: u32 = 1 << 2 | 1 << 4 | 1 << 13 | 1 << 14 | 1 << 15;

fn is_grpc_server_error(code: u8) -> bool {
    GRPC_SERVER_ERRORS & 1 << code.min(31) != 0
}

/// A set of outcomes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    server_error: bool,
    connect_failure: bool,
    timeout: bool,
    reset: bool,
    refused_stream: bool,
    statuses: Vec<u16>,
    grpc_statuses: u32,
}

impl Conditions {
    /// Whether the outcome is in the set.
    pub fn hold(&self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Reply { status, grpc } => {
                let grpc = grpc.map_or(0, |code| 1u32 << code.min(31));
                (self.server_error && (status >= 500 || grpc & GRPC_SERVER_ERRORS != 0))
                    || grpc & self.grpc_statuses != 0
                    || self.statuses.contains(&status)
            }
            Outcome::ConnectFailure => self.connect_failure,
            // A refused stream is a stream that was reset, unless it is named apart.
            Outcome::RefusedStream => self.refused_stream || self.reset,
            Outcome::Reset => self.reset,
            Outcome::Timeout => self.timeout,
            Outcome::CallersFault | Outcome::CallersBody | Outcome::CallersLimit | Outcome::Overloaded(_) => false,
        }
    }
}

impl From<&v1::Conditions> for Conditions {
    fn from(wire: &v1::Conditions) -> Self {
        Self {
            server_error: wire.server_error,
            connect_failure: wire.connect_failure,
            timeout: wire.timeout,
            reset: wire.reset,
            refused_stream: wire.refused_stream,
            statuses: wire.statuses.iter().filter_map(|s| u16::try_from(*s).ok()).collect(),
            grpc_statuses: wire.grpc_statuses.iter().filter(|c| **c <= 16).fold(0, |set, c| set | 1 << c),
        }
    }
}

/// No policy can have an instance checked more often than this.
const SHORTEST_INTERVAL_MS: u64 = 100;

/// A CircuitPolicy as the data path uses it.
#[derive(Debug, PartialEq)]
pub struct CircuitSettings {
    /// `namespace/name` of the policy.
    pub name: Arc<str>,
    /// One circuit for the destination rather than one per instance.
    pub whole_destination: bool,
    /// The numbers.
    pub breaker: breaker::Settings,
    /// What counts as a failure.
    pub failures: Conditions,
    /// From how long on a reply is slow.
    pub slow_after: Option<Duration>,
    /// Which share of the instances of the policy's target may be out at a time, in parts per million.
    pub max_ejection_ppm: u32,
    /// What this node and others see of its instances is put together.
    pub correlated: bool,
    /// How the instances are checked.
    pub health_check: Option<HealthCheck>,
    /// Bounds on what is under way.
    pub limits: Option<limits::Limits>,
    /// It is held by hand.
    pub hold: Option<Hold>,
    /// Where requests go while the circuit is open.
    pub fallback: Option<v1::Destination>,
    /// What is answered while the circuit is open, where that is no plain 503.
    pub reply: Option<Arc<Canned>>,
}

/// How an instance is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked.
    pub check: Check,
    /// From one check to the next.
    pub interval: Duration,
    /// How long one may take.
    pub timeout: Duration,
    /// Failed ones in a row that take it out.
    pub unhealthy_threshold: u32,
    /// Good ones in a row that bring it back.
    pub healthy_threshold: u32,
}

/// What a check asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// A GET of this path is answered 2xx.
    Http(Arc<str>),
    /// The server says SERVING of this service; empty: of itself.
    Grpc(Arc<str>),
    /// A connection is accepted.
    Tcp,
}

impl HealthCheck {
    /// From the wire; one that this build does not know is none.
    fn from_wire(wire: &v1::HealthCheck) -> Option<Self> {
        let check = match wire.check.as_ref()? {
            v1::health_check::Check::Path(path) => Check::Http(path.as_str().into()),
            v1::health_check::Check::GrpcService(service) => Check::Grpc(service.as_str().into()),
            v1::health_check::Check::Tcp(_) => Check::Tcp,
        };
        let interval = Duration::from_millis(wire.interval_ms.max(SHORTEST_INTERVAL_MS));
        Some(Self {
            check,
            interval,
            timeout: Duration::from_millis(wire.timeout_ms.max(1)).min(interval),
            unhealthy_threshold: wire.unhealthy_threshold.max(1),
            healthy_threshold: wire.healthy_threshold.max(1),
        })
    }
}

/// How a policy's circuits are held by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Open, else closed.
    pub open: bool,
    /// In milliseconds since 1970; `None`: until somebody lets go.
    pub until_unix_ms: Option<i64>,
    /// Who holds them and why.
    pub note: Arc<str>,
}

/// The same in the time that circuits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Open, else closed.
    pub open: bool,
    /// They are let go by themselves then.
    pub until: Option<Millis>,
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "held {} by hand", if self.open { "open" } else { "closed" })?;
        if self.note.is_empty() { Ok(()) } else { write!(f, ": {}", self.note) }
    }
}

impl Hold {
    /// From the time that circuits count and the wall clock's, both now.
    pub fn held(&self, now: Millis, unix_ms: i64) -> Held {
        let left = |until: i64| u64::try_from(until.saturating_sub(unix_ms)).unwrap_or(0);
        Held { open: self.open, until: self.until_unix_ms.map(|until| now.plus(left(until))) }
    }
}

impl Held {
    /// It holds now; what has run out holds no more.
    pub fn at(self, now: Millis) -> Option<Self> {
        self.until.is_none_or(|until| now < until).then_some(self)
    }
}

impl From<&v1::CircuitPolicy> for CircuitSettings {
    fn from(wire: &v1::CircuitPolicy) -> Self {
        Self {
            name: wire.name.as_str().into(),
            whole_destination: wire.scope() == v1::CircuitScope::Destination,
            breaker: breaker::Settings {
                failure_threshold: wire.failure_threshold.max(1),
                error_rate_ppm: wire.error_rate_threshold_ppm,
                minimum_requests: wire.minimum_requests.max(1),
                window_ms: wire.window_ms.max(10),
                timeout_ms: wire.timeout_ms.max(1),
                multiplier_milli: wire.backoff_multiplier_milli.max(1000),
                max_timeout_ms: wire.backoff_max_timeout_ms.max(wire.timeout_ms),
                jitter_ppm: wire.backoff_jitter_ppm,
                success_threshold: wire.success_threshold.clamp(1, 100),
                half_open_requests: wire.half_open_requests.clamp(1, 100),
                slow_rate_ppm: wire.slow_calls.map(|slow| slow.rate_threshold_ppm),
            },
            failures: wire.failures.as_ref().map(Conditions::from).unwrap_or_default(),
            slow_after: wire.slow_calls.map(|slow| Duration::from_millis(slow.duration_ms)),
            max_ejection_ppm: wire.max_ejection_ppm.unwrap_or(1_000_000),
            correlated: wire.correlated,
            health_check: wire.health_check.as_ref().and_then(HealthCheck::from_wire),
            limits: wire.limits.map(|limits| limits::Limits {
                connections: limits.max_connections,
                pending: limits.max_pending_requests,
                requests: limits.max_requests,
                adaptive: limits.adaptive.map(|adaptive| adaptive::Settings {
                    least: adaptive.min_requests.max(1),
                    tolerance_ppm: adaptive.latency_tolerance_ppm.max(1),
                }),
            }),
            hold: wire.hold.as_ref().map(|hold| Hold {
                open: hold.open,
                until_unix_ms: hold.until_unix_ms,
                note: hold.note.as_str().into(),
            }),
            fallback: wire.fallback.as_ref().and_then(|fallback| fallback.destination.clone()),
            reply: wire.fallback.as_ref().and_then(|f| f.reply.as_ref()).map(|reply| Arc::new(Canned::from(reply))),
        }
    }
}

/// No policy can ask for more retries of one request than this.
pub(super) const MAX_RETRIES: u32 = 10;
/// No policy can have more tries made beside one than this.
const MAX_HEDGES: u32 = 3;
/// No policy can have more of a request's body kept than this, in bytes.
pub(super) const MAX_BODY_BYTES: u64 = 16 << 20;

/// A RetryPolicy as the data path uses it.
#[derive(Debug)]
pub struct RetrySettings {
    /// `namespace/name` of the policy.
    pub name: Arc<str>,
    /// Retries after the first try, at most [`MAX_RETRIES`].
    pub max_retries: u32,
    /// How long to wait before each.
    pub backoff: Backoff,
    /// For one try.
    pub per_try_timeout: Option<Duration>,
    /// For all tries together, waits included.
    pub timeout: Option<Duration>,
    /// What is retried.
    pub retry_on: Conditions,
    /// Methods that may be sent twice.
    pub methods: Vec<Method>,
    /// A longer `Retry-After` is waited for.
    pub respect_retry_after: bool,
    /// Not the same instance again, where there is another.
    pub avoid_previous_instances: bool,
    /// A retry may go to another destination of the rule.
    pub rechoose_destination: bool,
    /// How much of a body is kept, at most [`MAX_BODY_BYTES`].
    pub max_body_bytes: usize,
    /// Other instances are asked as well while one is slow.
    pub hedge: Option<Hedge>,
    /// How much retries may add to the load; outlives the table.
    pub budget: Arc<Budget>,
}

/// The budget that a policy asks for.
pub(super) fn budget_limits(wire: &v1::RetryPolicy) -> Limits {
    Limits {
        ratio_ppm: wire.budget_ratio_ppm,
        min_per_second: wire.budget_min_per_second,
        window_ms: wire.budget_window_ms.max(1000),
    }
}

impl RetrySettings {
    /// From the wire.
    pub fn new(wire: &v1::RetryPolicy, budget: Arc<Budget>) -> Self {
        let strategy = match wire.strategy() {
            v1::BackoffStrategy::Fixed => Strategy::Fixed,
            v1::BackoffStrategy::Linear => Strategy::Linear,
            v1::BackoffStrategy::Fibonacci => Strategy::Fibonacci,
            v1::BackoffStrategy::DecorrelatedJitter => Strategy::DecorrelatedJitter,
            v1::BackoffStrategy::Exponential | v1::BackoffStrategy::Unspecified => Strategy::Exponential,
        };
        Self {
            name: wire.name.as_str().into(),
            max_retries: wire.max_retries.min(MAX_RETRIES),
            backoff: Backoff {
                strategy,
                initial_ms: wire.initial_delay_ms,
                max_ms: wire.max_delay_ms,
                multiplier_milli: wire.multiplier_milli,
                jitter_ppm: wire.jitter_ppm,
            },
            per_try_timeout: limit(wire.per_try_timeout_ms),
            timeout: limit(wire.timeout_ms),
            retry_on: wire.retry_on.as_ref().map(Conditions::from).unwrap_or_default(),
            methods: wire.methods.iter().filter_map(|m| Method::from_bytes(m.as_bytes()).ok()).collect(),
            respect_retry_after: wire.respect_retry_after,
            avoid_previous_instances: wire.avoid_previous_instances,
            rechoose_destination: wire.rechoose_destination,
            hedge: wire
                .hedge
                .filter(|hedge| hedge.max > 0)
                .map(|hedge| Hedge { after: Duration::from_millis(hedge.after_ms), max: hedge.max.min(MAX_HEDGES) }),
            max_body_bytes: usize::try_from(wire.max_body_bytes.min(MAX_BODY_BYTES)).unwrap_or(0),
            budget,
        }
    }
}

/// A limit in milliseconds; none, or 0, is no limit.
pub(super) fn limit(millis: Option<u64>) -> Option<Duration> {
    millis.filter(|ms| *ms > 0).map(Duration::from_millis)
}
