//! The examples, as their READMEs say to run them: the very files, `switchyard sample` behind them, and what comes back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::SocketAddr;

use http::Method;
use serde_json::Value;
use switchyard_tests::chance::binomial_bound;
use switchyard_tests::client::{self, Reply, empty, get_request, request};
use switchyard_tests::load::ask_times;
use switchyard_tests::manifests::HOST;
use switchyard_tests::process::{Process, Switchyard, example, output};
use switchyard_tests::wait_for;

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

async fn sample(port: u16, version: &str) -> Process {
    let process =
        Process::start("switchyard", ["sample", "--listen", &address(port).to_string(), "--version", version]);
    process.says(0, &["listens on"]).await;
    process
}

/// Turns the knobs of a sample, as the curl in the READMEs does.
async fn turn(port: u16, knobs: &str) -> Value {
    let path = format!("/_sample?{knobs}");
    let reply = client::ask(address(port), request(Method::POST, "sample", &path, empty())).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    serde_json::from_slice(&reply.body).unwrap()
}

async fn get(switchyard: &Switchyard, host: &str, headers: &[(&'static str, &str)]) -> Reply {
    let mut request = get_request(host, "/");
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    client::ask(switchyard.http, request).await.unwrap()
}

fn canary_request() -> http::Request<client::Body> {
    let mut request = get_request(HOST, "/");
    request.headers_mut().insert("x-version", "v2".parse().unwrap());
    request
}

#[test]
fn every_example_is_without_errors() {
    for name in ["canary", "circuit", "retry", "ab-test"] {
        let checked = output("switchyard", &["check", example(name).to_str().unwrap()]);
        assert!(checked.status.success(), "{name}: {}", String::from_utf8_lossy(&checked.stdout));
    }
    let strict = output("switchyard", &["check", "--strict", example("canary").to_str().unwrap()]);
    assert!(strict.status.success(), "{}", String::from_utf8_lossy(&strict.stdout));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn canary() {
    const TIMES: u64 = 1000;
    let _samples = [sample(9001, "v1").await, sample(9002, "v2").await];
    let switchyard = Switchyard::run(&example("canary")).await;
    let bound = binomial_bound(TIMES, 0.2, 0.999_999);
    let tally = ask_times(switchyard.http, 8, TIMES as usize, canary_request).await;
    tally.all_good();
    assert!(bound.contains(&tally.of("v2")), "{:?}", tally.versions);
    let tally = ask_times(switchyard.http, 8, 200, || get_request(HOST, "/")).await;
    tally.all_good();
    assert!(tally.of("v1") > 0 && tally.of("v2") > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn circuit() {
    let _samples = [sample(9011, "v1").await, sample(9012, "v1").await];
    let switchyard = Switchyard::run(&example("circuit")).await;
    turn(9012, "fail=100%25").await;
    let bad = address(9012);
    wait_for("the bad instance is out", async || {
        get(&switchyard, HOST, &[]).await;
        switchyard.circuit(bad).await.as_deref() == Some("open")
    })
    .await;
    for _ in 0..50 {
        let reply = get(&switchyard, HOST, &[]).await;
        assert_eq!((reply.status.as_u16(), reply.header("x-instance")), (200, "127.0.0.1:9011"));
    }
    turn(9011, "fail=100%25").await;
    wait_for("both are out", async || get(&switchyard, HOST, &[]).await.reason() == "circuit-open").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry() {
    let _samples = [sample(9021, "v1").await, sample(9022, "v1").await];
    let switchyard = Switchyard::run(&example("retry")).await;
    turn(9022, "fail=100%25").await;
    // Which instance a request meets first is a choice of the balancer's, so it is asked until one met the bad one.
    wait_for("a request met the bad instance", async || {
        let reply = get(&switchyard, HOST, &[]).await;
        assert_eq!((reply.status.as_u16(), reply.header("x-instance")), (200, "127.0.0.1:9021"), "{reply:?}");
        let body: Value = serde_json::from_slice(&reply.body).unwrap();
        let failed = turn(9022, "").await["failed"].as_u64().unwrap();
        assert_eq!(body["attempt"], failed + 1, "{failed} {body}");
        failed > 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ab_test() {
    let _samples = [sample(9031, "a").await, sample(9032, "b").await];
    let switchyard = Switchyard::run(&example("ab-test")).await;
    for cohort in ["a", "b"] {
        for _ in 0..20 {
            assert_eq!(get(&switchyard, "checkout.shop", &[("x-cohort", cohort)]).await.version(), cohort);
        }
    }
    let tally = ask_times(switchyard.http, 8, 400, || get_request("checkout.shop", "/")).await;
    tally.all_good();
    assert!(binomial_bound(400, 0.5, 0.999_999).contains(&tally.of("b")), "{:?}", tally.versions);
    let mut arms = std::collections::BTreeSet::new();
    for user in ["ann", "bob", "cora", "dan", "eve"] {
        let arm = get(&switchyard, "checkout.shop", &[("x-user-id", user)]).await.version().to_owned();
        for _ in 0..10 {
            assert_eq!(get(&switchyard, "checkout.shop", &[("x-user-id", user)]).await.version(), arm, "{user}");
        }
        arms.insert(arm);
    }
    assert_eq!(arms.len(), 2, "these five are not all in one arm");
}
