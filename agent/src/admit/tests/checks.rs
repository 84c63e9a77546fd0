//! Health checks and the traffic: two kinds of evidence about one circuit.

use std::sync::Arc;

use crate::admit::breaker::{Answer, Breaker, Millis, Moment, Outcome, Reason, Refusal, Settings, State};
use crate::admit::ejections::Ejections;

const SETTINGS: Settings = Settings {
    failure_threshold: 3,
    error_rate_ppm: 1_000_000,
    minimum_requests: 1000,
    window_ms: 10_000,
    timeout_ms: 100,
    multiplier_milli: 1000,
    max_timeout_ms: 100,
    jitter_ppm: 0,
    success_threshold: 1,
    half_open_requests: 1,
    slow_rate_ppm: None,
};
const NOW: Millis = Millis(1000);

fn set(count: usize, share_ppm: u32) -> (Vec<Arc<Breaker>>, Ejections) {
    let breakers: Vec<_> = (0..count).map(|_| Arc::new(Breaker::new(1))).collect();
    let ejections = Ejections::default();
    let members: Vec<_> = breakers.iter().map(|breaker| (Arc::clone(breaker), SETTINGS)).collect();
    assert_eq!(ejections.set_members(&members, share_ppm, NOW), []);
    (breakers, ejections)
}

fn good(breaker: &Breaker, ejections: &Ejections) -> Option<State> {
    breaker.checks_good(&SETTINGS, Reason::ChecksGood, NOW, Some(ejections)).map(|change| change.to)
}

fn fail(breaker: &Breaker, ejections: &Ejections) -> Option<State> {
    let Answer::Admit(ticket) = breaker.ask(&SETTINGS, NOW) else { panic!("it is closed") };
    let moment = Moment { worker: 0, now: NOW, random: 0 };
    let failure = Outcome::Failure { slow: false };
    breaker.record(&SETTINGS, ticket, failure, moment, Some(ejections)).map(|change| change.to)
}

#[test]
fn failed_checks_let_nothing_pass_until_good_ones_do() {
    let (breakers, ejections) = set(2, 500_000);
    let change = breakers[0].checks_failed(3, Some(&ejections)).unwrap();
    assert_eq!((change.from, change.to), (State::Closed, State::Unhealthy { opened: false }));
    assert_eq!(change.reason.to_string(), "health-check: 3 failed in a row");
    assert_eq!(breakers[0].checks_failed(3, Some(&ejections)), None, "that is known");
    let refused = breakers[0].ask(&SETTINGS, NOW.plus(1 << 30));
    assert!(matches!(refused, Answer::Refuse { why: Refusal::Unhealthy, .. }), "{refused:?}");
    assert_eq!(good(&breakers[0], &ejections), Some(State::Closed));
    assert_eq!(good(&breakers[0], &ejections), None);
    assert!(matches!(breakers[0].ask(&SETTINGS, NOW), Answer::Admit(_)));
}

#[test]
fn those_that_checks_take_out_and_those_that_the_traffic_does_are_together_no_more_than_may_be() {
    let (breakers, ejections) = set(4, 500_000);
    assert!(breakers[0].checks_failed(1, Some(&ejections)).is_some());
    (0..3).for_each(|_| _ = fail(&breakers[1], &ejections));
    assert_ne!(breakers[1].state(), State::Closed);
    assert_eq!(breakers[2].checks_failed(1, Some(&ejections)), None);
    assert_eq!(breakers[2].state(), State::Closed);
    assert!(breakers[2].is_kept_in(), "it is asked although it fails, and that is said");
    let Answer::Admit(ticket) = breakers[2].ask(&SETTINGS, NOW) else { panic!("it is asked") };
    assert!(ticket.is_kept_in());
    assert_eq!(good(&breakers[0], &ejections), Some(State::Closed));
    assert!(breakers[2].checks_failed(1, Some(&ejections)).is_some(), "there is room now");
    assert!(!breakers[2].is_kept_in());
}

#[test]
fn of_two_that_fail_one_stays() {
    let (breakers, ejections) = set(2, 500_000);
    assert!(breakers[0].checks_failed(1, Some(&ejections)).is_some());
    assert_eq!(breakers[1].checks_failed(1, Some(&ejections)), None);
}

#[test]
fn what_the_traffic_opened_is_probed_once_checks_are_good() {
    let (breakers, ejections) = set(2, 500_000);
    (0..3).for_each(|_| _ = fail(&breakers[0], &ejections));
    assert!(breakers[0].checks_failed(3, Some(&ejections)).is_some(), "it is out, so it needs no room");
    let later = NOW.plus(1000);
    assert!(
        matches!(breakers[0].ask(&SETTINGS, later), Answer::Refuse { why: Refusal::Unhealthy, .. }),
        "no probe is wasted"
    );
    assert_eq!(good(&breakers[0], &ejections), Some(State::Open { until: NOW }));
    let Answer::Probe(ticket) = breakers[0].ask(&SETTINGS, NOW) else { panic!("probes begin at once") };
    let moment = Moment { worker: 0, now: NOW, random: 0 };
    let success = Outcome::Success { slow: false };
    let change = breakers[0].record(&SETTINGS, ticket, success, moment, Some(&ejections)).unwrap();
    assert_eq!(change.to, State::Closed);
}

#[test]
fn a_probe_under_way_when_checks_fail_counts_for_nothing() {
    let (breakers, ejections) = set(2, 500_000);
    (0..3).for_each(|_| _ = fail(&breakers[0], &ejections));
    let later = NOW.plus(1000);
    let Answer::Probe(ticket) = breakers[0].ask(&SETTINGS, later) else { panic!("it is due") };
    assert!(breakers[0].checks_failed(3, Some(&ejections)).is_some());
    let moment = Moment { worker: 0, now: later, random: 0 };
    assert_eq!(breakers[0].record(&SETTINGS, ticket, Outcome::Success { slow: false }, moment, Some(&ejections)), None);
    assert_eq!(breakers[0].state(), State::Unhealthy { opened: true });
}
