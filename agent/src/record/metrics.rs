//! Counters: written by workers without a lock, read when somebody asks.
//!
//! Each worker writes only its own shard, with plain relaxed stores; whoever reads adds the shards up. Labels come from
//! configuration alone (Services, rules, versions), never from requests, so what a caller sends cannot make them many.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::admit::limits::Bound;
use crate::refusal::Reason;

/// Status classes: `1xx` to `5xx`, and `cancelled` for requests whose caller left before there was a status.
pub const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "cancelled"];

/// Upper bounds of the latency histogram's buckets, in microseconds.
pub const BOUNDS_MICROS: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000,
];

/// A counter that only one thread writes.
#[derive(Debug, Default)]
pub struct Cell(AtomicU64);

impl Cell {
    fn add(&self, more: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(more), Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// The counters of one destination: a Service, the rule that led to it, the Service and version it belongs to. There may be thousands, of
/// which few ever count anything: they take their memory when they do.
#[derive(Debug)]
pub struct Series {
    key: SeriesKey,
    workers: usize,
    shards: OnceLock<Box<[SeriesShard]>>,
}

/// Names a series: service, rule, destination Service and version, line by line.
pub type SeriesKey = Arc<str>;

/// The key of a series with these labels. None of them has more than a line.
pub fn series_key(labels: [&str; 4]) -> String {
    labels.join("\n")
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct SeriesShard {
    classes: [Cell; CLASSES.len()],
    buckets: [Cell; BOUNDS_MICROS.len() + 1],
    sum_micros: Cell,
    opened: Cell,
    failed: Cell,
    carried: [Cell; 2],
    copies: [Cell; Copied::ALL.len()],
}

/// What became of a copy of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// An answer to it began, with whatever status.
    Answered,
    /// It was sent, and not answered in time or at all.
    Failed,
    /// There was no instance that it could be sent to.
    NoInstance,
    /// Too many others were under way.
    TooMany,
    /// The request's body was too long to be kept, or did not come to its end.
    Body,
}

impl Copied {
    /// All of them, in the order of the counters.
    pub const ALL: [Self; 5] = [Self::Answered, Self::Failed, Self::NoInstance, Self::TooMany, Self::Body];

    /// The word for it in metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Failed => "failed",
            Self::NoInstance => "no-instance",
            Self::TooMany => "too-many",
            Self::Body => "body",
        }
    }
}

/// Which way bytes of a connection go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the caller.
    ToInstance,
    /// From the instance.
    ToCaller,
}

impl Direction {
    /// Both, in the order of the counters.
    pub const ALL: [Self; 2] = [Self::ToInstance, Self::ToCaller];

    /// The word for it in metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::ToInstance => "to-instance",
            Self::ToCaller => "to-caller",
        }
    }
}

/// A latency histogram, summed over workers; buckets are not cumulative.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// How many fell into each bucket; the last one has no bound.
    pub buckets: [u64; BOUNDS_MICROS.len() + 1],
    /// The sum of all, in microseconds.
    pub sum_micros: u64,
}

impl Series {
    /// Counters at zero for so many workers.
    pub fn new(key: SeriesKey, workers: usize) -> Self {
        Self { key, workers, shards: OnceLock::new() }
    }

    /// Service, rule, destination Service, version.
    pub fn labels(&self) -> [&str; 4] {
        let mut lines = self.key.splitn(4, '\n');
        std::array::from_fn(|_| lines.next().unwrap_or_default())
    }

    fn shard(&self, worker: usize) -> &SeriesShard {
        &self.shards.get_or_init(|| (0..self.workers).map(|_| SeriesShard::default()).collect())[worker]
    }

    fn shards(&self) -> impl Iterator<Item = &SeriesShard> {
        self.shards.get().into_iter().flatten()
    }

    /// Counts one request. `status` 0: the caller left before there was one.
    pub fn count(&self, worker: usize, status: u16, took: Duration) {
        let shard = self.shard(worker);
        let class = match status / 100 {
            class @ 1..=5 => usize::from(class) - 1,
            _ => CLASSES.len() - 1,
        };
        shard.classes[class].add(1);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        shard.buckets[BOUNDS_MICROS.partition_point(|bound| *bound < micros)].add(1);
        shard.sum_micros.add(micros);
    }

    /// Requests by class, in the order of [`CLASSES`].
    pub fn classes(&self) -> [u64; CLASSES.len()] {
        std::array::from_fn(|class| self.shards().map(|s| s.classes[class].get()).sum())
    }

    /// Counts a connection that is not HTTP: it was made, or could not be.
    pub fn connection(&self, worker: usize, made: bool) {
        let shard = self.shard(worker);
        if made { shard.opened.add(1) } else { shard.failed.add(1) }
    }

    /// Counts bytes of such connections.
    pub fn carried(&self, worker: usize, direction: Direction, bytes: usize) {
        self.shard(worker).carried[direction as usize].add(bytes as u64);
    }

    /// Connections that were made, and that could not be.
    pub fn connections(&self) -> [(&'static str, u64); 2] {
        let sum = |of: fn(&SeriesShard) -> &Cell| self.shards().map(|shard| of(shard).get()).sum();
        [("opened", sum(|shard| &shard.opened)), ("failed", sum(|shard| &shard.failed))]
    }

    /// Bytes of such connections.
    pub fn bytes(&self) -> [(&'static str, u64); 2] {
        Direction::ALL.map(|direction| {
            let of = |shard: &SeriesShard| shard.carried[direction as usize].get();
            (direction.word(), self.shards().map(of).sum())
        })
    }

    /// Counts a copy of a request.
    pub fn copied(&self, worker: usize, what: Copied) {
        self.shard(worker).copies[what as usize].add(1);
    }

    /// Copies of requests, by what became of them.
    pub fn copies(&self) -> [(&'static str, u64); Copied::ALL.len()] {
        Copied::ALL.map(|what| (what.word(), self.shards().map(|shard| shard.copies[what as usize].get()).sum()))
    }

    /// How long they took.
    pub fn latency(&self) -> Latency {
        Latency {
            buckets: std::array::from_fn(|bucket| self.shards().map(|s| s.buckets[bucket].get()).sum()),
            sum_micros: self.shards().map(|s| s.sum_micros.get()).sum(),
        }
    }
}

/// What a try ended with that made a retry, as metrics name it; or that it was slow, and another was made beside it.
pub const RETRY_REASONS: [&str; 8] =
    ["server-error", "grpc-status", "status", "connect-failure", "refused-stream", "reset", "timeout", "hedge"];

/// What became of a retry, or why there was none.
pub const RETRY_OUTCOMES: [&str; 14] = [
    "success",
    "failure",
    "cancelled",
    "retries-exhausted",
    "method",
    "body",
    "budget",
    "deadline",
    "latency",
    "circuit-open",
    "retry-after",
    "already-retried",
    "retried-below",
    "no-instance",
];

/// What became of a Service's retries, and how many of its requests the agent answered itself.
#[derive(Debug)]
pub struct Retries {
    shards: Box<[RetryShard]>,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct RetryShard {
    outcomes: [[Cell; RETRY_OUTCOMES.len()]; RETRY_REASONS.len()],
    refusals: [Cell; Reason::ALL.len()],
    overloads: [Cell; Bound::ALL.len()],
    fallbacks: [Cell; Fallback::ALL.len()],
    panics: Cell,
}

/// What stood in for a destination whose circuit was open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// Another destination.
    Destination,
    /// A fixed reply.
    Response,
}

impl Fallback {
    /// Both, in the order of the counters.
    pub const ALL: [Self; 2] = [Self::Destination, Self::Response];

    /// The word for it in metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Destination => "destination",
            Self::Response => "response",
        }
    }
}

impl Retries {
    /// Counters at zero for so many workers.
    pub fn new(workers: usize) -> Self {
        Self { shards: (0..workers).map(|_| RetryShard::default()).collect() }
    }

    /// Counts a retry, or one that was not made. Both words are of the lists above.
    pub fn count(&self, worker: usize, reason: &str, outcome: &str) {
        let reason = RETRY_REASONS.iter().position(|r| *r == reason);
        let outcome = RETRY_OUTCOMES.iter().position(|o| *o == outcome);
        if let (Some(reason), Some(outcome)) = (reason, outcome) {
            self.shards[worker].outcomes[reason][outcome].add(1);
        }
    }

    /// Counts a request that the agent answered itself.
    pub fn refuse(&self, worker: usize, reason: Reason) {
        self.shards[worker].refusals[reason as usize].add(1);
    }

    /// Counts a request of these for which there was too much under way.
    pub fn overloaded(&self, worker: usize, bound: Bound) {
        self.shards[worker].overloads[bound as usize].add(1);
    }

    /// Counts a request that something else stood in for.
    pub fn fell_back(&self, worker: usize, to: Fallback) {
        self.shards[worker].fallbacks[to as usize].add(1);
    }

    /// Counts a try at an instance that would be out if not too many others were.
    pub fn panicked(&self, worker: usize) {
        self.shards[worker].panics.add(1);
    }

    /// Of the requests that were refused, those for which there was too much under way, by the bound.
    pub fn overloads(&self) -> [(&'static str, u64); Bound::ALL.len()] {
        let count = |bound: Bound| self.shards.iter().map(|s| s.overloads[bound as usize].get()).sum();
        Bound::ALL.map(|bound| (bound.field(), count(bound)))
    }

    /// What stood in, and how often.
    pub fn fallbacks(&self) -> [(&'static str, u64); Fallback::ALL.len()] {
        let count = |to: Fallback| self.shards.iter().map(|s| s.fallbacks[to as usize].get()).sum();
        Fallback::ALL.map(|to| (to.word(), count(to)))
    }

    /// Tries at instances that would be out if not too many others were.
    pub fn panics(&self) -> u64 {
        self.shards.iter().map(|s| s.panics.get()).sum()
    }

    /// All that is not zero: reason, outcome, count.
    pub fn retries(&self) -> Vec<(&'static str, &'static str, u64)> {
        let mut all = Vec::new();
        for (r, reason) in RETRY_REASONS.iter().enumerate() {
            for (o, outcome) in RETRY_OUTCOMES.iter().enumerate() {
                let count = self.shards.iter().map(|s| s.outcomes[r][o].get()).sum::<u64>();
                if count > 0 {
                    all.push((*reason, *outcome, count));
                }
            }
        }
        all
    }

    /// All that is not zero: reason, count.
    pub fn refusals(&self) -> Vec<(&'static str, u64)> {
        let count = |reason: Reason| self.shards.iter().map(|s| s.refusals[reason as usize].get()).sum::<u64>();
        Reason::ALL.into_iter().map(|reason| (reason.word(), count(reason))).filter(|(_, n)| *n > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_counted_in_its_class_and_bucket() {
        let series = Series::new(series_key(["a/b", "a/rule", "a/b", ""]).into(), 2);
        assert_eq!((series.labels(), series.classes()), (["a/b", "a/rule", "a/b", ""], [0; 6]));
        series.count(0, 200, Duration::from_micros(500));
        series.count(1, 204, Duration::from_micros(501));
        series.count(1, 503, Duration::from_secs(60));
        series.count(0, 0, Duration::ZERO);
        assert_eq!(series.classes(), [0, 2, 0, 0, 1, 1]);
        let latency = series.latency();
        assert_eq!((latency.buckets[0], latency.buckets[1], latency.buckets[14]), (2, 1, 1));
        assert_eq!(latency.sum_micros, 60_001_001);
    }

    #[test]
    fn every_reason_has_its_own_place() {
        for (position, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, position);
        }
        for (position, bound) in Bound::ALL.into_iter().enumerate() {
            assert_eq!(bound as usize, position);
        }
    }
}
