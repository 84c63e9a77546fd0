//! Replies that the agent makes itself: why, and how that is said to an HTTP caller and to a gRPC one.
//!
//! Every such reply carries `x-switchyard-reason` with one word of a closed list and a body of one line. To a gRPC caller it
//! is a reply of trailers only, with the same word in `grpc-message` (the gRPC over HTTP/2 protocol's `Trailers-Only`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use switchyard_proto::v1;

use crate::admit::limits::Bound;
use crate::body::ReplyBody;
use crate::message::{MAX_FIELDS, MAX_HEADER_BYTES};

/// The header field that says that, and why, the agent made the reply.
pub const REASON: HeaderName = HeaderName::from_static("x-switchyard-reason");

/// Why the agent answers instead of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The request cannot be passed on as it is.
    BadRequest,
    /// Its header fields are too many.
    HeadersTooLarge,
    /// It asks for something that is not done here.
    NotSupported,
    /// No Service goes by its Host.
    NoRoute,
    /// No instance can take it.
    NoInstances,
    /// The circuit is open.
    CircuitOpen,
    /// There is as much under way as there may be.
    Overloaded,
    /// Its body did not come in time.
    RequestTimeout,
    /// It took longer than it may.
    UpstreamTimeout,
    /// The instance could not be reached.
    UpstreamConnect,
    /// The instance broke off.
    UpstreamReset,
    /// The rule answers a share of the requests with an error, on purpose.
    Fault,
    /// The rule redirects.
    Redirect,
    /// The rule has a reply of its own.
    DirectResponse,
    /// The rule answers preflights of cross-origin requests.
    Preflight,
}

impl Reason {
    /// All reasons, for counters.
    pub const ALL: [Self; 15] = [
        Self::BadRequest,
        Self::HeadersTooLarge,
        Self::NotSupported,
        Self::NoRoute,
        Self::NoInstances,
        Self::CircuitOpen,
        Self::Overloaded,
        Self::RequestTimeout,
        Self::UpstreamTimeout,
        Self::UpstreamConnect,
        Self::UpstreamReset,
        Self::Fault,
        Self::Redirect,
        Self::DirectResponse,
        Self::Preflight,
    ];

    /// The word for it, as in `x-switchyard-reason` and in metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::BadRequest => "bad-request",
            Self::HeadersTooLarge => "headers-too-large",
            Self::NotSupported => "not-supported",
            Self::NoRoute => "no-route",
            Self::NoInstances => "no-instances",
            Self::CircuitOpen => "circuit-open",
            Self::Overloaded => "overloaded",
            Self::RequestTimeout => "request-timeout",
            Self::UpstreamTimeout => "upstream-timeout",
            Self::UpstreamConnect => "upstream-connect",
            Self::UpstreamReset => "upstream-reset",
            Self::Fault => "fault",
            Self::Redirect => "redirect",
            Self::DirectResponse => "direct-response",
            Self::Preflight => "cors-preflight",
        }
    }

    /// The status for it, unless the rule states one.
    const fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::NotSupported => StatusCode::NOT_IMPLEMENTED,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::NoInstances | Self::CircuitOpen | Self::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
            Self::UpstreamConnect | Self::UpstreamReset => StatusCode::BAD_GATEWAY,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Fault => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Redirect => StatusCode::FOUND,
            Self::DirectResponse => StatusCode::OK,
            Self::Preflight => StatusCode::NO_CONTENT,
        }
    }

    /// The gRPC status for it, following the protocol's own table from HTTP statuses where there is one.
    const fn grpc_status(self) -> &'static str {
        match self {
            Self::BadRequest | Self::HeadersTooLarge => "13",
            Self::NotSupported | Self::NoRoute => "12",
            Self::RequestTimeout | Self::UpstreamTimeout => "4",
            Self::NoInstances | Self::CircuitOpen | Self::Overloaded | Self::UpstreamConnect | Self::UpstreamReset => {
                "14"
            }
            Self::Fault | Self::Redirect | Self::DirectResponse | Self::Preflight => "2",
        }
    }
}

/// The gRPC status that a client makes of an HTTP status, by the protocol's table.
const fn grpc_status_of(http: StatusCode) -> &'static str {
    match http.as_u16() {
        400 => "13",
        401 => "16",
        403 => "7",
        404 => "12",
        429 | 502 | 503 | 504 => "14",
        _ => "2",
    }
}

/// Our words for a refusal that the HTTP library writes by itself, which is a head of HTTP/1.1 with a status and no reason.
pub fn in_place_of(head: &[u8]) -> Option<Vec<u8>> {
    let rest = head.strip_prefix(b"HTTP/1.1 4")?;
    let line_end = rest.windows(2).position(|two| two == b"\r\n")?;
    let status = std::str::from_utf8(&rest[..line_end]).ok()?;
    let (reason, detail) = match status.get(..2)? {
        "31" => (
            Reason::HeadersTooLarge,
            format!("more than {MAX_FIELDS} header fields or {MAX_HEADER_BYTES} bytes of header"),
        ),
        "14" => (Reason::BadRequest, "the target is too long".to_owned()),
        _ => (Reason::BadRequest, "the request cannot be read, or not in one way only".to_owned()),
    };
    let (word, length) = (reason.word(), detail.len() + 1);
    let text = format!(
        "HTTP/1.1 4{status}\r\ncontent-type: text/plain; charset=utf-8\r\n{REASON}: {word}\r\ncontent-length: {length}\r\n\
         connection: close\r\n\r\n{detail}\n"
    );
    Some(text.into_bytes())
}

/// A request that an instance will not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why, as a word.
    pub reason: Reason,
    /// Why, as a line; holds nothing of the request but its Host.
    pub detail: String,
    /// What there is too much of, where that is why.
    pub bound: Option<Bound>,
    /// When it may be worth asking again.
    pub retry_after: Option<Duration>,
    status: StatusCode,
    /// The reply, where the rule states all of it.
    stated: Option<Box<Stated>>,
    /// What callers that do not speak gRPC get in its place.
    pub canned: Option<Arc<Canned>>,
}

/// A reply that a rule states: sent so to every caller, of gRPC or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stated {
    /// Its header fields.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// A reply that a policy gives.
#[derive(Debug, PartialEq, Eq)]
pub struct Canned {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Canned {
    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.status
    }
}

impl From<&v1::DirectResponse> for Canned {
    fn from(wire: &v1::DirectResponse) -> Self {
        let field = |field: &v1::HeaderField| {
            Some((HeaderName::try_from(&field.name).ok()?, HeaderValue::try_from(&field.value).ok()?))
        };
        let mut headers = HeaderMap::new();
        for (name, value) in wire.headers.iter().filter_map(field) {
            headers.append(name, value);
        }
        // How long it is, and where it ends, is for whoever writes it to say.
        for name in [CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION] {
            headers.remove(name);
        }
        let status = u16::try_from(wire.status).ok().and_then(|status| StatusCode::from_u16(status).ok());
        Self {
            status: status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
            headers,
            body: Bytes::from(wire.body.clone().into_bytes()),
        }
    }
}

impl Refusal {
    /// A refusal with its line.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            bound: None,
            retry_after: None,
            status: reason.status(),
            stated: None,
            canned: None,
        }
    }

    /// There is as much under way to `destination` as this bound allows.
    pub fn overloaded(destination: &str, bound: Bound) -> Self {
        let detail = format!("{destination} has as much under way as {bound} allows");
        Self { bound: Some(bound), ..Self::new(Reason::Overloaded, detail) }
    }

    /// There is no memory for it.
    pub fn out_of_memory() -> Self {
        Self::new(Reason::Overloaded, "this node's agent is short of memory")
    }

    /// The HTTP status of the reply.
    pub fn status(&self) -> StatusCode {
        self.canned.as_ref().map_or(self.status, |canned| canned.status)
    }

    /// The same with another status than the reason's.
    pub fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// A reply that the rule states. `detail` says for people what it is.
    pub fn stated(reason: Reason, status: StatusCode, detail: String, stated: Stated) -> Self {
        Self { status, stated: Some(Box::new(stated)), ..Self::new(reason, detail) }
    }

    /// The reply.
    pub fn reply(&self, grpc: bool) -> Response<ReplyBody> {
        let word = HeaderValue::from_static(self.reason.word());
        let mut reply = if let Some(stated) = &self.stated {
            let mut reply = Response::new(ReplyBody::full(stated.body.clone()));
            *reply.status_mut() = self.status;
            *reply.headers_mut() = stated.headers.clone();
            reply
        } else if grpc {
            let mut reply = Response::new(ReplyBody::empty());
            let status = match self.reason {
                Reason::Fault => grpc_status_of(self.status),
                reason => reason.grpc_status(),
            };
            let headers = reply.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", HeaderValue::from_static(status));
            headers.insert("grpc-message", word.clone());
            reply
        } else if let Some(canned) = &self.canned {
            let mut reply = Response::new(ReplyBody::full(canned.body.clone()));
            *reply.status_mut() = canned.status;
            *reply.headers_mut() = canned.headers.clone();
            reply
        } else {
            let mut reply = Response::new(ReplyBody::full(Bytes::from(format!("{}\n", self.detail))));
            *reply.status_mut() = self.status;
            reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            reply
        };
        reply.headers_mut().insert(REASON, word);
        if let Some(after) = self.retry_after.filter(|_| !reply.headers().contains_key(RETRY_AFTER)) {
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        reply
    }

    /// The same, and the connection closes after it: nobody can be sure where the next request begins.
    pub fn reply_and_close(&self, grpc: bool) -> Response<ReplyBody> {
        let mut reply = self.reply(grpc);
        reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        reply
    }
}
