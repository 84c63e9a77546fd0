//! `Expect: 100-continue` through a proxy (RFC 9110 section 10.1.1): the caller is told to go on when the instance says so, and
//! not at all when the instance answers at once. hyper tells the caller when the body is first asked for, so it is enough to
//! ask for the body only then.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::{Request, StatusCode};
use http_body::{Body, Frame};
use tokio::time::Sleep;

use crate::body::{BodyError, RequestBody};

/// An instance that says nothing gets the body after so long; many never send a 100.
const PATIENCE: Duration = Duration::from_secs(1);

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

/// Makes a request hold its body back until a 100 comes.
pub fn hold_back(request: Request<RequestBody>) -> Request<RequestBody> {
    let asked = Arc::new(Asked::default());
    let mut request = request.map(|body| {
        let patience = Box::pin(tokio::time::sleep(PATIENCE));
        RequestBody::Awaited(Box::new(Awaited { body, asked: Some(Arc::clone(&asked)), patience }))
    });
    hyper::ext::on_informational(&mut request, move |reply| {
        if reply.status() == StatusCode::CONTINUE {
            asked.yes.store(true, Relaxed);
            asked.waker.wake();
        }
    });
    request
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
