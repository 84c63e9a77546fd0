//! Interim replies (103 and the like) and `Expect: 100-continue`, between all versions of HTTP.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use switchyard_tests::in_time;
use switchyard_tests::manifests::{HOST, Manifests, retry};
use switchyard_tests::process::Switchyard;
use switchyard_tests::raw::{RawServer, Wire, field};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};

/// An instance. It answers `/hints` with 103 and, when it is told to, with 200; `/body` with 100, and then with what came as a body;
/// `/silent` without the 100; `/refused` with 417.
#[derive(Clone)]
struct Instance {
    answer: Arc<Notify>,
    /// What it got of the bodies of refused requests.
    unwanted: mpsc::UnboundedSender<usize>,
}

impl Instance {
    fn start(http2: bool) -> (SocketAddr, Arc<Notify>, mpsc::UnboundedReceiver<usize>, RawServer) {
        let (unwanted, heard) = mpsc::unbounded_channel();
        let instance = Self { answer: Arc::default(), unwanted };
        let answer = Arc::clone(&instance.answer);
        let server = RawServer::start_with(move |stream| {
            let instance = instance.clone();
            async move {
                match http2 {
                    true => instance.http2(stream).await,
                    false => instance.http1(Wire::of(stream)).await,
                }
            }
        });
        (server.address, answer, heard, server)
    }

    async fn http1(self, mut wire: Wire) {
        loop {
            let head = wire.until("\r\n\r\n").await.to_lowercase();
            let Some(path) = head.split(' ').nth(1) else { return };
            let expects = field(&head, "expect") == Some("100-continue");
            match path {
                "/hints" => {
                    wire.send("HTTP/1.1 103 Early Hints\r\nlink: </x>\r\ncontent-length: 7\r\n\r\n").await;
                    self.answer.notified().await;
                    wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                }
                "/refused" => {
                    wire.send("HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n").await;
                    self.unwanted.send(wire.rest().await.len()).unwrap();
                    return;
                }
                path => {
                    assert!(expects, "the expectation is passed on: {head:?}");
                    if path == "/body" {
                        wire.send("HTTP/1.1 100 Continue\r\n\r\n").await;
                    }
                    let body = wire.exactly(5).await;
                    wire.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())).await;
                }
            }
        }
    }

    async fn http2(self, stream: TcpStream) {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, stream))) = connection.accept().await {
            tokio::spawn(self.clone().answer(request, stream));
        }
    }

    async fn answer(self, request: Request<RecvStream>, mut stream: SendResponse<Bytes>) {
        let (head, mut body) = request.into_parts();
        let expects = head.headers.get("expect").is_some_and(|value| value == "100-continue");
        let reply = |status: u16| Response::builder().status(status).body(()).unwrap();
        match head.uri.path() {
            "/hints" => {
                let mut hints = reply(103);
                hints.headers_mut().insert("link", "</x>".parse().unwrap());
                stream.send_informational(hints).unwrap();
                self.answer.notified().await;
                answer(&mut stream, "ok");
            }
            "/refused" => {
                stream.send_response(reply(417), true).unwrap();
                let mut came = 0;
                while let Some(Ok(data)) = body.data().await {
                    came += data.len();
                }
                self.unwanted.send(came).unwrap();
            }
            path => {
                assert!(expects, "the expectation is passed on: {:?}", head.headers);
                if path == "/body" {
                    stream.send_informational(reply(100)).unwrap();
                }
                answer(&mut stream, &whole(&mut body).await);
            }
        }
    }
}

fn answer(stream: &mut SendResponse<Bytes>, body: &str) {
    let reply = Response::builder().header("content-length", body.len()).body(()).unwrap();
    stream.send_response(reply, false).unwrap().send_data(body.to_owned().into(), true).unwrap();
}

async fn whole(body: &mut RecvStream) -> String {
    let mut text = String::new();
    while let Some(data) = in_time("the body", body.data()).await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        text += &String::from_utf8_lossy(&data);
    }
    text
}

/// A caller, and the replies to its request as they come.
enum Caller {
    Http1(Wire),
    Http2(ResponseFuture, SendStream<Bytes>),
}

impl Caller {
    async fn get(address: SocketAddr, http2: bool, path: &str) -> Self {
        Self::ask(address, http2, "GET", path, &[], true).await
    }

    async fn put(address: SocketAddr, http2: bool, path: &str) -> Self {
        Self::ask(address, http2, "PUT", path, &[("content-length", "5"), ("expect", "100-continue")], false).await
    }

    async fn ask(
        address: SocketAddr,
        http2: bool,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        whole: bool,
    ) -> Self {
        if !http2 {
            let mut wire = Wire::connect(address).await;
            let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            wire.send(format!("{method} {path} HTTP/1.1\r\nhost: {HOST}\r\n{fields}\r\n")).await;
            return Self::Http1(wire);
        }
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(async move { drop(connection.await) });
        let mut sender = sender.ready().await.unwrap();
        let mut request = Request::builder().method(method).uri(format!("http://{HOST}{path}"));
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (response, stream) = sender.send_request(request.body(()).unwrap(), whole).unwrap();
        Self::Http2(response, stream)
    }

    /// The next interim reply; nothing when the final one is there.
    async fn interim(&mut self) -> Option<(u16, HeaderMap)> {
        match self {
            Self::Http1(wire) => {
                let head = wire.until("\r\n\r\n").await;
                let status = head.split(' ').nth(1).unwrap().parse().unwrap();
                let fields = head.split("\r\n").skip(1).filter_map(|line| line.split_once(": "));
                Some((status, fields.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()))
            }
            Self::Http2(response, _) => {
                let interim = in_time("an interim reply", poll_fn(|cx| response.poll_informational(cx))).await;
                interim.map(|interim| interim.map(|reply| (reply.status().as_u16(), reply.headers().clone())).unwrap())
            }
        }
    }

    async fn send(&mut self, body: &str) {
        match self {
            Self::Http1(wire) => wire.send(body).await,
            Self::Http2(_, stream) => stream.send_data(body.to_owned().into(), true).unwrap(),
        }
    }

    /// The final reply, where no other comes before it.
    async fn reply(mut self) -> (u16, String) {
        if let Self::Http2(..) = self {
            assert_eq!(self.interim().await, None);
        }
        match self {
            Self::Http1(mut wire) => {
                let reply = wire.reply().await;
                let status = reply.split(' ').nth(1).unwrap().parse().unwrap();
                (status, reply.split_once("\r\n\r\n").unwrap().1.to_owned())
            }
            Self::Http2(response, _) => {
                let (head, mut body) = in_time("a reply", response).await.unwrap().into_parts();
                (head.status.as_u16(), whole(&mut body).await)
            }
        }
    }
}

/// Which versions are spoken: by the caller, and by the instance.
const VERSIONS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

async fn before(address: SocketAddr, http2: bool) -> (Manifests, Switchyard) {
    let instances = [("v1", address)];
    let manifests = if http2 { Manifests::of_http2(&instances) } else { Manifests::of(&instances) };
    // What keeps bodies for another try must keep to this too.
    manifests.write("retry.yaml", &retry("  methods: [GET, PUT]\n"));
    let switchyard = Switchyard::run(manifests.path()).await;
    (manifests, switchyard)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hints_come_before_the_reply_is_there() {
    for (caller, instance) in VERSIONS {
        let (address, answer, _heard, _server) = Instance::start(instance);
        let (_manifests, switchyard) = before(address, instance).await;
        for _ in 0..2 {
            let mut asking = Caller::get(switchyard.http, caller, "/hints").await;
            let (status, fields) = asking.interim().await.unwrap();
            assert_eq!((status, &fields["link"]), (103, &"</x>".parse::<http::HeaderValue>().unwrap()));
            assert!(!fields.contains_key("content-length"), "it has no content");
            answer.notify_one();
            assert_eq!(asking.reply().await, (200, "ok".to_owned()), "HTTP/2: {caller}, {instance}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_comes_when_the_instance_asks_for_it() {
    for (caller, instance) in VERSIONS {
        let (address, _answer, _heard, _server) = Instance::start(instance);
        let (_manifests, switchyard) = before(address, instance).await;
        // An instance that says nothing gets it too, in time.
        for path in ["/body", "/silent"] {
            let mut asking = Caller::put(switchyard.http, caller, path).await;
            assert_eq!(asking.interim().await.unwrap().0, 100, "{path}, HTTP/2: {caller}, {instance}");
            asking.send("hello").await;
            assert_eq!(asking.reply().await, (200, "hello".to_owned()), "{path}, HTTP/2: {caller}, {instance}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_refused_is_neither_asked_for_nor_sent() {
    for (caller, instance) in VERSIONS {
        let (address, _answer, mut heard, _server) = Instance::start(instance);
        let (_manifests, switchyard) = before(address, instance).await;
        let asking = Caller::put(switchyard.http, caller, "/refused").await;
        assert_eq!(asking.reply().await, (417, String::new()), "HTTP/2: {caller}, {instance}");
        let came = in_time("the end of the request", heard.recv()).await.unwrap();
        assert_eq!(came, 0, "HTTP/2: {caller}, {instance}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_100_that_nobody_expects_is_passed_on_too() {
    let server = RawServer::answering("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let (_manifests, switchyard) = before(server.address, false).await;
    for http2 in [false, true] {
        let mut asking = Caller::get(switchyard.http, http2, "/").await;
        assert_eq!(asking.interim().await.unwrap().0, 100);
        assert_eq!(asking.reply().await, (200, "ok".to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hints_without_end_stay_within_bounds() {
    const HINTS: usize = 2_000;
    let server = RawServer::start(|mut wire| async move {
        wire.until("\r\n\r\n").await;
        let hint = format!("HTTP/1.1 103 Early Hints\r\nlink: <{}>\r\n\r\n", "x".repeat(1000));
        for _ in 0..HINTS {
            wire.send(&hint).await;
        }
        wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    });
    let (_manifests, switchyard) = before(server.address, false).await;
    let mut asking = Caller::get(switchyard.http, true, "/").await;
    let mut count = 0;
    while let Some((status, _)) = asking.interim().await {
        assert_eq!(status, 103);
        count += 1;
    }
    assert!((60..70).contains(&count), "{count} of 1 KB each");
    assert_eq!(asking.reply().await, (200, "ok".to_owned()));
}
