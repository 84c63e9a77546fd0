//! Which addresses serve a Service, and what is known of them: EndpointSlices joined with Pods.
//!
//! An instance is an address on the ports it serves. The same address in several slices is one instance where the slices agree
//! about its ports, so that an endpoint that moves between slices never counts twice; where they do not agree (several processes
//! on one machine), it is several. A Pod with an address of each family is in slices of each, and is one instance. An endpoint's
//! labels are its Pod's, or its EndpointSlice's where it has no Pod: a slice carries its Service's labels as well, which must not
//! pass for a Pod's that is not known yet.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use crate::object::{EndpointSlice, Service};
use crate::world::World;

/// The labels that name a version; the first that is there counts.
pub const VERSION_LABELS: [&str; 2] = ["app.kubernetes.io/version", "version"];

/// An address that serves a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Where.
    pub address: IpAddr,
    /// Where the same Pod is in the other family, if it is.
    pub other_address: Option<IpAddr>,
    /// The number of a Service port, and the port that serves it here. Never empty.
    pub ports: BTreeMap<u16, u16>,
    /// What is known of it.
    pub labels: BTreeMap<String, String>,
    /// Takes new requests.
    pub ready: bool,
    /// Is going away.
    pub terminating: bool,
    /// Its zone.
    pub zone: Option<String>,
    /// The Pod behind it.
    pub pod: Option<String>,
}

impl Instance {
    /// Its version, if its labels name one.
    pub fn version(&self) -> Option<&str> {
        version(&self.labels)
    }
}

/// The version that labels name, if any.
pub fn version(labels: &BTreeMap<String, String>) -> Option<&str> {
    VERSION_LABELS.iter().find_map(|label| labels.get(*label)).map(String::as_str)
}

/// Whether a version and labels select what has these labels.
pub fn is_selected(labels: &BTreeMap<String, String>, wanted: Option<&str>, subset: &BTreeMap<String, String>) -> bool {
    wanted.is_none_or(|wanted| version(labels) == Some(wanted))
        && subset.iter().all(|(name, value)| labels.get(name) == Some(value))
}

/// The instances of a Service, in an order that depends on nothing but themselves.
pub fn of(world: &World, service: &Service) -> Vec<Instance> {
    let mut found: Vec<Instance> = Vec::new();
    for slice in world.slices_of(&service.key()) {
        let ports = served_ports(service, slice);
        if ports.is_empty() {
            continue;
        }
        for endpoint in &slice.endpoints {
            let labels = match &endpoint.pod {
                Some(pod) => world.pod(&slice.namespace, pod).map(|pod| pod.labels.clone()).unwrap_or_default(),
                None => slice.labels.clone(),
            };
            let instance = Instance {
                address: endpoint.address,
                other_address: None,
                ports: ports.clone(),
                labels,
                ready: endpoint.ready,
                terminating: endpoint.terminating,
                zone: endpoint.zone.clone(),
                pod: endpoint.pod.clone(),
            };
            match found.iter_mut().find(|other| is_same(other, &instance)) {
                Some(other) => merge(other, instance),
                None => found.push(instance),
            }
        }
    }
    found.sort_by(|a, b| (a.address, &a.ports, &a.pod).cmp(&(b.address, &b.ports, &b.pod)));
    one_for_both_families(&mut found);
    found
}

/// Makes one instance of what a Pod is in each family: the IPv4 one, which comes first, with the other address.
fn one_for_both_families(found: &mut Vec<Instance>) {
    let first_v6 = found.partition_point(|instance| instance.address.is_ipv4());
    let of_v6 = found.split_off(first_v6);
    let mut of_pod: HashMap<String, usize> = HashMap::new();
    for (at, instance) in found.iter().enumerate() {
        if let Some(pod) = &instance.pod {
            of_pod.entry(pod.clone()).or_insert(at);
        }
    }
    for instance in of_v6 {
        let same = instance.pod.as_ref().and_then(|pod| found.get_mut(*of_pod.get(pod)?));
        match same.filter(|same| same.other_address.is_none() && same.ports == instance.ports) {
            Some(same) => {
                same.other_address = Some(instance.address);
                same.ready |= instance.ready;
                same.terminating &= instance.terminating;
            }
            None => found.push(instance),
        }
    }
}

/// The Service ports that the endpoints of a slice serve: they are joined by name.
pub fn served_ports(service: &Service, slice: &EndpointSlice) -> BTreeMap<u16, u16> {
    let number = |name: &str| slice.ports.iter().find(|(other, _)| other == name).map(|(_, number)| *number);
    service.tcp_ports().filter_map(|port| Some((port.port, number(&port.name)?))).collect()
}

fn is_same(a: &Instance, b: &Instance) -> bool {
    let agrees = |(service, port): (&u16, &u16)| b.ports.get(service).is_none_or(|other| other == port);
    a.address == b.address && a.pod == b.pod && a.ports.iter().all(agrees)
}

/// Slices are read in the order of their names, so the first one's labels hold; of two that disagree about readiness, the
/// one that says ready is the newer more often than not, and a wrong yes is found out by the first request.
fn merge(into: &mut Instance, other: Instance) {
    into.ports.extend(other.ports);
    into.ready |= other.ready;
    into.terminating &= other.terminating;
    into.zone = into.zone.take().or(other.zone);
}
