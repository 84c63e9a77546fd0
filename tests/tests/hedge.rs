//! Hedging: an instance that is slow costs its callers little, and never more requests than retries may be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use http::{Method, Request};
use switchyard_tests::backend::Backend;
use switchyard_tests::client::{self, Body, full, get_request, request};
use switchyard_tests::load::ask_times;
use switchyard_tests::manifests::{HOST, Manifests, circuit, retry};
use switchyard_tests::process::Switchyard;

const AN_HOUR: Duration = Duration::from_secs(3600);

fn plain() -> Request<Body> {
    get_request(HOST, "/")
}

async fn with_policy(rest: &str, instances: &[&Backend]) -> (Manifests, Switchyard) {
    let addresses: Vec<_> = instances.iter().map(|instance| (instance.version(), instance.address)).collect();
    let manifests = Manifests::of(&addresses);
    manifests.write("retry.yaml", &retry(rest));
    // Whoever loses gives back what it holds: a request and the one beside it, and no more.
    manifests.write("circuit.yaml", &circuit("  limits: {maxRequests: 2}\n"));
    let switchyard = Switchyard::run_with(manifests.path(), &["--workers", "1"]).await;
    (manifests, switchyard)
}

async fn hedges(switchyard: &Switchyard, outcome: &str) -> f64 {
    switchyard.metric("switchyard_retries_total", &[("reason", "hedge"), ("outcome", outcome)]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_instance_is_not_waited_for() {
    let (slow, quick) = (Backend::start("slow").await, Backend::start("quick").await);
    let (_manifests, switchyard) = with_policy("  hedge: {after: 30ms}\n", &[&slow, &quick]).await;
    slow.delay(AN_HOUR);
    let tally = ask_times(switchyard.http, 1, 30, plain).await;
    tally.all_good();
    assert_eq!(tally.of("quick"), 30);
    assert!(slow.asked() > 0);
    assert_eq!(hedges(&switchyard, "success").await, slow.asked() as f64);
    assert_eq!(quick.asked(), 30, "one that answers in time has none beside it");
    let numbers =
        quick.seen().into_iter().map(|seen| seen.headers["x-switchyard-attempt"].to_str().unwrap().to_owned());
    assert_eq!(numbers.filter(|number| number == "2").count() as u64, slow.asked());
    assert_eq!(switchyard.circuit(slow.address).await.as_deref(), Some("closed"), "to lose is no failure");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_try_has_the_whole_body_and_a_post_is_never_sent_twice() {
    let (slow, quick) = (Backend::start("slow").await, Backend::start("quick").await);
    let (_manifests, switchyard) = with_policy("  hedge: {after: 30ms}\n", &[&slow, &quick]).await;
    let body = vec![b'x'; 40_000];
    slow.delay(AN_HOUR);
    switchyard_tests::wait_for("a request met the slow one", async || {
        let reply = client::ask(switchyard.http, request(Method::PUT, HOST, "/", full(body.clone()))).await.unwrap();
        assert_eq!((reply.version(), &reply.body[..]), ("quick", &body[..]));
        slow.asked() > 0
    })
    .await;
    assert!(slow.seen().iter().chain(&quick.seen()).all(|seen| seen.body == body));
    slow.delay(Duration::from_millis(100));
    let asked = slow.asked() + quick.asked();
    let before = slow.asked();
    let mut posts = 0;
    switchyard_tests::wait_for("a POST met the slow one", async || {
        client::ask(switchyard.http, request(Method::POST, HOST, "/", full("once"))).await.unwrap();
        posts += 1;
        slow.asked() > before
    })
    .await;
    assert_eq!(slow.asked() + quick.asked(), asked + posts);
    assert_eq!(hedges(&switchyard, "method").await, (slow.asked() - before) as f64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_beside_a_slow_one_is_no_answer_while_that_may_come() {
    let (slow, fails) = (Backend::start("slow").await, Backend::start("fails").await);
    let policy = "  hedge: {after: 30ms}\n  maxRetries: 1\n  budget: {ratio: \"100%\"}\n";
    let (_manifests, switchyard) = with_policy(policy, &[&slow, &fails]).await;
    slow.delay(Duration::from_millis(200));
    fails.fail();
    let tally = ask_times(switchyard.http, 1, 10, plain).await;
    tally.all_good();
    assert_eq!((tally.of("slow"), slow.asked()), (10, 10));
    let beside = hedges(&switchyard, "failure").await;
    let after =
        switchyard.metric("switchyard_retries_total", &[("reason", "server-error"), ("outcome", "success")]).await;
    assert_eq!(beside + after, fails.asked() as f64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tries_beside_others_are_out_of_the_budget() {
    let (one, other) = (Backend::start("v1").await, Backend::start("v1").await);
    let policy = "  hedge: {after: 10ms, max: 3}\n  budget: {ratio: \"20%\", minPerSecond: 0, window: 60s}\n";
    let (_manifests, switchyard) = with_policy(policy, &[&one, &other]).await;
    one.delay(Duration::from_millis(40));
    other.delay(Duration::from_millis(40));
    let tally = ask_times(switchyard.http, 1, 50, plain).await;
    tally.all_good();
    let more = one.asked() + other.asked() - 50;
    assert!((5..=10).contains(&more), "{more} for 50 requests");
    let refused = hedges(&switchyard, "budget").await + hedges(&switchyard, "no-instance").await;
    let made = hedges(&switchyard, "success").await + hedges(&switchyard, "cancelled").await;
    // Each request has one that is made, or one that is not, and then no other.
    assert!(made == more as f64 && refused >= 50.0 - made, "{made} were made, and {refused} not");
}
