//! What the chart lets the controller do is what it does, no more and no less.
//!
//! The API server writes down each of the controller's requests (its audit log), and refuses what no role allows. So one run tells
//! of every right: nothing was refused, therefore the roles suffice; and each right was used, therefore without any one of them the
//! request that used it would have been refused. What those requests are for is looked at as well: status, events, certificates,
//! the lease, an agent that is let in, metrics.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use http::Method;
use serde_json::Value;
use switchyard_tests::client;
use switchyard_tests::cluster::Cluster;
use switchyard_tests::process::{Controller, Switchyard, example};
use switchyard_tests::wait_for;

const CONTROLLER: &str = "switchyard-controller";

/// Waits until this of an object is there and not empty.
async fn has(cluster: &Cluster, kind: &str, name: &str, pointer: &str) {
    let what = format!("{kind} {name} has {pointer}");
    wait_for(&what, async || {
        let output = cluster.try_kubectl(&["get", "-n", "switchyard", kind, name, "-o", "json"]);
        let object: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        object.pointer(pointer).is_some_and(|value| value.as_str().is_none_or(|text| !text.is_empty()))
    })
    .await;
}

/// Events of a reason, with how often each was seen.
fn events(cluster: &Cluster, reason: &str) -> Vec<u64> {
    let selector = format!("reason={reason}");
    let all =
        cluster.kubectl(&["get", "events.events.k8s.io", "-n", "shop", "--field-selector", &selector, "-o", "json"]);
    let all: Value = serde_json::from_str(&all).unwrap();
    all["items"].as_array().unwrap().iter().map(|event| event["series"]["count"].as_u64().unwrap_or(1)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_controllers_rights_are_those_it_uses_and_no_others() {
    let Some(cluster) = Cluster::start().await else { return };
    let templates = ["controller/identity.yaml", "controller/rbac.yaml", "admission/webhook.yaml"];
    let templates = templates.map(|template| format!("templates/{template}"));
    cluster.apply(&cluster.rendered(&templates.each_ref().map(String::as_str), &[]));
    let token = cluster.kubectl(&["create", "token", "-n", "switchyard", CONTROLLER]);
    let kubeconfig = cluster.kubeconfig_of("controller", token.trim());
    let controller = Controller::with_rights(&kubeconfig, "one").await;

    // Certificates, and who is told of them; who leads.
    has(&cluster, "secret", "switchyard-controller-tls", "/data/ca.key").await;
    has(&cluster, "configmap", "switchyard-controller-ca", "/data/ca.crt").await;
    has(&cluster, "validatingwebhookconfiguration", CONTROLLER, "/webhooks/0/clientConfig/caBundle").await;
    has(&cluster, "lease", CONTROLLER, "/spec/holderIdentity").await;
    let renewed = || cluster.get("switchyard", "lease", CONTROLLER)["spec"]["renewTime"].clone();
    let first = renewed();
    wait_for("the lease is renewed", async || renewed() != first).await;

    // An agent is let in, and what it has in force stands in the status of each kind.
    let token = cluster.node("first");
    let agent = Switchyard::of_node(&cluster, &[&controller], "first", &token).await;
    cluster.service("my-service", &["v1", "v2"]);
    for file in ["canary/canary-deployment.yaml", "circuit/circuit.yaml", "retry/retry.yaml"] {
        cluster.apply_file(&example("").join(file));
    }
    for kind in ["routerule", "circuitpolicy", "retrypolicy"] {
        cluster.kubectl(&["wait", "-n", "shop", kind, "--all", "--for=condition=Ready", "--timeout=60s"]);
    }
    agent.splits(20, 80).await;

    // Events: a new one, and one that is seen again.
    assert!(!events(&cluster, "Accepted").is_empty());
    let path = |value: &str| {
        let patch = format!(
            "{{\"spec\": {{\"matches\": [{{\"path\": {{\"type\": \"RegularExpression\", \"value\": \"{value}\"}}}}]}}}}"
        );
        cluster.kubectl(&["patch", "routerule", "-n", "shop", "canary-deployment", "--type=merge", "-p", &patch]);
    };
    for value in ["/(x", "/x", "/(x"] {
        path(value);
        let status = if value == "/x" { "True" } else { "False" };
        let accepted = format!("--for=condition=Accepted={status}");
        cluster.kubectl(&["wait", "-n", "shop", "routerule/canary-deployment", &accepted, "--timeout=60s"]);
    }
    wait_for("an event is seen again", async || events(&cluster, "Invalid").iter().any(|count| *count > 1)).await;

    // Metrics, for who may read them.
    let mut request = client::get_request("controller", "/metrics");
    *request.method_mut() = Method::GET;
    request.headers_mut().insert("authorization", "Bearer secret".parse().unwrap());
    assert_eq!(client::ask(controller.health.unwrap(), request).await.unwrap().status, 200);

    let (used, refused) = cluster.audited();
    assert_eq!(refused, BTreeSet::new(), "what the chart's roles do not allow");
    let granted = cluster.granted(CONTROLLER);
    assert_eq!(
        used.difference(&granted).collect::<Vec<_>>(),
        Vec::<&_>::new(),
        "allowed by other roles than the chart's"
    );
    assert_eq!(granted.difference(&used).collect::<Vec<_>>(), Vec::<&_>::new(), "allowed, and never used");
}
