#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use proptest::prelude::*;

use crate::admit::breaker::{Answer, Breaker, Millis, Moment, Outcome, Reason, Settings, State, Ticket, Transition};
use crate::admit::ejections::{Ejections, most};

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
const GOOD: Outcome = Outcome::Success { slow: false };
const BAD: Outcome = Outcome::Failure { slow: false };

/// Instances whose circuits are one set.
struct Instances {
    breakers: Vec<Arc<Breaker>>,
    ejections: Ejections,
    now: Millis,
}

impl Instances {
    fn new(count: usize, share_ppm: u32) -> Self {
        let breakers = (0..count).map(|_| Arc::new(Breaker::new(4))).collect();
        let instances = Self { breakers, ejections: Ejections::default(), now: Millis(1000) };
        assert_eq!(instances.are(count, share_ppm), []);
        instances
    }

    /// The first so many are in the set, from now on.
    fn are(&self, count: usize, share_ppm: u32) -> Vec<(usize, Transition)> {
        let members: Vec<_> = self.breakers[..count].iter().map(|breaker| (Arc::clone(breaker), SETTINGS)).collect();
        self.ejections.set_members(&members, share_ppm, self.now)
    }

    fn ask(&self, at: usize) -> Option<Ticket> {
        match self.breakers[at].ask(&SETTINGS, self.now) {
            Answer::Admit(ticket) | Answer::Probe(ticket) => Some(ticket),
            Answer::Refuse { .. } => None,
        }
    }

    fn send(&self, at: usize, outcome: Outcome) -> Option<Transition> {
        let moment = Moment { worker: 0, now: self.now, random: 0 };
        self.breakers[at].record(&SETTINGS, self.ask(at)?, outcome, moment, Some(&self.ejections))
    }

    /// Whether it is out after so many failures in a row.
    fn fails(&self, at: usize) -> bool {
        (0..5).for_each(|_| _ = self.send(at, BAD));
        self.breakers[at].state() != State::Closed
    }

    fn out(&self) -> usize {
        self.breakers.iter().filter(|breaker| breaker.state() != State::Closed).count()
    }
}

#[test]
fn of_several_one_may_be_out_and_one_never_is() {
    let half = 500_000;
    let shares = [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (10, 5)];
    shares.into_iter().for_each(|(members, expected)| assert_eq!(most(members, half), expected, "{members}"));
    assert_eq!((most(3, 100_000), most(2, 999_999), most(10, 999_999)), (1, 1, 9), "at least one, and not all");
    assert_eq!((most(4, 0), most(1, 0), most(0, half)), (0, 0, 0), "0% takes nobody out");
    assert_eq!((most(4, 1_000_000), most(2, 1_000_000)), (4, 2), "100% may take all out");
}

#[test]
fn who_may_not_be_out_goes_on_counts_and_goes_out_when_there_is_room() {
    let mut set = Instances::new(2, 500_000);
    assert!(set.fails(0) && !set.fails(1));
    assert!(set.breakers[1].is_kept_in() && set.ask(1).unwrap().is_kept_in());
    // The first is well again, so there is room, and the next failure finds it.
    set.now = set.now.plus(100);
    assert_eq!(set.send(0, GOOD).unwrap().to, State::Closed);
    let transition = set.send(1, BAD).unwrap();
    assert_eq!(transition.reason, Reason::ConsecutiveFailures(6));
    assert!(!set.breakers[1].is_kept_in(), "it is out");
}

#[test]
fn while_all_that_are_in_fail_those_that_are_out_are_asked_early() {
    let mut set = Instances::new(4, 500_000);
    assert!(set.fails(0) && set.fails(1) && !set.fails(2));
    assert!(set.ask(0).is_none() && set.ask(1).is_none(), "one of those that are in is well");
    assert!(!set.fails(3));
    set.now = set.now.plus(1);
    set.send(3, BAD);
    assert!(set.ask(0).is_none() && set.ask(1).is_none(), "it was looked for a moment ago");
    // No circuit's own time is over before that.
    let long = Settings { timeout_ms: 60_000, max_timeout_ms: 60_000, ..SETTINGS };
    let moment = |set: &Instances| Moment { worker: 0, now: set.now, random: 0 };
    for at in [0, 1] {
        set.now = set.now.plus(100);
        let ticket = set.ask(at).unwrap();
        set.breakers[at].record(&long, ticket, BAD, moment(&set), Some(&set.ejections));
    }
    let openings = set.breakers[0].openings();
    for wait in [1000, 1000, 2000, 4000] {
        set.now = set.now.plus(wait);
        set.send(2, BAD);
        let due: Vec<usize> = [0, 1]
            .into_iter()
            .filter(|at| matches!(set.breakers[*at].state(), State::Open { until } if until <= set.now))
            .collect();
        assert_eq!(due.len(), 1, "after {wait} ms");
        let ticket = set.ask(due[0]).unwrap();
        set.breakers[due[0]].record(&long, ticket, BAD, moment(&set), Some(&set.ejections));
        assert!(set.ask(0).is_none() && set.ask(1).is_none());
    }
    assert_eq!(set.breakers[0].openings(), openings, "that was no proof that it needs longer");
    set.now = set.now.plus(8000);
    set.send(2, BAD);
    let (well, ticket) = [0, 1].into_iter().find_map(|at| Some((at, set.ask(at)?))).unwrap();
    let transition = set.breakers[well].record(&long, ticket, GOOD, moment(&set), Some(&set.ejections));
    assert_eq!(transition.unwrap().to, State::Closed);
    assert!(matches!(set.send(2, BAD).unwrap().to, State::Open { .. }), "and there is room for one that fails");
}

#[test]
fn who_is_kept_in_and_answers_well_is_one_like_others() {
    let set = Instances::new(2, 500_000);
    assert!(set.fails(0) && !set.fails(1));
    assert_eq!(set.send(1, GOOD), None);
    assert!(!set.breakers[1].is_kept_in() && !set.ask(1).unwrap().is_kept_in());
}

#[test]
fn a_set_that_shrinks_brings_in_who_is_out_too_many() {
    let mut set = Instances::new(4, 500_000);
    assert!(set.fails(1));
    set.now = set.now.plus(10);
    assert!(set.fails(0) && !set.fails(2), "two of four");
    assert_eq!(set.ejections.count(), (2, 2));
    let brought_in = set.are(2, 500_000);
    let [(1, transition)] = brought_in[..] else { panic!("{brought_in:?}: who would be probed first comes in") };
    assert_eq!((transition.to, transition.reason), (State::Closed, Reason::TooManyOut));
    assert_eq!(set.ejections.count(), (1, 1));
    assert!(!set.fails(1), "and is not taken out anew");
    assert_eq!(set.are(2, 0).len(), 1, "nor is anybody where the policy lets nobody be out");
}

proptest! {
    #[test]
    fn however_many_fail_no_more_are_out_than_may_be(
        count in 1..8usize,
        share_ppm in prop_oneof![Just(500_000u32), 0..=1_000_000u32],
        steps in prop::collection::vec((0..8usize, any::<bool>(), 0..60u64), 1..300),
    ) {
        let mut set = Instances::new(count, share_ppm);
        for (at, good, wait) in steps {
            set.now = set.now.plus(wait);
            set.send(at % count, if good { GOOD } else { BAD });
            prop_assert!(set.out() <= most(count, share_ppm));
        }
    }
}

#[test]
fn threads_never_take_out_more_than_may_be() {
    let set = Instances::new(6, 500_000);
    let clock = AtomicU64::new(1000);
    let opened = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for worker in 0..4usize {
            let (set, clock, opened) = (&set, &clock, &opened);
            scope.spawn(move || {
                for round in 0..40_000usize {
                    let now = Millis(clock.fetch_add(u64::from(round % 16 == 0), SeqCst));
                    let breaker = &set.breakers[(round + worker) % 6];
                    let (Answer::Admit(ticket) | Answer::Probe(ticket)) = breaker.ask(&SETTINGS, now) else { continue };
                    let outcome = if round % 7 == 0 { GOOD } else { BAD };
                    let moment = Moment { worker, now, random: 0 };
                    let change = breaker.record(&SETTINGS, ticket, outcome, moment, Some(&set.ejections));
                    if change.is_some_and(|change| change.from == State::Closed) {
                        opened.fetch_add(1, SeqCst);
                        // Counted under the set's lock, where nobody opens meanwhile.
                        let (out, most) = set.ejections.count();
                        assert!(out <= most, "{out} of {most}");
                    }
                }
            });
        }
    });
    assert!(opened.load(SeqCst) > 3, "the test saw circuits open");
}
