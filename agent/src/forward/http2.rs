//! One try over HTTP/2.
//!
//! Keeps true: what of the request has not been sent when the head of the reply comes is sent beside it, for as long as the reply lasts;
//! a try that is given up resets its stream.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::ready;

use h2::client;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;

use super::Failure;
use super::pool::{Http2, Lease};
use crate::body::{Incoming, RequestBody};
use crate::http2::{MOST_UNSENT, Receiving, Sending};
use crate::interim::Listener;
use crate::message::MAX_HEADER_BYTES;
use crate::table::{Instance, Outcome};
use crate::worker::Caller;

/// What an instance may send ahead on one stream.
const STREAM_WINDOW: u32 = 128 * 1024;
/// On the connection there is no bound (RFC 9113 section 6.9.1): callers that do not read share it with others, who must not wait.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// What the fields of a reply's head, or of its trailers, may be; of trailers that are longer the library drops some.
const MOST_HEADER_LIST: u32 = 4 * MAX_HEADER_BYTES as u32;

/// Sends a request and waits for the head of its reply. `kept`: a connection that was used before will do.
pub(super) async fn send(
    caller: &Caller,
    instance: &Instance,
    request: Request<RequestBody>,
    listener: Listener,
    kept: bool,
    worker: usize,
) -> Result<(Response<Incoming>, Lease), Failure> {
    let id = instance.load.id;
    // Those that take no more requests are not in the pool, and nothing can happen to it before the request is on it.
    let (mut connection, kept) = match kept.then(|| caller.pool.http2(id)).flatten() {
        Some(connection) => (connection, true),
        None => {
            let connection = Box::pin(connect(instance, caller, worker)).await?;
            caller.pool.keep_http2(id, connection.clone());
            (connection, false)
        }
    };
    let stream = connection.open();
    match ask(&mut connection.sender, request, &listener).await {
        Ok(response) => Ok((response, Lease::Http2(stream))),
        Err(error) => Err(failure(&error, kept)),
    }
}

/// A stream that was refused, by itself (RFC 9113 section 8.7) or by a GOAWAY that leaves it out (section 6.8), was not looked at; any
/// other end of it is a reset, as is the connection's under a stream that was let in. `kept`: the connection was used before.
fn failure(error: &h2::Error, kept: bool) -> Failure {
    let turned_away = error.is_go_away() && error.is_remote();
    let refused = turned_away || error.reason() == Some(h2::Reason::REFUSED_STREAM);
    let outcome = if refused { Outcome::RefusedStream } else { Outcome::Reset };
    Failure { outcome, stale: kept && (turned_away || error.is_io()) }
}

async fn ask(
    sender: &mut client::SendRequest<bytes::Bytes>,
    request: Request<RequestBody>,
    listener: &Listener,
) -> Result<Response<Incoming>, h2::Error> {
    let (head, body) = request.into_parts();
    let (asked_for_head, whole) = (head.method == Method::HEAD, body.is_end_stream());
    let (mut response, stream) = sender.send_request(Request::from_parts(head, ()), whole)?;
    let mut sending = (!whole).then(|| Sending::new(body, stream));
    let response = poll_fn(|cx| {
        if sending.as_mut().is_some_and(|sending| sending.poll(cx).is_ready()) {
            sending = None;
        }
        while let Some(interim) = ready!(response.poll_informational(cx)?) {
            listener.hear(interim.status(), interim.headers());
        }
        Pin::new(&mut response).poll(cx)
    })
    .await?;
    let (head, stream) = response.into_parts();
    let refused = head.status.as_u16() >= 300;
    // An instance that refuses without having asked for the body is not sent it.
    let rest = sending.filter(|sending| !(refused && sending.body.is_held_back()));
    let rest =
        rest.map(|mut rest| tokio::task::spawn_local(async move { poll_fn(|cx| rest.poll(cx)).await }).abort_handle());
    let without_content = asked_for_head || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&head.status);
    let body = Receiving::reply(stream, &head.headers, without_content, rest);
    Ok(Response::from_parts(head, Incoming::Http2(body)))
}

async fn connect(instance: &Instance, caller: &Caller, worker: usize) -> Result<Http2, Outcome> {
    let (io, slot) = super::connect_within(instance, caller, worker).await?;
    let (sender, connection) = client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MOST_HEADER_LIST)
        .max_send_buffer_size(MOST_UNSENT)
        .enable_push(false)
        // Until the peer says how many it takes: the streams above that number would be refused.
        .initial_max_send_streams(1)
        .handshake(io)
        .await
        .map_err(|_| Outcome::ConnectFailure)?;
    // How it ends is seen by its streams.
    tokio::task::spawn_local(async move {
        drop(connection.await);
        drop(slot);
    });
    Ok(Http2::new(sender))
}
