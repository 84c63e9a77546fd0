//! Bodies as they pass through, a frame at a time; nothing is collected. Concrete types, so that nothing is boxed.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use crate::clock;
use crate::filters::mirror::Copied;
use crate::http2::Receiving;
use crate::interim::Awaited;
use crate::message;
use crate::reply::Relay;
use crate::retry::replay::Replay;

/// What passes errors on; hyper asks for a boxed error, and only a connection that breaks makes one.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// How a request's body comes from the caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Coming {
    /// Nobody waits for it: it has not been asked for yet, or the instance takes no more.
    #[default]
    Well,
    /// The caller has not sent what it was asked for.
    Awaited,
    /// The caller broke off, or what it sent cannot be read.
    Failed,
    /// All of it had come then, and was given to the instance's connection.
    Whole(Instant),
}

impl Coming {
    /// After the caller's side was asked for more; `ended`: it has no more.
    pub fn after<T, E>(polled: &Poll<Option<Result<T, E>>>, ended: bool) -> Self {
        match polled {
            Poll::Pending => Self::Awaited,
            Poll::Ready(Some(Err(_))) => Self::Failed,
            Poll::Ready(frame) if ended || frame.is_none() => Self::Whole(clock::now()),
            Poll::Ready(_) => Self::Well,
        }
    }
}

/// A body as it comes, from a caller or from an instance.
#[derive(Debug)]
pub enum Incoming {
    /// On a connection of HTTP/1.
    Http1(hyper::body::Incoming),
    /// On a stream of HTTP/2.
    Http2(Receiving),
}

/// A request's body on its way to an instance.
#[derive(Debug)]
pub enum RequestBody {
    /// None.
    Empty,
    /// As it comes from the caller; how, is noted.
    Stream(Incoming, Rc<Cell<Coming>>),
    /// As it comes, and kept for sending it again.
    Replay(Replay),
    /// All of it at once: of a copy.
    Whole(Option<Bytes>),
    /// One of the above, of which a copy is made as it goes by.
    Copied(Box<Copied>),
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

impl Body for Incoming {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Http1(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Http2(stream) => stream.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2(stream) => stream.size_hint(),
        }
    }
}

impl RequestBody {
    /// Whether it waits for the instance to ask for it.
    pub fn is_held_back(&self) -> bool {
        matches!(self, Self::Awaited(awaited) if awaited.is_held_back())
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Stream(incoming, coming) => {
                let polled = Pin::new(&mut *incoming).poll_frame(cx).map(|frame| frame.map(|frame| passable(frame?)));
                coming.set(Coming::after(&polled, incoming.is_end_stream()));
                polled
            }
            Self::Replay(replay) => replay.poll_frame(cx),
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Copied(copied) => copied.poll_frame(cx),
            Self::Awaited(awaited) => awaited.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Stream(incoming, _) => incoming.is_end_stream(),
            Self::Replay(replay) => replay.is_end_stream(),
            Self::Whole(bytes) => bytes.is_none(),
            Self::Copied(copied) => copied.body().is_end_stream(),
            Self::Awaited(awaited) => awaited.body().is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Stream(incoming, _) => incoming.size_hint(),
            Self::Replay(replay) => replay.size_hint(),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Copied(copied) => copied.body().size_hint(),
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

/// The gRPC status in trailers, or in the header of a reply that is trailers only. One that is no status is UNKNOWN.
pub fn grpc_status(fields: &HeaderMap) -> Option<u8> {
    const UNKNOWN: u8 = 2;
    let code = fields.get("grpc-status")?.to_str().ok().and_then(|text| text.parse().ok());
    Some(code.filter(|code| *code <= 16).unwrap_or(UNKNOWN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_status_that_is_none_counts_as_unknown() {
        let of = |text: &'static str| {
            let mut fields = HeaderMap::new();
            fields.insert("grpc-status", http::HeaderValue::from_static(text));
            grpc_status(&fields)
        };
        assert_eq!([of("0"), of("14"), of("16")], [Some(0), Some(14), Some(16)]);
        assert_eq!([of("17"), of("99"), of("1000"), of("-1"), of("x"), of("")], [Some(2); 6]);
        assert_eq!(grpc_status(&HeaderMap::new()), None);
    }
}
