//! What others publish of their circuit breakers, clause by clause, and what ours does of it. Where it differs the test says how, and
//! docs/circuit.md says why.
//!
//! - Envoy's outlier detection (`envoy.config.cluster.v3.OutlierDetection`);
//! - gRPC's (gRFC A50);
//! - resilience4j's windows and slow calls (`CircuitBreakerConfig`).

#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;

use crate::admit::breaker::{Answer, Breaker, Millis, Moment, Outcome, Reason, Settings, State, Ticket, Transition};
use crate::admit::ejections::{Ejections, most};

const GOOD: Outcome = Outcome::Success { slow: false };
const BAD: Outcome = Outcome::Failure { slow: false };
const SLOW: Outcome = Outcome::Success { slow: true };
/// So many failures in a row that only shares can open a circuit.
const NEVER: u32 = 1_000_000;

/// The defaults of a CircuitPolicy, with no chance in the open time.
const DEFAULTS: Settings = Settings {
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

/// Hosts of one set, of which so large a share may be out.
struct Hosts {
    breakers: Vec<Arc<Breaker>>,
    set: Ejections,
    settings: Settings,
    now: Millis,
}

impl Hosts {
    fn new(count: usize, share_ppm: u32, settings: Settings) -> Self {
        let breakers: Vec<_> = (0..count).map(|_| Arc::new(Breaker::new(1))).collect();
        let set = Ejections::default();
        let members: Vec<_> = breakers.iter().map(|breaker| (Arc::clone(breaker), settings)).collect();
        set.set_members(&members, share_ppm, Millis(0));
        Self { breakers, set, settings, now: Millis(0) }
    }

    fn one(settings: Settings) -> Self {
        Self::new(1, 1_000_000, settings)
    }

    fn ask(&self, host: usize) -> Option<Ticket> {
        match self.breakers[host].ask(&self.settings, self.now) {
            Answer::Admit(ticket) | Answer::Probe(ticket) => Some(ticket),
            Answer::Refuse { .. } => None,
        }
    }

    fn record(&self, host: usize, ticket: Ticket, outcome: Outcome) -> Option<Transition> {
        let moment = Moment { worker: 0, now: self.now, random: 0 };
        self.breakers[host].record(&self.settings, ticket, outcome, moment, Some(&self.set))
    }

    /// So many of these, one after the other; the change that the last of them made.
    fn send(&self, host: usize, times: usize, outcome: Outcome) -> Option<Transition> {
        (0..times).map(|_| self.record(host, self.ask(host)?, outcome)).last().flatten()
    }

    fn is_out(&self, host: usize) -> bool {
        self.breakers[host].state() != State::Closed
    }

    fn out(&self) -> usize {
        (0..self.breakers.len()).filter(|host| self.is_out(*host)).count()
    }

    /// Goes on to when the host is probed; how long it was out.
    fn until_probe(&mut self, host: usize) -> u64 {
        let State::Open { until } = self.breakers[host].state() else { panic!("it is not open") };
        let out = until.since(self.now);
        self.now = until;
        out
    }
}

#[test]
fn envoy_consecutive_5xx_ejects_at_the_fifth_failure_at_once_and_a_success_starts_the_count_anew() {
    let hosts = Hosts::new(10, 100_000, DEFAULTS);
    assert_eq!((hosts.send(0, 4, BAD), hosts.send(0, 1, GOOD), hosts.send(0, 4, BAD)), (None, None, None));
    assert_eq!(hosts.send(0, 1, BAD).unwrap().reason, Reason::ConsecutiveFailures(5));
}

#[test]
fn envoy_interval_differs_shares_are_judged_with_the_request_that_makes_them_and_not_at_a_sweep() {
    let hosts = Hosts::one(Settings { failure_threshold: NEVER, ..DEFAULTS });
    hosts.send(0, 10, GOOD);
    assert_eq!(hosts.send(0, 10, BAD).unwrap().reason, Reason::ErrorRate { failed: 10, total: 20 });
}

#[test]
fn envoy_failure_percentage_threshold_is_reached_by_a_share_that_is_equal() {
    let settings = Settings { failure_threshold: NEVER, error_rate_ppm: 850_000, minimum_requests: 50, ..DEFAULTS };
    let hosts = Hosts::one(settings);
    hosts.send(0, 8, GOOD);
    assert_eq!(hosts.send(0, 45, BAD), None, "45 of 53 are just below 85 %");
    assert_eq!(hosts.send(0, 1, BAD).unwrap().reason, Reason::ErrorRate { failed: 46, total: 54 });
    let exactly = Hosts::one(settings);
    exactly.send(0, 15, GOOD);
    assert_eq!(exactly.send(0, 85, BAD).unwrap().reason, Reason::ErrorRate { failed: 85, total: 100 });
}

#[test]
fn envoy_failure_percentage_request_volume_is_the_least_that_is_judged() {
    let settings = Settings { failure_threshold: NEVER, minimum_requests: 50, ..DEFAULTS };
    let hosts = Hosts::one(settings);
    assert_eq!(hosts.send(0, 49, BAD), None);
    assert!(hosts.send(0, 1, BAD).is_some());
}

#[test]
fn envoy_failure_percentage_minimum_hosts_differs_a_host_is_judged_by_itself_however_few_there_are() {
    let hosts = Hosts::new(2, 500_000, Settings { failure_threshold: NEVER, ..DEFAULTS });
    assert!(hosts.send(0, 20, BAD).is_some());
}

#[test]
fn envoy_max_ejection_percent_is_a_cap() {
    let hosts = Hosts::new(10, 200_000, DEFAULTS);
    (0..10).for_each(|host| _ = hosts.send(host, 5, BAD));
    assert_eq!(hosts.out(), 2);
}

#[test]
fn envoy_always_eject_one_host_is_what_we_always_do_but_never_the_last_of_several() {
    let hosts = Hosts::new(3, 100_000, DEFAULTS);
    (0..3).for_each(|host| _ = hosts.send(host, 5, BAD));
    assert_eq!(hosts.out(), 1);
    assert_eq!(most(2, 990_000), 1);
}

#[test]
fn envoy_max_ejection_percent_differs_by_its_default_which_is_half_and_not_a_tenth() {
    // The default itself is the schema's: `the_defaults_of_the_documents_are_in_the_schema`.
    assert_eq!((most(10, 500_000), most(10, 100_000)), (5, 1));
}

#[test]
fn envoy_base_ejection_time_differs_it_grows_by_a_factor_and_not_by_itself() {
    let mut hosts = Hosts::one(Settings { timeout_ms: 30_000, max_timeout_ms: 300_000, ..DEFAULTS });
    hosts.send(0, 5, BAD);
    let mut times = vec![hosts.until_probe(0)];
    for _ in 0..4 {
        hosts.send(0, 1, BAD);
        times.push(hosts.until_probe(0));
    }
    // Envoy's are 30, 60, 90, 120 and 150 s.
    assert_eq!(times, [30_000, 60_000, 120_000, 240_000, 300_000]);
}

#[test]
fn envoy_max_ejection_time_is_a_cap() {
    let mut hosts = Hosts::one(Settings { timeout_ms: 200_000, max_timeout_ms: 300_000, ..DEFAULTS });
    hosts.send(0, 5, BAD);
    hosts.until_probe(0);
    for _ in 0..3 {
        hosts.send(0, 1, BAD);
        assert_eq!(hosts.until_probe(0), 300_000);
    }
}

#[test]
fn envoy_uneject_differs_a_host_whose_time_is_over_gets_probes_first_and_not_its_whole_share() {
    let mut hosts = Hosts::one(DEFAULTS);
    hosts.send(0, 5, BAD);
    hosts.until_probe(0);
    let probe = hosts.ask(0).unwrap();
    assert!(probe.is_probe() && hosts.ask(0).is_none(), "one at a time");
}

#[test]
fn a50_one_address_is_ejected_whatever_the_percentage() {
    let hosts = Hosts::new(4, 10_000, DEFAULTS);
    (0..4).for_each(|host| _ = hosts.send(host, 5, BAD));
    assert_eq!(hosts.out(), 1);
}

#[test]
fn a50_max_ejection_percent_differs_we_never_go_above_it() {
    // A50 stops only when the share is above the limit, so it would take out two of three.
    let hosts = Hosts::new(3, 500_000, DEFAULTS);
    (0..3).for_each(|host| _ = hosts.send(host, 5, BAD));
    assert_eq!(hosts.out(), 1);
}

#[test]
fn a50_failure_percentage_threshold_differs_equal_is_enough() {
    // A50's text says greater or equal of the field, and greater in the algorithm; ours is what Envoy and resilience4j do.
    let hosts = Hosts::one(Settings { failure_threshold: NEVER, minimum_requests: 2, ..DEFAULTS });
    hosts.send(0, 1, GOOD);
    assert!(hosts.send(0, 1, BAD).is_some(), "1 of 2 is 50 %");
}

#[test]
fn a50_the_ejection_time_multiplier_differs_it_starts_anew_when_probes_succeed() {
    // A50 takes one off for each interval without an ejection.
    let mut hosts = Hosts::one(DEFAULTS);
    hosts.send(0, 5, BAD);
    hosts.until_probe(0);
    hosts.send(0, 1, BAD);
    assert_eq!(hosts.until_probe(0), 120_000);
    assert_eq!(hosts.send(0, 2, GOOD).unwrap().to, State::Closed);
    hosts.send(0, 5, BAD);
    assert_eq!(hosts.until_probe(0), 60_000);
}

#[test]
fn a50_an_address_that_is_removed_is_counted_no_more() {
    let hosts = Hosts::new(4, 500_000, DEFAULTS);
    hosts.send(0, 5, BAD);
    hosts.send(1, 5, BAD);
    assert_eq!(hosts.set.count(), (2, 2));
    let left: Vec<_> = hosts.breakers[1..].iter().map(|breaker| (Arc::clone(breaker), DEFAULTS)).collect();
    assert_eq!(hosts.set.set_members(&left, 500_000, hosts.now), []);
    assert_eq!(hosts.set.count(), (1, 1));
}

#[test]
fn resilience4j_minimum_number_of_calls_nine_of_ten_say_nothing_though_all_failed() {
    let hosts = Hosts::one(Settings { failure_threshold: NEVER, minimum_requests: 10, ..DEFAULTS });
    assert_eq!(hosts.send(0, 9, BAD), None);
    assert!(hosts.send(0, 1, BAD).is_some());
}

#[test]
fn resilience4j_failure_rate_threshold_opens_at_equal_or_above() {
    let hosts = Hosts::one(Settings { failure_threshold: NEVER, minimum_requests: 10, ..DEFAULTS });
    hosts.send(0, 6, GOOD);
    assert_eq!(hosts.send(0, 5, BAD), None, "5 of 11");
    assert_eq!(hosts.send(0, 1, BAD).unwrap().reason, Reason::ErrorRate { failed: 6, total: 12 });
}

#[test]
fn resilience4j_sliding_window_time_based_forgets_calls_by_their_age_in_tenths_of_it() {
    let mut hosts = Hosts::one(Settings { failure_threshold: NEVER, minimum_requests: 10, ..DEFAULTS });
    hosts.send(0, 9, BAD);
    // A window of 10 s has ten buckets of a second: what came in the second that is now the eleventh is gone.
    hosts.now = Millis(9_999);
    assert_eq!(hosts.breakers[0].counts(&hosts.settings, hosts.now).failed, 9);
    hosts.now = Millis(10_000);
    assert_eq!(hosts.breakers[0].counts(&hosts.settings, hosts.now).failed, 0);
    assert_eq!(hosts.send(0, 9, BAD), None);
}

#[test]
fn resilience4j_slow_call_rate_threshold_opens_at_equal_or_above_though_no_call_failed() {
    let settings = Settings { slow_rate_ppm: Some(500_000), minimum_requests: 10, ..DEFAULTS };
    let hosts = Hosts::one(settings);
    hosts.send(0, 5, GOOD);
    assert_eq!(hosts.send(0, 4, SLOW), None);
    assert_eq!(hosts.send(0, 1, SLOW).unwrap().reason, Reason::SlowRate { slow: 5, total: 10 });
}

#[test]
fn resilience4j_slow_calls_count_whether_they_failed_or_not() {
    let settings = Settings {
        failure_threshold: NEVER,
        error_rate_ppm: 1_000_000,
        slow_rate_ppm: Some(1_000_000),
        minimum_requests: 10,
        ..DEFAULTS
    };
    let hosts = Hosts::one(settings);
    hosts.send(0, 5, Outcome::Failure { slow: true });
    assert_eq!(hosts.send(0, 5, SLOW).unwrap().reason, Reason::SlowRate { slow: 10, total: 10 });
}

#[test]
fn resilience4j_slow_calls_are_not_counted_unless_the_policy_asks() {
    let hosts = Hosts::one(Settings { slow_rate_ppm: None, minimum_requests: 1, ..DEFAULTS });
    assert_eq!(hosts.send(0, 100, SLOW), None);
}

#[test]
fn resilience4j_permitted_calls_in_half_open_differ_they_are_so_many_at_a_time_and_good_in_a_row() {
    let mut hosts = Hosts::one(Settings { half_open_requests: 3, success_threshold: 3, ..DEFAULTS });
    hosts.send(0, 5, BAD);
    hosts.until_probe(0);
    let probes: Vec<Ticket> = (0..10).map_while(|_| hosts.ask(0)).collect();
    assert_eq!(probes.len(), 3);
    assert_eq!(hosts.record(0, probes[0], GOOD), None);
    // resilience4j would go by the share of all three.
    assert_eq!(hosts.record(0, probes[1], BAD).unwrap().reason, Reason::ProbeFailed);
}

#[test]
fn resilience4j_slow_calls_in_half_open_open_it_again() {
    let mut hosts = Hosts::one(Settings { slow_rate_ppm: Some(1_000_000), ..DEFAULTS });
    hosts.send(0, 5, BAD);
    hosts.until_probe(0);
    assert_eq!(hosts.send(0, 1, SLOW).unwrap().reason, Reason::ProbeSlow);
}

#[test]
fn resilience4j_max_wait_in_half_open_differs_a_probe_that_nobody_waits_for_leaves_room_for_another() {
    let mut hosts = Hosts::one(DEFAULTS);
    hosts.send(0, 5, BAD);
    hosts.until_probe(0);
    for _ in 0..100 {
        assert_eq!(hosts.send(0, 1, Outcome::Cancelled), None);
    }
    assert_eq!(hosts.send(0, 2, GOOD).unwrap().to, State::Closed);
}

#[test]
fn resilience4j_ignored_calls_count_neither_way() {
    let hosts = Hosts::one(DEFAULTS);
    hosts.send(0, 4, BAD);
    hosts.send(0, 50, Outcome::Cancelled);
    assert_eq!(hosts.send(0, 1, BAD).unwrap().reason, Reason::ConsecutiveFailures(5));
}

#[test]
fn resilience4j_open_differs_what_was_under_way_when_it_opened_counts_for_nothing_afterwards() {
    let mut hosts = Hosts::one(DEFAULTS);
    let under_way: Vec<Ticket> = (0..10).map_while(|_| hosts.ask(0)).collect();
    hosts.send(0, 5, BAD);
    hosts.until_probe(0);
    hosts.send(0, 2, GOOD);
    assert!(under_way.into_iter().all(|ticket| hosts.record(0, ticket, BAD).is_none()));
    assert!(!hosts.is_out(0));
}

#[test]
fn resilience4j_automatic_transition_to_half_open_is_off_the_first_request_makes_it() {
    let mut hosts = Hosts::one(DEFAULTS);
    hosts.send(0, 5, BAD);
    hosts.until_probe(0);
    assert!(matches!(hosts.breakers[0].state(), State::Open { .. }));
    assert_eq!(hosts.ask(0).unwrap().transition().unwrap().reason, Reason::ProbeTime);
}
