//! Instances: real servers in the test's own process, with knobs, and a memory of what reached them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::{JoinHandle, JoinSet};

use crate::client::{Body, full};

/// What an instance does with a request; an error breaks the connection off.
pub type Answer = Pin<Box<dyn Future<Output = io::Result<Response<Body>>> + Send>>;

/// A server that is gone, with all its connections, when this is dropped.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    /// Serves HTTP/1.1 and HTTP/2 on a port of the system's choice.
    pub async fn start(answer: impl Fn(Request<Incoming>) -> Answer + Clone + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), answer)
    }

    /// The same, on an address.
    pub fn start_at(
        address: SocketAddr,
        answer: impl Fn(Request<Incoming>) -> Answer + Clone + Send + Sync + 'static,
    ) -> Self {
        let listener = listener(address);
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            // Dropped with the task, and every connection with it.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let answer = answer.clone();
                stream.set_nodelay(true).unwrap();
                connections.spawn(async move {
                    let mut server = auto::Builder::new(TokioExecutor::new());
                    // Room for more than an agent lets through.
                    server.http1().max_headers(256);
                    server.http2().max_header_list_size(256 * 1024);
                    let service = service_fn(answer);
                    // Connections that break are what some tests are about.
                    drop(server.serve_connection_with_upgrades(TokioIo::new(stream), service).await);
                });
            }
        });
        Self { address, task }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A listener on an address that may have been used a moment ago.
pub(crate) fn listener(address: SocketAddr) -> TcpListener {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    socket.listen(1024).unwrap()
}

/// An instance that says its version and can be made to fail.
#[derive(Debug)]
pub struct Backend {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its knobs and its memory.
    pub state: Arc<State>,
    server: Option<Server>,
}

/// How an instance behaves, and what it saw.
#[derive(Debug, Default)]
pub struct State {
    version: String,
    /// So many of the next requests fail; negative: all of them.
    fail: AtomicI64,
    delay_ms: AtomicU64,
    asked: AtomicU64,
    seen: Mutex<Vec<Seen>>,
}

/// A request as an instance saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its method.
    pub method: Method,
    /// Its target.
    pub target: String,
    /// Its header fields.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// Its trailers.
    pub trailers: Option<HeaderMap>,
}

/// How many requests an instance remembers.
const REMEMBERED: usize = 1000;

impl Backend {
    /// An instance of this version on a port of the system's choice.
    pub async fn start(version: &str) -> Self {
        Self::start_on(IpAddr::V4(Ipv4Addr::LOCALHOST), version)
    }

    /// The same, on an address of this machine.
    pub fn start_on(address: IpAddr, version: &str) -> Self {
        let state = Arc::new(State { version: version.to_owned(), ..State::default() });
        let server = Self::serve(SocketAddr::new(address, 0), &state);
        Self { address: server.address, state, server: Some(server) }
    }

    fn serve(address: SocketAddr, state: &Arc<State>) -> Server {
        let state = Arc::clone(state);
        Server::start_at(address, move |request| {
            let state = Arc::clone(&state);
            Box::pin(async move { state.answer(request).await })
        })
    }

    /// Breaks it off: its connections are cut, and nobody listens any more.
    pub fn kill(&mut self) {
        self.server = None;
    }

    /// Starts it again, where it was.
    pub async fn revive(&mut self) {
        let address = self.address;
        // The old listener closes when its task is dropped, which is soon.
        crate::wait_for("the port is free again", async || {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            socket.bind(address).is_ok()
        })
        .await;
        self.server = Some(Self::serve(address, &self.state));
    }

    /// From now on every request fails.
    pub fn fail(&self) {
        self.state.fail.store(-1, Relaxed);
    }

    /// So many of the next requests fail.
    pub fn fail_next(&self, requests: u32) {
        self.state.fail.store(requests.into(), Relaxed);
    }

    /// From now on it waits so long before it answers.
    pub fn delay(&self, delay: Duration) {
        self.state.delay_ms.store(delay.as_millis().try_into().unwrap(), Relaxed);
    }

    /// Its version.
    pub fn version(&self) -> &str {
        &self.state.version
    }

    /// How many requests reached it.
    pub fn asked(&self) -> u64 {
        self.state.asked.load(Relaxed)
    }

    /// The first requests that reached it, and their bodies.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }
}

impl State {
    async fn answer(&self, request: Request<Incoming>) -> io::Result<Response<Body>> {
        self.asked.fetch_add(1, Relaxed);
        let fails =
            self.fail.fetch_update(Relaxed, Relaxed, |n| (n > 0).then(|| n - 1)).is_ok() || self.fail.load(Relaxed) < 0;
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?;
        let trailers = body.trailers().cloned();
        let body = body.to_bytes();
        {
            let mut seen = self.seen.lock().unwrap();
            if seen.len() < REMEMBERED {
                seen.push(Seen {
                    method: head.method,
                    target: head.uri.to_string(),
                    headers: head.headers,
                    body: body.clone(),
                    trailers,
                });
            }
        }
        let delay = self.delay_ms.load(Relaxed);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        let status = if fails { 500 } else { 200 };
        let reply = Response::builder().status(status).header("x-version", &self.version);
        reply.body(full(body)).map_err(io::Error::other)
    }
}
