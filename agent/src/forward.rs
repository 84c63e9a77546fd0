//! One try: the request goes to one instance, and its reply's head comes back.
//!
//! Keeps true:
//! - This is the one seam to the HTTP libraries on the upstream side: connect, check out, send.
//! - A request that was not sent because a kept connection takes no more is sent on another at once; that is no retry.
//! - A kept connection that breaks off before any reply is [`Failure::stale`]: whoever asks knows whether the request may be sent once
//!   more.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderValue, Method, Request, Response, Uri, Version};
use http_body::Body;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use switchyard_proto::v1::Protocol;
use tokio::net::TcpStream;

use crate::admit::limits::{Bound, Slot};
use crate::body::{Incoming, RequestBody};
use crate::interim::Listener;
use crate::message::{MAX_FIELDS, MAX_HEADER_BYTES};
use crate::table::{Instance, Outcome};
use crate::worker::Caller;

/// Streams of HTTP/2.
mod http2;
/// Free connections.
pub mod pool;
/// Connections from a caller's own address.
pub(crate) mod transparent;

use pool::Lease;
pub use transparent::Source;

/// How long a connection may take to be made; a policy's timeouts may be shorter.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Which connection a request may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// One that was used before, where there is one.
    Kept,
    /// Only a new one.
    New,
}

/// How a try failed before it had the head of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// As what.
    pub outcome: Outcome,
    /// On a kept connection, which broke off: most likely the instance had just closed it.
    pub stale: bool,
}

impl From<Outcome> for Failure {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, stale: false }
    }
}

/// Sends a request and waits for the head of its reply. `version` is what the caller speaks: it decides where the port's
/// protocol is not declared. The listener hears of interim replies.
///
/// # Errors
/// How the try failed.
pub async fn send(
    caller: &Caller,
    instance: &Instance,
    (mut request, listener): (Request<RequestBody>, Listener),
    version: Version,
    upgrade: bool,
    connection: Connection,
    worker: usize,
) -> Result<(Response<Incoming>, Lease), Failure> {
    if speaks_http2(instance, version) {
        http2::send(caller, instance, for_http2(request)?, listener, connection == Connection::Kept, worker).await
    } else {
        listener.attach(&mut request);
        // A connection that is upgraded never comes back, so none of the kept ones is spent on it.
        let kept = connection == Connection::Kept && !upgrade;
        send_http1(caller, instance, for_http1(request), upgrade, kept, worker).await
    }
}

/// Whether an instance is spoken to in HTTP/2 when its caller speaks this version.
fn speaks_http2(instance: &Instance, version: Version) -> bool {
    match instance.protocol {
        Protocol::Http2 => true,
        Protocol::Unspecified => version == Version::HTTP_2,
        Protocol::Http1 | Protocol::Tcp => false,
    }
}

async fn send_http1(
    caller: &Caller,
    instance: &Instance,
    mut request: Request<RequestBody>,
    upgrade: bool,
    kept: bool,
    worker: usize,
) -> Result<(Response<Incoming>, Lease), Failure> {
    let id = instance.load.id;
    let with_body = !request.body().is_end_stream();
    while kept && let Some(mut sender) = caller.pool.take_http1(id) {
        // Its last reply has just come whole; the connection's own task may have a last step to do.
        if !sender.is_ready() && sender.ready().await.is_err() {
            continue;
        }
        match sender.try_send_request(request).await {
            Ok(response) => return Ok((response.map(Incoming::Http1), caller.pool.lease(id, sender, with_body))),
            Err(mut error) => match error.take_message() {
                Some(unsent) => request = unsent,
                None => return Err(Failure { outcome: Outcome::Reset, stale: has_broken_off(error.error()) }),
            },
        }
    }
    // Rare and large: kept out of every request's own future.
    let (mut sender, slot) = Box::pin(connect_http1(instance, caller, upgrade, worker)).await?;
    match sender.send_request(request).await {
        Ok(response) => {
            let mut response = response.map(Incoming::Http1);
            slot.into_iter().for_each(|slot| drop(response.extensions_mut().insert(Arc::new(slot))));
            Ok((response, caller.pool.lease(id, sender, with_body)))
        }
        Err(_) => Err(Outcome::Reset.into()),
    }
}

/// Whether the connection ended, or failed, before there was a whole head.
fn has_broken_off(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error);
    error.is_incomplete_message() || source.is_some_and(|source| source.is::<std::io::Error>())
}

/// Connects to an instance, or to whoever is at that address.
///
/// # Errors
/// How the try failed.
pub async fn connect(address: SocketAddr, source: Option<Source>) -> Result<TcpStream, Outcome> {
    let connecting = async {
        match source {
            None => TcpStream::connect(address).await,
            Some(source) => transparent::connect(address, source).await,
        }
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(stream)) => {
            // Small writes must not wait for others; a socket that refuses the option still works.
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "cannot connect");
            Err(Outcome::ConnectFailure)
        }
        Err(_) => Err(Outcome::ConnectFailure),
    }
}

/// Connects to an instance, within the bounds of its policy. What is taken of those lasts as long as the connection.
///
/// # Errors
/// How the try failed.
pub async fn connect_within(
    instance: &Instance,
    caller: &Caller,
    worker: usize,
) -> Result<(TcpStream, Option<Slot>), Outcome> {
    let take = |bound| match &instance.circuit {
        Some(circuit) => circuit.take(bound, worker).map_err(Outcome::Overloaded),
        None => Ok(None),
    };
    let (slot, _pending) = (take(Bound::Connections)?, take(Bound::Pending)?);
    Ok((connect(instance.address_for(caller.original), caller.source).await?, slot))
}

async fn connect_http1(
    instance: &Instance,
    caller: &Caller,
    upgrade: bool,
    worker: usize,
) -> Result<(http1::SendRequest<RequestBody>, Option<Slot>), Outcome> {
    let (stream, mut slot) = connect_within(instance, caller, worker).await?;
    let io = TokioIo::new(stream);
    let (sender, connection) = http1::Builder::new()
        .max_headers(MAX_FIELDS)
        .max_header_size(MAX_HEADER_BYTES)
        .max_buf_size(MAX_HEADER_BYTES)
        .handshake(io)
        .await
        .map_err(|_| Outcome::ConnectFailure)?;
    // One that is upgraded outlasts its task, and so must what it takes up.
    let outlasting = slot.take_if(|_| upgrade);
    // The connection's errors reach whoever waits for the reply.
    tokio::task::spawn_local(async move {
        let _ = if upgrade { connection.with_upgrades().await } else { connection.await };
        drop(slot);
    });
    Ok((sender, outlasting))
}

/// A request for HTTP/1.1: origin form; cookies in one field (RFC 9113 section 8.2.3).
fn for_http1(mut request: Request<RequestBody>) -> Request<RequestBody> {
    *request.version_mut() = Version::HTTP_11;
    // hyper takes a GET or a HEAD to have no body, unless it is told how long it is.
    if (request.method() == Method::GET || request.method() == Method::HEAD)
        && !request.body().is_end_stream()
        && !request.headers().contains_key(CONTENT_LENGTH)
    {
        request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    // What was said of trailers to us is said again, for one hop more (RFC 9110 section 10.1.4).
    if request.headers().contains_key(TE) {
        let upgrades = request.headers().contains_key(UPGRADE);
        let options = HeaderValue::from_static(if upgrades { "upgrade, te" } else { "te" });
        request.headers_mut().insert(CONNECTION, options);
    }
    let mut cookies = request.headers().get_all(COOKIE).iter();
    if cookies.next().is_some() && cookies.next().is_some() {
        let all: Vec<&[u8]> = request.headers().get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
            request.headers_mut().insert(COOKIE, joined);
        }
    }
    request
}

/// A request for HTTP/2: the authority in the target, and no Host beside it; no upgrade; how long it is, if that is known.
fn for_http2(mut request: Request<RequestBody>) -> Result<Request<RequestBody>, Outcome> {
    *request.version_mut() = Version::HTTP_2;
    let length = request.body().size_hint().exact();
    let says_nothing_when_empty = [Method::GET, Method::HEAD, Method::DELETE].contains(request.method());
    let headers = request.headers_mut();
    if headers.remove(UPGRADE).is_some() {
        headers.remove(CONNECTION);
    }
    if let Some(length) = length
        && (length > 0 || !says_nothing_when_empty)
        && !headers.contains_key(CONTENT_LENGTH)
    {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    let host = headers.remove(HOST);
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
    let authority = host.as_ref().and_then(|h| h.to_str().ok()).filter(|h| !h.is_empty()).unwrap_or("localhost");
    let uri = Uri::builder().scheme("http").authority(authority).path_and_query(path).build();
    *request.uri_mut() = uri.map_err(|_| Outcome::Reset)?;
    Ok(request)
}
