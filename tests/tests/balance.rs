//! Which instance takes a request: none attracts traffic by failing, and one that is well again has its share.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use http::{Method, Request};
use switchyard_tests::backend::Backend;
use switchyard_tests::client::{Body, Connection, empty, get_request, request};
use switchyard_tests::load::{Load, ask_times};
use switchyard_tests::manifests::{HOST, Manifests};
use switchyard_tests::process::Switchyard;
use switchyard_tests::raw::RawServer;
use switchyard_tests::wait_for;

fn plain() -> Request<Body> {
    get_request(HOST, "/")
}

fn post() -> Request<Body> {
    request(Method::POST, HOST, "/", empty())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_fails_at_once_gets_next_to_nothing_and_its_share_when_it_is_well() {
    let (good, bad) = (Backend::start("good").await, Backend::start("bad").await);
    let manifests = Manifests::of(&[("v1", good.address), ("v1", bad.address)]);
    let switchyard = Switchyard::run(manifests.path()).await;
    // Quicker than the one that is well, as whoever does nothing is.
    good.delay(std::time::Duration::from_millis(3));
    bad.fail();
    let tally = ask_times(switchyard.http, 8, 2000, plain).await;
    let failed = tally.statuses.get(&500).copied().unwrap_or_default();
    assert!(failed > 0 && failed < 200, "{tally:?}");

    bad.fail_next(0);
    let load = Load::start(switchyard.http, 4, plain);
    wait_for("it has its share again", async || {
        let (before_good, before_bad) = (good.asked(), bad.asked());
        load.goes_on_for(100).await;
        (bad.asked() - before_bad) * 2 > good.asked() - before_good
    })
    .await;
    load.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_does_one_that_nobody_can_reach_or_that_breaks_off() {
    let (good, mut gone) = (Backend::start("good").await, Backend::start("gone").await);
    let resets = RawServer::start(|mut wire| async move {
        wire.reply().await;
        wire.reset();
    });
    let manifests = Manifests::of(&[("v1", good.address), ("v1", gone.address), ("v1", resets.address)]);
    let switchyard = Switchyard::run(manifests.path()).await;
    good.delay(std::time::Duration::from_millis(3));
    gone.kill();
    let tally = ask_times(switchyard.http, 8, 2000, post).await;
    let failed = tally.statuses.get(&502).copied().unwrap_or_default();
    assert!(tally.errors.is_empty() && failed > 0 && failed < 400, "{tally:?}");
    assert!(Connection::http1(switchyard.http).await.is_ok());
}
