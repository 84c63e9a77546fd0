//! How a Service is put together from its resources: rules compiled, destinations resolved to instances, policies and
//! counters looked up.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use switchyard_proto::v1;

use super::destination::{Checked, Circuit, Destination, Instance, PortInstances};
use super::policy::{CircuitSettings, RetrySettings, budget_limits, limit};
use super::{Filters, Port, Rule, Service, ServiceKey, Shares, resource_key};
use crate::admit::ejections::Ejections;
use crate::matching::{Entry, Index};
use crate::record::metrics::Series;
use crate::resources::Resources;
use crate::retry::budget::Budget;
use crate::runtime::{Member, Runtime};
use crate::sticky::Stickiness;

/// The versions of all that a Service's table entry is made of. The same fingerprint means the same entry.
pub(super) fn fingerprint(resources: &Resources, key: &ServiceKey) -> Vec<String> {
    let mut mentioned = BTreeSet::from([key.clone()]);
    if let Some(routes) = resources.routes(&resource_key(v1::Kind::Routes, key)) {
        let destinations = routes.rules.iter().flat_map(|r| &r.destinations);
        let filters = routes.rules.iter().flat_map(|r| &r.filters).chain(destinations.clone().flat_map(|d| &d.filters));
        mentioned.extend(destinations.chain(filters.filter_map(mirrored)).map(destination_key));
    }
    let fallbacks = mentioned.iter().filter_map(|service| resources.routes(&resource_key(v1::Kind::Routes, service)));
    let fallbacks = fallbacks.flat_map(|routes| &routes.circuits);
    let fallbacks = fallbacks.filter_map(|policy| policy.fallback.as_ref()?.destination.as_ref());
    let fallbacks: Vec<ServiceKey> = fallbacks.map(destination_key).collect();
    mentioned.extend(fallbacks);
    let versions = mentioned.iter().flat_map(|service| {
        [v1::Kind::Routes, v1::Kind::Instances].map(|kind| resources.version(&resource_key(kind, service)).to_owned())
    });
    versions.collect()
}

/// What metrics call the rule when none matches; a rule's own name has a slash.
const DEFAULT_RULE: &str = "default";

/// Builds the entry of one Service.
pub(super) fn service(resources: &Resources, key: &ServiceKey, fingerprint: Vec<String>, runtime: &Runtime) -> Service {
    let nothing = v1::ServiceRoutes::default();
    let routes = resources.routes(&resource_key(v1::Kind::Routes, key)).unwrap_or(&nothing);
    let ports: Vec<Port> = routes
        .ports
        .iter()
        .filter_map(|p| Some(Port { number: u16::try_from(p.port).ok()?, protocol: p.protocol() }))
        .collect();
    let label: Arc<str> = key.to_string().into();
    let (retries, policies, resolved) = Default::default();
    let mut builder =
        Builder { resources, runtime, key, label: &label, ports: &ports, routes, retries, policies, resolved };
    builder.retries = routes.retries.iter().map(|policy| builder.retry(policy)).collect();
    // An entry that does not compile was turned down when it came in, so none is lost here.
    let entries: Vec<Entry> = routes.matches.iter().filter_map(|entry| Entry::compile(entry).ok()).collect();
    Service {
        index: Index::new(&entries),
        entries,
        rules: routes.rules.iter().map(|rule| builder.rule(rule)).collect(),
        default_rule: builder.rule(&v1::Rule {
            destinations: vec![v1::Destination {
                namespace: key.namespace.clone(),
                service: key.name.clone(),
                weight: 1,
                ..v1::Destination::default()
            }],
            ..v1::Rule::default()
        }),
        checked: builder.checked(&builder.policies(key)),
        runtime: runtime.service(key),
        key: key.clone(),
        label: Arc::clone(&label),
        ports,
        cluster_ips: routes.cluster_ips.iter().filter_map(|ip| ip.parse().ok()).collect(),
        intercepted: routes.intercepted,
        fingerprint,
    }
}

/// Where a filter sends copies of requests, if it does.
fn mirrored(filter: &v1::Filter) -> Option<&v1::Destination> {
    match &filter.filter {
        Some(v1::filter::Filter::RequestMirror(mirror)) => mirror.destination.as_ref(),
        _ => None,
    }
}

fn destination_key(destination: &v1::Destination) -> ServiceKey {
    ServiceKey { namespace: destination.namespace.clone(), name: destination.service.clone() }
}

/// What building one Service needs at hand.
struct Builder<'a> {
    resources: &'a Resources,
    runtime: &'a Runtime,
    key: &'a ServiceKey,
    label: &'a Arc<str>,
    ports: &'a [Port],
    routes: &'a v1::ServiceRoutes,
    /// The retry policies attached to the Service, in the order of `routes`.
    retries: Vec<Arc<RetrySettings>>,
    /// The circuit policies of the Services that requests go to, as they are found.
    policies: RefCell<BTreeMap<ServiceKey, Rc<Policies>>>,
    /// What destinations mean on a port, as far as it is known: thousands of rules may mean the same.
    resolved: RefCell<HashMap<Meant, Arc<PortInstances>>>,
}

/// Names the instances that a destination means: Service, port, version, labels; and the port that was asked for.
type Meant = (ServiceKey, u32, String, BTreeMap<String, String>, u16);

/// Where requests of a Service are counted that go by a rule, to a Service and a version of it.
pub(super) fn series(runtime: &Runtime, service: &str, rule: &str, (target, version): (&str, &str)) -> Arc<Series> {
    let rule = if rule.is_empty() { DEFAULT_RULE } else { rule };
    runtime.series(service, rule, target, version)
}

impl Builder<'_> {
    fn retry(&self, wire: &v1::RetryPolicy) -> Arc<RetrySettings> {
        let limits = budget_limits(wire);
        let budget = Arc::new(Budget::new(limits, self.runtime.account(self.key, limits.window_ms)));
        Arc::new(RetrySettings::new(wire, budget))
    }

    fn rule(&self, wire: &v1::Rule) -> Rule {
        let named = wire.retry.as_ref().map(|retry| self.retry(retry));
        let mut destinations: Vec<Destination> =
            wire.destinations.iter().map(|d| self.destination(wire, d, named.as_ref())).collect();
        self.add_fallbacks(wire, &mut destinations, named.as_ref());
        let shares =
            (0..self.ports.len()).map(|port| shares(&destinations, port, wire.fail_when_unavailable)).collect();
        Rule {
            name: wire.name.as_str().into(),
            destinations,
            shares,
            request_timeout: limit(wire.request_timeout_ms),
            try_timeout: limit(wire.backend_request_timeout_ms),
            fail_when_unavailable: wire.fail_when_unavailable,
            // As with match entries, one that does not compile was turned down when it came in.
            stickiness: wire.stickiness.as_ref().and_then(|s| Stickiness::compile(s, &wire.destinations).ok()),
            filters: self.filters(wire, &wire.filters),
            undrawn: OnceLock::new(),
        }
    }

    fn filters(&self, rule: &v1::Rule, wire: &[v1::Filter]) -> Option<Box<Filters>> {
        Filters::compile(wire, |to| Some(self.destination(rule, to, None))).ok().flatten()
    }

    fn series(&self, rule: &str, target: &str, version: &str) -> Arc<Series> {
        series(self.runtime, self.label, rule, (target, version))
    }

    fn destination(&self, rule: &v1::Rule, wire: &v1::Destination, named: Option<&Arc<RetrySettings>>) -> Destination {
        let target = destination_key(wire);
        let nothing = v1::Selector::default();
        let selector = wire.selector.as_ref().unwrap_or(&nothing);
        let label = if target == *self.key { Arc::clone(self.label) } else { target.to_string().into() };
        let attached = self.routes.retries.iter().zip(&self.retries);
        let attached =
            attached.filter(|(policy, _)| covers(policy.target.as_ref(), selector)).map(|(_, settings)| settings);
        let policies = self.policies(&target);
        let ports: Vec<_> = self.ports.iter().map(|port| self.instances(wire, *port, &policies, named)).collect();
        let own = |version: &str| version.is_empty() || version == selector.version;
        let others = ports.iter().flat_map(|port| &port.ready).map(|instance| &instance.version);
        let others: BTreeSet<&Arc<str>> = others.filter(|version| !own(version)).collect();
        let of_version = |version: &Arc<str>| (Arc::clone(version), self.series(&rule.name, &label, version));
        let series_by_version = others.into_iter().map(of_version).collect();
        Destination {
            version: selector.version.as_str().into(),
            weight: wire.weight,
            ports,
            retry: named.into_iter().chain(attached).next().cloned(),
            filters: self.filters(rule, &wire.filters),
            series: self.series(&rule.name, &label, &selector.version),
            series_by_version,
            service: label,
            fallback: None,
            is_fallback: false,
        }
    }

    /// Puts the destinations that others fall back to behind those, where nothing draws them. Theirs are not followed.
    fn add_fallbacks(&self, rule: &v1::Rule, destinations: &mut Vec<Destination>, named: Option<&Arc<RetrySettings>>) {
        let drawn = destinations.len();
        let mut added: Vec<v1::Destination> = Vec::new();
        for position in 0..drawn {
            let instances = destinations[position].ports.iter().flat_map(|port| &port.ready);
            let mut circuits = instances.filter_map(|instance| instance.circuit.as_ref());
            let Some(wanted) = circuits.find_map(|circuit| circuit.settings.fallback.clone()) else { continue };
            let at = added.iter().position(|known| *known == wanted).unwrap_or_else(|| {
                let built = self.destination(rule, &v1::Destination { weight: 0, ..wanted.clone() }, named);
                destinations.push(Destination { is_fallback: true, ..built });
                added.push(wanted);
                added.len() - 1
            });
            destinations[position].fallback = Some(drawn + at);
        }
    }

    /// The circuit policies for a Service's instances.
    fn policies(&self, target: &ServiceKey) -> Rc<Policies> {
        if let Some(known) = self.policies.borrow().get(target) {
            return Rc::clone(known);
        }
        let routes = self.resources.routes(&resource_key(v1::Kind::Routes, target));
        let policies = routes.map_or(&[][..], |routes| &routes.circuits);
        let all = policies.iter().map(|policy| Policy {
            target: policy.target.clone(),
            name: describe(&v1::Selector::default(), policy.target.as_ref()).into(),
            settings: Arc::new(CircuitSettings::from(policy)),
        });
        let mut policies = Policies { all: all.collect(), ejections: HashMap::new() };
        policies.ejections = self.ejections(target, &policies);
        let policies = Rc::new(policies);
        self.policies.borrow_mut().insert(target.clone(), Rc::clone(&policies));
        policies
    }

    /// The set of circuits that each instance's is one of, by its address: those of one target of a policy on one port, of which only some
    /// may be out. A port by which the same addresses serve as by an earlier one makes no other set.
    /// Those that are checked have one of their own also where a policy has them share the circuit that the traffic opens.
    fn ejections(&self, target: &ServiceKey, policies: &Policies) -> HashMap<SocketAddr, Arc<Ejections>> {
        let (declared, instances) = self.of_service(target);
        let mut sets: BTreeMap<(usize, u32), BTreeMap<SocketAddr, Member>> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for port in declared {
            for instance in instances.iter().filter(|i| is_ready(i)) {
                let policy = policies.position(instance);
                let Some((at, address)) = policy.zip(address_of(instance, port.port)) else { continue };
                let settings = &policies.all[at].settings;
                let has_own = !settings.whole_destination || settings.health_check.is_some();
                if has_own && seen.insert(address) {
                    let name = address.to_string();
                    let breaker = self.runtime.breaker(target, &name, settings);
                    sets.entry((at, port.port)).or_default().insert(address, (name, breaker, Arc::clone(settings)));
                }
            }
        }
        let mut of_address = HashMap::new();
        for ((at, port), members) in sets {
            let policy = &policies.all[at];
            let name = format!("{} {} {port}", policy.settings.name, policy.name);
            let addresses: Vec<SocketAddr> = members.keys().copied().collect();
            let members: Vec<Member> = members.into_values().collect();
            let ejections = self.runtime.ejections(target, &name, &members, policy.settings.max_ejection_ppm);
            of_address.extend(addresses.into_iter().map(|address| (address, Arc::clone(&ejections))));
        }
        of_address
    }

    /// The instances that are checked, each address once.
    fn checked(&self, policies: &Policies) -> Vec<Checked> {
        let (declared, instances) = self.of_service(self.key);
        let mut seen = BTreeSet::new();
        let mut checked = Vec::new();
        for port in declared {
            for instance in instances.iter().filter(|i| is_ready(i)) {
                let policy = policies.position(instance).map(|at| &policies.all[at]);
                let Some((policy, address)) = policy.zip(address_of(instance, port.port)) else { continue };
                let Some(check) = policy.settings.health_check.clone().filter(|_| seen.insert(address)) else {
                    continue;
                };
                let ejections = policies.ejections.get(&address).cloned();
                let circuit = self.circuit(self.key, &address.to_string(), policy, ejections);
                checked.push(Checked { address, protocol: port.protocol(), check, circuit });
            }
        }
        checked
    }

    /// A Service's ports and instances.
    fn of_service(&self, service: &ServiceKey) -> (&[v1::ServicePort], &[v1::Instance]) {
        let routes = self.resources.routes(&resource_key(v1::Kind::Routes, service));
        let instances = self.resources.instances(&resource_key(v1::Kind::Instances, service));
        (routes.map_or(&[], |routes| &routes.ports), instances.map_or(&[], |of| &of.instances))
    }

    fn instances(
        &self,
        wire: &v1::Destination,
        asked: Port,
        policies: &Policies,
        named: Option<&Arc<RetrySettings>>,
    ) -> Arc<PortInstances> {
        // With a policy of the rule's own they are the rule's own.
        if named.is_some() {
            return Arc::new(self.resolve(wire, asked, policies, named));
        }
        let selector = wire.selector.clone().unwrap_or_default();
        let meant = (destination_key(wire), wire.port, selector.version, selector.labels, asked.number);
        let mut resolved = self.resolved.borrow_mut();
        Arc::clone(resolved.entry(meant).or_insert_with(|| Arc::new(self.resolve(wire, asked, policies, None))))
    }

    fn resolve(
        &self,
        wire: &v1::Destination,
        asked: Port,
        policies: &Policies,
        named: Option<&Arc<RetrySettings>>,
    ) -> PortInstances {
        let target = &destination_key(wire);
        let nothing = v1::Selector::default();
        let selector = wire.selector.as_ref().unwrap_or(&nothing);
        let (declared, instances) = self.of_service(target);
        // The port that the rule names; else the one that the request came for; else the Service's first.
        let wanted = if wire.port != 0 { wire.port } else { u32::from(asked.number) };
        let port = declared.iter().find(|p| p.port == wanted).or(declared.first());
        let Some(port) = port else { return PortInstances::default() };
        let ready = instances
            .iter()
            .filter(|i| is_ready(i) && selects(selector, i))
            .filter_map(|instance| {
                let address = address_of(instance, port.port)?;
                // The most specific policy comes first, and holds for the instances that its target means.
                let policy = policies.position(instance).map(|at| &policies.all[at]);
                let circuit = policy.map(|policy| match policy.settings.whole_destination {
                    true => self.circuit(target, &describe(selector, policy.target.as_ref()), policy, None),
                    false => {
                        self.circuit(target, &address.to_string(), policy, policies.ejections.get(&address).cloned())
                    }
                });
                let shares = policy.filter(|p| p.settings.whole_destination && p.settings.health_check.is_some());
                let checked = shares.map(|p| self.runtime.breaker(target, &address.to_string(), &p.settings));
                let attached = self.routes.retries.iter().zip(&self.retries);
                let attached = attached.filter(|(policy, _)| is_target(policy.target.as_ref(), instance));
                let retry = named.into_iter().chain(attached.map(|(_, settings)| settings)).next().cloned();
                Some(Arc::new(Instance {
                    address,
                    other_address: at_port(&instance.other_address, instance, port.port),
                    protocol: port.protocol(),
                    version: instance.version.as_str().into(),
                    name: instance.name.as_str().into(),
                    circuit,
                    checked,
                    retry,
                    load: self.runtime.load(target, address),
                }))
            })
            .collect();
        PortInstances { ready }
    }

    fn circuit(
        &self,
        service: &ServiceKey,
        target: &str,
        policy: &Policy,
        ejections: Option<Arc<Ejections>>,
    ) -> Circuit {
        let settings = &policy.settings;
        Circuit {
            breaker: self.runtime.breaker(service, target, settings),
            target: target.into(),
            service: service.to_string().into(),
            ejections,
            in_use: settings.limits.map(|limits| self.runtime.in_use(service, &policy.name, limits)),
            held: self.runtime.held(settings),
            settings: Arc::clone(settings),
        }
    }
}

/// The circuit policies for a Service's instances, the most specific target first.
struct Policies {
    all: Vec<Policy>,
    /// Of which set each instance's circuit is one.
    ejections: HashMap<SocketAddr, Arc<Ejections>>,
}

struct Policy {
    target: Option<v1::Selector>,
    /// The target, for people: which instances of the Service it means.
    name: Arc<str>,
    settings: Arc<CircuitSettings>,
}

impl Policies {
    /// The one that holds for an instance.
    fn position(&self, instance: &v1::Instance) -> Option<usize> {
        self.all.iter().position(|policy| is_target(policy.target.as_ref(), instance))
    }
}

fn is_ready(instance: &v1::Instance) -> bool {
    instance.ready && !instance.terminating
}

/// Where an instance serves a port of its Service.
fn address_of(instance: &v1::Instance, service_port: u32) -> Option<SocketAddr> {
    at_port(&instance.address, instance, service_port)
}

/// Where an instance with this IP address does.
fn at_port(address: &str, instance: &v1::Instance, service_port: u32) -> Option<SocketAddr> {
    let ip: IpAddr = address.parse().ok()?;
    let number = instance.ports.iter().find(|p| p.service_port == service_port)?.port;
    Some(SocketAddr::new(ip, u16::try_from(number).ok()?))
}

/// The shares of a rule's destinations on one port. One with no ready instance cannot be drawn, unless its share is to fail.
fn shares(destinations: &[Destination], port: usize, fail: bool) -> Shares {
    let mut shares = Shares { total: 0, ends: Vec::with_capacity(destinations.len()) };
    for destination in destinations {
        let served = destination.ports.get(port).is_some_and(|p| !p.ready.is_empty());
        if served || fail {
            shares.total += u64::from(destination.weight);
        }
        shares.ends.push(shares.total);
    }
    shares
}

/// Whether an instance is one of those that the selector means.
fn selects(selector: &v1::Selector, instance: &v1::Instance) -> bool {
    (selector.version.is_empty() || selector.version == instance.version)
        && selector.labels.iter().all(|(name, value)| instance.labels.get(name) == Some(value))
}

/// Whether a policy for `target` is one for the instance.
fn is_target(target: Option<&v1::Selector>, instance: &v1::Instance) -> bool {
    target.is_none_or(|target| selects(target, instance))
}

/// Whether a policy for `target` holds for all that a destination's selector means: it asks for nothing that the destination
/// does not ask for too.
fn covers(target: Option<&v1::Selector>, destination: &v1::Selector) -> bool {
    target.is_none_or(|target| {
        (target.version.is_empty() || target.version == destination.version)
            && target.labels.iter().all(|(name, value)| destination.labels.get(name) == Some(value))
    })
}

/// Which instances share a circuit, for people: those of a destination that a policy for `target` is for. `v2`, `tier=gold`, or `all`.
fn describe(destination: &v1::Selector, target: Option<&v1::Selector>) -> String {
    let both = || [Some(destination), target].into_iter().flatten();
    let version = both().map(|selector| &selector.version).find(|version| !version.is_empty());
    let labels: BTreeMap<_, _> = both().flat_map(|selector| &selector.labels).collect();
    let labels = labels.iter().map(|(name, value)| format!("{name}={value}"));
    let parts: Vec<String> = version.cloned().into_iter().chain(labels).collect();
    if parts.is_empty() { "all".to_owned() } else { parts.join(",") }
}

#[cfg(test)]
mod tests;
