//! Who is connected, and what is in force there.
//!
//! An agent counts as having a revision in force only when it has acknowledged it and nothing it was sent stands rejected.
//! It is counted for as long as its stream lasts: [`Connected`] takes it off the list when it is dropped.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::counter::Counter;
use switchyard_proto::v1;
use tonic::Status;

use crate::snapshot::Key;

/// More agents than this are more nodes than a cluster can have; the next one is turned away.
const MAX_AGENTS: usize = 20_000;

/// A node's name, as Kubernetes bounds it.
const MAX_NODE_BYTES: usize = 253;

/// All agents that are connected.
#[derive(Debug, Default)]
pub struct Agents {
    list: Mutex<List>,
    /// What has been sent to all of them.
    pub counters: Counters,
}

/// What has been sent to all agents since the start.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Updates.
    pub updates_sent: Counter,
    /// Resources in them.
    pub resources_sent: Counter,
    /// Resources that agents could not use.
    pub resources_rejected: Counter,
}

/// An agent, as it is seen from here.
#[derive(Clone, Debug, Default)]
pub struct Agent {
    /// Its node's name.
    pub node: String,
    /// Its build.
    pub build: String,
    /// The last revision it has answered; 0 before the first.
    pub revision: u64,
    /// What it could not use, and why.
    pub rejected: BTreeMap<Key, String>,
}

#[derive(Debug, Default)]
struct List {
    /// By number of the stream: a node may be there twice while an old stream dies.
    agents: BTreeMap<u64, Agent>,
    streams: u64,
}

/// An agent's entry in the list, for as long as its stream lasts.
#[derive(Debug)]
pub struct Connected {
    agents: Arc<Agents>,
    stream: u64,
    node: String,
}

impl Agents {
    /// Every agent that is connected.
    pub fn all(&self) -> Vec<Agent> {
        self.list().agents.values().cloned().collect()
    }

    /// Puts an agent on the list.
    ///
    /// # Errors
    /// When it does not say who it is, or the list is full.
    pub fn connect(self: &Arc<Self>, hello: &v1::Hello) -> Result<Connected, Status> {
        if hello.node.is_empty() || hello.node.len() > MAX_NODE_BYTES {
            return Err(Status::invalid_argument("Hello names no node"));
        }
        let mut list = self.list();
        if list.agents.len() >= MAX_AGENTS {
            return Err(Status::resource_exhausted("too many agents are connected"));
        }
        list.streams += 1;
        let stream = list.streams;
        let build = hello.build.chars().take(MAX_NODE_BYTES).collect();
        list.agents.insert(stream, Agent { node: hello.node.clone(), build, ..Agent::default() });
        Ok(Connected { agents: self.clone(), stream, node: hello.node.clone() })
    }

    fn list(&self) -> MutexGuard<'_, List> {
        // Every change of the list is one step, so it is whole even where somebody panicked.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connected {
    /// The agent's node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// It has put in force all of this revision, which was about these resources.
    pub fn acked(&self, revision: u64, about: &[Key]) {
        self.rejected(revision, about, Vec::new());
    }

    /// It has put in force all of this revision but what is named.
    pub fn rejected(&self, revision: u64, about: &[Key], errors: Vec<(Key, String)>) {
        self.agents.counters.resources_rejected.inc_by(errors.len() as u64);
        let mut list = self.agents.list();
        let Some(agent) = list.agents.get_mut(&self.stream) else { return };
        agent.revision = revision;
        agent.rejected.retain(|key, _| !about.contains(key));
        agent.rejected.extend(errors);
    }

    /// The revision that this agent has, on how many agents it is in force, and how many there are.
    pub fn in_force(&self) -> (u64, usize, usize) {
        let list = self.agents.list();
        let revision = list.agents.get(&self.stream).map(|agent| agent.revision).unwrap_or_default();
        let has_it = |agent: &&Agent| agent.revision >= revision && agent.rejected.is_empty();
        (revision, list.agents.values().filter(has_it).count(), list.agents.len())
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.agents.list().agents.remove(&self.stream);
    }
}
