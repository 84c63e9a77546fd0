//! Connections from callers: one listener per worker on the same port, HTTP/1.1 and cleartext HTTP/2 (by prior knowledge,
//! RFC 9113 section 3.3) told apart by the first bytes.
//!
//! With interception, connections are those that were taken in on their way (`redirected`), and what is not HTTP is carried as it is.
//!
//! Keeps true: a connection with no request under way is closed after [`IDLE`], so a caller that never finishes its header cannot
//! hold one for longer; there are never more than [`MOST_CONNECTIONS`] per worker; on shutdown what is under way is finished. Callers
//! that were taken in know nothing of a proxy that ends, so then no connection is closed under a request that may be on its way: each
//! is told with its next reply, or closed when it has been idle for a while.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use switchyard_proto::v1::Protocol as Spoken;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

use crate::clock;
use crate::forward::LocalExecutor;
use crate::interim::Interim;
use crate::message::{MAX_FIELDS, MAX_HEADER_BYTES};
use crate::request;
use crate::worker::{Caller, Worker};
use crate::{carry, intercept};

/// Bytes that the HTTP library should not see.
mod guard;
/// Connections that were taken in.
pub mod redirected;
/// What is spoken.
mod sniff;

use guard::Guard;

/// How long a connection may be without a request, from accept or the last reply to the next full header.
const IDLE: Duration = Duration::from_secs(60);
/// How often idle connections are looked for.
const SWEEP: Duration = Duration::from_secs(5);
/// Connections of callers that a worker has at a time; a further one is closed at once. Bounds sockets and memory.
const MOST_CONNECTIONS: usize = 16_384;
/// Streams that a caller may have open on one connection of HTTP/2.
const MOST_STREAMS: u32 = 256;
/// What a caller may send ahead on one stream of HTTP/2.
const STREAM_WINDOW: u32 = 64 * 1024;
/// And on the whole connection: all streams together, so that one which is not read never holds up another.
const CONNECTION_WINDOW: u32 = MOST_STREAMS * STREAM_WINDOW;
/// What is buffered of a connection of HTTP/1; more than a header may be, so that one which is too large is seen to be.
const MAX_BUFFER: usize = 2 * MAX_HEADER_BYTES;
/// When the agent ends, connections that were on their way here are still accepted for so long.
const LINGER: Duration = Duration::from_secs(1);
/// And those that were taken in are closed when no request has come on them for so long.
const IDLE_AT_END: Duration = Duration::from_secs(3);
/// What every connection of HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Opens one listener per worker on the same address. With port 0 the first one chooses.
///
/// # Errors
/// The address cannot be listened on.
pub fn bind(address: SocketAddr, workers: usize) -> io::Result<Vec<std::net::TcpListener>> {
    bind_with(address, workers, |_| Ok(()))
}

/// The same, with sockets that were prepared.
fn bind_with(
    address: SocketAddr,
    workers: usize,
    prepare: impl Fn(&Socket) -> io::Result<()>,
) -> io::Result<Vec<std::net::TcpListener>> {
    let mut address = address;
    let mut listeners = Vec::with_capacity(workers);
    for _ in 0..workers.max(1) {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        // The first bind must be alone on its port: SO_REUSEPORT would share it with another process that set it too.
        if listeners.is_empty() && address.port() != 0 {
            let probe = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            probe.set_reuse_address(true)?;
            prepare(&probe)?;
            probe.bind(&SockAddr::from(address))?;
            probe.listen(1)?;
        }
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        prepare(&socket)?;
        socket.bind(&SockAddr::from(address))?;
        socket.listen(1024)?;
        let listener: std::net::TcpListener = socket.into();
        address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Opens one listener on an address that others of ours may have too.
///
/// # Errors
/// The address cannot be listened on.
pub fn bind_shared(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(1024)?;
    Ok(socket.into())
}

/// A worker's open connections.
#[derive(Default)]
struct Connections {
    open: RefCell<HashMap<u64, Open>>,
    next: Cell<u64>,
}

struct Open {
    caller: Rc<Caller>,
    close: Rc<Notify>,
    task: Option<tokio::task::AbortHandle>,
    asked_at: Option<Instant>,
}

/// Accepts and serves until `stop` becomes true, then finishes what is under way, for at most `drain`.
///
/// # Errors
/// A listener cannot be used.
pub async fn run(
    worker: Rc<Worker>,
    listeners: Vec<std::net::TcpListener>,
    mut stop: watch::Receiver<bool>,
    drain: Duration,
) -> io::Result<()> {
    let listeners = listeners.into_iter().map(TcpListener::from_std).collect::<io::Result<Vec<_>>>()?;
    let connections = Rc::new(Connections::default());
    let stopped = stop.clone();
    let taken_in = worker.shared.interception.is_some();
    tokio::select! {
        () = accept(&worker, &connections, &listeners, &stopped) => {}
        // An error means that whoever could ask is gone.
        _ = stop.wait_for(|stop| *stop) => {}
    }
    if taken_in {
        worker.end();
        // It never ends by itself.
        let _ = tokio::time::timeout(LINGER, accept(&worker, &connections, &listeners, &stopped)).await;
    }
    drop(listeners);
    let finished = async {
        while !connections.open.borrow().is_empty() || worker.under_way() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            if taken_in {
                connections.close_idle(clock::now(), IDLE_AT_END);
            }
        }
    };
    if tokio::time::timeout(drain, finished).await.is_err() {
        tracing::warn!(
            left = worker.under_way(),
            "requests were still under way when the time to finish them was over"
        );
    }
    worker.close_free();
    Ok(())
}

/// Accepts and serves, and sees to what must be seen to from time to time.
async fn accept(
    worker: &Rc<Worker>,
    connections: &Rc<Connections>,
    listeners: &[TcpListener],
    stop: &watch::Receiver<bool>,
) {
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut beat =
        worker.shared.interception.as_ref().map(|i| (tokio::time::interval(intercept::pulse::BEAT), &i.pulse));
    loop {
        tokio::select! {
            accepted = next(listeners) => match accepted {
                Ok((stream, address)) => open(worker, connections, stream, address, stop),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    // Most likely too many open files: give others time to close some.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            _ = sweep.tick() => {
                connections.close_idle(clock::now(), IDLE);
                worker.sweep(clock::now());
            }
            pulse = beaten(&mut beat) => pulse.beat(worker.index, worker.millis(clock::now())),
        }
    }
}

/// The next connection on any of them.
async fn next(listeners: &[TcpListener]) -> io::Result<(TcpStream, SocketAddr)> {
    std::future::poll_fn(|cx| {
        listeners.iter().map(|listener| listener.poll_accept(cx)).find(Poll::is_ready).unwrap_or(Poll::Pending)
    })
    .await
}

/// When it is time to tell that the worker lives, where somebody wants to know.
async fn beaten<'a>(beat: &mut Option<(tokio::time::Interval, &'a intercept::Pulse)>) -> &'a intercept::Pulse {
    match beat {
        Some((interval, pulse)) => {
            interval.tick().await;
            pulse
        }
        None => std::future::pending().await,
    }
}

fn open(
    worker: &Rc<Worker>,
    connections: &Rc<Connections>,
    stream: TcpStream,
    address: SocketAddr,
    stop: &watch::Receiver<bool>,
) {
    if connections.open.borrow().len() >= MOST_CONNECTIONS {
        tracing::warn!(%address, "closed: there are {MOST_CONNECTIONS} connections already");
        return;
    }
    let caller = match &worker.shared.interception {
        None => Caller::new(address, worker.pool.share(), clock::now()),
        Some(interception) => match redirected::caller(worker, &stream, address, interception.node_address) {
            Some(caller) => caller,
            None => {
                tracing::debug!(%address, "closed: it was not meant for a Service");
                return;
            }
        },
    };
    // Small writes must not wait for others; a socket that refuses the option still works.
    let _ = stream.set_nodelay(true);
    let id = connections.next.get();
    connections.next.set(id + 1);
    let caller = Rc::new(caller);
    let close = Rc::new(Notify::new());
    let entry = Open { caller: Rc::clone(&caller), close: Rc::clone(&close), task: None, asked_at: None };
    connections.open.borrow_mut().insert(id, entry);
    let gone = Gone { connections: Rc::clone(connections), id };
    let (worker, stop) = (Rc::clone(worker), stop.clone());
    let task = tokio::task::spawn_local(async move {
        let _gone = gone;
        let served = match caller.original {
            None => serve(worker, caller, stream, None, Closing { stop, at_stop: true, close }).await,
            Some(original) => {
                let closing = Closing { stop, at_stop: false, close };
                Box::pin(serve_taken_in(worker, caller, stream, original, closing)).await
            }
        };
        if let Err(error) = served {
            tracing::debug!(%address, %error, "connection ended");
        }
    });
    if let Some(entry) = connections.open.borrow_mut().get_mut(&id) {
        entry.task = Some(task.abort_handle());
    }
}

/// Takes the connection off the list, however its task ends.
struct Gone {
    connections: Rc<Connections>,
    id: u64,
}

impl Drop for Gone {
    fn drop(&mut self) {
        self.connections.open.borrow_mut().remove(&self.id);
    }
}

impl Connections {
    /// Asks connections that have been idle for too long to close; one that does not within a sweep is broken off.
    fn close_idle(&self, now: Instant, limit: Duration) {
        let mut broken_off = Vec::new();
        for open in self.open.borrow_mut().values_mut() {
            if open.caller.idle_for(now).is_none_or(|idle| idle < limit) {
                open.asked_at = None;
                continue;
            }
            match open.asked_at {
                None => {
                    open.asked_at = Some(now);
                    open.close.notify_one();
                }
                Some(asked) if now.saturating_duration_since(asked) >= SWEEP => broken_off.extend(open.task.clone()),
                Some(_) => {}
            }
        }
        broken_off.iter().for_each(tokio::task::AbortHandle::abort);
    }
}

/// When a connection is to be closed.
struct Closing {
    stop: watch::Receiver<bool>,
    /// When the agent ends; else the caller is told with its next reply.
    at_stop: bool,
    /// When it was idle for too long.
    close: Rc<Notify>,
}

impl Closing {
    async fn is_due(&mut self) {
        let stopped = async {
            // An error means that whoever could ask is gone.
            if self.at_stop { drop(self.stop.wait_for(|stop| *stop).await) } else { std::future::pending().await }
        };
        tokio::select! {
            () = stopped => {}
            () = self.close.notified() => {}
        }
    }
}

/// Serves a connection that was taken in: as HTTP if it is, else by carrying it on.
async fn serve_taken_in(
    worker: Rc<Worker>,
    caller: Rc<Caller>,
    mut stream: TcpStream,
    original: SocketAddr,
    closing: Closing,
) -> Result<(), Box<dyn std::error::Error>> {
    let (first, http) = match spoken(&worker, original) {
        Some(Spoken::Http1 | Spoken::Http2) => (None, true),
        Some(Spoken::Unspecified) => {
            let (first, http) = sniff::sniff(&mut stream).await?;
            (Some(first), http)
        }
        Some(Spoken::Tcp) | None => (None, false),
    };
    if http {
        return serve(worker, caller, stream, first, closing).await;
    }
    carry::carry(&worker, &caller, carry::Begun { stream, first: first.unwrap_or_default() }, original).await;
    Ok(())
}

/// What the Service speaks that has this address; nothing when none has.
fn spoken(worker: &Worker, address: SocketAddr) -> Option<Spoken> {
    let table = worker.table();
    let (service, port) = table.addresses.service(address)?;
    Some(table.at(service).ports.get(port)?.protocol)
}

/// Serves one connection of HTTP until it ends or is asked to. `first` are its first bytes, if they were read already.
async fn serve(
    worker: Rc<Worker>,
    caller: Rc<Caller>,
    mut stream: TcpStream,
    first: Option<Vec<u8>>,
    mut closing: Closing,
) -> Result<(), Box<dyn std::error::Error>> {
    let first = match first {
        Some(first) => first,
        None => tokio::select! {
            first = first_bytes(&mut stream) => first?,
            () = closing.is_due() => return Ok(()),
        },
    };
    let http2 = first.starts_with(PREFACE);
    closing.at_stop |= http2;
    let guard = (!http2).then(Guard::default);
    let (interim, switched) = (Arc::clone(&caller.interim), Arc::clone(&caller.switched));
    let io = TokioIo::new(CallerIo { first, sent: 0, stream, guard, switched, interim });
    let service = service_fn(move |request| request::handle(Rc::clone(&worker), Rc::clone(&caller), request));
    if http2 {
        let connection = http2::Builder::new(LocalExecutor)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(MOST_STREAMS)
            .max_header_list_size(MAX_HEADER_BYTES as u32)
            .serve_connection(io, service);
        tokio::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return Ok(ended?),
            () = closing.is_due() => connection.as_mut().graceful_shutdown(),
        }
        Ok(connection.await?)
    } else {
        let connection = http1::Builder::new()
            .max_headers(MAX_FIELDS)
            .max_header_size(MAX_HEADER_BYTES)
            .max_buf_size(MAX_BUFFER)
            .header_read_timeout(None)
            .serve_connection(io, service)
            .with_upgrades();
        tokio::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return Ok(ended?),
            () = closing.is_due() => connection.as_mut().graceful_shutdown(),
        }
        Ok(connection.await?)
    }
}

/// Reads until it is clear whether the connection begins as HTTP/2 does.
async fn first_bytes(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; PREFACE.len()];
    let mut have = 0;
    while have < bytes.len() && bytes[..have] == PREFACE[..have] {
        match stream.read(&mut bytes[have..]).await? {
            0 => break,
            more => have += more,
        }
    }
    bytes.truncate(have);
    Ok(bytes)
}

/// A caller's connection: its first bytes were read already and come first again; lines of HTTP/1 are looked at as they come.
struct CallerIo {
    first: Vec<u8>,
    sent: usize,
    stream: TcpStream,
    guard: Option<Guard>,
    /// Another protocol is spoken from here on.
    switched: Arc<AtomicBool>,
    /// Interim replies, which go in front of what the library writes.
    interim: Arc<Interim>,
}

impl AsyncRead for CallerIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        if this.sent < this.first.len() {
            let left = &this.first[this.sent..];
            let now = left.len().min(buf.remaining());
            buf.put_slice(&left[..now]);
            this.sent += now;
        } else {
            ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        }
        if let Some(guard) = &mut this.guard
            && !this.switched.load(Relaxed)
        {
            let new = &mut buf.filled_mut()[before..];
            if let Some(at) = guard.follow(new) {
                // The library refuses a NUL wherever a line is, and closes.
                new[at] = 0;
                this.guard = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for CallerIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.interim.poll_write(&mut this.stream, cx))?;
        this.interim.flushed(false);
        Pin::new(&mut this.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.interim.poll_write(&mut this.stream, cx))?;
        this.interim.flushed(false);
        Pin::new(&mut this.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The library asks for this when it has written all it had.
        let this = &mut *self;
        this.interim.flushed(true);
        this.interim.wake(cx);
        ready!(this.interim.poll_write(&mut this.stream, cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
