//! Circuits, ejections, budgets, back-off and load together, simulated in virtual time: clients, agents and instances that fail, get slow,
//! vanish and come back. The parts that decide are the agent's own; what is around them (the clock, the network, who is drawn) is made here.
//!
//! A run is made of its seed alone. `SWITCHYARD_SIMULATION_RUNS=N` makes so many (2000 by default, in seconds);
//! `SWITCHYARD_SIMULATION_SEED=S` replays one, which a failure names.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, reason = "a test fails by panicking")]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use switchyard_agent::admit::breaker::{Answer, Breaker, Moment, Outcome as Judged, Settings, State, Ticket};
use switchyard_agent::admit::ejections::Ejections;
use switchyard_agent::admit::window::Millis;
use switchyard_agent::retry::budget::{Budget, Limits};
use switchyard_agent::retry::hints::Pushback;
use switchyard_agent::retry::{self, Ahead, Next, Tries};
use switchyard_agent::runtime::{Load, Told};
use switchyard_agent::table::{Outcome, RetrySettings};
use switchyard_proto::v1;

/// Until then instances are unwell now and then; afterwards all are well.
const WELL_AT: u64 = 15_000;
/// The slowest answer.
const SLOWEST: u64 = 2_000;
/// Draws that may pass an instance by, as time: its circuit lets it be asked, and it is a matter of chance when that is.
const DRAWS: u64 = 15_000;

/// How an instance is for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Well,
    Fails,
    Slow,
    /// It restarts, or is gone.
    Down,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives { agent: usize },
    Again { request: usize },
    Ends { asked: usize },
    Changes { instance: usize },
}

struct Request {
    agent: usize,
    tries: Tries,
    tried: Vec<usize>,
    deadline: Option<u64>,
}

/// A try under way.
struct Asked {
    request: usize,
    instance: usize,
    ticket: Ticket,
    since: u64,
    /// `None`: the caller leaves.
    ends_as: Option<Outcome>,
}

/// What an agent knows of one instance.
struct Known {
    breaker: Arc<Breaker>,
    load: Load,
    /// Tries that decide about its circuit, of this spell of being half-open.
    probes: HashSet<usize>,
    /// It has answered well since all are.
    is_back: bool,
}

struct Agent {
    known: Vec<Known>,
    ejections: Ejections,
    retry: RetrySettings,
    requests: VecDeque<u64>,
    retries: VecDeque<u64>,
}

struct World {
    now: u64,
    start: Instant,
    rng: SmallRng,
    settings: Settings,
    /// How many may be out, by the documents.
    most_out: usize,
    limits: Limits,
    pace: u64,
    ends_at: u64,
    agents: Vec<Agent>,
    health: Vec<Health>,
    requests: Vec<Request>,
    asked: Vec<Asked>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    number: u64,
    /// Tries, good answers, retries, openings: that something happened at all, and the same each time.
    tally: [u64; 4],
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let timeout_ms = rng.random_range(100..2000);
        let settings = Settings {
            failure_threshold: rng.random_range(1..6),
            error_rate_ppm: 500_000,
            minimum_requests: rng.random_range(5..30),
            window_ms: rng.random_range(1000..10_000),
            timeout_ms,
            multiplier_milli: rng.random_range(1000..3000),
            max_timeout_ms: rng.random_range(timeout_ms..5000),
            jitter_ppm: rng.random_range(0..300_000),
            success_threshold: rng.random_range(1..4),
            half_open_requests: rng.random_range(1..4),
            slow_rate_ppm: None,
        };
        let instances = rng.random_range(1..9);
        let share_percent = *[0, 10, 34, 50, 80, 100].get(rng.random_range(0..6usize)).unwrap();
        let most_out = match (instances, share_percent) {
            (_, 0) => 0,
            (1, _) => 1,
            (all, 100) => all,
            (all, share) => (all * share / 100).max(1).min(all - 1),
        };
        let limits = Limits {
            ratio_ppm: *[0, 100_000, 200_000, 1_000_000].get(rng.random_range(0..4usize)).unwrap(),
            min_per_second: rng.random_range(0..12),
            window_ms: rng.random_range(1000..10_000),
        };
        let wire = v1::RetryPolicy {
            max_retries: rng.random_range(0..5),
            strategy: rng.random_range(0..6),
            initial_delay_ms: rng.random_range(1..200),
            max_delay_ms: rng.random_range(200..2000),
            multiplier_milli: 2000,
            jitter_ppm: 100_000,
            retry_on: Some(v1::Conditions { server_error: true, connect_failure: true, ..Default::default() }),
            methods: vec!["GET".into()],
            ..Default::default()
        };
        let agents = (0..rng.random_range(1..4)).map(|_| {
            let known = (0..instances).map(|id| Known {
                breaker: Arc::new(Breaker::new(1)),
                load: Load::new(id as u64, 1),
                probes: HashSet::new(),
                is_back: false,
            });
            let known: Vec<Known> = known.collect();
            let ejections = Ejections::default();
            let members: Vec<_> = known.iter().map(|known| (Arc::clone(&known.breaker), settings)).collect();
            ejections.set_members(&members, share_percent as u32 * 10_000, Millis(0));
            let retry = RetrySettings::new(&wire, Arc::new(Budget::new(limits, 1)));
            Agent { known, ejections, retry, requests: VecDeque::new(), retries: VecDeque::new() }
        });
        let agents: Vec<Agent> = agents.collect();
        let longest_open =
            settings.max_timeout_ms + settings.max_timeout_ms * u64::from(settings.jitter_ppm) / 1_000_000;
        let mut world = Self {
            now: 0,
            start: Instant::now(),
            settings,
            most_out,
            limits,
            pace: rng.random_range(20..80),
            ends_at: WELL_AT + longest_open + SLOWEST + DRAWS,
            health: vec![Health::Well; instances],
            requests: Vec::new(),
            asked: Vec::new(),
            events: BinaryHeap::new(),
            number: 0,
            tally: [0; 4],
            agents,
            rng,
        };
        (0..world.agents.len()).for_each(|agent| world.at(0, Event::Arrives { agent }));
        (0..instances).for_each(|instance| world.at(0, Event::Changes { instance }));
        world
    }

    fn at(&mut self, time: u64, event: Event) {
        self.number += 1;
        self.events.push(Reverse((time, self.number, event)));
    }

    fn run(mut self) -> [u64; 4] {
        while let Some(Reverse((time, _, event))) = self.events.pop() {
            self.now = time;
            match event {
                Event::Arrives { agent } => self.arrives(agent),
                Event::Again { request } => self.ask(request),
                Event::Ends { asked } => self.ends(asked),
                Event::Changes { instance } => self.changes(instance),
            }
            for agent in &self.agents {
                let out = agent.known.iter().filter(|known| known.breaker.state() != State::Closed).count();
                assert!(out <= self.most_out, "{out} of {} are out, and {} may be", agent.known.len(), self.most_out);
            }
        }
        for (number, agent) in self.agents.iter().enumerate() {
            for (instance, known) in agent.known.iter().enumerate() {
                let state = known.breaker.state();
                assert!(
                    known.is_back,
                    "agent {number}: instance {instance} is well, and had no good answer in time: {state:?}"
                );
                let stuck = matches!(state, State::HalfOpen { in_flight: 1.., .. });
                assert!(
                    !stuck && known.probes.is_empty(),
                    "instance {instance} waits for a probe that is over: {state:?}"
                );
            }
        }
        self.tally
    }

    fn changes(&mut self, instance: usize) {
        if self.now >= WELL_AT {
            self.health[instance] = Health::Well;
            return;
        }
        // Mostly well, or unwell; or it flaps.
        self.health[instance] = match self.rng.random_range(0..8) {
            0 | 1 => Health::Fails,
            2 => Health::Slow,
            3 => Health::Down,
            _ => Health::Well,
        };
        let lasts =
            if self.rng.random_bool(0.2) { self.rng.random_range(1..100) } else { self.rng.random_range(100..5000) };
        self.at((self.now + lasts).min(WELL_AT), Event::Changes { instance });
    }

    fn arrives(&mut self, agent: usize) {
        if self.now < self.ends_at {
            let next = self.now + self.rng.random_range(1..2 * self.pace);
            self.at(next, Event::Arrives { agent });
        }
        let patience = [100, 1000, 3000].get(self.rng.random_range(0..5usize)).copied();
        let deadline = patience.map(|patience| self.now + patience);
        let (tries, tried) = (Tries::default(), Vec::new());
        self.requests.push(Request { agent, tries, tried, deadline });
        self.agents[agent].retry.budget.deposit(0, Millis(self.now));
        self.agents[agent].requests.push_back(self.now);
        self.ask(self.requests.len() - 1);
    }

    /// Two at random and the better of them, one that is due at once; else any that can be asked.
    fn ask(&mut self, request: usize) {
        let now = Millis(self.now);
        let Request { agent, tried, deadline, .. } = &self.requests[request];
        let (agent, deadline) = (&mut self.agents[*agent], *deadline);
        let count = agent.known.len();
        let mut order: Vec<usize> = (0..count).collect();
        for at in 0..count {
            order.swap(at, self.rng.random_range(at..count));
        }
        order.sort_by_key(|instance| tried.contains(instance));
        let is_due = |instance: usize| match agent.known[instance].breaker.state() {
            State::Closed | State::Unhealthy { .. } => false,
            State::Open { until } => until <= now,
            State::HalfOpen { in_flight, .. } => u32::from(in_flight) < self.settings.half_open_requests,
        };
        if count > 1 && !tried.contains(&order[1]) {
            let expected = |instance: usize| agent.known[instance].load.expected(0, true, now);
            let chance = self.rng.random();
            if is_due(order[1]) || (!is_due(order[0]) && expected(order[1]).beats(&expected(order[0]), || chance)) {
                order.swap(0, 1);
            }
        }
        for instance in order {
            let known = &mut agent.known[instance];
            let id = self.asked.len();
            let ticket = match known.breaker.ask(&self.settings, now) {
                Answer::Refuse { .. } => continue,
                Answer::Admit(ticket) => ticket,
                Answer::Probe(ticket) => {
                    if ticket.transition().is_some() {
                        known.probes.clear();
                    }
                    known.probes.insert(id);
                    let most = self.settings.half_open_requests as usize;
                    assert!(known.probes.len() <= most, "{} probes, and {most} may be", known.probes.len());
                    ticket
                }
            };
            known.load.begin(0);
            self.tally[0] += 1;
            let (takes, outcome) = match self.health[instance] {
                Health::Well => (self.rng.random_range(1..20), Outcome::Reply { status: 200, grpc: None }),
                Health::Fails => (self.rng.random_range(1..20), Outcome::Reply { status: 503, grpc: None }),
                Health::Slow => (self.rng.random_range(200..SLOWEST), Outcome::Reply { status: 200, grpc: None }),
                Health::Down => (self.rng.random_range(0..2), Outcome::ConnectFailure),
            };
            let (ends, leaves) = match deadline {
                Some(deadline) if deadline < self.now + takes => (deadline.max(self.now), true),
                _ => (self.now + takes, false),
            };
            let ends_as = (!leaves).then_some(outcome);
            self.asked.push(Asked { request, instance, ticket, since: self.now, ends_as });
            self.at(ends, Event::Ends { asked: id });
            return;
        }
    }

    fn ends(&mut self, id: usize) {
        let Asked { request: number, instance, ticket, since, ends_as } = self.asked[id];
        let request = &mut self.requests[number];
        let agent = &mut self.agents[request.agent];
        let (now, took) = (Millis(self.now), Duration::from_millis(self.now - since));
        let known = &mut agent.known[instance];
        known.probes.remove(&id);
        let (judged, told) = match ends_as {
            None => (Judged::Cancelled, Told::Unfinished(took)),
            Some(outcome) if outcome.is_failure() => (Judged::Failure { slow: false }, Told::Failed(took)),
            Some(_) => (Judged::Success { slow: false }, Told::Good(took)),
        };
        let moment = Moment { worker: 0, now, random: self.rng.random() };
        let changed = known.breaker.record(&self.settings, ticket, judged, moment, Some(&agent.ejections));
        known.load.end(0, told, now);
        if let Some(change) = changed
            && matches!(change.to, State::Open { .. })
        {
            self.tally[3] += 1;
        }
        if let Some(Outcome::Reply { status: 200, .. }) = ends_as {
            self.tally[1] += 1;
            known.is_back |= since >= WELL_AT && self.now <= self.ends_at;
        }
        let Some(outcome) = ends_as else { return };
        request.tried.push(instance);
        let (start, ms) = (self.start, Duration::from_millis);
        let asks = retry::Request {
            method: &Method::GET,
            already_retried: false,
            replayable: true,
            deadline: request.deadline.map(|deadline| start + ms(deadline)),
            stale: false,
        };
        let states = agent.known.iter().map(|known| match known.breaker.state() {
            State::Open { until } => ms(until.0.saturating_sub(now.0)),
            State::Closed | State::HalfOpen { .. } | State::Unhealthy { .. } => Duration::ZERO,
        });
        let latency = agent.known.iter().map(|known| known.load.latency(0, now)).min().unwrap();
        let ahead = Ahead { soonest: states.min().unwrap(), latency };
        let time = (start + ms(self.now), now);
        let ended = (outcome, Pushback::None);
        let next = retry::after(&agent.retry, &mut request.tries, asks, ended, time, || ahead, &mut self.rng);
        let Next::Again { after } = next else { return };
        assert!(request.tries.retries <= agent.retry.max_retries);
        assert!(request.deadline.is_none_or(|deadline| ms(self.now) + after < ms(deadline)), "past the deadline");
        agent.retries.push_back(self.now);
        self.tally[2] += 1;
        // Nothing is added beyond the budget in any window that ends with a retry.
        let window = self.limits.window_ms;
        for times in [&mut agent.requests, &mut agent.retries] {
            while times.front().is_some_and(|time| time + window <= self.now) {
                times.pop_front();
            }
        }
        let by_ratio = agent.requests.len() as f64 * f64::from(self.limits.ratio_ppm) / 1e6;
        let by_time = f64::from(self.limits.min_per_second) * window as f64 / 1000.0;
        let (added, most) = (agent.retries.len() as f64, by_ratio + by_time);
        assert!(added <= most + 1e-6, "{added} retries in {window} ms, and the budget has {most}");
        let waited = self.now + u64::try_from(after.as_millis()).unwrap();
        self.at(waited, Event::Again { request: number });
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

#[test]
fn whatever_happens_bounds_hold_and_who_is_well_gets_requests_again() {
    let seeds: Vec<u64> = match number("SWITCHYARD_SIMULATION_SEED") {
        Some(seed) => vec![seed],
        None => {
            let first = rand::random::<u32>();
            let runs = number("SWITCHYARD_SIMULATION_RUNS").unwrap_or(2000);
            (0..runs).map(|run| u64::from(first) + run).collect()
        }
    };
    println!("seeds {} to {}", seeds[0], seeds[seeds.len() - 1]);
    let began = Instant::now();
    let mut all = [0u64; 4];
    for seed in &seeds {
        let ran = std::panic::catch_unwind(|| World::new(*seed).run());
        let tally = ran.unwrap_or_else(|_| panic!("replay it with SWITCHYARD_SIMULATION_SEED={seed}"));
        all.iter_mut().zip(tally).for_each(|(sum, count)| *sum += count);
    }
    let [tries, good, retries, opened] = all;
    println!(
        "{} runs in {:?}: {tries} tries, {good} good, {retries} retries, {opened} openings",
        seeds.len(),
        began.elapsed()
    );
    assert!(seeds.len() < 100 || (retries > 0 && opened > 0), "nothing went wrong in any run");
}

#[test]
fn a_seed_is_the_whole_of_a_run() {
    for seed in [1, 2, 3] {
        assert_eq!(World::new(seed).run(), World::new(seed).run());
    }
}
