//! The compiled configuration of all Services at one moment, and what an agent lacks of it.
//!
//! A resource's version is a hash of its encoded content: equal content has equal versions at every controller and after
//! every restart, so an agent that comes back gets the difference only. Applying each delta in turn, whatever was missed
//! between, ends with exactly the snapshot (`deltas_always_end_with_the_whole_snapshot`).
//!
//! A resource is encoded once, when it changes, and its bytes go to all agents. What an agent lacks is looked for among what has changed
//! since it was last sent something, not among everything there is: a change costs each agent what the change is worth.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::{self, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use switchyard_proto::v1;
use switchyard_proto::v1::resource::Content;

use crate::object::ServiceKey;

/// Names a resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The Service; for workloads, the node's name with no namespace, and no name for those that every node is told of.
    pub service: ServiceKey,
    /// Which of its resources.
    pub kind: v1::Kind,
}

/// The routes of each Service at one controller: their version, and the revision from which on agents have it.
pub type Routes = BTreeMap<ServiceKey, (String, u64)>;

/// The resources that an agent holds, by version.
pub type Held = BTreeMap<Key, String>;

/// How many revisions back it is known what has changed since; an agent that is further behind is compared with everything.
const REMEMBERED: usize = 256;

/// What an agent has, as far as it is known here.
#[derive(Debug)]
pub enum Base {
    /// What it said that it holds.
    Held(Held),
    /// What it was sent last.
    Sent(Arc<Snapshot>),
}

impl Default for Base {
    fn default() -> Self {
        Self::Held(Held::new())
    }
}

/// An update, and the resources that it is about.
#[derive(Debug, PartialEq)]
pub struct Delta {
    /// As it is sent.
    pub update: v1::Update,
    /// What is in it, and what it takes away.
    pub about: Vec<Key>,
}

/// A resource, and what is sent of it.
#[derive(Debug)]
struct Published {
    resource: v1::Resource,
    encoded: Bytes,
}

/// The compiled configuration of all Services at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    revision: u64,
    routes: Arc<Routes>,
    resources: BTreeMap<Key, Arc<Published>>,
    /// What has changed with each of the last revisions, the newest at the end.
    changes: VecDeque<Arc<BTreeSet<Key>>>,
    /// What has changed since the last one.
    changing: BTreeSet<Key>,
}

impl Key {
    /// The name of a resource as the wire has it; `None` when it names none.
    pub fn from_wire(key: v1::ResourceKey) -> Option<Self> {
        let kind = Some(key.kind()).filter(|kind| *kind != v1::Kind::Unspecified)?;
        Some(Self { service: ServiceKey { namespace: key.namespace, name: key.name }, kind })
    }

    /// Whether the agent of a node is given what has this key: all, but of the workloads only those on its own node and those on none.
    fn is_given(&self, node: &str) -> bool {
        self.kind != v1::Kind::Workloads || self.service.name.is_empty() || self.service.name == node
    }

    pub(crate) fn to_wire(&self) -> v1::ResourceKey {
        v1::ResourceKey {
            kind: self.kind.into(),
            namespace: self.service.namespace.clone(),
            name: self.service.name.clone(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            v1::Kind::Routes => "routes",
            v1::Kind::Instances => "instances",
            v1::Kind::Workloads => "workloads",
            v1::Kind::Unspecified => "nothing",
        };
        if self.kind == v1::Kind::Workloads && self.service.name.is_empty() {
            return write!(f, "{kind}");
        }
        if self.kind == v1::Kind::Workloads {
            return write!(f, "{kind} of node {}", self.service.name);
        }
        write!(f, "{kind} of {}", self.service)
    }
}

impl Snapshot {
    /// Grows by one with each change that is published; 0 before the first.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Which routes are published, and since when.
    pub fn routes(&self) -> &Arc<Routes> {
        &self.routes
    }

    /// The resources by key.
    pub fn resources(&self) -> impl Iterator<Item = (&Key, &v1::Resource)> {
        self.resources.iter().map(|(key, published)| (key, &published.resource))
    }

    /// Takes in a Service as it is compiled now; whether that is a change.
    pub fn set(&mut self, service: &ServiceKey, routes: v1::ServiceRoutes, instances: v1::ServiceInstances) -> bool {
        let key = |kind| Key { service: service.clone(), kind };
        let encoded = [routes.encode_to_vec(), instances.encode_to_vec()];
        let is_change = self.put(key(v1::Kind::Routes), &encoded[0], Content::Routes(routes));
        self.put(key(v1::Kind::Instances), &encoded[1], Content::Instances(instances)) || is_change
    }

    /// Takes in who runs on a node, or, with no name, who there is wherever it runs; whether that is a change. A node that nobody runs on
    /// is forgotten.
    pub fn set_node(&mut self, node: &str, workloads: v1::LocalWorkloads) -> bool {
        let service = ServiceKey { namespace: String::new(), name: node.to_owned() };
        let key = Key { service, kind: v1::Kind::Workloads };
        if workloads.workloads.is_empty() {
            return self.take(key);
        }
        self.put(key, &workloads.encode_to_vec(), Content::Workloads(workloads))
    }

    fn put(&mut self, key: Key, encoded: &[u8], content: Content) -> bool {
        let version = version(encoded);
        if self.version(&key) == Some(&version) {
            return false;
        }
        if key.kind == v1::Kind::Routes {
            Arc::make_mut(&mut self.routes).insert(key.service.clone(), (version.clone(), self.revision + 1));
        }
        let resource = v1::Resource { key: Some(key.to_wire()), version, content: Some(content) };
        let encoded = resource.encode_to_vec().into();
        self.changing.insert(key.clone());
        self.resources.insert(key, Arc::new(Published { resource, encoded }));
        true
    }

    fn take(&mut self, key: Key) -> bool {
        let is_change = self.resources.remove(&key).is_some();
        if is_change {
            self.changing.insert(key);
        }
        is_change
    }

    /// Forgets a Service; whether that is a change.
    pub fn remove(&mut self, service: &ServiceKey) -> bool {
        if self.routes.contains_key(service) {
            Arc::make_mut(&mut self.routes).remove(service);
        }
        let kinds = [v1::Kind::Routes, v1::Kind::Instances];
        let removed = kinds.map(|kind| self.take(Key { service: service.clone(), kind }));
        removed.contains(&true)
    }

    /// Makes it the next revision.
    pub fn advance(&mut self) {
        self.revision += 1;
        self.changes.push_back(Arc::new(std::mem::take(&mut self.changing)));
        if self.changes.len() > REMEMBERED {
            self.changes.pop_front();
        }
    }

    /// A resource.
    pub fn get(&self, key: &Key) -> Option<&v1::Resource> {
        self.resources.get(key).map(|published| &published.resource)
    }

    fn version(&self, key: &Key) -> Option<&String> {
        self.resources.get(key).map(|published| &published.resource.version)
    }

    /// What the agent of a node lacks, and what it holds for nothing.
    pub fn delta(&self, node: &str, base: &Base) -> Delta {
        match base {
            Base::Held(held) => {
                let all = self.resources.keys().chain(held.keys()).collect();
                self.difference(node, all, |key| held.get(key))
            }
            Base::Sent(sent) => {
                let behind = usize::try_from(self.revision.saturating_sub(sent.revision)).unwrap_or(usize::MAX);
                let keys = match self.changes.len().checked_sub(behind) {
                    Some(known) => self.changes.range(known..).flat_map(|changed| changed.iter()).collect(),
                    None => self.resources.keys().chain(sent.resources.keys()).collect(),
                };
                self.difference(node, keys, |key| sent.version(key).filter(|_| key.is_given(node)))
            }
        }
    }

    /// What of these keys is another than what the agent has.
    fn difference<'a>(&self, node: &str, keys: BTreeSet<&Key>, has: impl Fn(&Key) -> Option<&'a String>) -> Delta {
        let mut update = v1::Update { revision: self.revision, ..v1::Update::default() };
        let mut about = Vec::new();
        for key in keys {
            let published = self.resources.get(key).filter(|_| key.is_given(node));
            match (published, has(key)) {
                (Some(published), had) if had != Some(&published.resource.version) => {
                    // The bytes are shared.
                    update.upserts.push(published.encoded.clone());
                }
                (None, Some(_)) => update.removals.push(key.to_wire()),
                _ => continue,
            }
            about.push(key.clone());
        }
        Delta { update, about }
    }
}

/// The first 64 bits of SHA-256, as 16 hexadecimal digits.
fn version(content: &[u8]) -> String {
    let hash = Sha256::digest(content);
    hash.iter().take(8).fold(String::with_capacity(16), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
