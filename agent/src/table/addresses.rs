//! By which addresses a node's pods are known, and by which they call a Service: what interception goes by.
//!
//! Every Service that has an address is found by it, opted in or not: a connection that was taken in before its Service was
//! opted out is still served by the Service's rules.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::Service;
use crate::resources::Resources;

/// A pod of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The account that it runs under.
    pub service_account: String,
    /// Those of its labels that some rule asks for.
    pub labels: BTreeMap<String, String>,
    /// Its addresses, one of each family at most.
    pub addresses: Vec<IpAddr>,
}

/// What is found by address.
#[derive(Debug, Default)]
pub struct Addresses {
    /// Positions of the Service in the table, and of the port in the Service.
    services: HashMap<SocketAddr, (usize, usize)>,
    workloads: HashMap<IpAddr, Arc<Workload>>,
    captured: Captured,
}

/// Which connections are to be taken in: from these pods to these addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    /// Addresses and ports of the Services that are opted in.
    pub services: BTreeSet<SocketAddr>,
    /// Addresses of this node's pods.
    pub workloads: BTreeSet<IpAddr>,
}

impl Addresses {
    /// Of these Services, and of the pods that the resources name.
    pub(super) fn new(services: &[Arc<Service>], resources: &Resources) -> Self {
        let mut new = Self::default();
        for (position, service) in services.iter().enumerate() {
            for (port_position, port) in service.ports.iter().enumerate() {
                let addresses = service.cluster_ips.iter().map(|ip| SocketAddr::new(*ip, port.number));
                for address in addresses {
                    new.services.insert(address, (position, port_position));
                    if service.intercepted {
                        new.captured.services.insert(address);
                    }
                }
            }
        }
        for wire in resources.workloads() {
            let workload = Arc::new(Workload {
                namespace: wire.namespace.clone(),
                name: wire.name.clone(),
                service_account: wire.service_account.clone(),
                labels: wire.labels.clone(),
                addresses: wire.addresses.iter().filter_map(|a| a.parse().ok()).collect(),
            });
            for address in &workload.addresses {
                new.workloads.insert(*address, Arc::clone(&workload));
                new.captured.workloads.insert(*address);
            }
        }
        new
    }

    /// The Service that has this address and which of its ports, as positions.
    pub fn service(&self, address: SocketAddr) -> Option<(usize, usize)> {
        self.services.get(&address).copied()
    }

    /// The pod of this node that has this address.
    pub fn workload(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads.get(&address.to_canonical())
    }

    /// The pods of this node, each as often as it has addresses.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// What is to be taken in.
    pub fn captured(&self) -> &Captured {
        &self.captured
    }
}

#[cfg(test)]
mod tests {
    use switchyard_proto::v1;

    use super::*;
    use crate::resources::tests_support::routes_of;
    use crate::runtime::Runtime;
    use crate::table::Table;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_service_is_found_by_each_address_and_taken_in_only_when_it_is_opted_in() {
        let mut resources = Resources::default();
        for (name, ip, intercepted) in [("in", "10.96.0.1", true), ("out", "10.96.0.2", false)] {
            let cluster_ips = vec![ip.to_owned(), format!("fd96::{}", &ip[8..])];
            resources.put(routes_of(
                "shop",
                name,
                v1::ServiceRoutes { cluster_ips, intercepted, ..Default::default() },
            ));
        }
        let workload = v1::Workload {
            addresses: vec!["10.1.0.7".to_owned(), "fd01::7".to_owned()],
            namespace: "web".to_owned(),
            service_account: "frontend".to_owned(),
            ..Default::default()
        };
        resources.put(v1::Resource {
            key: Some(v1::ResourceKey { kind: v1::Kind::Workloads.into(), name: "n1".into(), ..Default::default() }),
            version: "1".into(),
            content: Some(v1::resource::Content::Workloads(v1::LocalWorkloads { workloads: vec![workload] })),
        });
        let table = Table::build(&resources, &Table::default(), &Runtime::new(1), None);
        let addresses = &table.addresses;
        for (text, name) in [("10.96.0.1:80", "in"), ("[fd96::1]:80", "in"), ("10.96.0.2:80", "out")] {
            let (service, port) = addresses.service(address(text)).unwrap();
            assert_eq!((table.at(service).key.name.as_str(), port), (name, 0), "{text}");
        }
        assert_eq!(addresses.service(address("10.96.0.1:81")), None);
        let captured = addresses.captured();
        assert_eq!(captured.services, BTreeSet::from([address("10.96.0.1:80"), address("[fd96::1]:80")]));
        assert_eq!(captured.workloads.len(), 2);
        assert_eq!(addresses.workload("fd01::7".parse().unwrap()).unwrap().service_account, "frontend");
    }
}
