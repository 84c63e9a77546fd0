//! Checks of instances beside the traffic: when, and what they say of an instance. How one is made is in [`made`].
//!
//! Keeps true:
//! - One checks for the whole node, whatever the number of workers: once in each interval, shorter or longer at random, and the first time
//!   at any time of the first interval, so that the agents of many nodes do not ask at once.
//! - No more than [`MOST_AT_ONCE`] are under way; above that they come later, and their time begins when they do.
//! - They take no place among what policies bound: an instance that has all it may have is checked nevertheless.
//! - So many failed ones in a row take an instance out, where not too many others are; so many good ones bring it back
//!   (`a_row_of_failures_makes_it_unhealthy_and_a_row_of_good_ones_healthy`).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use crate::admit::breaker::Reason;
use crate::clock;
use crate::table::{Checked, HealthCheck};
use crate::worker::Shared;

/// One check, over the network.
mod made;

pub use made::Failed;

/// Checks of a node under way at a time: a bound on its sockets, far above what a node's instances need at one a second.
const MOST_AT_ONCE: usize = 64;

/// What checks have said of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Verdict {
    healthy: bool,
    /// Checks in a row that say otherwise.
    row: u32,
}

impl Verdict {
    /// After one more; how many said so in a row, if it is judged otherwise from here on.
    fn told(&mut self, good: bool, check: &HealthCheck) -> Option<u32> {
        if good == self.healthy {
            self.row = 0;
            return None;
        }
        self.row += 1;
        let enough = if good { check.healthy_threshold } else { check.unhealthy_threshold };
        (self.row >= enough).then(|| {
            self.healthy = good;
            std::mem::take(&mut self.row)
        })
    }
}

/// What came of an instance's checks.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Good ones.
    pub good: u64,
    /// Failed ones.
    pub failed: u64,
    /// What was wrong with the last that failed.
    pub last_failure: Option<Failed>,
}

/// What came of all checks, by Service and target.
#[derive(Debug, Default)]
pub struct Checks(Mutex<HashMap<(String, String), Counts>>);

impl Checks {
    fn counts(&self) -> MutexGuard<'_, HashMap<(String, String), Counts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of one instance; `None`: it is not checked.
    pub fn of(&self, service: &str, target: &str) -> Option<Counts> {
        self.counts().get(&(service.to_owned(), target.to_owned())).cloned()
    }

    fn note(&self, checked: &Checked, result: &Result<(), Failed>) {
        let mut all = self.counts();
        let counts = all.entry((checked.circuit.service.to_string(), checked.circuit.target.to_string())).or_default();
        match result {
            Ok(()) => counts.good += 1,
            Err(why) => {
                counts.failed += 1;
                counts.last_failure = Some(why.clone());
            }
        }
    }
}

/// A task that checks an instance, and ends when this is dropped.
struct Task {
    checked: Checked,
    handle: JoinHandle<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

impl Task {
    /// Whether it goes on as it is. A new table has new policies, which may say the same.
    fn is_of(&self, checked: &Checked) -> bool {
        let (old, new) = (&self.checked.circuit, &checked.circuit);
        let same_set = match (&old.ejections, &new.ejections) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (None, None) => true,
            _ => false,
        };
        same_set
            && Arc::ptr_eq(&old.breaker, &new.breaker)
            && old.settings == new.settings
            && self.checked.protocol == checked.protocol
    }
}

/// Checks what the table in force wants checked, until the agent is to end.
pub async fn run(shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let room = Rc::new(Semaphore::new(MOST_AT_ONCE));
    let mut tasks: HashMap<(String, SocketAddr), Task> = HashMap::new();
    loop {
        // At the start too: a table of the last run may be in force already.
        let table = shared.table.load_full();
        let mut before = std::mem::take(&mut tasks);
        for checked in table.services().flat_map(|service| &service.checked) {
            let key = (checked.circuit.service.to_string(), checked.address);
            let task = before.remove(&key).filter(|task| task.is_of(checked)).unwrap_or_else(|| {
                let handle = tokio::task::spawn_local(keep(Arc::clone(&shared), Rc::clone(&room), checked.clone()));
                Task { checked: checked.clone(), handle }
            });
            tasks.insert(key, task);
        }
        drop(before);
        let known = |(service, target): &(String, String)| {
            target.parse().is_ok_and(|address| tasks.contains_key(&(service.clone(), address)))
        };
        shared.checks.counts().retain(|key, _| known(key));
        drop(table);
        tokio::select! {
            () = shared.swapped.notified() => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
    }
}

/// Checks one instance, for ever.
async fn keep(shared: Arc<Shared>, room: Rc<Semaphore>, checked: Checked) {
    let mut rng = SmallRng::from_os_rng();
    let (check, circuit) = (&checked.check, &checked.circuit);
    // What was known of it before, in this life or the last, holds until checks say otherwise.
    let mut verdict = Verdict { healthy: !circuit.breaker.is_unhealthy(), row: 0 };
    tokio::time::sleep(check.interval.mul_f64(rng.random())).await;
    loop {
        let result = {
            let Ok(_permit) = room.acquire().await else { return };
            match tokio::time::timeout(check.timeout, made::make(&checked)).await {
                Ok(result) => result,
                Err(_) => Err(Failed::late(check.timeout)),
            }
        };
        shared.checks.note(&checked, &result);
        let now = shared.runtime.millis(clock::now());
        let row = verdict.told(result.is_ok(), check);
        let (settings, ejections) = (&circuit.settings.breaker, circuit.ejections.as_deref());
        let change = if circuit.held(now).is_some() {
            // Held by hand, a circuit is told nothing. The next check after it is let go tells.
            None
        } else if verdict.healthy {
            // Also one that somebody else has taken out meanwhile, such as the last run's file.
            circuit.breaker.checks_good(settings, Reason::ChecksGood, now, ejections)
        } else {
            // Told each time: one that had to stay in may have room now.
            circuit.breaker.checks_failed(row.unwrap_or(check.unhealthy_threshold), ejections)
        };
        if let Some(change) = change {
            shared.transitions.note(circuit, change);
        }
        tokio::time::sleep(spread(check.interval, rng.random())).await;
    }
}

/// Up to a tenth shorter or longer; `random` is between 0 and 1.
fn spread(interval: Duration, random: f64) -> Duration {
    interval.mul_f64(0.9 + random.clamp(0.0, 1.0) / 5.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::table::Check;

    proptest! {
        #[test]
        fn a_row_of_failures_makes_it_unhealthy_and_a_row_of_good_ones_healthy(
            unhealthy_threshold in 1u32..5, healthy_threshold in 1u32..5, results in prop::collection::vec(any::<bool>(), 0..60),
        ) {
            let second = Duration::from_secs(1);
            let check = HealthCheck { check: Check::Tcp, interval: second, timeout: second, unhealthy_threshold, healthy_threshold };
            let mut verdict = Verdict { healthy: true, row: 0 };
            for count in 1..=results.len() {
                let before = verdict.healthy;
                let changed = verdict.told(results[count - 1], &check).is_some();
                // In plain words: the last so many were all alike, and otherwise than what held.
                let alike = |good: bool, threshold: u32| {
                    let last = results[..count].iter().rev().take_while(|result| **result == good).count();
                    last >= threshold as usize
                };
                let expected = if before { !alike(false, unhealthy_threshold) } else { alike(true, healthy_threshold) };
                prop_assert_eq!(verdict.healthy, expected);
                prop_assert_eq!(changed, before != expected);
            }
        }

        #[test]
        fn the_time_between_two_checks_is_about_the_interval(random in 0.0..1.0f64) {
            let between = spread(Duration::from_secs(10), random);
            prop_assert!(between >= Duration::from_secs(9) && between <= Duration::from_secs(11));
        }
    }
}
