//! What other nodes see of an instance, and what a circuit makes of it.

#![allow(clippy::unwrap_used)]

use crate::admit::breaker::*;

const SETTINGS: Settings = Settings {
    failure_threshold: 5,
    error_rate_ppm: 500_000,
    minimum_requests: 20,
    window_ms: 10_000,
    timeout_ms: 60_000,
    multiplier_milli: 2000,
    max_timeout_ms: 600_000,
    jitter_ppm: 0,
    success_threshold: 2,
    half_open_requests: 1,
    slow_rate_ppm: Some(500_000),
};
const GOOD: Outcome = Outcome::Success { slow: false };
const BAD: Outcome = Outcome::Failure { slow: false };

/// One about which so many of so many others say that it fails.
fn beside(failing: u32, asked: u32) -> Breaker {
    let breaker = Breaker::new(1);
    breaker.set_others(Others { failing, asked });
    breaker
}

fn send(breaker: &Breaker, outcome: Outcome) -> Option<Transition> {
    let (Answer::Admit(ticket) | Answer::Probe(ticket)) = breaker.ask(&SETTINGS, Millis(0)) else { return None };
    breaker.record(&SETTINGS, ticket, outcome, Moment { worker: 0, now: Millis(0), random: 0 }, None)
}

/// Failures in a row until it opens.
fn failures_needed(breaker: &Breaker) -> u32 {
    (1..100).find(|_| send(breaker, BAD).is_some()).unwrap()
}

#[test]
fn the_more_others_see_it_fail_the_fewer_failures_of_its_own_it_takes_but_at_least_one() {
    let needed = |failing, asked| failures_needed(&beside(failing, asked));
    // 5 x (1 - share), rounded up.
    assert_eq!([needed(2, 10), needed(3, 10), needed(5, 10), needed(9, 10), needed(10, 10)], [4, 4, 3, 1, 1]);
    assert_eq!([needed(2, 2), needed(4, 5), needed(u32::MAX, u32::MAX)], [1, 1, 1]);
}

#[test]
fn what_one_other_sees_changes_nothing() {
    for (failing, asked) in [(0, 0), (0, 10), (1, 1), (1, 2), (1, 10)] {
        assert_eq!(failures_needed(&beside(failing, asked)), 5, "{failing} of {asked}");
    }
}

#[test]
fn the_share_is_judged_from_fewer_requests_on_and_stays_what_it_is() {
    let breaker = beside(8, 10);
    // 20 x (1 - 8/10) are 4, and a row of 5 would be 1: so there is none here.
    let settings = Settings { failure_threshold: 1000, ..SETTINGS };
    let send = |outcome| {
        let Answer::Admit(ticket) = breaker.ask(&settings, Millis(0)) else { return None };
        breaker.record(&settings, ticket, outcome, Moment { worker: 0, now: Millis(0), random: 0 }, None)
    };
    assert_eq!([send(GOOD), send(GOOD), send(BAD)], [None; 3], "three say too little");
    let opened = send(BAD).unwrap();
    assert_eq!(
        opened.reason.to_string(),
        "2 of 4 requests failed (of 20 that it takes; 8 of 10 other nodes see it fail)"
    );
}

#[test]
fn slow_replies_are_none_of_what_others_see() {
    let breaker = beside(9, 10);
    assert_eq!(send(&breaker, GOOD), None);
    assert_eq!(send(&breaker, GOOD), None);
    let settings = Settings { failure_threshold: 1000, error_rate_ppm: 1_000_000, ..SETTINGS };
    for _ in 0..5 {
        let Answer::Admit(ticket) = breaker.ask(&settings, Millis(0)) else { unreachable!() };
        let slow = Outcome::Failure { slow: true };
        let moment = Moment { worker: 0, now: Millis(0), random: 0 };
        assert_eq!(breaker.record(&settings, ticket, slow, moment, None), None, "5 of 7 are slow, of 20 that it takes");
    }
}

#[test]
fn the_reason_says_what_others_had_to_do_with_it() {
    let breaker = beside(3, 5);
    assert_eq!(send(&breaker, BAD), None);
    let opened = send(&breaker, BAD).unwrap();
    assert_eq!(opened.reason.to_string(), "2 failures in a row (of 5; 3 of 5 other nodes see it fail)");
    let breaker = beside(4, 4);
    assert_eq!(send(&breaker, BAD).unwrap().reason.to_string(), "1 failure (of 5; 4 of 4 other nodes see it fail)");
    // What would have opened it anyhow is no other's.
    let breaker = beside(0, 5);
    (0..4).for_each(|_| assert_eq!(send(&breaker, BAD), None));
    breaker.set_others(Others { failing: 4, asked: 5 });
    assert_eq!(send(&breaker, BAD).unwrap().reason, Reason::ConsecutiveFailures(5));
}

#[test]
fn evidence_that_comes_opens_nothing_until_the_next_failure() {
    let breaker = beside(0, 0);
    (0..3).for_each(|_| assert_eq!(send(&breaker, BAD), None));
    breaker.set_others(Others { failing: 4, asked: 4 });
    assert_eq!(breaker.state(), State::Closed);
    assert_eq!(send(&breaker, GOOD), None);
    assert!(send(&breaker, BAD).is_some());
}

#[test]
fn a_probe_is_judged_by_itself() {
    let breaker = beside(4, 4);
    let opened = send(&breaker, BAD).unwrap();
    let State::Open { until } = opened.to else { unreachable!() };
    for _ in 0..2 {
        let Answer::Probe(ticket) = breaker.ask(&SETTINGS, until) else { unreachable!() };
        let moment = Moment { worker: 0, now: until, random: 0 };
        breaker.record(&SETTINGS, ticket, GOOD, moment, None);
    }
    assert_eq!(breaker.state(), State::Closed, "though all others still see it fail");
}

#[test]
fn most_of_the_last_failures_say_whether_it_was_reached() {
    let breaker = Breaker::new(1);
    assert_eq!(breaker.lately(), Lately::default());
    let note = |all: &[bool]| {
        all.iter().for_each(|unreached| breaker.note_failure(*unreached));
        breaker.lately().is_unreached()
    };
    assert!(note(&[true]));
    assert!(!note(&[false]), "one of two");
    assert!(note(&[true]), "two of three");
    assert!(note(&[true; 20]));
    assert!(!note(&[false; 4]), "of the last eight four");
    assert!(note(&[true; 5]));
    breaker.forget_lately();
    assert_eq!(breaker.lately().failures, 0);
}
