//! A folder of manifests, watched: the source of `run`, `check` and `explain`.
//!
//! This is the shell, which decides nothing: it looks when something may have changed and passes on what
//! [`folder::Folder`] makes of it. The operating system's notices only say when to look; a look compares everything, so a
//! lost notice costs [`RESCAN`] and nothing else. A burst of changes is one look: it begins once nothing has happened for
//! [`QUIET`], and [`PATIENCE`] after the first change at the latest.

use std::path::{Path, PathBuf};
use std::sync::mpsc as std_mpsc;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use crate::source::Event;

/// Looks at the files.
pub mod disk;

/// What the files say, as a state machine.
pub mod folder;

/// What was in force, kept over a restart.
pub mod last_good;

/// Which file each object is in.
pub mod whereabouts;

use disk::Disk;
use folder::{CONFIRM, Folder};
use last_good::LastGood;
use whereabouts::Whereabouts;

/// Nothing has changed for this long: the writer is done.
const QUIET: Duration = Duration::from_millis(20);

/// A writer that never rests is not waited for any longer than this.
const PATIENCE: Duration = Duration::from_millis(200);

/// A look without a reason, for file systems that give no notice.
const RESCAN: Duration = Duration::from_secs(2);

/// Batches that may wait for the reader; a look waits when they are not read.
const BATCHES: usize = 16;

/// Watches a folder for as long as the receiver lives. What became known together comes as one batch. With a `state`
/// folder, what is in force is kept there. Which file an object is in is noted in `whereabouts`.
///
/// # Errors
/// When no thread can be started.
pub fn watch(
    root: PathBuf,
    state: Option<PathBuf>,
    whereabouts: Whereabouts,
) -> std::io::Result<mpsc::Receiver<Vec<Event>>> {
    let (batches, receiver) = mpsc::channel(BATCHES);
    std::thread::Builder::new().name("manifests".to_owned()).spawn(move || {
        let last_good = state.map(|state| LastGood::new(&state, &root));
        let folder = Folder::new(&root, last_good.as_ref().map(LastGood::load).unwrap_or_default());
        Watch { disk: Disk::new(&root), notices: Notices::new(root), folder, last_good, whereabouts }.run(&batches);
    })?;
    Ok(receiver)
}

struct Watch {
    disk: Disk,
    notices: Notices,
    folder: Folder,
    last_good: Option<LastGood>,
    whereabouts: Whereabouts,
}

impl Watch {
    fn run(mut self, batches: &mpsc::Sender<Vec<Event>>) {
        while !batches.is_closed() {
            // First the notices, then the look: a change between the two is then noticed.
            self.notices.follow(self.disk.identity());
            let look = self.disk.look();
            let events = self.folder.look(look, Instant::now());
            self.keep(&events);
            if !events.is_empty() {
                self.whereabouts.note(self.folder.held());
            }
            if !events.is_empty() && batches.blocking_send(events).is_err() {
                return;
            }
            let is_unsure = self.folder.is_unsure() || self.disk.is_unsure();
            self.notices.wait(if is_unsure { CONFIRM } else { RESCAN });
        }
    }

    fn keep(&self, events: &[Event]) {
        let changes_objects = events.iter().any(|event| matches!(event, Event::Applied(_) | Event::Deleted(_)));
        let Some(last_good) = self.last_good.as_ref().filter(|_| changes_objects) else { return };
        if let Err(error) = last_good.save(self.folder.held()) {
            tracing::warn!(%error, "what is in force cannot be kept for the next start");
        }
    }
}

/// The operating system's notices about a folder.
struct Notices {
    root: PathBuf,
    watcher: Option<notify::RecommendedWatcher>,
    /// The folder that is watched: another may come to stand at the same path.
    identity: Option<(u64, u64)>,
    sender: std_mpsc::SyncSender<()>,
    receiver: std_mpsc::Receiver<()>,
}

impl Notices {
    fn new(root: PathBuf) -> Self {
        // One notice is as good as many.
        let (sender, receiver) = std_mpsc::sync_channel(1);
        Self { root, watcher: None, identity: None, sender, receiver }
    }

    /// Watches the folder that stands at the root now.
    fn follow(&mut self, identity: Option<(u64, u64)>) {
        if self.identity == identity {
            return;
        }
        self.identity = identity;
        self.watcher = identity.and_then(|_| match watcher(&self.root, self.sender.clone()) {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                tracing::warn!(
                    folder = %self.root.display(),
                    %error,
                    "the system gives no notice of changes; the folder is looked at every {} s",
                    RESCAN.as_secs(),
                );
                None
            }
        });
    }

    /// Waits for a burst of changes to end, or for the time to pass with none.
    fn wait(&self, longest: Duration) {
        if self.receiver.recv_timeout(longest).is_err() {
            return;
        }
        let patience = Instant::now() + PATIENCE;
        while Instant::now() < patience && self.receiver.recv_timeout(QUIET).is_ok() {}
    }
}

fn watcher(root: &Path, notices: std_mpsc::SyncSender<()>) -> notify::Result<notify::RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.map_or(true, |event| is_change(&event.kind)) {
            // Full: a notice is waiting already.
            let _ = notices.try_send(());
        }
    })?;
    watcher.watch(root, RecursiveMode::Recursive)?;
    Ok(watcher)
}

/// Reading a file is no change to it, and it is what a look does.
fn is_change(kind: &EventKind) -> bool {
    !kind.is_access() || *kind == EventKind::Access(AccessKind::Close(AccessMode::Write))
}
