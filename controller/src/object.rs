//! The objects that matter to Switchyard, reduced to what is needed of them. Whatever they come from, a folder or an API
//! server, they become these types first, and nothing after a source knows where they came from.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use switchyard_crds::findings::ObjectName;
use switchyard_crds::{CircuitPolicy, RetryPolicy, RouteRule};

/// The label that says which Service an EndpointSlice belongs to.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Any object that a source can tell of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Object {
    /// A namespace; its labels may opt all its Services in.
    Namespace(Namespace),
    /// A node, by its name: where there is one, there is to be an agent.
    Node(String),
    /// A Service.
    Service(Service),
    /// A part of a Service's endpoints.
    EndpointSlice(EndpointSlice),
    /// A Pod.
    Pod(Pod),
    /// What makes Pods.
    Workload(Workload),
    /// A rule.
    RouteRule(Arc<RouteRule>),
    /// A circuit policy.
    CircuitPolicy(Arc<CircuitPolicy>),
    /// A retry policy.
    RetryPolicy(Arc<RetryPolicy>),
}

/// The kinds of object, in the order in which they are read and shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each is the Kubernetes kind of that name")]
pub enum Kind {
    Namespace,
    Node,
    Service,
    EndpointSlice,
    Pod,
    Deployment,
    StatefulSet,
    DaemonSet,
    Rollout,
    RouteRule,
    CircuitPolicy,
    RetryPolicy,
}

/// Which object: unique among all that a source tells of. A Namespace's own namespace is empty, and so is a Node's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Names a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its ports, in the order given.
    pub ports: Vec<ServicePort>,
    /// Whether it selects Pods; one that does not has its endpoints written by hand.
    pub selector: BTreeMap<String, String>,
    /// The addresses that its callers connect to; empty where it has none (headless, or from a file).
    #[serde(default)]
    pub cluster_ips: Vec<IpAddr>,
}

/// A port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// Its name; may be empty where there is only one.
    pub name: String,
    /// Its number.
    pub port: u16,
    /// `appProtocol`, if given.
    pub app_protocol: Option<String>,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}

/// A part of a Service's endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSlice {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The Service it belongs to: its label `kubernetes.io/service-name`.
    pub service: Option<String>,
    /// Its labels, which stand for those of endpoints with no Pod.
    pub labels: BTreeMap<String, String>,
    /// Name and number of the ports that all its endpoints serve.
    pub ports: Vec<(String, u16)>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// An address that serves a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Where.
    pub address: IpAddr,
    /// Takes new requests; absent in the object means yes.
    pub ready: bool,
    /// Is going away.
    pub terminating: bool,
    /// The Pod behind it, by name.
    pub pod: Option<String>,
    /// Its zone.
    pub zone: Option<String>,
}

/// A Pod, for its labels and for who it is when it calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The node it runs on.
    #[serde(default)]
    pub node: Option<String>,
    /// The addresses it calls from, and nobody else does: empty where it shares its node's or has ended.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// The ServiceAccount it runs as.
    #[serde(default)]
    pub service_account: String,
}

/// What makes Pods: a Deployment, StatefulSet, DaemonSet or Argo Rollout. It says which versions there will be where no Pod is known yet,
/// as in a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Which of them.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The labels of its Pods.
    pub pod_labels: BTreeMap<String, String>,
}

impl Object {
    /// Which object it is.
    pub fn key(&self) -> ObjectKey {
        let key = |kind, namespace: &str, name: &str| ObjectKey {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let custom = |kind, meta: &kube::core::ObjectMeta| {
            key(kind, meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
        };
        match self {
            Self::Namespace(o) => key(Kind::Namespace, "", &o.name),
            Self::Node(name) => key(Kind::Node, "", name),
            Self::Service(o) => key(Kind::Service, &o.namespace, &o.name),
            Self::EndpointSlice(o) => key(Kind::EndpointSlice, &o.namespace, &o.name),
            Self::Pod(o) => key(Kind::Pod, &o.namespace, &o.name),
            Self::Workload(o) => key(o.kind, &o.namespace, &o.name),
            Self::RouteRule(o) => custom(Kind::RouteRule, &o.metadata),
            Self::CircuitPolicy(o) => custom(Kind::CircuitPolicy, &o.metadata),
            Self::RetryPolicy(o) => custom(Kind::RetryPolicy, &o.metadata),
        }
    }
}

impl ObjectKey {
    /// The same object, as findings name it.
    pub fn object_name(&self) -> ObjectName {
        ObjectName { kind: format!("{:?}", self.kind), namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

impl Service {
    /// Which Service it is.
    pub fn key(&self) -> ServiceKey {
        ServiceKey { namespace: self.namespace.clone(), name: self.name.clone() }
    }

    /// Whether it selects Pods with these labels.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        !self.selector.is_empty() && self.selector.iter().all(|(name, value)| labels.get(name) == Some(value))
    }

    /// Its ports, without those for UDP and SCTP, which nobody routes here.
    pub fn tcp_ports(&self) -> impl Iterator<Item = &ServicePort> {
        self.ports.iter().filter(|port| matches!(port.protocol.as_str(), "" | "TCP"))
    }
}

impl EndpointSlice {
    /// The Service it belongs to, if any.
    pub fn service_key(&self) -> Option<ServiceKey> {
        Some(ServiceKey { namespace: self.namespace.clone(), name: self.service.clone()? })
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            return write!(f, "{:?} {}", self.kind, self.name);
        }
        write!(f, "{:?} {}/{}", self.kind, self.namespace, self.name)
    }
}
