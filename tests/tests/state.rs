//! What an agent knows of instances when it comes back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use switchyard_tests::backend::Backend;
use switchyard_tests::client::{self, Connection, get_request};
use switchyard_tests::load::Load;
use switchyard_tests::manifests::{HOST, Manifests, circuit, retry};
use switchyard_tests::process::{Controller, Switchyard};
use switchyard_tests::wait_for;

/// When a circuit that opened is in the file at the latest, as `docs/circuit.md` says.
const WRITTEN_AFTER: Duration = Duration::from_millis(100);

/// What was seen of an open circuit: since when, and when probes begin.
type Seen = HashMap<String, (Instant, i64)>;

/// The circuits that are not closed, with when their probes begin.
async fn open(agent: &Switchyard) -> HashMap<String, i64> {
    let circuits = agent.circuits().await;
    let open = circuits.iter().filter(|circuit| circuit["state"] != "closed");
    open.map(|c| (c["target"].as_str().unwrap().to_owned(), c["probesAtUnixMs"].as_i64().unwrap())).collect()
}

fn set_aside(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".bad")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_a_hundred_times_under_load_an_agent_forgets_no_open_circuit() {
    let seed: u64 = std::env::var("SEED").ok().map_or_else(|| SmallRng::from_os_rng().random(), |s| s.parse().unwrap());
    println!("SEED={seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut instances = Vec::new();
    for _ in 0..40 {
        instances.push(Backend::start("v1").await);
    }
    let manifests = Manifests::of(&instances.iter().map(|i| ("v1", i.address)).collect::<Vec<_>>());
    manifests.write(
        "circuit.yaml",
        &circuit("  failureThreshold: 1\n  timeout: 1h\n  backoff: {maxTimeout: 2h}\n  maxEjectionPercent: \"90%\"\n"),
    );
    let state = tempfile::tempdir().unwrap();
    let controller = Controller::start(manifests.path(), "127.0.0.1:0".parse().unwrap()).await;
    let agent = Switchyard::agent(controller.agents, state.path()).await;
    agent.ready().await;
    agent.process.kill();

    let (mut safe, mut failing) = (HashMap::<String, i64>::new(), 0);
    for kill in 0..100 {
        if kill % 10 == 9 {
            // At any point of its start.
            let process = Switchyard::agent_process(controller.agents, state.path());
            (0..rng.random_range(0..5)).for_each(|_| std::thread::yield_now());
            process.kill();
            continue;
        }
        let agent = Switchyard::agent(controller.agents, state.path()).await;
        let load = Load::start(agent.http, 4, || get_request(HOST, "/"));
        let after = open(&agent).await;
        for (target, probes_at) in &safe {
            let now = after.get(target).unwrap_or_else(|| panic!("kill {kill}: {target} was open, and is forgotten"));
            assert!((now - probes_at).abs() < 1000, "{target}: probes begin at {now} rather than {probes_at}");
        }
        if failing < instances.len() - 5 {
            instances[failing].fail();
            failing += 1;
        }
        let mut seen = Seen::new();
        // At any point of its life.
        let (began, life) = (Instant::now(), Duration::from_millis(rng.random_range(0..300)));
        while began.elapsed() < life {
            for (target, probes_at) in open(&agent).await {
                seen.entry(target).or_insert((Instant::now(), probes_at));
            }
        }
        let now = Instant::now();
        agent.process.kill();
        let written = seen.into_iter().filter(|(_, (since, _))| now - *since > WRITTEN_AFTER);
        safe.extend(written.map(|(target, (_, probes_at))| (target, probes_at)));
        drop(load.stop().await);
        assert!(set_aside(state.path()).is_empty(), "{:?}", set_aside(state.path()));
    }
    assert!(safe.len() >= 10, "enough circuits opened to say something: {}", safe.len());
    let left: Vec<_> = std::fs::read_dir(state.path()).unwrap().collect();
    assert!(left.len() < 110, "what killed writers leave behind is bounded: {}", left.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_sigterm_a_circuit_is_as_it_was() {
    let (good, bad) = (Backend::start("v1").await, Backend::start("v1").await);
    let manifests = Manifests::of(&[("v1", good.address), ("v1", bad.address)]);
    manifests.write("circuit.yaml", &circuit("  failureThreshold: 1\n  timeout: 1h\n  backoff: {maxTimeout: 2h}\n"));
    let state = tempfile::tempdir().unwrap();
    let controller = Controller::start(manifests.path(), "127.0.0.1:0".parse().unwrap()).await;
    let agent = Switchyard::agent(controller.agents, state.path()).await;
    agent.ready().await;
    bad.fail();
    wait_for("the circuit opens", async || {
        client::ask(agent.http, get_request(HOST, "/")).await.unwrap();
        agent.circuit(bad.address).await.as_deref() == Some("open")
    })
    .await;
    let before = agent.circuit_of(bad.address).await.unwrap();
    assert!(agent.process.terminate().await.success());

    let agent = Switchyard::agent(controller.agents, state.path()).await;
    let after = agent.circuit_of(bad.address).await.unwrap();
    for field in ["state", "reason", "sinceUnixMs"] {
        assert_eq!(after[field], before[field], "{field}");
    }
    assert!((after["probesAtUnixMs"].as_i64().unwrap() - before["probesAtUnixMs"].as_i64().unwrap()).abs() < 1000);

    // Another window is another circuit.
    assert!(agent.process.terminate().await.success());
    manifests.write(
        "circuit.yaml",
        &circuit("  failureThreshold: 1\n  timeout: 1h\n  window: 20s\n  backoff: {maxTimeout: 2h}\n"),
    );
    let agent = Switchyard::agent(controller.agents, state.path()).await;
    agent.circuit_is(bad.address, "closed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_drawn_from_a_budget_is_drawn_after_a_restart() {
    let instance = Backend::start("v1").await;
    let manifests = Manifests::of(&[("v1", instance.address)]);
    manifests.write(
        "retry.yaml",
        &retry("  maxRetries: 1\n  retryOn: [ServerError]\n  budget: {ratio: \"0%\", minPerSecond: 1, window: 60s}\n"),
    );
    let state = tempfile::tempdir().unwrap();
    let controller = Controller::start(manifests.path(), "127.0.0.1:0".parse().unwrap()).await;
    let agent = Switchyard::agent(controller.agents, state.path()).await;
    agent.ready().await;
    instance.fail();
    let retried = async |agent: &Switchyard| {
        let before = instance.asked();
        let mut connection = Connection::http1(agent.http).await.unwrap();
        for _ in 0..200 {
            connection.ask(get_request(HOST, "/")).await.unwrap();
        }
        instance.asked() - before - 200
    };
    assert_eq!(retried(&agent).await, 60);
    assert!(agent.process.terminate().await.success());
    let agent = Switchyard::agent(controller.agents, state.path()).await;
    agent.ready().await;
    assert_eq!(retried(&agent).await, 0, "the window is as full as it was");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_no_state_is_set_aside_and_so_is_one_that_is_torn() {
    let instance = Backend::start("v1").await;
    let manifests = Manifests::of(&[("v1", instance.address)]);
    let controller = Controller::start(manifests.path(), "127.0.0.1:0".parse().unwrap()).await;
    for torn in [&b"SWYD torn"[..], b"", b"{\"circuits\": []}"] {
        let state = tempfile::tempdir().unwrap();
        std::fs::write(state.path().join("circuits"), torn).unwrap();
        let agent = Switchyard::agent(controller.agents, state.path()).await;
        agent.ready().await;
        assert_eq!(client::ask(agent.http, get_request(HOST, "/")).await.unwrap().status, 200);
        assert_eq!(set_aside(state.path()), ["circuits.bad"]);
    }
}
