//! What a process has in memory: idle, and under what callers can do to it. Each bound is the code's own; here it is held against the
//! process. `SWITCHYARD_MEMORY_SCALE=5` asks for five times as much, and `--nocapture` shows the numbers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use switchyard_tests::backend::{Backend, Server};
use switchyard_tests::client::{Body, Connection, get_request, request};
use switchyard_tests::manifests::{HOST, Manifests, retry};
use switchyard_tests::process::{Switchyard, example};
use switchyard_tests::raw::Wire;
use switchyard_tests::{binary, wait_for};

/// What `switchyard run` with the canary example may have.
const MOST_KIB: u64 = 30 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_with_the_canary_example_it_has_less_than_30_mebibytes() {
    let switchyard = Switchyard::run(&example("canary")).await;
    switchyard.splits(20, 80).await;
    let memory = switchyard.process.memory();
    eprintln!("idle: {} KiB, of {}", memory.now_kib, Path::new(&binary("switchyard")).display());
    assert!(memory.now_kib < MOST_KIB, "{memory:?}");
}

/// So many, or as many times as that as are asked for.
fn times(count: usize) -> usize {
    count * std::env::var("SWITCHYARD_MEMORY_SCALE").map_or(1, |scale| scale.parse::<usize>().unwrap())
}

/// What `things` cost, of which each may take so many KiB, beside what the process has at first.
fn costs(switchyard: &Switchyard, before_kib: u64, (what, count): (&str, usize), each_kib: u64) {
    let memory = switchyard.process.memory();
    let (now, peak) = (memory.now_kib.saturating_sub(before_kib), memory.peak_kib.saturating_sub(before_kib));
    let each = now as f64 / count as f64;
    eprintln!("{count} {what}: {now} KiB more, {each:.1} each, {peak} at most; of {before_kib} before");
    // What the process has besides does not grow with them.
    assert!(peak < each_kib * count as u64 + 16 * 1024, "{count} {what} take {peak} KiB");
}

async fn run(instance: std::net::SocketAddr, policy: &str) -> (Manifests, Switchyard, u64) {
    let manifests = Manifests::of(&[("v1", instance)]);
    if !policy.is_empty() {
        manifests.write("retry.yaml", &retry(policy));
    }
    let switchyard = Switchyard::run(manifests.path()).await;
    let before = switchyard.process.memory().now_kib;
    (manifests, switchyard, before)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_idle_take_little() {
    let instance = Backend::start("v1").await;
    let (_manifests, switchyard, before) = run(instance.address, "").await;
    let mut idle = Vec::new();
    for _ in 0..times(1000) {
        let mut wire = Wire::connect(switchyard.http).await;
        wire.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).await;
        assert!(wire.reply().await.starts_with("HTTP/1.1 200 "));
        idle.push(wire);
    }
    costs(&switchyard, before, ("idle connections", idle.len()), 24);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_do_not_end_take_what_a_head_may_have() {
    let instance = Backend::start("v1").await;
    let (_manifests, switchyard, before) = run(instance.address, "").await;
    let mut heads = Vec::new();
    for _ in 0..times(200) {
        let mut wire = Wire::connect(switchyard.http).await;
        let field = format!("x-field: {}\r\n", "x".repeat(1000));
        wire.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n{}", field.repeat(60))).await;
        heads.push(wire);
    }
    // Those after them are answered, and so they have been read.
    for _ in 0..20 {
        assert_eq!(switchyard_tests::client::get(switchyard.http, HOST, "/").await.unwrap().status, 200);
    }
    costs(&switchyard, before, ("heads of 60 KiB that do not end", heads.len()), 160);
}

fn endless() -> Body {
    let chunk = Bytes::from(vec![b'x'; 64 * 1024]);
    let frames = futures_util::stream::repeat_with(move || Ok::<_, std::io::Error>(Frame::data(chunk.clone())));
    StreamBody::new(frames).boxed_unsync()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_do_not_read_hold_back_what_they_asked_for() {
    let server = Server::start(|_| Box::pin(async { Ok(Response::new(endless())) })).await;
    let (_manifests, switchyard, before) = run(server.address, "").await;
    let mut unread = Vec::new();
    for number in 0..times(100) {
        let mut connection = match number % 2 {
            0 => Connection::http1(switchyard.http).await.unwrap(),
            _ => Connection::http2(switchyard.http).await.unwrap(),
        };
        let mut reply = connection.send(get_request(HOST, "/")).await.unwrap();
        assert!(reply.body_mut().frame().await.is_some());
        unread.push((connection, reply));
    }
    costs(&switchyard, before, ("endless replies that nobody reads", unread.len()), 640);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_wait_take_little() {
    const STREAMS: usize = 250;
    let instance = Backend::start("v1").await;
    let (_manifests, switchyard, before) = run(instance.address, "").await;
    instance.delay(Duration::from_secs(3600));
    let (mut waiting, mut connections) = (tokio::task::JoinSet::new(), Vec::new());
    for _ in 0..times(8) {
        let Connection::Http2(sender) = Connection::http2(switchyard.http).await.unwrap() else { panic!("HTTP/2") };
        for _ in 0..STREAMS {
            let mut connection = Connection::Http2(sender.clone());
            waiting.spawn(async move { connection.send(get_request(HOST, "/")).await.is_ok() });
        }
        connections.push(sender);
    }
    let count = connections.len() * STREAMS;
    wait_for("all of them reached the instance", async || instance.asked() >= count as u64).await;
    costs(&switchyard, before, ("streams that wait", count), 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_are_kept_for_retries_have_a_bound_together() {
    // What is sent of each; together it is far more than a worker keeps.
    const SENT: usize = 6 << 20;
    let (arrived, came) = tokio::sync::mpsc::unbounded_channel();
    let server = Server::start(move |request: Request<hyper::body::Incoming>| {
        let arrived = arrived.clone();
        Box::pin(async move {
            let (mut body, mut length) = (request.into_body(), 0);
            while let Some(Ok(frame)) = body.frame().await {
                length += frame.data_ref().map_or(0, Bytes::len);
                if length == SENT {
                    arrived.send(()).unwrap();
                }
            }
            Ok(Response::new(switchyard_tests::client::empty()))
        })
    });
    let (server, mut came) = (server.await, came);
    let manifests = Manifests::of(&[("v1", server.address)]);
    manifests.write("retry.yaml", &retry("  methods: [PUT]\n  maxBodyBytes: 16Mi\n"));
    let switchyard = Switchyard::run_with(manifests.path(), &["--workers", "1"]).await;
    let before = switchyard.process.memory().now_kib;
    let mut callers = Vec::new();
    for _ in 0..times(30) {
        let mut connection = Connection::http1(switchyard.http).await.unwrap();
        // It has no end.
        let sent = futures_util::stream::iter((0..SENT / (64 << 10)).map(|_| Bytes::from(vec![b'x'; 64 << 10])));
        let frames = futures_util::StreamExt::chain(sent, futures_util::stream::pending());
        let frames = futures_util::StreamExt::map(frames, |bytes| Ok::<_, std::io::Error>(Frame::data(bytes)));
        let body = StreamBody::new(frames).boxed_unsync();
        callers.push(tokio::spawn(async move { drop(connection.ask(request(Method::PUT, HOST, "/", body)).await) }));
    }
    for _ in 0..callers.len() {
        switchyard_tests::in_time("a body that has come", came.recv()).await.unwrap();
    }
    let memory = switchyard.process.memory();
    let more = memory.peak_kib - before;
    eprintln!("{} bodies of {} MiB: {more} KiB more at most", callers.len(), SENT >> 20);
    // 64 MiB, and what buffers and their allocation take besides.
    assert!(more < 120 * 1024, "{more} KiB more");
    callers.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Of 1,250 replies without end that nobody reads each could take what one stream may: far more than the agent is allowed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn near_its_limit_an_agent_breaks_off_what_is_not_taken_and_serves_who_takes() {
    const LIMIT_MIB: u64 = 64;
    let server = Server::start(|request: Request<hyper::body::Incoming>| {
        let body = if request.uri().path() == "/" { switchyard_tests::client::full("hello") } else { endless() };
        Box::pin(async { Ok(Response::new(body)) })
    });
    let server = server.await;
    let manifests = Manifests::of(&[("v1", server.address)]);
    let limit = LIMIT_MIB.to_string();
    let switchyard = Switchyard::run_with(manifests.path(), &["--workers", "1", "--memory-limit", &limit]).await;
    let mut reader = Connection::http1(switchyard.http).await.unwrap();
    let mut read = reader.send(get_request(HOST, "/endless")).await.unwrap();
    let (taken, takes) = tokio::sync::watch::channel(0u64);
    let reading = tokio::spawn(async move {
        while let Some(Ok(frame)) = read.body_mut().frame().await {
            taken.send_modify(|taken| *taken += frame.data_ref().map_or(0, Bytes::len) as u64);
        }
    });
    let mut unread = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let Connection::Http2(sender) = Connection::http2(switchyard.http).await.unwrap() else { panic!("HTTP/2") };
        for _ in 0..250 {
            let mut connection = Connection::Http2(sender.clone());
            unread.spawn(async move {
                let reply = connection.send(get_request(HOST, "/endless")).await;
                // It is held, and not read, until its connection is gone.
                std::future::pending::<()>().await;
                drop((connection, reply));
            });
        }
    }
    wait_for("connections are broken off", async || {
        switchyard.metric("switchyard_agent_connections_broken_off_total", &[]).await >= 1.0
    })
    .await;
    wait_for("there is room again", async || {
        switchyard.metric("switchyard_agent_memory_bytes", &[]).await < (LIMIT_MIB << 20) as f64 * 0.75
    })
    .await;
    assert_eq!(switchyard_tests::client::get(switchyard.http, HOST, "/").await.unwrap().status, 200);
    let so_far = *takes.borrow();
    wait_for("who reads is sent more", async || *takes.borrow() > so_far + (1 << 20)).await;
    assert!(!reading.is_finished());
    let memory = switchyard.process.memory();
    eprintln!("of {LIMIT_MIB} MiB: {} KiB at most, {} now", memory.peak_kib, memory.now_kib);
    assert!(memory.peak_kib < (LIMIT_MIB + 96) * 1024, "{memory:?}");
    reading.abort();
}
