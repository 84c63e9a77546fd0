//! An instance's reply on its way to the caller. The relay sees the end of the body, and with it the last word on how the
//! try went: for gRPC the status in the trailers, else whether the reply came whole.
//!
//! Keeps true: a reply that was cut on one side is cut on the other. An error here makes hyper break off the connection (or
//! reset the stream), never end the body as if it were complete. What came before the cut, or before the limit was over, goes out
//! before it.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

use crate::admit::Permit;
use crate::admit::limits::Slot;
use crate::body::{BodyError, Coming, Incoming, grpc_status};
use crate::clock;
use crate::forward::pool::Lease;
use crate::message;
use crate::record::Exchange;
use crate::table::Outcome;
use crate::worker::{Caller, Held};

/// A probe is judged by its reply's end, but others wait for it, and a stream may last for hours: one that has gone well for so long is
/// well.
const LONGEST_PROBE: Duration = Duration::from_secs(3);
/// The library writes at the latest when it has so many bytes; until then nothing of a reply may have been written.
const UNWRITTEN: u64 = 256 * 1024;

/// A reply that streams by.
#[derive(Debug)]
pub struct Relay {
    body: Incoming,
    status: u16,
    grpc: bool,
    limit: Option<Limit>,
    /// How the request's body comes, where it has one.
    coming: Option<Rc<Cell<Coming>>>,
    waiting: Waiting,
    /// Bytes that came.
    came: u64,
    /// What came last, until the caller asks for more.
    held: Option<Held>,
    /// It was cut, and hyper has not been told yet.
    cut: Option<BodyError>,
    /// Where it ends with the caller's connection, and is not known to have come whole.
    open_ended: Option<Rc<Caller>>,
    // In the order in which they are let go: the connection first, so that the next request of this caller can have it.
    lease: Option<Lease>,
    slot: Option<Slot>,
    unjudged: Unjudged,
    exchange: Option<Exchange>,
}

/// Whether the instance was asked for more, and had none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    No,
    /// And the limit was not over then.
    InTime,
    /// When the limit was over already: until then it was the caller that asked for no more.
    TooLate,
}

/// When a reply must be whole.
#[derive(Debug)]
struct Limit {
    sleep: Pin<Box<Sleep>>,
    /// The rule's and the policy's limit; the caller's own may be over sooner.
    ours: Option<Instant>,
}

/// A try of which the end is not known yet.
#[derive(Debug)]
enum Unjudged {
    /// It has been told.
    Nothing,
    Try(Permit),
    /// One that others wait for; taken out by whatever comes first, the end or [`LONGEST_PROBE`].
    Probe(Rc<RefCell<Option<Permit>>>),
}

impl Unjudged {
    fn of(permit: Permit, so_far: Outcome) -> Self {
        if !permit.is_probe() {
            return Self::Try(permit);
        }
        let permit = Rc::new(RefCell::new(Some(permit)));
        let probe = Rc::downgrade(&permit);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(LONGEST_PROBE).await;
            let permit = probe.upgrade().and_then(|permit| permit.borrow_mut().take());
            permit.into_iter().for_each(|mut permit| permit.close(so_far));
        });
        Self::Probe(permit)
    }

    fn take(&mut self) -> Option<Permit> {
        match std::mem::replace(self, Self::Nothing) {
            Self::Nothing => None,
            Self::Try(permit) => Some(permit),
            Self::Probe(permit) => permit.borrow_mut().take(),
        }
    }
}

impl Relay {
    /// A relay for a reply whose head said `status`.
    pub fn new(body: Incoming, status: u16, grpc: bool, lease: Lease, mut permit: Permit) -> Self {
        let slot = permit.take_slot();
        let unjudged = Unjudged::of(permit, Outcome::Reply { status, grpc: None });
        let (limit, coming, cut, open_ended, exchange) = (None, None, None, None, None);
        Self {
            body,
            status,
            grpc,
            limit,
            coming,
            waiting: Waiting::No,
            came: 0,
            held: None,
            cut,
            open_ended,
            lease: Some(lease),
            slot,
            unjudged,
            exchange,
        }
    }

    /// The reply must be whole by `deadline`. `ours` is the limit that the caller did not set itself.
    pub fn until(&mut self, deadline: Instant, ours: Option<Instant>) {
        self.limit = Some(Limit { sleep: Box::pin(tokio::time::sleep_until(deadline.into())), ours });
    }

    /// The request has a body, which comes so.
    pub fn while_coming(&mut self, coming: Option<Rc<Cell<Coming>>>) {
        self.coming = coming;
    }

    fn coming(&self) -> Option<Coming> {
        self.coming.as_deref().map(Cell::get)
    }

    /// The caller learns the end of it by the end of its connection alone, which is to be no end like others until all has come.
    pub fn ends_with(&mut self, connection: &Rc<Caller>) {
        if self.size_hint().exact().is_none() && !self.is_end_stream() {
            connection.line.set_open_ended(true);
            self.open_ended = Some(Rc::clone(connection));
        }
    }

    /// The request ends when the reply does.
    pub fn ends(&mut self, exchange: Exchange) {
        self.exchange = Some(exchange);
        if self.body.is_end_stream() {
            self.end(Outcome::Reply { status: self.status, grpc: None });
        }
    }

    /// Tells the circuits how the try went, before its end is seen.
    pub fn judge(&mut self, outcome: Outcome) {
        if let Some(mut permit) = self.unjudged.take() {
            permit.close(outcome);
        }
    }

    /// The next frame.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.held = None;
        if let Some(cut) = self.cut.take() {
            return Poll::Ready(Some(Err(cut)));
        }
        if (self.waiting != Waiting::No || self.came > UNWRITTEN)
            && let Some(limit) = &mut self.limit
            && limit.sleep.as_mut().poll(cx).is_ready()
        {
            let outcome = match (self.waiting, limit.ours) {
                (Waiting::InTime, ours) => overdue(self.coming(), ours, clock::now()),
                (Waiting::TooLate, _) => Outcome::CallersLimit,
                (Waiting::No, _) => Outcome::CallersBody,
            };
            // What there is has gone out, as far as the caller took it.
            self.lease = None;
            self.end(outcome);
            return Poll::Ready(Some(Err("the reply took longer than it may".into())));
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.waiting = match &mut self.limit {
            _ if polled.is_ready() => Waiting::No,
            None => Waiting::InTime,
            Some(limit) => {
                if limit.sleep.as_mut().poll(cx).is_ready() {
                    // What there is goes out first, and then it is cut.
                    cx.waker().wake_by_ref();
                    Waiting::TooLate
                } else {
                    Waiting::InTime
                }
            }
        };
        match ready!(polled) {
            None => {
                self.end(Outcome::Reply { status: self.status, grpc: None });
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                // An instance breaks off too when the request's own body does.
                let failed = self.coming() == Some(Coming::Failed);
                self.cut(if failed { Outcome::CallersFault } else { Outcome::Reset }, error, cx)
            }
            Some(Ok(mut frame)) => {
                self.came += frame.data_ref().map_or(0, |data| data.len() as u64);
                if let Some(trailers) = frame.trailers_mut() {
                    if !message::prepare_trailers(trailers) {
                        return self.cut(Outcome::Reset, "the trailers are too long".into(), cx);
                    }
                    let grpc = if self.grpc { grpc_status(trailers) } else { None };
                    self.end(Outcome::Reply { status: self.status, grpc });
                } else if self.body.is_end_stream() {
                    self.end(Outcome::Reply { status: self.status, grpc: None });
                }
                self.held = self.exchange.as_ref().map(Exchange::hold);
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    /// It breaks off. hyper drops what it has not written when it is told, so it is asked to write first.
    fn cut<T>(&mut self, outcome: Outcome, error: BodyError, cx: &Context<'_>) -> Poll<T> {
        self.lease = None;
        self.end(outcome);
        self.cut = Some(error);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// What the request takes up of the bounds of its policy.
    pub fn take_slot(&mut self) -> Option<Slot> {
        self.slot.take()
    }

    /// Whether nothing more comes.
    pub fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    /// How long the body is, if that is known.
    pub fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    /// The reply has come to its end, this way or that.
    fn end(&mut self, outcome: Outcome) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
        self.slot = None;
        if let (Some(connection), Outcome::Reply { .. }) = (self.open_ended.take(), outcome) {
            connection.line.set_open_ended(false);
        }
        let outcome = match outcome {
            // A gRPC reply that ends with no status was cut by something in between.
            Outcome::Reply { status, grpc: None } if self.grpc && status == 200 => {
                Outcome::Reply { status, grpc: Some(2) }
            }
            other => other,
        };
        self.judge(outcome);
        if let Some(mut exchange) = self.exchange.take() {
            exchange.status(seen_status(self.status, outcome));
        }
    }
}

/// What a try is that was waited for until a limit was over: the instance's fault only if it had all that the caller was to send, and
/// all the time that the rule and the policy give it.
pub fn overdue(coming: Option<Coming>, ours: Option<Instant>, now: Instant) -> Outcome {
    match coming {
        Some(Coming::Failed) => Outcome::CallersFault,
        Some(Coming::Awaited) => Outcome::CallersBody,
        _ if ours.is_some_and(|ours| ours <= now) => Outcome::Timeout,
        _ => Outcome::CallersLimit,
    }
}

/// The status under which a request is counted: a gRPC failure counts as the HTTP status that means the same.
pub fn seen_status(status: u16, outcome: Outcome) -> u16 {
    match outcome {
        Outcome::Reply { grpc: Some(code), .. } => match code {
            0 => status,
            1 => 499,
            4 => 504,
            3 | 5 | 6 | 7 | 9 | 10 | 11 | 16 => 400,
            8 => 429,
            12 => 501,
            14 => 503,
            _ => 500,
        },
        Outcome::Reply { status, .. } => status,
        Outcome::Timeout | Outcome::CallersLimit => 504,
        Outcome::CallersBody => 408,
        Outcome::Overloaded(_) => 503,
        Outcome::CallersFault => 400,
        Outcome::ConnectFailure | Outcome::RefusedStream | Outcome::Reset => 502,
    }
}
