//! Copies of requests for another Service, whose replies nobody waits for (the Gateway API's HTTPRequestMirrorFilter).
//!
//! Keeps true:
//! - Nothing of it is in the way of the request: a copy is sent by a task of its own, and once the request's body has gone by.
//! - A request is copied once for each mirror, whatever its retries, and only if an instance was found for it.
//! - What copies take has bounds: bodies up to [`MOST_BODY`], [`MOST_COPIES`] at a time for each worker, [`LIMIT`] for each. What is
//!   beyond them is not sent, and counted.
//! - What a copy's instance does is told to no circuit: requests that nobody waits for decide nothing about those that somebody does.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::EXPECT;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Uri, Version};
use http_body::{Body, Frame};

use crate::body::{BodyError, RequestBody};
use crate::carry::OnInstance;
use crate::forward::{self, Connection};
use crate::interim;
use crate::record::metrics;
use crate::table::{Filters, Mirror};
use crate::worker::{Caller, Worker};
use crate::{choose, clock};

/// Bytes of a request's body that are kept for copies; a request with a longer one is not copied.
const MOST_BODY: usize = 64 * 1024;
/// Copies that a worker has under way at a time: with [`MOST_BODY`], 16 MiB.
const MOST_COPIES: usize = 256;
/// How long a copy may take, from connecting to the end of its reply.
const LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a copy's reply that are read, so that its connection serves again.
const MOST_REPLY: usize = 64 * 1024;

/// The copies of one request.
#[derive(Debug)]
pub struct Copies {
    worker: Rc<Worker>,
    caller: Rc<Caller>,
    method: Method,
    uri: Uri,
    version: Version,
    /// The port that the request came for, in its Service.
    port: usize,
    /// Those that have not been sent: where each goes, with its header.
    unsent: RefCell<Vec<(Arc<Mirror>, HeaderMap)>>,
    body: RefCell<BytesMut>,
    /// Which try's body is copied.
    newest: Cell<u32>,
}

/// Draws the mirrors that get a copy of a request, which goes to a destination with these filters. None: nobody does.
pub fn copies(
    worker: &Rc<Worker>,
    caller: &Rc<Caller>,
    (rule, destination): (Option<&Filters>, Option<&Filters>),
    parts: &Parts,
    port: usize,
) -> Option<Rc<Copies>> {
    let mut unsent = Vec::new();
    for (filters, of_destination) in [(rule, false), (destination, true)] {
        for mirror in filters.into_iter().flat_map(|filters| &filters.mirrors) {
            if worker.with_rng(|rng| mirror.share.draw(rng)) {
                let mut headers = parts.headers.clone();
                // The body is sent at once.
                headers.remove(EXPECT);
                if of_destination && let Some(filters) = filters {
                    filters.change_request(&mut headers);
                }
                unsent.push((Arc::clone(mirror), headers));
            }
        }
    }
    (!unsent.is_empty()).then(|| {
        Rc::new(Copies {
            worker: Rc::clone(worker),
            caller: Rc::clone(caller),
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            version: parts.version,
            port,
            unsent: RefCell::new(unsent),
            body: RefCell::default(),
            newest: Cell::new(0),
        })
    })
}

impl Copies {
    /// The request has no body: they are sent now.
    pub fn without_body(&self) {
        self.send();
    }

    /// They are sent once this body, which is that of the next try, has gone by.
    pub fn of(self: &Rc<Self>, body: RequestBody) -> RequestBody {
        if self.unsent.borrow().is_empty() {
            return body;
        }
        self.newest.set(self.newest.get() + 1);
        self.body.borrow_mut().clear();
        let whole = body.size_hint().exact();
        RequestBody::Copied(Box::new(Copied { body, whole, copies: Rc::clone(self), number: self.newest.get() }))
    }

    fn send(&self) {
        let body = self.body.take().freeze();
        for (mirror, headers) in self.unsent.take() {
            let mut request = Request::new(RequestBody::Whole(Some(body.clone()).filter(|body| !body.is_empty())));
            *request.method_mut() = self.method.clone();
            *request.uri_mut() = self.uri.clone();
            *request.headers_mut() = headers;
            let (worker, caller) = (Rc::clone(&self.worker), Rc::clone(&self.caller));
            let (port, version) = (self.port, self.version);
            tokio::task::spawn_local(async move {
                let became = send(&worker, &caller, &mirror, port, request, version).await;
                mirror.destination.series.copied(worker.index, became);
            });
        }
    }

    fn give_up(&self) {
        for (mirror, _) in self.unsent.take() {
            mirror.destination.series.copied(self.worker.index, metrics::Copied::Body);
        }
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        // The body has not come to its end.
        self.give_up();
    }
}

/// A body that is copied as it goes by.
#[derive(Debug)]
pub struct Copied {
    body: RequestBody,
    /// How long it is, where that is known. Of such a one nobody asks for the end.
    whole: Option<u64>,
    copies: Rc<Copies>,
    number: u32,
}

impl Copied {
    /// The body itself.
    pub fn body(&self) -> &RequestBody {
        &self.body
    }

    /// The next frame.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if self.copies.newest.get() == self.number
            && let Poll::Ready(frame) = &polled
        {
            let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
            if let Some(data) = data {
                let mut kept = self.copies.body.borrow_mut();
                if kept.len() + data.len() > MOST_BODY {
                    *kept = BytesMut::new();
                    self.copies.give_up();
                } else {
                    kept.extend_from_slice(data);
                }
            }
            let all_came = || self.whole == Some(self.copies.body.borrow().len() as u64) || self.body.is_end_stream();
            match frame {
                // Another try may come.
                Some(Err(_)) => {}
                // Trailers are the end as well; they are not copied.
                Some(Ok(_)) if data.is_some() && !all_came() => {}
                _ => self.copies.send(),
            }
        }
        polled
    }
}

/// Sends one copy, and reads its reply.
async fn send(
    worker: &Rc<Worker>,
    caller: &Caller,
    mirror: &Mirror,
    port: usize,
    request: Request<RequestBody>,
    version: Version,
) -> metrics::Copied {
    if worker.copies.get() >= MOST_COPIES {
        return metrics::Copied::TooMany;
    }
    let _counted = UnderWay::new(worker);
    let instances = mirror.destination.ports.get(port);
    let Some(instance) = instances.and_then(|instances| choose::for_copy(worker, instances, clock::now())) else {
        return metrics::Copied::NoInstance;
    };
    let _busy = OnInstance::new(worker, &instance.load);
    let until = tokio::time::Instant::from_std(clock::now() + LIMIT);
    // Nobody hears of interim replies to a copy.
    let request = interim::listen(request, None, false);
    let sent = forward::send(caller, instance, request, version, false, Connection::Kept, worker.index);
    let Ok(Ok((response, lease))) = tokio::time::timeout_at(until, sent).await else {
        return metrics::Copied::Failed;
    };
    let reading = async {
        let (mut body, mut left) = (response.into_body(), MOST_REPLY);
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            left = left.checked_sub(frame.ok()?.data_ref().map_or(0, Bytes::len))?;
        }
        lease.give_back();
        Some(())
    };
    // However it ends: nobody reads it.
    let _ = tokio::time::timeout_at(until, reading).await;
    metrics::Copied::Answered
}

/// Counts a copy for as long as it is under way.
struct UnderWay<'w>(&'w Worker);

impl<'w> UnderWay<'w> {
    fn new(worker: &'w Worker) -> Self {
        worker.copies.set(worker.copies.get() + 1);
        Self(worker)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.copies.set(self.0.copies.get() - 1);
    }
}
