//! Connections of HTTP/2: each request is a task of its own, on its connection's thread.
//!
//! Keeps true: a request that its caller gives up, or whose connection ends, is dropped with all that it holds; when the connection is
//! to close, what is under way and what comes before its caller hears of it is answered first (RFC 9113 section 6.8).

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Builder, SendResponse};
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT};
use http::{HeaderValue, Method, Request, Response};
use http_body::Body;

use super::CallerIo;
use crate::body::{Incoming, ReplyBody};
use crate::http2::{MOST_UNSENT, Receiving, Sending};
use crate::interim::Unanswered;
use crate::message::MAX_HEADER_BYTES;
use crate::request;
use crate::worker::{Caller, Worker};

/// Streams that a caller may have open on one connection.
const MOST_STREAMS: u32 = 256;
/// What a caller may send ahead on one stream.
const STREAM_WINDOW: u32 = 64 * 1024;
/// And on the whole connection: all streams together, so that one which is not read never holds up another.
const CONNECTION_WINDOW: u32 = MOST_STREAMS * STREAM_WINDOW;
/// What a header may be for it to be answered in our words; the library refuses more by itself, and of a connection with one
/// stream that sends far more it ends all. More than [`MAX_HEADER_BYTES`] is refused there too, and nobody is hurt.
const MOST_HEADER_LIST: u32 = 4 * MAX_HEADER_BYTES as u32;

/// Serves a connection until it ends, or it is due to close and all is answered.
pub(super) async fn serve(
    worker: &Rc<Worker>,
    caller: &Rc<Caller>,
    io: CallerIo,
    due: impl Future<Output = ()>,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut connection = Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MOST_STREAMS)
        .max_header_list_size(MOST_HEADER_LIST)
        .max_send_buffer_size(MOST_UNSENT)
        .handshake(io)
        .await?;
    let (mut due, mut closing) = (pin!(due), false);
    loop {
        let accepted = tokio::select! {
            biased;
            () = due.as_mut(), if !closing => {
                closing = true;
                connection.graceful_shutdown();
                continue;
            }
            accepted = connection.accept() => accepted,
        };
        match accepted {
            None => return Ok(()),
            Some(accepted) => {
                let (request, stream) = accepted?;
                tokio::task::spawn_local(answer(Rc::clone(worker), Rc::clone(caller), request, stream));
            }
        }
    }
}

/// Answers one request.
async fn answer(worker: Rc<Worker>, caller: Rc<Caller>, request: Request<RecvStream>, stream: SendResponse<Bytes>) {
    let unanswered = Arc::new(Unanswered::new(stream));
    let (head, stream) = request.into_parts();
    let asked_for_head = head.method == Method::HEAD;
    let mut body = Receiving::request(stream, &head.headers, Arc::downgrade(&unanswered));
    if head.headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        body.expects_continue();
    }
    let request = Request::from_parts(head, Incoming::Http2(body));
    let answered = {
        let mut handling = pin!(request::handle(worker, caller, request));
        poll_fn(|cx| match handling.as_mut().poll(cx) {
            Poll::Ready(Ok(reply)) => Poll::Ready(Some(reply)),
            Poll::Pending => unanswered.poll_given_up(cx).map(|()| None),
        })
        .await
    };
    let Some(reply) = answered else { return };
    let (head, body) = reply.into_parts();
    let last = body.is_end_stream() || asked_for_head && matches!(body, ReplyBody::Full(_));
    let Ok(stream) = unanswered.answer(for_http2(head, &body), last) else { return };
    // Nothing may come between a reply's head and the rest of it.
    drop(unanswered);
    if !last {
        let mut sending = Sending::new(body, stream);
        poll_fn(|cx| sending.poll(cx)).await;
    }
}

/// The head of a reply: nothing of the connection's; and how long it is, where that is known.
fn for_http2(head: http::response::Parts, body: &ReplyBody) -> Response<()> {
    let mut head = Response::from_parts(head, ());
    let headers = head.headers_mut();
    headers.remove(CONNECTION);
    if !body.is_end_stream()
        && let Some(length) = body.size_hint().exact()
    {
        headers.entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
    head
}
