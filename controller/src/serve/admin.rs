//! What the controller tells of itself over HTTP: `/healthz`, `/readyz`, `/metrics`, `/config`.

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Client;
use kube::api::{Api, PostParams};
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

/// What the kubelet asks, and the metrics for whoever the API server says may read them: the only pages that are not on loopback.
pub fn health(handle: Handle, client: Client) -> Router {
    let guarded = Router::new().route("/metrics", get(metrics)).with_state(handle.clone());
    let guarded = guarded.layer(axum::middleware::from_fn_with_state(client, may_read_metrics));
    let open = Router::new().route("/healthz", get(|| async { "ok\n" })).route("/readyz", get(ready));
    open.with_state(handle).merge(guarded)
}

/// Lets through whoever shows a token whose owner may `get` the path `/metrics`, as Kubernetes' own components do.
async fn may_read_metrics(State(client): State<Client>, request: Request, next: Next) -> Response {
    let token =
        request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let Some(token) = token.map(str::to_owned) else {
        return (StatusCode::UNAUTHORIZED, "a bearer token is needed\n").into_response();
    };
    match is_allowed(&client, token).await {
        Ok(true) => next.run(request).await,
        Ok(false) => (StatusCode::FORBIDDEN, "this token may not get /metrics\n").into_response(),
        Err(error) => {
            tracing::debug!(%error, "cannot ask whether a token may read metrics");
            (StatusCode::SERVICE_UNAVAILABLE, "the API server does not say who you are\n").into_response()
        }
    }
}

async fn is_allowed(client: &Client, token: String) -> kube::Result<bool> {
    let reviews: Api<TokenReview> = Api::all(client.clone());
    let spec = TokenReviewSpec { token: Some(token), audiences: None };
    let review = TokenReview { spec, ..TokenReview::default() };
    let status = reviews.create(&PostParams::default(), &review).await?.status.unwrap_or_default();
    let Some(user) = status.user.filter(|_| status.authenticated == Some(true)) else { return Ok(false) };
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    let path = NonResourceAttributes { path: Some("/metrics".to_owned()), verb: Some("get".to_owned()) };
    let spec = SubjectAccessReviewSpec {
        non_resource_attributes: Some(path),
        user: user.username,
        groups: user.groups,
        uid: user.uid,
        extra: user.extra,
        ..SubjectAccessReviewSpec::default()
    };
    let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
    Ok(reviews.create(&PostParams::default(), &review).await?.status.is_some_and(|status| status.allowed))
}

async fn ready(State(handle): State<Handle>) -> (StatusCode, &'static str) {
    match handle.snapshot() {
        Some(_) => (StatusCode::OK, "ok\n"),
        None => (StatusCode::SERVICE_UNAVAILABLE, "not all that exists has been read yet\n"),
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
    registry.register("bytes_sent", "Bytes of updates sent to agents", counters.bytes_sent.clone());
    registry.register("resources_rejected", "Resources that agents could not use", counters.resources_rejected.clone());
    registry.register("agents_refused", "Streams that were refused, by reason", handle.agents().refusals.family());
    let agents = handle.agents().all();
    let revision = handle.snapshot().map(|snapshot| snapshot.revision()).unwrap_or_default();
    let acked = agents.iter().map(|agent| agent.revision).min().unwrap_or_default();
    let instances = handle.agents().shared().borrow().instances;
    let findings = handle.findings();
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let gauges = [
        ("revision", "Revision that is published", revision as i64),
        ("revision_acked", "Revision that every connected agent has answered", acked as i64),
        ("agents", "Agents that are connected", agents.len() as i64),
        ("instances_failing", "Instances that some nodes see fail, as agents are told", instances as i64),
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
        // By policy.
        "instances": handle.agents().shared().borrow().shown,
    })
}
