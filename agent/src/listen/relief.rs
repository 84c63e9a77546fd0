//! What a worker lets go when memory is short: connections on which something waits that is not taken, those with most first, and those that
//! are idle.
//!
//! Keeps true: as long as there is room no connection is touched; one on which everything is taken as it comes never is.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::Connections;
use crate::http2::MOST_UNSENT;
use crate::memory::{self, Pressure};
use crate::worker::Worker;

/// How often it is looked how much memory there is.
pub(super) const LOOK: Duration = Duration::from_millis(100);
/// What was not taken for so many looks is stuck.
const STUCK: u32 = 10;
/// How long a connection may be idle when memory is short.
const IDLE: Duration = Duration::from_secs(1);

/// What is remembered from one look to the next.
#[derive(Default)]
pub(super) struct Relief {
    /// The look at which connections were broken off last: what they held takes a while to be given back.
    last: Cell<u32>,
    short: Cell<bool>,
}

impl Relief {
    /// Looks how much memory there is, and lets go what must be.
    pub(super) fn look(&self, worker: &Worker, connections: &Connections, now: Instant) {
        let look = worker.next_look();
        let Some((limit, used)) = worker.shared.memory.and_then(|limit| Some((limit, memory::used()?))) else { return };
        let pressure = limit.pressure(used);
        worker.set_short_of_memory(matches!(pressure, Pressure::Full(_)));
        let short = pressure != Pressure::None;
        if self.short.replace(short) != short && worker.index == 0 {
            let (used, limit) = (used >> 20, limit.bytes >> 20);
            match short {
                true => tracing::warn!(used, limit, "memory is short (MiB): what is not taken is broken off"),
                false => tracing::info!(used, limit, "memory is no longer short (MiB)"),
            }
        }
        let (Pressure::High(excess) | Pressure::Full(excess)) = pressure else { return };
        connections.close_idle(now, IDLE);
        let stuck = connections.stuck(look);
        if look.wrapping_sub(self.last.get()) >= STUCK && !stuck.is_empty() {
            self.last.set(look);
            let broken_off = most_first(stuck, excess);
            worker.shared.broken_off.fetch_add(broken_off.len() as u64, std::sync::atomic::Ordering::Relaxed);
            connections.break_off(&broken_off);
        }
    }
}

impl Connections {
    /// The connections on which something is stuck, and how many bodies on each.
    fn stuck(&self, look: u32) -> Vec<(u64, usize)> {
        let mut open = self.open.borrow_mut();
        let stuck = open.iter_mut().map(|(id, open)| {
            let read = open.caller.line.bytes_read();
            if open.read.0 != read {
                open.read = (read, look);
            }
            // Bodies on their way to instances, where the caller sends no more because it may not.
            let sending = if look.wrapping_sub(open.read.1) >= STUCK { open.caller.bodies_not_taken() } else { 0 };
            (*id, open.caller.held_since(look.wrapping_sub(STUCK)) + sending)
        });
        stuck.filter(|(_, bodies)| *bodies > 0).collect()
    }

    fn break_off(&self, ids: &[u64]) {
        // Not while the list is borrowed: a task takes itself off.
        let tasks: Vec<_> = ids.iter().filter_map(|id| self.open.borrow().get(id)?.task.clone()).collect();
        tasks.iter().for_each(tokio::task::AbortHandle::abort);
    }
}

/// Of connections with so many bodies that are stuck, those to break off for so many bytes to be let go.
fn most_first(mut stuck: Vec<(u64, usize)>, excess: u64) -> Vec<u64> {
    stuck.sort_unstable_by_key(|(id, bodies)| (std::cmp::Reverse(*bodies), *id));
    let mut left = excess;
    let needed = stuck.iter().take_while(|(_, bodies)| {
        let needed = left > 0;
        left = left.saturating_sub(*bodies as u64 * MOST_UNSENT as u64);
        needed
    });
    needed.map(|(id, _)| *id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_with_most_go_first_and_no_more_than_is_needed() {
        let each = MOST_UNSENT as u64;
        let stuck = || vec![(1, 1), (2, 200), (3, 1), (4, 7)];
        assert_eq!(most_first(stuck(), 1), [2]);
        assert_eq!(most_first(stuck(), 200 * each), [2]);
        assert_eq!(most_first(stuck(), 200 * each + 1), [2, 4]);
        assert_eq!(most_first(stuck(), 208 * each), [2, 4, 1]);
        assert_eq!(most_first(stuck(), u64::MAX), [2, 4, 1, 3]);
        assert_eq!(most_first(Vec::new(), 1), [0_u64; 0]);
    }
}
