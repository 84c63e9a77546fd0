//! Bodies stream: whatever their size, and however slow one side is, memory stays bounded and nobody else waits.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use switchyard_tests::backend::{Answer, Server};
use switchyard_tests::client::{Body, Connection, full, get_request, request};
use switchyard_tests::manifests::{HOST, Manifests, circuit, retry};
use switchyard_tests::process::Switchyard;
use switchyard_tests::raw::Wire;
use switchyard_tests::{in_time, wait_for};
use tokio::sync::Notify;

const GIBIBYTE: u64 = 1 << 30;

/// What the agent may have in memory while it carries a body of any size.
const MOST_KIB: u64 = 64 * 1024;

/// So many bytes, as fast as they are taken. Each chunk that is asked for is counted.
fn endless(length: u64, made: Arc<AtomicU64>) -> Body {
    const CHUNK: u64 = 64 * 1024;
    let chunk = Bytes::from(vec![b'x'; CHUNK as usize]);
    let frames = futures_util::stream::unfold(0, move |sent| {
        let (chunk, made) = (chunk.clone(), Arc::clone(&made));
        async move {
            let now = (length - sent).min(CHUNK);
            made.fetch_add(now, Relaxed);
            (now > 0).then(|| (Ok::<_, io::Error>(Frame::data(chunk.slice(..now as usize))), sent + now))
        }
    });
    StreamBody::new(frames).boxed_unsync()
}

async fn count(mut body: Incoming) -> io::Result<u64> {
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame.map_err(io::Error::other)?.data_ref().map_or(0, |data| data.len() as u64);
    }
    Ok(length)
}

/// `/down` gives a gibibyte, `/up` says how much came; `/wait` never answers; anything else is answered at once. What is
/// given up is told.
#[derive(Clone, Default)]
struct Instance {
    made: Arc<AtomicU64>,
    waiting: Arc<Notify>,
    given_up: Arc<Notify>,
}

struct TellWhenDropped(Arc<Notify>);

impl Drop for TellWhenDropped {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Instance {
    async fn start(&self) -> Server {
        let instance = self.clone();
        Server::start(move |request| instance.clone().answer(request)).await
    }

    fn answer(self, request: Request<Incoming>) -> Answer {
        Box::pin(async move {
            let body = match request.uri().path() {
                "/down" => {
                    let tell = TellWhenDropped(Arc::clone(&self.given_up));
                    endless(GIBIBYTE, Arc::clone(&self.made))
                        .map_frame(move |frame| {
                            let _ = &tell;
                            frame
                        })
                        .boxed_unsync()
                }
                "/up" => full(count(request.into_body()).await?.to_string()),
                "/wait" => {
                    let _tell = TellWhenDropped(Arc::clone(&self.given_up));
                    self.waiting.notify_one();
                    std::future::pending().await
                }
                _ => full("at once"),
            };
            Ok(Response::new(body))
        })
    }
}

/// With policies that look at every body and every reply.
async fn through(instance: &Server, http2: bool, more: &[&str]) -> (Manifests, Switchyard) {
    let instances = [("v1", instance.address)];
    let manifests = if http2 { Manifests::of_http2(&instances) } else { Manifests::of(&instances) };
    manifests.write("circuit.yaml", &circuit(""));
    manifests.write("retry.yaml", &retry("  methods: [GET, PUT, POST]\n"));
    let switchyard = Switchyard::run_with(manifests.path(), more).await;
    (manifests, switchyard)
}

async fn connect(switchyard: &Switchyard, http2: bool) -> Connection {
    if http2 {
        Connection::http2(switchyard.http).await.unwrap()
    } else {
        Connection::http1(switchyard.http).await.unwrap()
    }
}

async fn gibibyte_both_ways(http2: bool) {
    let server = Instance::default().start().await;
    let (_manifests, switchyard) = through(&server, http2, &[]).await;
    let mut connection = connect(&switchyard, http2).await;
    let down = connection.send(get_request(HOST, "/down")).await.unwrap();
    assert_eq!(count(down.into_body()).await.unwrap(), GIBIBYTE);
    let body = endless(GIBIBYTE, Arc::default());
    let up = connection.ask(request(Method::PUT, HOST, "/up", body)).await.unwrap();
    assert_eq!(up.text(), GIBIBYTE.to_string());
    let memory = switchyard.process.memory();
    assert!(memory.peak_kib < MOST_KIB, "{memory:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gibibyte_goes_up_and_down_in_little_memory_on_http1() {
    gibibyte_both_ways(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gibibyte_goes_up_and_down_in_little_memory_on_http2() {
    gibibyte_both_ways(true).await;
}

/// Waits until nobody takes any more: what there is room for on the way is full.
async fn steady(made: &AtomicU64) {
    let (mut before, mut looks) = (0, 0);
    wait_for("whoever makes the bytes is held up", async || {
        let now = made.load(Relaxed);
        looks = if now == before && now > 0 { looks + 1 } else { 0 };
        before = now;
        looks > 20
    })
    .await;
}

async fn slow_readers_stall_nobody(http2: bool) {
    let instance = Instance::default();
    let server = instance.start().await;
    // One worker, so that everybody shares a thread with those who are slow.
    let (_manifests, switchyard) = through(&server, http2, &["--workers", "1"]).await;
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut connection = connect(&switchyard, http2).await;
        let reply = connection.send(get_request(HOST, "/down")).await.unwrap();
        slow.push((connection, reply));
    }
    steady(&instance.made).await;
    let mut connection = connect(&switchyard, http2).await;
    for _ in 0..100 {
        let reply = in_time("an answer beside the slow ones", connection.ask(get_request(HOST, "/"))).await;
        assert_eq!(reply.unwrap().text(), "at once");
    }
    let memory = switchyard.process.memory();
    assert!(memory.peak_kib < MOST_KIB, "{memory:?} with twenty slow readers");
    // The slow ones still get everything, at their own pace.
    let (_connection, reply) = slow.pop().unwrap();
    assert_eq!(in_time("the rest", count(reply.into_body())).await.unwrap(), GIBIBYTE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_stall_nobody_on_http1() {
    slow_readers_stall_nobody(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_stall_nobody_on_http2() {
    slow_readers_stall_nobody(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_stream_stalls_no_other_stream_of_its_connection() {
    let server = Instance::default().start().await;
    let (_manifests, switchyard) = through(&server, false, &["--workers", "1"]).await;
    let mut connection = connect(&switchyard, true).await;
    // Its body is never read, and the window of the stream is smaller than that of the connection.
    let slow = connection.send(get_request(HOST, "/down")).await.unwrap();
    for _ in 0..100 {
        let reply = in_time("an answer beside the slow one", connection.ask(get_request(HOST, "/"))).await;
        assert_eq!(reply.unwrap().text(), "at once");
    }
    drop(slow);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_an_instance_does_not_take_stall_no_other_stream_of_their_connection() {
    let instance = Instance::default();
    let server = instance.start().await;
    let (_manifests, switchyard) = through(&server, false, &["--workers", "1"]).await;
    let Connection::Http2(sender) = connect(&switchyard, true).await else { unreachable!() };
    let mut stuck = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut connection = Connection::Http2(sender.clone());
        let made = Arc::clone(&instance.made);
        stuck.spawn(async move {
            connection.send(request(Method::PUT, HOST, "/wait", endless(GIBIBYTE, made))).await.map(drop)
        });
        in_time("the upload arrives", instance.waiting.notified()).await;
    }
    steady(&instance.made).await;
    let mut connection = Connection::Http2(sender);
    for _ in 0..20 {
        let asked = request(Method::PUT, HOST, "/up", full(vec![b'x'; 100_000]));
        let reply = in_time("an answer beside the uploads", connection.ask(asked)).await;
        assert_eq!(reply.unwrap().text(), "100000");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_cancels_the_request_at_the_instance() {
    for (caller, upstream) in [(false, false), (false, true), (true, false), (true, true)] {
        let instance = Instance::default();
        let server = instance.start().await;
        let (_manifests, switchyard) = through(&server, upstream, &[]).await;
        let what = format!("the instance is told (HTTP/2 at the caller: {caller}, at the instance: {upstream})");

        // While it waits for the head.
        let mut connection = connect(&switchyard, caller).await;
        let waiting = tokio::spawn(async move { connection.send(get_request(HOST, "/wait")).await.map(drop) });
        in_time("the request arrives", instance.waiting.notified()).await;
        waiting.abort();
        in_time(&what, instance.given_up.notified()).await;

        // While it reads the body.
        let mut connection = connect(&switchyard, caller).await;
        let reply = connection.send(get_request(HOST, "/down")).await.unwrap();
        drop((reply, connection));
        in_time(&what, instance.given_up.notified()).await;
        assert!(instance.made.load(Relaxed) < GIBIBYTE);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_breaks_off_while_it_sends_is_seen_by_the_instance_as_broken_off() {
    let (seen, mut cut) = tokio::sync::mpsc::unbounded_channel();
    let server = Server::start(move |request| {
        let seen = seen.clone();
        Box::pin(async move {
            let whole = request.into_body().collect().await.is_ok();
            seen.send(whole).unwrap();
            Ok(Response::new(full("")))
        })
    })
    .await;
    for http2 in [false, true] {
        let (_manifests, switchyard) = through(&server, http2, &[]).await;
        for framing in ["content-length: 10\r\n\r\nhello", "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"] {
            let mut wire = Wire::connect(switchyard.http).await;
            wire.send(format!("POST /up HTTP/1.1\r\nhost: {HOST}\r\n{framing}")).await;
            wire.end().await;
            drop(wire);
            let whole = in_time("the instance sees an end", cut.recv()).await.unwrap();
            assert!(!whole, "a cut request must not look whole: {framing:?}, HTTP/2 at the instance: {http2}");
        }
    }
}
