//! Circuits: when an instance is out, that it is out, and how it comes back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use http::Method;
use switchyard_tests::backend::{Backend, Server};
use switchyard_tests::client::{self, Connection, full, get_request, request};
use switchyard_tests::load::Load;
use switchyard_tests::manifests::{HOST, Manifests, canary, circuit};
use switchyard_tests::process::Switchyard;
use switchyard_tests::raw::{RawServer, Wire};
use switchyard_tests::{in_time, wait_for};

async fn statuses(switchyard: &Switchyard, times: usize) -> Vec<u16> {
    let mut connection = Connection::http1(switchyard.http).await.unwrap();
    let mut statuses = Vec::new();
    for _ in 0..times {
        statuses.push(connection.ask(get_request(HOST, "/")).await.unwrap().status.as_u16());
    }
    statuses
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_failures_in_a_row_open_probes_follow_the_timeout_and_two_successes_close() {
    let instance = Backend::start("v1").await;
    let manifests = Manifests::of(&[("v1", instance.address)]);
    manifests.write(
        "circuit.yaml",
        &circuit("  failureThreshold: 5\n  successThreshold: 2\n  timeout: 1s\n  backoff: {jitter: \"0%\"}\n"),
    );
    let switchyard = Switchyard::run(manifests.path()).await;
    instance.fail_next(4);
    assert_eq!(statuses(&switchyard, 5).await, [500, 500, 500, 500, 200], "a success in between starts the count anew");
    instance.fail();
    assert_eq!(statuses(&switchyard, 5).await, [500; 5]);
    assert_eq!(switchyard.circuit(instance.address).await.as_deref(), Some("open"));

    let asked = instance.asked();
    let reply = Connection::http1(switchyard.http).await.unwrap().ask(get_request(HOST, "/")).await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.reason()), (503, "circuit-open"));
    assert!(!reply.header("retry-after").is_empty());
    assert_eq!(instance.asked(), asked, "nothing reaches it while the circuit is open");

    // A probe that fails: open again.
    wait_for("a probe goes", async || {
        statuses(&switchyard, 1).await;
        instance.asked() == asked + 1
    })
    .await;
    assert_eq!(switchyard.circuit(instance.address).await.as_deref(), Some("open"));

    instance.fail_next(0);
    wait_for("the first good probe", async || statuses(&switchyard, 1).await == [200]).await;
    assert_eq!(switchyard.circuit(instance.address).await.as_deref(), Some("half-open"));
    assert_eq!(statuses(&switchyard, 1).await, [200]);
    assert_eq!(switchyard.circuit(instance.address).await.as_deref(), Some("closed"));
    assert_eq!(statuses(&switchyard, 3).await, [200; 3]);
    let target = instance.address.to_string();
    for (to, times) in [("open", 2.0), ("closed", 1.0)] {
        let labels = [("target", target.as_str()), ("to", to)];
        assert_eq!(switchyard.metric("switchyard_circuit_transitions_total", &labels).await, times, "{to}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_of_the_requests_failing_opens_once_there_are_enough_to_judge() {
    let instance = Backend::start("v1").await;
    let manifests = Manifests::of(&[("v1", instance.address)]);
    manifests.write(
        "circuit.yaml",
        &circuit("  failureThreshold: 1000\n  errorRateThreshold: \"50%\"\n  minimumRequests: 20\n  window: 10m\n"),
    );
    let switchyard = Switchyard::run(manifests.path()).await;
    for _ in 0..9 {
        instance.fail_next(1);
        assert_eq!(statuses(&switchyard, 2).await, [500, 200]);
    }
    assert_eq!(switchyard.circuit(instance.address).await.as_deref(), Some("closed"), "18 requests say too little");
    instance.fail_next(1);
    assert_eq!(statuses(&switchyard, 3).await, [500, 200, 503]);
    assert_eq!(switchyard.circuit(instance.address).await.as_deref(), Some("open"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bad_instance_is_taken_out_and_the_others_go_on() {
    let (good, bad) = (Backend::start("v1").await, Backend::start("v1").await);
    let manifests = Manifests::of(&[("v1", good.address), ("v1", bad.address)]);
    manifests.write("circuit.yaml", &circuit("  timeout: 1s\n"));
    let switchyard = Switchyard::run(manifests.path()).await;
    bad.fail();
    let load = Load::start(switchyard.http, 4, || get_request(HOST, "/"));
    switchyard.circuit_is(bad.address, "open").await;
    load.goes_on_for(200).await;
    assert_eq!(switchyard.circuit(good.address).await.as_deref(), Some("closed"));
    bad.fail_next(0);
    switchyard.circuit_is(bad.address, "closed").await;
    let asked = bad.asked();
    wait_for("it takes its share again", async || bad.asked() > asked + 20).await;
    let tally = load.stop().await;
    let failed = tally.statuses.get(&500).copied().unwrap_or_default();
    // Five in a row, those that were under way when the fifth came back, and one for each probe that failed.
    assert!(tally.errors.is_empty() && (5..60).contains(&failed), "{tally:?}");
    assert!(!tally.statuses.contains_key(&503), "there was always a good instance: {tally:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_nobody_can_reach_is_taken_out() {
    let (good, mut gone) = (Backend::start("v1").await, Backend::start("v1").await);
    let manifests = Manifests::of(&[("v1", good.address), ("v1", gone.address)]);
    manifests.write("circuit.yaml", &circuit("  timeout: 1s\n"));
    let switchyard = Switchyard::run(manifests.path()).await;
    gone.kill();
    let load = Load::start(switchyard.http, 4, || get_request(HOST, "/"));
    switchyard.circuit_is(gone.address, "open").await;
    gone.revive().await;
    switchyard.circuit_is(gone.address, "closed").await;
    let tally = load.stop().await;
    assert!(tally.good() > 0 && tally.statuses.keys().all(|status| [200, 502].contains(status)), "{tally:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_circuit_for_the_destination_takes_the_whole_version_out() {
    let (first, second, other) = (Backend::start("v2").await, Backend::start("v2").await, Backend::start("v1").await);
    let instances = [("v2", first.address), ("v2", second.address), ("v1", other.address)];
    let manifests = Manifests::of(&instances);
    manifests.write(
        "rules.yaml",
        &[
            switchyard_tests::manifests::rule(
                "new",
                "  matches: [{path: {value: /new}}]\n  destinations: [{service: my-service, version: v2}]\n",
            ),
            switchyard_tests::manifests::rule("old", "  destinations: [{service: my-service, version: v1}]\n"),
        ]
        .join("---\n"),
    );
    let policy = circuit("  scope: Destination\n  timeout: 60s\n");
    manifests.write("circuit.yaml", &policy.replace("name: my-service}", "name: my-service, version: v2}"));
    let switchyard = Switchyard::run(manifests.path()).await;
    first.fail();
    second.fail();
    let mut connection = Connection::http1(switchyard.http).await.unwrap();
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(connection.ask(get_request(HOST, "/new")).await.unwrap().status.as_u16());
    }
    assert_eq!(statuses, [500, 500, 500, 500, 500, 503], "the failures of both count together");
    assert_eq!(first.asked() + second.asked(), 5);
    assert_eq!(connection.ask(get_request(HOST, "/")).await.unwrap().version(), "v1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_weights_resets_nobodys_circuit() {
    let (v1, v2) = (Backend::start("v1").await, Backend::start("v2").await);
    let manifests = Manifests::canary(&[("v1", v1.address), ("v2", v2.address)], 50, 50);
    manifests.write("circuit.yaml", &circuit("  timeout: 10m\n"));
    let switchyard = Switchyard::run(manifests.path()).await;
    v2.fail();
    let load = Load::start(switchyard.http, 2, || get_request(HOST, "/"));
    switchyard.circuit_is(v2.address, "open").await;
    let asked = v2.asked();
    for weight in [60, 70, 80] {
        manifests.write("canary.yaml", &canary(weight, 100 - weight));
        switchyard.splits(weight.into(), (100 - weight).into()).await;
        assert_eq!(switchyard.circuit(v2.address).await.as_deref(), Some("open"));
    }
    load.goes_on_for(100).await;
    load.stop().await;
    // What was under way on the other connection when the circuit opened may still have arrived.
    assert!(v2.asked() <= asked + 1, "{} after {asked}", v2.asked());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_circuit_for_a_version_takes_it_out_also_where_no_rule_names_it() {
    let (v1, first, second) = (Backend::start("v1").await, Backend::start("v2").await, Backend::start("v2").await);
    let manifests = Manifests::of(&[("v1", v1.address), ("v2", first.address), ("v2", second.address)]);
    let policy = circuit("  scope: Destination\n  timeout: 10m\n");
    manifests.write("circuit.yaml", &policy.replace("name: my-service}", "name: my-service, version: v2}"));
    let switchyard = Switchyard::run(manifests.path()).await;
    first.fail();
    second.fail();
    let load = Load::start(switchyard.http, 2, || get_request(HOST, "/"));
    let opened = [("target", "v2"), ("to", "open")];
    wait_for("the circuit of v2 opens", async || {
        switchyard.metric("switchyard_circuit_transitions_total", &opened).await == 1.0
    })
    .await;
    load.stop().await;
    assert_eq!(statuses(&switchyard, 50).await, [200; 50]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_refused_are_counted_as_what_their_callers_saw() {
    let instance = Backend::start("v1").await;
    let manifests = Manifests::of(&[("v1", instance.address)]);
    manifests.write("circuit.yaml", &circuit("  timeout: 10m\n"));
    let switchyard = Switchyard::run(manifests.path()).await;
    instance.fail();
    assert_eq!(statuses(&switchyard, 15).await, [[500; 5], [503; 5], [503; 5]].concat());
    let labels = [("service", "shop/my-service"), ("rule", "default"), ("class", "5xx")];
    wait_for("all are counted", async || switchyard.metric("switchyard_requests_total", &labels).await == 15.0).await;
    let refused = [("service", "shop/my-service"), ("reason", "circuit-open")];
    assert_eq!(switchyard.metric("switchyard_refusals_total", &refused).await, 10.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_do_not_send_their_body_open_no_circuit_and_are_not_retried() {
    let (first, second) = (Backend::start("v1").await, Backend::start("v1").await);
    let manifests = Manifests::of(&[("v1", first.address), ("v1", second.address)]);
    manifests.write("circuit.yaml", &circuit("  failureThreshold: 1\n"));
    manifests.write("retry.yaml", &switchyard_tests::manifests::retry("  perTryTimeout: 200ms\n"));
    let switchyard = Switchyard::run(manifests.path()).await;
    for method in ["PUT", "POST"] {
        for _ in 0..3 {
            let mut wire = Wire::connect(switchyard.http).await;
            wire.send(format!("{method} / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 100\r\n\r\nabc")).await;
            let reply = wire.reply().await;
            assert!(reply.starts_with("HTTP/1.1 408 ") && reply.contains("request-timeout"), "{reply}");
        }
    }
    for instance in [&first, &second] {
        assert_eq!(switchyard.circuit(instance.address).await.as_deref(), Some("closed"));
    }
    assert_eq!(first.asked() + second.asked(), 6, "nothing is tried again");
    assert_eq!(statuses(&switchyard, 10).await, [200; 10]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_do_not_read_open_no_circuit() {
    let server = Server::start(|request| {
        let is_answered = request.method() != http::Method::PUT;
        Box::pin(async move {
            if !is_answered {
                std::future::pending::<()>().await;
            }
            Ok(http::Response::new(full(vec![b'x'; 64 << 20])))
        })
    })
    .await;
    let manifests = Manifests::of(&[("v1", server.address)]);
    manifests.write("circuit.yaml", &circuit("  failureThreshold: 1\n"));
    let rule = "  destinations: [{service: my-service}]\n  timeouts: {request: 500ms}\n";
    manifests.write("rule.yaml", &switchyard_tests::manifests::rule("limited", rule));
    let switchyard = Switchyard::run(manifests.path()).await;
    let mut wire = Wire::connect(switchyard.http).await;
    wire.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).await;
    assert!(wire.until("\r\n\r\n").await.starts_with("HTTP/1.1 200 "));
    // Until the limit is over, which another request tells that waits for it.
    let silent = Wire::connect(switchyard.http).await;
    let mut hung = silent;
    hung.send(format!("PUT / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 9\r\n\r\n")).await;
    hung.reply().await;
    let rest = wire.rest().await;
    assert!(rest.len() < 64 << 20, "it was cut");
    assert_eq!(switchyard.circuit(server.address).await.as_deref(), Some("closed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_wait_less_than_the_rule_allows_open_no_circuit_and_always_get_an_answer() {
    let instance = Backend::start("v1").await;
    let manifests = Manifests::of(&[("v1", instance.address)]);
    manifests.write("circuit.yaml", &circuit("  failureThreshold: 1\n"));
    let switchyard = Switchyard::run(manifests.path()).await;
    let mut connection = Connection::http1(switchyard.http).await.unwrap();
    for number in 0..600 {
        instance.delay(std::time::Duration::from_millis(number % 3));
        let mut hurried = get_request(HOST, "/");
        let limit = ["0ms", "1ms", "2ms"][usize::try_from(number / 3 % 3).unwrap()];
        hurried.headers_mut().insert("x-request-timeout", limit.parse().unwrap());
        let reply = connection.ask(hurried).await.unwrap();
        assert!([200, 504].contains(&reply.status.as_u16()), "{reply:?}");
        if limit == "0ms" {
            assert_eq!((reply.status.as_u16(), reply.reason()), (504, "upstream-timeout"));
        }
    }
    assert_eq!(switchyard.circuit(instance.address).await.as_deref(), Some("closed"));

    // The rule's own limit is one for the instance.
    instance.delay(std::time::Duration::from_secs(3600));
    let rule = "  destinations: [{service: my-service}]\n  timeouts: {request: 100ms}\n";
    manifests.write("rule.yaml", &switchyard_tests::manifests::rule("limited", rule));
    wait_for("the rule is in force", async || switchyard.config().await.to_string().contains("shop/limited")).await;
    assert_eq!(statuses(&switchyard, 1).await, [504]);
    assert_eq!(switchyard.circuit(instance.address).await.as_deref(), Some("open"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_is_judged_by_the_end_of_its_reply() {
    // Every reply is cut in its body.
    let cuts = RawServer::start(|mut wire| async move {
        wire.reply().await;
        wire.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc").await;
    });
    let manifests = Manifests::of(&[("v1", cuts.address)]);
    manifests.write("circuit.yaml", &circuit("  failureThreshold: 1\n  successThreshold: 1\n  timeout: 1ms\n"));
    let switchyard = Switchyard::run(manifests.path()).await;
    let target = cuts.address.to_string();
    let changes = async |to: &str| {
        let labels = [("target", target.as_str()), ("to", to)];
        switchyard.metric("switchyard_circuit_transitions_total", &labels).await
    };
    wait_for("probes have failed", async || {
        drop(client::get(switchyard.http, HOST, "/").await);
        changes("open").await >= 3.0
    })
    .await;
    assert_eq!(changes("closed").await, 0.0, "a reply that is cut closes no circuit");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_that_goes_on_and_on_is_no_obstacle() {
    let instance = Server::start(|request| {
        Box::pin(async move {
            let fails = request.uri().path() == "/fail";
            let endless = futures_util::stream::iter([Ok(hyper::body::Frame::data(bytes::Bytes::from("a")))]);
            let endless = futures_util::StreamExt::chain(endless, futures_util::stream::pending());
            let body = http_body_util::StreamBody::new(endless);
            let body = http_body_util::BodyExt::boxed_unsync(body);
            Ok(http::Response::builder().status(if fails { 500 } else { 200 }).body(body).unwrap())
        })
    })
    .await;
    let manifests = Manifests::of(&[("v1", instance.address)]);
    manifests.write("circuit.yaml", &circuit("  failureThreshold: 1\n  successThreshold: 1\n  timeout: 1ms\n"));
    let switchyard = Switchyard::run(manifests.path()).await;
    let mut failing = Connection::http1(switchyard.http).await.unwrap();
    drop(failing.send(request(Method::GET, HOST, "/fail", full(""))).await.unwrap());
    assert_eq!(switchyard.circuit(instance.address).await.as_deref(), Some("open"));
    // A millisecond may not be over yet.
    let mut probe = None;
    wait_for("the probe passes", async || {
        let mut probing = Connection::http1(switchyard.http).await.unwrap();
        let reply = in_time("the probe's head", probing.send(get_request(HOST, "/"))).await.unwrap();
        let passes = reply.status() == 200;
        probe = passes.then_some((probing, reply));
        passes
    })
    .await;
    assert_eq!(switchyard.circuit(instance.address).await.as_deref(), Some("half-open"));
    switchyard.circuit_is(instance.address, "closed").await;
    drop(probe);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_does_not_send_its_body_and_an_instance_that_takes_its_time_keep_nobody_waiting_for_long() {
    let server = Server::start(|request: http::Request<hyper::body::Incoming>| {
        Box::pin(async move {
            if request.uri().path() == "/long-poll" {
                std::future::pending::<()>().await;
            }
            let fails = request.uri().path() == "/fails";
            Ok(http::Response::builder().status(if fails { 500 } else { 200 }).body(full("hello")).unwrap())
        })
    });
    let server = server.await;
    let manifests = Manifests::of(&[("v1", server.address)]);
    manifests.write("circuit.yaml", &circuit("  failureThreshold: 1\n  timeout: 1s\n  backoff: {jitter: \"0%\"}\n"));
    let switchyard = Switchyard::run(manifests.path()).await;
    for head in [
        format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 100\r\n\r\nx"),
        format!("GET /long-poll HTTP/1.1\r\nhost: {HOST}\r\n\r\n"),
    ] {
        assert_eq!(client::get(switchyard.http, HOST, "/fails").await.unwrap().status, 500);
        // One connection after another, until one is the probe.
        let mut held = Vec::new();
        wait_for("a request that does not end is the probe", async || {
            let mut wire = Wire::connect(switchyard.http).await;
            wire.send(head.clone()).await;
            held.push(wire);
            switchyard.circuit(server.address).await.as_deref() == Some("half-open")
        })
        .await;
        let began = std::time::Instant::now();
        wait_for("others find the instance well", async || statuses(&switchyard, 1).await == [200]).await;
        assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
        wait_for("the circuit is closed", async || {
            statuses(&switchyard, 1).await;
            switchyard.circuit(server.address).await.as_deref() == Some("closed")
        })
        .await;
    }
}
