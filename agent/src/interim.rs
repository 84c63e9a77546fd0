//! Interim replies: a proxy passes them on (RFC 9110 section 15.2), from and to HTTP/1.1 and HTTP/2.
//!
//! - `103 Early Hints` and the like go to the caller as they come, in front of the reply that they announce. On HTTP/2 they are frames of
//!   the request's stream ([`Unanswered`]). On HTTP/1.1 the library cannot be told to send one, so they are written to the connection
//!   between two messages of the library's, and only when it has written all it had ([`Interim::flushed`]); where it has not, which
//!   takes a caller that pipelines and does not read, they are dropped.
//! - `Expect: 100-continue` (section 10.1.1): the caller is told to go on when the instance says so, and not at all when the instance
//!   answers at once. It is told when its body is first asked for (by the library, or by [`Receiving`](crate::http2::Receiving)), so that
//!   is asked for only then.

use std::io::Write as _;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::header::{CONTENT_LENGTH, TRAILER};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version};
use http_body::{Body, Frame};
use tokio::io::AsyncWrite;
use tokio::time::Sleep;

use crate::body::{BodyError, Incoming, RequestBody};
use crate::message;

/// An instance that says nothing gets the body after so long; many never send a 100.
const PATIENCE: Duration = Duration::from_secs(1);
/// Interim replies that wait to be written, in bytes, or are sent on one stream of HTTP/2, whose caller may not read; more are dropped.
const MOST_WAITING: usize = 64 * 1024;

/// The fields of an interim reply that go on: it has no content and no trailers, and what Connection names is for us.
fn passable(headers: &HeaderMap) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    let nominated = message::nominated(headers);
    headers.iter().filter(move |(name, _)| {
        let is_ours = message::is_hop_by_hop(name) || *name == CONTENT_LENGTH || *name == TRAILER;
        !is_ours && !nominated.contains(name)
    })
}

/// Interim replies on their way to one caller's connection of HTTP/1.1.
#[derive(Debug, Default)]
pub struct Interim {
    waiting: Mutex<Vec<u8>>,
    any: AtomicBool,
    waker: AtomicWaker,
    /// The library has more to write of an earlier message.
    unflushed: AtomicBool,
}

impl Interim {
    fn waiting(&self) -> MutexGuard<'_, Vec<u8>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one in.
    fn push(&self, status: StatusCode, headers: &HeaderMap) {
        let mut waiting = self.waiting();
        if waiting.len() >= MOST_WAITING {
            return;
        }
        // Writing to memory cannot fail.
        let _ = write!(waiting, "HTTP/1.1 {} {}\r\n", status.as_u16(), status.canonical_reason().unwrap_or_default());
        for (name, value) in passable(headers) {
            waiting.extend_from_slice(name.as_str().as_bytes());
            waiting.extend_from_slice(b": ");
            waiting.extend_from_slice(value.as_bytes());
            waiting.extend_from_slice(b"\r\n");
        }
        waiting.extend_from_slice(b"\r\n");
        self.any.store(true, Relaxed);
        self.waker.wake();
    }

    /// Takes in what is to be written as it is.
    pub fn say(&self, bytes: &[u8]) {
        self.waiting().extend_from_slice(bytes);
        self.any.store(true, Relaxed);
    }

    /// The final reply is there: what waits goes in front of it, or nowhere.
    pub fn settle(&self) {
        if self.any.load(Relaxed) && self.unflushed.load(Relaxed) {
            self.waiting().clear();
            self.any.store(false, Relaxed);
        }
    }

    /// The library has written all it had.
    pub fn flushed(&self, all: bool) {
        self.unflushed.store(!all, Relaxed);
    }

    /// Writes what waits, if it may be written now. Ready when nothing is left that must come before anything else.
    pub fn poll_write<W: AsyncWrite + Unpin>(&self, to: &mut W, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        if !self.any.load(Relaxed) || self.unflushed.load(Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let mut waiting = self.waiting();
        while !waiting.is_empty() {
            let written = ready!(Pin::new(&mut *to).poll_write(cx, &waiting))?;
            waiting.drain(..written);
        }
        self.any.store(false, Relaxed);
        Poll::Ready(Ok(()))
    }

    /// Whose turn it is when something waits.
    pub fn wake(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
    }
}

/// A caller's stream of HTTP/2 that has no reply yet. All of it is on one thread; it is locked because the library of HTTP/1, from
/// which interim replies may come, wants what it owns to be `Send`.
#[derive(Debug)]
pub struct Unanswered {
    stream: Mutex<SendResponse<Bytes>>,
    /// How many bytes of interim replies were sent.
    said: AtomicUsize,
}

impl Unanswered {
    /// A stream whose request has come.
    pub fn new(stream: SendResponse<Bytes>) -> Self {
        Self { stream: Mutex::new(stream), said: AtomicUsize::new(0) }
    }

    fn stream(&self) -> MutexGuard<'_, SendResponse<Bytes>> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ready when the caller has given the request up, or its connection has ended.
    pub fn poll_given_up(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream().poll_reset(cx).map(|_| ())
    }

    /// Tells the caller to send the body.
    pub fn go_on(&self) {
        self.send(StatusCode::CONTINUE, HeaderMap::new());
    }

    /// Passes an interim reply on.
    fn pass(&self, status: StatusCode, headers: &HeaderMap) {
        let bytes: usize = passable(headers).map(|(name, value)| name.as_str().len() + value.len()).sum();
        if self.said.fetch_add(bytes.max(1), Relaxed) < MOST_WAITING {
            self.send(status, passable(headers).map(|(name, value)| (name.clone(), value.clone())).collect());
        }
    }

    fn send(&self, status: StatusCode, headers: HeaderMap) {
        let mut reply = Response::new(());
        *reply.status_mut() = status;
        *reply.headers_mut() = headers;
        // A stream that takes no more has been given up.
        let _ = self.stream().send_informational(reply);
    }

    /// Sends the head of the reply; `last`: it is all of it.
    ///
    /// # Errors
    /// The stream takes no reply any more.
    pub fn answer(&self, head: Response<()>, last: bool) -> Result<SendStream<Bytes>, h2::Error> {
        let mut stream = self.stream();
        stream.send_response(head, last).inspect_err(|_| stream.send_reset(Reason::INTERNAL_ERROR))
    }
}

/// Where the interim replies to a request go.
#[derive(Clone, Debug)]
pub enum ToCaller {
    /// In front of what is written to a connection of HTTP/1.1.
    Http1(Arc<Interim>),
    /// On a stream of HTTP/2, until it has its reply.
    Http2(Weak<Unanswered>),
}

impl ToCaller {
    /// To whom a request is from that came so; nothing where none are taken, as on HTTP/1.0.
    pub fn of(version: Version, body: &Incoming, connection: &Arc<Interim>) -> Option<Self> {
        match body {
            Incoming::Http2(stream) => Some(Self::Http2(Weak::clone(stream.unanswered()))),
            Incoming::Http1(_) => (version == Version::HTTP_11).then(|| Self::Http1(Arc::clone(connection))),
        }
    }

    fn pass(&self, status: StatusCode, headers: &HeaderMap) {
        match self {
            Self::Http1(connection) => connection.push(status, headers),
            Self::Http2(stream) => stream.upgrade().into_iter().for_each(|stream| stream.pass(status, headers)),
        }
    }
}

/// Who hears of the interim replies to one try: the caller, and a body that waits for a 100.
#[derive(Debug)]
pub struct Listener {
    to: Option<ToCaller>,
    asked: Option<Arc<Asked>>,
}

impl Listener {
    /// An interim reply has come.
    pub fn hear(&self, status: StatusCode, headers: &HeaderMap) {
        match (status, &self.asked, &self.to) {
            (StatusCode::CONTINUE, Some(asked), _) => {
                asked.yes.store(true, Relaxed);
                asked.waker.wake();
            }
            // Nobody asked for it, and on HTTP/2 there is none.
            (StatusCode::SWITCHING_PROTOCOLS, _, _) | (_, _, None) => {}
            (status, _, Some(to)) => to.pass(status, headers),
        }
    }

    /// Has it hear what the library of HTTP/1 reads.
    pub fn attach(self, request: &mut Request<RequestBody>) {
        if self.to.is_some() || self.asked.is_some() {
            hyper::ext::on_informational(request, move |reply| self.hear(reply.status(), reply.headers()));
        }
    }
}

/// Who is to hear of interim replies to this request. `expects_continue`: its body waits for a 100.
pub fn listen(
    request: Request<RequestBody>,
    to: Option<&ToCaller>,
    expects_continue: bool,
) -> (Request<RequestBody>, Listener) {
    let asked = expects_continue.then(|| Arc::new(Asked::default()));
    let request = match &asked {
        None => request,
        Some(asked) => request.map(|body| {
            let patience = Box::pin(tokio::time::sleep(PATIENCE));
            RequestBody::Awaited(Box::new(Awaited { body, asked: Some(Arc::clone(asked)), patience }))
        }),
    };
    (request, Listener { to: to.cloned(), asked })
}

/// A body that waits until the instance asks for it.
#[derive(Debug)]
pub struct Awaited {
    body: RequestBody,
    asked: Option<Arc<Asked>>,
    patience: Pin<Box<Sleep>>,
}

#[derive(Debug, Default)]
struct Asked {
    yes: AtomicBool,
    waker: AtomicWaker,
}

impl Awaited {
    /// The next frame, once the instance has asked.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(asked) = &self.asked {
            asked.waker.register(cx.waker());
            if !asked.yes.load(Relaxed) {
                ready!(self.patience.as_mut().poll(cx));
            }
            self.asked = None;
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    /// Whether the instance has neither asked nor been waited for long enough.
    pub fn is_held_back(&self) -> bool {
        self.asked.is_some()
    }

    /// The body itself.
    pub fn body(&self) -> &RequestBody {
        &self.body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_interim_reply_says_to_us_alone_goes_no_further() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("link", "</style.css>"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("content-length", "5"),
            ("trailer", "x-sum"),
            ("keep-alive", "timeout=5"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let names: Vec<_> = passable(&headers).map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["link"]);
    }
}
