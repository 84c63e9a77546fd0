//! Is the request sent again? One function decides, and says why not.
//!
//! Keeps true:
//! - Never past `maxRetries` (which has a ceiling of its own), the deadline, or the budget. A retry that waits has been
//!   taken out of the budget already.
//! - A request that an instance may have acted on is sent again only if its method is one that the policy lists.
//! - A kept connection that breaks off before any reply most likely had just been closed: the request is sent again at once, whatever
//!   the policy retries. It is a retry like any other in all else.
//! - What another agent on the way retries is not retried here: the bound of a call holds end to end.

use std::time::{Duration, Instant};

use http::{HeaderMap, Method};
use rand::Rng;

use crate::admit::window::Millis;
use crate::table::{Outcome, RetrySettings};

/// How long to wait.
pub mod backoff;
/// How much retries may add to the load.
pub mod budget;
/// Bodies that can be sent again.
pub mod replay;

/// The tries of one request so far.
#[derive(Debug, Default)]
pub struct Tries {
    /// Retries that were decided.
    pub retries: u32,
    /// What the last of them was for, in a metric's word, until it is known what came of it.
    pub reason: Option<&'static str>,
    /// The wait before the last of them.
    previous: Duration,
}

/// What the request itself allows.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Another agent counts its tries.
    pub already_retried: bool,
    /// All of its body that was sent is kept.
    pub replayable: bool,
    /// It must be answered by then.
    pub deadline: Option<Instant>,
    /// It was sent on a kept connection, which broke off before any reply.
    pub stale: bool,
}

/// Whether a try is followed by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// After this long.
    Again {
        /// The wait.
        after: Duration,
    },
    /// No.
    Stop(Why),
}

/// Why there is no retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The outcome is none that the policy retries, a good one among others.
    NotAsked,
    /// There were as many as there may be.
    Exhausted,
    /// Its method may not be sent twice.
    Method,
    /// Its body is longer than what is kept.
    Body,
    /// Retries would be too much of the load.
    Budget,
    /// The wait would end after the deadline.
    Deadline,
    /// The instance asks for a longer wait than the policy has.
    RetryAfter,
    /// Another agent retries it.
    AlreadyRetried,
}

impl Why {
    /// The word for it in metrics; `None` where nothing was to be retried.
    pub fn word(self) -> Option<&'static str> {
        match self {
            Self::NotAsked => None,
            Self::Exhausted => Some("retries-exhausted"),
            Self::Method => Some("method"),
            Self::Body => Some("body"),
            Self::Budget => Some("budget"),
            Self::Deadline => Some("deadline"),
            Self::RetryAfter => Some("retry-after"),
            Self::AlreadyRetried => Some("already-retried"),
        }
    }
}

/// Decides. `retry_after` is what the reply asked for; on `Again` the retry is taken out of the budget and counted in `tries`.
pub fn after(
    policy: &RetrySettings,
    tries: &mut Tries,
    request: Request<'_>,
    outcome: Outcome,
    retry_after: Option<Duration>,
    (now, millis): (Instant, Millis),
    rng: &mut impl Rng,
) -> Next {
    if !policy.retry_on.hold(outcome) && !request.stale {
        return Next::Stop(Why::NotAsked);
    }
    if request.already_retried {
        return Next::Stop(Why::AlreadyRetried);
    }
    if tries.retries >= policy.max_retries {
        return Next::Stop(Why::Exhausted);
    }
    if !outcome.never_processed() && !policy.methods.contains(request.method) {
        return Next::Stop(Why::Method);
    }
    if !request.replayable {
        return Next::Stop(Why::Body);
    }
    let mut wait = Duration::ZERO;
    if !request.stale {
        wait = policy.backoff.delay(tries.retries + 1, tries.previous, rng);
        tries.previous = wait;
    }
    if let Some(asked) = retry_after.filter(|_| policy.respect_retry_after) {
        // It said when, and that is later than the policy waits: sooner is no use.
        if asked > Duration::from_millis(policy.backoff.max_ms) {
            return Next::Stop(Why::RetryAfter);
        }
        wait = wait.max(asked);
    }
    if request.deadline.is_some_and(|deadline| now + wait >= deadline) {
        return Next::Stop(Why::Deadline);
    }
    if !policy.budget.withdraw(millis) {
        return Next::Stop(Why::Budget);
    }
    tries.retries += 1;
    Next::Again { after: wait }
}

/// What a reply's `Retry-After` (RFC 9110 section 10.2.3) asks for, where it is a number of seconds; a date is not waited for.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    // More than a number holds is longer than anybody waits.
    is_number.then(|| Duration::from_secs(text.parse().unwrap_or(u64::MAX)))
}

/// The caller's own deadline: `grpc-timeout` (gRPC over HTTP/2) or `x-request-timeout`, a duration such as `250ms` or `1.5s`.
/// The shorter one, where both are there.
pub fn callers_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    let grpc = text("grpc-timeout").and_then(|value| {
        let (number, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
        let number: u64 = number.parse().ok().filter(|_| number.len() <= 8)?;
        Some(match unit {
            "H" => Duration::from_secs(number * 3600),
            "M" => Duration::from_secs(number * 60),
            "S" => Duration::from_secs(number),
            "m" => Duration::from_millis(number),
            "u" => Duration::from_micros(number),
            "n" => Duration::from_nanos(number),
            _ => return None,
        })
    });
    let plain = text("x-request-timeout").and_then(|value| {
        let digits = value.find(|c: char| c.is_ascii_alphabetic())?;
        let (number, unit) = value.split_at(digits);
        let scale = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        Duration::try_from_secs_f64(number.parse::<f64>().ok()? * scale).ok()
    });
    match (grpc, plain) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;
    use switchyard_proto::v1;

    use super::budget::{Budget, Limits};
    use super::*;

    fn policy(max_retries: u32) -> RetrySettings {
        policy_within(max_retries, Limits { ratio_ppm: 1_000_000, min_per_second: 1000, window_ms: 10_000 })
    }

    fn policy_within(max_retries: u32, limits: Limits) -> RetrySettings {
        let wire = v1::RetryPolicy {
            max_retries,
            strategy: v1::BackoffStrategy::Exponential.into(),
            initial_delay_ms: 1000,
            max_delay_ms: 30_000,
            multiplier_milli: 2000,
            jitter_ppm: 100_000,
            retry_on: Some(v1::Conditions { server_error: true, connect_failure: true, ..Default::default() }),
            methods: vec!["GET".into()],
            respect_retry_after: true,
            ..Default::default()
        };
        RetrySettings::new(&wire, std::sync::Arc::new(Budget::new(limits, 1)))
    }

    const FAILED: Outcome = Outcome::Reply { status: 503, grpc: None };

    fn decide(policy: &RetrySettings, tries: &mut Tries, request: Request<'_>, outcome: Outcome) -> Next {
        let now = (Instant::now(), Millis(0));
        after(policy, tries, request, outcome, None, now, &mut SmallRng::seed_from_u64(1))
    }

    const GET: Request<'_> =
        Request { method: &Method::GET, already_retried: false, replayable: true, deadline: None, stale: false };

    #[test]
    fn a_post_that_reached_an_instance_is_not_sent_twice_and_one_that_did_not_is() {
        let post = Request { method: &Method::POST, ..GET };
        assert_eq!(decide(&policy(3), &mut Tries::default(), post, FAILED), Next::Stop(Why::Method));
        let unsent = decide(&policy(3), &mut Tries::default(), post, Outcome::ConnectFailure);
        assert!(matches!(unsent, Next::Again { .. }));
    }

    #[test]
    fn each_reason_against_a_retry_is_told() {
        let tried = |request, outcome| decide(&policy(3), &mut Tries::default(), request, outcome);
        assert_eq!(tried(GET, Outcome::Reply { status: 404, grpc: None }), Next::Stop(Why::NotAsked));
        assert_eq!(tried(Request { already_retried: true, ..GET }, FAILED), Next::Stop(Why::AlreadyRetried));
        assert_eq!(tried(Request { replayable: false, ..GET }, FAILED), Next::Stop(Why::Body));
        assert_eq!(decide(&policy(0), &mut Tries::default(), GET, FAILED), Next::Stop(Why::Exhausted));
        let none = policy_within(3, Limits { ratio_ppm: 0, min_per_second: 0, window_ms: 10_000 });
        let now = (Instant::now(), Millis(0));
        let rng = &mut SmallRng::seed_from_u64(1);
        let without = after(&none, &mut Tries::default(), GET, FAILED, None, now, rng);
        assert_eq!(without, Next::Stop(Why::Budget));
    }

    proptest! {
        #[test]
        fn waits_follow_the_strategy_and_never_pass_the_deadline(seed: u64, deadline_ms in 0u64..60_000) {
            let start = Instant::now();
            let deadline = start + Duration::from_millis(deadline_ms);
            let request = Request { deadline: Some(deadline), ..GET };
            let (policy, mut tries) = (policy(10), Tries::default());
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut now = start;
            for retry in 0u32.. {
                match after(&policy, &mut tries, request, FAILED, None, (now, Millis(0)), &mut rng) {
                    Next::Again { after } => {
                        let plain = 1000.0 * 2f64.powi(retry as i32);
                        let wait = after.as_secs_f64() * 1000.0;
                        prop_assert!(wait <= 30_000.0 && wait <= plain * 1.1 + 1.0, "{wait} after {retry}");
                        prop_assert!(wait >= plain.min(30_000.0) * 0.9 - 1.0, "{wait} after {retry}");
                        now += after;
                        prop_assert!(now < deadline);
                    }
                    Next::Stop(why) => {
                        prop_assert!(why == Why::Deadline || (why == Why::Exhausted && retry == 10));
                        break;
                    }
                }
            }
        }
    }

    #[test]
    fn a_stale_connection_is_retried_at_once_and_is_a_retry_in_all_else() {
        let stale = Request { stale: true, ..GET };
        let tried = |policy: &RetrySettings, request| decide(policy, &mut Tries::default(), request, Outcome::Reset);
        // This policy retries no resets.
        assert_eq!(tried(&policy(1), GET), Next::Stop(Why::NotAsked));
        assert_eq!(tried(&policy(1), stale), Next::Again { after: Duration::ZERO });
        assert_eq!(tried(&policy(1), Request { method: &Method::DELETE, ..stale }), Next::Stop(Why::Method));
        assert_eq!(tried(&policy(1), Request { already_retried: true, ..stale }), Next::Stop(Why::AlreadyRetried));
        assert_eq!(tried(&policy(0), stale), Next::Stop(Why::Exhausted));
        let none = policy_within(3, Limits { ratio_ppm: 0, min_per_second: 0, window_ms: 10_000 });
        assert_eq!(tried(&none, stale), Next::Stop(Why::Budget));
        let mut tries = Tries::default();
        decide(&policy(1), &mut tries, stale, Outcome::Reset);
        assert_eq!(decide(&policy(1), &mut tries, stale, Outcome::Reset), Next::Stop(Why::Exhausted));
    }

    #[test]
    fn retry_after_is_a_number_of_seconds_however_large() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(http::header::RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(of("7"), Some(Duration::from_secs(7)));
        assert_eq!(of("99999999999999999999999"), Some(Duration::from_secs(u64::MAX)));
        for other in ["", "-1", "+1", "1.5", "soon", "Wed, 21 Oct 2026 07:28:00 GMT"] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn a_longer_retry_after_is_waited_for_and_one_past_the_longest_wait_ends_it() {
        let asked = |seconds| {
            let (now, mut rng) = ((Instant::now(), Millis(0)), SmallRng::seed_from_u64(1));
            let asked = Some(Duration::from_secs(seconds));
            after(&policy(3), &mut Tries::default(), GET, FAILED, asked, now, &mut rng)
        };
        assert_eq!(asked(7), Next::Again { after: Duration::from_secs(7) });
        assert!(matches!(asked(30), Next::Again { .. }));
        assert_eq!(asked(31), Next::Stop(Why::RetryAfter), "the policy waits 30 s at most");
    }

    #[test]
    fn the_callers_deadline_is_read_in_both_forms() {
        let read = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            callers_timeout(&headers)
        };
        assert_eq!(read("grpc-timeout", "250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("grpc-timeout", "2S"), Some(Duration::from_secs(2)));
        assert_eq!(read("x-request-timeout", "1.5s"), Some(Duration::from_millis(1500)));
        for odd in ["", "m", "1", "123456789S", "-1S", "1x"] {
            assert_eq!(read("grpc-timeout", odd), None, "{odd}");
        }
        assert_eq!(read("x-request-timeout", "1e400s"), None);
    }
}
