//! Circuits: when an instance is out, that it is out, and how it comes back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use switchyard_tests::backend::Backend;
use switchyard_tests::client::{Connection, get_request};
use switchyard_tests::load::Load;
use switchyard_tests::manifests::{HOST, Manifests, canary, circuit};
use switchyard_tests::process::Switchyard;
use switchyard_tests::wait_for;

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
