//! Bounds on what is under way to the instances of a policy's target, on this node: requests, connections, and requests that wait for a
//! connection to be made. At a bound there is no queue: the request is answered at once, and the caller can go elsewhere or come later.
//!
//! Keeps true:
//! - never more than the bound, however many threads take a slot at a time (`threads_never_have_more_than_the_bound`), but that a worker
//!   which has no connection at all may make one: what others keep free must not shut it out;
//! - what is taken is given back by [`Slot`]'s `Drop`, however its request or connection ends;
//! - requests under way are bounded by the policy's number, and below it by what is found out ([`Adaptive`]) where the policy asks for it;
//! - without bounds there is nothing here to ask.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use super::adaptive::{self, Adaptive};
use super::window::Millis;
use crate::runtime::Told;

/// The bounds of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections, those that are free among them.
    pub connections: u32,
    /// Requests that wait for a connection to be made.
    pub pending: u32,
    /// Requests under way.
    pub requests: u32,
    /// Fewer requests than that, as many as the target answers in good time.
    pub adaptive: Option<adaptive::Settings>,
}

/// What is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections, those that are free among them.
    pub connections: u32,
    /// Requests that wait for a connection to be made.
    pub pending: u32,
    /// Requests.
    pub requests: u32,
}

/// Which bound is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// [`Limits::connections`].
    Connections,
    /// [`Limits::pending`].
    Pending,
    /// [`Limits::requests`].
    Requests,
    /// [`Limits::adaptive`].
    Adaptive,
}

impl Bound {
    /// All of them, for counters.
    pub const ALL: [Self; 4] = [Self::Connections, Self::Pending, Self::Requests, Self::Adaptive];

    /// Its field in a policy.
    pub const fn field(self) -> &'static str {
        match self {
            Self::Connections => "limits.maxConnections",
            Self::Pending => "limits.maxPendingRequests",
            Self::Requests => "limits.maxRequests",
            Self::Adaptive => "limits.adaptive",
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.field())
    }
}

/// What is under way, over all workers. It outlives tables.
#[derive(Debug)]
pub struct InUse {
    requests: Count,
    pending: Count,
    connections: Count,
    /// Each worker's own.
    connections_of: Box<[Count]>,
    /// Made when a policy first asks for it.
    adaptive: OnceLock<Box<Adaptive>>,
}

/// A number that all workers change, on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Count(AtomicU32);

impl Count {
    /// How many there were before, or as many as there may be.
    fn take(&self, most: u32) -> Result<u32, u32> {
        self.0.fetch_update(Relaxed, Relaxed, |count| (count < most).then_some(count + 1))
    }

    fn give_back(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    fn get(&self) -> u32 {
        self.0.load(Relaxed)
    }
}

/// One of what a bound is for, until it is dropped.
#[derive(Debug)]
pub struct Slot {
    of: Arc<InUse>,
    bound: Bound,
    worker: usize,
}

impl InUse {
    /// Nothing, for so many workers.
    pub fn new(workers: usize) -> Self {
        Self {
            requests: Count::default(),
            pending: Count::default(),
            connections: Count::default(),
            connections_of: (0..workers).map(|_| Count::default()).collect(),
            adaptive: OnceLock::new(),
        }
    }

    /// Requests, connections, and requests that wait for one.
    pub fn counts(&self) -> Counts {
        Counts { requests: self.requests.get(), connections: self.connections.get(), pending: self.pending.get() }
    }

    /// Finds out from now on how many requests there should be, if it did not before. `since_1970` is the wall clock in milliseconds.
    pub fn adapt(&self, settings: adaptive::Settings, now: Millis, since_1970: u64) {
        let workers = self.connections_of.len();
        self.adaptive.get_or_init(|| Box::new(Adaptive::new(workers, settings, now, since_1970)));
    }

    /// What is found out, where these limits ask for it.
    pub fn adaptive(&self, limits: Limits) -> Option<&Adaptive> {
        limits.adaptive.and_then(|_| self.adaptive.get()).map(Box::as_ref)
    }

    /// The limit that was found out, if a policy has asked for one.
    pub fn limit_found(&self) -> Option<u32> {
        self.adaptive.get().map(|adaptive| adaptive.limit())
    }

    /// What came of a request.
    pub fn tell(&self, limits: Limits, worker: usize, told: Told, now: Millis) {
        if let (Some(settings), Some(adaptive)) = (limits.adaptive, self.adaptive.get()) {
            adaptive.tell(worker, told, now, settings, limits.requests);
        }
    }

    fn take_request(&self, limits: Limits) -> Result<(), Bound> {
        let Some(adaptive) = self.adaptive(limits) else {
            return self.requests.take(limits.requests).map_or(Err(Bound::Requests), |_| Ok(()));
        };
        let limit = adaptive.limit();
        let taken = self.requests.take(limit.min(limits.requests));
        let (Ok(count) | Err(count)) = taken;
        adaptive.are_under_way(count.saturating_add(1), limit);
        let bound = if limit < limits.requests { Bound::Adaptive } else { Bound::Requests };
        taken.map_or(Err(bound), |_| Ok(()))
    }

    /// Takes one more, if there may be one.
    ///
    /// # Errors
    /// The bound, where it is reached.
    pub fn take(self: &Arc<Self>, bound: Bound, limits: Limits, worker: usize) -> Result<Slot, Bound> {
        let taken = match bound {
            Bound::Requests | Bound::Adaptive => {
                self.take_request(limits)?;
                true
            }
            Bound::Pending => self.pending.take(limits.pending).is_ok(),
            Bound::Connections => {
                let own = &self.connections_of[worker];
                let most = if own.get() == 0 { u32::MAX } else { limits.connections };
                let taken = self.connections.take(most).is_ok();
                if taken {
                    own.0.fetch_add(1, Relaxed);
                }
                taken
            }
        };
        if taken { Ok(Slot { of: Arc::clone(self), bound, worker }) } else { Err(bound) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        match self.bound {
            Bound::Requests | Bound::Adaptive => self.of.requests.give_back(),
            Bound::Pending => self.of.pending.give_back(),
            Bound::Connections => {
                self.of.connections.give_back();
                self.of.connections_of[self.worker].give_back();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { connections: 2, pending: 1, requests: 3, adaptive: None };

    #[test]
    fn what_is_dropped_can_be_taken_again_and_each_bound_is_its_own() {
        let in_use = Arc::new(InUse::new(1));
        for (bound, most) in [(Bound::Requests, 3), (Bound::Pending, 1), (Bound::Connections, 2)] {
            let mut held: Vec<Slot> = (0..most).map_while(|_| in_use.take(bound, LIMITS, 0).ok()).collect();
            assert_eq!((held.len(), in_use.take(bound, LIMITS, 0).err()), (most, Some(bound)));
            held.pop();
            assert!(in_use.take(bound, LIMITS, 0).is_ok());
        }
        assert_eq!(in_use.counts(), Counts::default());
    }

    #[test]
    fn a_worker_that_has_no_connection_may_make_one_whatever_others_keep() {
        let in_use = Arc::new(InUse::new(2));
        let kept: Vec<_> = (0..2).map(|_| in_use.take(Bound::Connections, LIMITS, 0)).collect();
        let own = in_use.take(Bound::Connections, LIMITS, 1);
        assert!(own.is_ok() && in_use.take(Bound::Connections, LIMITS, 1).is_err());
        drop((kept, own));
        assert_eq!(in_use.counts().connections, 0);
    }

    #[test]
    fn threads_never_have_more_than_the_bound() {
        let in_use = Arc::new(InUse::new(4));
        let (at_once, most_seen) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let (in_use, at_once, most_seen) = (&in_use, &at_once, &most_seen);
                scope.spawn(move || {
                    for _ in 0..20_000 {
                        let Ok(_slot) = in_use.take(Bound::Requests, LIMITS, worker) else { continue };
                        most_seen.fetch_max(at_once.fetch_add(1, Relaxed) + 1, Relaxed);
                        std::thread::yield_now();
                        at_once.fetch_sub(1, Relaxed);
                    }
                });
            }
        });
        assert!((1..=3).contains(&most_seen.load(Relaxed)), "{most_seen:?}");
        assert_eq!(in_use.counts().requests, 0);
    }
}
