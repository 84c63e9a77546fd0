//! What the controller tells of itself over HTTP: `/healthz`, `/readyz`, `/metrics`, `/config`.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use switchyard_crds::Severity;

use crate::run::Handle;

/// The pages, for a server to serve.
pub fn router(handle: Handle) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/config", get(async |State(handle): State<Handle>| Json(config(&handle))))
        .with_state(handle)
}

async fn ready(State(handle): State<Handle>) -> (StatusCode, &'static str) {
    match handle.snapshot() {
        Some(_) => (StatusCode::OK, "ok\n"),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the manifests have not been read yet\n"),
    }
}

async fn metrics(State(handle): State<Handle>) -> impl IntoResponse {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = encode(&mut text, &registry(&handle));
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
}

fn registry(handle: &Handle) -> Registry {
    let mut registry = Registry::with_prefix("switchyard_controller");
    let counters = &handle.agents().counters;
    registry.register("updates_sent", "Updates sent to agents", counters.updates_sent.clone());
    registry.register("resources_sent", "Resources sent to agents", counters.resources_sent.clone());
    registry.register("resources_rejected", "Resources that agents could not use", counters.resources_rejected.clone());
    let agents = handle.agents().all();
    let revision = handle.snapshot().map(|snapshot| snapshot.revision()).unwrap_or_default();
    let acked = agents.iter().map(|agent| agent.revision).min().unwrap_or_default();
    let findings = handle.findings();
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let gauges = [
        ("revision", "Revision that is published", revision as i64),
        ("revision_acked", "Revision that every connected agent has answered", acked as i64),
        ("agents", "Agents that are connected", agents.len() as i64),
        ("errors", "Findings that keep an object or a file out", count(Severity::Error) as i64),
        ("warnings", "Findings that let an object pass", count(Severity::Warning) as i64),
    ];
    for (name, help, value) in gauges {
        let gauge = Gauge::<i64>::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    }
    registry
}

fn config(handle: &Handle) -> Value {
    let snapshot = handle.snapshot();
    let resources = snapshot.iter().flat_map(|snapshot| snapshot.resources());
    let resources = resources.map(|(key, resource)| (key.to_string(), Value::from(resource.version.clone())));
    let agents = handle.agents().all().into_iter().map(|agent| {
        let rejected = agent.rejected.into_iter().map(|(key, why)| (key.to_string(), Value::from(why)));
        json!({
            "node": agent.node,
            "build": agent.build,
            "revision": agent.revision,
            "rejected": rejected.collect::<serde_json::Map<_, _>>(),
        })
    });
    json!({
        "revision": snapshot.as_ref().map(|snapshot| snapshot.revision()),
        "resources": resources.collect::<serde_json::Map<_, _>>(),
        "agents": agents.collect::<Vec<_>>(),
        "findings": handle.findings(),
    })
}
