//! Bodies on streams of HTTP/2, in both directions, at callers and at instances.
//!
//! Keeps true:
//! - What was read may be sent again: the window is given back as a body is read, so a slow reader holds up its own stream alone.
//! - Nothing is read before there is room for what was read last.
//! - A body that breaks off resets the stream, and never ends it; a stream that is reset before its end, whatever the reason, has
//!   broken off.

use std::pin::Pin;
use std::sync::Weak;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Body, Frame, SizeHint};
use tokio::task::AbortHandle;

use crate::body::BodyError;
use crate::interim::Unanswered;

/// What of a body waits to be sent on one stream; whom it is for may not read.
pub const MOST_UNSENT: usize = 128 * 1024;

/// A body as it comes on a stream.
#[derive(Debug)]
pub struct Receiving {
    stream: RecvStream,
    /// So much is still to come, where the head said how much.
    length: Option<u64>,
    /// There is to be none, whatever the length in the head: it is that of what was not asked for.
    without_content: bool,
    content_ended: bool,
    /// Of a request: the stream, until it has its reply.
    unanswered: Weak<Unanswered>,
    /// Of a request: its caller waits for a 100 before it sends the body.
    expects_continue: bool,
    /// Of a reply: what is still being sent of the request, which is given up with the reply.
    rest: Option<AbortHandle>,
}

impl Receiving {
    /// The body of a request.
    pub fn request(stream: RecvStream, headers: &HeaderMap, unanswered: Weak<Unanswered>) -> Self {
        let mut body = Self::new(stream, headers);
        body.unanswered = unanswered;
        body
    }

    /// The body of a reply. `without_content`: it is one that has none. `rest` sends what is left of the request.
    pub fn reply(stream: RecvStream, headers: &HeaderMap, without_content: bool, rest: Option<AbortHandle>) -> Self {
        let mut body = Self::new(stream, headers);
        (body.without_content, body.rest) = (without_content, rest);
        body
    }

    fn new(stream: RecvStream, headers: &HeaderMap) -> Self {
        // The library has seen to it that it is one number, and holds the content to it.
        let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        Self {
            stream,
            length,
            without_content: false,
            content_ended: false,
            unanswered: Weak::new(),
            expects_continue: false,
            rest: None,
        }
    }

    /// The request's stream, to which interim replies may go.
    pub fn unanswered(&self) -> &Weak<Unanswered> {
        &self.unanswered
    }

    /// The caller is told to go on when the body is first asked for and has not come.
    pub fn expects_continue(&mut self) {
        self.expects_continue = true;
    }

    /// The next frame.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.content_ended {
            let polled = self.stream.poll_data(cx)?;
            if std::mem::take(&mut self.expects_continue)
                && polled.is_pending()
                && let Some(unanswered) = self.unanswered.upgrade()
            {
                unanswered.go_on();
            }
            if let Some(data) = ready!(polled) {
                if self.without_content && !data.is_empty() {
                    return Poll::Ready(Some(Err("a reply that has no content has some".into())));
                }
                // It fails when more is given back than has come.
                let _ = self.stream.flow_control().release_capacity(data.len());
                self.length = self.length.map(|length| length.saturating_sub(data.len() as u64));
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            self.content_ended = true;
        }
        Poll::Ready(ready!(self.stream.poll_trailers(cx))?.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    /// Whether nothing more comes.
    pub fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    /// How long the rest is, if that is known.
    pub fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        if let Some(rest) = &self.rest
            && !self.stream.is_end_stream()
        {
            rest.abort();
        }
    }
}

/// A body as it is sent on a stream. Dropped before its end, and with nothing else left of the stream, it resets it.
#[derive(Debug)]
pub struct Sending<B> {
    /// The body.
    pub body: B,
    stream: SendStream<Bytes>,
    /// What there is no room for yet, and whether it is the last.
    waiting: Option<(Bytes, bool)>,
}

impl<B: Body<Data = Bytes, Error = BodyError> + Unpin> Sending<B> {
    /// Sends that body on that stream.
    pub fn new(body: B, stream: SendStream<Bytes>) -> Self {
        Self { body, stream, waiting: None }
    }

    /// Ready when all was sent, or no more can be.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // That the other side takes no more is no news to whoever reads its reply, and the end of it to others.
        self.poll_to_end(cx).map(|_| ())
    }

    fn poll_to_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        loop {
            if let Poll::Ready(reset) = self.stream.poll_reset(cx) {
                return Poll::Ready(reset.map(|_| ()));
            }
            if self.waiting.is_some() {
                while self.stream.capacity() == 0 {
                    match ready!(self.stream.poll_capacity(cx)) {
                        Some(room) => drop(room?),
                        None => return Poll::Ready(Ok(())),
                    }
                }
            }
            if let Some((data, last)) = self.waiting.take() {
                self.stream.send_data(data, last)?;
                if last {
                    return Poll::Ready(Ok(()));
                }
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => return Poll::Ready(self.stream.send_data(Bytes::new(), true)),
                Some(Err(error)) => {
                    self.stream.send_reset(reason(&*error));
                    return Poll::Ready(Ok(()));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        let last = self.body.is_end_stream();
                        if !data.is_empty() {
                            // As little as can be: what is reserved is taken from the other streams of the connection.
                            self.stream.reserve_capacity(1);
                            self.waiting = Some((data, last));
                        } else if last {
                            return Poll::Ready(self.stream.send_data(data, true));
                        }
                    }
                    Err(frame) => {
                        let Ok(trailers) = frame.into_trailers() else { continue };
                        return Poll::Ready(self.stream.send_trailers(trailers));
                    }
                },
            }
        }
    }
}

/// With which reason a stream is reset whose body broke off.
fn reason(error: &(dyn std::error::Error + 'static)) -> Reason {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    let reason = causes.find_map(|cause| cause.downcast_ref::<h2::Error>()?.reason());
    // As if nothing had come of the message, or nothing were missing.
    reason
        .filter(|reason| ![Reason::NO_ERROR, Reason::REFUSED_STREAM].contains(reason))
        .unwrap_or(Reason::INTERNAL_ERROR)
}
