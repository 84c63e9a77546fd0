//! Interim replies on HTTP/1.1: a proxy passes them on (RFC 9110 section 15.2), and the HTTP library can neither be told to send one
//! nor to wait with a body until the instance asks for it. Both are done here, with what it does offer.
//!
//! - `103 Early Hints` and the like are written to the caller's connection in front of the reply that they announce. They come
//!   between two messages of the library's, so they are written only when it has written all it had ([`Interim::flushed`]); where it
//!   has not, which takes a caller that pipelines and does not read, they are dropped.
//! - `Expect: 100-continue` (section 10.1.1): the caller is told to go on when the instance says so, and not at all when the instance
//!   answers at once. The library tells the caller when the body is first asked for, so it is asked for only then.

use std::io::Write as _;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::{HeaderMap, Request, StatusCode};
use http_body::{Body, Frame};
use tokio::io::AsyncWrite;
use tokio::time::Sleep;

use crate::body::{BodyError, RequestBody};
use crate::message;

/// An instance that says nothing gets the body after so long; many never send a 100.
const PATIENCE: Duration = Duration::from_secs(1);
/// Interim replies that wait to be written, in bytes; more are dropped.
const MOST_WAITING: usize = 64 * 1024;

/// Interim replies on their way to one caller's connection.
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
        for (name, value) in headers.iter().filter(|(name, _)| !message::is_hop_by_hop(name)) {
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

/// Makes interim replies to this request known: to the caller, where its connection takes them, and to a body that waits for a 100.
pub fn listen(
    request: Request<RequestBody>,
    to: Option<&Arc<Interim>>,
    expects_continue: bool,
) -> Request<RequestBody> {
    let asked = expects_continue.then(|| Arc::new(Asked::default()));
    if to.is_none() && asked.is_none() {
        return request;
    }
    let mut request = match &asked {
        None => request,
        Some(asked) => request.map(|body| {
            let patience = Box::pin(tokio::time::sleep(PATIENCE));
            RequestBody::Awaited(Box::new(Awaited { body, asked: Some(Arc::clone(asked)), patience }))
        }),
    };
    let to = to.map(Arc::clone);
    hyper::ext::on_informational(&mut request, move |reply| match (reply.status(), &asked, &to) {
        (StatusCode::CONTINUE, Some(asked), _) => {
            asked.yes.store(true, Relaxed);
            asked.waker.wake();
        }
        (StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS, _, _) | (_, _, None) => {}
        (status, _, Some(to)) => to.push(status, reply.headers()),
    });
    request
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

    /// The body itself.
    pub fn body(&self) -> &RequestBody {
        &self.body
    }
}
