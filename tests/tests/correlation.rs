//! What several nodes see of an instance: put together, shown, and handed down.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http::Response;
use serde_json::{Value, json};
use switchyard_tests::backend::{Backend, Server};
use switchyard_tests::client::{self, full, get_request};
use switchyard_tests::manifests::{HOST, Manifests, circuit, rule};
use switchyard_tests::process::{Controller, Switchyard};
use switchyard_tests::wait_for;

/// A policy for one version of the Service. Its window is as long as any test, so that none depends on how long things take.
fn policy(version: &str, rest: &str) -> String {
    circuit(&format!("  window: 10m\n  timeout: 10m\n{rest}"))
        .replace("name: circuit", &format!("name: {version}"))
        .replace("name: my-service}", &format!("name: my-service, version: {version}}}"))
}

/// A rule that leads what begins with a version to that version.
fn rule_to(version: &str, rest: &str) -> String {
    rule(
        version,
        &format!(
            "  matches: [{{path: {{value: /{version}}}}}]\n  destinations: [{{service: my-service, version: {version}}}]\n{rest}"
        ),
    )
}

async fn status(agent: &Switchyard, path: &str) -> u16 {
    client::ask(agent.http, get_request(HOST, path)).await.unwrap().status.as_u16()
}

async fn statuses(agent: &Switchyard, path: &str, times: usize) -> Vec<u16> {
    let mut all = Vec::new();
    for _ in 0..times {
        all.push(status(agent, path).await);
    }
    all
}

/// What an agent was told of how others find an instance.
async fn others(agent: &Switchyard, instance: SocketAddr) -> Value {
    agent.circuit_of(instance).await.map_or(Value::Null, |circuit| circuit["others"].clone())
}

async fn others_are(agent: &Switchyard, instance: SocketAddr, wanted: Value) {
    let mut seen = Value::Null;
    let what = format!("others see it so: {wanted}");
    wait_for(&what, async || {
        let now = others(agent, instance).await;
        if now != seen {
            // For whoever sees the test fail.
            println!("others: {now}");
            seen = now;
        }
        seen == wanted
    })
    .await;
}

/// What the controller shows of the instances of a policy.
async fn shown(controller: &Controller, policy: &str) -> Vec<String> {
    let config = controller.config().await;
    let instances = config["instances"][format!("shop/{policy}")].as_array().cloned().unwrap_or_default();
    instances.iter().map(|instance| instance["message"].as_str().unwrap().to_owned()).collect()
}

async fn is_shown(controller: &Controller, policy: &str, message: &str) {
    wait_for(message, async || shown(controller, policy).await == [message]).await;
}

async fn agents(controller: &Controller, count: usize) -> Vec<Switchyard> {
    let mut agents = Vec::new();
    for number in 0..count {
        agents.push(Switchyard::agent_of(controller.agents, &format!("n{number}")).await);
    }
    agents
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_three_nodes_see_fail_opens_at_the_fourth_with_its_first_own_failure_unless_the_policy_says_otherwise() {
    let (v1, v2) = (Backend::start("v1").await, Backend::start("v2").await);
    let manifests = Manifests::of(&[("v1", v1.address), ("v2", v2.address)]);
    manifests.write("rules.yaml", &[rule_to("v1", ""), rule_to("v2", "")].join("---\n"));
    manifests.write("circuits.yaml", &[policy("v1", ""), policy("v2", "  correlation: Disabled\n")].join("---\n"));
    let controller = Controller::start(manifests.path(), "127.0.0.1:0".parse().unwrap()).await;
    let agents = agents(&controller, 4).await;
    for agent in &agents {
        assert_eq!((status(agent, "/v1").await, status(agent, "/v2").await), (200, 200));
    }
    v1.fail();
    v2.fail();
    // Each of two: what one sees changes nothing for the other, so it takes all five.
    for agent in &agents[..2] {
        assert_eq!(statuses(agent, "/v1", 5).await, [500; 5]);
        assert_eq!(agent.circuit_of(v1.address).await.unwrap()["reason"], "5 failures in a row");
    }
    for agent in &agents[2..] {
        others_are(agent, v1.address, json!({"failing": 2, "asked": 3})).await;
    }
    // Another sees it too.
    assert_eq!(statuses(&agents[2], "/v1", 2).await, [500; 2]);
    others_are(&agents[3], v1.address, json!({"failing": 3, "asked": 3})).await;
    for agent in &agents[..3] {
        assert_eq!(statuses(agent, "/v2", 5).await, [500; 5]);
    }
    let circuit = async |agent: usize, instance: SocketAddr| agents[agent].circuit_of(instance).await.unwrap();
    assert_eq!(circuit(3, v1.address).await["state"], "closed", "nothing that others see opens it");

    assert_eq!((status(&agents[3], "/v1").await, status(&agents[3], "/v1").await), (500, 503));
    let opened = circuit(3, v1.address).await;
    assert_eq!(opened["reason"], "1 failure (of 5; 3 of 3 other nodes see it fail)");
    is_shown(&controller, "v1", "all 4 nodes see it fail: look at the instance").await;

    // Of the other policy nobody was told anything, by then or later.
    assert_eq!(statuses(&agents[3], "/v2", 4).await, [500; 4]);
    assert_eq!(circuit(3, v2.address).await["state"], "closed");
    assert_eq!(others(&agents[3], v2.address).await, Value::Null);
    assert_eq!(status(&agents[3], "/v2").await, 500);
    assert_eq!(circuit(3, v2.address).await["reason"], "5 failures in a row");
    assert_eq!(shown(&controller, "v2").await, [""; 0]);
    assert_eq!(controller.metric("switchyard_controller_instances_failing").await, 1.0);
    let target = v1.address.to_string();
    let labels = [("target", target.as_str())];
    assert_eq!(agents[3].metric("switchyard_circuit_others_failing", &labels).await, 3.0);

    // Who comes later is told with the first update; who loses the controller forgets.
    let late = Switchyard::agent_of(controller.agents, "late").await;
    others_are(&late, v1.address, json!({"failing": 4, "asked": 4})).await;
    controller.process.kill();
    for agent in [&late, &agents[3]] {
        others_are(agent, v1.address, Value::Null).await;
    }
    assert_eq!(circuit(3, v1.address).await["state"], "open", "what it saw itself it keeps");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_node_cannot_reach_is_shown_and_moves_nobody_elses_circuit() {
    // Which node asks: callers say so.
    let cut_off = Arc::new(Mutex::new(Vec::<String>::new()));
    let answers = Arc::clone(&cut_off);
    let instance = Server::start(move |request| {
        let path = request.uri().path().to_owned();
        let is_lost = answers.lock().unwrap().contains(&path);
        Box::pin(async move {
            if is_lost {
                std::future::pending::<()>().await;
            }
            let status = if path.ends_with("/bad") { 500 } else { 200 };
            Ok(Response::builder().status(status).body(full("hello")).unwrap())
        })
    })
    .await;
    let manifests = Manifests::of(&[("v1", instance.address)]);
    manifests.write("rules.yaml", &rule_to("v1", "  timeouts: {backendRequest: 100ms}\n"));
    manifests.write("circuits.yaml", &policy("v1", ""));
    let controller = Controller::start(manifests.path(), "127.0.0.1:0".parse().unwrap()).await;
    let agents = agents(&controller, 4).await;
    for (number, agent) in agents.iter().enumerate() {
        // The first one may come before the agent has warmed up.
        let path = format!("/v1/n{number}");
        wait_for("it is answered", async || status(agent, &path).await == 200).await;
    }
    cut_off.lock().unwrap().push("/v1/n3".to_owned());
    assert_eq!(statuses(&agents[3], "/v1/n3", 5).await, [504; 5]);
    is_shown(&controller, "v1", "1 of 4 nodes cannot reach it: look at the network of n3").await;
    for agent in &agents[..3] {
        others_are(agent, instance.address, json!({"failing": 1, "asked": 3})).await;
    }
    // None of its own part.
    others_are(&agents[3], instance.address, json!({"failing": 0, "asked": 3})).await;
    assert_eq!(agents[3].circuit(instance.address).await.as_deref(), Some("open"));

    // At the others it takes as much as ever.
    assert_eq!(statuses(&agents[0], "/v1/bad", 4).await, [500; 4]);
    assert_eq!(agents[0].circuit(instance.address).await.as_deref(), Some("closed"));
    assert_eq!(status(&agents[0], "/v1/n0").await, 200);
    for agent in &agents[1..3] {
        assert_eq!(agent.circuit(instance.address).await.as_deref(), Some("closed"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_checks_that_fail_are_evidence_without_any_traffic() {
    let mut instance = Backend::start("v1").await;
    let manifests = Manifests::of(&[("v1", instance.address)]);
    manifests.write("circuits.yaml", &policy("v1", "  healthCheck: {tcp: {}, interval: 100ms}\n"));
    let controller = Controller::start(manifests.path(), "127.0.0.1:0".parse().unwrap()).await;
    let _agents = agents(&controller, 3).await;
    instance.kill();
    let message = "none of 3 nodes can reach it: look whether it runs, and who may connect to it";
    is_shown(&controller, "v1", message).await;
    instance.revive().await;
    wait_for("nothing is said of it any more", async || shown(&controller, "v1").await.is_empty()).await;
}
