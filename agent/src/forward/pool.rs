//! Connections to instances that are free: per worker, newest first, so that busy ones stay warm and the others age out.
//!
//! Keeps true: a connection is here only while it carries no request (HTTP/1) or can carry more (HTTP/2); one that has closed is
//! found out at check-out; none stays longer than [`IDLE`].

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hyper::client::conn::{http1, http2};

use crate::body::RequestBody;
use crate::clock;

/// A free connection is closed after so long: below what servers commonly allow (60 to 75 s), so that they rarely close first.
const IDLE: Duration = Duration::from_secs(30);
/// Free connections to one instance that a worker keeps; a further one is closed when it becomes free.
const MOST_IDLE: usize = 256;

/// A worker's free connections, by the instance's number.
#[derive(Debug, Default)]
pub struct Pool {
    instances: Rc<RefCell<HashMap<u64, Connections>>>,
}

#[derive(Debug, Default)]
struct Connections {
    http1: Vec<Idle>,
    http2: Option<http2::SendRequest<RequestBody>>,
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
    /// Shared with other requests, so there is nothing to give back.
    Shared,
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

    /// The HTTP/2 connection, if there is one that lives.
    pub fn http2(&self, instance: u64) -> Option<http2::SendRequest<RequestBody>> {
        let mut instances = self.instances.borrow_mut();
        let connection = &mut instances.get_mut(&instance)?.http2;
        if connection.as_ref().is_some_and(http2::SendRequest::is_closed) {
            *connection = None;
        }
        connection.clone()
    }

    /// Keeps an HTTP/2 connection for others.
    pub fn keep_http2(&self, instance: u64, sender: http2::SendRequest<RequestBody>) {
        self.instances.borrow_mut().entry(instance).or_default().http2 = Some(sender);
    }

    /// A lease on an HTTP/1 connection.
    pub fn lease(&self, instance: u64, sender: http1::SendRequest<RequestBody>, with_body: bool) -> Lease {
        Lease::Http1 { sender, instance, pool: self.share(), with_body }
    }

    /// Closes what has been free for too long. To be called every few seconds.
    pub fn sweep(&self, now: Instant) {
        self.instances.borrow_mut().retain(|_, connections| {
            connections.http1.retain(|c| !c.sender.is_closed() && now.saturating_duration_since(c.since) < IDLE);
            connections.http2 = connections.http2.take().filter(|c| !c.is_closed());
            !connections.http1.is_empty() || connections.http2.is_some()
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
