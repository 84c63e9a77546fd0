//! What exists now: the objects by key, and who has to do with whom. It has no opinions; [`crate::compile`] derives all
//! that is decided from it.
//!
//! Invariants: the links are those of the objects held and of no others (rebuilt with each change of an object); a
//! change dirties exactly the Services whose compiled form could differ for it; telling the same object again dirties
//! nothing (`a_change_dirties_every_service_that_it_alters`, in `compile.rs`).

use std::collections::{BTreeMap, BTreeSet};

use switchyard_crds::{CircuitPolicy, RetryPolicy, RouteRule};

use crate::object::{EndpointSlice, Kind, Namespace, Object, ObjectKey, Pod, Service, ServiceKey};
use crate::source::Event;

/// Which addresses serve a Service, and what is known of them.
pub mod instances;

/// All objects that exist.
#[derive(Clone, Debug, Default)]
pub struct World {
    objects: BTreeMap<ObjectKey, Object>,
    links: BTreeMap<Link, BTreeSet<ObjectKey>>,
}

/// What is compiled by itself: a change asks for some of these to be compiled again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// A Service's rules, policies and instances.
    Service(ServiceKey),
    /// Who runs on a node.
    Node(String),
}

/// What an object has to do with another, as that other can look it up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Link {
    /// A rule for this Service's requests.
    Rule(ServiceKey),
    /// A rule that sends requests to this Service.
    Destination(ServiceKey),
    /// A policy that targets this Service.
    Policy(ServiceKey),
    /// A rule that names this RetryPolicy.
    NamesRetryPolicy(ObjectKey),
    /// An EndpointSlice of this Service.
    Slice(ServiceKey),
    /// An EndpointSlice with an endpoint on this Pod.
    SliceOnPod(ObjectKey),
    /// A Pod that runs on this node.
    PodOnNode(String),
}

impl World {
    /// Takes in what a source tells; what must be compiled again.
    pub fn apply(&mut self, event: &Event) -> BTreeSet<Unit> {
        match event {
            Event::Applied(object) => self.replace(&object.key(), Some(object)),
            Event::Deleted(key) => self.replace(key, None),
            Event::Findings { .. } | Event::Observed { .. } | Event::Synced => BTreeSet::new(),
        }
    }

    fn replace(&mut self, key: &ObjectKey, new: Option<&Object>) -> BTreeSet<Unit> {
        let old = self.objects.get(key).cloned();
        if old.as_ref() == new {
            return BTreeSet::new();
        }
        let mut dirty = BTreeSet::new();
        let touched = |world: &Self, object: &Object, dirty: &mut BTreeSet<Unit>| {
            dirty.extend(world.touched_by(object).into_iter().map(Unit::Service));
            if let Object::Pod(Pod { node: Some(node), .. }) = object {
                dirty.insert(Unit::Node(node.clone()));
            }
        };
        if let Some(old) = &old {
            touched(self, old, &mut dirty);
        }
        for link in old.as_ref().map(links).unwrap_or_default() {
            if let Some(keys) = self.links.get_mut(&link) {
                keys.remove(key);
                if keys.is_empty() {
                    self.links.remove(&link);
                }
            }
        }
        self.objects.remove(key);
        if let Some(new) = new {
            for link in links(new) {
                self.links.entry(link).or_default().insert(key.clone());
            }
            self.objects.insert(key.clone(), new.clone());
            touched(self, new, &mut dirty);
        }
        dirty
    }

    /// The Services whose compiled form depends on this object.
    fn touched_by(&self, object: &Object) -> BTreeSet<ServiceKey> {
        match object {
            // Its labels may opt all its Services in.
            Object::Namespace(namespace) => {
                self.services_in(&namespace.name).flat_map(|service| self.with_neighbours(service.key())).collect()
            }
            Object::Node(_) => BTreeSet::new(),
            Object::Workload(workload) => {
                let selecting = self.services_in(&workload.namespace).filter(|s| s.selects(&workload.pod_labels));
                selecting.flat_map(|service| self.with_senders(service.key())).collect()
            }
            Object::Service(service) => self.with_neighbours(service.key()),
            Object::EndpointSlice(slice) => slice.service_key().map(|key| self.with_senders(key)).unwrap_or_default(),
            Object::Pod(pod) => {
                let served =
                    self.linked(Link::SliceOnPod(object.key())).filter_map(|slice| self.slice(slice)?.service_key());
                let selecting = self.services_in(&pod.namespace).filter(|service| service.selects(&pod.labels));
                let selecting = selecting.map(Service::key).filter(|key| self.slices_of(key).next().is_none());
                served.chain(selecting).flat_map(|service| self.with_senders(service)).collect()
            }
            // Its destinations too: which labels of their instances are asked for may change, and whether they are needed.
            Object::RouteRule(rule) => destinations(rule).chain([rule_service(rule)]).collect(),
            Object::CircuitPolicy(policy) => targets(&policy.metadata.namespace, &policy.spec.target_refs).collect(),
            Object::RetryPolicy(policy) => self
                .linked(Link::NamesRetryPolicy(object.key()))
                .filter_map(|key| self.route_rule(key).map(rule_service))
                .chain(targets(&policy.metadata.namespace, &policy.spec.target_refs))
                .collect(),
        }
    }

    /// The Service, and those whose rules send requests to it.
    fn with_senders(&self, service: ServiceKey) -> BTreeSet<ServiceKey> {
        let rules = self.rules_to(&service).map(rule_service).collect::<BTreeSet<_>>();
        rules.into_iter().chain([service]).collect()
    }

    /// The Service, those whose rules send requests to it, and those that its own rules send requests to: they are needed where
    /// it is opted in.
    fn with_neighbours(&self, service: ServiceKey) -> BTreeSet<ServiceKey> {
        let receivers: BTreeSet<_> = self.rules_of(&service).flat_map(destinations).collect();
        let mut all = self.with_senders(service);
        all.extend(receivers);
        all
    }

    /// The Services of a namespace.
    fn services_in(&self, namespace: &str) -> impl Iterator<Item = &Service> {
        let key =
            |name: &str| ObjectKey { kind: Kind::Service, namespace: namespace.to_owned(), name: name.to_owned() };
        let from = self.objects.range(key("")..);
        let namespace = namespace.to_owned();
        from.map_while(move |(_, object)| match object {
            Object::Service(service) if service.namespace == namespace => Some(service),
            _ => None,
        })
    }

    /// The labels of the Pods that a Service will have by what its namespace's workloads say. Where it has no EndpointSlice, as in a
    /// repository, the Pods that it selects count too.
    pub fn selected_labels(&self, service: &Service) -> impl Iterator<Item = &BTreeMap<String, String>> {
        let key = |kind| ObjectKey { kind, namespace: service.namespace.clone(), name: String::new() };
        let pods = self.slices_of(&service.key()).next().is_none().then_some(Kind::Pod);
        let kinds = [Kind::Deployment, Kind::StatefulSet, Kind::DaemonSet, Kind::Rollout];
        let of_kind = kinds.into_iter().chain(pods).flat_map(move |kind| {
            let range = self.objects.range(key(kind)..);
            range.take_while(move |(key, _)| key.kind == kind && key.namespace == service.namespace)
        });
        let labels = of_kind.filter_map(|(_, object)| match object {
            Object::Pod(pod) => Some(&pod.labels),
            Object::Workload(workload) => Some(&workload.pod_labels),
            _ => None,
        });
        labels.filter(|labels| service.selects(labels))
    }

    /// The Pods that run on a node, in order of their names.
    pub fn pods_on(&self, node: &str) -> impl Iterator<Item = &Pod> {
        self.linked(Link::PodOnNode(node.to_owned())).filter_map(|key| match self.objects.get(key) {
            Some(Object::Pod(pod)) => Some(pod),
            _ => None,
        })
    }

    /// Whether there is a node of this name.
    pub fn has_node(&self, name: &str) -> bool {
        let key = ObjectKey { kind: Kind::Node, namespace: String::new(), name: name.to_owned() };
        self.objects.contains_key(&key)
    }

    /// The rule or policy of this key.
    pub fn custom_object(&self, key: &ObjectKey) -> Option<&Object> {
        self.objects.get(key)
    }

    /// Every namespace that a rule is for or sends requests to.
    pub fn namespaces_named(&self) -> BTreeSet<String> {
        let named = self.links.keys().filter_map(|link| match link {
            Link::Rule(key) | Link::Destination(key) => Some(key.namespace.clone()),
            _ => None,
        });
        named.collect()
    }

    /// The rules that name this RetryPolicy.
    pub fn rules_naming<'a>(&'a self, policy: &ObjectKey) -> impl Iterator<Item = &'a RouteRule> + use<'a> {
        self.linked(Link::NamesRetryPolicy(policy.clone())).filter_map(|key| self.route_rule(key))
    }

    fn linked(&self, link: Link) -> impl Iterator<Item = &ObjectKey> {
        self.links.get(&link).into_iter().flatten()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// The Service of this name.
    pub fn service(&self, key: &ServiceKey) -> Option<&Service> {
        let key = ObjectKey { kind: Kind::Service, namespace: key.namespace.clone(), name: key.name.clone() };
        match self.objects.get(&key)? {
            Object::Service(service) => Some(service),
            _ => None,
        }
    }

    /// The Namespace of this name.
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        let key = ObjectKey { kind: Kind::Namespace, namespace: String::new(), name: name.to_owned() };
        match self.objects.get(&key)? {
            Object::Namespace(namespace) => Some(namespace),
            _ => None,
        }
    }

    /// The RetryPolicy of this name.
    pub fn retry_policy(&self, namespace: &str, name: &str) -> Option<&RetryPolicy> {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        match self.objects.get(&ObjectKey { kind: Kind::RetryPolicy, namespace, name })? {
            Object::RetryPolicy(policy) => Some(policy),
            _ => None,
        }
    }

    /// The retry policies, by name.
    pub fn retry_policies(&self) -> impl Iterator<Item = &RetryPolicy> {
        self.objects.values().filter_map(|object| match object {
            Object::RetryPolicy(policy) => Some(policy.as_ref()),
            _ => None,
        })
    }

    /// Whether some rule names the RetryPolicy of this name.
    pub fn is_named_by_a_rule(&self, namespace: &str, name: &str) -> bool {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        self.linked(Link::NamesRetryPolicy(ObjectKey { kind: Kind::RetryPolicy, namespace, name })).next().is_some()
    }

    /// Whether there are EndpointSlices in this namespace.
    pub fn has_slices(&self, namespace: &str) -> bool {
        let first = ObjectKey { kind: Kind::EndpointSlice, namespace: namespace.to_owned(), name: String::new() };
        let next = self.objects.range(first..).next();
        next.is_some_and(|(key, _)| key.kind == Kind::EndpointSlice && key.namespace == namespace)
    }

    /// Every Service that exists, and every one that some rule, policy or EndpointSlice is for.
    pub fn services(&self) -> BTreeSet<ServiceKey> {
        let named = self.links.keys().filter_map(|link| match link {
            Link::Rule(key) | Link::Policy(key) | Link::Slice(key) => Some(key.clone()),
            _ => None,
        });
        let existing = self.objects.values().filter_map(|object| match object {
            Object::Service(service) => Some(service.key()),
            _ => None,
        });
        existing.chain(named).collect()
    }

    /// The rules for requests to this Service, by name. Rules of other namespaces (consumer rules) are among them.
    pub fn rules_of<'a>(&'a self, service: &ServiceKey) -> impl Iterator<Item = &'a RouteRule> + use<'a> {
        self.linked(Link::Rule(service.clone())).filter_map(|key| self.route_rule(key))
    }

    /// The rules that send requests to this Service, whatever Service they are for.
    pub fn rules_to<'a>(&'a self, service: &ServiceKey) -> impl Iterator<Item = &'a RouteRule> + use<'a> {
        self.linked(Link::Destination(service.clone())).filter_map(|key| self.route_rule(key))
    }

    /// The circuit policies that target this Service or a part of it.
    pub fn circuit_policies_of<'a>(
        &'a self,
        service: &ServiceKey,
    ) -> impl Iterator<Item = &'a CircuitPolicy> + use<'a> {
        self.linked(Link::Policy(service.clone())).filter_map(|key| match self.objects.get(key) {
            Some(Object::CircuitPolicy(policy)) => Some(policy.as_ref()),
            _ => None,
        })
    }

    /// The retry policies that target this Service or a part of it.
    pub fn retry_policies_of<'a>(&'a self, service: &ServiceKey) -> impl Iterator<Item = &'a RetryPolicy> + use<'a> {
        self.linked(Link::Policy(service.clone())).filter_map(|key| match self.objects.get(key) {
            Some(Object::RetryPolicy(policy)) => Some(policy.as_ref()),
            _ => None,
        })
    }

    /// The parts of this Service's endpoints.
    pub fn slices_of<'a>(&'a self, service: &ServiceKey) -> impl Iterator<Item = &'a EndpointSlice> + use<'a> {
        self.linked(Link::Slice(service.clone())).filter_map(|key| self.slice(key))
    }

    /// The Pod of this name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Pod> {
        match self.objects.get(&pod_key(namespace, name))? {
            Object::Pod(pod) => Some(pod),
            _ => None,
        }
    }

    fn slice(&self, key: &ObjectKey) -> Option<&EndpointSlice> {
        match self.objects.get(key)? {
            Object::EndpointSlice(slice) => Some(slice),
            _ => None,
        }
    }

    fn route_rule(&self, key: &ObjectKey) -> Option<&RouteRule> {
        match self.objects.get(key)? {
            Object::RouteRule(rule) => Some(rule),
            _ => None,
        }
    }
}

/// The Service whose requests a rule is for.
pub fn rule_service(rule: &RouteRule) -> ServiceKey {
    let own = rule.metadata.namespace.as_deref().unwrap_or_default();
    ServiceKey {
        namespace: rule.spec.service_namespace.as_deref().unwrap_or(own).to_owned(),
        name: rule.spec.service.clone(),
    }
}

/// The Service that a destination of this rule names.
pub fn destination_service(rule: &RouteRule, to: &switchyard_crds::route_rule::Destination) -> ServiceKey {
    let own = rule.metadata.namespace.as_deref().unwrap_or_default();
    ServiceKey { namespace: to.namespace.as_deref().unwrap_or(own).to_owned(), name: to.service.clone() }
}

fn destinations(rule: &RouteRule) -> impl Iterator<Item = ServiceKey> {
    rule.spec.destinations.iter().map(|to| destination_service(rule, to))
}

fn targets(
    namespace: &Option<String>,
    refs: &[switchyard_crds::target::TargetRef],
) -> impl Iterator<Item = ServiceKey> {
    let namespace = namespace.clone().unwrap_or_default();
    refs.iter().map(move |target| ServiceKey { namespace: namespace.clone(), name: target.name.clone() })
}

fn pod_key(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey { kind: Kind::Pod, namespace: namespace.to_owned(), name: name.to_owned() }
}

/// All that an object has to do with others.
fn links(object: &Object) -> BTreeSet<Link> {
    match object {
        Object::Namespace(_) | Object::Node(_) | Object::Service(_) | Object::Workload(_) => BTreeSet::new(),
        Object::Pod(pod) => pod.node.clone().map(Link::PodOnNode).into_iter().collect(),
        Object::EndpointSlice(slice) => {
            let pods = slice.endpoints.iter().filter_map(|endpoint| endpoint.pod.as_deref());
            let pods = pods.map(|pod| Link::SliceOnPod(pod_key(&slice.namespace, pod)));
            pods.chain(slice.service_key().map(Link::Slice)).collect()
        }
        Object::RouteRule(rule) => {
            let named = rule.spec.retry_policy.as_ref().map(|name| {
                let namespace = rule.metadata.namespace.clone().unwrap_or_default();
                Link::NamesRetryPolicy(ObjectKey { kind: Kind::RetryPolicy, namespace, name: name.clone() })
            });
            let to = destinations(rule).map(Link::Destination);
            to.chain(named).chain([Link::Rule(rule_service(rule))]).collect()
        }
        Object::CircuitPolicy(policy) => {
            targets(&policy.metadata.namespace, &policy.spec.target_refs).map(Link::Policy).collect()
        }
        Object::RetryPolicy(policy) => {
            targets(&policy.metadata.namespace, &policy.spec.target_refs).map(Link::Policy).collect()
        }
    }
}
