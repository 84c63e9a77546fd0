//! Instances that are spoken to in HTTP/2: how many streams they take, and what they turn away.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use http::{Method, Response};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use switchyard_tests::client::{self, Connection, empty, full, get_request, request};
use switchyard_tests::in_time;
use switchyard_tests::manifests::{HOST, Manifests, retry};
use switchyard_tests::process::Switchyard;
use switchyard_tests::raw::{RawServer, Wire};
use tokio::net::TcpListener;

/// With one worker, so that connections are easily counted.
async fn one_worker(manifests: &Manifests) -> Switchyard {
    Switchyard::run_with(manifests.path(), &["--workers", "1"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_the_streams_of_others() {
    // Takes two streams on a connection at a time; `/wait` never answers.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Relaxed);
            let service = service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                if request.uri().path() == "/wait" {
                    std::future::pending::<()>().await;
                }
                Ok::<_, std::convert::Infallible>(Response::new(full("ok")))
            });
            let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            server.max_concurrent_streams(2);
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    let manifests = Manifests::of_http2(&[("v1", address)]);
    let switchyard = one_worker(&manifests).await;
    let mut caller = Connection::http2(switchyard.http).await.unwrap();
    assert_eq!(caller.ask(get_request(HOST, "/")).await.unwrap().text(), "ok");
    let mut waiting = Vec::new();
    for _ in 0..10 {
        let mut others = Connection::http2(switchyard.http).await.unwrap();
        waiting.push(tokio::spawn(async move { drop(others.send(get_request(HOST, "/wait")).await) }));
        let reply = in_time("an answer beside the others", caller.ask(get_request(HOST, "/"))).await;
        assert_eq!(reply.unwrap().text(), "ok");
    }
    let many = connections.load(Relaxed);
    assert!((5..=12).contains(&many), "{many} connections");
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    for _ in 0..100 {
        assert_eq!(caller.ask(get_request(HOST, "/")).await.unwrap().text(), "ok");
    }
    assert_eq!(connections.load(Relaxed), many, "those that are free again are used");
}

const HEADERS: u8 = 1;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Waits for the next request: the number of its stream; nothing when the connection ends.
async fn next_request(wire: &mut Wire) -> Option<u32> {
    loop {
        let head: Vec<u8> = wire.exactly(9).await.chars().map(|c| c as u8).collect();
        if head.len() < 9 {
            return None;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        wire.exactly(length as usize).await;
        if head[3] == HEADERS {
            return Some(u32::from_be_bytes(head[5..9].try_into().unwrap()));
        }
    }
}

/// An instance that begins as HTTP/2 does, answers so many requests of its first connection with 200, and does this to the next one; and
/// how many it saw. Later connections are answered to their end.
fn after(answered: usize, last: fn(u32) -> Vec<u8>, closes: bool) -> (RawServer, Arc<AtomicU64>) {
    let (seen, connections) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let noted = Arc::clone(&seen);
    let server = RawServer::start(move |mut wire| {
        let first = connections.fetch_add(1, Relaxed) == 0;
        let noted = Arc::clone(&noted);
        async move {
            wire.exactly(24).await;
            wire.send([frame(4, 0, 0, &[]), frame(4, 1, 0, &[])].concat()).await;
            let mut number = 0;
            while let Some(stream) = next_request(&mut wire).await {
                noted.fetch_add(1, Relaxed);
                if first && number == answered {
                    wire.send(last(stream)).await;
                    if closes {
                        return;
                    }
                } else {
                    // `:status: 200`, from HPACK's static table, and the end of the stream.
                    wire.send(frame(HEADERS, 0x4 | 0x1, stream, &[0x88])).await;
                }
                number += 1;
            }
        }
    });
    (server, seen)
}

fn go_away(last: u32) -> Vec<u8> {
    frame(7, 0, 0, &[last.to_be_bytes(), [0; 4]].concat())
}

async fn ask(switchyard: &Switchyard, method: Method) -> u16 {
    client::ask(switchyard.http, request(method, HOST, "/", empty())).await.unwrap().status.as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_a_goaway_turns_away_was_not_processed_and_is_retried_whatever_its_method() {
    let (instance, seen) = after(0, |_| go_away(0), false);
    let manifests = Manifests::of_http2(&[("v1", instance.address)]);
    manifests.write("retry.yaml", &retry(""));
    let switchyard = one_worker(&manifests).await;
    assert_eq!(ask(&switchyard, Method::POST).await, 200);
    assert_eq!(seen.load(Relaxed), 2);
    let labels = [("reason", "refused-stream"), ("outcome", "success")];
    assert_eq!(switchyard.metric("switchyard_retries_total", &labels).await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_was_let_in_and_cut_may_have_been_processed_and_is_not() {
    // A GOAWAY that lets all in that are under way, and then the end.
    let (instance, seen) = after(0, |_| go_away(u32::MAX >> 1), true);
    let manifests = Manifests::of_http2(&[("v1", instance.address)]);
    manifests.write("retry.yaml", &retry(""));
    let switchyard = one_worker(&manifests).await;
    assert_eq!(ask(&switchyard, Method::POST).await, 502);
    assert_eq!(seen.load(Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_connection_that_had_been_closed_costs_nobody_a_reply_if_the_request_may_be_sent_twice() {
    for (method, status, times) in [(Method::GET, 200, 3), (Method::POST, 502, 2)] {
        let (instance, seen) = after(1, |_| Vec::new(), true);
        let manifests = Manifests::of_http2(&[("v1", instance.address)]);
        let switchyard = one_worker(&manifests).await;
        assert_eq!(ask(&switchyard, Method::GET).await, 200);
        assert_eq!(ask(&switchyard, method.clone()).await, status, "{method}");
        assert_eq!(seen.load(Relaxed), times, "{method}");
    }
}
