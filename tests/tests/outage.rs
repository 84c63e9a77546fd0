//! Outages under load: half of the instances, and all of them. What callers see of it, what retries add to it, and how it ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Instant;

use http::Request;
use serde_json::Value;
use switchyard_tests::backend::Backend;
use switchyard_tests::client::{self, Body, get_request};
use switchyard_tests::load::{Load, ask_times};
use switchyard_tests::manifests::{HOST, Manifests, circuit, retry};
use switchyard_tests::process::Switchyard;
use switchyard_tests::wait_for;

fn plain() -> Request<Body> {
    get_request(HOST, "/")
}

async fn instances(count: usize) -> Vec<Backend> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(Backend::start("v1").await);
    }
    all
}

async fn with_circuit(policy: Option<&str>, instances: &[Backend]) -> (Manifests, Switchyard) {
    let manifests = Manifests::of(&instances.iter().map(|instance| ("v1", instance.address)).collect::<Vec<_>>());
    manifests.write("retry.yaml", &retry(""));
    if let Some(policy) = policy {
        manifests.write("circuit.yaml", &circuit(policy));
    }
    let switchyard = Switchyard::run(manifests.path()).await;
    (manifests, switchyard)
}

fn asked(instances: &[Backend]) -> u64 {
    instances.iter().map(Backend::asked).sum()
}

/// The default budget: a fifth, and ten a second; of the ten seconds before, and of those since it `began`.
fn budget(requests: u64, began: Instant) -> u64 {
    requests / 5 + 100 + 10 * began.elapsed().as_secs()
}

async fn half_of_them_fail(policy: Option<&str>) {
    let all = instances(6).await;
    let (_manifests, switchyard) = with_circuit(policy, &all).await;
    let began = Instant::now();
    ask_times(switchyard.http, 16, 1000, plain).await.all_good();
    all[..3].iter().for_each(Backend::fail);
    let tally = ask_times(switchyard.http, 16, 8000, plain).await;
    let (failed, added) = (8000 - tally.good(), asked(&all) - 9000);
    println!("half of 6 instances fail, circuit {policy:?}: {failed} of 8000 requests failed, {added} retries");
    assert!(tally.errors.is_empty() && failed < 8, "{tally:?}");
    let most = budget(9000, began);
    assert!(all[..3].iter().all(|instance| instance.asked() > 0) && added <= most, "{added} of {most}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_do_not_see_that_half_of_the_instances_fail() {
    half_of_them_fail(Some("  timeout: 1s\n")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_do_they_where_there_is_no_circuit() {
    half_of_them_fail(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_instances_fail_retries_add_no_more_than_the_budget() {
    let all = instances(4).await;
    let (_manifests, switchyard) = with_circuit(None, &all).await;
    all.iter().for_each(Backend::fail);
    let began = Instant::now();
    let tally = ask_times(switchyard.http, 16, 4000, plain).await;
    assert_eq!(tally.statuses.get(&500), Some(&4000), "{tally:?}");
    let (added, most) = (asked(&all) - 4000, budget(4000, began));
    println!("all of 4 instances fail: {added} retries for 4000 requests, and the budget has {most}");
    assert!(added <= most, "{added} of {most}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_are_well_again_the_first_probe_of_each_brings_it_back() {
    let all = instances(4).await;
    let policy = "  timeout: 1s\n  backoff: {maxTimeout: 1s}\n  successThreshold: 1\n  maxEjectionPercent: \"100%\"\n";
    let (_manifests, switchyard) = with_circuit(Some(policy), &all).await;
    let (load, began) = (Load::start(switchyard.http, 8, plain), Instant::now());
    load.goes_on_for(100).await;
    all.iter().for_each(Backend::fail);
    for instance in &all {
        switchyard.circuit_is(instance.address, "open").await;
    }
    let changed = async |to| switchyard.metric("switchyard_circuit_transitions_total", &[("to", to)]).await;
    // Probes that fail open them again.
    wait_for("probes have failed", async || changed("open").await >= 8.0).await;
    let added = asked(&all).saturating_sub(load.tally().statuses.values().sum());
    let most = budget(load.tally().statuses.values().sum(), began);
    assert!(added <= most, "{added} of {most}");

    all.iter().for_each(|instance| instance.fail_next(0));
    let page = client::get(switchyard.admin, "admin", "/circuits").await.unwrap().text();
    let circuits: Vec<Value> = serde_json::from_str(&page).unwrap();
    let waits: Vec<u64> = circuits.iter().filter_map(|circuit| circuit["probesInMs"].as_u64()).collect();
    assert!(circuits.len() == 4 && waits.iter().all(|wait| *wait <= 1000), "no longer than the timeout: {waits:?}");
    let opened = changed("open").await;
    for instance in &all {
        switchyard.circuit_is(instance.address, "closed").await;
    }
    assert!(changed("open").await <= opened + 4.0, "but for those under way no probe fails any more");
    let failed = load.tally().statuses;
    load.goes_on_for(200).await;
    let tally = load.stop().await;
    let since: Vec<_> =
        tally.statuses.iter().filter(|(status, n)| **status != 200 && failed.get(status) != Some(n)).collect();
    assert!(tally.errors.is_empty() && since.is_empty(), "{since:?}: {tally:?}");
}

/// Those that are out would not be asked for ten minutes, and all that are in fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_failing_half_changes_sides_the_other_half_is_found() {
    let all = instances(6).await;
    let (_manifests, switchyard) = with_circuit(Some("  timeout: 10m\n"), &all).await;
    all[..3].iter().for_each(Backend::fail);
    let load = Load::start(switchyard.http, 4, plain);
    for instance in &all[..3] {
        switchyard.circuit_is(instance.address, "open").await;
    }
    all[3..].iter().for_each(Backend::fail);
    all[..3].iter().for_each(|instance| instance.fail_next(0));
    wait_for("hardly any request fails", async || {
        let before = (load.tally().good(), load.tally().statuses.values().sum::<u64>());
        load.goes_on_for(200).await;
        let after = (load.tally().good(), load.tally().statuses.values().sum::<u64>());
        after.0 - before.0 == after.1 - before.1
    })
    .await;
    load.stop().await;
}
