//! What the agent holds of the controller's configuration, as it came over the wire: resources by key.
//!
//! A resource is checked when it comes in ([`Resources::check`]): one that cannot be used is turned down and the one that
//! was there before stays, whatever else arrived with it.

use std::collections::{BTreeMap, BTreeSet};

use switchyard_proto::v1;

use crate::matching::Entry;
use crate::table::{ServiceKey, check_filters};

/// Names a resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceKey {
    /// Rules, instances or workloads.
    pub kind: v1::Kind,
    /// The Service that it is of; for workloads, the node's name with no namespace.
    pub service: ServiceKey,
}

impl ResourceKey {
    /// From the wire; `None` when it is of a kind that this build does not know.
    pub fn from_wire(key: Option<&v1::ResourceKey>) -> Option<Self> {
        let key = key?;
        let service = ServiceKey { namespace: key.namespace.clone(), name: key.name.clone() };
        match key.kind() {
            v1::Kind::Unspecified => None,
            kind => Some(Self { kind, service }),
        }
    }

    /// To the wire.
    pub fn to_wire(&self) -> v1::ResourceKey {
        v1::ResourceKey {
            kind: self.kind.into(),
            namespace: self.service.namespace.clone(),
            name: self.service.name.clone(),
        }
    }
}

/// All that the agent holds.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    /// The controller's revision.
    pub revision: u64,
    held: BTreeMap<ResourceKey, v1::Resource>,
}

impl Resources {
    /// Takes an update in. What cannot be used is left out and returned; what was there before of those stays.
    pub fn apply(&mut self, update: v1::Update) -> Vec<v1::ResourceError> {
        let mut errors = Vec::new();
        self.revision = update.revision;
        for key in &update.removals {
            if let Some(key) = ResourceKey::from_wire(Some(key)) {
                self.held.remove(&key);
            }
        }
        for resource in update.resources() {
            let (key, checked) = match resource {
                Ok(resource) => (resource.key.clone(), Self::check(&resource).map(|()| resource)),
                Err(error) => (None, Err(error.to_string())),
            };
            match checked {
                Ok(resource) => self.put(resource),
                Err(message) => errors.push(v1::ResourceError { key, message }),
            }
        }
        errors
    }

    /// Takes one resource in, replacing the one of that key.
    pub fn put(&mut self, resource: v1::Resource) {
        if let Some(key) = ResourceKey::from_wire(resource.key.as_ref()) {
            self.held.insert(key, resource);
        }
    }

    /// Whether the resource can be used by this build.
    ///
    /// # Errors
    /// What is wrong with it, as a lower-case fragment.
    fn check(resource: &v1::Resource) -> Result<(), String> {
        let key = ResourceKey::from_wire(resource.key.as_ref()).ok_or("a kind that this build does not know")?;
        match (&resource.content, key.kind) {
            (Some(v1::resource::Content::Routes(routes)), v1::Kind::Routes) => {
                for entry in &routes.matches {
                    if entry.rule as usize >= routes.rules.len() {
                        return Err(format!("a match refers to rule {}, which is not there", entry.rule));
                    }
                    Entry::compile(entry)?.check()?;
                }
                check_filters(&routes.rules)
            }
            (Some(v1::resource::Content::Instances(instances)), v1::Kind::Instances) => {
                let others = instances.instances.iter().map(|i| &i.other_address).filter(|other| !other.is_empty());
                let mut addresses = instances.instances.iter().map(|i| &i.address).chain(others);
                match addresses.find(|address| address.parse::<std::net::IpAddr>().is_err()) {
                    Some(address) => Err(format!("{address:?} is not an IP address")),
                    None => Ok(()),
                }
            }
            (Some(v1::resource::Content::Workloads(local)), v1::Kind::Workloads) => {
                let mut addresses = local.workloads.iter().flat_map(|workload| &workload.addresses);
                match addresses.find(|address| address.parse::<std::net::IpAddr>().is_err()) {
                    Some(address) => Err(format!("{address:?} is not an IP address")),
                    None => Ok(()),
                }
            }
            _ => Err("the content is not of the key's kind".to_owned()),
        }
    }

    /// The Services that there is anything of, in order.
    pub fn services(&self) -> BTreeSet<ServiceKey> {
        self.held.keys().filter(|key| key.kind != v1::Kind::Workloads).map(|key| key.service.clone()).collect()
    }

    /// Who runs on this node.
    pub fn workloads(&self) -> impl Iterator<Item = &v1::Workload> {
        self.held.values().flat_map(|resource| match &resource.content {
            Some(v1::resource::Content::Workloads(local)) => local.workloads.as_slice(),
            _ => &[],
        })
    }

    /// A Service's rules.
    pub fn routes(&self, key: &ResourceKey) -> Option<&v1::ServiceRoutes> {
        match &self.held.get(key)?.content {
            Some(v1::resource::Content::Routes(routes)) => Some(routes),
            _ => None,
        }
    }

    /// A Service's instances.
    pub fn instances(&self, key: &ResourceKey) -> Option<&v1::ServiceInstances> {
        match &self.held.get(key)?.content {
            Some(v1::resource::Content::Instances(instances)) => Some(instances),
            _ => None,
        }
    }

    /// The version of a resource; empty when there is none.
    pub fn version(&self, key: &ResourceKey) -> &str {
        self.held.get(key).map_or("", |resource| &resource.version)
    }

    /// All resources, in order of their keys.
    pub fn all(&self) -> impl Iterator<Item = (&ResourceKey, &v1::Resource)> {
        self.held.iter()
    }
}

/// Small resources for tests.
#[cfg(test)]
pub(crate) mod tests_support {
    use super::*;

    fn resource(kind: v1::Kind, namespace: &str, name: &str, content: v1::resource::Content) -> v1::Resource {
        let version = format!("{content:?}");
        v1::Resource {
            key: Some(v1::ResourceKey { kind: kind.into(), namespace: namespace.into(), name: name.into() }),
            version,
            content: Some(content),
        }
    }

    pub(crate) fn routes(namespace: &str, name: &str) -> v1::Resource {
        routes_of(namespace, name, v1::ServiceRoutes::default())
    }

    pub(crate) fn routes_of(namespace: &str, name: &str, mut routes: v1::ServiceRoutes) -> v1::Resource {
        if routes.ports.is_empty() {
            routes.ports =
                vec![v1::ServicePort { port: 80, name: "http".into(), protocol: v1::Protocol::Http1.into() }];
        }
        resource(v1::Kind::Routes, namespace, name, v1::resource::Content::Routes(routes))
    }

    pub(crate) fn instances(namespace: &str, name: &str, of: &[(&str, u16, &str)]) -> v1::Resource {
        let instances = of
            .iter()
            .map(|(address, port, version)| v1::Instance {
                address: (*address).into(),
                ports: vec![v1::InstancePort { service_port: 80, port: u32::from(*port) }],
                version: (*version).into(),
                ready: true,
                ..v1::Instance::default()
            })
            .collect();
        let content = v1::resource::Content::Instances(v1::ServiceInstances { instances });
        resource(v1::Kind::Instances, namespace, name, content)
    }
}
