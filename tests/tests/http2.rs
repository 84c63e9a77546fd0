//! HTTP/2 as frames: how many streams an instance takes, what it turns away, and how streams and connections end on both sides.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Method, Request, Response};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use switchyard_tests::client::{self, Connection, empty, full, get_request, request};
use switchyard_tests::in_time;
use switchyard_tests::manifests::{HOST, Manifests, retry};
use switchyard_tests::process::Switchyard;
use switchyard_tests::raw::{RawServer, Wire};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};

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

/// An instance that does this with every stream.
fn instance<F: Future<Output = ()> + Send + 'static>(
    answer: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Clone + Send + Sync + 'static,
) -> RawServer {
    RawServer::start_with(move |stream| {
        let answer = answer.clone();
        async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, stream))) = connection.accept().await {
                tokio::spawn(answer(request, stream));
            }
        }
    })
}

/// A caller's connection, and the task that ends with it.
async fn connect(address: SocketAddr) -> (SendRequest<Bytes>, tokio::task::JoinHandle<Result<(), h2::Error>>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    (sender.ready().await.unwrap(), tokio::spawn(connection))
}

fn asks(method: Method, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("http://{HOST}{path}")).body(()).unwrap()
}

fn says(status: u16) -> Response<()> {
    Response::builder().status(status).body(()).unwrap()
}

/// All of a body, and its trailers.
async fn whole(mut body: RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = in_time("the body", body.data()).await.transpose()? {
        body.flow_control().release_capacity(data.len())?;
        bytes.extend(data);
    }
    Ok((bytes, in_time("the trailers", body.trailers()).await?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_pass_both_ways() {
    let server = instance(|request, mut stream| async move {
        let (body, trailers) = whole(request.into_body()).await.unwrap();
        let mut reply = stream.send_response(says(200), false).unwrap();
        reply.send_data(body.into(), false).unwrap();
        reply.send_trailers(trailers.unwrap()).unwrap();
    });
    let manifests = Manifests::of_http2(&[("v1", server.address)]);
    let switchyard = one_worker(&manifests).await;
    let (mut sender, _connection) = connect(switchyard.http).await;
    let (response, mut stream) = sender.send_request(asks(Method::PUT, "/"), false).unwrap();
    stream.send_data("hello".into(), false).unwrap();
    let mut trailers = HeaderMap::new();
    for (name, value) in [("x-sum", "42"), ("x-more", "1"), ("content-length", "9")] {
        trailers.insert(name, value.parse().unwrap());
    }
    stream.send_trailers(trailers).unwrap();
    let reply = in_time("a reply", response).await.unwrap();
    assert!(reply.headers().contains_key("date"), "it says when it was made: {:?}", reply.headers());
    let (body, trailers) = whole(reply.into_body()).await.unwrap();
    let trailers = trailers.unwrap();
    assert_eq!((&body[..], trailers.len(), &trailers["x-sum"]), (&b"hello"[..], 2, &"42".parse().unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_its_caller_resets_is_reset_at_the_instance_and_never_looks_whole() {
    let (tell, mut heard) = mpsc::unbounded_channel();
    let server = instance(move |request, stream| {
        let tell = tell.clone();
        async move {
            let mut body = request.into_body();
            tell.send(Ok(body.data().await.unwrap().unwrap())).unwrap();
            let end = loop {
                match body.data().await {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => break error.reason(),
                    None => break None,
                }
            };
            tell.send(Err(end)).unwrap();
            drop(stream);
        }
    });
    let manifests = Manifests::of_http2(&[("v1", server.address)]);
    let switchyard = one_worker(&manifests).await;
    // Without an error it is still no end.
    for (reason, seen) in [(Reason::CANCEL, Reason::CANCEL), (Reason::NO_ERROR, Reason::INTERNAL_ERROR)] {
        let (mut sender, _connection) = connect(switchyard.http).await;
        let (_response, mut stream) = sender.send_request(asks(Method::PUT, "/"), false).unwrap();
        stream.send_data("hello".into(), false).unwrap();
        assert_eq!(in_time("the body's beginning", heard.recv()).await.unwrap().unwrap(), "hello");
        stream.send_reset(reason);
        let end = in_time("that it is given up", heard.recv()).await.unwrap().unwrap_err();
        // Whichever is noticed first, that the body broke off or that nobody waits for the reply.
        assert!([Some(seen), Some(Reason::CANCEL)].contains(&end), "{reason:?} became {end:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_its_caller_resets_is_cancelled_at_the_instance_with_what_is_left_of_the_request() {
    let (tell, mut heard) = mpsc::unbounded_channel();
    let server = instance(move |request, mut stream| {
        let tell = tell.clone();
        async move {
            let mut reply = stream.send_response(says(200), false).unwrap();
            let reason = poll_fn(|cx| reply.poll_reset(cx)).await;
            tell.send(reason.unwrap()).unwrap();
            drop(request);
        }
    });
    let manifests = Manifests::of_http2(&[("v1", server.address)]);
    let switchyard = one_worker(&manifests).await;
    let (mut sender, _connection) = connect(switchyard.http).await;
    for whole in [true, false] {
        let (response, mut stream) = sender.send_request(asks(Method::PUT, "/"), whole).unwrap();
        let reply = in_time("a head", response).await.unwrap();
        stream.send_reset(Reason::CANCEL);
        drop(reply);
        assert_eq!(in_time("that it is given up", heard.recv()).await.unwrap(), Reason::CANCEL, "{whole}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_reply_stands_though_the_instance_takes_no_more_of_the_request() {
    let server = instance(|request, mut stream| async move {
        let mut reply = stream.send_response(says(200), false).unwrap();
        reply.send_data("enough".into(), true).unwrap();
        // What is dropped unread is reset with NO_ERROR (RFC 9113 section 8.1).
        drop((request, reply, stream));
    });
    let manifests = Manifests::of_http2(&[("v1", server.address)]);
    let switchyard = one_worker(&manifests).await;
    for _ in 0..20 {
        let (mut sender, _connection) = connect(switchyard.http).await;
        let (response, mut stream) = sender.send_request(asks(Method::PUT, "/"), false).unwrap();
        stream.send_data(vec![b'x'; 60_000].into(), false).unwrap();
        let reply = in_time("a reply", response).await.unwrap();
        assert_eq!(whole(reply.into_body()).await.unwrap().0, b"enough");
        let reset = in_time("the end of the request", poll_fn(|cx| stream.poll_reset(cx))).await;
        assert_eq!(reset.unwrap(), Reason::NO_ERROR, "our caller is told the same");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_ends_says_so_and_answers_what_is_under_way() {
    let (asked, answer) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (told, go) = (Arc::clone(&asked), Arc::clone(&answer));
    let server = instance(move |request, mut stream| {
        let (told, go) = (Arc::clone(&told), Arc::clone(&go));
        async move {
            told.notify_one();
            go.notified().await;
            drop(request);
            stream.send_response(says(200), false).unwrap().send_data("at last".into(), true).unwrap();
        }
    });
    let manifests = Manifests::of_http2(&[("v1", server.address)]);
    let switchyard = Switchyard::run_with(manifests.path(), &["--workers", "1", "--drain", "60"]).await;
    let (mut sender, connection) = connect(switchyard.http).await;
    let (response, _) = sender.send_request(asks(Method::GET, "/"), true).unwrap();
    in_time("the request", asked.notified()).await;
    switchyard.process.signal("TERM");
    // The GOAWAY is what makes it take no more.
    in_time("the GOAWAY", async {
        while poll_fn(|cx| sender.poll_ready(cx)).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    answer.notify_one();
    let reply = in_time("the reply", response).await.unwrap();
    assert_eq!(whole(reply.into_body()).await.unwrap().0, b"at last");
    assert!(in_time("the connection's end", connection).await.unwrap().is_ok());
    switchyard.process.exits_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_goes_away_gets_no_more_requests_and_answers_what_it_has() {
    let (asked, answer) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (told, go) = (Arc::clone(&asked), Arc::clone(&answer));
    let connections = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&connections);
    let server = RawServer::start_with(move |stream| {
        let (told, go) = (Arc::clone(&told), Arc::clone(&go));
        let first = counted.fetch_add(1, Relaxed) == 0;
        async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut stream))) = connection.accept().await {
                if first {
                    connection.graceful_shutdown();
                }
                let (told, go) = (Arc::clone(&told), Arc::clone(&go));
                tokio::spawn(async move {
                    if first {
                        told.notify_one();
                        go.notified().await;
                    }
                    stream.send_response(says(200), true).unwrap();
                });
            }
        }
    });
    let manifests = Manifests::of_http2(&[("v1", server.address)]);
    let switchyard = one_worker(&manifests).await;
    let (mut sender, _connection) = connect(switchyard.http).await;
    let (first, _) = sender.send_request(asks(Method::POST, "/"), true).unwrap();
    in_time("the request", asked.notified()).await;
    for _ in 0..10 {
        let (response, _) = sender.send_request(asks(Method::POST, "/"), true).unwrap();
        assert_eq!(in_time("a reply", response).await.unwrap().status(), 200);
    }
    assert_eq!(connections.load(Relaxed), 2, "all others took one other connection");
    answer.notify_one();
    assert_eq!(in_time("the first reply", first).await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_content_has_none() {
    let server = instance(|request, mut stream| async move {
        // 204, and yet something.
        stream.send_response(says(204), false).unwrap().send_data("oh".into(), true).unwrap();
        drop(request);
    });
    let manifests = Manifests::of_http2(&[("v1", server.address)]);
    let switchyard = one_worker(&manifests).await;
    let (mut sender, _connection) = connect(switchyard.http).await;
    let (response, _) = sender.send_request(asks(Method::GET, "/"), true).unwrap();
    if let Ok(reply) = in_time("a reply", response).await {
        assert!(whole(reply.into_body()).await.is_err(), "content must not come with a 204");
    }
    // Nor has what the agent says itself to HEAD.
    let nowhere = Request::builder().method(Method::HEAD).uri("http://nowhere/").body(()).unwrap();
    let (response, _) = sender.send_request(nowhere, true).unwrap();
    let reply = in_time("a reply", response).await.unwrap();
    assert_eq!((reply.status().as_u16(), &reply.headers()["x-switchyard-reason"]), (404, &"no-route".parse().unwrap()));
    assert!(reply.body().is_end_stream() && reply.headers()["content-length"] != "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_not_as_long_as_it_says_is_reset() {
    let (tell, mut heard) = mpsc::unbounded_channel();
    let server = instance(move |request, _stream| {
        let tell = tell.clone();
        async move { tell.send(whole(request.into_body()).await.is_ok()).unwrap() }
    });
    let manifests = Manifests::of_http2(&[("v1", server.address)]);
    let switchyard = one_worker(&manifests).await;
    for body in ["shor", "longer"] {
        let (mut sender, _connection) = connect(switchyard.http).await;
        let mut request = asks(Method::PUT, "/");
        request.headers_mut().insert("content-length", "5".parse().unwrap());
        let (response, mut stream) = sender.send_request(request, false).unwrap();
        // The instance has the head by then.
        stream.send_data(body[..1].to_owned().into(), false).unwrap();
        stream.send_data(body[1..].to_owned().into(), true).unwrap();
        let error = in_time("an answer", response).await.unwrap_err();
        assert_eq!(error.reason(), Some(Reason::PROTOCOL_ERROR), "{body}");
    }
    drop(switchyard);
    while let Ok(whole) = heard.try_recv() {
        assert!(!whole, "it must not look whole");
    }
}
