//! One document of a file, read as what its kind is.

use std::path::Path;
use std::sync::Arc;

use kube::core::ObjectMeta;
use switchyard_crds::findings::ObjectName;
use switchyard_crds::{Custom, Finding, Reason};

use crate::object::{Kind, Object, ObjectKey};
use crate::source::yaml::{Node, Value};

use super::kinds::{self, Sort};
use super::reduce;

/// What a document says.
pub(super) struct ReadObject {
    /// Which object it speaks of, if it is one that matters.
    pub(super) key: Option<ObjectKey>,
    /// The object, if it is in order.
    pub(super) object: Option<Object>,
    /// What is wrong.
    pub(super) findings: Vec<Finding>,
    /// Whether it is known of which object it speaks, or that it is none that matters.
    pub(super) identified: bool,
}

/// Reads a document.
pub(super) fn read(file: &Path, node: &Node, name: &ObjectName) -> ReadObject {
    if !matches!(node.value, Value::Map(_)) {
        return unknown(Finding::error(Reason::Invalid, "", "this is not a Kubernetes object: it has no fields"));
    }
    let file_name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if matches!(file_name, "kustomization.yaml" | "kustomization.yml") {
        return foreign("a kustomization is not for switchyard; skipped".to_owned());
    }
    let wrong = |field: &str, message: &str| unknown(Finding::error(Reason::Invalid, field, message));
    let (api_version, kind) = match (text(node, "apiVersion"), text(node, "kind")) {
        (Ok(api_version), Ok(kind)) => (api_version, kind),
        (Err(message), _) => return wrong("apiVersion", message),
        (_, Err(message)) => return wrong("kind", message),
    };
    if kinds::is_list(node) {
        return match node.get("items").map(|items| &items.value) {
            Some(Value::List(_)) => {
                wrong("kind", "a list inside of a list is not taken apart: put its items beside the others")
            }
            _ => wrong(
                "items",
                &switchyard_crds::shape::is_not(&node.get("items").map(Node::to_json).unwrap_or_default(), "a list"),
            ),
        };
    }
    match kinds::sort(api_version, kind) {
        Sort::Known(kind) => known(kind, node, name),
        Sort::OtherVersion(kind, version) => {
            let message = format!("{api_version:?} is not read; for {kind:?} it must be {version}");
            refused(kind, name, Finding::error(Reason::Invalid, "apiVersion", message))
        }
        Sort::NoSuchKind(message) => unknown(Finding::error(Reason::UnknownKind, "kind", message)),
        Sort::Foreign(note) => foreign(note),
        Sort::Lookalike(note) => {
            let finding = Finding::warning(Reason::Suspicious, "kind", note);
            ReadObject { key: None, object: None, findings: vec![finding], identified: true }
        }
    }
}

/// A text that every object has, or what is wrong with it.
fn text<'a>(node: &'a Node, field: &str) -> Result<&'a str, &'static str> {
    match node.get(field).map(|node| &node.value) {
        Some(Value::Text(text)) if !text.is_empty() => Ok(text),
        Some(Value::Text(_) | Value::Null) | None => {
            Err("is missing: every Kubernetes object has apiVersion, kind and a name")
        }
        Some(_) => Err("must be text"),
    }
}

fn known(kind: Kind, node: &Node, name: &ObjectName) -> ReadObject {
    let (object, findings) = match kind {
        Kind::RouteRule => custom(node, name, |rule| Object::RouteRule(Arc::new(rule))),
        Kind::CircuitPolicy => custom(node, name, |policy| Object::CircuitPolicy(Arc::new(policy))),
        Kind::RetryPolicy => custom(node, name, |policy| Object::RetryPolicy(Arc::new(policy))),
        Kind::Namespace => reduce::namespace(node, name),
        Kind::Node => (Some(Object::Node(name.name.clone())), Vec::new()),
        Kind::Service => reduce::service(node, name),
        Kind::EndpointSlice => reduce::endpoint_slice(node, name),
        Kind::Pod => reduce::pod(node, name),
        Kind::Deployment | Kind::StatefulSet | Kind::DaemonSet | Kind::Rollout => {
            // Others see to it that it is in order. All that is asked of it is which Pods it makes.
            let object = (!name.name.is_empty()).then(|| reduce::workload(kind, node, name));
            let key = object.as_ref().map(Object::key);
            return ReadObject { key, object, findings: Vec::new(), identified: true };
        }
    };
    let named = !name.name.is_empty();
    let object = object.filter(|_| named && !findings.iter().any(Finding::is_error));
    ReadObject { key: named.then(|| key(kind, name)), object, findings, identified: named }
}

fn custom<K: Custom>(node: &Node, name: &ObjectName, make: impl FnOnce(K) -> Object) -> (Option<Object>, Vec<Finding>) {
    let (object, findings) = switchyard_crds::parse::<K>(&node.to_json());
    let object = object.map(|mut object| {
        let metadata: &mut ObjectMeta = object.meta_mut();
        metadata.namespace = Some(name.namespace.clone());
        make(object)
    });
    (object, findings)
}

fn key(kind: Kind, name: &ObjectName) -> ObjectKey {
    ObjectKey { kind, namespace: name.namespace.clone(), name: name.name.clone() }
}

fn refused(kind: Kind, name: &ObjectName, finding: Finding) -> ReadObject {
    let named = !name.name.is_empty();
    ReadObject { key: named.then(|| key(kind, name)), object: None, findings: vec![finding], identified: named }
}

fn unknown(finding: Finding) -> ReadObject {
    ReadObject { key: None, object: None, findings: vec![finding], identified: false }
}

fn foreign(note: String) -> ReadObject {
    let note = Finding::warning(Reason::UnknownKind, "kind", note);
    ReadObject { key: None, object: None, findings: vec![note], identified: true }
}
