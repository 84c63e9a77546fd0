//! The compiled configuration of all Services at one moment, and what an agent lacks of it.
//!
//! A resource's version is a hash of its encoded content: equal content has equal versions at every controller and after
//! every restart, so an agent that comes back gets the difference only. Applying each delta in turn, whatever was missed
//! between, ends with exactly the snapshot (`deltas_always_end_with_the_whole_snapshot`).

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::Arc;

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

/// The compiled configuration of all Services at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    revision: u64,
    routes: Arc<Routes>,
    resources: BTreeMap<Key, Arc<v1::Resource>>,
}

impl Key {
    /// The name of a resource as the wire has it; `None` when it names none.
    pub fn from_wire(key: v1::ResourceKey) -> Option<Self> {
        let kind = Some(key.kind()).filter(|kind| *kind != v1::Kind::Unspecified)?;
        Some(Self { service: ServiceKey { namespace: key.namespace, name: key.name }, kind })
    }

    /// Whether the agent of a node is given what has this key.
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
        self.resources.iter().map(|(key, resource)| (key, resource.as_ref()))
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
            return self.resources.remove(&key).is_some();
        }
        self.put(key, &workloads.encode_to_vec(), Content::Workloads(workloads))
    }

    fn put(&mut self, key: Key, encoded: &[u8], content: Content) -> bool {
        let version = version(encoded);
        if self.resources.get(&key).is_some_and(|held| held.version == version) {
            return false;
        }
        if key.kind == v1::Kind::Routes {
            Arc::make_mut(&mut self.routes).insert(key.service.clone(), (version.clone(), self.revision + 1));
        }
        let resource = v1::Resource { key: Some(key.to_wire()), version, content: Some(content) };
        self.resources.insert(key, Arc::new(resource));
        true
    }

    /// Forgets a Service; whether that is a change.
    pub fn remove(&mut self, service: &ServiceKey) -> bool {
        if self.routes.contains_key(service) {
            Arc::make_mut(&mut self.routes).remove(service);
        }
        let kinds = [v1::Kind::Routes, v1::Kind::Instances];
        let removed = kinds.map(|kind| self.resources.remove(&Key { service: service.clone(), kind }));
        removed.iter().any(Option::is_some)
    }

    /// Makes it the next revision.
    pub fn advance(&mut self) {
        self.revision += 1;
    }

    /// A resource.
    pub fn get(&self, key: &Key) -> Option<&v1::Resource> {
        self.resources.get(key).map(Arc::as_ref)
    }

    /// The resources that the agent of a node is given: all, but of the workloads only those on its own node, and those on none.
    fn of_node<'a>(&'a self, node: &str) -> impl Iterator<Item = (&'a Key, &'a Arc<v1::Resource>)> {
        self.resources.iter().filter(move |(key, _)| key.is_given(node))
    }

    /// What the agent of a node that holds this lacks, and what it holds for nothing.
    pub fn delta(&self, node: &str, held: &Held) -> v1::Update {
        let lacks = self.of_node(node).filter(|(key, resource)| held.get(*key) != Some(&resource.version));
        let surplus = held.keys().filter(|key| !self.resources.contains_key(*key) || !key.is_given(node));
        v1::Update {
            revision: self.revision,
            upserts: lacks.map(|(_, resource)| v1::Resource::clone(resource)).collect(),
            removals: surplus.map(Key::to_wire).collect(),
        }
    }

    /// What the agent of a node holds that has all of it.
    pub fn held(&self, node: &str) -> Held {
        self.of_node(node).map(|(key, resource)| (key.clone(), resource.version.clone())).collect()
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
