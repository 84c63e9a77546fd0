//! From what exists to what agents enforce: one Service at a time, config and findings together. Pure, and it never
//! fails: what cannot be compiled is left out, and a finding says so.
//!
//! Invariants: the outcome depends on the objects alone, never on the order in which they came
//! (`the_order_in_which_objects_come_leaves_no_trace`), and equal config encodes to equal bytes; whatever `World::apply`
//! does not call dirty compiles to what it compiled to before (`a_change_dirties_every_service_that_it_alters`).

use std::collections::BTreeSet;

use switchyard_crds::shape::nearest;
use switchyard_crds::{Finding, ObjectName, Reason, RetryPolicy};
use switchyard_proto::v1;

use crate::object::{Kind, ObjectKey, Pod, SERVICE_NAME, Service, ServiceKey};
use crate::world::{World, policy_services, rule_service};

/// Which rule is asked first.
pub mod order;

/// Rules and their matches.
pub mod routes;

/// Where a rule's requests go, and whether anything is there.
pub mod destinations;

/// Rules that no request reaches, and rules that only their age tells apart.
pub mod conflicts;
/// What a rule does besides, and who stays where.
pub mod filters;

/// Policies, and which of two holds.
pub mod policies;

/// A Service, compiled. Of one that does not exist, both parts are empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compiled {
    /// Rules and policies.
    pub routes: v1::ServiceRoutes,
    /// Where requests can go.
    pub instances: v1::ServiceInstances,
    /// What is to be said of the objects that have to do with it.
    pub findings: Vec<Finding>,
    /// What is also to be said where it is known which instances there are.
    pub absent: Vec<Absent>,
}

/// A Service that has no instances at all, and what depends on one. Where instances run, requests for it are answered 503; a
/// folder of rules in Git seldom says which instances there are, and then it means nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Absent {
    /// The namespace of the Service.
    pub namespace: String,
    /// What is to be said.
    pub finding: Finding,
}

/// The label that takes a Service, or all Services of a Namespace, into the mesh.
const MESH_LABEL: &str = "switchyard.dev/mesh";

/// Compiles one Service.
pub fn service(world: &World, key: &ServiceKey) -> Compiled {
    let mut findings = Vec::new();
    let Some(service) = world.service(key) else {
        missing(world, key, None, &mut findings);
        return Compiled { findings, ..Compiled::default() };
    };
    let mut present = destinations::Present::new(world);
    let circuits = policies::circuits(world, service, &mut present, &mut findings);
    let retries = policies::retries(world, service, &mut present, &mut findings);
    let (rules, matches) = routes::compile(world, service, &mut present, &mut findings);
    let instances = destinations::instances(world, service, &mut present, &mut findings);
    let ports = service.tcp_ports().map(|port| v1::ServicePort {
        port: port.port.into(),
        name: port.name.clone(),
        protocol: routes::protocol(port).into(),
    });
    let routes = v1::ServiceRoutes {
        ports: ports.collect(),
        rules,
        matches,
        circuits,
        retries,
        cluster_ips: service.cluster_ips.iter().map(ToString::to_string).collect(),
        intercepted: !service.cluster_ips.is_empty() && is_opted_in(world, service),
    };
    findings.sort();
    Compiled { routes, instances, findings, absent: present.absent() }
}

impl Compiled {
    /// All that is to be said where instances run.
    pub fn all_findings(self) -> Vec<Finding> {
        let mut findings = self.findings;
        findings.extend(self.absent.into_iter().map(|absent| absent.finding));
        findings.sort();
        findings
    }
}

/// Who runs on a node.
pub fn node(world: &World, name: &str) -> v1::LocalWorkloads {
    workloads(world, world.pods_on(name))
}

/// Who there is, wherever it runs.
pub fn everybody(world: &World) -> v1::LocalWorkloads {
    workloads(world, world.pods())
}

fn workloads<'a>(world: &World, pods: impl Iterator<Item = &'a Pod>) -> v1::LocalWorkloads {
    let asked: BTreeSet<&str> = world.labels_of_callers().collect();
    let workload = |pod: &Pod| v1::Workload {
        addresses: pod.addresses.iter().map(ToString::to_string).collect(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        service_account: pod.service_account.clone(),
        labels: pod.labels.iter().filter(|(label, _)| asked.contains(label.as_str())).map(own).collect(),
    };
    let known = pods.filter(|pod| !pod.addresses.is_empty());
    v1::LocalWorkloads { workloads: known.map(workload).collect() }
}

fn own((name, value): (&String, &String)) -> (String, String) {
    (name.clone(), value.clone())
}

/// Whether the agents of a cluster must know a Service: it is opted in, or rules or policies of one that is send requests to it.
pub fn is_needed(world: &World, key: &ServiceKey) -> bool {
    let opted_in = |key: &ServiceKey| world.service(key).is_some_and(|service| is_opted_in(world, service));
    opted_in(key)
        || world.rules_to(key).any(|rule| opted_in(&rule_service(rule)))
        || world.policies_falling_back_to(key).flat_map(policy_services).any(|service| opted_in(&service))
}

/// Whether a Service is taken into the mesh: by its own label, else by its Namespace's.
pub fn is_opted_in(world: &World, service: &Service) -> bool {
    let enabled = |value: Option<&String>| value.map(|value| value == "enabled");
    let namespace = || world.namespace(&service.namespace).and_then(|n| enabled(n.labels.get(MESH_LABEL)));
    enabled(service.labels.get(MESH_LABEL)).or_else(namespace).unwrap_or(false)
}

/// What is to be said of all objects together, also what only matters offline: Services that nothing captures.
pub fn all_findings(world: &World) -> Vec<Finding> {
    let mut findings = Vec::new();
    let services = world.services();
    for key in &services {
        let Some(exists) = world.service(key) else {
            let names =
                services.iter().filter(|other| other.namespace == key.namespace && world.service(other).is_some());
            let names: Vec<&str> = names.map(|other| other.name.as_str()).collect();
            missing(world, key, nearest(&key.name, &names), &mut findings);
            continue;
        };
        let compiled = service(world, key);
        findings.extend(compiled.findings);
        let known = compiled.absent.into_iter().filter(|absent| world.has_slices(&absent.namespace));
        findings.extend(known.map(|absent| absent.finding));
        findings.extend(not_opted_in(world, exists));
    }
    findings.extend(world.retry_policies().filter_map(|policy| used_by_nobody(world, policy)));
    findings.sort();
    findings
}

/// A policy that is attached to nothing, and that no rule names.
fn used_by_nobody(world: &World, policy: &RetryPolicy) -> Option<Finding> {
    let name = name_of(policy);
    if !policy.spec.target_refs.is_empty() || world.is_named_by_a_rule(&name.namespace, &name.name) {
        return None;
    }
    let message = format!(
        "no Service has this policy: give it targetRefs, or name it in a rule of namespace {} (retryPolicy: {})",
        name.namespace, name.name
    );
    Some(warning(&name, Reason::Suspicious, "spec.targetRefs", message))
}

/// What is for a Service that does not exist: rules, policies and endpoints. `alike` is the name of one that does.
fn missing(world: &World, key: &ServiceKey, alike: Option<&str>, findings: &mut Vec<Finding>) {
    let meant = alike.map(|name| format!("; did you mean {name}?")).unwrap_or_default();
    for slice in world.slices_of(key) {
        let of = ObjectKey { kind: Kind::EndpointSlice, namespace: slice.namespace.clone(), name: slice.name.clone() };
        let message = format!("there is no Service {key}, so no request reaches these endpoints{meant}");
        findings.push(warning_for(&of, Reason::UnresolvedRef, &format!("metadata.labels[{SERVICE_NAME}]"), message));
    }
    for rule in world.rules_of(key) {
        let message = format!("there is no Service {key}, so no request is for this rule{meant}");
        findings.push(warning(&name_of(rule), Reason::UnresolvedRef, "spec.service", message));
    }
    let targets = (world.circuit_policies_of(key).map(|policy| (name_of(policy), &policy.spec.target_refs)))
        .chain(world.retry_policies_of(key).map(|policy| (name_of(policy), &policy.spec.target_refs)));
    for (name, refs) in targets {
        for (at, _) in refs.iter().enumerate().filter(|(_, target)| target.name == key.name) {
            let message = format!("there is no Service {key}{meant}");
            findings.push(warning(&name, Reason::UnresolvedRef, format!("spec.targetRefs[{at}].name"), message));
        }
    }
    findings.sort();
}

/// What is to be said of the rules and policies for a Service that is not opted in, one by one.
pub fn left_out(world: &World, service: &Service) -> Vec<Finding> {
    if is_opted_in(world, service) {
        return Vec::new();
    }
    let key = service.key();
    let rules = world.rules_of(&key).map(|rule| (name_of(rule), "spec.service"));
    let circuits = world.circuit_policies_of(&key).map(|policy| (name_of(policy), "spec.targetRefs"));
    let retries = world.retry_policies_of(&key).map(|policy| (name_of(policy), "spec.targetRefs"));
    let message =
        format!("Service {key} is not taken into the mesh: label it, or its Namespace, {MESH_LABEL}: enabled");
    let users = rules.chain(circuits).chain(retries);
    users.map(|(name, field)| warning(&name, Reason::NotOptedIn, field, message.clone())).collect()
}

/// The same, for `check`: once for the Service.
fn not_opted_in(world: &World, service: &Service) -> Option<Finding> {
    let key = service.key();
    let rules = world.rules_of(&key).map(|rule| qualified(&name_of(rule)));
    let circuits = world.circuit_policies_of(&key).map(|policy| qualified(&name_of(policy)));
    let retries = world.retry_policies_of(&key).map(|policy| qualified(&name_of(policy)));
    let users: BTreeSet<_> = rules.chain(circuits).chain(retries).collect();
    if is_opted_in(world, service) || users.is_empty() {
        return None;
    }
    let message = format!(
        "rules and policies are for this Service, but a cluster does not take it into the mesh: label it, or its \
         Namespace, {MESH_LABEL}: enabled"
    );
    let name = ObjectName { kind: "Service".into(), namespace: key.namespace, name: key.name };
    let mut finding = warning(&name, Reason::NotOptedIn, "metadata.labels", message);
    finding.others = users.into_iter().collect();
    Some(finding)
}

/// How findings name an object of one of the three kinds.
pub(crate) fn name_of<K>(object: &K) -> ObjectName
where
    K: kube::Resource<DynamicType = ()>,
{
    ObjectName {
        kind: K::kind(&()).into_owned(),
        namespace: object.meta().namespace.clone().unwrap_or_default(),
        name: object.meta().name.clone().unwrap_or_default(),
    }
}

/// `namespace/name`, as rules and policies are shown.
pub(crate) fn qualified(name: &ObjectName) -> String {
    format!("{}/{}", name.namespace, name.name)
}

pub(crate) fn warning(
    name: &ObjectName,
    reason: Reason,
    field: impl Into<String>,
    message: impl Into<String>,
) -> Finding {
    Finding::warning(reason, field, message).about(name)
}

/// The same for an object of any kind.
pub(crate) fn warning_for(key: &ObjectKey, reason: Reason, field: &str, message: String) -> Finding {
    Finding::warning(reason, field, message).about(&key.object_name())
}

#[cfg(test)]
mod tests;
