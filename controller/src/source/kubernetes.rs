//! The API server as a source: a watch for each kind, all telling the same events as a folder does.
//!
//! Keeps true: `Synced` comes once every kind has been listed whole, and never before, so that a restart empties no agent. What
//! is lost while a watch is away is found out by the list that follows it: what it does not name any more is told as deleted. While
//! the API server is away nothing is told, and what is known stays.
//!
//! Objects are reduced as they come; of what an API server holds of a Pod, a hundredth is kept.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1 as core;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::ObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event as Watched};
use kube::{Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use switchyard_crds::findings::ObjectName;
use switchyard_crds::{CircuitPolicy, Custom, Finding, RetryPolicy, RouteRule};
use tokio::sync::mpsc;

use crate::object::{Kind, Object, ObjectKey};
use crate::source::{Event, Observed, typed};

/// One namespace, read once.
pub mod once;

/// Batches that may wait for the reader; a watch waits when they are not read.
const BATCHES: usize = 64;

/// Objects of a list that are told at once.
const CHUNK: usize = 500;

/// How many kinds are watched.
const KINDS: usize = 8;

/// Watches a cluster for as long as the receiver lives. Must be called within a runtime.
pub fn watch(client: &Client) -> mpsc::Receiver<Vec<Event>> {
    let (batches, receiver) = mpsc::channel(BATCHES);
    let start = Start { client, batches, unlisted: Arc::new(AtomicUsize::new(KINDS)) };
    start.built_in(Kind::Namespace, |namespace: core::Namespace, name, _| typed::namespace(namespace, name));
    start.built_in(Kind::Node, |_: core::Node, name, _| Object::Node(name.name.clone()));
    start.built_in(Kind::Service, typed::service);
    start.built_in(Kind::EndpointSlice, typed::endpoint_slice);
    start.built_in(Kind::Pod, |pod: core::Pod, name, _| typed::pod(pod, name));
    start.custom::<RouteRule>(Kind::RouteRule, |rule| Object::RouteRule(Arc::new(rule)));
    start.custom::<CircuitPolicy>(Kind::CircuitPolicy, |policy| Object::CircuitPolicy(Arc::new(policy)));
    start.custom::<RetryPolicy>(Kind::RetryPolicy, |policy| Object::RetryPolicy(Arc::new(policy)));
    receiver
}

/// What every watch needs to start.
struct Start<'a> {
    client: &'a Client,
    batches: mpsc::Sender<Vec<Event>>,
    /// Kinds that have not been listed whole yet.
    unlisted: Arc<AtomicUsize>,
}

impl Start<'_> {
    fn follow<K>(&self, api: Api<K>, follow: Follow<K>)
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let (batches, unlisted) = (self.batches.clone(), self.unlisted.clone());
        tokio::spawn(async move { follow.run(api, batches, unlisted).await });
    }

    /// Kubernetes' own kinds. What is wrong with one of its objects is nobody's to mend here: it is left out.
    fn built_in<K>(&self, kind: Kind, reduce: fn(K, &ObjectName, &mut Vec<Finding>) -> Object)
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let read = move |object: K| {
            let key = key_of(kind, &object);
            vec![Event::Applied(reduce(object, &key.object_name(), &mut Vec::new()))]
        };
        self.follow(Api::all(self.client.clone()), Follow::new(kind, Box::new(read)));
    }

    /// Our own kinds, read as `check` reads them: what is wrong is said, and what held before stays in force.
    fn custom<K: Custom + 'static>(&self, kind: Kind, wrap: fn(K) -> Object) {
        let read = move |object: DynamicObject| read_custom(kind, object, wrap);
        let resource: ApiResource = K::api_resource();
        self.follow(Api::all_with(self.client.clone(), &resource), Follow::new(kind, Box::new(read)));
    }
}

fn key_of<K: Resource>(kind: Kind, object: &K) -> ObjectKey {
    ObjectKey { kind, namespace: object.namespace().unwrap_or_default(), name: object.name_any() }
}

/// What is told of an object of ours: how it stands, what is wrong with it, and itself where it is in order.
fn read_custom<K: Custom>(kind: Kind, object: DynamicObject, wrap: fn(K) -> Object) -> Vec<Event> {
    let key = key_of(kind, &object);
    let origin = key.to_string();
    let observed = Observed {
        generation: object.metadata.generation.unwrap_or_default(),
        uid: object.metadata.uid.clone().unwrap_or_default(),
        status: object.data.get("status").cloned().unwrap_or_default(),
    };
    // What the API server writes with every change of status is no change of the object.
    let metadata = ObjectMeta {
        name: object.metadata.name.clone(),
        namespace: object.metadata.namespace.clone(),
        generation: object.metadata.generation,
        creation_timestamp: object.metadata.creation_timestamp.clone(),
        ..ObjectMeta::default()
    };
    let mut value = serde_json::json!({"metadata": metadata});
    for field in ["apiVersion", "kind"] {
        let types = object.types.as_ref();
        let text = types.map(|t| if field == "kind" { t.kind.clone() } else { t.api_version.clone() });
        value[field] = text.unwrap_or_default().into();
    }
    value["spec"] = object.data.get("spec").cloned().unwrap_or_default();
    let (read, findings) = switchyard_crds::parse::<K>(&value);
    let name = key.object_name();
    let is_refused = findings.iter().any(Finding::is_error);
    let findings = findings.into_iter().map(|finding| finding.about(&name)).collect();
    let mut events = vec![Event::Observed { key, observed }, Event::Findings { origin, findings }];
    events.extend(read.filter(|_| !is_refused).map(|object| Event::Applied(wrap(object))));
    events
}

/// One kind's watch.
struct Follow<K> {
    kind: Kind,
    read: Box<dyn Fn(K) -> Vec<Event> + Send + Sync>,
    /// What has been told of and not taken back.
    known: BTreeSet<ObjectKey>,
    /// What the list that is under way has named.
    listed: BTreeSet<ObjectKey>,
}

impl<K> Follow<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    fn new(kind: Kind, read: Box<dyn Fn(K) -> Vec<Event> + Send + Sync>) -> Self {
        Self { kind, read, known: BTreeSet::new(), listed: BTreeSet::new() }
    }

    async fn run(mut self, api: Api<K>, batches: mpsc::Sender<Vec<Event>>, unlisted: Arc<AtomicUsize>) {
        let mut watched = watcher::watcher(api, watcher::Config::default()).default_backoff().boxed();
        let mut pending = Vec::new();
        let mut is_first = true;
        while let Some(event) = watched.next().await {
            let is_whole = matches!(event, Ok(Watched::InitDone));
            match event {
                Ok(event) => {
                    let is_part = matches!(event, Watched::InitApply(_));
                    pending.extend(self.take(event));
                    if is_part && pending.len() < CHUNK {
                        continue;
                    }
                }
                Err(error) => {
                    tracing::warn!(kind = ?self.kind, %error, "cannot watch; what is known stays in force");
                    continue;
                }
            }
            if is_whole && std::mem::take(&mut is_first) && unlisted.fetch_sub(1, Ordering::AcqRel) == 1 {
                pending.push(Event::Synced);
            }
            if !pending.is_empty() && batches.send(std::mem::take(&mut pending)).await.is_err() {
                return;
            }
        }
    }

    fn take(&mut self, event: Watched<K>) -> Vec<Event> {
        match event {
            Watched::Init => {
                self.listed.clear();
                Vec::new()
            }
            Watched::InitApply(object) => {
                self.listed.insert(key_of(self.kind, &object));
                self.applied(object)
            }
            Watched::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                let gone = self.known.difference(&listed).cloned().map(Event::Deleted).collect();
                self.known = listed;
                gone
            }
            Watched::Apply(object) => self.applied(object),
            Watched::Delete(object) => {
                let key = key_of(self.kind, &object);
                self.known.remove(&key);
                vec![Event::Deleted(key)]
            }
        }
    }

    fn applied(&mut self, object: K) -> Vec<Event> {
        self.known.insert(key_of(self.kind, &object));
        (self.read)(object)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str) -> core::Pod {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop"}})).unwrap()
    }

    fn told(events: &[Event]) -> Vec<String> {
        let words = |event: &Event| match event {
            Event::Applied(object) => format!("+{}", object.key().name),
            Event::Deleted(key) => format!("-{}", key.name),
            other => format!("{other:?}"),
        };
        events.iter().map(words).collect()
    }

    fn pods() -> Follow<core::Pod> {
        let read = |pod: core::Pod| {
            let name = key_of(Kind::Pod, &pod).object_name();
            vec![Event::Applied(typed::pod(pod, &name))]
        };
        Follow::new(Kind::Pod, Box::new(read))
    }

    #[test]
    fn what_a_list_does_not_name_any_more_is_gone_and_only_once_it_is_whole() {
        let mut follow = pods();
        let first = [Watched::Init, Watched::InitApply(pod("a")), Watched::InitApply(pod("b")), Watched::InitDone];
        let events: Vec<_> = first.into_iter().flat_map(|event| follow.take(event)).collect();
        assert_eq!(told(&events), ["+a", "+b"]);
        // A list that breaks off and is begun again takes nothing away.
        let broken = [Watched::Init, Watched::InitApply(pod("b")), Watched::Init, Watched::InitApply(pod("c"))];
        let events: Vec<_> = broken.into_iter().flat_map(|event| follow.take(event)).collect();
        assert_eq!(told(&events), ["+b", "+c"]);
        assert_eq!(told(&follow.take(Watched::InitDone)), ["-a", "-b"]);
        assert_eq!(told(&follow.take(Watched::Delete(pod("c")))), ["-c"]);
    }

    #[test]
    fn an_object_that_is_refused_is_told_of_and_not_applied() {
        let object = |weight: i32| {
            serde_json::from_value::<DynamicObject>(json!({
                "apiVersion": "switchyard.dev/v1alpha1", "kind": "RouteRule",
                "metadata": {"name": "r", "namespace": "shop", "generation": 7, "uid": "u", "resourceVersion": "1"},
                "spec": {"service": "a", "destinations": [{"service": "a", "weight": weight}]},
                "status": {"conditions": []},
            }))
            .unwrap()
        };
        let read =
            |weight| read_custom::<RouteRule>(Kind::RouteRule, object(weight), |r| Object::RouteRule(Arc::new(r)));
        let events = read(-1);
        assert!(matches!(&events[0], Event::Observed { observed, .. } if observed.generation == 7));
        assert!(
            matches!(&events[1], Event::Findings { findings, .. } if findings[0].field == "spec.destinations[0].weight")
        );
        assert_eq!(events.len(), 2);
        let events = read(1);
        assert!(matches!(&events[1], Event::Findings { findings, .. } if findings.is_empty()));
        assert!(matches!(&events[2], Event::Applied(Object::RouteRule(rule)) if rule.metadata.generation == Some(7)));
    }
}
