//! How many of several instances may be out at a time: the limit that a policy's `maxEjectionPercent` sets to what its circuits take away
//! from the others.
//!
//! The instances of a set are those that one target of a policy means, on one port of the Service. A circuit of a set opens only through
//! [`Ejections::take`], which counts those that are not closed and leaves no room above the limit. A circuit that is half-open is
//! still out: all it gets are probes.
//!
//! Keeps true:
//! - never are more out than may be, whatever threads do (`however_many_fail_no_more_are_out_than_may_be`, and in every order:
//!   `agent/tests/model.rs`), nor after instances have left or the limit was lowered (`a_set_that_shrinks_brings_in_who_is_out_too_many`);
//! - of two or more, one is never taken out, unless the policy lets all be out (`of_several_one_may_be_out_and_one_never_is`);
//! - an opening is rare (once per `timeout` and circuit), so it takes a lock; one that finds no room takes none.

use std::sync::{PoisonError, Weak};

use super::atomic::{AtomicBool, AtomicU64, Mutex, MutexGuard, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};
use super::breaker::{Breaker, Settings, State, Transition};
use super::window::Millis;

/// How long after one of those that are out was asked early another one is, while all that are in fail, in milliseconds: twice as long each
/// time, up to the longest, for most likely it is the whole Service that fails.
const EARLY: u64 = 1000;
const LONGEST_EARLY: u64 = 16_000;
/// All, in parts per million.
const ALL: u32 = 1_000_000;

/// A set of circuits of which only some may be out; see the module.
#[derive(Debug)]
pub struct Ejections {
    /// There was no room when it was last looked for, and none was made since. Only ever swapped: each who swaps sees what those did
    /// who swapped before.
    full: AtomicBool,
    /// When one of those that are out may be asked early, and how long after that the next one, in milliseconds.
    early_at: AtomicU64,
    early_wait: AtomicU64,
    set: Mutex<Set>,
}

#[derive(Debug, Default)]
struct Set {
    members: Vec<Weak<Breaker>>,
    most: usize,
}

/// How many of so many may be out: the share, rounded down, but at least one; and of two or more not all, unless the share is 100%.
/// One that is alone may be out, for there is nobody to spare.
pub fn most(members: usize, share_ppm: u32) -> usize {
    match (members, share_ppm) {
        (_, 0) | (0, _) => 0,
        (1, _) => 1,
        (_, ALL..) => members,
        _ => {
            let share = members as u64 * u64::from(share_ppm) / u64::from(ALL);
            usize::try_from(share).unwrap_or(0).clamp(1, members - 1)
        }
    }
}

impl Default for Ejections {
    fn default() -> Self {
        Self {
            full: AtomicBool::new(true),
            early_at: AtomicU64::new(0),
            early_wait: AtomicU64::new(EARLY),
            set: Mutex::new(Set::default()),
        }
    }
}

impl Ejections {
    /// Opens a circuit of the set, where there is room for one more; `None`: there is none. `open` makes the change.
    pub fn take<T>(&self, open: impl FnOnce() -> T) -> Option<T> {
        if self.full.load(Acquire) {
            return None;
        }
        let set = self.set();
        // Before counting, so that whoever comes back while that is done says so after it.
        self.full.swap(true, AcqRel);
        if set.out() >= set.most {
            return None;
        }
        let opened = open();
        self.full.swap(false, AcqRel);
        Some(opened)
    }

    /// One that is in fails and must stay in. If all that are in do, one of those that are out may be well by now: the one whose time is
    /// over first is probed at once, now and then, for a request can do no worse there.
    pub fn look_among_those_out(&self, now: Millis) {
        let (at, wait) = (self.early_at.load(Relaxed), self.early_wait.load(Relaxed));
        let next = now.plus(wait).0;
        if now.0 < at || self.early_at.compare_exchange(at, next, Relaxed, Relaxed).is_err() {
            return;
        }
        let members: Vec<_> = self.set().members.iter().filter_map(Weak::upgrade).collect();
        let is_well = |breaker: &Breaker| match breaker.state() {
            State::Closed => !breaker.would_be_out(),
            // Somebody is asking.
            State::HalfOpen { .. } => true,
            State::Open { .. } | State::Unhealthy { .. } => false,
        };
        if members.iter().any(|breaker| is_well(breaker)) {
            return;
        }
        let open = members.iter().filter(|breaker| matches!(breaker.state(), State::Open { .. }));
        if let Some(first) = open.min_by_key(|breaker| probed_at(breaker, 0))
            && first.probe_early()
        {
            self.early_wait.store((wait * 2).min(LONGEST_EARLY), Relaxed);
        }
    }

    /// A circuit of the set has closed.
    pub fn room(&self) {
        self.early_wait.store(EARLY, Relaxed);
        self.full.swap(false, AcqRel);
    }

    /// Who is in the set from now on, each with what its policy asks, and which share of them may be out. Those that are out too many
    /// are closed, those first that would be probed first; which, by their positions.
    pub fn set_members(
        &self,
        members: &[(std::sync::Arc<Breaker>, Settings)],
        share_ppm: u32,
        now: Millis,
    ) -> Vec<(usize, Transition)> {
        let mut set = self.set();
        self.full.swap(true, AcqRel);
        set.members = members.iter().map(|(breaker, _)| std::sync::Arc::downgrade(breaker)).collect();
        set.most = most(members.len(), share_ppm);
        let mut out: Vec<(Millis, usize)> =
            members.iter().enumerate().filter_map(|(at, (b, _))| probed_at(b, at)).collect();
        out.sort_unstable();
        let too_many = out.len().saturating_sub(set.most);
        let closed = out.into_iter().take(too_many).filter_map(|(_, at)| {
            let (breaker, settings) = &members[at];
            Some((at, breaker.bring_in(settings, now)?))
        });
        let closed = closed.collect();
        self.full.swap(false, AcqRel);
        closed
    }

    /// How many are out, of how many that may be.
    pub fn count(&self) -> (usize, usize) {
        let set = self.set();
        (set.out(), set.most)
    }

    fn set(&self) -> MutexGuard<'_, Set> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Set {
    fn out(&self) -> usize {
        let is_out =
            |breaker: &Weak<Breaker>| breaker.upgrade().is_some_and(|breaker| breaker.state() != State::Closed);
        self.members.iter().filter(|breaker| is_out(breaker)).count()
    }
}

/// When a circuit that is out lets its next probe through, with its position.
fn probed_at(breaker: &Breaker, at: usize) -> Option<(Millis, usize)> {
    match breaker.state() {
        State::Closed => None,
        State::HalfOpen { .. } => Some((Millis(0), at)),
        // Nothing is hoped of it.
        State::Unhealthy { .. } => Some((Millis(u64::MAX), at)),
        State::Open { until } => Some((until, at)),
    }
}
