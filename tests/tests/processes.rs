//! Controller and agent as two processes, each of which may go at any time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::SocketAddr;

use http_body_util::BodyExt;
use switchyard_tests::backend::{Backend, Server};
use switchyard_tests::client::{self, Connection, full, get_request};
use switchyard_tests::load::Load;
use switchyard_tests::manifests::{HOST, Manifests, canary};
use switchyard_tests::process::{Controller, Switchyard, example};
use switchyard_tests::{binary, wait_for};

const ANY: &str = "127.0.0.1:0";
const RECEIVED: &str = "switchyard_agent_resources_received_total";

fn any() -> SocketAddr {
    ANY.parse().unwrap()
}

fn plain() -> http::Request<client::Body> {
    get_request(HOST, "/")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_is_killed_under_load_is_not_missed_and_resumes_with_what_has_changed_only() {
    let (v1, v2) = (Backend::start("v1").await, Backend::start("v2").await);
    let manifests = Manifests::canary(&[("v1", v1.address), ("v2", v2.address)], 20, 80);
    let state = tempfile::tempdir().unwrap();
    let controller = Controller::start(manifests.path(), any()).await;
    let agent = Switchyard::agent(controller.agents, state.path()).await;
    agent.ready().await;
    agent.splits(20, 80).await;
    let all = agent.metric(RECEIVED, &[]).await;
    assert!(all >= 2.0, "routes and instances of one Service, at least: {all}");

    let load = Load::start(agent.http, 4, plain);
    load.goes_on_for(50).await;
    let address = controller.agents;
    controller.process.kill();
    wait_for("the agent sees that it is alone", async || {
        agent.metric("switchyard_agent_controller_connected", &[]).await == 0.0
    })
    .await;
    load.goes_on_for(100).await;
    assert!(agent.is_ready().await);

    let controller = Controller::start(manifests.path(), address).await;
    wait_for("the agent is connected again", async || {
        agent.metric("switchyard_agent_streams_total", &[]).await >= 2.0
            && agent.metric("switchyard_agent_controller_connected", &[]).await == 1.0
    })
    .await;
    let acked = async || {
        let revision = controller.metric("switchyard_controller_revision").await;
        revision > 0.0 && controller.metric("switchyard_controller_revision_acked").await == revision
    };
    wait_for("what is published is acknowledged", acked).await;
    assert_eq!(agent.metric(RECEIVED, &[]).await, all, "nothing has changed, so nothing is sent");
    assert_eq!(controller.metric("switchyard_controller_resources_sent_total").await, 0.0);

    manifests.write("canary.yaml", &canary(50, 50));
    agent.splits(50, 50).await;
    assert_eq!(agent.metric(RECEIVED, &[]).await, all + 1.0, "the routes have changed, and nothing else");
    wait_for("the change is acknowledged", acked).await;
    load.goes_on_for(50).await;
    load.stop().await.all_good();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_restarts_beside_a_broken_file_has_what_held_before() {
    let (v1, v2) = (Backend::start("v1").await, Backend::start("v2").await);
    let manifests = Manifests::canary(&[("v1", v1.address), ("v2", v2.address)], 20, 80);
    let (state, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let controller = Controller::start_at_home(manifests.path(), any(), home.path()).await;
    let agent = Switchyard::agent(controller.agents, state.path()).await;
    agent.splits(20, 80).await;
    controller.process.kill();
    manifests.write("service.yaml", "a: [");
    manifests.write("canary.yaml", "a: [");
    let controller = Controller::start_at_home(manifests.path(), controller.agents, home.path()).await;
    wait_for("the agent has what the controller publishes", async || {
        let revision = controller.metric("switchyard_controller_revision").await;
        revision > 0.0 && controller.metric("switchyard_controller_revision_acked").await == revision
    })
    .await;
    assert_eq!(agent.split("my-service").await, [("v2".to_owned(), 20), ("v1".to_owned(), 80)]);
    assert_eq!(client::ask(agent.http, plain()).await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_restarts_without_a_controller_serves_its_last_good_config() {
    let (v1, v2) = (Backend::start("v1").await, Backend::start("v2").await);
    let manifests = Manifests::canary(&[("v1", v1.address), ("v2", v2.address)], 20, 80);
    let state = tempfile::tempdir().unwrap();
    let controller = Controller::start(manifests.path(), any()).await;
    let agent = Switchyard::agent(controller.agents, state.path()).await;
    agent.splits(20, 80).await;
    let address = controller.agents;
    controller.process.kill();
    agent.process.kill();

    let agent = Switchyard::agent(address, state.path()).await;
    agent.ready().await;
    assert_eq!(agent.split("my-service").await, [("v2".to_owned(), 20), ("v1".to_owned(), 80)]);
    assert_eq!(client::ask(agent.http, plain()).await.unwrap().status, 200);
    assert_eq!(agent.metric(RECEIVED, &[]).await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_with_nothing_to_go_by_is_alive_and_not_ready() {
    let state = tempfile::tempdir().unwrap();
    // Nobody listens there: the port was free a moment ago.
    let nobody = std::net::TcpListener::bind(ANY).unwrap().local_addr().unwrap();
    let agent = Switchyard::agent(nobody, state.path()).await;
    assert!(!agent.is_ready().await);
    assert_eq!(client::get(agent.admin, "admin", "/healthz").await.unwrap().status, 200);
    assert_eq!(client::ask(agent.http, plain()).await.unwrap().reason(), "no-route");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_state_file_is_set_aside_and_the_controllers_config_taken() {
    let v1 = Backend::start("v1").await;
    let manifests = Manifests::of(&[("v1", v1.address)]);
    let state = tempfile::tempdir().unwrap();
    let controller = Controller::start(manifests.path(), any()).await;
    std::fs::write(state.path().join("config"), b"SWYD torn").unwrap();
    let agent = Switchyard::agent(controller.agents, state.path()).await;
    agent.ready().await;
    assert_eq!(client::ask(agent.http, plain()).await.unwrap().status, 200);
    assert!(state.path().join("config.bad").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_finishes_what_is_under_way_and_exits_zero() {
    let (go, going) = tokio::sync::watch::channel(false);
    let asked = std::sync::Arc::new(tokio::sync::Notify::new());
    let told = std::sync::Arc::clone(&asked);
    let slow = Server::start(move |request| {
        let (mut going, told) = (going.clone(), std::sync::Arc::clone(&told));
        Box::pin(async move {
            told.notify_one();
            going.wait_for(|go| *go).await.unwrap();
            drop(request.into_body().collect().await);
            Ok(http::Response::new(full("done")))
        })
    })
    .await;
    let manifests = Manifests::of(&[("v1", slow.address)]);
    let switchyard = Switchyard::run(manifests.path()).await;
    let http = switchyard.http;
    let call = tokio::spawn(async move { client::ask(http, plain()).await.unwrap() });
    asked.notified().await;
    let finishing = async {
        wait_for("nobody new is let in", async || Connection::http1(http).await.is_err()).await;
        go.send(true).unwrap();
        call.await.unwrap().text()
    };
    let (status, text) = tokio::join!(switchyard.process.terminate(), finishing);
    assert_eq!((status.code(), text.as_str()), (Some(0), "done"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_to_listen_is_no_reason_to_stop() {
    let state = tempfile::tempdir().unwrap();
    let state = state.path().to_str().unwrap();
    let folder = example("canary");
    let run = ["run", "--manifests", folder.to_str().unwrap()];
    // Where it listens it cannot say, so that is chosen here.
    let free = std::net::TcpListener::bind(ANY).unwrap().local_addr().unwrap();
    let here = free.to_string();
    let both = ["--http", ANY, "--state", state, "--admin", here.as_str()];
    let commands = [
        ("switchyard", [&run[..], &both].concat()),
        ("switchyard", vec!["sample", "--listen", here.as_str()]),
        ("switchyard-agent", [&["--controller", "127.0.0.1:9"], &both[..]].concat()),
    ];
    for (name, args) in commands {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = std::process::Command::new(binary(name));
        let mut process = command.args(&args).stdout(full).stderr(std::process::Stdio::null()).spawn().unwrap();
        wait_for("it serves", async || tokio::net::TcpStream::connect(free).await.is_ok()).await;
        let kill = format!("kill -TERM {}", process.id());
        assert!(std::process::Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        let status = process.wait().unwrap();
        assert_ne!(status.code(), Some(101), "{name} {args:?} panicked");
    }
}
