//! What a controller costs in a cluster of 1,000 Services with a rule and ten Pods each, and a hundred agents: a real API server, the
//! built binaries, one change at a time. `cargo bench -p switchyard-tests --bench scale [-- SERVICES AGENTS]`.
//!
//! It prints the controller's memory and CPU time, and what an endpoint that changes costs in bytes for each agent. It asserts what
//! does not depend on the machine: every agent has the change, and is sent no more than the Service that has changed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a benchmark fails by panicking"
)]

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use switchyard_tests::cluster::{Cluster, at_once};
use switchyard_tests::process::{Controller, Switchyard};

const INSTANCES: usize = 10;
const CHANGES: usize = 20;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    let (services, agents) = (numbers.first().copied().unwrap_or(1000), numbers.get(1).copied().unwrap_or(100));
    let Some(cluster) = Cluster::start().await else { return };
    println!("{services} Services with {INSTANCES} Pods and a rule each, {agents} agents");
    let began = Instant::now();
    fill(&cluster, services);
    let nodes: Vec<String> = (0..agents).map(|at| format!("n{at}")).collect();
    let tokens = at_once(&nodes, |node| cluster.node(node));
    println!("made in {:.0} s", began.elapsed().as_secs_f64());

    let controller = Controller::in_cluster(&cluster, "one").await;
    let began = Instant::now();
    published(&controller, 1.0).await;
    let memory = controller.process.memory();
    println!("read and compiled within {:.1} s, CPU {:.1} s, {}", seconds(began), cpu(&controller), mebibytes(memory));

    let began = Instant::now();
    let before = cpu(&controller);
    let mut connected = Vec::new();
    for (node, token) in nodes.iter().zip(&tokens) {
        connected.push(Switchyard::of_node(&cluster, &[&controller], node, token).await);
    }
    in_force(&controller, agents).await;
    let bytes = controller.metric("switchyard_controller_bytes_sent_total").await;
    println!(
        "every agent has all of it after {:.1} s: {:.0} KiB each, CPU {:.1} s",
        seconds(began),
        bytes / agents as f64 / 1024.0,
        cpu(&controller) - before
    );
    // Each rule's status tells of each agent, so there is much to write at first.
    quiet(&controller).await;
    println!("status is written after {:.1} s, CPU {:.1} s", seconds(began), cpu(&controller) - before);

    let (cpu_before, bytes_before) =
        (cpu(&controller), controller.metric("switchyard_controller_bytes_sent_total").await);
    let sent_before = controller.metric("switchyard_controller_resources_sent_total").await;
    let mut took = Vec::new();
    for change in 0..CHANGES {
        let revision = controller.metric("switchyard_controller_revision").await;
        let began = Instant::now();
        cluster.apply(&slice(change % services, change % INSTANCES));
        published(&controller, revision + 1.0).await;
        in_force(&controller, agents).await;
        took.push(began.elapsed());
    }
    took.sort();
    let bytes = controller.metric("switchyard_controller_bytes_sent_total").await - bytes_before;
    let sent = controller.metric("switchyard_controller_resources_sent_total").await - sent_before;
    let each = bytes / (agents * CHANGES) as f64;
    println!(
        "an endpoint that changes: {each:.0} bytes for each agent, at every agent after {:.0} ms (median, kubectl's start included), CPU {:.1} ms",
        took[CHANGES / 2].as_secs_f64() * 1e3,
        (cpu(&controller) - cpu_before) / CHANGES as f64 * 1e3
    );
    println!("memory: {}", mebibytes(controller.process.memory()));
    let once = (agents * CHANGES) as f64;
    assert!(sent >= once && sent < once * 1.5, "{sent} resources were sent for {once} that changed at an agent");
    assert!(each < 2048.0, "one Service of ten endpoints costs {each} bytes");
}

/// Makes Services, Pods, endpoints and rules, as kubectl can make many at once.
fn fill(cluster: &Cluster, services: usize) {
    let numbers: Vec<usize> = (0..services).collect();
    let parts: Vec<&[usize]> = numbers.chunks(50).collect();
    at_once(&parts, |part| {
        let mut yaml = String::new();
        for at in part.iter().copied() {
            let _ = write!(
                yaml,
                "---
apiVersion: v1
kind: Service
metadata: {{name: s{at}, namespace: shop}}
spec: {{ports: [{{name: http, port: 80}}], selector: {{app: s{at}}}}}
---
apiVersion: switchyard.dev/v1alpha1
kind: RouteRule
metadata: {{name: r{at}, namespace: shop}}
spec:
  service: s{at}
  destinations: [{{service: s{at}, version: v1, weight: 90}}, {{service: s{at}, version: v2, weight: 10}}]
"
            );
            for instance in 0..INSTANCES {
                // As much as a Pod that runs has at the least.
                let version = if instance == 0 { "v2" } else { "v1" };
                let _ = write!(
                    yaml,
                    "---
apiVersion: v1
kind: Pod
metadata: {{name: s{at}-{instance}, namespace: shop, labels: {{app: s{at}, version: {version}, pod-template-hash: 7c9f8d6b5}}}}
spec: {{nodeName: n{}, containers: [{{name: c, image: registry.example/s{at}:v1, env: [{{name: A, value: b}}]}}]}}
",
                    (at + instance) % 100
                );
            }
            yaml.push_str("---\n");
            yaml.push_str(&slice(at, INSTANCES));
        }
        cluster.create(&yaml);
    });
}

/// The endpoints of a Service, of which one is not ready.
fn slice(at: usize, unready: usize) -> String {
    let mut yaml = format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: s{at}, namespace: shop, labels: {{kubernetes.io/service-name: s{at}}}}}
addressType: IPv4
ports: [{{name: http, port: 8080}}]
endpoints:
"
    );
    for instance in 0..INSTANCES {
        let number = at * INSTANCES + instance;
        let _ = writeln!(
            yaml,
            "- {{addresses: [10.{}.{}.{}], nodeName: n{}, conditions: {{ready: {}}}, targetRef: {{kind: Pod, name: s{at}-{instance}, namespace: shop}}}}",
            100 + number / 62_500,
            number / 250 % 250,
            number % 250 + 1,
            (at + instance) % 100,
            instance != unready
        );
    }
    yaml
}

/// Waits until this revision is published.
async fn published(controller: &Controller, revision: f64) {
    long("a revision is published", async || controller.metric("switchyard_controller_revision").await >= revision)
        .await;
}

/// Waits until every agent has answered the newest revision.
async fn in_force(controller: &Controller, agents: usize) {
    long("every agent has the newest revision", async || {
        let newest = controller.metric("switchyard_controller_revision").await;
        controller.metric("switchyard_controller_agents").await as usize == agents
            && controller.metric("switchyard_controller_revision_acked").await >= newest
    })
    .await;
}

/// Waits until the controller does nothing more.
async fn quiet(controller: &Controller) {
    let mut before = cpu(controller);
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let now = cpu(controller);
        if now - before < 0.05 {
            return;
        }
        before = now;
    }
}

async fn long(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < Duration::from_secs(300), "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn seconds(began: Instant) -> f64 {
    began.elapsed().as_secs_f64()
}

/// What a process has used of all cores, in seconds.
fn cpu(controller: &Controller) -> f64 {
    controller.process.cpu().as_secs_f64()
}

fn mebibytes(memory: switchyard_tests::process::Memory) -> String {
    format!("{:.1} MiB resident, {:.1} MiB at most", memory.now_kib as f64 / 1024.0, memory.peak_kib as f64 / 1024.0)
}
