//! The breaker and the set that it is one of, checked in every order in which threads can come and memory can become visible to them
//! (loom). The very files of the agent are compiled here, with loom's atomics and lock in the place of the standard ones; only the sliding
//! window, whose words have one writer each, is stood in for by a plain count.
//!
//! `cargo test -p switchyard-agent --test model`; a part of a model's name picks it.

#![allow(missing_docs, dead_code, unused_imports, unreachable_pub, clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;

use loom::model::Builder;
use loom::thread;

/// What the breaker takes from `admit`.
mod atomic {
    pub use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
    pub use loom::sync::{Mutex, MutexGuard};
}

/// A window that forgets nothing.
mod window {
    use super::atomic::{AtomicU64, Ordering::Relaxed};

    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct Millis(pub u64);

    impl Millis {
        pub fn plus(self, milliseconds: u64) -> Self {
            Self(self.0 + milliseconds)
        }
    }

    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Counts {
        pub total: u64,
        pub failed: u64,
        pub slow: u64,
    }

    #[derive(Debug)]
    pub struct Window(AtomicU64);

    impl Window {
        pub fn new(_: usize) -> Self {
            Self(AtomicU64::new(0))
        }

        pub fn record(&self, _: usize, _: Millis, _: u64, failed: bool, _: bool) {
            self.0.fetch_add(1 << 32 | u64::from(failed), Relaxed);
        }

        pub fn counts(&self, _: Millis, _: u64) -> Counts {
            let word = self.0.load(Relaxed);
            Counts { total: word >> 32, failed: word & u64::from(u32::MAX), slow: 0 }
        }

        pub fn reset(&self, _: Millis, _: u64) {
            self.0.store(0, Relaxed);
        }
    }
}

#[path = "../src/admit/breaker.rs"]
mod breaker;
#[path = "../src/admit/ejections.rs"]
mod ejections;
#[path = "../src/admit/machine.rs"]
mod machine;

use breaker::{Answer, Breaker, Moment, Outcome, Reason, Settings, State, Ticket, Transition};
use ejections::Ejections;
use window::Millis;

const SETTINGS: Settings = Settings {
    failure_threshold: 2,
    error_rate_ppm: 1_000_000,
    minimum_requests: 100,
    window_ms: 10_000,
    timeout_ms: 10,
    multiplier_milli: 1000,
    max_timeout_ms: 10,
    jitter_ppm: 0,
    success_threshold: 1,
    half_open_requests: 1,
    slow_rate_ppm: None,
};
const GOOD: Outcome = Outcome::Success { slow: false };
const BAD: Outcome = Outcome::Failure { slow: false };
/// When a circuit that opened at 0 lets probes through.
const LATER: Millis = Millis(10);

/// A circuit, alone or as one of a set.
#[derive(Clone)]
struct Circuit {
    breaker: Arc<Breaker>,
    set: Option<Arc<Ejections>>,
}

impl Circuit {
    fn alone() -> Self {
        Self { breaker: Arc::new(Breaker::new(2)), set: None }
    }

    /// So many circuits, of which half may be out.
    fn set_of(count: usize) -> Vec<Self> {
        let set = Arc::new(Ejections::default());
        let circuits: Vec<Self> = (0..count).map(|_| Self { set: Some(Arc::clone(&set)), ..Self::alone() }).collect();
        let members: Vec<_> = circuits.iter().map(|circuit| (Arc::clone(&circuit.breaker), SETTINGS)).collect();
        assert!(set.set_members(&members, 500_000, Millis(0)).is_empty());
        circuits
    }

    fn ask(&self, now: Millis) -> Option<Ticket> {
        match self.breaker.ask(&SETTINGS, now) {
            Answer::Admit(ticket) | Answer::Probe(ticket) => Some(ticket),
            Answer::Refuse { .. } => None,
        }
    }

    fn record(&self, ticket: Ticket, outcome: Outcome, now: Millis) -> Option<Transition> {
        self.breaker.record(&SETTINGS, ticket, outcome, Moment { worker: 0, now, random: 0 }, self.set.as_deref())
    }

    fn send(&self, outcome: Outcome, now: Millis) -> Option<Transition> {
        self.record(self.ask(now)?, outcome, now)
    }

    /// Fails so often, at the time 0.
    fn fail(&self, times: usize) {
        (0..times).for_each(|_| _ = self.send(BAD, Millis(0)));
    }

    fn is_out(&self) -> bool {
        self.breaker.state() != State::Closed
    }
}

/// Two at once: what each of them made of it.
fn both<T: 'static>(one: impl FnOnce() -> T + 'static, other: impl FnOnce() -> T + 'static) -> [T; 2] {
    let other = thread::spawn(other);
    let one = one();
    [one, other.join().unwrap()]
}

fn of(circuit: &Circuit) -> Circuit {
    circuit.clone()
}

/// The failure that makes them enough opens it, and of those that come at once only one is told so.
fn it_opens_once() {
    let circuit = Circuit::alone();
    circuit.fail(1);
    let [one, other] = [of(&circuit), of(&circuit)].map(|circuit| move || circuit.send(BAD, Millis(0)));
    let changes = both(one, other);
    assert_eq!(changes.iter().flatten().count(), 1, "{changes:?}");
    assert!(circuit.is_out());
}

/// Of those that come when the time is over, one is let through; and when it is done another one can be.
fn one_probe_passes() {
    let circuit = Circuit::alone();
    circuit.fail(2);
    let [one, other] = [of(&circuit), of(&circuit)].map(|circuit| move || circuit.ask(LATER));
    let tickets: Vec<Ticket> = both(one, other).into_iter().flatten().collect();
    let [probe] = tickets[..] else { panic!("{tickets:?}") };
    assert!(probe.transition().is_some(), "who makes it half-open is told");
    assert_eq!(circuit.record(probe, Outcome::Cancelled, LATER), None);
    assert!(circuit.ask(LATER).is_some(), "what is given back can be taken");
}

/// A probe that is given up while others ask leaves room for one, never none and never two.
fn a_probe_that_is_given_up_leaves_room_for_one() {
    let circuit = Circuit::alone();
    circuit.fail(2);
    let probe = circuit.ask(LATER).unwrap();
    let (gives_up, asks) = (of(&circuit), of(&circuit));
    let asked = both(
        move || {
            gives_up.record(probe, Outcome::Cancelled, LATER);
            None
        },
        move || asks.ask(LATER),
    );
    let more = circuit.ask(LATER);
    let under_way = asked.iter().flatten().chain(&more).count();
    assert_eq!(under_way, 1, "{asked:?} {more:?}");
}

/// Two probes whose results come at once: the circuit is where one of them put it, and the other changes nothing.
fn two_results_make_one_change() {
    for (first, second) in [(GOOD, BAD), (BAD, BAD), (GOOD, GOOD)] {
        let two = Settings { half_open_requests: 2, ..SETTINGS };
        let circuit = Circuit::alone();
        circuit.fail(2);
        let ask = |circuit: &Circuit| match circuit.breaker.ask(&two, LATER) {
            Answer::Probe(ticket) => ticket,
            answer => panic!("{answer:?}"),
        };
        let tickets = [ask(&circuit), ask(&circuit)];
        let (one, other) = (of(&circuit), of(&circuit));
        let changes =
            both(move || one.record(tickets[0], first, LATER), move || other.record(tickets[1], second, LATER));
        let made: Vec<_> = changes.iter().flatten().collect();
        assert_eq!(made.len(), 1, "{changes:?}");
        assert_eq!(circuit.breaker.state(), made[0].to);
    }
}

/// What was sent before it opened and comes back after it closed counts for nothing.
fn what_comes_late_counts_for_nothing() {
    let circuit = Circuit::alone();
    let late = circuit.ask(Millis(0)).unwrap();
    circuit.fail(2);
    let probe = circuit.ask(LATER).unwrap();
    let (probes, comes_late) = (of(&circuit), of(&circuit));
    both(move || probes.record(probe, GOOD, LATER), move || comes_late.record(late, BAD, LATER));
    assert!(!circuit.is_out());
    assert_eq!(circuit.send(BAD, LATER), None, "one failure since it closed, of two that it takes");
}

/// Two of two fail at once: one of them goes out, and the other is kept in.
fn one_of_two_goes_out() {
    let circuits = Circuit::set_of(2);
    circuits.iter().for_each(|circuit| circuit.fail(1));
    let [one, other] = [of(&circuits[0]), of(&circuits[1])].map(|circuit| move || circuit.send(BAD, Millis(0)));
    let changes = both(one, other);
    assert_eq!(changes.iter().flatten().count(), 1, "{changes:?}");
    assert_eq!(circuits.iter().filter(|circuit| circuit.is_out()).count(), 1);
    assert_eq!(circuits.iter().filter(|circuit| circuit.breaker.is_kept_in()).count(), 1);
}

/// One comes back while the other fails: whatever they see of one another, the next failure finds the room.
fn room_is_never_forgotten() {
    let circuits = Circuit::set_of(2);
    circuits[0].fail(2);
    circuits[1].fail(1);
    let probe = circuits[0].ask(LATER).unwrap();
    let (well, fails) = (of(&circuits[0]), of(&circuits[1]));
    both(move || well.record(probe, GOOD, LATER), move || fails.send(BAD, LATER));
    assert!(!circuits[0].is_out());
    circuits[1].send(BAD, LATER);
    assert!(circuits[1].is_out(), "there was room");
}

/// Checks fail while the failure comes that opens it: it is out for both, and comes back when good checks and then a probe say so.
fn checks_and_the_traffic_take_out_together() {
    let circuit = Circuit::alone();
    circuit.fail(1);
    let (checked, fails) = (of(&circuit), of(&circuit));
    both(move || checked.breaker.checks_failed(3, None), move || fails.send(BAD, Millis(0)));
    let State::Unhealthy { opened } = circuit.breaker.state() else { panic!("{:?}", circuit.breaker.state()) };
    assert!(circuit.ask(LATER).is_none(), "checks fail");
    circuit.breaker.checks_good(&SETTINGS, Reason::ChecksGood, LATER, None);
    // The failure was told before the checks took it out, or after: then it counts for nothing.
    assert_eq!(circuit.is_out(), opened);
    assert!(circuit.ask(LATER).is_some(), "nothing keeps it out");
}

/// Good checks come while a request that was let through before is told: it is in, and what is told changes nothing.
fn good_checks_bring_in_whatever_comes_late() {
    let circuit = Circuit::alone();
    circuit.fail(1);
    let late = circuit.ask(Millis(0)).unwrap();
    circuit.breaker.checks_failed(3, None);
    let (checked, comes_late) = (of(&circuit), of(&circuit));
    both(
        move || checked.breaker.checks_good(&SETTINGS, Reason::ChecksGood, LATER, None),
        move || comes_late.record(late, BAD, LATER),
    );
    assert!(!circuit.is_out() && !circuit.breaker.is_kept_in());
    assert_eq!(circuit.send(BAD, LATER), None, "one failure since it is in, of two that it takes");
}

/// Checks of one fail while the other fails by the traffic: of two one is out, and the other is known to be kept in.
fn checks_and_the_traffic_share_the_room() {
    let circuits = Circuit::set_of(2);
    circuits[1].fail(1);
    let (checked, fails) = (of(&circuits[0]), of(&circuits[1]));
    both(move || checked.breaker.checks_failed(3, checked.set.as_deref()), move || fails.send(BAD, Millis(0)));
    assert_eq!(circuits.iter().filter(|circuit| circuit.is_out()).count(), 1);
    assert_eq!(circuits.iter().filter(|circuit| circuit.breaker.is_kept_in()).count(), 1);
}

/// One is brought in by good checks while the checks of the other fail: whatever they see of one another, the next check finds the room.
fn good_checks_never_forget_the_room() {
    let circuits = Circuit::set_of(2);
    let failed = |circuit: &Circuit| circuit.breaker.checks_failed(3, circuit.set.as_deref());
    assert!(failed(&circuits[0]).is_some());
    let (well, fails) = (of(&circuits[0]), of(&circuits[1]));
    both(
        move || well.breaker.checks_good(&SETTINGS, Reason::ChecksGood, LATER, well.set.as_deref()),
        move || failed(&fails),
    );
    assert!(!circuits[0].is_out());
    failed(&circuits[1]);
    assert!(circuits[1].is_out(), "there was room");
}

/// Instances leave while others fail: afterwards no more are out than may be of those that are left.
fn who_leaves_makes_no_room() {
    let circuits = Circuit::set_of(4);
    circuits[0].fail(2);
    circuits[1].fail(1);
    let left: Vec<_> = circuits[..2].iter().map(|circuit| (Arc::clone(&circuit.breaker), SETTINGS)).collect();
    let (set, fails) = (circuits[0].set.clone().unwrap(), of(&circuits[1]));
    let changes = both(
        move || set.set_members(&left, 500_000, Millis(0)).into_iter().map(|(_, change)| change).next(),
        move || fails.send(BAD, Millis(0)),
    );
    assert_eq!(circuits.iter().filter(|circuit| circuit.is_out()).count(), 1, "{changes:?}");
}

fn main() {
    let models: [(&str, fn()); 12] = [
        ("it_opens_once", it_opens_once),
        ("one_probe_passes", one_probe_passes),
        ("a_probe_that_is_given_up_leaves_room_for_one", a_probe_that_is_given_up_leaves_room_for_one),
        ("two_results_make_one_change", two_results_make_one_change),
        ("what_comes_late_counts_for_nothing", what_comes_late_counts_for_nothing),
        ("one_of_two_goes_out", one_of_two_goes_out),
        ("room_is_never_forgotten", room_is_never_forgotten),
        ("who_leaves_makes_no_room", who_leaves_makes_no_room),
        ("checks_and_the_traffic_take_out_together", checks_and_the_traffic_take_out_together),
        ("good_checks_bring_in_whatever_comes_late", good_checks_bring_in_whatever_comes_late),
        ("checks_and_the_traffic_share_the_room", checks_and_the_traffic_share_the_room),
        ("good_checks_never_forget_the_room", good_checks_never_forget_the_room),
    ];
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let mut passed = 0;
    for (name, model) in models {
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        print!("model {name} ... ");
        let builder = Builder::new();
        builder.check(model);
        println!("ok");
        passed += 1;
    }
    // As the test runner says it; a model that fails panics, and says what led to it.
    println!(
        "\ntest result: ok. {passed} passed; 0 failed; 0 ignored; 0 measured; {} filtered out",
        models.len() - passed
    );
}
