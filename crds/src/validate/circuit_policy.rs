//! What no schema can say of a `CircuitPolicy`.

use crate::circuit_policy::{CircuitBackoff, CircuitPolicy, CircuitPolicySpec, Fallback, HealthCheck};
use crate::findings::Finding;
use crate::values::Duration;

use super::conditions::Conditions;
use super::{Report, not_enforced};

/// The shortest sliding window: less than this holds too few requests to say anything.
const MIN_WINDOW: Duration = Duration::from_secs(1);
/// The longest sliding window: what happened before it says little of now.
const MAX_WINDOW: Duration = Duration::from_secs(600);
/// The longest time that a circuit can be open without a probe.
const MAX_OPEN: Duration = Duration::from_secs(24 * 3600);

/// What is wrong with a policy, or likely a mistake; all of it.
pub fn validate_circuit_policy(policy: &CircuitPolicy) -> Vec<Finding> {
    let spec = &policy.spec;
    let mut report = Report::default();
    report.targets(&spec.target_refs);
    report.conditions("spec.failures", &spec.failures);
    report.within("spec.window", spec.window, MIN_WINDOW, MAX_WINDOW);
    report.within("spec.timeout", spec.timeout, Duration::from_millis(1), MAX_OPEN);
    report.within("spec.backoff.maxTimeout", spec.backoff.max_timeout, Duration::from_millis(1), MAX_OPEN);
    let (first, longest) = (spec.timeout, spec.backoff.max_timeout);
    let message = format!("{longest} is shorter than spec.timeout, which is {first}: an open time only grows");
    // Whoever asks for a longer first time need not know the default of a field that they did not write: it holds at least that long.
    let is_default = longest == CircuitBackoff::default().max_timeout;
    report.require(longest >= first || is_default, "spec.backoff.maxTimeout", message);
    if spec.error_rate_threshold.ppm() == 0 {
        report.suspicious("spec.errorRateThreshold", "0% opens the circuit whatever happens");
    }
    if let Some(check) = &spec.health_check {
        report.health_check(check);
    }
    if let Some(fallback) = &spec.fallback {
        report.fallback(fallback, spec);
    }
    not_enforced::circuit_policy(spec, &mut report);
    report.finish()
}

impl Report {
    /// A duration that is shorter or longer than what is taken.
    pub(super) fn within(&mut self, field: &str, value: Duration, least: Duration, most: Duration) {
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
        self.within("spec.healthCheck.interval", check.interval, Duration::from_millis(100), MAX_OPEN);
        self.within("spec.healthCheck.timeout", check.timeout, Duration::from_millis(1), MAX_OPEN);
    }

    fn fallback(&mut self, fallback: &Fallback, spec: &CircuitPolicySpec) {
        self.require(
            fallback.destination.is_some() != fallback.response.is_some(),
            "spec.fallback",
            super::ONE_FALLBACK,
        );
        let Some(destination) = &fallback.destination else { return };
        let itself = spec.target_refs.iter().any(|target| {
            target.name == destination.service && target.version == destination.version && target.subset.is_empty()
        });
        let message = "the policy's own target stands in for itself: when its circuit is open, so is the fallback's";
        self.require(!itself, "spec.fallback.destination", message);
    }
}
