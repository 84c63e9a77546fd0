//! A sliding window: how many requests there were lately, how many of them failed, and how many were slow.
//!
//! The window's length is cut into [`BUCKETS`] equal buckets, counted from an origin. What is older than the ten newest
//! buckets no longer counts, so the window holds between nine and ten tenths of its length.
//!
//! Every worker has a shard of its own and is its only writer: recording is a load and a store of one word that no other
//! core writes. Readers add up the shards; they see each bucket whole, for it is one word. Slow replies have shards of their own,
//! made when there is the first one: most circuits never need them.
//!
//! Invariants: nothing recorded before [`Window::reset`] counts after it; `failed` and `slow` are never above `total`
//! (`the_window_counts_what_a_plain_list_counts`).

use std::fmt;
use std::sync::OnceLock;

use super::atomic::{AtomicU64, Ordering::Relaxed};

/// How many buckets a window counts.
pub const BUCKETS: u64 = 10;

/// Words of a shard: the power of two above [`BUCKETS`], so that bucket numbers may wrap; two cache lines.
const SLOTS: usize = 16;

/// Bits of a bucket's number. It wraps after 2^20 buckets: 29 hours at the shortest window of a second. Only what a worker
/// recorded just so long ago, with nothing since, could be taken for new.
const NUMBER_BITS: u32 = 20;
const NUMBER_MASK: u64 = (1 << NUMBER_BITS) - 1;

/// Bits of each of a bucket's two counts. At the limit of 4 million both are halved, which keeps their ratio.
const COUNT_BITS: u32 = 22;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// Bits of the origin's time: 557 years.
const TIME_BITS: u32 = 44;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;

/// A point in time, in milliseconds since an epoch that the caller chooses; it never goes back. Below 2^44.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    /// The point in time so many milliseconds later.
    pub fn plus(self, milliseconds: u64) -> Self {
        Self(self.0.saturating_add(milliseconds))
    }

    /// Milliseconds from `earlier` to here; 0 if it is not earlier.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}

/// What a window holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests.
    pub total: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// Those of them that took long, whether they failed or not.
    pub slow: u64,
}

/// The sliding window; see the module.
#[derive(Debug)]
pub struct Window {
    /// Time from which buckets are counted, and the number of the first.
    origin: AtomicU64,
    shards: Box<[Shard]>,
    /// The same buckets, of slow replies; each bucket's `failed` is how many.
    slow: OnceLock<Box<[Shard]>>,
}

/// One worker's buckets, apart from those of the others by cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard([AtomicU64; SLOTS]);

impl Window {
    /// An empty window for so many workers (at least one).
    pub fn new(workers: usize) -> Self {
        Self { origin: AtomicU64::new(0), shards: shards(workers.max(1)), slow: OnceLock::new() }
    }

    /// Counts a request of `worker`, whose shard nobody else writes meanwhile. `length_ms` is the window's length; a length
    /// that differs from the last one makes the window start afresh, more or less.
    pub fn record(&self, worker: usize, now: Millis, length_ms: u64, failed: bool, slow: bool) {
        let number = self.number(now, length_ms);
        let worker = worker % self.shards.len();
        let Some(slot) = self.shards.get(worker).and_then(|shard| shard.slot(number)) else { return };
        let bucket = Bucket::unpack(slot.load(Relaxed)).at(number);
        slot.store(bucket.with(failed).pack(), Relaxed);
        if slow || (bucket.is_full() && self.slow.get().is_some()) {
            let slow_shards = self.slow.get_or_init(|| shards(self.shards.len()));
            let Some(slot) = slow_shards.get(worker).and_then(|shard| shard.slot(number)) else { return };
            let halve = u32::from(bucket.is_full());
            let of_slow = Bucket::unpack(slot.load(Relaxed)).at(number);
            let failed = (of_slow.failed >> halve) + u64::from(slow);
            slot.store(Bucket { failed, ..of_slow }.pack(), Relaxed);
        }
    }

    /// Counts so many requests that were recorded elsewhere, at that time. Only before any worker records.
    pub fn put(&mut self, at: Millis, length_ms: u64, total: u64) {
        let number = self.number(at, length_ms);
        if let Some(slot) = self.shards.first().and_then(|shard| shard.slot(number)) {
            let bucket = Bucket::unpack(slot.load(Relaxed)).at(number);
            slot.store(Bucket { total: (bucket.total + total).min(COUNT_MASK), ..bucket }.pack(), Relaxed);
        }
    }

    /// How many were recorded in each bucket that counts, by how long ago it began.
    pub fn ages(&self, now: Millis, length_ms: u64) -> Vec<(u64, u64)> {
        let newest = self.number(now, length_ms);
        let width = (length_ms / BUCKETS).max(1);
        let into = now.since(Millis(self.origin.load(Relaxed) & TIME_MASK)) % width;
        let age = |bucket: Bucket| (newest.wrapping_sub(bucket.number) & NUMBER_MASK) * width + into;
        lately(&self.shards, newest).filter(|bucket| bucket.total > 0).map(|b| (age(b), b.total)).collect()
    }

    /// What all workers recorded in the window that ends at `now`.
    pub fn counts(&self, now: Millis, length_ms: u64) -> Counts {
        let newest = self.number(now, length_ms);
        let mut counts = Counts::default();
        for bucket in lately(&self.shards, newest) {
            counts.total += bucket.total;
            counts.failed += bucket.failed;
        }
        if let Some(slow) = self.slow.get() {
            // Two words, which may be read in the middle of a change.
            counts.slow = lately(slow, newest).map(|bucket| bucket.failed).sum::<u64>().min(counts.total);
        }
        counts
    }

    /// Forgets everything. The buckets are counted anew from here, far enough above the old ones that none of those is in
    /// the window, nor one that a worker whose clock is a little ahead began already.
    pub fn reset(&self, now: Millis, length_ms: u64) {
        let first = self.number(now, length_ms) + BUCKETS + 1;
        self.origin.store((now.0 & TIME_MASK) | ((first & NUMBER_MASK) << TIME_BITS), Relaxed);
    }

    fn number(&self, now: Millis, length_ms: u64) -> u64 {
        let origin = self.origin.load(Relaxed);
        let elapsed = now.since(Millis(origin & TIME_MASK));
        ((origin >> TIME_BITS) + elapsed / (length_ms / BUCKETS).max(1)) & NUMBER_MASK
    }
}

fn shards(workers: usize) -> Box<[Shard]> {
    (0..workers).map(|_| Shard::default()).collect()
}

/// The buckets that count, where `newest` is the newest one's number.
fn lately(shards: &[Shard], newest: u64) -> impl Iterator<Item = Bucket> {
    let all = shards.iter().flat_map(|shard| &shard.0).map(|slot| Bucket::unpack(slot.load(Relaxed)));
    all.filter(move |bucket| newest.wrapping_sub(bucket.number) & NUMBER_MASK < BUCKETS)
}

impl Shard {
    fn slot(&self, number: u64) -> Option<&AtomicU64> {
        self.0.get(usize::try_from(number).ok()? % SLOTS)
    }
}

/// One bucket as it is read and written: a word of number, total and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bucket {
    number: u64,
    total: u64,
    failed: u64,
}

impl Bucket {
    /// The bucket of that number: this one, or one that is empty.
    fn at(self, number: u64) -> Self {
        if self.number == number { self } else { Self { number, ..Self::default() } }
    }

    fn is_full(self) -> bool {
        self.total >= COUNT_MASK
    }

    fn with(self, failed: bool) -> Self {
        let halve = u32::from(self.is_full());
        Self {
            number: self.number,
            total: (self.total >> halve) + 1,
            failed: (self.failed >> halve) + u64::from(failed),
        }
    }

    fn pack(self) -> u64 {
        self.number << (2 * COUNT_BITS) | self.total << COUNT_BITS | self.failed
    }

    fn unpack(word: u64) -> Self {
        Self { number: word >> (2 * COUNT_BITS), total: (word >> COUNT_BITS) & COUNT_MASK, failed: word & COUNT_MASK }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use proptest::prelude::*;

    use super::*;

    /// The same in plain words: a list of what happened since the last reset, and when.
    #[derive(Default)]
    struct Plain {
        origin: u64,
        events: Vec<(u64, bool, bool)>,
    }

    impl Plain {
        fn counts(&self, now: u64, length_ms: u64) -> Counts {
            let bucket = |time: u64| (time - self.origin) / (length_ms / 10);
            let lately = self.events.iter().filter(|(time, ..)| bucket(*time) + 10 > bucket(now));
            lately.fold(Counts::default(), |counts, (_, failed, slow)| Counts {
                total: counts.total + 1,
                failed: counts.failed + u64::from(*failed),
                slow: counts.slow + u64::from(*slow),
            })
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Wait(u64),
        Record { worker: usize, failed: bool, slow: bool },
        Reset,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => prop_oneof![0..300u64, 0..20_000u64].prop_map(Step::Wait),
            8 => (0..3usize, any::<bool>(), any::<bool>())
                .prop_map(|(worker, failed, slow)| Step::Record { worker, failed, slow }),
            1 => Just(Step::Reset),
        ]
    }

    proptest! {
        #[test]
        fn the_window_counts_what_a_plain_list_counts(
            start in prop_oneof![Just(0u64), 0..1u64 << 43],
            length_ms in prop_oneof![Just(1000u64), Just(10_000), Just(600_000)],
            steps in prop::collection::vec(step(), 1..200),
        ) {
            let (window, mut plain, mut now) = (Window::new(3), Plain::default(), start);
            window.reset(Millis(now), length_ms);
            plain.origin = now;
            for step in steps {
                match step {
                    Step::Wait(milliseconds) => now += milliseconds,
                    Step::Record { worker, failed, slow } => {
                        window.record(worker, Millis(now), length_ms, failed, slow);
                        plain.events.push((now, failed, slow));
                    }
                    Step::Reset => {
                        window.reset(Millis(now), length_ms);
                        plain = Plain { origin: now, events: Vec::new() };
                    }
                }
                prop_assert_eq!(window.counts(Millis(now), length_ms), plain.counts(now, length_ms));
            }
        }
    }

    #[test]
    fn a_full_bucket_keeps_its_ratio() {
        let full = Bucket { number: 7, total: COUNT_MASK, failed: COUNT_MASK };
        let halved = full.with(false);
        assert_eq!(halved, Bucket { number: 7, total: COUNT_MASK / 2 + 1, failed: COUNT_MASK / 2 });
        assert_eq!(Bucket::unpack(halved.pack()), halved);
    }

    #[test]
    fn a_window_goes_on_where_its_bucket_numbers_wrap() {
        let window = Window::new(1);
        let wrap = (1u64 << NUMBER_BITS) * 100;
        for tenth in 0..10 {
            window.record(0, Millis(wrap - 500 + tenth * 100), 1000, tenth % 2 == 0, tenth % 5 == 0);
        }
        assert_eq!(window.counts(Millis(wrap + 400), 1000), Counts { total: 10, failed: 5, slow: 2 });
    }
}
