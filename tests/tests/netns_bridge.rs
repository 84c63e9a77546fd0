//! Interception where the pods of a node are on one bridge, as with the CNI plugin `bridge` and flannel: instances' answers would be switched
//! past the agent.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::SocketAddr;

use switchyard_tests::node::{Node, can_be_made};
use switchyard_tests::process::Process;
use switchyard_tests::scene::{IN, Scene, ip, same};
use switchyard_tests::{in_time, wait_for};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

/// Whether what the bridge switches passes the node's tables, as kube-proxy needs it for answers to be translated back.
fn passes_tables(node: &Node, passes: bool) {
    let n = u8::from(passes);
    let settings = format!("net.bridge.bridge-nf-call-iptables={n} net.bridge.bridge-nf-call-ip6tables={n}");
    node.space.exec(&format!("sysctl -qw {settings}"), "");
}

async fn scene() -> Scene {
    let node = Node::bridged();
    passes_tables(&node, true);
    Scene::on(node).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_go_by_rule_from_the_pods_own_address_whether_or_not_frames_pass_the_nodes_tables() {
    if !can_be_made() {
        return;
    }
    let scene = scene().await;
    let a = &scene.node.a;
    let _agent = scene.agent(&[]).await;
    for passes in [true, false] {
        passes_tables(&scene.node, passes);
        for service in IN {
            for port in [80, 81] {
                let reply = scene.ask(a, service, port).await.unwrap();
                assert_eq!(reply.version(), "v2", "{service}:{port}, {passes}: {reply:?}");
                assert_eq!(reply.header("x-source"), a.address(ip(service)).to_string());
            }
        }
    }
    // What says nothing for long is still known by its packets.
    let kept = scene.node.space.exec("ss -Htno state established sport >= 61000", "");
    assert!(!kept.is_empty() && kept.lines().all(|line| line.contains("timer:(keepalive")), "{kept}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_pods_say_to_each_other_from_such_ports_stays_on_the_bridge() {
    if !can_be_made() {
        return;
    }
    let scene = scene().await;
    let _agent = scene.agent(&[]).await;
    assert_eq!(scene.answers().await, "v2");
    passes_tables(&scene.node, false);
    // What comes to the node is not let through.
    scene
        .node
        .space
        .exec("nft -f -", "table inet closed { chain c {\ntype filter hook forward priority 0; policy drop; }\n}");
    for to in [scene.node.v2.v4, scene.node.v2.v6] {
        let own = scene.node.a.address(to);
        let talk = async move {
            let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
            socket.bind(SocketAddr::new(own, 61_234)).unwrap();
            let mut stream = socket.connect(SocketAddr::new(to, 8080)).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nhost: v2\r\nconnection: close\r\n\r\n").await.unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).await.unwrap();
            said
        };
        let said = scene.node.a.space.run(in_time("a conversation", talk)).await;
        assert!(said.contains("x-version: v2"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_agent_takes_over_and_a_stop_fails_no_request_and_leaves_nothing_behind() {
    if !can_be_made() {
        return;
    }
    let scene = scene().await;
    let before = scene.node.traces();
    let old = scene.agent(&[]).await;
    assert!(scene.node.traces().contains(&"table bridge switchyard {".to_owned()));
    let load = scene.load().await;
    load.goes_on_for(100).await;
    let new = scene.agent(&[]).await;
    old.takes(false).await;
    load.goes_on_for(100).await;
    assert_eq!(old.process().terminate().await.code(), Some(0));
    load.goes_on_for(100).await;
    assert_eq!(new.process().terminate().await.code(), Some(0));
    load.goes_on_for(100).await;
    let tally = load.stop().await;
    tally.all_good();
    assert!(tally.of("v1") >= 50 && tally.of("v2") >= 200, "first by the agents, then the plain way: {tally:?}");
    same(&scene.node.traces(), &before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bridge_that_comes_later_and_a_table_that_someone_removes_are_seen_to() {
    if !can_be_made() {
        return;
    }
    let scene = Scene::new().await;
    let before = scene.node.traces();
    let agent = scene.agent(&[]).await;
    let has_table = || scene.node.traces().contains(&"table bridge switchyard {".to_owned());
    assert!(!has_table(), "no bridge, no table");
    scene.node.space.ip("link add late0 type bridge");
    wait_for("the table is there", async || has_table()).await;
    scene.node.space.exec("nft delete table bridge switchyard", "");
    wait_for("the table is there again", async || has_table()).await;
    scene.node.space.ip("link del late0");
    wait_for("the table is gone with the bridge", async || !has_table()).await;
    scene.node.space.ip("link add late0 type bridge");
    wait_for("the table is there once more", async || has_table()).await;
    agent.process().kill();
    let uninstall = Process::start_in(&scene.node.space.name, "switchyard-agent", ["--uninstall"]);
    uninstall.exits_well().await;
    scene.node.space.ip("link del late0");
    same(&scene.node.traces(), &before);
    assert_eq!(scene.ask(&scene.node.a, IN[0], 80).await.unwrap().version(), "v1");
}
