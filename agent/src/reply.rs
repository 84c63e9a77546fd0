//! An instance's reply on its way to the caller. The relay sees the end of the body, and with it the last word on how the
//! try went: for gRPC the status in the trailers, else whether the reply came whole.
//!
//! Keeps true: a reply that was cut on one side is cut on the other. An error here makes hyper break off the connection (or
//! reset the stream), never end the body as if it were complete. What came before the cut goes out before it.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use crate::admit::Permit;
use crate::body::{BodyError, grpc_status};
use crate::forward::pool::Lease;
use crate::message;
use crate::record::Exchange;
use crate::table::Outcome;
use crate::worker::Caller;

/// A reply that streams by.
#[derive(Debug)]
pub struct Relay {
    body: Incoming,
    status: u16,
    grpc: bool,
    deadline: Option<Pin<Box<Sleep>>>,
    /// Its end is marked, on HTTP/2: a stream that is closed without the mark was cut.
    ends_by_mark: bool,
    /// It was cut, and hyper has not been told yet.
    cut: Option<BodyError>,
    /// Where it ends with the caller's connection, and is not known to have come whole.
    open_ended: Option<Rc<Caller>>,
    // In the order in which they are let go: the connection first, so that the next request of this caller can have it.
    lease: Option<Lease>,
    permit: Option<Permit>,
    exchange: Option<Exchange>,
}

impl Relay {
    /// A relay for a reply whose head said `status`. `permit` is there while the try is not judged yet.
    pub fn new(body: Incoming, status: u16, grpc: bool, lease: Lease, permit: Permit) -> Self {
        let ends_by_mark = matches!(lease, Lease::Shared);
        let (deadline, cut, open_ended, exchange) = (None, None, None, None);
        let (lease, permit) = (Some(lease), Some(permit));
        Self { body, status, grpc, deadline, ends_by_mark, cut, open_ended, lease, permit, exchange }
    }

    /// The reply must be whole by then.
    pub fn until(&mut self, deadline: Instant) {
        self.deadline = Some(Box::pin(tokio::time::sleep_until(deadline.into())));
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
        if let Some(mut permit) = self.permit.take() {
            permit.close(outcome);
        }
    }

    /// Whether the try decides about a circuit that is half-open.
    pub fn is_probe(&self) -> bool {
        self.permit.as_ref().is_some_and(Permit::is_probe)
    }

    /// The next frame.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(cut) = self.cut.take() {
            return Poll::Ready(Some(Err(cut)));
        }
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return self.cut(Outcome::Timeout, "the reply took longer than it may".into(), cx);
        }
        match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            // hyper takes a stream that is reset with NO_ERROR for one that has ended.
            None if self.ends_by_mark && !self.body.is_end_stream() => {
                self.cut(Outcome::Reset, "the stream was closed before the reply's end".into(), cx)
            }
            None => {
                self.end(Outcome::Reply { status: self.status, grpc: None });
                Poll::Ready(None)
            }
            Some(Err(error)) => self.cut(Outcome::Reset, error.into(), cx),
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    if !message::prepare_trailers(trailers) {
                        return self.cut(Outcome::Reset, "the trailers are too long".into(), cx);
                    }
                    let grpc = if self.grpc { grpc_status(trailers) } else { None };
                    self.end(Outcome::Reply { status: self.status, grpc });
                } else if self.body.is_end_stream() {
                    self.end(Outcome::Reply { status: self.status, grpc: None });
                } else if self.is_probe() {
                    // A stream may last for hours, and others wait for the probe: an instance that sends a message is well.
                    self.judge(Outcome::Reply { status: self.status, grpc: None });
                }
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
        Outcome::Timeout => 504,
        Outcome::CallersFault => 400,
        Outcome::ConnectFailure | Outcome::RefusedStream | Outcome::Reset => 502,
    }
}
