//! Where a rule's requests go, the instances that are there, and whether what is named exists.

use std::collections::{BTreeMap, BTreeSet};

use switchyard_crds::route_rule::Destination;
use switchyard_crds::{Finding, ObjectName, Reason, RouteRule};
use switchyard_proto::v1;

use crate::compile::routes::port_number;
use crate::compile::{Absent, filters, name_of, own, warning, warning_for};
use crate::object::{Kind, ObjectKey, Service, ServiceKey};
use crate::world::instances::{self, Instance, is_selected};
use crate::world::{World, destination_service, mirrored_service, mirrors};

/// One destination of a rule.
pub fn compile(rule: &RouteRule, to: &Destination) -> v1::Destination {
    let service = destination_service(rule, to);
    v1::Destination {
        namespace: service.namespace,
        service: service.name,
        port: port_number(to.port),
        selector: Some(selector(to.version.as_deref(), &to.subset)),
        weight: u32::try_from(to.weight).unwrap_or_default(),
        filters: filters::compile(rule, &to.filters),
    }
}

/// Which instances of a Service are meant.
pub fn selector(version: Option<&str>, subset: &BTreeMap<String, String>) -> v1::Selector {
    v1::Selector { version: version.unwrap_or_default().to_owned(), labels: subset.clone() }
}

/// The instances of the Services that rules send requests to, each looked up once in a compilation.
pub struct Present<'a> {
    world: &'a World,
    known: BTreeMap<ServiceKey, Vec<Instance>>,
    absent: Vec<Absent>,
}

impl<'a> Present<'a> {
    /// Nothing looked up yet.
    pub fn new(world: &'a World) -> Self {
        Self { world, known: BTreeMap::new(), absent: Vec::new() }
    }

    fn of(&mut self, service: &Service) -> &[Instance] {
        self.known.entry(service.key()).or_insert_with(|| instances::of(self.world, service))
    }

    /// What depends on Services that have no instances at all.
    pub fn absent(mut self) -> Vec<Absent> {
        self.absent.sort_by(|a, b| a.finding.cmp(&b.finding));
        self.absent
    }

    /// Reports that no instance of a Service is what a version and labels ask for. `field` is of what asks, `leaf` says where
    /// in it the Service is named.
    pub fn check(
        &mut self,
        service: &Service,
        (version, subset): (Option<&str>, &BTreeMap<String, String>),
        (of, field, leaf): (&ObjectName, &str, &str),
        findings: &mut Vec<Finding>,
    ) {
        if self.of(service).is_empty() {
            let message = format!(
                "Service {} has no instances at all: no EndpointSlice has an address and a port for it",
                service.key()
            );
            let finding = warning(of, Reason::Suspicious, format!("{field}.{leaf}"), message);
            self.absent.push(Absent { namespace: service.namespace.clone(), finding });
        }
        if let Some((leaf, message)) = self.nobody_there(service, version, subset) {
            findings.push(warning(of, Reason::Suspicious, format!("{field}.{leaf}"), message));
        }
    }

    /// Of a Service with no instance and no workload in sight, nothing is known.
    fn nobody_there(
        &mut self,
        service: &Service,
        version: Option<&str>,
        subset: &BTreeMap<String, String>,
    ) -> Option<(&'static str, String)> {
        let world = self.world;
        let instances = self.of(service);
        if instances.iter().any(|instance| is_selected(&instance.labels, version, subset)) {
            return None;
        }
        // Looked at where it matters, which is seldom.
        let to_be: Vec<_> = world.selected_labels(service).collect();
        let what = if instances.is_empty() { "workload" } else { "instance" };
        let labels: Vec<_> = instances.iter().map(|instance| &instance.labels).chain(to_be).collect();
        if labels.is_empty() || labels.iter().any(|labels| is_selected(labels, version, subset)) {
            return None;
        }
        let key = service.key();
        let any_of_version = labels.iter().any(|labels| is_selected(labels, version, &BTreeMap::new()));
        match (version, subset.is_empty()) {
            (None, true) => None,
            (Some(version), _) if !any_of_version => {
                Some(("version", format!("no {what} of Service {key} has version {version}; {}", versions(&labels))))
            }
            _ => {
                let wanted: Vec<_> = subset.iter().map(|(name, value)| format!("{name}: {value}")).collect();
                Some(("subset", format!("no {what} of Service {key} has the labels {}", wanted.join(", "))))
            }
        }
    }
}

/// Reports destinations and mirrors that name what does not exist.
pub fn check(world: &World, rule: &RouteRule, present: &mut Present<'_>, findings: &mut Vec<Finding>) {
    let none = BTreeMap::new();
    let name = name_of(rule);
    let destinations = rule.spec.destinations.iter().enumerate().map(|(at, to)| Named {
        field: format!("spec.destinations[{at}]"),
        service: destination_service(rule, to),
        port: to.port,
        wanted: (to.version.as_deref(), &to.subset),
        missing: "its share goes to the rule's other destinations",
    });
    let mirrors = mirrors(rule).map(|(field, mirror)| Named {
        field,
        service: mirrored_service(rule, mirror),
        port: mirror.port,
        wanted: (mirror.version.as_deref(), &none),
        missing: "nothing is copied to it",
    });
    for Named { field, service: key, port, wanted, missing } in destinations.chain(mirrors) {
        let Some(service) = world.service(&key) else {
            let message = format!("there is no Service {key}; {missing}");
            findings.push(warning(&name, Reason::UnresolvedRef, format!("{field}.service"), message));
            continue;
        };
        if let Some(port) = port
            && !service.tcp_ports().any(|other| i32::from(other.port) == port)
        {
            let message = format!("Service {key} has no port {port}{}", ports_in_words(service));
            findings.push(warning(&name, Reason::UnresolvedRef, format!("{field}.port"), message));
        }
        present.check(service, wanted, (&name, &field, "service"), findings);
    }
}

/// A place of a rule that names a Service.
struct Named<'a> {
    field: String,
    service: ServiceKey,
    port: Option<i32>,
    /// The version and the labels that its instances are to have.
    wanted: (Option<&'a str>, &'a BTreeMap<String, String>),
    /// What becomes of it where the Service is missing.
    missing: &'static str,
}

fn versions(labels: &[&BTreeMap<String, String>]) -> String {
    let versions: BTreeSet<_> = labels.iter().filter_map(|labels| instances::version(labels)).collect();
    if versions.is_empty() {
        return format!("none has a version: label the Pods {}", instances::VERSION_LABELS[0]);
    }
    format!("it has {}", versions.into_iter().collect::<Vec<_>>().join(", "))
}

/// `; it has 80 (http) and 9090 (metrics)`, to go on with after saying which one it lacks.
pub(crate) fn ports_in_words(service: &Service) -> String {
    let ports = service.tcp_ports().map(|port| match port.name.as_str() {
        "" => port.port.to_string(),
        name => format!("{} ({name})", port.port),
    });
    match ports.collect::<Vec<_>>().as_slice() {
        [] => "; it has none".to_owned(),
        ports => format!("; it has {}", ports.join(", ")),
    }
}

/// The instances of a Service, with those of their labels that some rule or policy asks for.
pub fn instances(
    world: &World,
    service: &Service,
    present: &mut Present<'_>,
    findings: &mut Vec<Finding>,
) -> v1::ServiceInstances {
    check_slices(world, service, findings);
    let asked = asked_labels(world, service);
    let compile = |instance: &Instance| v1::Instance {
        address: instance.address.to_string(),
        other_address: instance.other_address.map(|address| address.to_string()).unwrap_or_default(),
        ports: (instance.ports.iter())
            .map(|(service, port)| v1::InstancePort { service_port: (*service).into(), port: (*port).into() })
            .collect(),
        version: instance.version().unwrap_or_default().to_owned(),
        labels: instance.labels.iter().filter(|(name, _)| asked.contains(name.as_str())).map(own).collect(),
        ready: instance.ready,
        terminating: instance.terminating,
        zone: instance.zone.clone().unwrap_or_default(),
        name: instance.pod.clone().unwrap_or_default(),
    };
    v1::ServiceInstances { instances: present.of(service).iter().map(compile).collect() }
}

/// The labels by which some rule or policy picks instances of this Service.
fn asked_labels<'a>(world: &'a World, service: &Service) -> BTreeSet<&'a str> {
    let key = service.key();
    let mut asked = BTreeSet::new();
    for rule in world.rules_to(&key) {
        let to_here = rule.spec.destinations.iter().filter(|to| destination_service(rule, to) == key);
        asked.extend(to_here.flat_map(|to| to.subset.keys()).map(String::as_str));
    }
    let circuits = world.circuit_policies_of(&key).flat_map(|policy| &policy.spec.target_refs);
    let retries = world.retry_policies_of(&key).flat_map(|policy| &policy.spec.target_refs);
    let targets = circuits.chain(retries).filter(|target| target.name == key.name);
    asked.extend(targets.flat_map(|target| target.subset.keys()).map(String::as_str));
    asked
}

/// Reports slices whose endpoints nobody can reach, and Pods that are named but not there.
fn check_slices(world: &World, service: &Service, findings: &mut Vec<Finding>) {
    for slice in world.slices_of(&service.key()) {
        let key = ObjectKey { kind: Kind::EndpointSlice, namespace: slice.namespace.clone(), name: slice.name.clone() };
        if !slice.endpoints.is_empty() && instances::served_ports(service, slice).is_empty() {
            let names = |names: Vec<&str>| match names.as_slice() {
                [] => "none".to_owned(),
                names => names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", "),
            };
            let message = format!(
                "none of these ports has the name of a port of Service {} (here {}; there {}), so no request reaches \
                 these endpoints",
                service.key(),
                names(slice.ports.iter().map(|(name, _)| name.as_str()).collect()),
                names(service.tcp_ports().map(|port| port.name.as_str()).collect()),
            );
            findings.push(warning_for(&key, Reason::UnresolvedRef, "ports", message));
        }
        for (at, endpoint) in slice.endpoints.iter().enumerate() {
            if let Some(pod) = &endpoint.pod
                && world.pod(&slice.namespace, pod).is_none()
            {
                let message = format!("there is no Pod {}/{pod}, so this instance has no version", slice.namespace);
                let field = format!("endpoints[{at}].targetRef");
                findings.push(warning_for(&key, Reason::UnresolvedRef, &field, message));
            }
        }
    }
}
