//! Kubernetes' own types, reduced to what is needed of them: the same for a file's documents and an API server's objects.

use std::net::IpAddr;

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use switchyard_crds::findings::ObjectName;
use switchyard_crds::{Finding, Reason};

use crate::object::{Endpoint, EndpointSlice, Namespace, Object, Pod, SERVICE_NAME, Service, ServicePort};

/// A Namespace.
pub(super) fn namespace(namespace: core::Namespace, name: &ObjectName) -> Object {
    Object::Namespace(Namespace { name: name.name.clone(), labels: namespace.metadata.labels.unwrap_or_default() })
}

/// A Pod.
pub(super) fn pod(pod: core::Pod, name: &ObjectName) -> Object {
    let spec = pod.spec.unwrap_or_default();
    let status = pod.status.unwrap_or_default();
    // Who shares its node's address cannot be told from the node; the address of one that has ended may be another's by now.
    let is_alone = !spec.host_network.unwrap_or(false);
    let has_ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let addresses = status.pod_ips.unwrap_or_default().into_iter().filter_map(|ip| ip.ip.parse().ok());
    Object::Pod(Pod {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        labels: pod.metadata.labels.unwrap_or_default(),
        node: spec.node_name,
        addresses: addresses.filter(|_| is_alone && !has_ended).collect(),
        // An API server fills it in.
        service_account: spec.service_account_name.unwrap_or_else(|| "default".to_owned()),
    })
}

/// A Service.
pub(super) fn service(service: core::Service, name: &ObjectName, findings: &mut Vec<Finding>) -> Object {
    let spec = service.spec.unwrap_or_default();
    let ports = spec.ports.unwrap_or_default().into_iter().enumerate().filter_map(|(i, port)| {
        Some(ServicePort {
            port: number(port.port, &format!("spec.ports[{i}].port"), findings)?,
            name: port.name.unwrap_or_default(),
            app_protocol: port.app_protocol,
            protocol: port.protocol.unwrap_or_else(|| "TCP".to_owned()),
        })
    });
    let ports = ports.collect();
    // A headless Service says `None` here.
    let cluster_ips = spec.cluster_ips.or_else(|| Some(vec![spec.cluster_ip?])).unwrap_or_default();
    Object::Service(Service {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        labels: service.metadata.labels.unwrap_or_default(),
        ports,
        selector: spec.selector.unwrap_or_default(),
        cluster_ips: cluster_ips.iter().filter_map(|ip| ip.parse().ok()).collect(),
    })
}

/// An EndpointSlice.
pub(super) fn endpoint_slice(
    slice: discovery::EndpointSlice,
    name: &ObjectName,
    findings: &mut Vec<Finding>,
) -> Object {
    let ports = slice.ports.unwrap_or_default().into_iter().enumerate().filter_map(|(i, port)| {
        // A port with no number stands for all of them; no rule can name it.
        let number = number(port.port?, &format!("ports[{i}].port"), findings)?;
        Some((port.name.unwrap_or_default(), number))
    });
    let ports = ports.collect();
    let labels = slice.metadata.labels.unwrap_or_default();
    let endpoints = match slice.address_type.as_str() {
        "IPv4" | "IPv6" => endpoints(&slice.endpoints, &slice.address_type, findings),
        "FQDN" => {
            let message = "names are accepted, but this build does not resolve them yet: the slice counts as empty";
            findings.push(Finding::warning(Reason::NotEnforced, "addressType", message));
            Vec::new()
        }
        other => {
            let message = format!("{other:?} is none of IPv4, IPv6, FQDN");
            findings.push(Finding::error(Reason::Invalid, "addressType", message));
            Vec::new()
        }
    };
    Object::EndpointSlice(EndpointSlice {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        service: labels.get(SERVICE_NAME).cloned(),
        labels,
        ports,
        endpoints,
    })
}

fn endpoints(given: &[discovery::Endpoint], family: &str, findings: &mut Vec<Finding>) -> Vec<Endpoint> {
    let mut endpoints = Vec::with_capacity(given.len());
    for (i, endpoint) in given.iter().enumerate() {
        // Further addresses are of the same endpoint; Kubernetes asks readers to use the first.
        let text = endpoint.addresses.first().map_or("", String::as_str);
        let address = text.parse::<IpAddr>().ok().filter(|address| address.is_ipv4() == (family == "IPv4"));
        let Some(address) = address else {
            let field = format!("endpoints[{i}].addresses[0]");
            findings.push(Finding::error(Reason::Invalid, field, format!("{text:?} is not an {family} address")));
            continue;
        };
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        endpoints.push(Endpoint {
            address,
            ready: conditions.ready.unwrap_or(true),
            terminating: conditions.terminating.unwrap_or(false),
            pod: endpoint.target_ref.as_ref().filter(|t| t.kind.as_deref() == Some("Pod")).and_then(|t| t.name.clone()),
            zone: endpoint.zone.clone(),
        });
    }
    endpoints
}

fn number(port: i32, field: &str, findings: &mut Vec<Finding>) -> Option<u16> {
    let number = u16::try_from(port).ok().filter(|port| *port > 0);
    if number.is_none() {
        findings.push(Finding::error(Reason::Invalid, field, format!("{port} is not a port: from 1 to 65535")));
    }
    number
}
