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

use crate::admit::breaker::Breaker;
use crate::admit::window::Millis;
use crate::clock;
use crate::record::metrics::{Retries, Series};
use crate::retry::budget::{Budget, Limits};
use crate::table::{CircuitSettings, ServiceKey};

/// How long state is kept that no table refers to. Long enough for a rollout to bring an address back.
const KEPT: Duration = Duration::from_secs(600);

/// All runtime state of an agent.
#[derive(Debug)]
pub struct Runtime {
    workers: usize,
    start: Instant,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    breakers: HashMap<(ServiceKey, String), Entry<KnownCircuit>>,
    loads: HashMap<(ServiceKey, SocketAddr), Entry<Load>>,
    services: HashMap<ServiceKey, Entry<ServiceRuntime>>,
    budgets: HashMap<(ServiceKey, String), Entry<Budget>>,
    series: HashMap<[String; 4], Entry<Series>>,
    next_load: u64,
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
}

/// What belongs to one routed Service.
#[derive(Debug)]
pub struct ServiceRuntime {
    /// `namespace/name`.
    pub label: String,
    /// What became of retries, and requests that were refused.
    pub retries: Retries,
}

/// How busy an instance is and how quick, as each worker sees it; a worker reads and writes only its own share.
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
    /// Average latency in microseconds when it was told last; 0: not known yet.
    latency: AtomicU64,
    /// When that was.
    told: AtomicU64,
}

/// What is known of an instance's latency counts half as much after this long, in milliseconds: one that was slow is tried again.
const HALF_LIFE_MS: u64 = 1000;

impl LoadShard {
    fn latency(&self, now: Millis) -> u64 {
        let halvings = now.since(Millis(self.told.load(Relaxed))) / HALF_LIFE_MS;
        self.latency.load(Relaxed) >> halvings.min(63)
    }
}

impl Load {
    fn new(id: u64, workers: usize) -> Self {
        Self { id, shards: (0..workers).map(|_| LoadShard::default()).collect() }
    }

    /// What a further request would cost: latency times queue. An instance never tried costs nothing, so it is tried.
    pub fn cost(&self, worker: usize, now: Millis) -> u64 {
        let shard = &self.shards[worker];
        let queue = u64::from(shard.in_flight.load(Relaxed)) + 1;
        // The unknown latency counts as one microsecond, so that of two unknown ones the idler is taken.
        shard.latency(now).max(1).saturating_mul(queue)
    }

    /// A request goes there.
    pub fn begin(&self, worker: usize) {
        let cell = &self.shards[worker].in_flight;
        cell.store(cell.load(Relaxed) + 1, Relaxed);
    }

    /// A request came back; `latency` is absent when it says nothing about the instance.
    pub fn end(&self, worker: usize, latency: Option<Duration>, now: Millis) {
        let shard = &self.shards[worker];
        shard.in_flight.store(shard.in_flight.load(Relaxed).saturating_sub(1), Relaxed);
        let Some(latency) = latency else { return };
        let took = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1);
        let before = shard.latency(now);
        // Peak sensitive: a slow reply counts at once, quick ones bring the average down by an eighth each.
        let next = if took >= before { took } else { before - (before - took) / 8 };
        shard.latency.store(next, Relaxed);
        shard.told.store(now.0, Relaxed);
    }
}

impl Runtime {
    /// For an agent with so many workers.
    pub fn new(workers: usize) -> Self {
        Self { workers: workers.max(1), start: clock::now(), kept: Mutex::default() }
    }

    /// The time that breakers, windows and budgets use: since the agent started.
    pub fn millis(&self, now: Instant) -> Millis {
        Millis(u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX))
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
        // The window's length is part of its shape; all else can change under a breaker that goes on.
        let same_shape = known.filter(|k| k.settings.breaker.window_ms == settings.breaker.window_ms);
        let breaker = match same_shape {
            Some(known) => Arc::clone(&known.breaker),
            None => Arc::new(Breaker::new(self.workers)),
        };
        let known = KnownCircuit {
            service: service.clone(),
            target: target.to_owned(),
            breaker: Arc::clone(&breaker),
            settings: Arc::clone(settings),
        };
        kept.breakers.insert(key, Entry { value: Arc::new(known), unused_since: None });
        breaker
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
        let key = [service, rule, target, version].map(str::to_owned);
        let workers = self.workers;
        find(&mut self.kept().series, key.clone(), || Series::new(key, workers))
    }

    /// The budget of a policy for the calls to one Service. It keeps what it holds unless the policy's numbers change.
    pub fn budget(&self, service: &ServiceKey, policy: &str, limits: Limits) -> Arc<Budget> {
        let mut kept = self.kept();
        let key = (service.clone(), policy.to_owned());
        if kept.budgets.get(&key).is_some_and(|entry| entry.value.limits() != limits) {
            kept.budgets.remove(&key);
        }
        let workers = self.workers;
        find(&mut kept.budgets, key, || Budget::new(limits, workers))
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

    /// The counters of every destination, in order of their labels.
    pub fn all_series(&self) -> Vec<Arc<Series>> {
        let mut all: Vec<_> = self.kept().series.values().map(|e| Arc::clone(&e.value)).collect();
        all.sort_by(|a, b| a.labels.cmp(&b.labels));
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
        let now = clock::now();
        let mut kept = self.kept();
        kept.breakers
            .retain(|_, entry| used(Arc::strong_count(&entry.value.breaker) > 1, &mut entry.unused_since, now));
        retain(&mut kept.loads, now);
        retain(&mut kept.services, now);
        retain(&mut kept.budgets, now);
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
