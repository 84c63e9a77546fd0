//! What people and monitoring ask of an agent, over HTTP on an address of its own: `/healthz`, `/readyz`, `/metrics`, `/config`,
//! `/circuits`, `/explain`. Everything is read; nothing can be changed here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use switchyard_proto::v1;

use crate::admit::breaker::{self, Others};
use crate::clock;
use crate::explain::Asked;
use crate::subscribe::Link;
use crate::table::{Destination, Rule};
use crate::transitions::shown;
use crate::worker::Shared;

/// The metrics, collected when they are asked for.
mod metrics;

/// What the admin endpoints read.
#[derive(Debug, Clone)]
pub struct Admin {
    /// The agent.
    pub shared: Arc<Shared>,
    /// How it stands with its controller.
    pub link: Arc<Link>,
}

/// The endpoints.
pub fn router(admin: Admin) -> Router {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(metrics::Collector(admin.clone())));
    let registry = Arc::new(registry);
    Router::new()
        .route("/healthz", get(healthy))
        .route("/readyz", get(ready))
        .route("/metrics", get(move || metrics::text(Arc::clone(&registry))))
        .route("/config", get(config))
        .route("/circuits", get(circuits))
        .route("/explain", post(explain))
        .with_state(admin)
}

/// A worker that is stuck keeps connections from being taken in until the agent is started again.
async fn healthy(State(admin): State<Admin>) -> (StatusCode, String) {
    let now = admin.shared.runtime.millis(clock::now());
    match admin.shared.interception.as_ref().and_then(|interception| interception.pulse.stuck(now)) {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(worker) => (StatusCode::SERVICE_UNAVAILABLE, format!("worker {worker} does not answer\n")),
    }
}

async fn ready(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    if admin.link.ready.load(Relaxed) {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no configuration yet: the controller has sent none, and none was saved\n")
    }
}

async fn config(State(admin): State<Admin>) -> Response {
    let table = admin.shared.table.load();
    let services: Vec<Value> = table
        .services()
        .map(|service| {
            let ports: Vec<Value> =
                service.ports.iter().map(|p| json!({"port": p.number, "protocol": protocol(p.protocol)})).collect();
            let rules: Vec<Value> = service.rules.iter().map(rule).collect();
            let order: Vec<Value> = service
                .entries
                .iter()
                .map(|entry| json!({"rule": &*service.rule(Some(entry.rule)).name, "match": entry.to_string()}))
                .collect();
            json!({
                "service": &*service.label,
                "ports": ports,
                "addresses": service.cluster_ips,
                "intercepted": service.intercepted,
                "rules": rules,
                "order": order,
                "default": rule(&service.default_rule)["destinations"],
            })
        })
        .collect();
    let workloads: BTreeMap<String, Value> = table
        .addresses
        .workloads()
        .map(|w| {
            let shown = json!({"addresses": w.addresses, "serviceAccount": w.service_account, "labels": w.labels});
            (format!("{}/{}", w.namespace, w.name), shown)
        })
        .collect();
    pretty(&json!({
        "revision": table.revision,
        "connected": admin.link.connected.load(Relaxed),
        "services": services,
        "workloads": workloads,
    }))
}

fn protocol(protocol: v1::Protocol) -> &'static str {
    match protocol {
        v1::Protocol::Unspecified => "as the caller",
        v1::Protocol::Http1 => "http",
        v1::Protocol::Http2 => "h2c",
        v1::Protocol::Tcp => "tcp",
    }
}

fn rule(rule: &Rule) -> Value {
    let destinations: Vec<Value> = rule.destinations.iter().map(destination).collect();
    json!({
        "rule": &*rule.name,
        "destinations": destinations,
        "timeouts": {
            "requestMs": rule.request_timeout.map(|t| t.as_millis()),
            "backendRequestMs": rule.try_timeout.map(|t| t.as_millis()),
        },
        "stickiness": rule.stickiness.as_ref().map(ToString::to_string),
        "filters": rule.filters.as_ref().map(|filters| filters.words()),
        "whenUnavailable": if rule.fail_when_unavailable { "Fail" } else { "Redistribute" },
    })
}

fn destination(destination: &Destination) -> Value {
    let instances: Vec<Vec<Value>> = destination
        .ports
        .iter()
        .map(|port| {
            let instances = port.ready.iter();
            instances.map(|i| json!({"address": i.address, "name": &*i.name, "version": &*i.version})).collect()
        })
        .collect();
    // For instances of which some have a policy of their own: the first one's.
    let held = destination.ports.iter().flat_map(|port| &port.ready).find_map(|i| i.retry.as_deref());
    let policy = held.or(destination.retry.as_deref());
    json!({
        "service": &*destination.service,
        "version": &*destination.version,
        "weight": destination.weight,
        "isFallback": destination.is_fallback,
        "retryPolicy": policy.map(|r| &*r.name),
        "filters": destination.filters.as_ref().map(|filters| filters.words()),
        // One list per port of the routed Service.
        "instances": instances,
    })
}

/// What would become of a request, by the table in force and the circuits as they are.
async fn explain(State(admin): State<Admin>, Json(asked): Json<Asked>) -> Response {
    let now = admin.shared.runtime.millis(clock::now());
    match asked.answer(&admin.shared.table.load(), now) {
        Ok(answer) => Json(answer).into_response(),
        Err(why) => (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response(),
    }
}

async fn circuits(State(admin): State<Admin>) -> Response {
    let now = admin.shared.runtime.millis(clock::now());
    let wall = clock::unix_millis();
    let all: Vec<Value> = admin
        .shared
        .runtime
        .circuits()
        .iter()
        .map(|circuit| {
            let state = circuit.breaker.state();
            let counts = circuit.breaker.counts(&circuit.settings.breaker, now);
            let latest = admin.shared.transitions.of(&circuit.service.to_string(), &circuit.target);
            let held = circuit.held(now);
            let until = match state {
                breaker::State::Open { until } if held.is_none() => Some(until.since(now)),
                _ => None,
            };
            let unix = |ms: u64| wall.saturating_add(i64::try_from(ms).unwrap_or(i64::MAX));
            let limit = held.and_then(|held| held.until).map(|until| unix(until.since(now)));
            let others = circuit.breaker.others();
            let checks = admin.shared.checks.of(&circuit.service.to_string(), &circuit.target);
            json!({
                "service": circuit.service.to_string(),
                "target": circuit.target,
                "scope": if circuit.settings.whole_destination { "Destination" } else { "Instance" },
                "policy": &*circuit.settings.name,
                "state": shown(state, held),
                "held": held.map(|_| json!({"note": circuit.settings.hold.as_ref().map(|h| &*h.note), "untilUnixMs": limit})),
                "keptIn": held.is_none() && circuit.breaker.is_kept_in(),
                "reason": latest.as_ref().map(|l| l.reason.clone()),
                "sinceUnixMs": latest.as_ref().map(|l| l.since_ms),
                "healthCheck": checks.map(|checks| json!({
                    "unhealthy": circuit.breaker.is_unhealthy(),
                    "good": checks.good,
                    "failed": checks.failed,
                    "lastFailure": checks.last_failure.map(|failed| failed.why),
                })),
                "others": (others != Others::default()).then(|| json!({"failing": others.failing, "asked": others.asked})),
                "probesInMs": until,
                "probesAtUnixMs": until.map(unix),
                "window": {"requests": counts.total, "failed": counts.failed, "slow": counts.slow},
            })
        })
        .collect();
    pretty(&Value::Array(all))
}

/// JSON that a person can read as well.
fn pretty(value: &Value) -> Response {
    match serde_json::to_string_pretty(value) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text + "\n").into_response(),
        Err(_) => Json(Value::Null).into_response(),
    }
}
