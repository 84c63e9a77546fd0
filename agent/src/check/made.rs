//! One check of one instance, on a connection of its own: that it can be made is part of the question.

use std::pin::pin;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use prost::Message;
use switchyard_proto::v1;
use tokio::net::TcpStream;

use crate::table::{Check, Checked};

/// What instances see of who checks them.
const AGENT: &str = concat!("switchyard-health-check/", env!("CARGO_PKG_VERSION"));
/// The gRPC health protocol's only question (grpc/grpc `doc/health-checking.md`).
const GRPC_PATH: &str = "/grpc.health.v1.Health/Check";
/// More than any answer to it has.
const MOST_GRPC_BYTES: usize = 4096;
/// `ServingStatus.SERVING`.
const SERVING: i32 = 1;

/// A check that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failed {
    /// What is wrong, for people.
    pub why: String,
    /// The instance was not reached: no connection came about, or no answer in time.
    pub unreached: bool,
}

impl Failed {
    fn unconnected(error: std::io::Error) -> Self {
        Self { why: format!("cannot connect: {error}"), unreached: true }
    }

    /// No answer came in time.
    pub(super) fn late(timeout: Duration) -> Self {
        Self { why: format!("no answer within {} ms", timeout.as_millis()), unreached: true }
    }
}

impl From<String> for Failed {
    fn from(why: String) -> Self {
        Self { why, unreached: false }
    }
}

#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Checks it.
///
/// # Errors
/// What is wrong.
pub(super) async fn make(checked: &Checked) -> Result<(), Failed> {
    let stream = TcpStream::connect(checked.address).await.map_err(Failed::unconnected)?;
    Ok(ask(checked, stream).await?)
}

async fn ask(checked: &Checked, stream: TcpStream) -> Result<(), String> {
    match &checked.check.check {
        Check::Tcp => Ok(()),
        Check::Http(path) if checked.protocol == v1::Protocol::Http2 => {
            let reply = http2(stream, request(Method::GET, checked, path)?, None).await?;
            good_status(reply.status())
        }
        Check::Http(path) => good_status(http1(stream, request(Method::GET, checked, path)?).await?),
        Check::Grpc(service) => grpc(stream, checked, service).await,
    }
}

fn good_status(status: StatusCode) -> Result<(), String> {
    if status.is_success() { Ok(()) } else { Err(format!("status {}", status.as_u16())) }
}

/// In the absolute form, as HTTP/2 wants it.
fn request(method: Method, checked: &Checked, path: &str) -> Result<Request<()>, String> {
    let uri = Uri::builder().scheme("http").authority(host(checked)).path_and_query(path);
    let uri = uri.build().map_err(|error| format!("{path} cannot be asked for: {error}"))?;
    let request = Request::builder().method(method).uri(uri).header(header::USER_AGENT, AGENT);
    request.body(()).map_err(|error| error.to_string())
}

/// The Service by the name that callers in its cluster know.
fn host(checked: &Checked) -> String {
    let service = &*checked.circuit.service;
    service.split_once('/').map_or_else(|| service.to_owned(), |(namespace, name)| format!("{name}.{namespace}"))
}

async fn http1(stream: TcpStream, request: Request<()>) -> Result<StatusCode, String> {
    let (mut head, ()) = request.into_parts();
    if let Some(authority) = head.uri.authority().map(|authority| authority.as_str().to_owned())
        && let (Ok(host), Some(path)) = (authority.parse(), head.uri.path_and_query().cloned())
    {
        head.headers.insert(header::HOST, host);
        head.uri = Uri::from(path);
    }
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|error| error.to_string())?;
    let mut reply = pin!(sender.send_request(Request::from_parts(head, Empty::<Bytes>::new())));
    let mut connection = pin!(connection);
    let reply = tokio::select! {
        reply = &mut reply => reply,
        // It may have ended with the reply.
        _ = &mut connection => reply.await,
    };
    reply.map(|reply| reply.status()).map_err(|error| error.to_string())
}

/// The reply to one request on a connection of its own, and its body if that is asked for by a body sent.
async fn http2(stream: TcpStream, request: Request<()>, body: Option<Bytes>) -> Result<Response<Answer>, String> {
    let (sender, connection) = h2::client::handshake(stream).await.map_err(|error| error.to_string())?;
    let asked = async {
        let mut sender = sender.ready().await?;
        let is_call = body.is_some();
        let (reply, mut stream) = sender.send_request(request, !is_call)?;
        if let Some(body) = body {
            stream.send_data(body, true)?;
        }
        let (head, mut body) = reply.await?.into_parts();
        let mut answer = Answer::default();
        while let Some(data) = if is_call { body.data().await.transpose()? } else { None } {
            body.flow_control().release_capacity(data.len())?;
            answer.bytes.extend_from_slice(&data);
            if answer.bytes.len() > MOST_GRPC_BYTES {
                return Ok(Response::from_parts(head, answer));
            }
        }
        if is_call {
            answer.trailers = body.trailers().await?;
        }
        Ok::<_, h2::Error>(Response::from_parts(head, answer))
    };
    let (mut asked, mut connection) = (pin!(asked), pin!(connection));
    let reply = tokio::select! {
        reply = &mut asked => reply,
        _ = &mut connection => asked.await,
    };
    reply.map_err(|error| error.to_string())
}

/// What a call was answered.
#[derive(Default)]
struct Answer {
    bytes: BytesMut,
    trailers: Option<http::HeaderMap>,
}

async fn grpc(stream: TcpStream, checked: &Checked, service: &str) -> Result<(), String> {
    let mut request = request(Method::POST, checked, GRPC_PATH)?;
    request.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert(header::TE, http::HeaderValue::from_static("trailers"));
    let reply = http2(stream, request, Some(framed(service))).await?;
    good_status(reply.status())?;
    // An answer without a message has its status in its head.
    let fields = reply.body().trailers.as_ref().unwrap_or(reply.headers());
    match fields.get("grpc-status").map(http::HeaderValue::as_bytes) {
        Some(b"0") => serving(&reply.body().bytes),
        Some(status) => Err(format!("gRPC status {}", String::from_utf8_lossy(status))),
        None => Err("an answer without a gRPC status".to_owned()),
    }
}

/// The question as a gRPC message: not compressed, its length, itself.
fn framed(service: &str) -> Bytes {
    let message = HealthCheckRequest { service: service.to_owned() }.encode_to_vec();
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(&message);
    frame.freeze()
}

/// Whether an answer's message says that it serves.
fn serving(bytes: &[u8]) -> Result<(), String> {
    let unreadable = || "an answer that cannot be read".to_owned();
    let (&[compressed, a, b, c, d], message) = bytes.split_first_chunk::<5>().ok_or_else(unreadable)?;
    let whole = compressed == 0 && u32::from_be_bytes([a, b, c, d]) as usize == message.len();
    let answer = HealthCheckResponse::decode(message).ok().filter(|_| whole).ok_or_else(unreadable)?;
    if answer.status == SERVING { Ok(()) } else { Err(format!("it does not serve (status {})", answer.status)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_framed_and_an_answer_read() {
        assert_eq!(&framed("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&framed("ab")[..], [0, 0, 0, 0, 4, 10, 2, b'a', b'b']);
        assert_eq!(serving(&[0, 0, 0, 0, 2, 8, 1]), Ok(()));
        for bad in [
            &[][..],
            &[0, 0, 0, 0],
            &[0, 0, 0, 0, 0],
            &[0, 0, 0, 0, 2, 8, 2],
            &[1, 0, 0, 0, 2, 8, 1],
            &[0, 0, 0, 0, 3, 8, 1],
        ] {
            assert!(serving(bad).is_err(), "{bad:?}");
        }
    }
}
