//! Checks of instances beside the traffic.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body_util::BodyExt;
use hyper::body::Frame;
use switchyard_tests::backend::{Backend, Server};
use switchyard_tests::client::{full, get_request};
use switchyard_tests::load::Load;
use switchyard_tests::manifests::{HOST, Manifests, circuit};
use switchyard_tests::process::{Controller, Switchyard};
use switchyard_tests::wait_for;

const OFTEN: &str = "interval: 100ms, unhealthyThreshold: 2, healthyThreshold: 2";

/// An instance that answers all requests well, and checks as it is told.
struct Checked {
    server: Server,
    well: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
}

/// By HTTP at `/healthz`, and by the gRPC health protocol for the service `shop.Cart`.
async fn checked() -> Checked {
    let (well, asked) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
    let (is_well, count) = (Arc::clone(&well), Arc::clone(&asked));
    let server = Server::start(move |request| {
        let (well, count) = (is_well.load(Relaxed), Arc::clone(&count));
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            if path == "/healthz" {
                return Ok(Response::builder().status(if well { 204 } else { 503 }).body(full("")).unwrap());
            }
            if path == "/grpc.health.v1.Health/Check" {
                assert_eq!(request.headers()["content-type"], "application/grpc");
                let question = request.into_body().collect().await.unwrap().to_bytes();
                // Not compressed, eleven bytes: field 1, nine bytes long.
                assert_eq!(&question[..], b"\x00\x00\x00\x00\x0b\x0a\x09shop.Cart");
                let status = if well { 1 } else { 2 };
                let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
                let answer = Bytes::from(vec![0, 0, 0, 0, 2, 8, status]);
                let frames = [Ok(Frame::data(answer)), Ok(Frame::trailers(trailers))];
                let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
                return Ok(Response::builder()
                    .header("content-type", "application/grpc")
                    .body(body.boxed_unsync())
                    .unwrap());
            }
            count.fetch_add(1, Relaxed);
            Ok(Response::new(full("")))
        })
    })
    .await;
    Checked { server, well, asked }
}

/// An instance whose check fails goes out and comes back, and no request fails.
async fn goes_out_and_comes_back(
    manifests: impl Fn(&[(&str, std::net::SocketAddr)]) -> Manifests,
    check: &str,
    rest: &str,
) {
    let (good, bad) = (checked().await, checked().await);
    let manifests = manifests(&[("v1", good.server.address), ("v1", bad.server.address)]);
    manifests.write("circuit.yaml", &circuit(&format!("  healthCheck: {{{check}, {OFTEN}}}\n{rest}")));
    let switchyard = Switchyard::run(manifests.path()).await;
    let load = Load::start(switchyard.http, 4, || get_request(HOST, "/"));
    wait_for("both take their share", async || good.asked.load(Relaxed) > 20 && bad.asked.load(Relaxed) > 20).await;
    let labels = [("target", bad.server.address.to_string()), ("outcome", "good".to_owned())];
    let labels = labels.each_ref().map(|(name, value)| (*name, value.as_str()));
    wait_for("checks are made and counted", async || {
        switchyard.metric("switchyard_health_checks_total", &labels).await >= 2.0
    })
    .await;

    bad.well.store(false, Relaxed);
    switchyard.circuit_is(bad.server.address, "open").await;
    let shown = switchyard.circuit_of(bad.server.address).await.unwrap();
    assert_eq!(shown["reason"], "health-check: 2 failed in a row");
    assert_eq!(shown["healthCheck"]["unhealthy"], true);
    let before = bad.asked.load(Relaxed);
    load.goes_on_for(100).await;
    // Those that were under way as it was taken out are four at most.
    assert!(bad.asked.load(Relaxed) <= before + 4, "nothing reaches it while it is out");

    bad.well.store(true, Relaxed);
    switchyard.circuit_is(bad.server.address, "closed").await;
    let before = bad.asked.load(Relaxed);
    wait_for("it takes its share again", async || bad.asked.load(Relaxed) > before + 20).await;
    load.stop().await.all_good();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_whose_check_fails_goes_out_without_a_request_failing_and_comes_back() {
    goes_out_and_comes_back(Manifests::of, "path: /healthz", "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_it_does_over_http2() {
    goes_out_and_comes_back(Manifests::of_http2, "path: /healthz", "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn and_by_the_grpc_health_protocol() {
    goes_out_and_comes_back(Manifests::of_http2, "grpc: {service: shop.Cart}", "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn and_where_the_instances_share_a_circuit() {
    goes_out_and_comes_back(Manifests::of, "path: /healthz", "  scope: Destination\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_nobody_can_connect_to_goes_out_before_traffic_finds_it_and_the_last_one_stays() {
    let (mut first, mut second) = (Backend::start("v1").await, Backend::start("v1").await);
    let manifests = Manifests::of(&[("v1", first.address), ("v1", second.address)]);
    manifests.write("circuit.yaml", &circuit(&format!("  healthCheck: {{tcp: {{}}, {OFTEN}}}\n")));
    let switchyard = Switchyard::run(manifests.path()).await;
    first.kill();
    switchyard.circuit_is(first.address, "open").await;
    assert_eq!(first.asked(), 0, "no request was needed");
    second.kill();
    wait_for("checks of the other fail too", async || {
        let shown = switchyard.circuit_of(second.address).await.unwrap();
        shown["healthCheck"]["unhealthy"] == true && shown["keptIn"] == true
    })
    .await;
    assert_eq!(switchyard.circuit(second.address).await.as_deref(), Some("closed"), "the last one is never taken out");
    first.revive().await;
    switchyard.circuit_is(first.address, "closed").await;
    switchyard.circuit_is(second.address, "open").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_out_stays_out_over_a_restart_and_comes_in_when_checks_are_made_no_more() {
    let (good, bad) = (checked().await, checked().await);
    let manifests = Manifests::of(&[("v1", good.server.address), ("v1", bad.server.address)]);
    let policy = circuit(&format!("  healthCheck: {{path: /healthz, {OFTEN}}}\n"));
    manifests.write("circuit.yaml", &policy);
    let state = tempfile::tempdir().unwrap();
    let controller = Controller::start(manifests.path(), "127.0.0.1:0".parse().unwrap()).await;
    let agent = Switchyard::agent(controller.agents, state.path()).await;
    agent.ready().await;
    bad.well.store(false, Relaxed);
    agent.circuit_is(bad.server.address, "open").await;
    let said = agent.circuit_of(bad.server.address).await.unwrap()["reason"].clone();
    assert!(agent.process.terminate().await.success());
    let agent = Switchyard::agent(controller.agents, state.path()).await;
    let shown = agent.circuit_of(bad.server.address).await.unwrap();
    assert_eq!((&shown["state"], &shown["reason"]), (&"open".into(), &said));
    manifests.write("circuit.yaml", &circuit(""));
    agent.circuit_is(bad.server.address, "closed").await;
}
