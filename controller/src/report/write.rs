//! Status and events, written to the API server by the controller that leads.
//!
//! Keeps true: a status is written when it says something else than the one that is there, and not more often than its object
//! changes or agents answer; what fails is tried again, later each time. Server-side apply under a name of our own: nobody else's
//! fields are touched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, CustomResourceExt as _};
use serde_json::{Value, json};
use switchyard_crds::circuit_policy::{CircuitStatus, InstanceStatus};
use switchyard_crds::{CircuitPolicy, RetryPolicy, RouteRule};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::compile::qualified;
use crate::object::{Kind, ObjectKey};
use crate::report::{InForce, Traffic, status};
use crate::run::Handle;
use crate::standing::{Standing, Standings};

/// Whose fields these are.
const MANAGER: &str = "switchyard-controller";

/// Changes that come within this time of one another are one look.
const GATHER: Duration = Duration::from_millis(50);

/// Who has just begun to lead waits this long for the agents to come to it, before it says how many there are.
const SETTLE: Duration = Duration::from_secs(3);

/// The first wait after a failure, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// Patches under way at a time.
const AT_ONCE: usize = 8;

/// Writes for as long as there is a controller.
pub async fn run(client: Client, handle: Handle, mut leads: watch::Receiver<bool>, instance: String) {
    let reporter = Reporter { controller: MANAGER.to_owned(), instance: Some(instance) };
    let recorder = Recorder::new(client.clone(), reporter);
    let mut writer =
        Writer { client, recorder, settled: BTreeMap::new(), written: BTreeMap::new(), failed: BTreeMap::new() };
    let (mut standings, mut agents) = (handle.standings(), handle.agents().changes());
    loop {
        if leads.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        tokio::time::sleep(SETTLE).await;
        // Somebody else may have written meanwhile.
        writer.written.clear();
        writer.settled.clear();
        while *leads.borrow() {
            let newest = standings.borrow_and_update().clone();
            agents.mark_unchanged();
            let in_force = InForce { published: handle.routes(), agents: handle.agents().views(&handle.routes()) };
            let instances = handle.agents().shared().borrow().clone();
            let again = writer.write(&newest, &in_force, &handle.agents().circuits(), &instances.shown).await;
            tokio::select! {
                changed = standings.changed() => if changed.is_err() { return },
                changed = agents.changed() => if changed.is_err() { return },
                _ = leads.changed() => continue,
                () = tokio::time::sleep_until(again) => {}
            }
            tokio::time::sleep(GATHER).await;
        }
    }
}

struct Writer {
    client: Client,
    recorder: Recorder,
    /// What is in force on all of so many agents, and says so: for as long as it stands the same there is nothing to look at.
    settled: BTreeMap<ObjectKey, (Arc<Standing>, usize)>,
    /// What was written last and has not been seen to come back yet, with the generation and identity that it is for.
    written: BTreeMap<ObjectKey, (String, Value)>,
    /// What failed: how often, and when to try again.
    failed: BTreeMap<ObjectKey, (u32, Instant)>,
}

impl Writer {
    /// Writes what is not as it should be; when to look again at the latest.
    async fn write(
        &mut self,
        standings: &Standings,
        in_force: &InForce,
        circuits: &BTreeMap<String, Vec<CircuitStatus>>,
        instances: &BTreeMap<String, Vec<InstanceStatus>>,
    ) -> Instant {
        let now = Instant::now();
        let time = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        self.settled.retain(|key, _| standings.contains_key(key));
        self.written.retain(|key, _| standings.contains_key(key));
        self.failed.retain(|key, _| standings.contains_key(key));
        let mut due = Vec::new();
        for (key, standing) in standings {
            let name = qualified(&key.object_name());
            let of_it = Traffic {
                circuits: circuits.get(&name).map(Vec::as_slice).unwrap_or_default(),
                instances: instances.get(&name).map(Vec::as_slice).unwrap_or_default(),
            };
            let is_everywhere = of_it.is_well() && in_force.lacking(standing).is_empty();
            let is_same = |(before, agents): &(Arc<Standing>, usize)| {
                Arc::ptr_eq(before, standing) && *agents == in_force.agents.len()
            };
            if is_everywhere && self.settled.get(key).is_some_and(is_same) {
                continue;
            }
            let kept = standing;
            // What was written stands, even before the watch has brought it back.
            let mut standing = Standing::clone(standing);
            if let Some((uid, written)) = self.written.get(key) {
                if *written == standing.observed.status {
                    self.written.remove(key);
                } else if *uid == standing.observed.uid {
                    standing.observed.status = written.clone();
                }
            }
            let wanted = status(key, &standing, in_force, of_it, &time);
            let waits = self.failed.get(key).is_some_and(|(_, again)| *again > now);
            if is_everywhere && wanted == kept.observed.status {
                self.settled.insert(key.clone(), (kept.clone(), in_force.agents.len()));
            } else {
                self.settled.remove(key);
            }
            if wanted != standing.observed.status && !waits {
                due.push((key.clone(), standing, wanted));
            }
        }
        let patches: Vec<_> =
            due.iter().map(|(key, _, wanted)| patch(self.client.clone(), key.clone(), wanted.clone())).collect();
        let results: Vec<_> = stream::iter(patches).buffered(AT_ONCE).collect().await;
        for ((key, standing, wanted), result) in due.into_iter().zip(results) {
            match result {
                Ok(()) => {
                    self.failed.remove(&key);
                    self.tell(&key, &standing, &wanted).await;
                    self.written.insert(key, (standing.observed.uid.clone(), wanted));
                }
                // It is gone, and its watch will say so.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => {
                    tracing::warn!(object = %key, %error, "cannot write the status");
                    let (failures, _) = self.failed.get(&key).copied().unwrap_or((0, now));
                    let wait = BACKOFF.0.saturating_mul(1 << failures.min(10)).min(BACKOFF.1);
                    self.failed.insert(key, (failures + 1, Instant::now() + wait));
                }
            }
        }
        let soonest = self.failed.values().map(|(_, again)| *again).min();
        soonest.unwrap_or(now + Duration::from_secs(600))
    }

    /// Events for what its author should notice: taken, refused, in conflict.
    async fn tell(&self, key: &ObjectKey, standing: &Standing, wanted: &Value) {
        let word = |status: &Value, kind: &str| {
            let conditions = status.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
            let condition = conditions.into_iter().find(|c| c["type"] == kind)?;
            let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
            Some((text("status"), text("reason"), text("message")))
        };
        let news = BTreeSet::from(["Accepted", "Conflicted"]).into_iter().filter_map(|kind| {
            let (status, reason, message) = word(wanted, kind)?;
            let before = word(&standing.observed.status, kind).map(|(status, ..)| status);
            // That nothing is in conflict is news only after a conflict.
            let is_news = before.as_deref() != Some(&status) && (before.is_some() || reason != "NoConflict");
            let is_bad = (kind == "Accepted") != (status == "True");
            is_news.then_some((if is_bad { EventType::Warning } else { EventType::Normal }, reason, message))
        });
        let reference = ObjectReference {
            api_version: Some("switchyard.dev/v1alpha1".to_owned()),
            kind: Some(format!("{:?}", key.kind)),
            namespace: Some(key.namespace.clone()),
            name: Some(key.name.clone()),
            uid: Some(standing.observed.uid.clone()),
            ..ObjectReference::default()
        };
        for (type_, reason, message) in news {
            let note = Some(message.chars().take(1000).collect());
            let event = Event { type_, reason, note, action: "Reconcile".to_owned(), secondary: None };
            if let Err(error) = self.recorder.publish(&event, &reference).await {
                tracing::debug!(object = %key, %error, "cannot publish an event");
            }
        }
    }
}

async fn patch(client: Client, key: ObjectKey, status: Value) -> kube::Result<()> {
    let resource: ApiResource = match key.kind {
        Kind::RouteRule => RouteRule::api_resource(),
        Kind::CircuitPolicy => CircuitPolicy::api_resource(),
        _ => RetryPolicy::api_resource(),
    };
    let api: Api<DynamicObject> = Api::namespaced_with(client, &key.namespace, &resource);
    let object = json!({"apiVersion": resource.api_version, "kind": resource.kind, "status": status});
    let params = PatchParams::apply(MANAGER).force();
    api.patch_status(&key.name, &params, &Patch::Apply(object)).await.map(drop)
}
