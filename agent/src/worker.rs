//! A worker: one thread with its own runtime, listener, connection pools, random numbers and counters. Nothing here is
//! shared between threads but what [`Shared`] holds.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Cache};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::admit::window::Millis;
use crate::forward::pool::Pool;
use crate::interim::Interim;
use crate::line::Line;
use crate::record::metrics::Retries;
use crate::runtime::Runtime;
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
    /// Refusals of requests that belong to no Service.
    pub unrouted: Retries,
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
    /// Its connections to instances.
    pub pool: Pool,
    table: RefCell<(TableCache, TableRef)>,
    rng: RefCell<SmallRng>,
    under_way: Cell<i64>,
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
            table: RefCell::new((cache, held)),
            rng: RefCell::new(SmallRng::from_os_rng()),
            under_way: Cell::new(0),
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
    /// Interim replies for it, which HTTP/1.1 takes.
    pub interim: Arc<Interim>,
    /// What is known of it.
    pub line: Arc<Line>,
    under_way: Cell<u32>,
    idle_since: Cell<Instant>,
}

impl Caller {
    /// A connection that no request has come on yet.
    pub fn new(address: SocketAddr, now: Instant) -> Self {
        Self {
            address,
            interim: Arc::default(),
            line: Arc::default(),
            under_way: Cell::new(0),
            idle_since: Cell::new(now),
        }
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
