//! Whether the workers live: each tells the time, several times a second, from where it accepts connections.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::admit::window::Millis;

/// How often a worker tells that it lives.
pub(crate) const BEAT: Duration = Duration::from_millis(250);
/// A worker that has not told for so long is stuck or dead, and with it every connection that the kernel hands it.
const STUCK_MS: u64 = 1500;

/// When each worker lived last.
#[derive(Debug)]
pub struct Pulse {
    beats: Box<[AtomicU64]>,
}

impl Pulse {
    /// Of so many workers, none of which has told yet.
    pub fn new(workers: usize) -> Self {
        Self { beats: (0..workers).map(|_| AtomicU64::new(0)).collect() }
    }

    /// The worker lives.
    pub fn beat(&self, worker: usize, now: Millis) {
        // 0 is never.
        self.beats[worker].store(now.0.max(1), Relaxed);
    }

    /// A worker that does not, if there is one.
    pub fn stuck(&self, now: Millis) -> Option<usize> {
        self.beats.iter().position(|beat| match beat.load(Relaxed) {
            0 => true,
            told => now.since(Millis(told)) > STUCK_MS,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_workers_must_live() {
        let pulse = Pulse::new(2);
        assert_eq!(pulse.stuck(Millis(0)), Some(0));
        pulse.beat(0, Millis(10));
        assert_eq!(pulse.stuck(Millis(10)), Some(1));
        pulse.beat(1, Millis(20));
        assert_eq!(pulse.stuck(Millis(20)), None);
        assert_eq!(pulse.stuck(Millis(10 + STUCK_MS)), None);
        assert_eq!(pulse.stuck(Millis(11 + STUCK_MS)), Some(0));
    }
}
