//! Connections that are not HTTP: bytes both ways, to an instance that is chosen once per connection, or to whom the connection
//! was meant for when no Service has that address.
//!
//! Keeps true:
//! - Either side may end its half and still read the other's.
//! - A connection that cannot be made is told to the instance's circuit, and the next instance is asked: nothing was sent yet.
//! - The caller hears by a reset, never by an end, that nobody took its connection.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf, copy_bidirectional};
use tokio::net::TcpStream;

use crate::admit::limits::Slot;
use crate::choose::{self, Tried};
use crate::record::metrics::{Direction, Series};
use crate::refusal::Reason;
use crate::runtime::{Load, Told};
use crate::table::Outcome;
use crate::worker::{Caller, TableRef, Worker};
use crate::{clock, forward, matching};

/// Instances that are asked for one connection.
const MOST_TRIES: usize = 3;
/// A connection was made; as an outcome it is what a good reply is.
const MADE: Outcome = Outcome::Reply { status: 200, grpc: None };

/// A caller's connection, and what was read of it already.
#[derive(Debug)]
pub struct Begun {
    /// The connection.
    pub stream: TcpStream,
    /// What comes first.
    pub first: Vec<u8>,
}

/// Carries a connection that was meant for that address: to an instance of the Service that has it, else to the address itself.
pub async fn carry(worker: &Rc<Worker>, caller: &Rc<Caller>, begun: Begun, original: SocketAddr) {
    let _busy = Busy::new(worker, caller);
    let table = worker.table();
    let made = match table.addresses.service(original) {
        Some((service, port)) => to_instance(worker, caller, table, service, port).await,
        None => {
            // Connections may last for days, and must not hold a table for so long.
            drop(table);
            as_meant(worker, caller, original).await
        }
    };
    match made {
        Some(made) => pass(worker, begun, made).await,
        None => refuse(&begun),
    }
}

/// A connection to an instance.
struct Made {
    stream: TcpStream,
    series: Arc<Series>,
    _load: Option<OnInstance>,
    _slot: Option<Slot>,
}

/// Connects to an instance of a Service; nothing when none takes it.
async fn to_instance(
    worker: &Rc<Worker>,
    caller: &Caller,
    table: TableRef,
    service_at: usize,
    port: usize,
) -> Option<Made> {
    let service = table.at(service_at);
    let number = service.ports.get(port)?.number;
    let known = table.addresses.workload(caller.address.ip());
    let rule = matching::first_for_connection(service, number, known.map(Arc::as_ref)).map(|entry| entry.rule);
    let stickiness = service.rule(rule).stickiness.as_ref();
    let sticks_by = stickiness.and_then(|stickiness| stickiness.key_of_caller(caller.address.ip()));
    let mut tried = Tried { sticks_by, ..Tried::default() };
    while tried.places.len() < MOST_TRIES {
        let (at, mut permit) = match choose::instance(worker, &table, (service_at, rule, port), &tried, clock::now()) {
            Ok(chosen) => chosen,
            Err(refusal) => {
                service.runtime.retries.refuse(worker.index, refusal.refusal.reason);
                return None;
            }
        };
        if tried.places.contains(&at) {
            return None;
        }
        let instance = table.instance(at);
        let connected = forward::connect_within(instance, caller, worker.index).await;
        let series = table.series(at);
        series.connection(worker.index, connected.is_ok());
        match connected {
            Ok((stream, slot)) => {
                permit.close(MADE);
                let load = OnInstance::new(worker, &instance.load);
                return Some(Made { stream, series: Arc::clone(series), _load: Some(load), _slot: slot });
            }
            Err(outcome) => {
                permit.close(outcome);
                if matches!(outcome, Outcome::Overloaded(_)) {
                    service.runtime.retries.refuse(worker.index, Reason::Overloaded);
                    return None;
                }
                // A split is between connections, not between their tries.
                tried.destination = Some(at.destination);
                tried.places.push(at);
            }
        }
    }
    None
}

/// Connects to whom a connection was meant for; nothing when nobody is there.
async fn as_meant(worker: &Worker, caller: &Caller, original: SocketAddr) -> Option<Made> {
    let series = Arc::clone(&worker.shared.unknown);
    let connected = forward::connect(original, caller.source).await;
    series.connection(worker.index, connected.is_ok());
    Some(Made { stream: connected.ok()?, series, _load: None, _slot: None })
}

/// Makes an instance busier for as long as it is there; nothing is told of how quick or how well the instance is.
pub struct OnInstance {
    worker: Rc<Worker>,
    load: Arc<Load>,
}

impl OnInstance {
    /// From now on.
    pub fn new(worker: &Rc<Worker>, load: &Arc<Load>) -> Self {
        load.begin(worker.index);
        Self { worker: Rc::clone(worker), load: Arc::clone(load) }
    }
}

impl Drop for OnInstance {
    fn drop(&mut self) {
        self.load.end(self.worker.index, Told::Nothing, self.worker.millis(clock::now()));
    }
}

/// A connection that is carried counts as a request under way.
struct Busy {
    worker: Rc<Worker>,
    caller: Rc<Caller>,
}

impl Busy {
    fn new(worker: &Rc<Worker>, caller: &Rc<Caller>) -> Self {
        worker.requests_under_way(1);
        caller.begin();
        Self { worker: Rc::clone(worker), caller: Rc::clone(caller) }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.caller.end(clock::now());
        self.worker.requests_under_way(-1);
    }
}

/// Closes the caller's connection with a reset.
fn refuse(begun: &Begun) {
    // One that cannot be reset is closed all the same.
    let _ = socket2::SockRef::from(&begun.stream).set_linger(Some(Duration::ZERO));
}

/// Passes bytes both ways until both sides are done.
async fn pass(worker: &Worker, begun: Begun, mut made: Made) {
    let (worker, series) = (worker.index, &*made.series);
    if !begun.first.is_empty() {
        series.carried(worker, Direction::ToInstance, begun.first.len());
        if made.stream.write_all(&begun.first).await.is_err() {
            return;
        }
    }
    let mut caller = Counted { stream: begun.stream, worker, series, direction: Direction::ToInstance };
    let mut instance = Counted { stream: made.stream, worker, series, direction: Direction::ToCaller };
    // Either side may break off at any time; that is how many connections end.
    let _ = copy_bidirectional(&mut caller, &mut instance).await;
}

/// A connection whose bytes are counted as they are read.
struct Counted<'a> {
    stream: TcpStream,
    worker: usize,
    series: &'a Series,
    direction: Direction,
}

impl AsyncRead for Counted<'_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.series.carried(self.worker, self.direction, buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
