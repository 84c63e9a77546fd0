//! Kubernetes' own objects, reduced to what is needed of them. Their types say what is right; what they do not know is a
//! warning here, since a newer cluster may know it.

use k8s_openapi::api::discovery::v1 as discovery;
use serde::de::DeserializeOwned;
use serde_ignored::Path;
use serde_json::{Value, json};
use serde_path_to_error::Segment;
use switchyard_crds::findings::ObjectName;
use switchyard_crds::{Finding, Reason, names, shape};

use crate::object::{Kind, Object, SERVICE_NAME, Workload};
use crate::source::typed;
use crate::source::yaml::Node;

type Reduced = (Option<Object>, Vec<Finding>);

pub(super) fn namespace(node: &Node, name: &ObjectName) -> Reduced {
    reduce(node, names::LABEL, |namespace, _| typed::namespace(namespace, name))
}

pub(super) fn pod(node: &Node, name: &ObjectName) -> Reduced {
    reduce(node, names::SUBDOMAIN, |pod, _| typed::pod(pod, name))
}

pub(super) fn service(node: &Node, name: &ObjectName) -> Reduced {
    reduce(node, names::LABEL, |service, findings| typed::service(service, name, findings))
}

pub(super) fn endpoint_slice(node: &Node, name: &ObjectName) -> Reduced {
    reduce(node, names::SUBDOMAIN, |slice: discovery::EndpointSlice, findings| {
        if slice.metadata.labels.as_ref().is_none_or(|labels| !labels.contains_key(SERVICE_NAME)) {
            let message = format!("there is no label {SERVICE_NAME}, so these endpoints are no Service's");
            findings.push(Finding::warning(Reason::Suspicious, "metadata.labels", message));
        }
        typed::endpoint_slice(slice, name, findings)
    })
}

/// The labels of the Pods that a workload makes, as far as they are text.
pub(super) fn workload(kind: Kind, node: &Node, name: &ObjectName) -> Object {
    let labels = ["spec", "template", "metadata", "labels"].iter().try_fold(node, |node, field| node.get(field));
    let labels = labels.map(Node::to_json).unwrap_or_default();
    let label = |(name, value): (&String, &Value)| Some((name.clone(), value.as_str()?.to_owned()));
    let pod_labels = labels.as_object().into_iter().flatten().filter_map(label).collect();
    Object::Workload(Workload { kind, namespace: name.namespace.clone(), name: name.name.clone(), pod_labels })
}

/// Reads a document as a Kubernetes type and reduces it. `name` is how such an object's name is spelt.
fn reduce<K: DeserializeOwned>(node: &Node, name: &str, make: impl FnOnce(K, &mut Vec<Finding>) -> Object) -> Reduced {
    let value = shape::whole_numbers(&node.to_json());
    let mut findings = metadata(&value, name);
    let mut track = serde_path_to_error::Track::new();
    let read = {
        let mut unknown = |path: Path<'_>| {
            if findings.len() < shape::MAX_FINDINGS {
                let message = "Kubernetes has no such field that this build knows; it is ignored";
                findings.push(Finding::warning(Reason::UnknownField, field_of(&path), message));
            }
        };
        let reader = serde_path_to_error::Deserializer::new(&value, &mut track);
        K::deserialize(serde_ignored::Deserializer::new(reader, &mut unknown))
    };
    match read {
        Ok(object) => {
            let object = make(object, &mut findings);
            (Some(object), findings)
        }
        Err(error) => {
            let (field, at) = found_at(&track.path(), &value);
            findings.push(Finding::error(Reason::Invalid, field, in_words(&error.to_string(), at)));
            (None, findings)
        }
    }
}

/// What the API server asks of every object's name, namespace and labels.
fn metadata(object: &Value, name: &str) -> Vec<Finding> {
    let longest = if name == names::LABEL { 63 } else { 253 };
    let (name, namespace) = (
        json!({"type": "string", "minLength": 1, "maxLength": longest, "pattern": name}),
        json!({"type": "string", "maxLength": 63, "pattern": names::LABEL}),
    );
    let mut findings = match &object["metadata"]["name"] {
        Value::Null => vec![Finding::error(Reason::Invalid, "metadata.name", "is missing: the object's name")],
        given => shape::against(&name, given, "metadata.name"),
    };
    match &object["metadata"]["namespace"] {
        Value::Null => {}
        given => findings.extend(shape::against(&namespace, given, "metadata.namespace")),
    }
    findings.extend(shape::metadata(object));
    findings
}

/// The path at which reading stopped, as findings write it, and what stands there.
fn found_at<'v>(path: &serde_path_to_error::Path, value: &'v Value) -> (String, &'v Value) {
    let mut field = String::new();
    let mut at = value;
    for segment in path {
        match segment {
            Segment::Seq { index } => {
                field = format!("{field}[{index}]");
                at = &at[*index];
            }
            Segment::Map { key } => {
                field = shape::field(&field, key);
                at = &at[key.as_str()];
            }
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    (field, at)
}

/// What the reader of a Kubernetes type says, in the words that are used of our own kinds.
fn in_words(error: &str, value: &Value) -> String {
    let Some((_, expected)) = error.split_once(", expected ").filter(|_| error.starts_with("invalid ")) else {
        return error.to_owned();
    };
    let is_type = |c: char| c.is_ascii_alphanumeric();
    let must = match expected {
        "i32" | "i64" | "u32" | "u64" => "a whole number",
        "f64" => "a number",
        "a string" => "text",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "a mapping",
        "IntOrString" => "a whole number or text",
        kind if kind.starts_with(|c: char| c.is_ascii_uppercase()) && kind.chars().all(is_type) => "a mapping",
        other => other,
    };
    match value.as_f64() {
        // A whole number that is none of those that can be here.
        Some(float) if must == "a whole number" && float.fract() == 0.0 => match float < 0.0 {
            true => format!("{value} is too small"),
            false => format!("{value} is too large"),
        },
        _ => shape::is_not(value, must),
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
