//! Destinations and instances: where a request can go, resolved when the table is built.

use std::net::SocketAddr;
use std::sync::Arc;

use switchyard_proto::v1;

use super::policy::{CircuitSettings, RetrySettings};
use crate::admit::breaker::Breaker;
use crate::record::metrics::Series;
use crate::runtime::Load;

/// One weighted destination of a rule.
#[derive(Debug)]
pub struct Destination {
    /// `namespace/name` of the Service that it belongs to.
    pub service: Arc<str>,
    /// The version it asks for, or empty.
    pub version: Arc<str>,
    /// Its weight as given.
    pub weight: u32,
    /// Its instances on each of the routed Service's ports.
    pub ports: Vec<PortInstances>,
    /// The circuit of the destination as a whole, where its policy has that scope.
    pub circuit: Option<Circuit>,
    /// When calls to it are tried again.
    pub retry: Option<Arc<RetrySettings>>,
}

/// Instances that can take a request which came for one port.
#[derive(Debug, Default)]
pub struct PortInstances {
    /// Those that are ready.
    pub ready: Vec<Arc<Instance>>,
}

/// One address that serves.
#[derive(Debug)]
pub struct Instance {
    /// Where it listens.
    pub address: SocketAddr,
    /// What is spoken to it.
    pub protocol: v1::Protocol,
    /// Its version, or empty.
    pub version: Arc<str>,
    /// Its Pod's name, or empty.
    pub name: Arc<str>,
    /// Its own circuit, where its policy has that scope.
    pub circuit: Option<Circuit>,
    /// How busy and how quick it is.
    pub load: Arc<Load>,
    /// Where its requests are counted: by rule and version, not by instance.
    pub series: Arc<Series>,
}

/// A circuit and the policy that governs it.
#[derive(Debug, Clone)]
pub struct Circuit {
    /// The state, which outlives tables.
    pub breaker: Arc<Breaker>,
    /// The policy.
    pub settings: Arc<CircuitSettings>,
    /// What it stands for, as shown: an address or a version.
    pub target: Arc<str>,
    /// `namespace/name` of the Service.
    pub service: Arc<str>,
}
