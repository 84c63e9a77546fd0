//! How each rule and policy stands: what is wrong with it, whether it is part of what agents are given, and where its requests
//! go now. What agents make of it is not here; [`crate::report`] puts the two together.
//!
//! Keeps true: a standing is derived from what is compiled and nothing else, and only those are derived anew that a change touches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use switchyard_crds::route_rule::DestinationStatus;
use switchyard_crds::{Finding, ObjectName};
use switchyard_proto::v1;
use switchyard_proto::v1::resource::Content;

use crate::compile::{self, qualified};
use crate::object::{Kind, Object, ObjectKey, ServiceKey};
use crate::snapshot::{Key, Snapshot};
use crate::source::Observed;
use crate::world::{World, rule_service};

/// How one rule or policy stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// What the API server keeps of it.
    pub observed: Observed,
    /// The generation that is in the world; another than the observed one where that is refused. None: it never was in order.
    pub generation: Option<i64>,
    /// The Services whose configuration it is part of.
    pub services: BTreeSet<ServiceKey>,
    /// Whether it is part of what agents are given.
    pub is_compiled: bool,
    /// All that is to be said of it.
    pub findings: Vec<Finding>,
    /// Where its requests go now.
    pub destinations: Vec<DestinationStatus>,
}

/// All of them.
pub type Standings = BTreeMap<ObjectKey, Arc<Standing>>;

/// The standings, kept as the world changes.
#[derive(Debug, Default)]
pub struct Board {
    standings: Standings,
    observed: BTreeMap<ObjectKey, Observed>,
    /// Findings by object, and by what they come from: the object itself or a Service.
    findings: BTreeMap<ObjectName, BTreeMap<String, Vec<Finding>>>,
    /// Which objects an origin has findings of.
    named: BTreeMap<String, BTreeSet<ObjectName>>,
    /// Objects to look at again.
    touched: BTreeSet<ObjectKey>,
}

impl Board {
    /// What the API server keeps of an object is now this.
    pub fn observe(&mut self, key: &ObjectKey, observed: Observed) {
        self.observed.insert(key.clone(), observed);
        self.touched.insert(key.clone());
    }

    /// The object is no more.
    pub fn forget(&mut self, key: &ObjectKey) {
        self.observed.remove(key);
        self.touched.insert(key.clone());
    }

    /// The object is to be looked at again.
    pub fn touch(&mut self, key: &ObjectKey) {
        self.touched.insert(key.clone());
    }

    /// All that this origin has to say now.
    pub fn found(&mut self, origin: &str, findings: &[Finding]) {
        for name in self.named.remove(origin).unwrap_or_default() {
            if let Some(by_origin) = self.findings.get_mut(&name) {
                by_origin.remove(origin);
            }
            self.touched.extend(key_of(&name));
        }
        for finding in findings {
            let by_origin = self.findings.entry(finding.object.clone()).or_default();
            by_origin.entry(origin.to_owned()).or_default().push(finding.clone());
            self.named.entry(origin.to_owned()).or_default().insert(finding.object.clone());
            self.touched.extend(key_of(&finding.object));
        }
    }

    /// A Service was compiled: everything that is part of it is looked at again.
    pub fn compiled(&mut self, world: &World, service: &ServiceKey) {
        let rules = world.rules_of(service).map(|rule| Object::RouteRule(Arc::new(rule.clone())).key());
        let circuits = world.circuit_policies_of(service).map(compile::name_of);
        let retries = world.retry_policies_of(service).map(compile::name_of);
        self.touched.extend(rules.chain(circuits.chain(retries).filter_map(|name| key_of(&name))));
        // Where the requests of other rules go has changed with its instances.
        self.touched.extend(world.rules_to(service).filter_map(|rule| key_of(&compile::name_of(rule))));
    }

    /// Derives anew what was touched; the standings, if any is another than before.
    pub fn settle(&mut self, world: &World, snapshot: &Snapshot) -> Option<Standings> {
        let mut is_change = false;
        for key in std::mem::take(&mut self.touched) {
            let Some(observed) = self.observed.get(&key) else {
                is_change |= self.standings.remove(&key).is_some();
                continue;
            };
            let mut standing = derive(world, snapshot, &key);
            standing.observed = observed.clone();
            let by_origin = self.findings.get(&key.object_name());
            standing.findings = by_origin.into_iter().flat_map(BTreeMap::values).flatten().cloned().collect();
            standing.findings.sort();
            let before = self.standings.get(&key);
            if before.is_none_or(|before| **before != standing) {
                self.standings.insert(key, Arc::new(standing));
                is_change = true;
            }
        }
        self.findings.retain(|_, by_origin| !by_origin.is_empty());
        is_change.then(|| self.standings.clone())
    }
}

/// The key of an object that findings speak of, where it is of our kinds.
fn key_of(name: &ObjectName) -> Option<ObjectKey> {
    let kind = match name.kind.as_str() {
        "RouteRule" => Kind::RouteRule,
        "CircuitPolicy" => Kind::CircuitPolicy,
        "RetryPolicy" => Kind::RetryPolicy,
        _ => return None,
    };
    Some(ObjectKey { kind, namespace: name.namespace.clone(), name: name.name.clone() })
}

fn derive(world: &World, snapshot: &Snapshot, key: &ObjectKey) -> Standing {
    let name = qualified(&key.object_name());
    let routes = |service: &ServiceKey| routes(snapshot, service);
    let mut standing = Standing::default();
    match world.custom_object(key) {
        Some(Object::RouteRule(rule)) => {
            standing.generation = rule.metadata.generation;
            standing.services.insert(rule_service(rule));
            let compiled = routes(&rule_service(rule)).and_then(|routes| routes.rules.iter().find(|r| r.name == name));
            standing.is_compiled = compiled.is_some();
            let own = |d: &v1::Destination| destination(snapshot, d);
            standing.destinations =
                compiled.map(|rule| rule.destinations.iter().map(own).collect()).unwrap_or_default();
        }
        Some(Object::CircuitPolicy(policy)) => {
            standing.generation = policy.metadata.generation;
            let services = targets(&key.namespace, &policy.spec.target_refs);
            let holds =
                |service: &ServiceKey| routes(service).is_some_and(|r| r.circuits.iter().any(|c| c.name == name));
            standing.is_compiled = services.iter().any(holds);
            standing.services = services;
        }
        Some(Object::RetryPolicy(policy)) => {
            standing.generation = policy.metadata.generation;
            let mut services = targets(&key.namespace, &policy.spec.target_refs);
            services.extend(world.rules_naming(key).map(rule_service));
            let named = |rule: &v1::Rule| rule.retry.as_ref().is_some_and(|retry| retry.name == name);
            let holds = |service: &ServiceKey| {
                routes(service).is_some_and(|r| r.retries.iter().any(|c| c.name == name) || r.rules.iter().any(named))
            };
            standing.is_compiled = services.iter().any(holds);
            standing.services = services;
        }
        _ => {}
    }
    standing
}

fn targets(namespace: &str, refs: &[switchyard_crds::target::TargetRef]) -> BTreeSet<ServiceKey> {
    refs.iter().map(|t| ServiceKey { namespace: namespace.to_owned(), name: t.name.clone() }).collect()
}

fn routes<'a>(snapshot: &'a Snapshot, service: &ServiceKey) -> Option<&'a v1::ServiceRoutes> {
    match &snapshot.get(&Key { service: service.clone(), kind: v1::Kind::Routes })?.content {
        Some(Content::Routes(routes)) => Some(routes),
        _ => None,
    }
}

fn destination(snapshot: &Snapshot, to: &v1::Destination) -> DestinationStatus {
    let service = ServiceKey { namespace: to.namespace.clone(), name: to.service.clone() };
    let instances = match snapshot.get(&Key { service, kind: v1::Kind::Instances }).map(|held| &held.content) {
        Some(Some(Content::Instances(instances))) => instances.instances.as_slice(),
        _ => &[],
    };
    let selector = to.selector.clone().unwrap_or_default();
    let is_selected = |instance: &&v1::Instance| {
        (selector.version.is_empty() || selector.version == instance.version)
            && selector.labels.iter().all(|(name, value)| instance.labels.get(name) == Some(value))
    };
    let ready = instances.iter().filter(|instance| instance.ready && !instance.terminating);
    DestinationStatus {
        service: to.service.clone(),
        version: Some(selector.version.clone()).filter(|version| !version.is_empty()),
        weight: i32::try_from(to.weight).unwrap_or(i32::MAX),
        instances: u32::try_from(ready.filter(is_selected).count()).unwrap_or(u32::MAX),
    }
}
