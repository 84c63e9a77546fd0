//! A worker: one thread with its own runtime, listener, connection pools, random numbers and counters. Nothing here is
//! shared between threads but what [`Shared`] holds.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Cache};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::admit::window::Millis;
use crate::body::Coming;
use crate::check::Checks;
use crate::clock;
use crate::forward::Source;
use crate::forward::pool::Pool;
use crate::intercept::Interception;
use crate::interim::Interim;
use crate::line::Line;
use crate::memory::{ALWAYS_SERVED, Limit};
use crate::record::metrics::{Retries, Series};
use crate::runtime::Runtime;
use crate::state::remembered::Remembered;
use crate::table::Table;
use crate::transitions::Transitions;

/// What all workers of an agent share. Read on the path of a request, written beside it.
#[derive(Debug)]
pub struct Shared {
    /// The table in force.
    pub table: Arc<ArcSwap<Table>>,
    /// What outlives tables.
    pub runtime: Runtime,
    /// Changes of circuits, for logs, counters and the controller.
    pub transitions: Transitions,
    /// What came of health checks.
    pub checks: Checks,
    /// Told when another table is in force.
    pub swapped: tokio::sync::Notify,
    /// Refusals of requests that belong to no Service.
    pub unrouted: Retries,
    /// Connections to addresses that no Service has.
    pub unknown: Arc<Series>,
    /// Set when connections are taken in, rather than sent here by their callers.
    pub interception: Option<Interception>,
    /// How much memory there may be, where that is known.
    pub memory: Option<Limit>,
    /// Connections of callers that were broken off because memory was short.
    pub broken_off: AtomicU64,
}

impl Shared {
    /// Takes over what was known before the agent started, as it is now.
    pub fn recall(&self, known: Remembered) {
        self.transitions.recall(&known.circuits);
        self.runtime.recall(known);
    }

    /// What a restart is to know.
    pub fn remembered(&self, unix_ms: i64) -> Remembered {
        let mut known = Remembered { written_unix_ms: unix_ms, ..self.runtime.remembered() };
        for circuit in &mut known.circuits {
            let service = format!("{}/{}", circuit.namespace, circuit.service);
            if let Some(latest) = self.transitions.of(&service, &circuit.target) {
                (circuit.reason, circuit.since_unix_ms) = (latest.reason, latest.since_ms);
            }
        }
        known
    }

    /// Tells of circuits that are held by hand, or are no more. To be called when a table is swapped, and where some are held, every
    /// second or so for those that are let go by themselves.
    pub fn tell_held(&self) {
        self.transitions.note_held(&self.runtime.circuits(), self.runtime.millis(clock::now()));
    }
}

/// A table as a request holds it: counted by the worker's own thread alone.
pub type TableRef = Rc<Arc<Table>>;

/// Looks whether the shared table has changed without writing anything.
type TableCache = Cache<Arc<ArcSwap<Table>>, Arc<Table>>;

/// One thread's part of the agent.
pub struct Worker {
    /// Which one, from 0.
    pub index: usize,
    /// What it shares with the others.
    pub shared: Arc<Shared>,
    /// Its connections to instances, made from an address of this node.
    pub pool: Pool,
    /// Those that were made from a caller's own address; nobody else may use them.
    pools: RefCell<HashMap<IpAddr, Pool>>,
    table: RefCell<(TableCache, TableRef)>,
    rng: RefCell<SmallRng>,
    /// Copies of requests under way.
    pub copies: Cell<usize>,
    under_way: Cell<i64>,
    ending: Cell<bool>,
    look: Cell<u32>,
    short_of_memory: Cell<bool>,
}

impl Worker {
    /// A worker that has nothing to do yet.
    pub fn new(index: usize, shared: Arc<Shared>) -> Rc<Self> {
        let mut cache = Cache::new(Arc::clone(&shared.table));
        let held = Rc::new(Arc::clone(cache.load()));
        Rc::new(Self {
            index,
            shared,
            pool: Pool::default(),
            pools: RefCell::default(),
            table: RefCell::new((cache, held)),
            rng: RefCell::new(SmallRng::from_os_rng()),
            copies: Cell::new(0),
            under_way: Cell::new(0),
            ending: Cell::new(false),
            look: Cell::new(0),
            short_of_memory: Cell::new(false),
        })
    }

    /// The table in force now. It writes nothing that another thread reads, unless the table has changed.
    pub fn table(&self) -> TableRef {
        let mut table = self.table.borrow_mut();
        let (cache, held) = &mut *table;
        let now = cache.load();
        if !Arc::ptr_eq(now, held) {
            *held = Rc::new(Arc::clone(now));
        }
        Rc::clone(held)
    }

    /// A random number below `bound`; 0 where `bound` is 0.
    pub fn random_below(&self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.rng.borrow_mut().random_range(0..bound) }
    }

    /// The worker's source of randomness.
    pub fn with_rng<T>(&self, with: impl FnOnce(&mut SmallRng) -> T) -> T {
        with(&mut self.rng.borrow_mut())
    }

    /// The time as circuits and budgets count it.
    pub fn millis(&self, now: Instant) -> Millis {
        self.shared.runtime.millis(now)
    }

    /// The connections that callers at this address may use.
    pub fn pool_of(&self, source: IpAddr) -> Pool {
        self.pools.borrow_mut().entry(source).or_default().share()
    }

    /// Closes connections that have been free for too long. To be called every few seconds.
    pub fn sweep(&self, now: Instant) {
        self.pool.sweep(now);
        let table = self.table();
        self.pools.borrow_mut().retain(|source, pool| {
            pool.sweep(now);
            // An address may be another pod's tomorrow.
            pool.is_used() && table.addresses.workload(*source).is_some()
        });
    }

    /// Closes all free connections.
    pub fn close_free(&self) {
        self.pool.clear();
        self.pools.borrow().values().for_each(Pool::clear);
    }

    /// From now on each reply is its connection's last.
    pub fn end(&self) {
        self.ending.set(true);
    }

    /// Whether each reply is its connection's last.
    pub fn is_ending(&self) -> bool {
        self.ending.get()
    }

    /// The number of the next look for memory.
    pub fn next_look(&self) -> u32 {
        self.look.set(self.look.get().wrapping_add(1));
        self.look.get()
    }

    /// The number of the last look for memory: a clock that costs nothing.
    pub fn look(&self) -> u32 {
        self.look.get()
    }

    /// Whether there is no memory for more.
    pub fn set_short_of_memory(&self, is: bool) {
        self.short_of_memory.set(is);
    }

    /// Whether a request cannot be served, because memory is short and others are under way.
    pub fn has_no_memory(&self) -> bool {
        self.short_of_memory.get() && self.under_way() > ALWAYS_SERVED
    }

    /// One request more, or less.
    pub fn requests_under_way(&self, change: i64) {
        self.under_way.set(self.under_way.get() + change);
    }

    /// Requests that have begun and not ended.
    pub fn under_way(&self) -> i64 {
        self.under_way.get()
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("index", &self.index).finish_non_exhaustive()
    }
}

/// A connection that requests come on.
#[derive(Debug)]
pub struct Caller {
    /// The address at the other end.
    pub address: SocketAddr,
    /// Whom it meant to connect to, where it was taken in on its way.
    pub original: Option<SocketAddr>,
    /// The address that instances see, where it is the caller's own.
    pub source: Option<Source>,
    /// The table of its requests when no Service has that address any more.
    pub unknown: OnceCell<TableRef>,
    /// Connections to instances that its requests may use.
    pub pool: Pool,
    /// Interim replies for it, which HTTP/1.1 takes.
    pub interim: Arc<Interim>,
    /// What is known of it.
    pub line: Arc<Line>,
    under_way: Cell<u32>,
    idle_since: Cell<Instant>,
    held: RefCell<Vec<(u32, u32)>>,
    next_held: Cell<u32>,
    sending: RefCell<Vec<Weak<Cell<Coming>>>>,
}

/// Something of a reply that its caller was given and has not asked for more since. While it is there it counts.
#[derive(Debug)]
pub struct Held {
    caller: Rc<Caller>,
    id: u32,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.caller.held.borrow_mut();
        if let Some(at) = held.iter().position(|(id, _)| *id == self.id) {
            held.swap_remove(at);
        }
    }
}

impl Caller {
    /// A connection that no request has come on yet.
    pub fn new(address: SocketAddr, pool: Pool, now: Instant) -> Self {
        Self {
            address,
            original: None,
            unknown: OnceCell::new(),
            source: None,
            pool,
            interim: Arc::default(),
            line: Arc::default(),
            under_way: Cell::new(0),
            idle_since: Cell::new(now),
            held: RefCell::default(),
            next_held: Cell::new(0),
            sending: RefCell::default(),
        }
    }

    /// It was given a part of a reply, at this look for memory.
    pub fn hold(self: &Rc<Self>, look: u32) -> Held {
        let id = self.next_held.get();
        self.next_held.set(id.wrapping_add(1));
        self.held.borrow_mut().push((id, look));
        Held { caller: Rc::clone(self), id }
    }

    /// How many replies it has taken nothing of since that look or before.
    pub fn held_since(&self, look: u32) -> usize {
        // Looks wrap around, and nothing is held for half of all.
        self.held.borrow().iter().filter(|(_, at)| look.wrapping_sub(*at) < u32::MAX / 2).count()
    }

    /// It sends a body, which comes so.
    pub fn sends(&self, body: &Rc<Cell<Coming>>) {
        let mut sending = self.sending.borrow_mut();
        if sending.len() == sending.capacity() {
            sending.retain(|body| body.strong_count() > 0);
        }
        sending.push(Rc::downgrade(body));
    }

    /// How many of the bodies that it sends wait for somebody to take them.
    pub fn bodies_not_taken(&self) -> usize {
        let not_taken = |body: &Weak<Cell<Coming>>| body.upgrade().is_some_and(|body| body.get() == Coming::Well);
        self.sending.borrow().iter().filter(|body| not_taken(body)).count()
    }

    /// A request begins.
    pub fn begin(&self) {
        self.under_way.set(self.under_way.get() + 1);
        self.line.begin();
    }

    /// A request has ended.
    pub fn end(&self, now: Instant) {
        self.under_way.set(self.under_way.get().saturating_sub(1));
        if self.under_way.get() == 0 {
            self.line.end();
        }
        self.idle_since.set(now);
    }

    /// Whether a request is under way.
    pub fn is_under_way(&self) -> bool {
        self.under_way.get() > 0
    }

    /// How long no request has been under way; `None` while one is.
    pub fn idle_for(&self, now: Instant) -> Option<Duration> {
        (self.under_way.get() == 0).then(|| now.saturating_duration_since(self.idle_since.get()))
    }
}
