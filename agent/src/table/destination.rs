//! Destinations and instances: where a request can go, resolved when the table is built.

use std::net::SocketAddr;
use std::sync::Arc;

use switchyard_proto::v1;

use super::Filters;
use super::policy::{CircuitSettings, HealthCheck, Held, RetrySettings};
use crate::admit::breaker::{Breaker, State};
use crate::admit::ejections::Ejections;
use crate::admit::limits::{Bound, InUse, Slot};
use crate::admit::window::Millis;
use crate::record::metrics::Series;
use crate::runtime::{Load, Told};

/// One weighted destination of a rule.
#[derive(Debug)]
pub struct Destination {
    /// `namespace/name` of the Service that it belongs to.
    pub service: Arc<str>,
    /// The version it asks for, or empty.
    pub version: Arc<str>,
    /// Its weight as given.
    pub weight: u32,
    /// Its instances on each of the routed Service's ports. Destinations of other rules that mean the same share them.
    pub ports: Vec<Arc<PortInstances>>,
    /// The retry policy that holds for all of it; one for a part of it is at the instances of that part.
    pub retry: Option<Arc<RetrySettings>>,
    /// What is done to the requests that go here, and to their replies: changes of header fields, and mirrors.
    pub filters: Option<Box<Filters>>,
    /// Where requests are counted that none of its instances could take, and those of instances with the version that it asks for.
    pub series: Arc<Series>,
    /// Where those of instances with other versions are counted.
    pub series_by_version: Box<[(Arc<str>, Arc<Series>)]>,
    /// The destination of the rule, by its position, that takes the requests while no circuit here lets them pass.
    pub fallback: Option<usize>,
    /// It is one that others fall back to, and is not drawn.
    pub is_fallback: bool,
}

impl Destination {
    /// Where the requests of one of its instances are counted.
    pub fn series_of(&self, instance: &Instance) -> &Arc<Series> {
        let other = self.series_by_version.iter().find(|(version, _)| *version == instance.version);
        other.map_or(&self.series, |(_, series)| series)
    }

    /// Whether a request that came for this port may go to another destination of the rule instead.
    pub fn may_rechoose(&self, port: usize) -> bool {
        let instances = self.ports.get(port).into_iter().flat_map(|p| &p.ready).filter_map(|i| i.retry.as_ref());
        self.retry.iter().chain(instances).any(|policy| policy.rechoose_destination)
    }
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
    /// Where it listens in the other family, if it does.
    pub other_address: Option<SocketAddr>,
    /// What is spoken to it.
    pub protocol: v1::Protocol,
    /// Its version, or empty.
    pub version: Arc<str>,
    /// Its Pod's name, or empty.
    pub name: Arc<str>,
    /// Its circuit: its own, or with the scope `Destination` one that it shares with those of its destination that the policy is for.
    pub circuit: Option<Circuit>,
    /// Where the circuit is not its own: whether health checks take it out.
    pub checked: Option<Arc<Breaker>>,
    /// When requests that it was asked are tried again.
    pub retry: Option<Arc<RetrySettings>>,
    /// How busy and how quick it is.
    pub load: Arc<Load>,
}

impl Instance {
    /// Where it is connected to for a caller that meant to connect to that address: in the same family where it can be, for that is where
    /// the caller would have come to by itself.
    pub fn address_for(&self, original: Option<SocketAddr>) -> SocketAddr {
        let other = self.other_address.filter(|other| original.is_some_and(|o| o.is_ipv4() == other.is_ipv4()));
        other.unwrap_or(self.address)
    }

    /// Whether health checks take it out of a destination whose instances share a circuit.
    pub fn is_unhealthy(&self) -> bool {
        self.checked.as_ref().is_some_and(|breaker| breaker.state() != State::Closed)
    }
}

/// An instance to be checked, and what comes of it.
#[derive(Debug, Clone)]
pub struct Checked {
    /// Where it listens.
    pub address: SocketAddr,
    /// What is spoken to it.
    pub protocol: v1::Protocol,
    /// How it is checked.
    pub check: HealthCheck,
    /// What takes it out, and brings it back.
    pub circuit: Circuit,
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
    /// The set that it is one of, of which only some may be out; none with the scope `Destination`.
    pub ejections: Option<Arc<Ejections>>,
    /// What is under way, where the policy has bounds.
    pub in_use: Option<Arc<InUse>>,
    /// How it is held by hand, and until when.
    pub held: Option<Held>,
}

impl Circuit {
    /// How it is held by hand now.
    pub fn held(&self, now: Millis) -> Option<Held> {
        self.held.and_then(|held| held.at(now))
    }

    /// What came of a request, for a limit that adapts.
    pub fn tell(&self, worker: usize, told: Told, now: Millis) {
        if let (Some(in_use), Some(limits)) = (&self.in_use, self.settings.limits) {
            in_use.tell(limits, worker, told, now);
        }
    }

    /// Takes one more of what the policy bounds; nothing, where it bounds nothing.
    ///
    /// # Errors
    /// The bound that is reached.
    pub fn take(&self, bound: Bound, worker: usize) -> Result<Option<Slot>, Bound> {
        match (&self.in_use, self.settings.limits) {
            (Some(in_use), Some(limits)) => in_use.take(bound, limits, worker).map(Some),
            _ => Ok(None),
        }
    }
}
