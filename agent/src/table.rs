//! The table: everything that requests are routed by, built whole from what the controller sent and never changed after.
//!
//! Keeps true:
//! - A request sees one table from beginning to end; a change swaps in another one.
//! - What outlives a table (circuits, load, budgets, counters) is not in it: it is found in [`Runtime`] by stable keys,
//!   so a weight that moves resets nobody's breaker.
//! - Work is done here, once per change, rather than per request: instances are resolved per destination and port, weights
//!   are summed, policies are looked up, counters are in reach.
//! - A Service that a change does not concern is carried over as it is.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use switchyard_proto::v1;

use crate::matching::quick::Map;
use crate::matching::{Entry, Index};
use crate::record::metrics::Series;
use crate::refusal::{Reason, Refusal};
use crate::resources::{ResourceKey, Resources};
use crate::runtime::{Runtime, ServiceRuntime};
use crate::sticky::Stickiness;

/// Who is known by which address.
mod addresses;
/// How a Service is put together from its resources.
mod build;
/// The places that requests go to.
mod destination;
/// What rules do besides, compiled.
mod filters;
/// The policies, compiled.
mod policy;

pub use addresses::{Addresses, Captured, Workload};
pub use destination::{Checked, Circuit, Destination, Instance, PortInstances};
pub use filters::{Filters, Mirror, check as check_filters};
pub use policy::{Check, CircuitSettings, Conditions, HealthCheck, Held, Hold, Outcome, RetrySettings};

/// Names a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl std::str::FromStr for ServiceKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err("a Service is named as namespace/name".to_owned()),
        }
    }
}

/// All Services, by the names that callers use for them.
#[derive(Debug, Default)]
pub struct Table {
    /// The controller's revision that this table holds.
    pub revision: u64,
    /// What is found by address.
    pub addresses: Addresses,
    /// In order of their names.
    services: Vec<Arc<Service>>,
    hosts: Map<Box<str>, Named>,
    default_service: Option<usize>,
}

/// What a Host stands for: positions in the list of Services.
#[derive(Debug)]
enum Named {
    One(usize),
    /// A short name that more than one namespace has.
    Several(Vec<ServiceKey>),
}

/// One Service as requests see it.
#[derive(Debug)]
pub struct Service {
    /// Its name.
    pub key: ServiceKey,
    /// `namespace/name`, as metrics and messages show it.
    pub label: Arc<str>,
    /// Its ports, in the order given.
    pub ports: Vec<Port>,
    /// What matches requests to rules, in order of precedence.
    pub entries: Vec<Entry>,
    /// How the first of them that holds is found.
    pub index: Index,
    /// The rules; `entries` refer to them by position.
    pub rules: Vec<Rule>,
    /// What holds when no rule matches: all ready instances take part.
    pub default_rule: Rule,
    /// Its instances that are checked, on each port where they serve by an address of their own.
    pub checked: Vec<Checked>,
    /// Retry budget and counters, which outlive this table.
    pub runtime: Arc<ServiceRuntime>,
    /// The addresses by which callers in its cluster connect to it.
    pub cluster_ips: Vec<std::net::IpAddr>,
    /// It is opted in: connections to those addresses are taken in.
    pub intercepted: bool,
    fingerprint: Vec<String>,
}

/// A port of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its number.
    pub number: u16,
    /// What is spoken on it.
    pub protocol: v1::Protocol,
}

/// Where requests go once they are matched, and under which limits.
#[derive(Debug)]
pub struct Rule {
    /// `namespace/name` of the RouteRule; empty for the default.
    pub name: Arc<str>,
    /// Where the requests go.
    pub destinations: Vec<Destination>,
    /// For each of the Service's ports, the sum of the weights that can be drawn and where each share ends.
    pub shares: Vec<Shares>,
    /// For the whole request.
    pub request_timeout: Option<Duration>,
    /// For each try.
    pub try_timeout: Option<Duration>,
    /// 503 for the share of a destination with no ready instance.
    pub fail_when_unavailable: bool,
    /// What keeps a user in the same destination.
    pub stickiness: Option<Stickiness>,
    /// What it does besides.
    pub filters: Option<Box<Filters>>,
    /// Where requests are counted that no destination could be drawn for, once there is one.
    undrawn: OnceLock<Arc<Series>>,
}

impl Rule {
    /// Where requests are counted that no destination could be drawn for. `service` is whose rule it is.
    pub fn undrawn(&self, service: &Service, runtime: &Runtime) -> &Arc<Series> {
        self.undrawn.get_or_init(|| build::series(runtime, &service.label, &self.name, ("", "")))
    }
}

/// The weights of a rule's destinations on one port, summed up.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Shares {
    /// The sum of all shares; 0: there is nowhere to go.
    pub total: u64,
    /// Where the share of each destination ends; a destination that cannot be drawn ends where it begins.
    pub ends: Vec<u64>,
}

impl Shares {
    /// How much of the whole a destination has.
    pub fn width(&self, destination: usize) -> u64 {
        let end = |position: usize| self.ends.get(position).copied().unwrap_or_default();
        end(destination).saturating_sub(destination.checked_sub(1).map_or(0, end))
    }
}

impl Table {
    /// Builds the table of `resources`. Services that are the same as in `before` are carried over.
    pub fn build(
        resources: &Resources,
        before: &Table,
        runtime: &Runtime,
        default_service: Option<&ServiceKey>,
    ) -> Table {
        let service = |key: ServiceKey| {
            let fingerprint = build::fingerprint(resources, &key);
            match before.service(&key) {
                Some(service) if service.fingerprint == fingerprint => Arc::clone(service),
                _ => Arc::new(build::service(resources, &key, fingerprint, runtime)),
            }
        };
        let services: Vec<Arc<Service>> = resources.services().into_iter().map(service).collect();
        let hosts = hosts(&services);
        let default_service = default_service.and_then(|key| services.iter().position(|s| s.key == *key));
        let addresses = Addresses::new(&services, resources);
        runtime.forget_unused();
        Table { revision: resources.revision, addresses, services, hosts, default_service }
    }

    /// A table that leads to one address and nowhere else: for requests on connections whose Service is gone. What it is counted under
    /// is the same for all addresses.
    pub fn of_unknown(address: SocketAddr, runtime: &Runtime) -> Table {
        let port = u32::from(address.port());
        let routes = v1::ServiceRoutes {
            ports: vec![v1::ServicePort { port, ..v1::ServicePort::default() }],
            cluster_ips: vec![address.ip().to_string()],
            ..v1::ServiceRoutes::default()
        };
        let instance = v1::Instance {
            address: address.ip().to_string(),
            ports: vec![v1::InstancePort { service_port: port, port }],
            ready: true,
            ..v1::Instance::default()
        };
        let mut resources = Resources::default();
        for (kind, content) in [
            (v1::Kind::Routes, v1::resource::Content::Routes(routes)),
            (v1::Kind::Instances, v1::resource::Content::Instances(v1::ServiceInstances { instances: vec![instance] })),
        ] {
            let key = v1::ResourceKey { kind: kind.into(), name: "unknown".to_owned(), ..v1::ResourceKey::default() };
            resources.put(v1::Resource { key: Some(key), version: String::new(), content: Some(content) });
        }
        Self::build(&resources, &Self::default(), runtime, None)
    }

    /// The Services, in order of their names.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.iter()
    }

    /// The Service at a position that [`Table::identify`] gave.
    pub fn at(&self, position: usize) -> &Service {
        &self.services[position]
    }

    /// The Service that a Host field (RFC 9110 section 7.2) names and which of its ports, as positions.
    ///
    /// # Errors
    /// A refusal that says which names there are.
    pub fn identify(&self, host: &str) -> Result<(usize, usize), Refusal> {
        let (name, port) = split_port(host);
        let name = name.strip_suffix('.').unwrap_or(name);
        let found = if name.bytes().any(|b| b.is_ascii_uppercase()) {
            self.hosts.get(name.to_ascii_lowercase().as_str())
        } else {
            self.hosts.get(name)
        };
        let service = match (found, self.default_service) {
            (Some(Named::One(service)), _) => *service,
            (None, Some(service)) => service,
            (Some(Named::Several(keys)), _) => {
                let namespaces: Vec<_> = keys.iter().map(|k| k.namespace.as_str()).collect();
                return Err(Refusal::new(
                    Reason::NoRoute,
                    format!(
                        "{name} is in several namespaces ({}): name one, as in {name}.{}",
                        namespaces.join(", "),
                        namespaces[0]
                    ),
                ));
            }
            (None, None) => return Err(Refusal::new(Reason::NoRoute, format!("no Service is called {name:?}"))),
        };
        let by_number = |number| self.services[service].ports.iter().position(|p| p.number == number);
        let port = port.and_then(by_number).or_else(|| by_number(80)).unwrap_or(0);
        Ok((service, port))
    }

    /// The Service of that name.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        let position = self.services.binary_search_by(|s| s.key.cmp(key)).ok()?;
        self.services.get(position)
    }
}

/// Where a request goes, as positions in its table: what is left of a choice once it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// The Service, in the table.
    pub service: usize,
    /// The rule, in the Service; `None`: the default.
    pub rule: Option<u32>,
    /// The port that the request came for, in the Service.
    pub port: usize,
    /// The destination, in the rule.
    pub destination: usize,
    /// The instance, in the destination's list for that port.
    pub instance: usize,
}

impl Service {
    /// The rule at that position; `None`: what holds when no rule matches.
    pub fn rule(&self, position: Option<u32>) -> &Rule {
        position.and_then(|p| self.rules.get(p as usize)).unwrap_or(&self.default_rule)
    }
}

impl Table {
    /// The destination of a choice.
    pub fn destination(&self, at: At) -> &Destination {
        &self.services[at.service].rule(at.rule).destinations[at.destination]
    }

    /// The instance of a choice.
    pub fn instance(&self, at: At) -> &Instance {
        &self.destination(at).ports[at.port].ready[at.instance]
    }

    /// Where the requests of a choice are counted: by rule and version, not by instance.
    pub fn series(&self, at: At) -> &Arc<Series> {
        self.destination(at).series_of(self.instance(at))
    }
}

/// `my-service:80` is `my-service` and 80; the port may be empty (RFC 3986 section 3.2.3). What is no port is part of the name.
fn split_port(host: &str) -> (&str, Option<u16>) {
    match host.rsplit_once(':') {
        Some((name, "")) if !name.is_empty() => (name, None),
        Some((name, port)) if !name.is_empty() => match port.parse() {
            Ok(port) => (name, Some(port)),
            Err(_) => (host, None),
        },
        _ => (host, None),
    }
}

/// Every name that a Service goes by. The short one serves only where one namespace alone has it.
fn hosts(services: &[Arc<Service>]) -> Map<Box<str>, Named> {
    let mut hosts = Map::with_capacity_and_hasher(services.len() * 4, Default::default());
    for (position, service) in services.iter().enumerate() {
        for suffix in ["", ".svc", ".svc.cluster.local"] {
            let name = format!("{}.{}{suffix}", service.key.name, service.key.namespace);
            hosts.insert(name.into_boxed_str(), Named::One(position));
        }
    }
    for (position, service) in services.iter().enumerate() {
        let short = service.key.name.clone().into_boxed_str();
        match hosts.get_mut(&short) {
            None => {
                hosts.insert(short, Named::One(position));
            }
            Some(Named::One(other)) => {
                let keys = vec![services[*other].key.clone(), service.key.clone()];
                hosts.insert(short, Named::Several(keys));
            }
            Some(Named::Several(keys)) => keys.push(service.key.clone()),
        }
    }
    hosts
}

/// The key of a resource of that kind for a Service.
fn resource_key(kind: v1::Kind, key: &ServiceKey) -> ResourceKey {
    ResourceKey { kind, service: key.clone() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::resources::tests_support::{instances, routes};

    fn table(names: &[(&str, &str)]) -> Table {
        let mut resources = Resources::default();
        for (namespace, name) in names {
            resources.put(routes(namespace, name));
            resources.put(instances(namespace, name, &[("127.0.0.1", 9000, "v1")]));
        }
        Table::build(&resources, &Table::default(), &Runtime::new(1), None)
    }

    #[test]
    fn a_host_names_its_service_in_every_form() {
        let table = table(&[("shop", "my-service"), ("shop", "other")]);
        for host in [
            "my-service",
            "my-service:80",
            "my-service:15001",
            "my-service.shop:",
            "MY-Service.Shop",
            "my-service.shop:80",
            "my-service.shop.svc",
            "my-service.shop.svc.cluster.local",
            "my-service.shop.svc.cluster.local.",
            "my-service.shop.svc.cluster.local:8080",
        ] {
            let (service, _) = table.identify(host).unwrap_or_else(|e| panic!("{host}: {e:?}"));
            assert_eq!(&*table.at(service).label, "shop/my-service", "{host}");
        }
        assert!(table.identify("my-service.web").is_err());
        assert!(table.identify("").is_err());
    }

    #[test]
    fn a_short_name_that_two_namespaces_have_is_refused_and_both_are_named() {
        let table = table(&[("shop", "my-service"), ("web", "my-service")]);
        let refusal = table.identify("my-service").unwrap_err();
        assert!(refusal.detail.contains("shop") && refusal.detail.contains("web"), "{}", refusal.detail);
        assert!(table.identify("my-service.web").is_ok());
    }

    #[test]
    fn a_service_that_did_not_change_is_carried_over() {
        let runtime = Runtime::new(1);
        let mut resources = Resources::default();
        resources.put(routes("shop", "a"));
        resources.put(instances("shop", "a", &[("127.0.0.1", 9000, "v1")]));
        resources.put(routes("shop", "b"));
        let first = Table::build(&resources, &Table::default(), &runtime, None);
        resources.put(instances("shop", "a", &[("127.0.0.1", 9001, "v1")]));
        let second = Table::build(&resources, &first, &runtime, None);
        let same = |at: usize| std::ptr::eq(first.at(at), second.at(at));
        assert!(same(first.identify("b").unwrap().0));
        assert!(!same(first.identify("a").unwrap().0));
    }

    #[test]
    fn the_policy_that_holds_is_that_of_the_chosen_instance() {
        let selector = |version: &str| v1::Selector { version: version.into(), ..v1::Selector::default() };
        let retry = |version: &str| v1::RetryPolicy {
            name: format!("retry {version}"),
            target: Some(selector(version)),
            ..v1::RetryPolicy::default()
        };
        let circuit = |version: &str, scope: v1::CircuitScope| v1::CircuitPolicy {
            name: format!("circuit {version}"),
            target: Some(selector(version)),
            scope: scope.into(),
            ..v1::CircuitPolicy::default()
        };
        let to = |version: &str| v1::Destination {
            namespace: "shop".into(),
            service: "a".into(),
            selector: Some(selector(version)),
            weight: 1,
            ..v1::Destination::default()
        };
        let mut resources = Resources::default();
        resources.put(crate::resources::tests_support::routes_of(
            "shop",
            "a",
            v1::ServiceRoutes {
                rules: vec![v1::Rule { destinations: vec![to("v2")], ..v1::Rule::default() }],
                retries: vec![retry("v2"), retry("")],
                circuits: vec![circuit("v2", v1::CircuitScope::Destination), circuit("", v1::CircuitScope::Instance)],
                ..v1::ServiceRoutes::default()
            },
        ));
        resources.put(instances("shop", "a", &[("10.0.0.1", 1, "v1"), ("10.0.0.2", 2, "v2"), ("10.0.0.3", 3, "v2")]));
        let table = Table::build(&resources, &Table::default(), &Runtime::new(1), None);
        let service = table.at(0);
        let ready = |rule: &Rule| rule.destinations[0].ports[0].ready.clone();
        // The default route names no version, and yet each instance has the policies of its own.
        let [v1, v2, other_v2] = &ready(&service.default_rule)[..] else { panic!("three instances") };
        let names = |instance: &Instance| {
            let (retry, circuit) = (instance.retry.as_ref().unwrap(), instance.circuit.as_ref().unwrap());
            (retry.name.to_string(), circuit.settings.name.to_string(), circuit.target.to_string())
        };
        let named =
            |retry: &str, circuit: &str, target: &str| (retry.to_owned(), circuit.to_owned(), target.to_owned());
        assert_eq!(names(v1), named("retry ", "circuit ", "10.0.0.1:1"));
        assert_eq!(names(v2), named("retry v2", "circuit v2", "v2"));
        let breaker = |instance: &Instance| Arc::clone(&instance.circuit.as_ref().unwrap().breaker);
        assert!(Arc::ptr_eq(&breaker(v2), &breaker(other_v2)), "one circuit for the version");
        let by_rule = &ready(&service.rules[0])[0];
        assert!(Arc::ptr_eq(&breaker(v2), &breaker(by_rule)), "whichever way a request comes");
    }
}
