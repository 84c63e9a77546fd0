use super::*;
use crate::admit::breaker::{Answer, Breaker, Moment, Outcome};
use crate::table::CircuitSettings;

const TARGET: &str = "10.0.0.1:80";

/// An agent with one circuit, and a clock.
struct Bench {
    runtime: Runtime,
    checks: Checks,
    evidence: Evidence,
    breaker: Arc<Breaker>,
    settings: Arc<CircuitSettings>,
    now: Millis,
}

impl Bench {
    fn with(policy: v1::CircuitPolicy) -> Self {
        let runtime = Runtime::new(1);
        let settings = Arc::new(CircuitSettings::from(&policy));
        let breaker = runtime.breaker(&service(), TARGET, &settings);
        let now = Millis(100_000_000);
        Self { runtime, checks: Checks::default(), evidence: Evidence::default(), breaker, settings, now }
    }

    fn new() -> Self {
        Self::with(policy())
    }

    fn send(&self, failed: bool, unreached: bool) {
        let (Answer::Admit(ticket) | Answer::Probe(ticket)) = self.breaker.ask(&self.settings.breaker, self.now) else {
            return;
        };
        let outcome = if failed { Outcome::Failure { slow: false } } else { Outcome::Success { slow: false } };
        if failed {
            self.breaker.note_failure(unreached);
        }
        let moment = Moment { worker: 0, now: self.now, random: 0 };
        self.breaker.record(&self.settings.breaker, ticket, outcome, moment, None);
    }

    fn fail(&self, times: usize) {
        (0..times).for_each(|_| self.send(true, false));
    }

    /// A second later; what is told then, of the one instance.
    fn look(&mut self) -> Option<Option<Sight>> {
        self.now = self.now.plus(1000);
        let views = self.evidence.look(&self.runtime, &self.checks, self.now)?.instances;
        assert!(views.len() <= 1 && views.iter().all(|view| view.target == TARGET && view.policy == "shop/cart"));
        Some(views.first().map(v1::InstanceView::sight))
    }

    fn take(&mut self, nodes: u32, failing: u32) {
        let (namespace, name) = ("shop".to_owned(), "cart".to_owned());
        let told = v1::InstanceEvidence { namespace, service: name, target: TARGET.to_owned(), nodes, failing };
        self.evidence.take(v1::Evidence { instances: vec![told] });
        self.evidence.apply(&self.runtime, self.now);
    }

    fn others(&self) -> (u32, u32) {
        let others = self.breaker.others();
        (others.failing, others.asked)
    }
}

fn service() -> ServiceKey {
    ServiceKey { namespace: "shop".to_owned(), name: "cart".to_owned() }
}

fn policy() -> v1::CircuitPolicy {
    v1::CircuitPolicy {
        name: "shop/cart".to_owned(),
        failure_threshold: 5,
        error_rate_threshold_ppm: 500_000,
        minimum_requests: 20,
        window_ms: 10_000,
        timeout_ms: 60_000,
        correlated: true,
        ..v1::CircuitPolicy::default()
    }
}

#[test]
fn what_fails_is_told_once_and_taken_back_when_it_is_well() {
    let mut bench = Bench::new();
    assert_eq!(bench.look(), None);
    bench.fail(1);
    assert_eq!(bench.look(), None, "one failure is noise");
    bench.fail(1);
    assert_eq!(bench.look(), Some(Some(Sight::Failing)));
    bench.fail(1);
    assert_eq!(bench.look(), None, "another count is no other view");
    (0..20).for_each(|_| bench.send(false, false));
    assert_eq!(bench.look(), Some(None), "3 of 23 are less than the share that opens it");
    assert_eq!(bench.look(), None);
}

#[test]
fn the_share_that_opens_a_circuit_is_told_of_however_few_requests_and_so_is_half_of_the_row() {
    let told = |outcomes: &[bool]| {
        let mut bench = Bench::new();
        outcomes.iter().for_each(|failed| bench.send(*failed, false));
        bench.look() == Some(Some(Sight::Failing))
    };
    assert!(told(&[true, false, true, false]));
    assert!(!told(&[true, false, true, false, false]), "2 of 5");
    assert!(told(&[false, false, false, false, true, true, true]), "3 of 5 in a row");
    assert!(!told(&[false, false, false, true, true]), "2 of 5 in a row");
}

#[test]
fn what_cannot_be_reached_is_told_so_and_an_open_circuit_for_as_long_as_it_is_open() {
    let mut bench = Bench::new();
    (0..5).for_each(|_| bench.send(true, true));
    assert_ne!(bench.breaker.state(), State::Closed);
    assert_eq!(bench.look(), Some(Some(Sight::Unreached)));
    bench.now = bench.now.plus(30_000);
    assert_eq!(bench.look(), None, "the window is empty, and nothing has changed");
    bench.now = bench.now.plus(60_000);
    (0..2).for_each(|_| bench.send(false, false));
    assert_eq!(bench.breaker.state(), State::Closed);
    assert_eq!(bench.look(), Some(None));
}

#[test]
fn who_has_asked_says_that_it_is_well_when_others_see_it_fail() {
    let mut bench = Bench::new();
    bench.take(0, 0);
    assert_eq!(bench.look(), None, "nobody has asked it here");
    bench.send(false, false);
    assert_eq!(bench.look(), Some(Some(Sight::Well)));
    bench.now = bench.now.plus(20_000);
    assert_eq!(bench.look(), Some(None), "not in the window");
}

#[test]
fn a_policy_without_correlation_tells_nothing_and_is_told_nothing() {
    let mut bench = Bench::with(v1::CircuitPolicy { correlated: false, ..policy() });
    bench.fail(5);
    assert_eq!(bench.look(), None);
    bench.take(5, 5);
    assert_eq!(bench.others(), (0, 0));
}

#[test]
fn what_it_has_told_itself_is_not_among_what_others_see() {
    let mut bench = Bench::new();
    bench.fail(2);
    assert_eq!(bench.look(), Some(Some(Sight::Failing)));
    // It may be one of the two, and it may be none of the four.
    bench.take(4, 2);
    assert_eq!(bench.others(), (1, 4));
    for _ in 0..3 {
        bench.look();
        bench.fail(1);
    }
    bench.take(4, 2);
    assert_eq!(bench.others(), (1, 3));
}

#[test]
fn who_was_among_those_that_fail_is_taken_off_until_the_controller_must_know() {
    let mut bench = Bench::new();
    bench.fail(2);
    bench.take(4, 3);
    bench.look();
    (0..40).for_each(|_| bench.send(false, false));
    assert_eq!(bench.look(), Some(Some(Sight::Well)));
    assert_eq!(bench.others(), (2, 4));
    (0..4).for_each(|_| _ = bench.look());
    assert_eq!(bench.others(), (3, 3), "it is one of the four, and none of the three");
}

#[test]
fn evidence_is_whole_each_time_and_ends_with_the_stream() {
    let mut bench = Bench::new();
    bench.take(4, 3);
    assert_eq!(bench.others(), (3, 4));
    bench.evidence.take(v1::Evidence::default());
    bench.evidence.apply(&bench.runtime, bench.now);
    assert_eq!(bench.others(), (0, 0));
    bench.take(4, 3);
    bench.fail(2);
    bench.look();
    bench.evidence.forget(&bench.runtime, bench.now);
    assert_eq!(bench.others(), (0, 0));
    assert_eq!(bench.look(), Some(Some(Sight::Failing)), "the next stream is told anew");
}

#[test]
fn what_makes_no_sense_has_no_effect() {
    let mut bench = Bench::new();
    bench.take(2, u32::MAX);
    assert_eq!(bench.others(), (2, 2));
    bench.take(0, 7);
    assert_eq!(bench.others(), (0, 0));
}
