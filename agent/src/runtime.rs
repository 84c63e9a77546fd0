//! Runtime state that outlives tables: circuits, load, retry budgets and counters, each under a key that does not change
//! when rules or weights do.
//!
//! It is asked only while a table is built; requests reach what they need through the table, without a lock. What no table
//! refers to any more is kept for a while ([`KEPT`]), so that an endpoint which flaps finds its circuit as it left it.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::admit::breaker::{Breaker, Reason, Settings, State, Transition};
use crate::admit::ejections::Ejections;
use crate::admit::limits::{self, InUse};
use crate::admit::window::Millis;
use crate::clock;
use crate::record::metrics::{Retries, Series, SeriesKey, series_key};
use crate::retry::budget::{Account, Aged};
use crate::state::remembered::{self, Remembered};
use crate::table::{CircuitSettings, Held, ServiceKey};

/// How long state is kept that no table refers to. Long enough for a rollout to bring an address back.
const KEPT: Duration = Duration::from_secs(600);

/// What was counted before the agent started has its time too: a day, far more than any window.
const BEFORE_MS: u64 = 86_400_000;

/// All runtime state of an agent.
#[derive(Debug)]
pub struct Runtime {
    workers: usize,
    /// The monotonic time; another one where time is simulated.
    clock: fn() -> Instant,
    start: Instant,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    breakers: HashMap<(ServiceKey, String), Entry<KnownCircuit>>,
    ejections: HashMap<(ServiceKey, String), Entry<Ejections>>,
    in_use: HashMap<(ServiceKey, String), Entry<InUse>>,
    /// Changes that tables made rather than requests, until they are told.
    changes: Vec<(Arc<KnownCircuit>, Transition)>,
    loads: HashMap<(ServiceKey, SocketAddr), Entry<Load>>,
    services: HashMap<ServiceKey, Entry<ServiceRuntime>>,
    accounts: HashMap<(ServiceKey, u64), Entry<Account>>,
    series: HashMap<SeriesKey, Entry<Series>>,
    next_load: u64,
    /// What was known before the agent started, and no table has asked for yet.
    recalled: Recalled,
}

/// What was known before the agent started, in its own time.
#[derive(Debug, Default)]
struct Recalled {
    circuits: HashMap<(ServiceKey, String), RecalledCircuit>,
    accounts: HashMap<(ServiceKey, u64), remembered::Account>,
    /// Since when nobody has asked for it.
    since: Option<Instant>,
}

#[derive(Debug)]
struct RecalledCircuit {
    window_ms: u64,
    state: State,
    openings: u8,
}

/// A value, and since when no table has referred to it.
#[derive(Debug)]
struct Entry<T> {
    value: Arc<T>,
    unused_since: Option<Instant>,
}

/// A circuit with what is needed to show it.
#[derive(Debug)]
pub struct KnownCircuit {
    /// The Service.
    pub service: ServiceKey,
    /// What it stands for: an address or a version.
    pub target: String,
    /// Its state.
    pub breaker: Arc<Breaker>,
    /// The policy that governed it last.
    pub settings: Arc<CircuitSettings>,
    /// How it is held by hand, and until when.
    pub held: Option<Held>,
}

impl KnownCircuit {
    /// How it is held by hand now.
    pub fn held(&self, now: Millis) -> Option<Held> {
        self.held.and_then(|held| held.at(now))
    }
}

/// What belongs to one routed Service.
#[derive(Debug)]
pub struct ServiceRuntime {
    /// `namespace/name`.
    pub label: String,
    /// What became of retries, and requests that were refused.
    pub retries: Retries,
}

/// An instance of a set: its circuit's target, the circuit, and the policy that governs it.
pub type Member = (String, Arc<Breaker>, Arc<CircuitSettings>);

/// How busy an instance is, how quick and how reliable, as each worker sees it; a worker reads and writes only its own share.
#[derive(Debug)]
pub struct Load {
    /// A number that no other instance has, for pools.
    pub id: u64,
    shards: Box<[LoadShard]>,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct LoadShard {
    in_flight: AtomicU32,
    /// The share of failures among the latest replies, of [`ALL_FAIL`], when the last one was told.
    trouble: AtomicU32,
    /// When that was.
    trouble_told: AtomicU64,
    /// Average latency in microseconds when it was told last; 0: not known yet.
    latency: AtomicU64,
    /// When that was.
    latency_told: AtomicU64,
}

/// What came of a request, as far as it says something about the instance's load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// A good reply after so long.
    Good(Duration),
    /// A failure after so long.
    Failed(Duration),
    /// Nobody waited to its end: it would have taken longer than this.
    Unfinished(Duration),
    /// Nothing.
    Nothing,
}

/// What is known of an instance counts half as much after this long, in milliseconds: one that was slow or failed is tried again.
const HALF_LIFE_MS: u64 = 1000;
/// Latencies below this are alike, in microseconds: between them decides the machine's noise, and not the instance.
const NOISE_US: u64 = 5000;
/// All of the latest replies were failures.
const ALL_FAIL: u32 = 1 << 16;

/// What a further request may expect of an instance.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// Its latency in microseconds when it was told last; `u64::MAX` where nothing is known.
    told: u64,
    /// The same, faded since.
    faded: u64,
    /// How many requests it would have, times how often each must be sent until it is answered well.
    work: f64,
    /// It has failed of late, more than now and then.
    failing: bool,
}

impl Expected {
    /// Whether a request goes here rather than there. The likelier the lower its cost beside the other's, by the square: twice the cost
    /// is a fifth of the requests, ten times the cost a hundredth. Never by the lower cost alone, for then one slow reply would take all
    /// requests from an instance. `chance` is any number that is evenly spread over its range.
    pub fn beats(&self, other: &Self, chance: impl FnOnce() -> u32) -> bool {
        let (own, others) = (self.latency_beside(other) * self.work, other.latency_beside(self) * other.work);
        if own == others {
            return false;
        }
        let (own, others) = (own * own, others * others);
        f64::from(chance()) * (own + others) < others * f64::from(u32::MAX)
    }

    /// Whether it has failed of late, more than now and then.
    pub fn is_failing(&self) -> bool {
        self.failing
    }

    /// What was told long ago fades to what the other is known for, never below: to be forgotten is not to be quick. Where nothing
    /// is known, it is taken for as quick as the other, and so is who fails quickly.
    fn latency_beside(&self, other: &Self) -> f64 {
        let known = if self.failing { u64::MAX } else { self.told };
        self.faded.max(known.min(other.faded)).max(NOISE_US) as f64
    }
}

impl LoadShard {
    fn latency(&self, now: Millis) -> u64 {
        let halvings = now.since(Millis(self.latency_told.load(Relaxed))) / HALF_LIFE_MS;
        self.latency.load(Relaxed) >> halvings.min(63)
    }

    fn trouble(&self, now: Millis) -> u32 {
        let trouble = self.trouble.load(Relaxed);
        if trouble == 0 {
            return 0;
        }
        let age = now.since(Millis(self.trouble_told.load(Relaxed)));
        let halved = trouble >> (age / HALF_LIFE_MS).min(31);
        // Between two halvings along a straight line.
        halved - (u64::from(halved) * (age % HALF_LIFE_MS) / (2 * HALF_LIFE_MS)) as u32
    }

    /// Each reply counts for an eighth.
    fn tell_latency(&self, took: Duration, only_slower: bool, now: Millis) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let before = self.latency(now);
        if took < before && only_slower {
            return;
        }
        let next = if before == 0 { took } else { before - before / 8 + took.div_ceil(8) };
        self.latency.store(next, Relaxed);
        self.latency_told.store(now.0, Relaxed);
    }

    /// Each reply counts for an eighth.
    fn tell_trouble(&self, failed: bool, now: Millis) {
        let before = self.trouble(now);
        let next = if failed { before + (ALL_FAIL - before) / 8 } else { before - before.div_ceil(8) };
        self.trouble.store(next, Relaxed);
        self.trouble_told.store(now.0, Relaxed);
    }
}

impl Load {
    /// An instance that nothing is known of, for so many workers.
    pub fn new(id: u64, workers: usize) -> Self {
        Self { id, shards: (0..workers).map(|_| LoadShard::default()).collect() }
    }

    /// What a further request may expect. Where a circuit watches its failures (`is_watched`), they are the circuit's alone: it must see
    /// them to open, and the policy says how many there may be.
    pub fn expected(&self, worker: usize, is_watched: bool, now: Millis) -> Expected {
        let shard = &self.shards[worker];
        let queue = f64::from(shard.in_flight.load(Relaxed)) + 1.0;
        let trouble = if is_watched { 0 } else { shard.trouble(now) };
        // The fourth power: one failure among good replies changes little, and who only fails is asked hardly ever, however many requests
        // wait for the others. Even then it is not infinite: where all fail, the idler one is taken.
        let work = if trouble == 0 {
            queue
        } else {
            let good = 1.0 - f64::from(trouble.min(ALL_FAIL / 16 * 15)) / f64::from(ALL_FAIL);
            queue / (good * good * good * good)
        };
        let told = match shard.latency.load(Relaxed) {
            0 => u64::MAX,
            told => told,
        };
        Expected { told, faded: shard.latency(now), work, failing: trouble > ALL_FAIL / 6 }
    }

    /// The average latency of late, which fades; zero where nothing is known.
    pub fn latency(&self, worker: usize, now: Millis) -> Duration {
        Duration::from_micros(self.shards[worker].latency(now))
    }

    /// A request goes there.
    pub fn begin(&self, worker: usize) {
        let cell = &self.shards[worker].in_flight;
        cell.store(cell.load(Relaxed) + 1, Relaxed);
    }

    /// A request has come to its end.
    pub fn end(&self, worker: usize, told: Told, now: Millis) {
        let shard = &self.shards[worker];
        shard.in_flight.store(shard.in_flight.load(Relaxed).saturating_sub(1), Relaxed);
        match told {
            Told::Good(took) => {
                shard.tell_latency(took, false, now);
                if shard.trouble.load(Relaxed) != 0 {
                    shard.tell_trouble(false, now);
                }
            }
            // A failure that comes quickly must not make an instance look quick.
            Told::Failed(took) => {
                shard.tell_latency(took, true, now);
                shard.tell_trouble(true, now);
            }
            Told::Unfinished(took) => shard.tell_latency(took, true, now),
            Told::Nothing => {}
        }
    }
}

impl Runtime {
    /// For an agent with so many workers.
    pub fn new(workers: usize) -> Self {
        Self::with_clock(workers, clock::now)
    }

    /// The same, with another clock.
    pub fn with_clock(workers: usize, clock: fn() -> Instant) -> Self {
        Self { workers: workers.max(1), clock, start: clock(), kept: Mutex::default() }
    }

    /// The time that breakers, windows and budgets use: since a day before the agent started.
    pub fn millis(&self, now: Instant) -> Millis {
        let since = now.saturating_duration_since(self.start).as_millis();
        Millis(u64::try_from(since).unwrap_or(u64::MAX).saturating_add(BEFORE_MS))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The circuit of an instance or a destination.
    pub fn breaker(&self, service: &ServiceKey, target: &str, settings: &Arc<CircuitSettings>) -> Arc<Breaker> {
        let mut kept = self.kept();
        let key = (service.clone(), target.to_owned());
        let known = kept.breakers.get(&key).map(|entry| Arc::clone(&entry.value));
        if let Some(known) = &known
            && known.settings == *settings
        {
            return Arc::clone(&known.breaker);
        }
        // The window's length is part of its shape; all else can change under a breaker that goes on. What no table asks for any more
        // had no policy, and another policy does not take it up again.
        let goes_on = |k: &&Arc<KnownCircuit>| {
            k.settings.breaker.window_ms == settings.breaker.window_ms
                && (k.settings.name == settings.name || Arc::strong_count(&k.breaker) > 1)
        };
        let breaker = match known.as_ref().filter(goes_on) {
            Some(known) => {
                let now = self.millis((self.clock)());
                known.breaker.shorten(&settings.breaker, now);
                if settings.health_check.is_none() {
                    // Its set makes room when it is put together, which follows.
                    let change = known.breaker.checks_good(&settings.breaker, Reason::Unchecked, now, None);
                    kept.changes.extend(change.map(|change| (Arc::clone(known), change)));
                }
                Arc::clone(&known.breaker)
            }
            None => {
                let recalled =
                    kept.recalled.circuits.remove(&key).filter(|r| r.window_ms == settings.breaker.window_ms);
                Arc::new(
                    recalled.map_or_else(|| Breaker::new(self.workers), |recalled| self.reopened(&recalled, settings)),
                )
            }
        };
        let circuit = KnownCircuit {
            service: service.clone(),
            target: target.to_owned(),
            breaker: Arc::clone(&breaker),
            settings: Arc::clone(settings),
            held: self.held(settings),
        };
        let circuit = Arc::new(circuit);
        let was = known.filter(|k| !Arc::ptr_eq(&k.breaker, &breaker)).map(|k| k.breaker.state());
        if let Some(from) = was.filter(|from| *from != State::Closed) {
            let transition = Transition { from, to: State::Closed, reason: Reason::BegunAnew };
            kept.changes.push((Arc::clone(&circuit), transition));
        }
        kept.breakers.insert(key, Entry { value: circuit, unused_since: None });
        breaker
    }

    /// A circuit as it was before the agent started. It stays open no longer than its policy can ask for now.
    fn reopened(&self, recalled: &RecalledCircuit, settings: &CircuitSettings) -> Breaker {
        let now = self.millis((self.clock)());
        let longest = settings.breaker.open_for_ms(recalled.openings, u32::MAX);
        let state = match recalled.state {
            State::Open { until } => State::Open { until: until.min(now.plus(longest)) },
            State::Unhealthy { opened: true } if settings.health_check.is_none() => State::Open { until: now },
            State::Unhealthy { opened: false } if settings.health_check.is_none() => State::Closed,
            state => state,
        };
        Breaker::recalled(self.workers, state, recalled.openings)
    }

    /// Takes over what was known before the agent started, as it is now. What is of another policy by the time a table asks for it is
    /// dropped, and so is what none asks for.
    pub fn recall(&self, known: Remembered) {
        let now = self.millis((self.clock)());
        let circuits = known.circuits.into_iter().map(|circuit| {
            let openings = u8::try_from(circuit.openings).unwrap_or(u8::MAX);
            let state = match circuit.unhealthy {
                true => State::Unhealthy { opened: circuit.opened },
                false => State::Open { until: now.plus(circuit.left_ms) },
            };
            let service = ServiceKey { namespace: circuit.namespace, name: circuit.service };
            ((service, circuit.target), RecalledCircuit { window_ms: circuit.window_ms, state, openings })
        });
        let accounts = known.accounts.into_iter().map(|account| {
            let service = ServiceKey { namespace: account.namespace.clone(), name: account.service.clone() };
            ((service, account.window_ms), account)
        });
        let recalled =
            Recalled { circuits: circuits.collect(), accounts: accounts.collect(), since: Some((self.clock)()) };
        self.kept().recalled = recalled;
    }

    /// What a restart is to know: circuits that are not closed, those too that no table refers to at the moment, and budgets. Reasons
    /// are not known here.
    pub fn remembered(&self) -> Remembered {
        let kept = self.kept();
        let now = self.millis((self.clock)());
        let circuit = |(service, target): &(ServiceKey, String), window_ms, state, openings: u8| {
            let left_ms = match state {
                State::Closed => return None,
                State::Open { until } => until.since(now),
                State::HalfOpen { .. } | State::Unhealthy { .. } => 0,
            };
            Some(remembered::Circuit {
                namespace: service.namespace.clone(),
                service: service.name.clone(),
                target: target.clone(),
                window_ms,
                left_ms,
                openings: u32::from(openings),
                unhealthy: matches!(state, State::Unhealthy { .. }),
                opened: state == State::Unhealthy { opened: true },
                ..remembered::Circuit::default()
            })
        };
        let known = kept.breakers.iter().filter_map(|(key, entry)| {
            let (breaker, window_ms) = (&entry.value.breaker, entry.value.settings.breaker.window_ms);
            circuit(key, window_ms, breaker.state(), breaker.openings())
        });
        let recalled = kept.recalled.circuits.iter();
        let recalled = recalled.filter_map(|(key, known)| circuit(key, known.window_ms, known.state, known.openings));
        let counted =
            |aged: Vec<Aged>| aged.into_iter().map(|(age_ms, count)| remembered::Counted { age_ms, count }).collect();
        let accounts = kept.accounts.iter().filter_map(|((service, window_ms), entry)| {
            let retries = entry.value.retries(now);
            (!retries.is_empty()).then(|| remembered::Account {
                namespace: service.namespace.clone(),
                service: service.name.clone(),
                window_ms: *window_ms,
                requests: counted(entry.value.requests(now)),
                retries: counted(retries),
            })
        });
        let since_start = kept.recalled.since.map_or(0, |since| now.since(self.millis(since)));
        let recalled_accounts = kept.recalled.accounts.values().map(|account| account.clone().older(since_start));
        Remembered {
            circuits: known.chain(recalled).collect(),
            accounts: accounts.chain(recalled_accounts).collect(),
            written_unix_ms: 0,
        }
    }

    /// A number that changes with each retry that is taken from a budget.
    pub fn withdrawn(&self) -> u64 {
        self.kept().accounts.values().map(|entry| entry.value.withdrawn_mark()).fold(0, u64::wrapping_add)
    }

    /// How a policy's circuits are held by hand, in the time that circuits count.
    pub fn held(&self, settings: &CircuitSettings) -> Option<Held> {
        let hold = settings.hold.as_ref()?;
        Some(hold.held(self.millis((self.clock)()), clock::unix_millis()))
    }

    /// A set of circuits of a Service under its name, with those that are in it from now on and which share of them may be out.
    pub fn ejections(&self, service: &ServiceKey, set: &str, members: &[Member], share_ppm: u32) -> Arc<Ejections> {
        let mut kept = self.kept();
        let ejections = find(&mut kept.ejections, (service.clone(), set.to_owned()), Ejections::default);
        let circuits: Vec<(Arc<Breaker>, Settings)> =
            members.iter().map(|(_, breaker, settings)| (Arc::clone(breaker), settings.breaker)).collect();
        for (at, transition) in ejections.set_members(&circuits, share_ppm, self.millis((self.clock)())) {
            let known = kept.breakers.get(&(service.clone(), members[at].0.clone())).map(|e| Arc::clone(&e.value));
            kept.changes.extend(known.map(|known| (known, transition)));
        }
        ejections
    }

    /// What is under way of what a policy bounds, under the name of its target.
    pub fn in_use(&self, service: &ServiceKey, target: &str, limits: limits::Limits) -> Arc<InUse> {
        let workers = self.workers;
        let in_use = find(&mut self.kept().in_use, (service.clone(), target.to_owned()), || InUse::new(workers));
        if let Some(adaptive) = limits.adaptive {
            let since_1970 = u64::try_from(clock::unix_millis()).unwrap_or(0);
            in_use.adapt(adaptive, self.millis((self.clock)()), since_1970);
        }
        in_use
    }

    /// All that is under way of what policies bound: Service, target, how much.
    pub fn all_in_use(&self) -> Vec<(ServiceKey, String, Arc<InUse>)> {
        let kept = self.kept();
        let in_use = kept.in_use.iter().filter(|(_, entry)| Arc::strong_count(&entry.value) > 1);
        let mut all: Vec<_> = in_use.map(|(key, e)| (key.0.clone(), key.1.clone(), Arc::clone(&e.value))).collect();
        all.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        all
    }

    /// Changes of circuits that tables made, since this was asked last.
    pub fn take_changes(&self) -> Vec<(Arc<KnownCircuit>, Transition)> {
        std::mem::take(&mut self.kept().changes)
    }

    /// The load of an instance.
    pub fn load(&self, service: &ServiceKey, address: SocketAddr) -> Arc<Load> {
        let mut kept = self.kept();
        let id = kept.next_load;
        kept.next_load += 1;
        let workers = self.workers;
        find(&mut kept.loads, (service.clone(), address), || Load::new(id, workers))
    }

    /// The counters of a destination: of which Service, by which rule, to which Service and version.
    pub fn series(&self, service: &str, rule: &str, target: &str, version: &str) -> Arc<Series> {
        let key = series_key([service, rule, target, version]);
        let mut kept = self.kept();
        if let Some(known) = kept.series.get(key.as_str()) {
            return Arc::clone(&known.value);
        }
        let key = SeriesKey::from(key);
        find(&mut kept.series, Arc::clone(&key), || Series::new(key, self.workers))
    }

    /// What the calls to one Service have drawn for retries, in windows of one length.
    pub fn account(&self, service: &ServiceKey, window_ms: u64) -> Arc<Account> {
        let mut kept = self.kept();
        let key = (service.clone(), window_ms);
        if let Some(entry) = kept.accounts.get(&key) {
            return Arc::clone(&entry.value);
        }
        let recalled = kept.recalled.accounts.remove(&key);
        let started = self.millis(kept.recalled.since.unwrap_or(self.start));
        let account = recalled.map_or_else(
            || Account::new(window_ms, self.workers),
            |recalled| {
                let aged = |counted: &[remembered::Counted]| -> Vec<Aged> {
                    counted.iter().map(|c| (c.age_ms, c.count)).collect()
                };
                let (requests, retries) = (aged(&recalled.requests), aged(&recalled.retries));
                Account::recalled(window_ms, self.workers, &requests, &retries, started)
            },
        );
        find(&mut kept.accounts, key, || account)
    }

    /// The counters of a routed Service.
    pub fn service(&self, key: &ServiceKey) -> Arc<ServiceRuntime> {
        let workers = self.workers;
        find(&mut self.kept().services, key.clone(), || ServiceRuntime {
            label: key.to_string(),
            retries: Retries::new(workers),
        })
    }

    /// Every circuit that a table refers to, in order of their names.
    pub fn circuits(&self) -> Vec<Arc<KnownCircuit>> {
        let kept = self.kept();
        let in_use = kept.breakers.values().filter(|e| Arc::strong_count(&e.value.breaker) > 1);
        let mut all: Vec<_> = in_use.map(|e| Arc::clone(&e.value)).collect();
        all.sort_by(|a, b| (&a.service, &a.target).cmp(&(&b.service, &b.target)));
        all
    }

    /// Does this with every circuit that a table refers to, in no particular order. No table can be built meanwhile.
    pub fn each_circuit(&self, mut with: impl FnMut(&KnownCircuit)) {
        let kept = self.kept();
        let in_use = kept.breakers.values().filter(|entry| Arc::strong_count(&entry.value.breaker) > 1);
        in_use.for_each(|entry| with(&entry.value));
    }

    /// The counters of every destination, in order of their labels.
    pub fn all_series(&self) -> Vec<Arc<Series>> {
        let mut all: Vec<_> = self.kept().series.values().map(|e| Arc::clone(&e.value)).collect();
        all.sort_by(|a, b| a.labels().cmp(&b.labels()));
        all
    }

    /// What belongs to each routed Service, in order of their names.
    pub fn all_services(&self) -> Vec<Arc<ServiceRuntime>> {
        let mut all: Vec<_> = self.kept().services.values().map(|e| Arc::clone(&e.value)).collect();
        all.sort_by(|a, b| a.label.cmp(&b.label));
        all
    }

    /// Lets go of what no table has referred to for [`KEPT`].
    pub fn forget_unused(&self) {
        let now = (self.clock)();
        let mut kept = self.kept();
        if kept.recalled.since.is_some_and(|since| now.duration_since(since) >= KEPT) {
            kept.recalled = Recalled::default();
        }
        kept.breakers
            .retain(|_, entry| used(Arc::strong_count(&entry.value.breaker) > 1, &mut entry.unused_since, now));
        retain(&mut kept.ejections, now);
        retain(&mut kept.in_use, now);
        retain(&mut kept.loads, now);
        retain(&mut kept.services, now);
        retain(&mut kept.accounts, now);
        retain(&mut kept.series, now);
    }
}

fn find<K: Hash + Eq, T>(map: &mut HashMap<K, Entry<T>>, key: K, make: impl FnOnce() -> T) -> Arc<T> {
    let entry = map.entry(key).or_insert_with(|| Entry { value: Arc::new(make()), unused_since: None });
    Arc::clone(&entry.value)
}

fn retain<K: Hash + Eq, T>(map: &mut HashMap<K, Entry<T>>, now: Instant) {
    map.retain(|_, entry| used(Arc::strong_count(&entry.value) > 1, &mut entry.unused_since, now));
}

fn used(in_use: bool, unused_since: &mut Option<Instant>, now: Instant) -> bool {
    if in_use {
        *unused_since = None;
        return true;
    }
    now.duration_since(*unused_since.get_or_insert(now)) < KEPT
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Two of the instances at random, and of those the one that promises more: as a worker chooses.
    fn choose(loads: &[Load], now: u64, rng: &mut SmallRng) -> usize {
        let first = rng.random_range(0..loads.len());
        let second = (first + rng.random_range(1..loads.len())) % loads.len();
        let expected = |instance: usize| loads[instance].expected(0, false, Millis(now));
        if expected(second).beats(&expected(first), || rng.random()) { second } else { first }
    }

    /// A service of which each instance answers well or fails, after so many milliseconds; one worker that sends it so many requests a
    /// millisecond.
    struct Service {
        loads: Vec<Load>,
        answers: Vec<(bool, u64)>,
        under_way: Vec<(u64, usize, Told)>,
        now: u64,
        rng: SmallRng,
    }

    impl Service {
        fn new(answers: &[(bool, u64)], seed: u64) -> Self {
            let loads = (0..answers.len()).map(|id| Load::new(id as u64, 1)).collect();
            let rng = SmallRng::seed_from_u64(seed);
            Self { loads, answers: answers.to_vec(), under_way: Vec::new(), now: 1_000_000, rng }
        }

        /// How many requests went to each instance in so many milliseconds.
        fn run(&mut self, milliseconds: u64, per_ms: u32) -> Vec<u64> {
            let mut asked = vec![0; self.loads.len()];
            for _ in 0..milliseconds {
                let (done, left) = self.under_way.drain(..).partition(|(until, _, _)| *until <= self.now);
                self.under_way = left;
                let done: Vec<(u64, usize, Told)> = done;
                for (_, instance, told) in done {
                    self.loads[instance].end(0, told, Millis(self.now));
                }
                for _ in 0..per_ms {
                    let instance = choose(&self.loads, self.now, &mut self.rng);
                    self.loads[instance].begin(0);
                    asked[instance] += 1;
                    let (good, after) = self.answers[instance];
                    let took = Duration::from_millis(after).max(Duration::from_micros(200));
                    let told = if good { Told::Good(took) } else { Told::Failed(took) };
                    self.under_way.push((self.now + after, instance, told));
                }
                self.now += 1;
            }
            asked
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn who_only_fails_gets_next_to_nothing_however_quickly_it_fails_and_its_share_once_it_is_well(
            seed: u64, good_ms in 0u64..300, bad_ms in 0u64..50, others in 1usize..5, per_ms in 1u32..4,
        ) {
            let mut answers = vec![(true, good_ms); others];
            answers.push((false, bad_ms));
            let mut service = Service::new(&answers, seed);
            service.run(3_000, per_ms);
            let asked = service.run(20_000, per_ms);
            let all: u64 = asked.iter().sum();
            prop_assert!(asked[others] * 20 < all, "{asked:?}");

            service.answers[others] = (true, good_ms);
            service.run(4_000 + good_ms, per_ms);
            let asked = service.run(10_000, per_ms);
            let all: u64 = asked.iter().sum();
            prop_assert!(asked[others] * (others as u64 + 1) * 2 > all, "well again: {asked:?}");
        }

        #[test]
        fn one_failure_among_many_good_replies_moves_no_traffic(seed: u64, others in 1usize..4) {
            let mut service = Service::new(&vec![(true, 2); others + 1], seed);
            let mut asked = vec![0; others + 1];
            for _ in 0..100 {
                service.answers[0].0 = false;
                service.run(1, 1);
                service.answers[0].0 = true;
                let more = service.run(99, 1);
                asked.iter_mut().zip(more).for_each(|(all, more)| *all += more);
            }
            let all: u64 = asked.iter().sum();
            prop_assert!(asked[0] * (others as u64 + 1) * 3 > all * 2, "{asked:?}");
        }

        #[test]
        fn who_is_not_known_or_was_long_not_asked_wins_no_more_than_its_share(seed: u64) {
            let mut service = Service::new(&[(true, 5), (true, 5)], seed);
            service.run(2_000, 1);
            service.loads.push(Load::new(9, 1));
            // It takes the request, and never answers.
            service.answers.push((true, 1 << 40));
            let asked = service.run(1_000, 1);
            prop_assert!(asked[2] < 400, "{asked:?}");
        }
    }

    #[test]
    fn who_keeps_callers_waiting_until_they_leave_is_slow() {
        let (hangs, quick) = (Load::new(0, 1), Load::new(1, 1));
        quick.begin(0);
        quick.end(0, Told::Good(Duration::from_millis(1)), Millis(0));
        hangs.begin(0);
        hangs.end(0, Told::Unfinished(Duration::from_secs(1)), Millis(0));
        let expected = |load: &Load| load.expected(0, false, Millis(1));
        for chance in [u32::MAX / 100, u32::MAX / 100 * 99] {
            assert!(expected(&quick).beats(&expected(&hangs), || chance));
            assert!(!expected(&hangs).beats(&expected(&quick), || chance));
        }
    }

    #[test]
    fn one_slow_reply_leaves_an_instance_its_share() {
        let mut service = Service::new(&[(true, 1), (true, 1)], 7);
        service.run(1_000, 1);
        service.answers[0].1 = 50;
        while service.under_way.iter().all(|(_, instance, _)| *instance != 0) {
            service.run(1, 1);
        }
        service.answers[0].1 = 1;
        let asked = service.run(300, 1);
        assert!(asked[0] > 60, "{asked:?}");
    }

    #[test]
    fn failures_that_a_circuit_watches_leave_an_instance_its_share_until_it_opens() {
        let (fails, well) = (Load::new(0, 1), Load::new(1, 1));
        for _ in 0..100 {
            fails.begin(0);
            fails.end(0, Told::Failed(Duration::from_millis(1)), Millis(0));
            well.begin(0);
            well.end(0, Told::Good(Duration::from_millis(1)), Millis(0));
        }
        let expected = |load: &Load, is_watched| load.expected(0, is_watched, Millis(1));
        assert!(!expected(&well, true).beats(&expected(&fails, true), || 0), "a tie");
        assert!(expected(&well, false).beats(&expected(&fails, false), || u32::MAX / 100 * 99));
    }

    #[test]
    fn what_is_forgotten_is_not_taken_for_quick() {
        let (asked, forgotten) = (Load::new(0, 1), Load::new(1, 1));
        for load in [&asked, &forgotten] {
            load.begin(0);
            load.end(0, Told::Good(Duration::from_millis(3)), Millis(0));
        }
        let now = Millis(60_000);
        asked.begin(0);
        asked.end(0, Told::Good(Duration::from_millis(3)), now);
        let expected = |load: &Load| load.expected(0, false, now);
        assert!(
            !expected(&forgotten).beats(&expected(&asked), || 0)
                && !expected(&asked).beats(&expected(&forgotten), || 0)
        );
    }
}
