//! How many requests may be under way to a target, found out from how long they take: `limits.adaptive` of a policy.
//!
//! Latency is that of the reply's head, as [`super::Permit`] reckons it, and what is looked at is the median of a window of replies beside
//! the *baseline*, the latency without load. Up to half of the tolerance above it the limit grows, as far as that very growth can take the
//! latency to half of the tolerance; beyond the tolerance it is cut likewise; in between it stays. A service that works on `c` requests
//! at a time so gets about `c` times one and half the tolerance: always work, and a short queue.
//!
//! Keeps true:
//! - The baseline does not drift up while a service is overloaded. It follows quicker replies, and those that take about as long; it rises
//!   further only by a measurement, a window at so low a limit that there is no queue. Measurements are made only while replies are slower
//!   than the baseline, and by all nodes at the same time of the wall clock: one that steps back alone among many measures the load of the
//!   others.
//! - Where a service is slower for good, the limit is not cut for ever: cuts that change nothing are taken back, and the next measurement
//!   finds the new baseline.
//! - A failure that comes quickly is not a low latency: what failed or was not waited for counts only if it was slower than the baseline.
//! - Windows in which less than half of the limit was used move no limit; too old ones nothing.
//! - After a change a window begins only when most of what was under way before has ended: it is judged for the limit that it was under.
//!
//! The simulations that hold this are in `tests/adaptive.rs`. On the path of a request there are one load of the limit, and two with one add
//! to a cell of the worker's own when it ends; whoever finds a window over, and nobody else looking at it, reckons.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::Duration;

use super::window::Millis;
use crate::runtime::Told;

/// What a policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The limit is never lower, but while the baseline is measured.
    pub least: u32,
    /// How much more than without load replies may take, in parts per million.
    pub tolerance_ppm: u32,
}

/// The shortest window: many replies of a busy service, and soon over.
const WINDOW_MS: u64 = 250;
/// The longest, where each reply takes long ...
const LONGEST_WINDOW_MS: u64 = 10_000;
/// ... and it is no window any more after this: what it began with says little of now.
const TOO_OLD_MS: u64 = 60_000;
/// Fewer say nothing: their median is too much a matter of chance.
const ENOUGH: u64 = 100;
/// The baseline is measured so often at most, and less often where a window is long: one is to the time between two measurements as one to
/// [`RARELY`], or less ...
const MEASURE_MS: u64 = 30_000;
const RARELY: u64 = 32;
/// ... and a measurement takes this part of it, for all nodes the same.
const MEASURES: u64 = 16;
/// Cuts in a row that change nothing until no more are made before the baseline is measured.
const IN_VAIN: u8 = 2;
/// One strange window takes no more than half.
const DEEPEST_CUT: f64 = 0.5;

/// Buckets of latencies: eight to each doubling, from 8 microseconds to two minutes.
const BUCKETS: usize = 24 * 8;

/// A limit that follows the latency, as threads share it.
#[derive(Debug)]
pub struct Adaptive {
    /// The limit in force.
    limit: AtomicU32,
    /// In microseconds; 0: not known yet.
    baseline: AtomicU64,
    /// When the window begins, or began.
    began: AtomicU64,
    /// When somebody is to look at it.
    ends: AtomicU64,
    /// Half of the limit was under way in it.
    used: AtomicBool,
    cells: Box<[Cells]>,
    state: Mutex<State>,
    /// What makes of [`Millis`] the time since 1970.
    since_1970: u64,
}

/// How many replies took how long, as one worker saw it.
#[derive(Debug)]
#[repr(align(128))]
struct Cells([AtomicU32; BUCKETS]);

/// What is known from one window to the next.
#[derive(Clone, Debug, PartialEq)]
struct State {
    limit: f64,
    /// In microseconds; 0: not known yet.
    baseline: f64,
    /// It was never cut, and may grow quickly.
    is_new: bool,
    /// The window is one that measures the baseline ...
    measures: bool,
    /// ... or there was one at the last mark, which is not long ago.
    has_measured: bool,
    /// Replies are slower than the baseline, and there may be a queue, or not.
    is_doubtful: bool,
    /// What the last window led to, if that was a cut.
    cut: Option<Cut>,
    /// Cuts in a row that changed nothing ...
    in_vain: u8,
    /// ... and the limit before the first of all in a row.
    uncut: f64,
    /// When most has ended that is under way now.
    settles_ms: u64,
}

/// The limit was cut.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cut {
    /// The latency that led to it.
    before: f64,
    /// What is left of the limit.
    by: f64,
}

impl State {
    /// What a whole window says, by its median in microseconds and whether half of the limit was used.
    fn judge(&mut self, median: f64, used: bool, tolerance: f64, (least, most): (f64, f64)) {
        self.settles_ms = ((median * 2.0 / 1000.0) as u64).clamp(1, LONGEST_WINDOW_MS);
        if std::mem::take(&mut self.measures) {
            self.baseline = median;
            (self.cut, self.in_vain) = (None, 0);
            return;
        }
        if self.baseline == 0.0 {
            self.baseline = median;
        }
        let slower = median / self.baseline;
        let differs = slower > 1.0 + tolerance / 4.0;
        self.is_doubtful = used && differs;
        if !differs {
            // Both ways, for else each low one of many that vary by chance would count, and no high one.
            self.baseline += (median - self.baseline) / 8.0;
        }
        let cut = self.cut.take();
        if !used {
            self.in_vain = 0;
            return;
        }
        let aim = 1.0 + tolerance / 2.0;
        if slower <= 1.0 + tolerance {
            self.in_vain = 0;
            if slower <= aim || self.is_new {
                let by = if self.is_new { 2.0 } else { aim / slower };
                self.limit = (self.limit * by).max(self.limit + 1.0).clamp(least, most);
            }
            return;
        }
        self.is_new = false;
        if self.in_vain == IN_VAIN {
            return;
        }
        // A queue would be shorter by as much as the limit was cut. Where not even half of that came true, it is something else.
        match cut {
            None => (self.in_vain, self.uncut) = (0, self.limit),
            Some(cut) if median > cut.before * f64::midpoint(1.0, cut.by) => self.in_vain += 1,
            Some(_) => self.in_vain = 0,
        }
        if self.in_vain == IN_VAIN {
            self.limit = self.uncut;
            return;
        }
        let lower = (self.limit * (aim / slower).max(DEEPEST_CUT)).clamp(least, most);
        if lower < self.limit {
            self.cut = Some(Cut { before: median, by: lower / self.limit });
            self.limit = lower;
        }
    }

    /// The limit in force. While the baseline is measured the latency is within the tolerance even of one that is too high by as much.
    fn in_force(&self, tolerance: f64, (least, most): (f64, f64)) -> u32 {
        let limit = self.limit.clamp(least, most);
        let limit = if self.measures { limit / (1.0 + tolerance).powi(2) } else { limit };
        (limit as u32).max(1)
    }

    /// What a window says that is of no use: nothing that was begun is gone on with.
    fn judge_nothing(&mut self) {
        (self.measures, self.is_doubtful, self.cut) = (false, false, None);
    }

    /// The time between two measurements. Nodes that see about the same latency have the same one, or twice or half of it.
    fn measured_every(&self) -> u64 {
        MEASURE_MS * (self.window_ms() * RARELY).div_ceil(MEASURE_MS).next_power_of_two()
    }

    fn window_ms(&self) -> u64 {
        ((self.baseline * 3.0 / 1000.0) as u64).clamp(WINDOW_MS, LONGEST_WINDOW_MS)
    }
}

impl Adaptive {
    /// It begins with the least. `since_1970`: the time now as the wall clock has it, in milliseconds.
    pub fn new(workers: usize, settings: Settings, now: Millis, since_1970: u64) -> Self {
        let state = State {
            limit: f64::from(settings.least),
            baseline: 0.0,
            is_new: true,
            measures: false,
            has_measured: false,
            is_doubtful: false,
            cut: None,
            in_vain: 0,
            uncut: 0.0,
            settles_ms: 0,
        };
        Self {
            limit: AtomicU32::new(settings.least.max(1)),
            baseline: AtomicU64::new(0),
            began: AtomicU64::new(now.0),
            ends: AtomicU64::new(now.0 + WINDOW_MS),
            used: AtomicBool::new(false),
            cells: (0..workers).map(|_| Cells(std::array::from_fn(|_| AtomicU32::new(0)))).collect(),
            state: Mutex::new(state),
            since_1970: since_1970.wrapping_sub(now.0),
        }
    }

    /// How many may be under way now.
    pub fn limit(&self) -> u32 {
        self.limit.load(Relaxed)
    }

    /// The latency without load, once it is known.
    pub fn baseline(&self) -> Option<Duration> {
        Some(Duration::from_micros(self.baseline.load(Relaxed))).filter(|baseline| !baseline.is_zero())
    }

    /// So many are under way now, of at most `limit`.
    pub fn are_under_way(&self, count: u32, limit: u32) {
        if count.saturating_mul(2) >= limit && !self.used.load(Relaxed) {
            self.used.store(true, Relaxed);
        }
    }

    /// What came of a request, which ends now. `most` is what the limit never exceeds.
    pub fn tell(&self, worker: usize, told: Told, now: Millis, settings: Settings, most: u32) {
        let took = match told {
            Told::Good(took) => took,
            Told::Failed(took) | Told::Unfinished(took) if self.baseline().is_some_and(|baseline| took > baseline) => {
                took
            }
            Told::Failed(_) | Told::Unfinished(_) | Told::Nothing => return,
        };
        if now.0 >= self.began.load(Relaxed) {
            let cell = &self.cells[worker].0[bucket(took)];
            cell.fetch_add(1, Relaxed);
        }
        if now.0 >= self.ends.load(Relaxed) {
            self.end_window(now, settings, most);
        }
    }

    fn end_window(&self, now: Millis, settings: Settings, most: u32) {
        // Whoever is there does it; the others have nothing to wait for.
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => PoisonError::into_inner(poisoned),
            Err(TryLockError::WouldBlock) => return,
        };
        let (began, ends) = (self.began.load(Relaxed), self.ends.load(Relaxed));
        if now.0 < ends {
            return;
        }
        let tolerance = f64::from(settings.tolerance_ppm) / 1e6;
        let bounds = (f64::from(settings.least.min(most)), f64::from(most));
        let counts = self.counts();
        let told = counts.iter().sum::<u64>();
        let is_too_old = now.0.saturating_sub(began) > TOO_OLD_MS;
        let is_whole = match state.measures {
            true => told >= ENOUGH / 4,
            false => told >= ENOUGH && now.0 >= began + state.window_ms(),
        };
        match median(&counts) {
            Some(median) if is_whole && !is_too_old => state.judge(median, self.used.load(Relaxed), tolerance, bounds),
            _ if state.measures || is_too_old => state.judge_nothing(),
            _ => {}
        }
        let every = state.measured_every();
        let since_mark = self.since_1970.wrapping_add(now.0) % every;
        let span = every / MEASURES;
        let measures = state.is_doubtful && since_mark < span / 4 && !state.has_measured;
        state.measures = measures;
        state.has_measured = since_mark < span && (measures || state.has_measured);
        let mut ends = now.0 + WINDOW_MS / 5;
        let limit = state.in_force(tolerance, bounds);
        let changes = limit != self.limit.swap(limit, Relaxed);
        if is_whole || is_too_old || changes || measures {
            let settles = if changes { state.settles_ms.min(span / 2) } else { 0 };
            self.clear();
            self.used.store(false, Relaxed);
            self.began.store(now.0 + settles, Relaxed);
            ends = now.0 + settles + state.window_ms();
        }
        if measures {
            ends = now.0 + span - since_mark;
        } else if state.is_doubtful {
            ends = ends.min(now.0 + every - since_mark);
        }
        self.baseline.store(state.baseline as u64, Relaxed);
        self.ends.store(ends, Relaxed);
    }

    fn counts(&self) -> [u64; BUCKETS] {
        std::array::from_fn(|at| self.cells.iter().map(|cells| u64::from(cells.0[at].load(Relaxed))).sum())
    }

    /// What is added meanwhile may be lost; it is one window's.
    fn clear(&self) {
        self.cells.iter().flat_map(|cells| &cells.0).for_each(|cell| cell.store(0, Relaxed));
    }
}

fn bucket(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(8);
    let doublings = u64::from(micros.ilog2()) - 3;
    usize::try_from(doublings * 8 + (micros >> doublings) - 8).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// In microseconds; none where there is no reply.
fn median(counts: &[u64; BUCKETS]) -> Option<f64> {
    let half = counts.iter().sum::<u64>() as f64 / 2.0;
    let mut below = 0.0;
    for (at, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let count = *count as f64;
        if below + count >= half {
            let width = (1u64 << (at / 8)) as f64;
            return Some(((at % 8 + 8) as f64 + (half - below) / count) * width);
        }
        below += count;
    }
    None
}
