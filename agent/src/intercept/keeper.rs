//! Keeps the table in the kernel: makes it, renews it while all is well, changes it when what is to be taken in changes, and gives
//! connections back when it may not or should not take them in. One thread owns it, and waits for nobody.
//!
//! Keeps true:
//! - Connections are taken in only while every worker lives, a configuration is in force, and the controller was heard of within
//!   the limit. When this thread itself hangs, the kernel gives them back.
//! - Only the owner changes the table. A newer agent that takes over makes the table anew; this one finds out by its next step, and
//!   touches nothing from then on. (`a_new_agent_takes_over_under_load` in `tests/tests/netns.rs`.)
//! - What two agents must not do at the same time, to make the way and to remove it, they do under a lock in the state folder.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::contact::Contact;
use super::ruleset::{self, Held, Ruleset};
use super::{Event, tools};
use crate::clock;
use crate::subscribe::Link;
use crate::worker::Shared;

/// How often the element that expires is renewed.
const RENEW: Duration = Duration::from_secs(1);
/// How often addresses, rules and routes are looked after (others may flush them), and how long it takes after something went wrong.
const LOOK_AFTER: Duration = Duration::from_secs(10);

/// The keeper.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) shared: Arc<Shared>,
    pub(super) link: Arc<Link>,
    pub(super) ruleset: Ruleset,
    pub(super) contact: Contact,
    pub(super) cut_off: Duration,
    /// Held while the way is made or removed.
    pub(super) lock: PathBuf,
    pub(super) standing: Standing,
    /// Why connections are not taken in, as it was said last; nothing: they are.
    pub(super) said: Option<String>,
    pub(super) stopping: bool,
}

/// How this agent stands to the table in the kernel.
#[derive(Debug)]
pub(super) enum Standing {
    /// It has made none, or the one it made is gone. Not before then is another one made.
    None(Option<Instant>),
    /// It is the owner; that is what the table holds, and since then the way was not looked after.
    Owner(Held, Instant),
    /// Another agent is. Whether that has gone is looked at then.
    Other(Instant),
}

impl Keeper {
    /// Keeps it until all is to be removed.
    pub(super) fn run(mut self, events: &Receiver<Event>) {
        loop {
            match events.recv_timeout(RENEW) {
                Ok(Event::Swapped) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Event::GiveBack(done)) => {
                    self.stopping = true;
                    self.step(clock::now());
                    // Whoever asked may have stopped waiting.
                    let _ = done.send(());
                    continue;
                }
                Ok(Event::Remove) | Err(RecvTimeoutError::Disconnected) => return self.remove(),
            }
            self.step(clock::now());
        }
    }

    /// Why connections are not to be taken in; nothing: they are.
    fn objection(&mut self, now: Instant) -> Option<String> {
        if self.link.connected.load(Relaxed) {
            self.contact.seen(now);
        }
        let interception = self.shared.interception.as_ref()?;
        if self.stopping {
            Some("the agent is ending".to_owned())
        } else if !self.link.ready.load(Relaxed) {
            Some("there is no configuration yet".to_owned())
        } else if let Some(worker) = interception.pulse.stuck(self.shared.runtime.millis(now)) {
            Some(format!("worker {worker} does not answer"))
        } else if self.contact.lost_for(self.cut_off, now) {
            Some("the controller was not heard of for too long".to_owned())
        } else {
            None
        }
    }

    /// One step: what is in the kernel becomes what should be there now.
    fn step(&mut self, now: Instant) {
        let objection = self.objection(now);
        let captured = self.shared.table.load().addresses.captured().clone();
        // With the node's own address answers come to the node by themselves.
        let node_address = self.shared.interception.as_ref().is_some_and(|interception| interception.node_address);
        let wanted = Held { captured, bridged: !node_address && tools::has_bridge() };
        let outcome = match &self.standing {
            Standing::None(not_before) if objection.is_some() || not_before.is_some_and(|at| now < at) => Ok(()),
            Standing::None(_) => self.make(wanted, now),
            Standing::Owner(held, looked_after) => {
                let (text, looked_after) = (self.ruleset.step(objection.is_none(), held, &wanted), *looked_after);
                match tools::nft(&text) {
                    Ok(()) => self.look_after(wanted, looked_after, now),
                    Err(error) => {
                        self.find_out(now);
                        Err(explained(error, &wanted))
                    }
                }
            }
            Standing::Other(look_at) => {
                if now >= *look_at {
                    self.find_out(now);
                }
                Ok(())
            }
        };
        let why = match (&self.standing, outcome, objection) {
            (Standing::Other(_), ..) => Some("a newer agent takes them in".to_owned()),
            (_, _, Some(objection)) => Some(objection),
            (Standing::Owner(..), Ok(()), None) => None,
            (Standing::None(_), Ok(()), None) => self.said.clone(),
            (_, Err(error), None) => Some(error),
        };
        self.say(why);
    }

    /// Makes the table, and the way to this agent and back.
    fn make(&mut self, wanted: Held, now: Instant) -> Result<(), String> {
        let _lock = self.lock();
        let made = tools::make_way(self.ruleset.place.ipv6)
            .and_then(|()| tools::nft(&(self.ruleset.whole(&wanted) + &self.ruleset.step(true, &wanted, &wanted))));
        let made = made.map_err(|error| explained(error, &wanted));
        self.standing = match made {
            Ok(()) => Standing::Owner(wanted, now),
            Err(_) => Standing::None(now.checked_add(LOOK_AFTER)),
        };
        made
    }

    fn look_after(&mut self, held: Held, looked_after: Instant, now: Instant) -> Result<(), String> {
        let due = now.saturating_duration_since(looked_after) >= LOOK_AFTER;
        let of_bridge = if due && held.bridged { ruleset::bridge(&held.captured) } else { String::new() };
        self.standing = Standing::Owner(held, if due { now } else { looked_after });
        if due { tools::make_way(self.ruleset.place.ipv6).and_then(|()| tools::nft(&of_bridge)) } else { Ok(()) }
    }

    /// A step failed, or it is time to see whether the other agent is still there: whose is the table?
    fn find_out(&mut self, now: Instant) {
        self.standing = match tools::table() {
            Ok(None) => Standing::None(None),
            // Ours, and not as we left it: it is made anew.
            Ok(Some(listing)) if self.ruleset.owns(&listing) => Standing::None(None),
            Ok(Some(_)) => Standing::Other(now + LOOK_AFTER),
            // Nobody can tell, and nothing is taken from another agent on a guess.
            Err(_) => return,
        };
    }

    /// Removes all, if it is this agent's.
    fn remove(&mut self) {
        if matches!(self.standing, Standing::Owner(..)) {
            let _lock = self.lock();
            match tools::nft(&self.ruleset.removal()) {
                Ok(()) => tools::remove_way(),
                Err(error) => tracing::info!(error, "the table is another agent's now, and stays"),
            }
        }
    }

    fn lock(&self) -> Option<File> {
        let locked = File::create(&self.lock).and_then(|file| file.lock().map(|()| file));
        if let Err(error) = &locked {
            tracing::warn!(path = %self.lock.display(), %error, "no lock; a second agent might interfere");
        }
        locked.ok()
    }

    fn say(&mut self, why: Option<String>) {
        if let Some(interception) = &self.shared.interception {
            interception.taking.store(why.is_none(), Relaxed);
        }
        if self.said == why {
            return;
        }
        match &why {
            None => tracing::info!("connections of this node's pods to opted-in Services are taken in"),
            Some(why) => tracing::warn!(why, "connections are not taken in, and go the plain way"),
        }
        self.said = why;
    }
}

/// What nft said, and what to do where a bridge is the reason.
fn explained(error: String, wanted: &Held) -> String {
    if wanted.bridged && error.contains("bridge") {
        format!("{error} (this node has a bridge, and answers cannot be fetched from it; --node-address does without)")
    } else {
        error
    }
}
