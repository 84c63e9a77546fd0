//! What no schema can say of a `RetryPolicy`.

use crate::findings::Finding;
use crate::retry_policy::{RetryPolicy, RetryPolicySpec, Strategy};
use crate::values::{Duration, Size};

use super::Report;

/// The shortest and the longest window of a budget.
pub(crate) const BUDGET_WINDOW: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The most of one request's body that is kept for sending it again: each request under way may hold as much.
pub(crate) const MAX_BODY: Size = Size::from_bytes(16 << 20);
/// Methods that do something anew each time they are sent.
const NOT_IDEMPOTENT: [&str; 2] = ["POST", "PATCH"];

/// What is wrong with a policy, or likely a mistake; all of it.
pub fn validate_retry_policy(policy: &RetryPolicy) -> Vec<Finding> {
    let spec = &policy.spec;
    let mut report = Report::default();
    report.targets(&spec.target_refs);
    report.conditions("spec.retryOn", &spec.retry_on);
    for (i, method) in spec.methods.iter().enumerate() {
        if NOT_IDEMPOTENT.contains(&method.as_str()) {
            let message =
                format!("a {method} that is sent twice may act twice; retry it only where instances expect that");
            report.suspicious(format!("spec.methods[{i}]"), message);
        }
    }
    let (first, longest) = (spec.initial_delay, spec.max_delay);
    let message = format!("{first} is longer than spec.maxDelay, which is {longest}");
    report.require(first <= longest, "spec.initialDelay", message);
    for (field, value) in [("spec.perTryTimeout", spec.per_try_timeout), ("spec.timeout", spec.timeout)] {
        if value.is_some_and(|v| v.as_millis() == 0) {
            report.error(field, super::NO_TIME);
        }
    }
    if let (Some(each), Some(whole)) = (spec.per_try_timeout, spec.timeout)
        && each > whole
    {
        let message = format!("{each} for one try is longer than {whole} for all together (spec.timeout)");
        report.error("spec.perTryTimeout", message);
    }
    if spec.max_retries > 0 {
        report.no_retry_can_happen(spec);
    }
    if let Some(hedge) = spec.hedge
        && hedge.max > spec.max_retries
    {
        let message = format!(
            "a try beside another is a retry, and there are at most {} of those (spec.maxRetries)",
            spec.max_retries
        );
        report.suspicious("spec.hedge.max", message);
    }
    report.within("spec.budget.window", spec.budget.window, BUDGET_WINDOW);
    if spec.max_body_bytes > MAX_BODY {
        report.error("spec.maxBodyBytes", format!("{} is above {MAX_BODY}", spec.max_body_bytes));
    }
    report.finish()
}

impl Report {
    /// A policy that asks for retries, and leaves none of them time or budget.
    fn no_retry_can_happen(&mut self, spec: &RetryPolicySpec) {
        let jitter = match spec.strategy {
            // Random between the first wait and more.
            Strategy::DecorrelatedJitter => 0,
            _ => u64::from(spec.jitter.ppm()),
        };
        let first = spec.initial_delay.as_millis();
        let shortest = Duration::from_millis(first - first * jitter / 1_000_000);
        if let Some(whole) = spec.timeout.filter(|whole| whole.as_millis() > 0 && *whole <= shortest) {
            let message = format!(
                "no retry ever begins: the wait before the first is at least {shortest} (spec.initialDelay, less spec.jitter), \
                 and all is over after {whole}"
            );
            self.suspicious("spec.timeout", message);
        }
        if spec.budget.ratio.ppm() == 0 && spec.budget.min_per_second == 0 {
            self.suspicious(
                "spec.budget",
                "no retry ever begins: the ratio is 0% and minPerSecond is 0; maxRetries: 0 says so",
            );
        }
    }
}
