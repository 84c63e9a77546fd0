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
    /// The Service.
    pub service: ServiceKey,
    /// Which of its resources.
    pub kind: v1::Kind,
}

/// The resources that an agent holds, by version.
pub type Held = BTreeMap<Key, String>;

/// The compiled configuration of all Services at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    revision: u64,
    resources: BTreeMap<Key, Arc<v1::Resource>>,
}

impl Key {
    /// The name of a resource as the wire has it; `None` when it names none.
    pub fn from_wire(key: v1::ResourceKey) -> Option<Self> {
        let kind = Some(key.kind()).filter(|kind| *kind != v1::Kind::Unspecified)?;
        Some(Self { service: ServiceKey { namespace: key.namespace, name: key.name }, kind })
    }

    fn to_wire(&self) -> v1::ResourceKey {
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
        write!(f, "{kind} of {}", self.service)
    }
}

impl Snapshot {
    /// Grows by one with each change that is published; 0 before the first.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The resources by key.
    pub fn resources(&self) -> impl Iterator<Item = (&Key, &v1::Resource)> {
        self.resources.iter().map(|(key, resource)| (key, resource.as_ref()))
    }

    /// Takes in a Service as it is compiled now; whether that is a change.
    pub fn set(&mut self, service: &ServiceKey, routes: v1::ServiceRoutes, instances: v1::ServiceInstances) -> bool {
        let versions = [version(&routes.encode_to_vec()), version(&instances.encode_to_vec())];
        let contents =
            [(v1::Kind::Routes, Content::Routes(routes)), (v1::Kind::Instances, Content::Instances(instances))];
        let mut is_change = false;
        for (version, (kind, content)) in versions.into_iter().zip(contents) {
            let key = Key { service: service.clone(), kind };
            if self.resources.get(&key).is_none_or(|held| held.version != version) {
                let resource = v1::Resource { key: Some(key.to_wire()), version, content: Some(content) };
                self.resources.insert(key, Arc::new(resource));
                is_change = true;
            }
        }
        is_change
    }

    /// Forgets a Service; whether that is a change.
    pub fn remove(&mut self, service: &ServiceKey) -> bool {
        let kinds = [v1::Kind::Routes, v1::Kind::Instances];
        let removed = kinds.map(|kind| self.resources.remove(&Key { service: service.clone(), kind }));
        removed.iter().any(Option::is_some)
    }

    /// Makes it the next revision.
    pub fn advance(&mut self) {
        self.revision += 1;
    }

    /// What an agent that holds this lacks, and what it holds for nothing.
    pub fn delta(&self, held: &Held) -> v1::Update {
        let lacks = self.resources.iter().filter(|(key, resource)| held.get(*key) != Some(&resource.version));
        let surplus = held.keys().filter(|key| !self.resources.contains_key(*key));
        v1::Update {
            revision: self.revision,
            upserts: lacks.map(|(_, resource)| v1::Resource::clone(resource)).collect(),
            removals: surplus.map(Key::to_wire).collect(),
        }
    }

    /// What an agent holds that has all of it.
    pub fn held(&self) -> Held {
        self.resources.iter().map(|(key, resource)| (key.clone(), resource.version.clone())).collect()
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
