//! Interception, with real packets: a node and its pods as network namespaces, real nftables, the real agent.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::SocketAddr;

use switchyard_proto::v1;
use switchyard_tests::client::{Connection, get_request};
use switchyard_tests::feed::Feed;
use switchyard_tests::node::{NODE, can_be_made};
use switchyard_tests::process::Process;
use switchyard_tests::scene::{IN, OUT, Scene, changed, ip, said, same};
use switchyard_tests::{in_time, wait_for};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opted_in_connections_go_by_rule_from_the_pods_own_address_and_others_the_plain_way() {
    if !can_be_made() {
        return;
    }
    let scene = Scene::new().await;
    let (a, b) = (&scene.node.a, &scene.node.b);
    for service in IN {
        let before = scene.ask(a, service, 80).await.unwrap();
        assert_eq!((before.version(), before.header("x-source")), ("v1", &*a.address(ip(service)).to_string()));
    }
    let agent = scene.agent(&[]).await;
    for (service, other) in IN.into_iter().zip(OUT) {
        let own = a.address(ip(service)).to_string();
        // A port that does not say what it speaks, too.
        for port in [80, 81] {
            let reply = scene.ask(a, service, port).await.unwrap();
            assert_eq!(reply.version(), "v2", "{service}:{port}");
            // In the family in which the caller has called.
            assert_eq!(reply.header("x-source"), own);
        }
        let other = scene.ask(a, other, 80).await.unwrap();
        assert_eq!((other.version(), other.header("x-source")), ("v1", &*own), "it is not opted in");
        let unknown = scene.ask(b, service, 80).await.unwrap();
        assert_eq!(unknown.version(), "v1", "pod b is not known to be one of this node's");
    }
    // Once it is known, it is taken in.
    scene.say.send(said(&scene.node, &[a, b])).unwrap();
    wait_for("pod b is taken in", async || scene.ask(b, IN[1], 80).await.unwrap().version() == "v2").await;
    assert!(agent.metric("switchyard_requests_total", &[("rule", "shop/to-v2")]).await > 0.0);
    // Who connects to the agent by itself gets nowhere.
    let wire = a.space.run(async {
        let mut stream = TcpStream::connect("169.254.115.121:15001").await.unwrap();
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: my-service.shop\r\n\r\n").await;
        let mut answer = Vec::new();
        let _ = in_time("the end", stream.read_to_end(&mut answer)).await;
        answer
    });
    assert!(wire.await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_killed_or_hangs_gives_traffic_back_within_five_seconds() {
    if !can_be_made() {
        return;
    }
    let scene = Scene::new().await;
    let before = scene.node.traces();
    let agent = scene.agent(&[]).await;
    assert_eq!(scene.answers().await, "v2");
    agent.process().signal("STOP");
    scene.answered_within_five_seconds_by("v1").await;
    agent.process().signal("CONT");
    wait_for("it takes connections in again", async || scene.answers().await == "v2").await;
    agent.process().kill();
    scene.answered_within_five_seconds_by("v1").await;
    // A new one makes all anew; and what a killed one leaves behind can be removed.
    let agent = scene.agent(&[]).await;
    assert_eq!(scene.answers().await, "v2");
    agent.process().kill();
    assert_ne!(scene.node.traces(), before);
    let uninstall = Process::start_in(&scene.node.space.name, "switchyard-agent", ["--uninstall"]);
    uninstall.exits_well().await;
    same(&scene.node.traces(), &before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_fails_no_request_and_leaves_nothing_behind() {
    if !can_be_made() {
        return;
    }
    let scene = Scene::new().await;
    let before = scene.node.traces();
    let agent = scene.agent(&[]).await;
    assert_ne!(scene.node.traces(), before);
    let load = scene.load().await;
    load.goes_on_for(200).await;
    assert_eq!(agent.process().terminate().await.code(), Some(0));
    load.goes_on_for(200).await;
    let tally = load.stop().await;
    tally.all_good();
    assert!(tally.of("v1") >= 100 && tally.of("v2") >= 200, "first by the agent, then the plain way: {tally:?}");
    same(&scene.node.traces(), &before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_agent_takes_over_under_load() {
    if !can_be_made() {
        return;
    }
    let scene = Scene::new().await;
    let before = scene.node.traces();
    let old = scene.agent(&[]).await;
    let load = scene.load().await;
    load.goes_on_for(100).await;
    let new = scene.agent(&[]).await;
    old.takes(false).await;
    load.goes_on_for(100).await;
    let taken_over = scene.node.traces();
    assert_eq!(old.process().terminate().await.code(), Some(0));
    // What the new one owns stays.
    same(&scene.node.traces(), &taken_over);
    load.goes_on_for(200).await;
    let tally = load.stop().await;
    tally.all_good();
    assert_eq!(tally.of("v1"), 0, "no connection went the plain way");
    new.takes(true).await;
    assert_eq!(new.process().terminate().await.code(), Some(0));
    same(&scene.node.traces(), &before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_instance_drops_of_a_pod_it_drops_through_the_agent() {
    if !can_be_made() {
        return;
    }
    let scene = Scene::new().await;
    let (a, b) = (&scene.node.a, &scene.node.b);
    scene.say.send(said(&scene.node, &[a, b])).unwrap();
    let drop_a = format!(
        "table inet fw {{ chain in {{ type filter hook input priority 0;\n\
         ip saddr {} drop\nip6 saddr {} drop\n}}\n}}\n",
        a.v4, a.v6
    );
    scene.node.v2.space.exec("nft -f -", &drop_a);
    let agent = scene.agent(&[]).await;
    wait_for("pod b is taken in", async || scene.ask(b, IN[0], 80).await.unwrap().version() == "v2").await;
    let refused = scene.ask(a, IN[0], 80).await.unwrap();
    assert_eq!(refused.reason(), "upstream-connect");
    drop(agent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_nodes_address_instances_see_the_node() {
    if !can_be_made() {
        return;
    }
    let scene = Scene::new().await;
    let _agent = scene.agent(&["--node-address"]).await;
    for service in IN {
        let reply = scene.ask(&scene.node.a, service, 80).await.unwrap();
        assert_eq!(reply.version(), "v2");
        assert!(NODE.contains(&reply.header("x-source")), "{}", reply.header("x-source"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_http_is_carried_and_a_server_may_speak_first() {
    if !can_be_made() {
        return;
    }
    let scene = Scene::new().await;
    let greet = |mut stream: TcpStream| async move {
        let peer = stream.peer_addr().unwrap().ip();
        stream.write_all(format!("hello {peer}\n").as_bytes()).await.unwrap();
        let mut all = Vec::new();
        // The caller ends its half first, and is answered all the same.
        stream.read_to_end(&mut all).await.unwrap();
        stream.write_all(format!("{} bytes\n", all.len()).as_bytes()).await.unwrap();
    };
    scene.node.v2.serve_raw(3306, greet).await;
    let agent = scene.agent(&[]).await;
    let a = &scene.node.a;
    for service in IN {
        let address = SocketAddr::new(ip(service), 3306);
        let said = a.space.run(in_time("a conversation", async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let mut hello = vec![0; 6];
            stream.read_exact(&mut hello).await.unwrap();
            stream.write_all(&[7; 100_000]).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut rest = String::new();
            stream.read_to_string(&mut rest).await.unwrap();
            String::from_utf8(hello).unwrap() + &rest
        }));
        let said = said.await;
        let own = a.address(ip(service));
        assert_eq!(said, format!("hello {own}\n100000 bytes\n"));
    }
    const SQL: &[(&str, &str)] = &[("service", "shop/my-service"), ("rule", "shop/to-v2"), ("version", "v2")];
    assert_eq!(agent.metric("switchyard_tcp_connections_total", SQL).await, 2.0);
    assert!(agent.metric("switchyard_tcp_bytes_total", SQL).await >= 200_000.0);

    // On a port that does not say what it speaks; and a connection that cannot be made is counted in the circuit.
    let address = SocketAddr::new(ip(IN[0]), 81);
    let greeted = changed(said(&scene.node, &[a]), |resources| {
        for resource in resources {
            if let Some(v1::resource::Content::Instances(instances)) = &mut resource.content {
                instances.instances.iter_mut().flat_map(|i| &mut i.ports).for_each(|port| {
                    port.port = if port.service_port == 81 { 3306 } else { 9 };
                });
            }
            resource.version.push('2');
        }
    });
    scene.say.send(v1::Update { revision: 2, ..greeted }).unwrap();
    wait_for("the change is in force", async || agent.metric("switchyard_config_revision", &[]).await == 2.0).await;
    let hello = a.space.run(in_time("a greeting", async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut hello = vec![0; 6];
        stream.read_exact(&mut hello).await.unwrap();
        hello
    }));
    assert_eq!(hello.await, b"hello ");
    let address = SocketAddr::new(ip(IN[0]), 3306);
    let ended = a.space.run(in_time("an end", async move {
        // The reset may come before the connection is seen to be there.
        TcpStream::connect(address).await?.read(&mut [0; 1]).await
    }));
    assert!(ended.await.is_err(), "nobody took it, and that is no end of a conversation");
    const FAILED: &[(&str, &str)] = &[("outcome", "failed")];
    assert!(agent.metric("switchyard_tcp_connections_total", FAILED).await >= 1.0);
    const OPEN: &[(&str, &str)] = &[("to", "open")];
    assert!(agent.metric("switchyard_circuit_transitions_total", OPEN).await >= 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_the_agent_does_not_know_is_carried_there_from_the_pods_address() {
    if !can_be_made() {
        return;
    }
    let scene = Scene::new().await;
    let agent = scene.agent(&[]).await;
    // As when a Service is gone from the table and not yet from the set.
    scene.node.space.exec("nft add element inet switchyard services4 { 10.96.0.99 . 80 }", "");
    scene.node.space.exec("nft add element inet switchyard services6 { fd96::99 . 80 }", "");
    for service in ["10.96.0.99", "fd96::99"] {
        let reply = scene.ask(&scene.node.a, service, 80).await.unwrap();
        let own = scene.node.a.address(ip(service)).to_string();
        assert_eq!((reply.version(), reply.header("x-source")), ("v1", &*own));
    }
    assert_eq!(agent.metric("switchyard_tcp_connections_total", &[("service", "")]).await, 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_is_opted_out_under_load_goes_the_plain_way_and_no_request_fails() {
    if !can_be_made() {
        return;
    }
    let scene = Scene::new().await;
    let _agent = scene.agent(&[]).await;
    let load = scene.load().await;
    load.goes_on_for(100).await;
    let out = changed(said(&scene.node, &[&scene.node.a]), |resources| {
        let Some(v1::resource::Content::Routes(routes)) = &mut resources[0].content else {
            panic!("routes come first")
        };
        routes.intercepted = false;
        resources[0].version.push('2');
    });
    scene.say.send(v1::Update { revision: 2, ..out }).unwrap();
    wait_for("new connections go the plain way", async || scene.answers().await == "v1").await;
    load.goes_on_for(100).await;
    load.stop().await.all_good();
    assert!(!scene.node.traces().iter().any(|line| line.contains("10.96.0.10 . 80")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_agents_need_not_know_any_more_goes_the_plain_way_and_no_request_fails() {
    if !can_be_made() {
        return;
    }
    let scene = Scene::new().await;
    let _agent = scene.agent(&[]).await;
    let load = scene.load().await;
    load.goes_on_for(100).await;
    let mut removals = Vec::new();
    let gone = changed(said(&scene.node, &[&scene.node.a]), |resources| {
        removals = resources.drain(..2).filter_map(|resource| resource.key).collect();
    });
    scene.say.send(v1::Update { revision: 2, removals, ..gone }).unwrap();
    wait_for("new connections go the plain way", async || scene.answers().await == "v1").await;
    load.goes_on_for(100).await;
    load.stop().await.all_good();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_cut_off_from_its_controller_gives_connections_back_and_takes_them_again() {
    if !can_be_made() {
        return;
    }
    let mut scene = Scene::new().await;
    let agent = scene.agent(&["--cut-off", "1"]).await;
    assert_eq!(scene.answers().await, "v2");
    scene.feed = None;
    agent.takes(false).await;
    assert_eq!(scene.answers().await, "v1");
    let (address, heard) = (scene.controller, scene.say.subscribe());
    wait_for("the port is free again", async || {
        scene.node.space.run(async move { std::net::TcpListener::bind(address).is_ok() }).await
    })
    .await;
    scene.feed = Some(scene.node.space.run(async move { Feed::start(address, heard) }).await);
    agent.takes(true).await;
    assert_eq!(scene.answers().await, "v2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_of_http2_is_told_to_go_away_so_that_the_agent_need_not_wait_for_it() {
    if !can_be_made() {
        return;
    }
    let scene = Scene::new().await;
    let agent = scene.agent(&["--drain", "600"]).await;
    let address = SocketAddr::new(ip(IN[0]), 81);
    let mut connection = scene.node.a.space.run(async move { Connection::http2(address).await.unwrap() }).await;
    assert_eq!(connection.ask(get_request("whoever", "/")).await.unwrap().version(), "v2");
    assert_eq!(agent.process().terminate().await.code(), Some(0));
    assert!(connection.ask(get_request("whoever", "/")).await.is_err());
}
