//! Bodies as they pass through, a frame at a time; nothing is collected. Concrete types, so that nothing is boxed.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::interim::Awaited;
use crate::message;
use crate::reply::Relay;
use crate::retry::replay::Replay;

/// What passes errors on; hyper asks for a boxed error, and only a connection that breaks makes one.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A request's body on its way to an instance.
#[derive(Debug)]
pub enum RequestBody {
    /// None.
    Empty,
    /// As it comes from the caller; the mark is set when that fails.
    Stream(Incoming, Rc<Cell<bool>>),
    /// As it comes, and kept for sending it again.
    Replay(Replay),
    /// One of the above, once the instance asks for it.
    Awaited(Box<Awaited>),
}

/// A reply's body on its way to the caller.
#[derive(Debug)]
pub enum ReplyBody {
    /// All of it at once; made by the agent.
    Full(Option<Bytes>),
    /// As it comes from the instance.
    Relay(Box<Relay>),
}

impl ReplyBody {
    /// No body.
    pub fn empty() -> Self {
        Self::Full(None)
    }

    /// A body of one piece.
    pub fn full(bytes: Bytes) -> Self {
        Self::Full(Some(bytes).filter(|b| !b.is_empty()))
    }
}

/// A frame as it may go on.
fn passable(mut frame: Frame<Bytes>) -> Result<Frame<Bytes>, BodyError> {
    match frame.trailers_mut().map(message::prepare_trailers) {
        Some(false) => Err("the trailers are too long".into()),
        None | Some(true) => Ok(frame),
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Stream(incoming, failed) => {
                let frame = ready!(Pin::new(incoming).poll_frame(cx)).map(|frame| passable(frame?));
                if matches!(frame, Some(Err(_))) {
                    failed.set(true);
                }
                Poll::Ready(frame)
            }
            Self::Replay(replay) => replay.poll_frame(cx),
            Self::Awaited(awaited) => awaited.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Stream(incoming, _) => incoming.is_end_stream(),
            Self::Replay(replay) => replay.is_end_stream(),
            Self::Awaited(awaited) => awaited.body().is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Stream(incoming, _) => incoming.size_hint(),
            Self::Replay(replay) => replay.size_hint(),
            Self::Awaited(awaited) => awaited.body().size_hint(),
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Relay(relay) => relay.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Relay(relay) => relay.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Relay(relay) => relay.size_hint(),
        }
    }
}

/// The gRPC status in trailers, or in the header of a reply that is trailers only.
pub fn grpc_status(fields: &HeaderMap) -> Option<u8> {
    fields.get("grpc-status")?.to_str().ok()?.parse().ok()
}
