//! What there is beside failures: slow replies, how many of several may be out, bounds, holding by hand, and what stands in.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::{Duration, SystemTime};

use http::Method;
use serde_json::Value;
use switchyard_tests::backend::Backend;
use switchyard_tests::client::{Connection, full, get_request, request};
use switchyard_tests::load::Load;
use switchyard_tests::manifests::{HOST, Manifests, circuit, rule};
use switchyard_tests::process::{self, Switchyard};
use switchyard_tests::raw::Wire;
use switchyard_tests::{client, wait_for};

/// Status and reason of so many requests, one after the other.
async fn ask(switchyard: &Switchyard, path: &str, times: usize) -> Vec<(u16, String)> {
    let mut connection = Connection::http1(switchyard.http).await.unwrap();
    let mut replies = Vec::new();
    for _ in 0..times {
        let reply = connection.ask(get_request(HOST, path)).await.unwrap();
        replies.push((reply.status.as_u16(), reply.reason().to_owned()));
    }
    replies
}

async fn circuit_of(switchyard: &Switchyard, target: &str) -> Value {
    let reply = client::get(switchyard.admin, "admin", "/circuits").await.unwrap();
    let all: Vec<Value> = serde_json::from_str(&reply.text()).unwrap();
    all.into_iter().find(|circuit| circuit["target"] == target).unwrap_or_default()
}

fn all_are(replies: &[(u16, String)], status: u16, reason: &str) -> bool {
    replies.iter().all(|(s, r)| *s == status && r == reason)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_that_are_slow_open_a_circuit_though_none_failed() {
    let instance = Backend::start("v1").await;
    let manifests = Manifests::of(&[("v1", instance.address)]);
    let policy = "  failureThreshold: 1\n  minimumRequests: 5\n  window: 10m\n  slowCalls: {duration: 100ms, rateThreshold: \"80%\"}\n";
    manifests.write("circuit.yaml", &circuit(policy));
    let switchyard = Switchyard::run(manifests.path()).await;
    assert!(all_are(&ask(&switchyard, "/", 1).await, 200, ""));
    instance.delay(Duration::from_millis(120));
    assert!(all_are(&ask(&switchyard, "/", 4).await, 200, ""), "a slow reply is a good one");
    assert!(all_are(&ask(&switchyard, "/", 1).await, 503, "circuit-open"));
    let shown = circuit_of(&switchyard, &instance.address.to_string()).await;
    assert_eq!(shown["reason"], "4 of 5 requests were slow", "{shown}");
    assert_eq!(shown["window"]["slow"], 4, "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_sends_its_body_slowly_makes_no_instance_slow() {
    let instance = Backend::start("v1").await;
    let manifests = Manifests::of(&[("v1", instance.address)]);
    let policy = "  minimumRequests: 1\n  slowCalls: {duration: 200ms, rateThreshold: \"1%\"}\n";
    manifests.write("circuit.yaml", &circuit(policy));
    let switchyard = Switchyard::run(manifests.path()).await;
    let mut wire = Wire::connect(switchyard.http).await;
    wire.send(format!("PUT / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 6\r\n\r\nabc")).await;
    // The pace of the caller.
    tokio::time::sleep(Duration::from_millis(400)).await;
    wire.send("def").await;
    assert!(wire.reply().await.starts_with("HTTP/1.1 200 "));
    let shown = circuit_of(&switchyard, &instance.address.to_string()).await;
    assert_eq!(
        (&shown["state"], shown["window"]["requests"].as_u64(), shown["window"]["slow"].as_u64()),
        (&"closed".into(), Some(1), Some(0))
    );
    // One that waits with its answer is slow for a request with a body as well.
    instance.delay(Duration::from_millis(250));
    let put = request(Method::PUT, HOST, "/", full("abc"));
    assert_eq!(client::ask(switchyard.http, put).await.unwrap().status, 200);
    assert_eq!(switchyard.circuit(instance.address).await.as_deref(), Some("open"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_fail_one_stays_in_and_is_counted_unless_all_may_be_out() {
    let (first, second) = (Backend::start("v1").await, Backend::start("v1").await);
    let manifests = Manifests::of(&[("v1", first.address), ("v1", second.address)]);
    manifests.write("circuit.yaml", &circuit("  timeout: 10m\n"));
    let switchyard = Switchyard::run(manifests.path()).await;
    first.fail();
    second.fail();
    let panics = async || switchyard.metric("switchyard_panic_requests_total", &[("service", "shop/my-service")]).await;
    let states = async || {
        let mut states = Vec::new();
        for instance in [&first, &second] {
            let shown = circuit_of(&switchyard, &instance.address.to_string()).await;
            states.push((shown["state"].as_str().unwrap().to_owned(), shown["keptIn"].as_bool().unwrap()));
        }
        states.sort();
        states
    };
    let load = Load::start(switchyard.http, 4, || get_request(HOST, "/"));
    wait_for("one is out, and the other kept in", async || {
        states().await == [("closed".to_owned(), true), ("open".to_owned(), false)]
    })
    .await;
    load.goes_on_for(200).await;
    assert!(panics().await > 100.0);
    let tally = load.stop().await;
    assert!(tally.errors.is_empty() && !tally.statuses.contains_key(&503), "{tally:?}");

    manifests.write("circuit.yaml", &circuit("  timeout: 10m\n  maxEjectionPercent: \"100%\"\n"));
    wait_for("both are out", async || all_are(&ask(&switchyard, "/", 10).await, 503, "circuit-open")).await;
    assert_eq!(states().await, vec![("open".to_owned(), false); 2]);

    manifests.write("circuit.yaml", &circuit("  timeout: 10m\n  maxEjectionPercent: \"50%\"\n"));
    wait_for("one is brought in", async || states().await[0].0 == "closed").await;
    for instance in [&first, &second] {
        instance.fail_next(0);
    }
    wait_for("it answers well", async || all_are(&ask(&switchyard, "/", 10).await, 200, "")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_above_a_bound_is_answered_at_once_and_no_instance_is_to_blame() {
    let instance = Backend::start("v1").await;
    let manifests = Manifests::of(&[("v1", instance.address)]);
    manifests.write("circuit.yaml", &circuit("  failureThreshold: 1\n  limits: {maxRequests: 2}\n"));
    let switchyard = Switchyard::run(manifests.path()).await;
    let in_use = async || {
        let labels = [("service", "shop/my-service"), ("target", "all"), ("of", "requests")];
        switchyard.metric("switchyard_in_use", &labels).await
    };
    instance.delay(Duration::from_secs(3600));
    let mut hung = Vec::new();
    for under_way in [1.0, 2.0] {
        let mut wire = Wire::connect(switchyard.http).await;
        wire.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).await;
        hung.push(wire);
        wait_for("it is under way", async || in_use().await == under_way).await;
    }
    let reply = client::get(switchyard.http, HOST, "/").await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.reason(), reply.header("retry-after")), (503, "overloaded", ""));
    assert!(reply.text().contains("limits.maxRequests"), "{}", reply.text());
    let refused = [("service", "shop/my-service"), ("reason", "overloaded")];
    assert_eq!(switchyard.metric("switchyard_refusals_total", &refused).await, 1.0);
    // Callers that go away make room.
    hung.clear();
    wait_for("none is under way", async || in_use().await == 0.0).await;
    instance.delay(Duration::ZERO);
    assert!(all_are(&ask(&switchyard, "/", 3).await, 200, ""));
    assert_eq!(switchyard.circuit(instance.address).await.as_deref(), Some("closed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_connections_are_made_than_may_be_and_free_ones_serve_on() {
    let instance = Backend::start("v1").await;
    let manifests = Manifests::of(&[("v1", instance.address)]);
    manifests.write("circuit.yaml", &circuit("  limits: {maxConnections: 1}\n"));
    let switchyard = Switchyard::run_with(manifests.path(), &["--workers", "1"]).await;
    assert!(all_are(&ask(&switchyard, "/", 5).await, 200, ""), "over one connection");
    instance.delay(Duration::from_secs(3600));
    let asked = instance.asked();
    let mut wire = Wire::connect(switchyard.http).await;
    wire.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).await;
    wait_for("it has the connection", async || instance.asked() > asked).await;
    let reply = client::get(switchyard.http, HOST, "/").await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.reason()), (503, "overloaded"));
    assert!(reply.text().contains("limits.maxConnections"), "{}", reply.text());
    drop(wire);
    instance.delay(Duration::ZERO);
    wait_for("the connection has ended, and another one is made", async || {
        client::get(switchyard.http, HOST, "/").await.unwrap().status == 200
    })
    .await;
    assert_eq!(switchyard.circuit(instance.address).await.as_deref(), Some("closed"));
}

/// A policy that is held until then.
fn held(how: &str, until: Option<SystemTime>) -> String {
    let text = circuit(&format!("  timeout: 10m\n  override: {how}\n"));
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let Some(until) = until.map(seconds) else { return text };
    // A date of our own time in UTC, without a library for that: days are counted from one that is known.
    let (days, rest) = (until / 86_400, until % 86_400);
    let (mut year, mut day) = (1970, days);
    let length = |year: u64| {
        if year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400) { 366 } else { 365 }
    };
    while day >= length(year) {
        day -= length(year);
        year += 1;
    }
    let months = [31, length(year) - 337, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while day >= months[month] {
        day -= months[month];
        month += 1;
    }
    let time =
        format!("{year:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z", month + 1, day + 1, rest / 3600, rest / 60 % 60, rest % 60);
    let annotations = format!(
        "annotations: {{switchyard.dev/hold-until: \"{time}\", switchyard.dev/hold-by: ada, switchyard.dev/hold-why: a drill}}"
    );
    text.replace("namespace: shop}", &format!("namespace: shop, {annotations}}}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_circuit_that_is_held_is_as_it_is_held_and_the_traffic_decides_again_after_it() {
    let instance = Backend::start("v1").await;
    let manifests = Manifests::of(&[("v1", instance.address)]);
    manifests.write("circuit.yaml", &held("ForceOpen", None));
    let switchyard = Switchyard::run(manifests.path()).await;
    let reply = client::get(switchyard.http, HOST, "/").await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.reason(), reply.header("retry-after")), (503, "circuit-open", ""));
    assert_eq!(instance.asked(), 0);
    let target = instance.address.to_string();
    let shown = circuit_of(&switchyard, &target).await;
    assert_eq!((&shown["state"], &shown["reason"]), (&"open".into(), &"held open by hand".into()), "{shown}");
    assert!(shown["held"].is_object(), "{shown}");
    let labels = [("target", target.as_str())];
    assert_eq!(switchyard.metric("switchyard_circuit_held", &labels).await, 1.0);

    manifests.write("circuit.yaml", &held("ForceClosed", None));
    instance.fail();
    wait_for("it is held closed", async || ask(&switchyard, "/", 1).await[0].0 == 500).await;
    assert!(all_are(&ask(&switchyard, "/", 20).await, 500, ""), "whatever comes of it");
    assert_eq!(switchyard.circuit(instance.address).await.as_deref(), Some("closed"));

    manifests.write("circuit.yaml", &held("None", None));
    wait_for("the traffic opens it", async || ask(&switchyard, "/", 1).await[0].0 == 503).await;
    let shown = circuit_of(&switchyard, &target).await;
    assert_eq!((&shown["reason"], &shown["held"]), (&"5 failures in a row".into(), &Value::Null), "{shown}");
    assert_eq!(switchyard.metric("switchyard_circuit_held", &labels).await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_ends_by_itself() {
    let instance = Backend::start("v1").await;
    let manifests = Manifests::of(&[("v1", instance.address)]);
    let switchyard = Switchyard::run(manifests.path()).await;
    manifests.write("circuit.yaml", &held("ForceOpen", Some(SystemTime::now() + Duration::from_secs(3))));
    wait_for("it is held", async || ask(&switchyard, "/", 1).await[0].0 == 503).await;
    let shown = circuit_of(&switchyard, &instance.address.to_string()).await;
    assert_eq!(shown["reason"], "held open by hand: by ada: a drill", "{shown}");
    let reply = client::get(switchyard.http, HOST, "/").await.unwrap();
    assert!(reply.status == 200 || !reply.header("retry-after").is_empty(), "it is known when: {reply:?}");
    wait_for("it is let go", async || ask(&switchyard, "/", 1).await[0].0 == 200).await;
    wait_for("and that is told", async || {
        circuit_of(&switchyard, &instance.address.to_string()).await["reason"] == "no longer held by hand"
    })
    .await;
    manifests.write("circuit.yaml", &held("ForceOpen", Some(SystemTime::now() - Duration::from_secs(60))));
    wait_for("it is in force", async || switchyard.metric("switchyard_config_revision", &[]).await >= 3.0).await;
    assert!(all_are(&ask(&switchyard, "/", 3).await, 200, ""), "what is over holds nothing");
}

/// Requests for `/` go to version v2 alone.
fn to_v2() -> String {
    rule("to-v2", "  destinations: [{service: my-service, version: v2}]\n")
}

fn policy_of(version: &str, rest: &str) -> String {
    circuit(rest)
        .replace("name: circuit", &format!("name: circuit-{version}"))
        .replace("name: my-service}", &format!("name: my-service, version: {version}}}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_destination_stands_in_while_the_circuit_is_open_and_no_further() {
    let (v1, v2) = (Backend::start("v1").await, Backend::start("v2").await);
    let manifests = Manifests::of(&[("v1", v1.address), ("v2", v2.address)]);
    manifests.write("rule.yaml", &to_v2());
    let falls_back = |to: &str| {
        format!(
            "  scope: Destination\n  timeout: 10m\n  fallback: {{destination: {{service: my-service, version: {to}}}}}\n"
        )
    };
    // Each to the other: nobody goes round in circles.
    let both = [policy_of("v2", &falls_back("v1")), policy_of("v1", &falls_back("v2"))];
    manifests.write("circuit.yaml", &both.join("---\n"));
    let switchyard = Switchyard::run(manifests.path()).await;
    v2.fail();
    assert!(all_are(&ask(&switchyard, "/", 5).await, 500, ""));
    let asked = v2.asked();
    let mut connection = Connection::http1(switchyard.http).await.unwrap();
    for _ in 0..5 {
        let reply = connection.ask(get_request(HOST, "/")).await.unwrap();
        assert_eq!((reply.status.as_u16(), reply.version()), (200, "v1"));
    }
    assert_eq!(v2.asked(), asked);
    let fallbacks = [("service", "shop/my-service"), ("to", "destination")];
    assert_eq!(switchyard.metric("switchyard_fallbacks_total", &fallbacks).await, 5.0);
    let counted = [("rule", "shop/to-v2"), ("version", "v1"), ("class", "2xx")];
    wait_for("they are counted where they went", async || {
        switchyard.metric("switchyard_requests_total", &counted).await == 5.0
    })
    .await;

    v1.fail();
    assert!(all_are(&ask(&switchyard, "/", 5).await, 500, ""));
    assert!(
        all_are(&ask(&switchyard, "/", 3).await, 503, "circuit-open"),
        "the fallback's own fallback is not followed"
    );

    let manifests = manifests.path().to_str().unwrap();
    let said = process::output("switchyard", &["explain", "--manifests", manifests, &format!("http://{HOST}/")]);
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains("while it is open: to shop/my-service version v1"), "{said}");
    assert!(said.contains("to shop/my-service version v1: only while another's circuit is open"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fixed_reply_stands_in_and_says_when_probes_begin() {
    let instance = Backend::start("v1").await;
    let manifests = Manifests::of(&[("v1", instance.address)]);
    let policy = "  failureThreshold: 1\n  maxEjectionPercent: \"100%\"\n  fallback:\n    response: {status: 200, headers: [{name: X-From, value: cache}], body: '{\"items\": []}'}\n";
    manifests.write("circuit.yaml", &circuit(policy));
    let switchyard = Switchyard::run(manifests.path()).await;
    instance.fail();
    assert!(all_are(&ask(&switchyard, "/", 1).await, 500, ""));
    let reply = client::get(switchyard.http, HOST, "/").await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.reason(), reply.header("x-from")), (200, "circuit-open", "cache"));
    assert_eq!(reply.text(), "{\"items\": []}");
    let after: u64 = reply.header("retry-after").parse().unwrap();
    assert!((50..=66).contains(&after), "{after}");
    let fallbacks = [("service", "shop/my-service"), ("to", "response")];
    wait_for("it is counted", async || switchyard.metric("switchyard_fallbacks_total", &fallbacks).await == 1.0).await;

    // A connection whose request was not read to its end serves for no other, and the reply says so.
    let mut wire = Wire::connect(switchyard.http).await;
    let post = |length: usize| {
        format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: {length}\r\n\r\n{}", "x".repeat(100))
    };
    for _ in 0..2 {
        wire.send(post(100)).await;
        let reply = wire.reply().await.to_lowercase();
        assert!(reply.starts_with("http/1.1 200") && !reply.contains("connection: close"), "{reply}");
    }
    wire.send(post(300_000)).await;
    let reply = wire.reply().await.to_lowercase();
    assert!(reply.starts_with("http/1.1 200") && reply.contains("connection: close"), "{reply}");
}
