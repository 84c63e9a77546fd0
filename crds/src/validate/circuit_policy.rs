//! What no schema can say of a `CircuitPolicy`.

use crate::circuit_policy::{
    AdaptiveLimit, CircuitPolicy, CircuitPolicySpec, CircuitScope, Fallback, HealthCheck, Limits,
};
use crate::findings::Finding;
use crate::hold;
use crate::values::{Duration, Percent};

use super::Report;
use super::conditions::Conditions;

/// The sliding window: a shorter one holds too few requests to say anything, and what happened before a longer one says little of now.
pub(crate) const WINDOW: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));
/// How long a circuit can be open without a probe.
pub(crate) const OPEN: (Duration, Duration) = (Duration::from_millis(1), A_DAY);
/// How long a check of health can take, and how far apart two can be.
pub(crate) const CHECK_TIMEOUT: (Duration, Duration) = (Duration::from_millis(1), A_DAY);
pub(crate) const CHECK_INTERVAL: (Duration, Duration) = (Duration::from_millis(100), A_DAY);
const A_DAY: Duration = Duration::from_secs(24 * 3600);

/// Whoever asks for a longer first open time, or for checks that are closer together, need not know the default of a field that they
/// did not write: these are never in the way.
pub(crate) const DEFAULT_MAX_TIMEOUT: Duration = Duration::from_secs(600);
pub(crate) const DEFAULT_CHECK_TIMEOUT: Duration = Duration::from_secs(1);
pub(crate) const DEFAULT_MIN_REQUESTS: i32 = 10;
/// A smaller tolerance is within the noise of most latencies.
pub(crate) const LEAST_TOLERANCE: Percent = Percent::whole(10);

/// What is wrong with a policy, or likely a mistake; all of it.
pub fn validate_circuit_policy(policy: &CircuitPolicy) -> Vec<Finding> {
    let spec = &policy.spec;
    let mut report = Report::default();
    report.targets(&spec.target_refs);
    report.conditions("spec.failures", &spec.failures);
    report.within("spec.window", spec.window, WINDOW);
    report.within("spec.timeout", spec.timeout, OPEN);
    report.within("spec.backoff.maxTimeout", spec.backoff.max_timeout, OPEN);
    let (first, longest) = (spec.timeout, spec.backoff.max_timeout);
    let message = format!("{longest} is shorter than spec.timeout, which is {first}: an open time only grows");
    // The default holds at least that long.
    let is_default = longest == DEFAULT_MAX_TIMEOUT;
    report.require(longest >= first || is_default, "spec.backoff.maxTimeout", message);
    if spec.error_rate_threshold.ppm() == 0 {
        report.suspicious("spec.errorRateThreshold", "0% opens the circuit whatever happens");
    }
    if spec.max_ejection_percent.ppm() == 0 && spec.scope == CircuitScope::Instance {
        report.suspicious("spec.maxEjectionPercent", "0% lets no circuit open");
    }
    if let Some(slow) = &spec.slow_calls {
        if slow.duration.as_millis() == 0 {
            report.suspicious("spec.slowCalls.duration", "0s makes every reply slow");
        }
        if slow.rate_threshold.ppm() == 0 {
            report.suspicious("spec.slowCalls.rateThreshold", "0% opens the circuit with the first slow reply");
        }
    }
    if let Some(Err(message)) = hold::until(&policy.metadata) {
        report.error(format!("metadata.annotations[{}]", hold::UNTIL), message);
    }
    if let Some(check) = &spec.health_check {
        report.health_check(check);
    }
    if let Some(limits) = &spec.limits {
        report.limits(limits);
    }
    if let Some(fallback) = &spec.fallback {
        report.fallback(fallback, spec);
    }
    report.finish()
}

impl Report {
    /// A duration that is shorter or longer than what is taken.
    pub(super) fn within(&mut self, field: &str, value: Duration, (least, most): (Duration, Duration)) {
        self.require(value >= least, field, format!("{value} is shorter than {least}"));
        self.require(value <= most, field, format!("{value} is longer than {most}"));
    }

    /// Words that say what counts, each of a closed list.
    pub(super) fn conditions(&mut self, field: &str, words: &[String]) {
        for (i, word) in words.iter().enumerate() {
            if let Err(error) = Conditions::default().add(word) {
                self.error(format!("{field}[{i}]"), error.to_string());
            }
        }
    }

    fn health_check(&mut self, check: &HealthCheck) {
        let given = [check.path.is_some(), check.grpc.is_some(), check.tcp.is_some()];
        self.require(given.into_iter().filter(|g| *g).count() == 1, "spec.healthCheck", super::ONE_CHECK);
        if let Some(path) = &check.path {
            self.require(path.starts_with('/'), "spec.healthCheck.path", super::PATH_START);
        }
        let (timeout, interval) = (check.timeout, check.interval);
        self.within("spec.healthCheck.interval", interval, CHECK_INTERVAL);
        self.within("spec.healthCheck.timeout", timeout, CHECK_TIMEOUT);
        let message = format!("{timeout} for a check is longer than {interval} between two (healthCheck.interval)");
        // The default ends when the next check begins.
        let fits = timeout <= interval || timeout == DEFAULT_CHECK_TIMEOUT;
        self.require(fits, "spec.healthCheck.timeout", message);
    }

    fn limits(&mut self, limits: &Limits) {
        let Some(AdaptiveLimit { min_requests: least, latency_tolerance: tolerance }) = limits.adaptive else { return };
        // The default is no higher than that.
        let fits = least <= limits.max_requests || least == DEFAULT_MIN_REQUESTS;
        self.require(fits, "spec.limits.adaptive.minRequests", super::MIN_ABOVE_MAX);
        let message = format!("{tolerance} is less than {LEAST_TOLERANCE}");
        self.require(tolerance >= LEAST_TOLERANCE, "spec.limits.adaptive.latencyTolerance", message);
    }

    fn fallback(&mut self, fallback: &Fallback, spec: &CircuitPolicySpec) {
        self.require(
            fallback.destination.is_some() != fallback.response.is_some(),
            "spec.fallback",
            super::ONE_FALLBACK,
        );
        if let Some(response) = &fallback.response {
            self.canned_response("spec.fallback.response", response);
        }
        let share = spec.max_ejection_percent;
        if spec.scope == CircuitScope::Instance && share.ppm() < 1_000_000 {
            let message = format!(
                "with maxEjectionPercent {share} one of two or more instances always stays in, and callers get its replies: \
                 for a fallback when all fail, say \"100%\", or scope: Destination"
            );
            self.suspicious("spec.fallback", message);
        }
        let Some(destination) = &fallback.destination else { return };
        let itself = spec.target_refs.iter().any(|target| {
            target.name == destination.service && target.version == destination.version && target.subset.is_empty()
        });
        self.require(!itself, "spec.fallback.destination", super::FALLBACK_ITSELF);
    }
}
