//! Interception: connections from pods of this node to Services that are opted in come to the agent, by a table of our own in the
//! kernel. What a packet's way looks like is told in `docs/interception.md`.
//!
//! Keeps true:
//! - **Fail open.** The kernel takes connections in only as long as the agent keeps saying so (`ruleset`, `keeper`, `pulse`).
//! - **Nothing foreign is touched, and nothing is left behind** (`place` names all there is).
//! - **The caller stays the caller.** Instances see the pod's own address (`crate::forward::transparent`).
//! - **Stop order.** Connections are given back first, then what is under way is finished, then all is removed.
//!
//! Each holds in `tests/tests/netns.rs`. The kernel's part is Linux; the rest of the agent builds without.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::time::Duration;

/// What keeps a node from it.
#[cfg(target_os = "linux")]
mod check;
/// When the controller was heard of last.
#[cfg(target_os = "linux")]
mod contact;
/// The thread that keeps the table.
#[cfg(target_os = "linux")]
mod keeper;
/// Addresses and numbers.
mod place;
/// Whether the workers live.
pub(crate) mod pulse;
/// The table as text.
#[cfg(target_os = "linux")]
mod ruleset;
/// `nft` and `ip`.
#[cfg(target_os = "linux")]
mod tools;

pub use place::{Place, has_ipv6};
pub use pulse::Pulse;

/// How long a stop may wait for the kernel to give connections back. It takes milliseconds; and the kernel does it by itself soon.
const GIVE_BACK: Duration = Duration::from_secs(5);

/// How an agent intercepts.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Instances see the node's address instead of the pod's.
    pub node_address: bool,
    /// Without a controller for so long, connections are given back.
    pub cut_off: Duration,
}

/// What workers know of it.
#[derive(Debug)]
pub struct Interception {
    /// Instances see the node's address instead of the pod's.
    pub node_address: bool,
    /// Whether the workers live.
    pub pulse: Pulse,
    /// Connections are taken in.
    pub taking: AtomicBool,
}

/// What the keeper is told.
#[derive(Debug)]
pub enum Event {
    /// Another table is in force.
    Swapped,
    /// Take no more connections in, and answer.
    GiveBack(mpsc::Sender<()>),
    /// Remove everything, and end.
    Remove,
}

/// The keeper's thread.
#[derive(Debug)]
pub struct Handle {
    events: mpsc::Sender<Event>,
    thread: std::thread::JoinHandle<()>,
}

impl Handle {
    /// Lets the kernel take no more connections in. Returns when that is so.
    pub fn give_back(&self) {
        let (done, waits) = mpsc::channel();
        if self.events.send(Event::GiveBack(done)).is_err() || waits.recv_timeout(GIVE_BACK).is_err() {
            tracing::warn!("connections could not be given back; the kernel does it within seconds");
        }
    }

    /// Removes the table and the way to the agent. To be called when nothing is under way any more.
    pub fn remove(self) {
        // An error means that the thread has ended.
        let _ = self.events.send(Event::Remove);
        if self.thread.join().is_err() {
            tracing::error!("the keeper has panicked; `switchyard-agent --uninstall` removes what it left");
        }
    }
}

#[cfg(target_os = "linux")]
pub use linux::{start, uninstall};

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::sync::Arc;

    use rand::Rng as _;

    use super::keeper::{Keeper, Standing};
    use super::ruleset::{self, Ruleset};
    use super::{Event, Handle, Options, Path, Place, check, contact, mpsc, tools};
    use crate::clock;
    use crate::subscribe::Link;
    use crate::worker::Shared;

    /// Starts to keep the table. `state` is a folder that all agents of a node share.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(
        options: Options,
        place: Place,
        state: &Path,
        shared: Arc<Shared>,
        link: Arc<Link>,
        (events, told): (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    ) -> io::Result<Handle> {
        let owner = format!("{:08x}", rand::rng().random::<u32>());
        let ruleset = Ruleset { owner, place };
        let contact = contact::Contact::load(state.join("contact"), clock::now());
        let keeper = Keeper {
            shared,
            link,
            contact,
            cut_off: options.cut_off,
            lock: state.join("intercept.lock"),
            standing: Standing::None(None),
            said: None,
            stopping: false,
            ruleset,
        };
        let thread = std::thread::Builder::new().name("intercept".to_owned()).spawn(move || {
            check::report(&keeper.ruleset);
            keeper.run(&told);
        })?;
        Ok(Handle { events, thread })
    }

    /// Removes what any agent has left in the kernel.
    ///
    /// # Errors
    /// What nft said.
    pub fn uninstall() -> Result<(), String> {
        tools::nft(ruleset::REMOVAL_OF_ANY)?;
        tools::remove_way();
        Ok(())
    }
}

#[cfg(not(target_os = "linux"))]
pub use elsewhere::{start, uninstall};

/// Where the kernel is not Linux, there is nothing to intercept with.
#[cfg(not(target_os = "linux"))]
mod elsewhere {
    use std::io;
    use std::sync::Arc;

    use super::{Event, Handle, Options, Path, Place, mpsc};
    use crate::subscribe::Link;
    use crate::worker::Shared;

    const WHY: &str = "interception needs Linux";

    /// Fails.
    ///
    /// # Errors
    /// Always.
    pub fn start(
        _: Options,
        _: Place,
        _: &Path,
        _: Arc<Shared>,
        _: Arc<Link>,
        _: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    ) -> io::Result<Handle> {
        Err(io::Error::new(io::ErrorKind::Unsupported, WHY))
    }

    /// Fails.
    ///
    /// # Errors
    /// Always.
    pub fn uninstall() -> Result<(), String> {
        Err(WHY.to_owned())
    }
}
