//! Retries beside what others publish of theirs: a test for each line of the table in `docs/retry.md`, named after it.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, Response};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use switchyard_proto::v1;

use super::budget::{Account, Budget, Limits};
use super::hints::{self, Pushback};
use super::{Ahead, Next, Request, Tries, Why, after};
use crate::admit::window::Millis;
use crate::classify::{self, Verdict};
use crate::table::{Outcome, RetrySettings};

const UNLIMITED: Limits = Limits { ratio_ppm: 0, min_per_second: 1_000_000, window_ms: 10_000 };
const UNAVAILABLE: Outcome = Outcome::Reply { status: 200, grpc: Some(14) };
const GET: Request<'_> =
    Request { method: &Method::GET, already_retried: false, replayable: true, deadline: None, stale: false };

fn policy_within(limits: Limits, change: impl FnOnce(&mut v1::RetryPolicy)) -> RetrySettings {
    let mut wire = v1::RetryPolicy {
        max_retries: 10,
        initial_delay_ms: 1000,
        max_delay_ms: 30_000,
        multiplier_milli: 2000,
        retry_on: Some(v1::Conditions { server_error: true, ..Default::default() }),
        methods: vec!["GET".into()],
        respect_retry_after: true,
        ..Default::default()
    };
    change(&mut wire);
    RetrySettings::new(&wire, Arc::new(Budget::new(limits, Arc::new(Account::new(limits.window_ms, 1)))))
}

fn policy(change: impl FnOnce(&mut v1::RetryPolicy)) -> RetrySettings {
    policy_within(UNLIMITED, change)
}

fn status(status: u16) -> Outcome {
    Outcome::Reply { status, grpc: None }
}

fn decide(
    policy: &RetrySettings,
    tries: &mut Tries,
    request: Request<'_>,
    ended: (Outcome, Pushback),
    seed: u64,
) -> Next {
    let now = (Instant::now(), Millis(0));
    after(policy, tries, request, ended, now, Ahead::default, &mut SmallRng::seed_from_u64(seed))
}

/// The waits of a request that only fails, in milliseconds, and why there was no further one.
fn waits(policy: &RetrySettings, outcome: Outcome, seed: u64) -> (Vec<f64>, Why) {
    let (mut tries, mut waits) = (Tries::default(), Vec::new());
    loop {
        match decide(policy, &mut tries, GET, (outcome, Pushback::None), seed + waits.len() as u64) {
            Next::Again { after } => waits.push(after.as_secs_f64() * 1000.0),
            Next::Stop(why) => return (waits, why),
        }
    }
}

fn retried(policy: &RetrySettings, outcome: Outcome) -> bool {
    matches!(decide(policy, &mut Tries::default(), GET, (outcome, Pushback::None), 1), Next::Again { .. })
}

#[test]
fn envoy_retry_back_off() {
    let like = |jitter_ppm| policy(|p| (p.initial_delay_ms, p.max_delay_ms, p.jitter_ppm) = (25, 250, jitter_ppm));
    // Up to ten times the base, as there.
    assert_eq!(waits(&like(0), status(503), 1).0[..6], [25.0, 50.0, 100.0, 200.0, 250.0, 250.0]);
    let spread: Vec<Vec<f64>> = (0..500).map(|seed| waits(&like(1_000_000), status(503), seed * 100).0).collect();
    for (retry, longest) in [(0, 50.0), (1, 100.0), (2, 200.0), (3, 250.0), (9, 250.0)] {
        let all: Vec<f64> = spread.iter().map(|waits| waits[retry]).collect();
        assert!(all.iter().all(|wait| (0.0..=longest).contains(wait)));
        assert!(all.iter().any(|wait| *wait < longest / 10.0) && all.iter().any(|wait| *wait > longest * 0.9));
    }
    // By default none is next to nothing.
    assert!((0..500).all(|seed| waits(&like(100_000), status(503), seed).0[0] >= 22.5));
}

#[test]
fn envoy_num_retries() {
    let (waits, why) = waits(&policy(|p| p.max_retries = 3), status(503), 1);
    assert_eq!((waits.len(), why), (3, Why::Exhausted));
}

#[test]
fn envoy_rate_limited_retry_back_off() {
    let asked = |seconds| {
        let ended = (status(429), Pushback::AtLeast(Duration::from_secs(seconds)));
        let policy = policy(|p| p.retry_on = Some(v1::Conditions { statuses: vec![429], ..Default::default() }));
        decide(&policy, &mut Tries::default(), GET, ended, 1)
    };
    assert_eq!(asked(20), Next::Again { after: Duration::from_secs(20) });
    assert_eq!(asked(31), Next::Stop(Why::RetryAfter));
}

#[test]
fn envoy_retry_budget() {
    // Nobody has waited to the end of its wait yet, and no more than the budget wait.
    let limits = Limits { ratio_ppm: 200_000, min_per_second: 1, window_ms: 10_000 };
    let policy = policy_within(limits, |_| {});
    (0..100).for_each(|_| policy.budget.deposit(0, Millis(0)));
    assert_eq!((0..100).filter(|_| retried(&policy, status(503))).count(), 20 + 10);
}

#[test]
fn envoy_per_try_timeout() {
    let now = Instant::now();
    let over = Request { deadline: Some(now), ..GET };
    let policy = policy(|p| p.retry_on = Some(v1::Conditions { timeout: true, ..Default::default() }));
    let rng = &mut SmallRng::seed_from_u64(1);
    let ended = (Outcome::Timeout, Pushback::None);
    let next = after(&policy, &mut Tries::default(), over, ended, (now, Millis(0)), Ahead::default, rng);
    assert_eq!(next, Next::Stop(Why::Deadline), "a try that had all the time is not followed");
}

#[test]
fn grpc_a6_max_attempts() {
    // Five attempts are four retries.
    let (waits, why) = waits(&policy(|p| p.max_retries = 4), UNAVAILABLE, 1);
    assert_eq!((1 + waits.len(), why), (5, Why::Exhausted));
}

#[test]
fn grpc_a6_back_off() {
    let policy =
        policy(|p| (p.initial_delay_ms, p.max_delay_ms, p.multiplier_milli, p.jitter_ppm) = (100, 1000, 3000, 200_000));
    for seed in 0..500 {
        for (wait, plain) in waits(&policy, UNAVAILABLE, seed).0.into_iter().zip([100.0, 300.0, 900.0, 1000.0, 1000.0])
        {
            assert!(wait >= plain * 0.8 - 1e-6 && wait <= (plain * 1.2_f64).min(1000.0) + 1e-6, "{wait} for {plain}");
        }
    }
}

#[test]
fn grpc_a6_pushback() {
    let said = |value: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-retry-pushback-ms", value.parse().unwrap());
        (UNAVAILABLE, hints::pushback(&headers, true))
    };
    let (policy, mut tries) = (policy(|_| {}), Tries::default());
    let mut next = |ended| decide(&policy, &mut tries, GET, ended, 1);
    let after = |millis| Next::Again { after: Duration::from_millis(millis) };
    assert_eq!(next((UNAVAILABLE, Pushback::None)), after(1000));
    assert_eq!(next((UNAVAILABLE, Pushback::None)), after(2000));
    assert_eq!(next(said("7")), after(7), "shorter than the back-off");
    assert_eq!(next((UNAVAILABLE, Pushback::None)), after(1000), "which begins anew");
    assert_eq!(next(said("30001")), Next::Stop(Why::RetryAfter));
    assert_eq!(next(said("-1")), Next::Stop(Why::RetryAfter));
    assert_eq!(next(said("later")), Next::Stop(Why::RetryAfter));
}

#[test]
fn grpc_a6_retry_throttling() {
    // A burst of failures out of the blue gets no more than the budget either.
    let policy = policy_within(Limits { ratio_ppm: 100_000, min_per_second: 0, window_ms: 10_000 }, |_| {});
    (0..1000).for_each(|_| policy.budget.deposit(0, Millis(0)));
    assert_eq!((0..1000).filter(|_| retried(&policy, UNAVAILABLE)).count(), 100);
}

#[test]
fn grpc_a6_commit() {
    let began = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    assert_eq!(classify::at_head(true, &began), Verdict::Open);
    // Nothing is known to have failed, so nothing is retried; what the trailers say comes too late.
    assert!(!retried(&policy(|_| {}), status(200)));
    let trailers_only = Response::builder().header("grpc-status", "14").body(()).unwrap();
    assert_eq!(classify::at_head(true, &trailers_only), Verdict::Known(UNAVAILABLE));
    assert!(retried(&policy(|_| {}), UNAVAILABLE));
}

#[test]
fn grpc_a6_retryable_status_codes() {
    let code = |code| Outcome::Reply { status: 200, grpc: Some(code) };
    let retries = |policy: &RetrySettings| (0..=16).filter(|number| retried(policy, code(*number))).collect::<Vec<_>>();
    let named = policy(|p| p.retry_on = Some(v1::Conditions { grpc_statuses: vec![14], ..Default::default() }));
    assert_eq!(retries(&named), [14]);
    assert_eq!(retries(&policy(|_| {})), [2, 4, 13, 14, 15]);
}

#[test]
fn grpc_a6_previous_attempts() {
    let mut headers = HeaderMap::new();
    hints::count(&mut headers, 1);
    assert_eq!(headers[hints::ATTEMPT], "1", "the first one is told as well");
    hints::count(&mut headers, 2);
    assert_eq!(headers[hints::ATTEMPT], "2");
}

#[test]
fn grpc_a6_hedging() {
    use super::hedge::tests::raced;
    // The second fails after 110 ms; the third comes when its time has come, at 200 ms.
    assert_eq!(raced(&[(900, true), (10, false), (10, true)], 100, 2), (2, 210, 3, vec![1]));
    // One that fails before any other was made is for the back-off.
    assert_eq!(raced(&[(10, false), (10, true)], 100, 2), (0, 10, 1, vec![]));
}

#[test]
fn gateway_api_gep_1731_codes() {
    let policy = policy(|_| {});
    assert!([500, 502, 503, 504].into_iter().all(|code| retried(&policy, status(code))));
    assert!(![200, 400, 404, 429].into_iter().any(|code| retried(&policy, status(code))));
    let named = self::policy(|p| p.retry_on = Some(v1::Conditions { statuses: vec![409, 502], ..Default::default() }));
    assert!(retried(&named, status(409)) && retried(&named, status(502)) && !retried(&named, status(500)));
}

#[test]
fn gateway_api_gep_1731_attempts() {
    for attempts in [1, 2, 10] {
        assert_eq!(waits(&policy(|p| p.max_retries = attempts), status(500), 1).0.len(), attempts as usize);
    }
    assert_eq!(waits(&policy(|p| p.max_retries = 0), status(500), 1), (vec![], Why::Exhausted));
}

#[test]
fn gateway_api_gep_1731_backoff() {
    let least = |strategy: v1::BackoffStrategy| {
        let policy = policy(|p| p.strategy = strategy.into());
        let all = (0..100).flat_map(|seed| waits(&policy, status(500), seed).0);
        all.fold(f64::MAX, f64::min)
    };
    use v1::BackoffStrategy::{DecorrelatedJitter, Exponential, Fibonacci, Fixed, Linear};
    for strategy in [Fixed, Linear, Exponential, Fibonacci, DecorrelatedJitter] {
        assert!(least(strategy) >= 1000.0, "{strategy:?}");
    }
    let jitter = waits(&policy(|p| p.jitter_ppm = 100_000), status(500), 1).0[0];
    assert!(jitter >= 900.0, "{jitter}");
}

#[test]
fn gateway_api_gep_1731_timeouts() {
    let (start, policy) = (Instant::now(), policy(|_| {}));
    let request = Request { deadline: Some(start + Duration::from_millis(3500)), ..GET };
    let (mut tries, mut now) = (Tries::default(), start);
    let mut next = |took| {
        now += Duration::from_millis(took);
        let rng = &mut SmallRng::seed_from_u64(1);
        let ended = (status(504), Pushback::None);
        let next = after(&policy, &mut tries, request, ended, (now, Millis(0)), Ahead::default, rng);
        if let Next::Again { after } = next {
            now += after;
        }
        next
    };
    assert_eq!(next(200), Next::Again { after: Duration::from_secs(1) });
    assert_eq!(next(200), Next::Again { after: Duration::from_secs(2) });
    assert_eq!(next(200), Next::Stop(Why::Deadline), "3.6 s are over, and each wait and try counted");
}
