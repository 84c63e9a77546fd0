//! Who is connected, and what is in force there.
//!
//! An agent counts as having a revision in force only when it has acknowledged it and nothing it was sent stands rejected.
//! It is counted for as long as its stream lasts: [`Connected`] takes it off the list when it is dropped. One that is cut off goes
//! on with what it has, so its node is remembered until the node is gone, or the agent's Pod on it ([`Agents::forget`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::counter::Counter;
use prost::Message as _;
use switchyard_crds::circuit_policy::CircuitStatus;
use switchyard_proto::v1;
use tokio::sync::watch;
use tonic::Status;

use crate::correlate::Views;
use crate::report::AgentView;
use crate::serve::door::Refusals;
use crate::serve::evidence::Shared;
use crate::snapshot::{Key, Routes};

/// Circuits that one agent may tell of; more are not kept. Bounds what a broken agent can do.
const MAX_CIRCUITS: usize = 10_000;

/// Instances that one agent may tell of.
const MAX_VIEWS: usize = 1000;

/// What a controller that does not lead tells of what its agents see, at most: some 3 MB.
const MAX_TOLD_VIEWS: usize = 20_000;

/// Open circuits that a status shows.
const SHOWN_CIRCUITS: usize = 100;

/// More agents than this are more nodes than a cluster can have; the next one is turned away.
const MAX_AGENTS: usize = 20_000;

/// A node's name, as Kubernetes bounds it.
const MAX_NODE_BYTES: usize = 253;

/// All agents that are connected.
#[derive(Debug, Default)]
pub struct Agents {
    list: Mutex<List>,
    /// Grows whenever anything here changes.
    changes: watch::Sender<u64>,
    /// What all agents see of instances, those of other controllers too.
    shared: watch::Sender<Arc<Shared>>,
    /// What has been sent to all of them.
    pub counters: Counters,
    /// Who was not let in.
    pub refusals: Refusals,
}

/// What has been sent to all agents since the start.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Updates.
    pub updates_sent: Counter,
    /// Resources in them.
    pub resources_sent: Counter,
    /// Bytes of them.
    pub bytes_sent: Counter,
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
    /// Circuits that are not closed there, by Service and target.
    pub circuits: BTreeMap<(String, String), v1::CircuitTransition>,
    /// What it sees of instances.
    pub views: Arc<Vec<v1::InstanceView>>,
}

#[derive(Debug, Default)]
struct List {
    /// By number of the stream: a node may be there twice while an old stream dies.
    agents: BTreeMap<u64, Agent>,
    streams: u64,
    /// Nodes whose agent was here and is not now.
    cut_off: BTreeSet<String>,
    /// What the other controllers tell of their agents, by their names.
    others: BTreeMap<String, Others>,
}

/// The agents of another controller.
#[derive(Debug, Default)]
pub struct Others {
    /// What it has published.
    pub published: Arc<Routes>,
    /// Its agents, by node.
    pub agents: BTreeMap<String, AgentView>,
    /// Circuits that are not closed there.
    pub circuits: Vec<v1::CircuitTransition>,
    /// What its agents see of instances.
    pub views: Views,
}

/// An agent's entry in the list, for as long as its stream lasts.
#[derive(Debug)]
pub struct Connected {
    agents: Arc<Agents>,
    stream: u64,
    node: String,
}

impl Counters {
    /// An update goes out.
    pub fn sent(&self, update: &v1::Update) {
        self.updates_sent.inc();
        self.resources_sent.inc_by(update.upserts.len() as u64);
        self.bytes_sent.inc_by(update.encoded_len() as u64);
    }
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
        list.cut_off.remove(&hello.node);
        list.agents.insert(stream, Agent { node: hello.node.clone(), build, ..Agent::default() });
        drop(list);
        self.changed();
        Ok(Connected { agents: self.clone(), stream, node: hello.node.clone() })
    }

    /// Is told whenever somebody comes, goes or answers.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// There is to be an agent on this node: until it connects it counts as cut off.
    pub fn expect(&self, node: &str) {
        let mut list = self.list();
        let is_here = list.agents.values().any(|agent| agent.node == node);
        let is_there = list.others.values().any(|other| other.agents.contains_key(node));
        if !is_here && !is_there && list.cut_off.insert(node.to_owned()) {
            drop(list);
            self.changed();
        }
    }

    /// A node is gone, or its agent is taken off it.
    pub fn forget(&self, node: &str) {
        if self.list().cut_off.remove(node) {
            self.changed();
        }
    }

    /// Every agent once: the newest stream of each node, those of the other controllers, and those that are cut off. `published`
    /// is what is published here.
    pub fn views(&self, published: &Arc<Routes>) -> Vec<AgentView> {
        let list = self.list();
        let mut views = BTreeMap::new();
        for agent in list.agents.values() {
            let rejected = agent.rejected.iter().map(|(key, why)| (key.service.clone(), why.clone())).collect();
            let (node, published, revision) = (agent.node.clone(), published.clone(), agent.revision);
            views.insert(agent.node.clone(), AgentView { node, published, revision, rejected });
        }
        for (node, view) in list.others.values().flat_map(|other| &other.agents) {
            views.entry(node.clone()).or_insert_with(|| view.clone());
        }
        for node in &list.cut_off {
            views.entry(node.clone()).or_insert_with(|| AgentView { node: node.clone(), ..AgentView::default() });
        }
        views.into_values().collect()
    }

    /// The circuits that are not closed, by policy: each with how many nodes see it so.
    pub fn circuits(&self) -> BTreeMap<String, Vec<CircuitStatus>> {
        let list = self.list();
        let mut by_policy: BTreeMap<String, BTreeMap<(String, String, String), CircuitStatus>> = BTreeMap::new();
        let others = list.others.values().flat_map(|other| &other.circuits);
        for circuit in list.agents.values().flat_map(|agent| agent.circuits.values()).chain(others) {
            let is_instance = circuit.target.parse::<std::net::SocketAddr>().is_ok();
            let destination = match circuit.target.as_str() {
                version if !is_instance && !version.is_empty() => format!("{} {version}", circuit.service),
                _ => circuit.service.clone(),
            };
            let state = if circuit.state == "half-open" { "HalfOpen" } else { "Open" };
            let since = k8s_openapi::jiff::Timestamp::from_millisecond(circuit.since_ms).unwrap_or_default();
            let entry = CircuitStatus {
                destination: destination.clone(),
                instance: is_instance.then(|| circuit.target.clone()),
                state: state.to_owned(),
                since: since.to_string(),
                reason: circuit.reason.clone(),
                nodes: 1,
            };
            let key = (destination, circuit.target.clone(), state.to_owned());
            let of_policy = by_policy.entry(circuit.policy.clone()).or_default();
            if let Some(known) = of_policy.get_mut(&key) {
                known.nodes += 1;
                // Who saw it first says since when and why.
                if entry.since < known.since {
                    (known.since, known.reason) = (entry.since, entry.reason);
                }
            } else if of_policy.len() < SHOWN_CIRCUITS {
                of_policy.insert(key, entry);
            }
        }
        by_policy.into_iter().map(|(policy, circuits)| (policy, circuits.into_values().collect())).collect()
    }

    /// What each node sees of instances: that of its newest stream.
    pub fn instance_views(&self) -> Views {
        let list = self.list();
        let others = list.others.values().flat_map(|other| &other.views);
        let mut views: Views = others.map(|(node, views)| (node.clone(), views.clone())).collect();
        views.extend(list.agents.values().map(|agent| (agent.node.clone(), agent.views.clone())));
        views
    }

    /// What all agents see, as it is handed down and shown.
    pub fn shared(&self) -> watch::Receiver<Arc<Shared>> {
        self.shared.subscribe()
    }

    /// All agents see this now.
    pub fn share(&self, shared: Shared) {
        let mut is_shown = false;
        self.shared.send_if_modified(|before| {
            let is_change = **before != shared;
            is_shown = before.shown != shared.shown;
            if is_change {
                *before = Arc::new(shared);
            }
            is_change
        });
        if is_shown {
            self.changed();
        }
    }

    /// What a controller that does not lead tells of its agents.
    pub(super) fn to_tell(&self) -> (Vec<v1::AgentState>, Vec<v1::CircuitTransition>) {
        let list = self.list();
        let mut room = MAX_TOLD_VIEWS;
        let mut state = |agent: &Agent| {
            let views: Vec<_> = agent.views.iter().take(room).cloned().collect();
            room -= views.len();
            let error = |(key, message): (&Key, &String)| v1::ResourceError {
                key: Some(key.to_wire()),
                message: message.clone(),
            };
            let rejected = agent.rejected.iter().map(error).collect();
            v1::AgentState { node: agent.node.clone(), revision: agent.revision, rejected, views }
        };
        // Of a node that is there twice, the newest stream counts, which comes last.
        let states: BTreeMap<_, _> = list.agents.values().map(|agent| (&agent.node, state(agent))).collect();
        let circuits = list.agents.values().flat_map(|agent| agent.circuits.values().cloned());
        (states.into_values().collect(), circuits.collect())
    }

    /// What another controller tells of its agents; `None`: it tells no more.
    pub fn of_other(&self, controller: &str, others: Option<Others>) {
        let mut list = self.list();
        let gone = match others {
            Some(others) => {
                for node in others.agents.keys() {
                    list.cut_off.remove(node);
                }
                let before = list.others.insert(controller.to_owned(), others);
                before.map(|before| before.agents).unwrap_or_default()
            }
            None => list.others.remove(controller).map(|before| before.agents).unwrap_or_default(),
        };
        // Whoever is nowhere now is cut off, until it is somewhere again.
        for node in gone.into_keys() {
            let is_here = list.agents.values().any(|agent| agent.node == node);
            if !is_here && !list.others.values().any(|other| other.agents.contains_key(&node)) {
                list.cut_off.insert(node);
            }
        }
        drop(list);
        self.changed();
    }

    fn list(&self) -> MutexGuard<'_, List> {
        // Every change of the list is one step, so it is whole even where somebody panicked.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of what an agent tells of instances, that which can be one.
pub(super) fn taken(views: Vec<v1::InstanceView>) -> Vec<v1::InstanceView> {
    let can_be = |view: &v1::InstanceView| {
        let names = [&view.namespace, &view.service, &view.policy];
        names.iter().all(|name| name.len() <= 2 * MAX_NODE_BYTES) && view.target.parse::<std::net::SocketAddr>().is_ok()
    };
    views.into_iter().filter(can_be).take(MAX_VIEWS).collect()
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
        drop(list);
        self.agents.changed();
    }

    /// Circuits have changed there.
    pub fn reported(&self, report: v1::Report) {
        let mut list = self.agents.list();
        let Some(agent) = list.agents.get_mut(&self.stream) else { return };
        if let Some(views) = report.views {
            agent.views = Arc::new(taken(views.instances));
        }
        for circuit in report.transitions {
            let key = (format!("{}/{}", circuit.namespace, circuit.service), circuit.target.clone());
            if circuit.state == "closed" {
                agent.circuits.remove(&key);
            } else if agent.circuits.len() < MAX_CIRCUITS {
                agent.circuits.insert(key, circuit);
            }
        }
        drop(list);
        self.agents.changed();
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
        let mut list = self.agents.list();
        list.agents.remove(&self.stream);
        if !list.agents.values().any(|agent| agent.node == self.node) {
            list.cut_off.insert(self.node.clone());
        }
        drop(list);
        self.agents.changed();
    }
}
