//! A fixed reply.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, StatusCode};
use switchyard_proto::v1;

use super::headers::fields;
use crate::refusal::{Reason, Refusal, Stated};

/// A fixed reply.
#[derive(Debug)]
pub struct Response {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Response {
    /// From the wire. A body that is said to be of no type is text.
    ///
    /// # Errors
    /// A status or a field that is none.
    pub fn compile(wire: &v1::DirectResponse) -> Result<Self, String> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields(&wire.headers)? {
            headers.append(name, value);
        }
        if !wire.body.is_empty() && !headers.contains_key(CONTENT_TYPE) {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        }
        Ok(Self { status: status(wire.status)?, headers, body: Bytes::copy_from_slice(wire.body.as_bytes()) })
    }

    /// The reply.
    pub fn reply(&self) -> Refusal {
        let stated = Stated { headers: self.headers.clone(), body: self.body.clone() };
        Refusal::stated(Reason::DirectResponse, self.status, self.to_string(), stated)
    }
}

impl std::fmt::Display for Response {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} with a body of {} bytes", self.status.as_u16(), self.body.len())
    }
}

/// A final status.
///
/// # Errors
/// It is none.
pub fn status(number: u32) -> Result<StatusCode, String> {
    let status = u16::try_from(number).ok().filter(|n| (200..600).contains(n));
    status.and_then(|n| StatusCode::from_u16(n).ok()).ok_or_else(|| format!("{number} is no final status"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reply_is_as_stated_and_says_who_made_it() {
        let field = |name: &str, value: &str| v1::HeaderField { name: name.into(), value: value.into() };
        let wire = v1::DirectResponse {
            status: 503,
            headers: vec![field("set-cookie", "a=b"), field("set-cookie", "c=d")],
            body: "closed\n".into(),
        };
        let refusal = Response::compile(&wire).unwrap().reply();
        for grpc in [false, true] {
            let reply = refusal.reply(grpc);
            assert_eq!(reply.status(), 503);
            assert_eq!(reply.headers().get_all("set-cookie").iter().count(), 2);
            assert_eq!(reply.headers()[CONTENT_TYPE], "text/plain; charset=utf-8");
            assert_eq!(reply.headers()["x-switchyard-reason"], "direct-response");
        }
        assert!(Response::compile(&v1::DirectResponse { status: 100, ..v1::DirectResponse::default() }).is_err());
    }
}
