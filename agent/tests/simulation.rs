//! Circuits, ejections, budgets, back-off and load together, simulated in virtual time: clients, agents that restart while the wall clock
//! is moved, and instances that fail, get slow, vanish and come back. The parts that decide are the agent's own; what is around them (the
//! clock, the network, who is drawn) is made here.
//!
//! A run is made of its seed alone. `SWITCHYARD_SIMULATION_RUNS=N` makes so many (2000 by default, in seconds);
//! `SWITCHYARD_SIMULATION_SEED=S` replays one, which a failure names.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, reason = "a test fails by panicking")]

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use prost::Message;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use switchyard_agent::admit::breaker::{Answer, Breaker, Moment, Outcome as Judged, Settings, State, Ticket};
use switchyard_agent::admit::ejections::Ejections;
use switchyard_agent::admit::window::Millis;
use switchyard_agent::retry::budget::{Budget, Limits};
use switchyard_agent::retry::hints::Pushback;
use switchyard_agent::retry::{self, Ahead, Next, Tries};
use switchyard_agent::runtime::{Load, Runtime, Told};
use switchyard_agent::state::remembered::Remembered;
use switchyard_agent::table::{CircuitSettings, Outcome, RetrySettings, ServiceKey};
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
    Stops { agent: usize },
    Starts { agent: usize },
}

thread_local! {
    /// The time of a run, for what reads a clock.
    static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
}

fn virtual_now() -> Instant {
    NOW.get().unwrap()
}

struct Request {
    agent: usize,
    life: u32,
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
    /// What outlives tables, and is made anew with each start.
    runtime: Runtime,
    /// How often it was started before; what it asked in another life comes to nothing.
    life: u32,
    /// What it wrote when it stopped, how its circuits were then, and where the wall clock was.
    stopped: Option<(Vec<u8>, Vec<Before>, i64)>,
    known: Vec<Known>,
    ejections: Arc<Ejections>,
    retry: RetrySettings,
    requests: VecDeque<u64>,
    retries: VecDeque<u64>,
}

/// A circuit as it was when its agent stopped: how long it was to stay open, if it was not closed, and how often it had opened.
type Before = (Option<u64>, u8);

struct World {
    now: u64,
    start: Instant,
    rng: SmallRng,
    /// Of the wall clock beside the time of the run.
    wall: i64,
    policy: Arc<CircuitSettings>,
    retries: v1::RetryPolicy,
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
    /// Tries, good answers, retries, openings, circuits that were out over a restart: that something happened at all, and the same each
    /// time.
    tally: [u64; 5],
}

impl Agent {
    /// One that knows this of before.
    fn start(
        known: Option<Remembered>,
        instances: usize,
        policy: &Arc<CircuitSettings>,
        limits: Limits,
        retry: &v1::RetryPolicy,
    ) -> Self {
        let runtime = Runtime::with_clock(1, virtual_now);
        known.into_iter().for_each(|known| runtime.recall(known));
        let service = ServiceKey { namespace: "shop".into(), name: "a".into() };
        let known = (0..instances).map(|id| Known {
            breaker: runtime.breaker(&service, &id.to_string(), policy),
            load: Load::new(id as u64, 1),
            probes: HashSet::new(),
            is_back: false,
        });
        let known: Vec<Known> = known.collect();
        let member = |(id, known): (usize, &Known)| (id.to_string(), Arc::clone(&known.breaker), Arc::clone(policy));
        let members: Vec<_> = known.iter().enumerate().map(member).collect();
        let ejections = runtime.ejections(&service, "all", &members, policy.max_ejection_ppm);
        assert!(runtime.take_changes().is_empty(), "nobody is brought in by a restart");
        let retry =
            RetrySettings::new(retry, Arc::new(Budget::new(limits, runtime.account(&service, limits.window_ms))));
        let (requests, retries) = Default::default();
        Self { runtime, life: 0, stopped: None, known, ejections, retry, requests, retries }
    }

    /// The time as it counts it, which begins anew with each start.
    fn now(&self) -> Millis {
        self.runtime.millis(virtual_now())
    }
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
        let policy = v1::CircuitPolicy {
            failure_threshold: settings.failure_threshold,
            error_rate_threshold_ppm: settings.error_rate_ppm,
            minimum_requests: settings.minimum_requests,
            window_ms: settings.window_ms,
            timeout_ms: settings.timeout_ms,
            backoff_multiplier_milli: settings.multiplier_milli,
            backoff_max_timeout_ms: settings.max_timeout_ms,
            backoff_jitter_ppm: settings.jitter_ppm,
            success_threshold: settings.success_threshold,
            half_open_requests: settings.half_open_requests,
            max_ejection_ppm: Some(share_percent as u32 * 10_000),
            ..Default::default()
        };
        let policy = Arc::new(CircuitSettings::from(&policy));
        assert_eq!(policy.breaker, settings);
        let start = Instant::now();
        NOW.set(Some(start));
        let agents = (0..rng.random_range(1..4)).map(|_| Agent::start(None, instances, &policy, limits, &wire));
        let agents: Vec<Agent> = agents.collect();
        let longest_open =
            settings.max_timeout_ms + settings.max_timeout_ms * u64::from(settings.jitter_ppm) / 1_000_000;
        let mut world = Self {
            now: 0,
            start,
            wall: rng.random_range(0..1 << 40),
            policy,
            retries: wire,
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
            tally: [0; 5],
            agents,
            rng,
        };
        (0..world.agents.len()).for_each(|agent| world.at(0, Event::Arrives { agent }));
        (0..instances).for_each(|instance| world.at(0, Event::Changes { instance }));
        for agent in 0..world.agents.len() {
            let first = world.rng.random_range(0..2 * WELL_AT);
            world.at(first, Event::Stops { agent });
        }
        world
    }

    fn at(&mut self, time: u64, event: Event) {
        self.number += 1;
        self.events.push(Reverse((time, self.number, event)));
    }

    fn run(mut self) -> [u64; 5] {
        while let Some(Reverse((time, _, event))) = self.events.pop() {
            self.now = time;
            NOW.set(Some(self.start + Duration::from_millis(time)));
            match event {
                Event::Arrives { agent } => self.arrives(agent),
                Event::Again { request } => self.ask(request),
                Event::Ends { asked } => self.ends(asked),
                Event::Changes { instance } => self.changes(instance),
                Event::Stops { agent } => self.stops(agent),
                Event::Starts { agent } => self.starts(agent),
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

    /// It writes what it knows, and is gone for a while in which the wall clock may be moved.
    fn stops(&mut self, number: usize) {
        // One that stops later has no time to find out who is well.
        if self.now >= WELL_AT {
            return;
        }
        let agent = &mut self.agents[number];
        let now = agent.now();
        let before = agent.known.iter().map(|known| {
            let left = match known.breaker.state() {
                State::Closed => None,
                State::Open { until } => Some(until.0.saturating_sub(now.0)),
                State::HalfOpen { .. } | State::Unhealthy { .. } => Some(0),
            };
            (left, known.breaker.openings())
        });
        let before: Vec<Before> = before.collect();
        let written = Remembered { written_unix_ms: self.wall + self.now as i64, ..agent.runtime.remembered() };
        let moved = match self.rng.random_range(0..6) {
            0 => self.rng.random_range(0..600_000),
            1 => -self.rng.random_range(0..600_000),
            _ => 0,
        };
        agent.stopped = Some((written.encode_to_vec(), before, self.wall));
        self.wall += moved;
        agent.life += 1;
        let gone = [0, 1, 50, 1000, 5000].get(self.rng.random_range(0..5usize)).copied().unwrap();
        let again = self.now + gone + self.rng.random_range(1..2 * WELL_AT);
        self.at(self.now + gone, Event::Starts { agent: number });
        self.at(again, Event::Stops { agent: number });
    }

    /// What was not closed is open for as long as was left by the wall clock, and nothing else is; the budget goes on.
    fn starts(&mut self, number: usize) {
        let agent = &mut self.agents[number];
        let (written, before, wall) = agent.stopped.take().unwrap();
        let known = Remembered::decode(&*written).unwrap();
        let gone = u64::try_from(self.wall + self.now as i64 - known.written_unix_ms).unwrap_or(0);
        let known = known.aged(self.wall + self.now as i64);
        let started = Agent::start(Some(known), agent.known.len(), &self.policy, self.limits, &self.retries);
        let now = started.now();
        for (instance, ((left, openings), known)) in before.iter().zip(&started.known).enumerate() {
            let expected = match left {
                None => State::Closed,
                Some(left) => State::Open { until: now.plus(left.saturating_sub(gone)) },
            };
            assert_eq!(
                known.breaker.state(),
                expected,
                "agent {number}: instance {instance} after a restart, {left:?} {gone}"
            );
            assert!(left.is_none() || known.breaker.openings() == *openings, "instance {instance} has opened so often");
            self.tally[4] += u64::from(left.is_some());
        }
        let out = before.iter().filter(|(left, _)| left.is_some()).count();
        assert_eq!(started.ejections.count(), (out, self.most_out), "its set knows who is out");
        let is_back: Vec<bool> = agent.known.iter().map(|known| known.is_back).collect();
        let (requests, retries) = (std::mem::take(&mut agent.requests), std::mem::take(&mut agent.retries));
        let life = agent.life;
        *agent = Agent { life, ..started };
        agent.known.iter_mut().zip(is_back).for_each(|(known, is_back)| known.is_back = is_back);
        // By a clock that was moved nobody can tell what a window still holds: retries may be forgotten, and no request is made up.
        agent.requests = requests;
        if wall == self.wall {
            agent.retries = retries;
        }
    }

    fn arrives(&mut self, agent: usize) {
        if self.now < self.ends_at {
            let next = self.now + self.rng.random_range(1..2 * self.pace);
            self.at(next, Event::Arrives { agent });
        }
        let patience = [100, 1000, 3000].get(self.rng.random_range(0..5usize)).copied();
        let deadline = patience.map(|patience| self.now + patience);
        let (tries, tried) = (Tries::default(), Vec::new());
        let asked = &mut self.agents[agent];
        if asked.stopped.is_some() {
            return;
        }
        self.requests.push(Request { agent, life: asked.life, tries, tried, deadline });
        asked.retry.budget.deposit(0, asked.now());
        asked.requests.push_back(self.now);
        self.ask(self.requests.len() - 1);
    }

    /// Two at random and the better of them, one that is due at once; else any that can be asked.
    fn ask(&mut self, request: usize) {
        let Request { agent, tried, deadline, life, .. } = &self.requests[request];
        let (agent, deadline) = (&mut self.agents[*agent], *deadline);
        if agent.life != *life {
            return;
        }
        let now = agent.now();
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
        if agent.life != request.life {
            return;
        }
        let (now, took) = (agent.now(), Duration::from_millis(self.now - since));
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
    let mut all = [0u64; 5];
    for seed in &seeds {
        let ran = std::panic::catch_unwind(|| World::new(*seed).run());
        let tally = ran.unwrap_or_else(|_| panic!("replay it with SWITCHYARD_SIMULATION_SEED={seed}"));
        all.iter_mut().zip(tally).for_each(|(sum, count)| *sum += count);
    }
    let [tries, good, retries, opened, out] = all;
    println!(
        "{} runs in {:?}: {tries} tries, {good} good, {retries} retries, {opened} openings, {out} circuits out over a restart",
        seeds.len(),
        began.elapsed()
    );
    assert!(seeds.len() < 100 || (retries > 0 && opened > 0 && out > 0), "nothing went wrong in any run");
}

#[test]
fn a_seed_is_the_whole_of_a_run() {
    for seed in [1, 2, 3] {
        assert_eq!(World::new(seed).run(), World::new(seed).run());
    }
}
