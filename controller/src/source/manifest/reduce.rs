//! Kubernetes' own objects, reduced to what is needed of them. Their types say what is right; what they do not know is a
//! warning here, since a newer cluster may know it.

use std::net::IpAddr;

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use serde::de::DeserializeOwned;
use serde_ignored::Path;
use switchyard_crds::findings::ObjectName;
use switchyard_crds::{Finding, Reason, shape};

use crate::object::{Endpoint, EndpointSlice, Namespace, Object, Pod, Service, ServicePort};
use crate::source::yaml::Node;

/// The label that says which Service an EndpointSlice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

type Reduced = (Option<Object>, Vec<Finding>);

pub(super) fn namespace(node: &Node, name: &ObjectName) -> Reduced {
    reduce(node, |namespace: core::Namespace, _| {
        Object::Namespace(Namespace { name: name.name.clone(), labels: namespace.metadata.labels.unwrap_or_default() })
    })
}

pub(super) fn pod(node: &Node, name: &ObjectName) -> Reduced {
    reduce(node, |pod: core::Pod, _| {
        Object::Pod(Pod {
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            labels: pod.metadata.labels.unwrap_or_default(),
        })
    })
}

pub(super) fn service(node: &Node, name: &ObjectName) -> Reduced {
    reduce(node, |service: core::Service, findings| {
        let spec = service.spec.unwrap_or_default();
        let ports = spec.ports.unwrap_or_default().into_iter().enumerate().filter_map(|(i, port)| {
            Some(ServicePort {
                port: number(port.port, &format!("spec.ports[{i}].port"), findings)?,
                name: port.name.unwrap_or_default(),
                app_protocol: port.app_protocol,
                protocol: port.protocol.unwrap_or_else(|| "TCP".to_owned()),
            })
        });
        Object::Service(Service {
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            labels: service.metadata.labels.unwrap_or_default(),
            ports: ports.collect(),
            selector: spec.selector.unwrap_or_default(),
        })
    })
}

pub(super) fn endpoint_slice(node: &Node, name: &ObjectName) -> Reduced {
    reduce(node, |slice: discovery::EndpointSlice, findings| {
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

/// Reads a document as a Kubernetes type and reduces it.
fn reduce<K: DeserializeOwned>(node: &Node, make: impl FnOnce(K, &mut Vec<Finding>) -> Object) -> Reduced {
    let mut findings = Vec::new();
    if node.get("metadata").and_then(|m| m.get("name")).and_then(Node::text).is_none_or(str::is_empty) {
        findings.push(Finding::error(Reason::Invalid, "metadata.name", "is missing: the object's name"));
    }
    let mut track = serde_path_to_error::Track::new();
    let value = node.to_json();
    let read = {
        let mut unknown = |path: Path<'_>| {
            if findings.len() < shape::MAX_FINDINGS {
                let message = "Kubernetes has no such field that this build knows; it is ignored";
                findings.push(Finding::warning(Reason::UnknownField, field_of(&path), message));
            }
        };
        let reader = serde_path_to_error::Deserializer::new(value, &mut track);
        K::deserialize(serde_ignored::Deserializer::new(reader, &mut unknown))
    };
    match read {
        Ok(object) => {
            let object = make(object, &mut findings);
            (Some(object), findings)
        }
        Err(error) => {
            let path = track.path().to_string();
            let field = if path == "." { String::new() } else { path };
            findings.push(Finding::error(Reason::Invalid, field, error.to_string()));
            (None, findings)
        }
    }
}

/// The path as findings write it.
fn field_of(path: &Path<'_>) -> String {
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", field_of(parent)),
        Path::Map { parent, key } => shape::field(&field_of(parent), key),
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => field_of(parent),
    }
}
