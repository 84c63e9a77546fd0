//! Kubernetes' own objects, reduced to what is needed of them. Their types say what is right; what they do not know is a
//! warning here, since a newer cluster may know it.

use serde::de::DeserializeOwned;
use serde_ignored::Path;
use switchyard_crds::findings::ObjectName;
use switchyard_crds::{Finding, Reason, shape};

use crate::object::Object;
use crate::source::typed;
use crate::source::yaml::Node;

type Reduced = (Option<Object>, Vec<Finding>);

pub(super) fn namespace(node: &Node, name: &ObjectName) -> Reduced {
    reduce(node, |namespace, _| typed::namespace(namespace, name))
}

pub(super) fn pod(node: &Node, name: &ObjectName) -> Reduced {
    reduce(node, |pod, _| typed::pod(pod, name))
}

pub(super) fn service(node: &Node, name: &ObjectName) -> Reduced {
    reduce(node, |service, findings| typed::service(service, name, findings))
}

pub(super) fn endpoint_slice(node: &Node, name: &ObjectName) -> Reduced {
    reduce(node, |slice, findings| typed::endpoint_slice(slice, name, findings))
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
