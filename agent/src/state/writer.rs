//! Who writes down what is to be remembered, and when: a thread of its own, so that no request waits for a disk, nor does anything else.
//!
//! Keeps true:
//! - A circuit that opens is in the file [`GAP`] later, and the time that a write takes (`tests/tests/state.rs`).
//! - There are no more writes than one each [`GAP`] while circuits change, and one each [`LOOK`] while retries are made.
//! - Of several agents in one folder, as in a rolling update, one writes: who holds the lock, which is the older one until it ends.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use switchyard_proto::v1;
use tokio::sync::{broadcast, watch};
use tokio::time::MissedTickBehavior;

use super::file::File;
use super::remembered::Remembered;
use crate::clock;
use crate::worker::Shared;

/// From one write to the next, at least: changes that come together make one.
const GAP: Duration = Duration::from_millis(50);
/// How often it is looked whether budgets have changed, and whether the folder is free.
const LOOK: Duration = Duration::from_secs(1);

/// The one that writes.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    changes: broadcast::Receiver<v1::CircuitTransition>,
    file: File,
    lock: fs::File,
    holds_lock: bool,
    /// The retries that the file knows of.
    withdrawn: u64,
    /// There is something that the file does not know of.
    due: bool,
    failing: bool,
}

impl Writer {
    /// For this folder. What it holds is remembered from now on.
    ///
    /// # Errors
    /// The folder cannot be used.
    pub fn new(folder: &Path, shared: Arc<Shared>) -> io::Result<Self> {
        let file = File::new(folder, "circuits", 1)?;
        let lock =
            fs::OpenOptions::new().create(true).truncate(false).write(true).open(folder.join("circuits.lock"))?;
        if let Some(content) = file.read() {
            match Remembered::decode(&*content) {
                Ok(remembered) => shared.recall(remembered.aged(clock::unix_millis())),
                Err(_) => file.set_aside("its content cannot be read"),
            }
        }
        let changes = shared.transitions.listen();
        Ok(Self { shared, changes, file, lock, holds_lock: false, withdrawn: 0, due: false, failing: false })
    }

    /// Writes what changes, until the agent is to end; then another one may write.
    pub async fn run(&mut self, mut stopped: watch::Receiver<bool>) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let ends = tokio::select! {
                // One that lags behind knows that there were changes, and that is all it needs.
                _ = self.changes.recv() => {
                    self.due = true;
                    false
                }
                _ = look.tick() => {
                    self.due |= self.withdrawn != self.shared.runtime.withdrawn();
                    false
                }
                _ = stopped.wait_for(|stop| *stop) => true,
            };
            if ends {
                self.finish();
                return;
            }
            if self.due {
                self.write();
                tokio::time::sleep(GAP).await;
            }
        }
    }

    /// Writes all that is known, and lets others write. What they have written stays.
    pub fn finish(&mut self) {
        self.due = true;
        self.write();
        self.holds_lock = false;
        // It fails only if it was not held.
        let _ = self.lock.unlock();
    }

    fn write(&mut self) {
        if !self.holds_lock && self.lock.try_lock().is_err() {
            // Tried again when it is looked next.
            return;
        }
        self.holds_lock = true;
        // What is told from here on may be missing in what is written.
        self.changes = self.changes.resubscribe();
        let withdrawn = self.shared.runtime.withdrawn();
        let remembered = self.shared.remembered(clock::unix_millis());
        match self.file.write(&remembered.encode_to_vec()) {
            Ok(()) => {
                self.withdrawn = withdrawn;
                (self.due, self.failing) = (false, false);
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(%error, "cannot save circuits; a restart forgets those that open from now on");
                }
            }
        }
    }
}
