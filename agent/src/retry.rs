//! Is the request sent again? One function decides, and says why not.
//!
//! Keeps true:
//! - Never past `maxRetries` (which has a ceiling of its own), the deadline, or the budget. A retry that waits has been
//!   taken out of the budget already.
//! - A request that an instance may have acted on is sent again only if its method is one that the policy lists.
//! - A kept connection that breaks off before any reply most likely had just been closed: the request is sent again at once, whatever
//!   the policy retries. It is a retry like any other in all else.
//! - What another agent on the way retries is not retried here, nor what one further on has retried in vain: the bound of a call holds
//!   end to end.
//! - No retry that can come to nothing: no time left for what instances take, or no circuit that would let it pass.

use std::time::{Duration, Instant};

use http::Method;
use rand::Rng;

use crate::admit::window::Millis;
use crate::table::{Outcome, RetrySettings};

use hints::Pushback;

/// How long to wait.
pub mod backoff;
/// How much retries may add to the load.
pub mod budget;
/// Tries beside one that is slow.
pub mod hedge;
/// What agents and instances say to one another of tries and of time.
pub mod hints;
#[cfg(test)]
mod parity;
/// Bodies that can be sent again.
pub mod replay;

/// The tries of one request so far.
#[derive(Debug, Default)]
pub struct Tries {
    /// Retries that were decided.
    pub retries: u32,
    /// What the last of them was for, in a metric's word, until it is known what came of it.
    pub reason: Option<&'static str>,
    /// Waits of the back-off, since it began or began anew.
    waits: u32,
    /// The last of those.
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

/// What a further try may hope for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    /// Before then no circuit lets it pass.
    pub soonest: Duration,
    /// The latency of the quickest instance that it could be sent to, as seen of late; zero where nothing is known of one.
    pub latency: Duration,
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
    /// There would be less time left than the quickest instance takes.
    Latency,
    /// No circuit lets it pass when the wait is over.
    CircuitOpen,
    /// The instance asks for a longer wait than the policy has, or for none.
    RetryAfter,
    /// Another agent retries it.
    AlreadyRetried,
    /// Another agent, further on, has retried it in vain.
    RetriedBelow,
}

impl Why {
    /// Whether a retry by somebody nearer to the caller would be one too many.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Exhausted | Self::Budget | Self::RetriedBelow)
    }

    /// The word for it in metrics; `None` where nothing was to be retried.
    pub fn word(self) -> Option<&'static str> {
        match self {
            Self::NotAsked => None,
            Self::Exhausted => Some("retries-exhausted"),
            Self::Method => Some("method"),
            Self::Body => Some("body"),
            Self::Budget => Some("budget"),
            Self::Deadline => Some("deadline"),
            Self::Latency => Some("latency"),
            Self::CircuitOpen => Some("circuit-open"),
            Self::RetryAfter => Some("retry-after"),
            Self::AlreadyRetried => Some("already-retried"),
            Self::RetriedBelow => Some("retried-below"),
        }
    }
}

/// Decides. `pushback` is what the reply asked for, `ahead` what another try may hope for; on `Again` the retry is taken out of the budget
/// and counted in `tries`.
pub fn after(
    policy: &RetrySettings,
    tries: &mut Tries,
    request: Request<'_>,
    (outcome, pushback): (Outcome, Pushback),
    (now, millis): (Instant, Millis),
    ahead: impl FnOnce() -> Ahead,
    rng: &mut impl Rng,
) -> Next {
    if !policy.retry_on.hold(outcome) && !request.stale {
        return Next::Stop(Why::NotAsked);
    }
    if let Err(why) = may_be_sent_again(policy, tries, request, outcome.never_processed()) {
        return Next::Stop(why);
    }
    let mut wait = Duration::ZERO;
    if !request.stale {
        wait = policy.backoff.delay(tries.waits + 1, tries.previous, rng);
        (tries.waits, tries.previous) = (tries.waits + 1, wait);
    }
    match pushback {
        Pushback::UsedUp => return Next::Stop(Why::RetriedBelow),
        Pushback::Never if policy.respect_retry_after => return Next::Stop(Why::RetryAfter),
        // It said when, and that is later than the policy waits: sooner is no use.
        Pushback::AtLeast(asked) | Pushback::Exactly(asked)
            if policy.respect_retry_after && asked > Duration::from_millis(policy.backoff.max_ms) =>
        {
            return Next::Stop(Why::RetryAfter);
        }
        Pushback::AtLeast(asked) if policy.respect_retry_after => wait = wait.max(asked),
        Pushback::Exactly(asked) if policy.respect_retry_after => {
            wait = asked;
            (tries.waits, tries.previous) = (0, Duration::ZERO);
        }
        _ => {}
    }
    if let Err(why) = is_worth_it(request.deadline, now, wait, ahead()) {
        return Next::Stop(why);
    }
    if !policy.budget.withdraw(millis) {
        return Next::Stop(Why::Budget);
    }
    tries.retries += 1;
    Next::Again { after: wait }
}

/// Whether another try may be made beside those under way, but for the budget.
///
/// # Errors
/// Why not.
pub fn beside(
    policy: &RetrySettings,
    tries: &Tries,
    request: Request<'_>,
    now: Instant,
    ahead: Ahead,
) -> Result<(), Why> {
    may_be_sent_again(policy, tries, request, false)?;
    is_worth_it(request.deadline, now, Duration::ZERO, ahead)
}

/// Whether the request itself, and its tries so far, allow another. `unseen`: no instance can have acted on it.
fn may_be_sent_again(policy: &RetrySettings, tries: &Tries, request: Request<'_>, unseen: bool) -> Result<(), Why> {
    if request.already_retried {
        return Err(Why::AlreadyRetried);
    }
    if tries.retries >= policy.max_retries {
        return Err(Why::Exhausted);
    }
    if !unseen && !policy.methods.contains(request.method) {
        return Err(Why::Method);
    }
    if !request.replayable {
        return Err(Why::Body);
    }
    Ok(())
}

/// Whether a try after this wait can come to anything.
fn is_worth_it(deadline: Option<Instant>, now: Instant, wait: Duration, ahead: Ahead) -> Result<(), Why> {
    if let Some(deadline) = deadline {
        let left = deadline.saturating_duration_since(now).saturating_sub(wait);
        if left.is_zero() {
            return Err(Why::Deadline);
        }
        if left <= ahead.latency {
            return Err(Why::Latency);
        }
    }
    if ahead.soonest > wait { Err(Why::CircuitOpen) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;
    use switchyard_proto::v1;

    use super::budget::{Account, Budget, Limits};
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
        RetrySettings::new(
            &wire,
            std::sync::Arc::new(Budget::new(limits, std::sync::Arc::new(Account::new(limits.window_ms, 1)))),
        )
    }

    const FAILED: Outcome = Outcome::Reply { status: 503, grpc: None };

    fn decide(policy: &RetrySettings, tries: &mut Tries, request: Request<'_>, outcome: Outcome) -> Next {
        let now = (Instant::now(), Millis(0));
        after(policy, tries, request, (outcome, Pushback::None), now, Ahead::default, &mut SmallRng::seed_from_u64(1))
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
        let without = after(&none, &mut Tries::default(), GET, (FAILED, Pushback::None), now, Ahead::default, rng);
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
                let time = (now, Millis(0));
                match after(&policy, &mut tries, request, (FAILED, Pushback::None), time, Ahead::default, &mut rng) {
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
    fn a_longer_retry_after_is_waited_for_and_one_past_the_longest_wait_ends_it() {
        let asked = |seconds| {
            let (now, mut rng) = ((Instant::now(), Millis(0)), SmallRng::seed_from_u64(1));
            let asked = Pushback::AtLeast(Duration::from_secs(seconds));
            after(&policy(3), &mut Tries::default(), GET, (FAILED, asked), now, Ahead::default, &mut rng)
        };
        assert_eq!(asked(7), Next::Again { after: Duration::from_secs(7) });
        assert!(matches!(asked(30), Next::Again { .. }));
        assert_eq!(asked(31), Next::Stop(Why::RetryAfter), "the policy waits 30 s at most");
    }

    #[test]
    fn a_retry_that_can_come_to_nothing_is_not_made_and_costs_no_budget() {
        let only = Limits { ratio_ppm: 0, min_per_second: 1, window_ms: 1000 };
        let (policy, start) = (policy_within(3, only), Instant::now());
        let tried = |deadline_ms: u64, ahead: Ahead| {
            let request = Request { deadline: Some(start + Duration::from_millis(deadline_ms)), ..GET };
            let (tries, rng) = (&mut Tries::default(), &mut SmallRng::seed_from_u64(1));
            after(&policy, tries, request, (FAILED, Pushback::None), (start, Millis(0)), || ahead, rng)
        };
        let ms = Duration::from_millis;
        let takes = |latency| Ahead { latency: ms(latency), ..Ahead::default() };
        let out_for = |soonest| Ahead { soonest, ..Ahead::default() };
        // The wait is of 900 to 1100 ms.
        assert_eq!(tried(2000, takes(1100)), Next::Stop(Why::Latency));
        assert_eq!(tried(5000, out_for(ms(1101))), Next::Stop(Why::CircuitOpen));
        assert_eq!(tried(5000, out_for(Duration::MAX)), Next::Stop(Why::CircuitOpen));
        assert_eq!(tried(900, takes(0)), Next::Stop(Why::Deadline));
        assert!(matches!(tried(5000, Ahead { soonest: ms(899), latency: ms(3899) }), Next::Again { .. }));
        assert_eq!(tried(5000, takes(0)), Next::Stop(Why::Budget), "there was one in the budget, which is used now");
    }
}
