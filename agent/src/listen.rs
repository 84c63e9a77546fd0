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
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use switchyard_proto::v1::Protocol as Spoken;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, Interest, ReadBuf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

use crate::body::Incoming;
use crate::clock;
use crate::interim::Interim;
use crate::line::Line;
use crate::message::{MAX_FIELDS, MAX_HEADER_BYTES};
use crate::worker::{Caller, Worker};
use crate::{carry, intercept, refusal, request};

/// Bytes that the HTTP library should not see.
mod guard;
/// Requests on streams of HTTP/2.
mod http2;
/// Connections that were taken in.
pub mod redirected;
/// What is let go when memory is short.
mod relief;
/// What is spoken.
mod sniff;

use guard::Guard;
use relief::Relief;

/// How long a connection may be without a request, from accept or the last reply to the next full header.
const IDLE: Duration = Duration::from_secs(60);
/// How often idle connections are looked for.
const SWEEP: Duration = Duration::from_secs(5);
/// Connections of callers that a worker has at a time; a further one is closed at once. Bounds sockets and memory.
const MOST_CONNECTIONS: usize = 16_384;
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
    close: Rc<Close>,
    task: Option<tokio::task::AbortHandle>,
    asked_at: Option<Instant>,
    /// Bytes that were read on it, and the look for memory at which that was seen to change.
    read: (u64, u32),
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
    let (mut look, relief) = (tokio::time::interval(relief::LOOK), Relief::default());
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
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
            _ = look.tick() => relief.look(worker, connections, clock::now()),
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
    let close = Rc::new(Close::default());
    let entry = Open { caller: Rc::clone(&caller), close: Rc::clone(&close), task: None, asked_at: None, read: (0, 0) };
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
                    open.close.ask();
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
    close: Rc<Close>,
}

/// Asks a connection to close.
#[derive(Default)]
struct Close {
    asked: Cell<bool>,
    notify: Notify,
}

impl Close {
    fn ask(&self) {
        self.asked.set(true);
        self.notify.notify_one();
    }
}

impl Closing {
    async fn is_due(&mut self) {
        let stopped = async {
            // An error means that whoever could ask is gone.
            if self.at_stop { drop(self.stop.wait_for(|stop| *stop).await) } else { std::future::pending().await }
        };
        tokio::select! {
            () = stopped => {}
            () = self.close.notify.notified() => {}
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
    let (interim, line) = (Arc::clone(&caller.interim), Arc::clone(&caller.line));
    let (stream, writer) = stream.into_split();
    let watch = Watch(Some(writer));
    let io = CallerIo { first, sent: 0, stream, guard, state: Reading::On, line, interim };
    let at_work = Rc::clone(&caller);
    if http2 {
        http2::serve(&worker, &caller, io, closing.is_due()).await
    } else {
        let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
            request::handle(Rc::clone(&worker), Rc::clone(&caller), request.map(Incoming::Http1))
        });
        let connection = http1::Builder::new()
            .max_headers(MAX_FIELDS)
            .max_header_size(MAX_HEADER_BYTES)
            .max_buf_size(MAX_HEADER_BYTES)
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades();
        tokio::pin!(connection);
        let mut hung_up = std::pin::pin!(watch.hung_up());
        // Whether it is due is looked at where that may have changed; mostly the task was woken for something else.
        let (stop, close) = (closing.stop.clone(), Rc::clone(&closing.close));
        let mut looked = false;
        let mut may_be_due = move || {
            !std::mem::replace(&mut looked, true) || close.asked.get() || !matches!(stop.has_changed(), Ok(false))
        };
        let mut due = std::pin::pin!(closing.is_due());
        let (mut asked, mut gone) = (false, false);
        std::future::poll_fn(|cx| {
            if !asked && may_be_due() && due.as_mut().poll(cx).is_ready() {
                asked = true;
                connection.as_mut().graceful_shutdown();
            }
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                return Poll::Ready(ended.map_err(Into::into));
            }
            let unread = at_work.line.is_unread();
            gone = gone || unread && hung_up.as_mut().poll(cx).is_ready();
            if gone && unread && at_work.is_under_way() {
                return Poll::Ready(Err("the caller hung up".into()));
            }
            Poll::Pending
        })
        .await
    }
}

/// Sees a caller hang up while the library has bytes of its next request, and so does not look.
struct Watch(Option<OwnedWriteHalf>);

impl Watch {
    async fn hung_up(&self) {
        // What is watched for is that the other end is closed; urgent data does not come.
        #[cfg(target_os = "linux")]
        let closed = Interest::PRIORITY;
        #[cfg(not(target_os = "linux"))]
        let closed = Interest::ERROR;
        match &self.0 {
            Some(stream) => drop(stream.ready(closed).await),
            None => std::future::pending().await,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // The connection is the library's to close, or goes on as a tunnel.
        if let Some(stream) = self.0.take() {
            stream.forget();
        }
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
    stream: OwnedReadHalf,
    guard: Option<Guard>,
    state: Reading,
    line: Arc<Line>,
    /// Interim replies, which go in front of what the library writes.
    interim: Arc<Interim>,
}

/// What becomes of the caller's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// They are read.
    On,
    /// A line came that must not pass. Whatever the library makes of the bytes that it gets instead, none of the caller's come after.
    Refused,
    /// The library has refused a request by itself, and its caller is told in our words.
    Answered,
}

impl CallerIo {
    fn poll_bytes(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if self.sent < self.first.len() {
            let left = &self.first[self.sent..];
            let now = left.len().min(buf.remaining());
            buf.put_slice(&left[..now]);
            self.sent += now;
        } else if self.state == Reading::Refused {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "what came cannot be read")));
        } else {
            ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        }
        self.line.has_read(buf.filled().len() - before);
        if self.state == Reading::Refused {
            return Poll::Ready(Ok(()));
        }
        let Some(guard) = &mut self.guard else { return Poll::Ready(Ok(())) };
        if let Some(good) = guard.follow(&buf.filled()[before..]) {
            buf.set_filled(before + good);
            (self.first, self.sent, self.state) = (guard::POISON.to_vec(), 0, Reading::Refused);
            if good == 0 {
                return self.poll_bytes(cx, buf);
            }
        } else if guard.is_done() {
            self.line.leave_unguarded();
        }
        self.line.set_amid_body(!guard.is_behind_a_body());
        Poll::Ready(Ok(()))
    }

    /// What the library writes while there is no request is its own refusal, which says nothing but a status: it is said as all
    /// refusals are. Ready when that is done; `Ready(None)` where there is nothing to do.
    fn poll_refusal(&mut self, head: &[u8], cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if !self.line.is_quiet() || self.guard.is_none() {
            return Poll::Ready(Ok(false));
        }
        if self.state != Reading::Answered {
            let Some(reply) = refusal::in_place_of(head) else { return Poll::Ready(Ok(false)) };
            self.state = Reading::Answered;
            self.interim.say(&reply);
        }
        ready!(self.interim.poll_write(&mut Writer(self.stream.as_ref()), cx))?;
        Poll::Ready(Ok(true))
    }

    /// Sees to what goes in front of what the library writes. True when that is not to be written.
    fn poll_before(&mut self, head: &[u8], cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        ready!(self.interim.poll_write(&mut Writer(self.stream.as_ref()), cx))?;
        if ready!(self.poll_refusal(head, cx))? {
            return Poll::Ready(Ok(true));
        }
        self.interim.flushed(false);
        Poll::Ready(Ok(false))
    }
}

impl Drop for CallerIo {
    fn drop(&mut self) {
        if self.line.is_open_ended() {
            // The caller takes the end of the connection for the reply's end; a reset it does not.
            let _ = self.stream.as_ref().set_zero_linger();
        }
    }
}

impl AsyncRead for CallerIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = self.poll_bytes(cx, buf);
        // What is left of a body is read first, whether or not the caller has gone.
        self.line.set_unread(read.is_ready() && self.guard.as_ref().is_some_and(Guard::is_behind_a_body));
        read
    }
}

impl AsyncWrite for CallerIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if ready!(self.poll_before(buf, cx))? {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut Writer(self.stream.as_ref())).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if ready!(self.poll_before(bufs.first().map_or(&[], |buf| buf), cx))? {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        Pin::new(&mut Writer(self.stream.as_ref())).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The library asks for this when it has written all it had.
        let this = &mut *self;
        this.line.flushed();
        this.interim.flushed(true);
        this.interim.wake(cx);
        this.interim.poll_write(&mut Writer(this.stream.as_ref()), cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(socket2::SockRef::from(self.stream.as_ref()).shutdown(std::net::Shutdown::Write))
    }
}

/// Writes to a connection of which the other half is held.
struct Writer<'a>(&'a TcpStream);

impl Writer<'_> {
    fn poll(
        &self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match write(self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

impl AsyncWrite for Writer<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll(cx, |stream| stream.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll(cx, |stream| stream.try_write_vectored(bufs))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
