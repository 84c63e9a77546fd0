//! Connections to instances that are free: per worker, newest first, so that busy ones stay warm and the others age out.
//!
//! Keeps true: a connection is here only while it carries no request (HTTP/1) or can carry more (HTTP/2); one that has closed is
//! found out at check-out; none stays without a request for longer than [`IDLE`]. A connection of HTTP/2 is given no more requests than
//! its peer takes at a time: a further one gets another connection, so that nobody waits for the streams of others.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client;
use hyper::client::conn::http1;

use crate::body::RequestBody;
use crate::clock;
use crate::matching::quick::Map;

/// A free connection is closed after so long: below what servers commonly allow (60 to 75 s), so that they rarely close first.
const IDLE: Duration = Duration::from_secs(30);
/// Free connections to one instance that a worker keeps; a further one is closed when it becomes free.
const MOST_IDLE: usize = 256;
/// Connections of HTTP/2 to one instance that a worker keeps, for an instance that takes few streams on each. Where all are full, the
/// one with the fewest gets a further request, which waits.
const MOST_HTTP2: usize = 256;

/// A worker's free connections, by the instance's number.
#[derive(Debug, Default)]
pub struct Pool {
    instances: Rc<RefCell<Map<u64, Connections>>>,
}

#[derive(Debug, Default)]
struct Connections {
    http1: Vec<Idle>,
    /// Oldest first, so that those which were made for a burst age out.
    http2: Vec<Http2>,
}

/// A connection of HTTP/2.
#[derive(Debug, Clone)]
pub struct Http2 {
    /// What requests are handed to.
    pub sender: client::SendRequest<Bytes>,
    state: Rc<Http2State>,
}

#[derive(Debug)]
struct Http2State {
    streams: Cell<usize>,
    free_since: Cell<Instant>,
}

/// A stream of a connection of HTTP/2, from before the request is sent to the end of the reply.
#[derive(Debug)]
pub struct Stream(Rc<Http2State>);

impl Drop for Stream {
    fn drop(&mut self) {
        let left = self.0.streams.get().saturating_sub(1);
        self.0.streams.set(left);
        if left == 0 {
            self.0.free_since.set(clock::now());
        }
    }
}

impl Http2 {
    /// A new connection.
    pub fn new(sender: client::SendRequest<Bytes>) -> Self {
        let (streams, free_since) = (Cell::new(0), Cell::new(clock::now()));
        Self { sender, state: Rc::new(Http2State { streams, free_since }) }
    }

    /// One more stream on it.
    pub fn open(&self) -> Stream {
        self.state.streams.set(self.state.streams.get() + 1);
        Stream(Rc::clone(&self.state))
    }

    /// Whether it takes no more requests: it has ended, or is about to, or its streams are used up.
    fn is_closed(&mut self) -> bool {
        // It waits for nothing here: that would be for the stream that was sent last with this handle, and none ever is.
        matches!(self.sender.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Err(_)))
    }

    fn has_room(&self) -> bool {
        self.state.streams.get() < self.sender.current_max_send_streams()
    }

    fn is_in_use(&self, now: Instant) -> bool {
        self.state.streams.get() > 0 || now.saturating_duration_since(self.state.free_since.get()) < IDLE
    }
}

#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<RequestBody>,
    since: Instant,
}

/// A connection that carries a request; given back when the reply has come whole, closed when it is dropped instead.
#[derive(Debug)]
pub enum Lease {
    /// Free again after this request.
    Http1 {
        /// The connection.
        sender: http1::SendRequest<RequestBody>,
        /// The instance's number.
        instance: u64,
        /// Where it goes.
        pool: Pool,
        /// The request had a body, which may not have been sent to its end when the reply is.
        with_body: bool,
    },
    /// A stream beside those of other requests.
    Http2(Stream),
}

impl Pool {
    /// A handle to the same pool.
    pub fn share(&self) -> Self {
        Self { instances: Rc::clone(&self.instances) }
    }

    /// A free HTTP/1 connection, the one used last first.
    pub fn take_http1(&self, instance: u64) -> Option<http1::SendRequest<RequestBody>> {
        let mut instances = self.instances.borrow_mut();
        let connections = instances.get_mut(&instance)?;
        while let Some(idle) = connections.http1.pop() {
            if !idle.sender.is_closed() {
                return Some(idle.sender);
            }
        }
        None
    }

    /// An HTTP/2 connection that lives and has room, if there is one, or if there may be no more.
    pub fn http2(&self, instance: u64) -> Option<Http2> {
        let mut instances = self.instances.borrow_mut();
        let connections = &mut instances.get_mut(&instance)?.http2;
        connections.retain_mut(|connection| !connection.is_closed());
        let with_room = connections.iter().find(|connection| connection.has_room());
        let least =
            || connections.iter().min_by_key(|c| c.state.streams.get()).filter(|_| connections.len() >= MOST_HTTP2);
        with_room.or_else(least).cloned()
    }

    /// Keeps an HTTP/2 connection for others.
    pub fn keep_http2(&self, instance: u64, connection: Http2) {
        let mut instances = self.instances.borrow_mut();
        let connections = &mut instances.entry(instance).or_default().http2;
        if connections.len() < MOST_HTTP2 {
            connections.push(connection);
        }
    }

    /// A lease on an HTTP/1 connection.
    pub fn lease(&self, instance: u64, sender: http1::SendRequest<RequestBody>, with_body: bool) -> Lease {
        Lease::Http1 { sender, instance, pool: self.share(), with_body }
    }

    /// Closes what has been free for too long. To be called every few seconds.
    pub fn sweep(&self, now: Instant) {
        self.instances.borrow_mut().retain(|_, connections| {
            connections.http1.retain(|c| !c.sender.is_closed() && now.saturating_duration_since(c.since) < IDLE);
            connections.http2.retain_mut(|c| !c.is_closed() && c.is_in_use(now));
            !connections.http1.is_empty() || !connections.http2.is_empty()
        });
    }

    /// Whether there is a connection in it, or somebody who may put one in.
    pub fn is_used(&self) -> bool {
        Rc::strong_count(&self.instances) > 1 || !self.instances.borrow().is_empty()
    }

    /// Closes all free connections.
    pub fn clear(&self) {
        self.instances.borrow_mut().clear();
    }
}

impl Lease {
    /// The reply has come whole: another request may use the connection.
    pub fn give_back(self) {
        if let Self::Http1 { sender, instance, pool, with_body } = self
            && !sender.is_closed()
            && (!with_body || sender.is_ready())
        {
            let mut instances = pool.instances.borrow_mut();
            let free = &mut instances.entry(instance).or_default().http1;
            if free.len() < MOST_IDLE {
                free.push(Idle { sender, since: clock::now() });
            }
        }
    }
}
