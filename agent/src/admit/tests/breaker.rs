#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use proptest::prelude::*;

use crate::admit::atomic::AtomicU64;
use crate::admit::breaker::*;
use crate::admit::machine::{Circuit, MOST_OPENINGS};

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
    slow_rate_ppm: None,
};

const GOOD: Outcome = Outcome::Success { slow: false };
const BAD: Outcome = Outcome::Failure { slow: false };
const SLOW: Outcome = Outcome::Success { slow: true };

/// A breaker with a clock, and words for what tests do with it.
struct Bench {
    breaker: Breaker,
    settings: Settings,
    now: Millis,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        Self { breaker: Breaker::new(2), settings, now: Millis(1000) }
    }

    fn ask(&self) -> Answer {
        self.breaker.ask(&self.settings, self.now)
    }

    fn ticket(&self) -> Ticket {
        match self.ask() {
            Answer::Admit(ticket) | Answer::Probe(ticket) => ticket,
            Answer::Refuse { until, why } => panic!("refused until {until}: {why}"),
        }
    }

    fn record(&self, ticket: Ticket, outcome: Outcome) -> Option<Transition> {
        let moment = Moment { worker: 0, now: self.now, random: u32::MAX / 2 };
        self.breaker.record(&self.settings, ticket, outcome, moment, None)
    }

    fn send(&self, outcome: Outcome) -> Option<Transition> {
        self.record(self.ticket(), outcome)
    }

    fn open(&mut self) -> Millis {
        let mut transition = None;
        while transition.is_none() {
            transition = self.send(BAD);
        }
        self.until()
    }

    fn until(&self) -> Millis {
        match self.breaker.state() {
            State::Open { until } => until,
            state => panic!("is {state}"),
        }
    }
}

#[test]
fn failures_in_a_row_open_it() {
    let bench = Bench::new(SETTINGS);
    for _ in 0..4 {
        assert_eq!(bench.send(BAD), None);
    }
    let until = Millis(61_000);
    let transition = bench.send(BAD).unwrap();
    assert_eq!(
        transition,
        Transition { from: State::Closed, to: State::Open { until }, reason: Reason::ConsecutiveFailures(5) }
    );
    assert_eq!(transition.reason.to_string(), "5 failures in a row");
    assert_eq!(bench.ask(), Answer::Refuse { until, why: Refusal::Open });
}

#[test]
fn a_success_ends_the_row() {
    let bench = Bench::new(SETTINGS);
    for outcome in [BAD, BAD, BAD, BAD, GOOD] {
        assert_eq!(bench.send(outcome), None);
    }
    for _ in 0..4 {
        assert_eq!(bench.send(BAD), None);
    }
}

#[test]
fn a_success_that_makes_the_requests_enough_opens_it_for_the_failures_before() {
    let bench = Bench::new(Settings { failure_threshold: 100, ..SETTINGS });
    (0..12).for_each(|_| assert_eq!(bench.send(BAD), None));
    (0..7).for_each(|_| assert_eq!(bench.send(GOOD), None));
    let transition = bench.send(GOOD).unwrap();
    assert_eq!(transition.reason, Reason::ErrorRate { failed: 12, total: 20 });
    assert_eq!(transition.reason.to_string(), "12 of 20 requests failed");
}

#[test]
fn failures_that_left_the_window_do_not_count() {
    let mut bench = Bench::new(Settings { failure_threshold: 100, ..SETTINGS });
    (0..19).for_each(|_| assert_eq!(bench.send(BAD), None));
    bench.now = bench.now.plus(10_000);
    (0..30).for_each(|_| assert_eq!(bench.send(GOOD), None));
    assert_eq!(bench.breaker.state(), State::Closed);
}

#[test]
fn slow_replies_open_it_by_their_share_and_are_no_failures_in_a_row() {
    let slow_rate_ppm = Some(800_000);
    let bench = Bench::new(Settings { slow_rate_ppm, failure_threshold: 1, minimum_requests: 10, ..SETTINGS });
    (0..2).for_each(|_| assert_eq!(bench.send(GOOD), None));
    (0..7).for_each(|_| assert_eq!(bench.send(SLOW), None, "fewer than minimumRequests say nothing"));
    let transition = bench.send(SLOW).unwrap();
    assert_eq!(transition.reason, Reason::SlowRate { slow: 8, total: 10 });
    assert_eq!(transition.reason.to_string(), "8 of 10 requests were slow");
}

#[test]
fn slow_replies_below_their_share_open_nothing() {
    let bench = Bench::new(Settings { slow_rate_ppm: Some(800_000), minimum_requests: 1, ..SETTINGS });
    for _ in 0..100 {
        for outcome in [GOOD, SLOW, SLOW, SLOW] {
            assert_eq!(bench.send(outcome), None);
        }
    }
    assert_eq!(bench.breaker.counts(&bench.settings, bench.now), Counts { total: 400, failed: 0, slow: 300 });
}

#[test]
fn a_failure_that_was_slow_counts_for_both() {
    let bench = Bench::new(Settings { slow_rate_ppm: Some(800_000), failure_threshold: 100, ..SETTINGS });
    for _ in 0..19 {
        assert_eq!(bench.send(Outcome::Failure { slow: true }), None);
    }
    assert_eq!(bench.breaker.counts(&bench.settings, bench.now), Counts { total: 19, failed: 19, slow: 19 });
    assert_eq!(bench.send(SLOW).unwrap().reason, Reason::ErrorRate { failed: 19, total: 20 });
}

#[test]
fn a_probe_that_is_slow_opens_it_again() {
    let mut bench = Bench::new(Settings { slow_rate_ppm: Some(1_000_000), ..SETTINGS });
    bench.now = bench.open();
    let transition = bench.send(SLOW).unwrap();
    assert_eq!((transition.reason, transition.reason.to_string().as_str()), (Reason::ProbeSlow, "a probe was slow"));
    assert_eq!(bench.until().since(bench.now), 120_000, "for longer, as after one that failed");
}

#[test]
fn a_probe_goes_when_the_time_is_over_and_two_successes_close_it() {
    let mut bench = Bench::new(SETTINGS);
    bench.now = bench.open();
    let Answer::Probe(probe) = bench.ask() else { panic!("no probe") };
    assert_eq!(
        probe.transition().map(|transition| (transition.from, transition.reason)),
        Some((State::Open { until: bench.now }, Reason::ProbeTime))
    );
    assert_eq!(bench.ask(), Answer::Refuse { until: bench.now, why: Refusal::ProbesTaken });
    assert_eq!(bench.record(probe, GOOD), None);
    assert_eq!(bench.ticket().transition(), None);
    let transition = bench.record(probe, GOOD).unwrap();
    assert_eq!((transition.to, transition.reason), (State::Closed, Reason::ProbesSucceeded));
    assert_eq!(bench.breaker.counts(&bench.settings, bench.now), Counts::default());
    (0..4).for_each(|_| assert_eq!(bench.send(BAD), None));
}

#[test]
fn a_probe_that_fails_reopens_with_a_longer_timeout() {
    let mut bench = Bench::new(SETTINGS);
    bench.now = bench.open();
    for expected in [120_000, 240_000, 480_000, 600_000, 600_000] {
        let transition = bench.send(BAD).unwrap();
        assert_eq!(transition.reason, Reason::ProbeFailed);
        assert_eq!(bench.until().since(bench.now), expected);
        bench.now = bench.until();
    }
    while bench.send(GOOD).is_none() {}
    let until = bench.open();
    assert_eq!(until.since(bench.now), 60_000, "closing it made the back-off start anew");
}

#[test]
fn a_cancelled_probe_gives_its_slot_back_and_counts_for_nothing() {
    let mut bench = Bench::new(SETTINGS);
    bench.now = bench.open();
    for _ in 0..10 {
        assert_eq!(bench.send(Outcome::Cancelled), None);
        assert_eq!(bench.breaker.state(), State::HalfOpen { in_flight: 0, successes: 0 });
    }
}

#[test]
fn a_result_from_an_earlier_life_counts_for_nothing() {
    let mut bench = Bench::new(Settings { half_open_requests: 2, ..SETTINGS });
    let early = bench.ticket();
    bench.now = bench.open();
    let (first, second) = (bench.ticket(), bench.ticket());
    assert_eq!(bench.record(early, BAD), None);
    assert_eq!(bench.breaker.state(), State::HalfOpen { in_flight: 2, successes: 0 });
    bench.record(first, BAD).unwrap();
    bench.now = bench.until();
    let _third = bench.ticket();
    for outcome in [BAD, GOOD, Outcome::Cancelled] {
        assert_eq!(bench.record(second, outcome), None);
        assert_eq!(bench.breaker.state(), State::HalfOpen { in_flight: 1, successes: 0 });
    }
}

/// The breaker in plain words: a list of what happened, and names for everything.
struct Plain {
    settings: Settings,
    life: u32,
    state: State,
    openings: i32,
    row: u32,
    undecided: bool,
    /// Time of each request since it was last closed, and whether it failed and whether it was slow.
    events: Vec<(u64, bool, bool)>,
    closed_at: u64,
    /// How others find it.
    others: Others,
}

fn failed_and_slow(outcome: Outcome) -> (bool, bool) {
    match outcome {
        Outcome::Success { slow } => (false, slow),
        Outcome::Failure { slow } => (true, slow),
        Outcome::Cancelled => (false, false),
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Pass {
    Admit(u32),
    Probe(u32),
    Refuse,
}

impl Plain {
    fn new(settings: Settings) -> Self {
        let (state, events) = (State::Closed, Vec::new());
        let others = Others::default();
        Self { settings, life: 0, state, openings: 0, row: 0, undecided: false, events, closed_at: 0, others }
    }

    fn ask(&mut self, now: u64) -> Pass {
        match self.state {
            State::Closed => Pass::Admit(self.life),
            State::Open { until } if until.0 > now => Pass::Refuse,
            State::Open { .. } => {
                self.state = State::HalfOpen { in_flight: 1, successes: 0 };
                Pass::Probe(self.life)
            }
            State::HalfOpen { in_flight, successes } if u32::from(in_flight) < self.settings.half_open_requests => {
                self.state = State::HalfOpen { in_flight: in_flight + 1, successes };
                Pass::Probe(self.life)
            }
            State::HalfOpen { .. } | State::Unhealthy { .. } => Pass::Refuse,
        }
    }

    /// What is left of a count for a failure: the smallest that is at least its share of those who see it well.
    fn left_of(&self, count: u32) -> u32 {
        let Others { failing, asked } = self.others;
        if failing < 2 {
            return count;
        }
        (1..count).find(|left| left * asked >= count * (asked - failing)).unwrap_or(count)
    }

    /// Whether the window asks to open, after a failure or another request.
    fn bad_window(&mut self, now: u64, failure: bool) -> bool {
        let bucket = |time: u64| (time - self.closed_at) / (self.settings.window_ms / 10);
        let lately: Vec<_> = self.events.iter().filter(|(time, ..)| bucket(*time) + 10 > bucket(now)).collect();
        self.undecided = lately.len() < self.settings.minimum_requests as usize;
        let reached = |part: usize, ppm: u32| part > 0 && part as f64 >= lately.len() as f64 * f64::from(ppm) / 1e6;
        let failed = lately.iter().filter(|(_, failed, _)| *failed).count();
        let slow = lately.iter().filter(|(.., slow)| *slow).count();
        let too_slow = self.settings.slow_rate_ppm.is_some_and(|ppm| reached(slow, ppm));
        let least = if failure { self.left_of(self.settings.minimum_requests) } else { self.settings.minimum_requests };
        let too_many = lately.len() >= least as usize && reached(failed, self.settings.error_rate_ppm);
        too_many || (!self.undecided && too_slow)
    }

    /// `until` is what the breaker under test drew, within the bounds that this model checks.
    fn record(&mut self, pass: Pass, outcome: Outcome, now: u64, until: Option<Millis>) {
        match (self.state, pass) {
            (State::Closed, Pass::Admit(life)) if life == self.life && outcome != Outcome::Cancelled => {
                let (failed, slow) = failed_and_slow(outcome);
                self.events.push((now, failed, slow));
                self.row = if failed { self.row + 1 } else { 0 };
                let bad = (failed || slow || self.undecided) && self.bad_window(now, failed);
                if bad || self.row >= self.left_of(self.settings.failure_threshold) {
                    self.open(0, now, until);
                }
            }
            (State::HalfOpen { in_flight, mut successes }, Pass::Probe(life)) if life == self.life => {
                successes += u8::from(outcome == GOOD);
                let (failed, slow) = failed_and_slow(outcome);
                if failed || slow {
                    self.open(self.openings + 1, now, until);
                } else if u32::from(successes) >= self.settings.success_threshold {
                    let others = self.others;
                    *self = Self { life: self.life + 1, closed_at: now, others, ..Self::new(self.settings) };
                } else {
                    self.state = State::HalfOpen { in_flight: in_flight - 1, successes };
                }
            }
            _ => {}
        }
    }

    fn open(&mut self, openings: i32, now: u64, until: Option<Millis>) {
        let until = until.expect("the model opens and the breaker does not");
        let longest = self.settings.max_timeout_ms as f64;
        let multiplier = f64::from(self.settings.multiplier_milli) / 1000.0;
        let middle = (self.settings.timeout_ms as f64 * multiplier.powi(openings)).min(longest);
        let jitter = middle * f64::from(self.settings.jitter_ppm) / 1e6;
        let drawn = until.since(Millis(now)) as f64;
        assert!(drawn >= (middle - jitter).floor() && drawn <= (middle + jitter).min(longest).ceil(), "{drawn} ms");
        (self.state, self.openings, self.life) = (State::Open { until }, openings, self.life + 1);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Others(Others),
    Ask,
    Record { which: prop::sample::Index, outcome: Outcome, worker: usize, random: u32 },
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![
        4 => Just(GOOD),
        4 => Just(BAD),
        2 => Just(SLOW),
        1 => Just(Outcome::Failure { slow: true }),
        1 => Just(Outcome::Cancelled),
    ];
    let record = (any::<prop::sample::Index>(), outcome, 0..2usize, any::<u32>());
    prop_oneof![
        1 => prop_oneof![0..50u64, 0..5000u64].prop_map(Step::Wait),
        1 => others().prop_map(Step::Others),
        4 => Just(Step::Ask),
        4 => record.prop_map(|(which, outcome, worker, random)| Step::Record { which, outcome, worker, random }),
    ]
}

prop_compose! {
    fn others()(asked in 0..20u32)(failing in 0..=asked, asked in Just(asked)) -> Others {
        Others { failing, asked }
    }
}

prop_compose! {
    fn settings()(
        failure_threshold in 1..12u32,
        error_rate_ppm in 0..=1_000_000u32,
        minimum_requests in 1..15u32,
        window_ms in prop_oneof![Just(1000u64), Just(10_000)],
        timeout_ms in 1..3000u64,
        multiplier_milli in 1000..4000u32,
        max_timeout_ms in 3000..6000u64,
        jitter_ppm in prop_oneof![Just(0u32), 0..=1_000_000u32],
        success_threshold in 1..5u32,
        half_open_requests in 1..4u32,
        slow_rate_ppm in prop_oneof![Just(None), (0..=1_000_000u32).prop_map(Some)],
    ) -> Settings {
        Settings {
            failure_threshold, error_rate_ppm, minimum_requests, window_ms, timeout_ms, multiplier_milli,
            max_timeout_ms, jitter_ppm, success_threshold, half_open_requests, slow_rate_ppm,
        }
    }
}

fn pass(answer: Answer, life: u32) -> Pass {
    match answer {
        Answer::Admit(_) => Pass::Admit(life),
        Answer::Probe(_) => Pass::Probe(life),
        Answer::Refuse { .. } => Pass::Refuse,
    }
}

proptest! {
    #[test]
    fn the_breaker_does_what_a_plain_model_does(
        settings in settings(), steps in prop::collection::vec(step(), 1..300),
    ) {
        let (breaker, mut plain, mut now) = (Breaker::new(2), Plain::new(settings), 0u64);
        let mut under_way: Vec<(Ticket, Pass)> = Vec::new();
        for step in steps {
            match step {
                Step::Wait(milliseconds) => now += milliseconds,
                Step::Others(others) => {
                    breaker.set_others(others);
                    plain.others = others;
                }
                Step::Ask => {
                    let answer = breaker.ask(&settings, Millis(now));
                    let expected = plain.ask(now);
                    prop_assert_eq!(pass(answer, plain.life), expected);
                    if let Answer::Admit(ticket) | Answer::Probe(ticket) = answer {
                        under_way.push((ticket, expected));
                    }
                }
                Step::Record { which, outcome, worker, random } if !under_way.is_empty() => {
                    let (ticket, pass) = under_way.swap_remove(which.index(under_way.len()));
                    let before = breaker.state();
                    // What is slow is told only where it counts.
                    let outcome = match outcome {
                        Outcome::Success { .. } if settings.slow_rate_ppm.is_none() => GOOD,
                        Outcome::Failure { .. } if settings.slow_rate_ppm.is_none() => BAD,
                        outcome => outcome,
                    };
                    let moment = Moment { worker, now: Millis(now), random };
                    let transition = breaker.record(&settings, ticket, outcome, moment, None);
                    let opened = transition.and_then(|transition| match transition.to {
                        State::Open { until } => Some(until),
                        _ => None,
                    });
                    plain.record(pass, outcome, now, opened);
                    prop_assert!(transition.is_none_or(|it| it.from == before && it.to == breaker.state()));
                }
                Step::Record { .. } => {}
            }
            prop_assert_eq!(breaker.state(), plain.state);
        }
    }

    #[test]
    fn no_circuit_opens_without_a_failure_of_its_own(
        settings in settings(), all in prop::collection::vec((others(), any::<bool>()), 1..100),
    ) {
        let bench = Bench::new(Settings { slow_rate_ppm: None, ..settings });
        for (others, cancelled) in all {
            bench.breaker.set_others(others);
            prop_assert_eq!(bench.send(if cancelled { Outcome::Cancelled } else { GOOD }), None);
        }
    }

    #[test]
    fn what_others_see_never_makes_it_open_later(
        settings in settings(), others in others(), outcomes in prop::collection::vec(prop_oneof![Just(GOOD), Just(BAD)], 1..60),
    ) {
        let (alone, beside) = (Bench::new(settings), Bench::new(settings));
        beside.breaker.set_others(others);
        for outcome in outcomes {
            let alone = alone.send(outcome);
            if beside.send(outcome).is_some() {
                return Ok(());
            }
            prop_assert_eq!(alone, None);
        }
    }

    #[test]
    fn no_more_probes_than_allowed_pass(settings in settings(), asks in 1..20u32) {
        let mut bench = Bench::new(Settings { success_threshold: 100, ..settings });
        bench.now = bench.open();
        let probes = (0..asks).filter(|_| matches!(bench.ask(), Answer::Probe(_))).count();
        prop_assert_eq!(probes as u32, asks.min(settings.half_open_requests));
    }

    #[test]
    fn every_circuit_survives_its_packing(
        openings in 0..=MOST_OPENINGS, generation in 0..1u16 << 12, until in 0..1u64 << 44,
        in_flight in 0..=100u8, successes in 0..=100u8, opened: bool,
    ) {
        let until = Millis(until);
        let half_open = State::HalfOpen { in_flight, successes };
        for state in [State::Closed, State::Open { until }, half_open, State::Unhealthy { opened }] {
            let circuit = Circuit { state, openings, generation };
            prop_assert_eq!(Circuit::unpack(circuit.pack()), circuit);
        }
    }
}

#[test]
fn a_place_that_is_given_on_is_the_next_probes_and_the_result_still_counts() {
    let settings = Settings { half_open_requests: 1, success_threshold: 2, ..SETTINGS };
    let mut bench = Bench::new(settings);
    bench.now = bench.open();
    let slow = bench.ticket();
    assert!(matches!(bench.ask(), Answer::Refuse { .. }));
    bench.breaker.give_place_on(slow);
    let slow = slow.without_place();
    bench.breaker.give_place_on(slow);
    let next = bench.ticket();
    assert!(next.is_probe() && matches!(bench.ask(), Answer::Refuse { .. }), "one place, and it is taken again");
    assert_eq!(bench.record(slow, GOOD), None);
    assert_eq!(bench.breaker.state(), State::HalfOpen { in_flight: 1, successes: 1 }, "the place is the other one's");
    assert_eq!(bench.record(next, GOOD).map(|t| t.to), Some(State::Closed));
    // And of one from before the change nothing is given on.
    bench.now = bench.open();
    let probe = bench.ticket();
    bench.breaker.give_place_on(next);
    assert_eq!(bench.breaker.state(), State::HalfOpen { in_flight: 1, successes: 0 });
    bench.breaker.give_place_on(probe);
    assert!(matches!(bench.record(probe.without_place(), BAD).map(|t| t.to), Some(State::Open { .. })));
}

#[test]
fn four_threads_never_have_more_probes_than_allowed() {
    let settings =
        Settings { timeout_ms: 1, max_timeout_ms: 1, half_open_requests: 3, success_threshold: 5, ..SETTINGS };
    let breaker = Breaker::new(4);
    let clock = AtomicU64::new(0);
    let under_way: Vec<AtomicU32> = (0..1 << 12).map(|_| AtomicU32::new(0)).collect();
    let opened = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let (breaker, clock, under_way, opened) = (&breaker, &clock, &under_way, &opened);
            scope.spawn(move || {
                for round in 0..50_000u32 {
                    let now = Millis(clock.fetch_add(u64::from(round % 64 == 0), SeqCst));
                    let (Answer::Admit(ticket) | Answer::Probe(ticket)) = breaker.ask(&settings, now) else { continue };
                    let probes = &under_way[usize::from(ticket.generation)];
                    if ticket.is_probe() {
                        assert!(probes.fetch_add(1, SeqCst) < 3);
                        std::thread::yield_now();
                        probes.fetch_sub(1, SeqCst);
                    }
                    let outcome = match round % 11 {
                        0 => Outcome::Cancelled,
                        1..7 => BAD,
                        _ => GOOD,
                    };
                    let moment = Moment { worker, now, random: round };
                    let change = breaker.record(&settings, ticket, outcome, moment, None);
                    opened.fetch_add(u32::from(change.is_some()), SeqCst);
                }
            });
        }
    });
    assert!(opened.load(SeqCst) > 10, "the test saw the breaker change");
}

#[test]
fn a_shorter_timeout_holds_for_a_circuit_that_is_open_already_and_a_longer_one_does_not() {
    let mut bench = Bench::new(SETTINGS);
    let until = bench.open();
    bench.breaker.shorten(&Settings { timeout_ms: 90_000, ..SETTINGS }, bench.now);
    assert_eq!(bench.until(), until);
    bench.now = Millis(bench.now.0 + 10_000);
    bench.breaker.shorten(&Settings { timeout_ms: 5_000, ..SETTINGS }, bench.now);
    assert_eq!(bench.until(), bench.now.plus(5_000));
    bench.now = bench.until();
    assert!(matches!(bench.ask(), Answer::Probe(_)));
}
