//! What a proxy must see to in messages that pass through it (RFC 9110 section 7, RFC 9112 section 3 and 6): that a request
//! can be read in one way only, and that what was said to us alone goes no further.
//!
//! Keeps true: whatever reaches an instance is exactly one request. hyper refuses what it cannot read; what it does let
//! through and two parsers could read differently is refused here. One pass over the fields does all of it.

use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Uri, Version};

use crate::ids;
use crate::refusal::{Reason, Refusal};

/// Header fields that a request may have; RFC 9110 leaves the number to us.
pub const MAX_FIELDS: usize = 128;
/// Bytes of header that a request may have.
pub const MAX_HEADER_BYTES: usize = 64 * 1024;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// What was found out about a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// It is a gRPC call.
    pub grpc: bool,
    /// It asks for another protocol on this connection.
    pub upgrade: bool,
    /// Its caller waits for a 100 before it sends the body.
    pub expects_continue: bool,
    /// Its caller says how long it waits.
    pub has_deadline: bool,
    /// Another agent on the way counts its tries.
    pub already_retried: bool,
    /// It has an `x-request-id`.
    pub request_id: bool,
    /// It has one `traceparent`, which can be read.
    pub trace: bool,
}

/// Checks a request's head and takes out of it what is not for the instance. Afterwards the target is in origin form (or `*`) and
/// there is exactly one Host.
///
/// # Errors
/// A refusal, when the request could be read in more than one way or is not one for a proxy of this kind.
pub fn prepare(parts: &mut Parts) -> Result<Facts, Refusal> {
    if parts.method == Method::CONNECT {
        return Err(Refusal::new(Reason::NotSupported, "CONNECT is not done here"));
    }
    let mut facts = Facts::default();
    let mut count = 0;
    let mut hop_by_hop = false;
    let mut traces = 0;
    for (name, value) in &parts.headers {
        count += 1;
        match name.as_str() {
            "connection" | "te" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade"
            | "http2-settings" => {
                hop_by_hop = true;
            }
            "grpc-timeout" | "x-request-timeout" => facts.has_deadline = true,
            "x-switchyard-attempt" => facts.already_retried = true,
            "x-request-id" => facts.request_id = true,
            "traceparent" => {
                traces += 1;
                facts.trace = traces == 1 && ids::is_traceparent(value.as_bytes());
            }
            "expect" => facts.expects_continue = value.as_bytes().eq_ignore_ascii_case(b"100-continue"),
            "content-type" => facts.grpc = value.as_bytes().starts_with(b"application/grpc"),
            _ => {}
        }
    }
    if count > MAX_FIELDS {
        return Err(Refusal::new(
            Reason::HeadersTooLarge,
            format!("{count} header fields, and {MAX_FIELDS} are allowed"),
        ));
    }
    host(parts)?;
    if hop_by_hop {
        facts.upgrade = request_hop_by_hop(&mut parts.headers, parts.version)?;
    }
    Ok(facts)
}

/// Settles whom the request is for (RFC 9112 section 3.2, RFC 9113 section 8.3.1): one Host, well-formed, the same as in the target.
fn host(parts: &mut Parts) -> Result<(), Refusal> {
    let bad = |detail: &str| Err(Refusal::new(Reason::BadRequest, detail));
    let mut fields = parts.headers.get_all(HOST).iter();
    let field = fields.next();
    if fields.next().is_some() {
        return bad("more than one Host");
    }
    if let Some(field) = field
        && !is_host(field.as_bytes())
    {
        return bad("Host is not a name with or without a port");
    }
    match (parts.uri.authority(), field) {
        (None, Some(_)) => {}
        (None, None) if parts.version == Version::HTTP_10 => {
            parts.headers.insert(HOST, HeaderValue::from_static(""));
        }
        (None, None) => return bad("no Host"),
        (Some(authority), field) => {
            // Without a scheme it is the authority form, which only CONNECT has.
            let scheme = parts.uri.scheme();
            if scheme.is_none_or(|s| *s != Scheme::HTTP && *s != Scheme::HTTPS)
                || !is_host(authority.as_str().as_bytes())
            {
                return bad("the target is not one that can be asked for here");
            }
            match field {
                Some(field) if !same_host(authority, field) => return bad("Host and the target differ"),
                Some(_) => {}
                None => {
                    let Ok(value) = HeaderValue::from_str(authority.as_str()) else { return bad("the target is odd") };
                    parts.headers.insert(HOST, value);
                }
            }
            let path = parts.uri.path_and_query().cloned();
            let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
            parts.uri = Uri::from(path);
        }
    }
    let (path, options) = (parts.uri.path(), parts.method == Method::OPTIONS);
    if !path.starts_with('/') && (path != "*" || !options) {
        return bad("the target is not a path");
    }
    Ok(())
}

/// `name`, `name:port` or `[v6]:port`, of characters that RFC 3986 allows in a registered name, and nothing else.
fn is_host(host: &[u8]) -> bool {
    let name_end = match host.first() {
        Some(b'[') => host.iter().position(|b| *b == b']').map_or(0, |at| at + 1),
        _ => host.iter().position(|b| *b == b':').unwrap_or(host.len()),
    };
    let (name, port) = host.split_at(name_end);
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+;=%[:]".contains(b);
    let port_is_one = match port.split_first() {
        None => true,
        Some((b':', digits)) => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        Some(_) => false,
    };
    // A registered name has no colon and no bracket; only an address in brackets has.
    let inner = if name.first() == Some(&b'[') { &name[1..name.len() - 1] } else { name };
    let bracketed = inner.len() != name.len();
    let letters_fit = inner.iter().all(|b| plain(b) && *b != b'[' && *b != b']' && (bracketed || *b != b':'));
    !name.is_empty() && letters_fit && port_is_one
}

/// Whether Host says the same as the target's authority, whose default port may be left out.
fn same_host(authority: &Authority, field: &HeaderValue) -> bool {
    let strip = |text: &str| text.strip_suffix(":80").unwrap_or(text).to_ascii_lowercase();
    field.to_str().is_ok_and(|field| strip(field) == strip(authority.as_str()))
}

/// Takes out what was said to us alone. Returns whether the request asks for an upgrade; then Connection and Upgrade stay, for
/// the instance decides.
fn request_hop_by_hop(headers: &mut HeaderMap, version: Version) -> Result<bool, Refusal> {
    let bad = |detail: &str| Err(Refusal::new(Reason::BadRequest, detail));
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            let detail = "Transfer-Encoding is not just chunked, and no other coding is undone here";
            return Err(Refusal::new(Reason::NotSupported, detail));
        }
        if headers.contains_key(CONTENT_LENGTH) {
            return bad("Content-Length beside Transfer-Encoding");
        }
    }
    // An upgrade to HTTP/2 (which RFC 9113 has withdrawn) would carry requests past every rule: it is not passed on, and the
    // request goes on as HTTP/1.1, as its caller must expect.
    let to_http2 = headers.get_all(UPGRADE).iter().any(|value| has_token(value, "h2c"));
    let asked = version == Version::HTTP_11 && headers.contains_key(UPGRADE) && nominates(headers, "upgrade");
    let upgrade = asked && !to_http2;
    for name in nominated(headers) {
        match name.as_str() {
            "close" | "keep-alive" | "upgrade" | "te" | "http2-settings" | "proxy-connection" | "transfer-encoding" => {
            }
            // Without these the instance would read another request than we did.
            "host" | "content-length" | "content-type" | "expect" | "trailer" => {
                return bad("Connection nominates a field that says what the message is");
            }
            _ => {
                headers.remove(&name);
            }
        }
    }
    let trailers = headers.get_all(TE).iter().any(|v| has_token(v, "trailers"));
    let wanted = headers.get(UPGRADE).cloned();
    remove_hop_by_hop(headers);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if upgrade && let Some(wanted) = wanted {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, wanted);
    }
    Ok(upgrade)
}

/// Takes out of a reply what its instance said to us alone. A switch of protocols keeps what the caller must see.
pub fn prepare_reply(headers: &mut HeaderMap, switching: bool) {
    if !headers.keys().any(is_hop_by_hop) {
        return;
    }
    let wanted = headers.get(UPGRADE).cloned();
    for name in nominated(headers) {
        if name != CONTENT_LENGTH && name != TRAILER {
            headers.remove(&name);
        }
    }
    remove_hop_by_hop(headers);
    if switching && let Some(wanted) = wanted {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, wanted);
    }
}

/// Whether a field is for one connection only, whatever Connection says.
pub fn is_hop_by_hop(name: &HeaderName) -> bool {
    [CONNECTION, TE, KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING, UPGRADE].contains(name)
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    for name in [CONNECTION, TE, KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING, UPGRADE, HTTP2_SETTINGS] {
        headers.remove(name);
    }
}

/// The fields that Connection names.
fn nominated(headers: &HeaderMap) -> Vec<HeaderName> {
    let tokens = headers.get_all(CONNECTION).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    tokens.filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok()).collect()
}

fn nominates(headers: &HeaderMap, token: &str) -> bool {
    headers.get_all(CONNECTION).iter().any(|value| has_token(value, token))
}

fn has_token(value: &HeaderValue, token: &str) -> bool {
    let mut tokens = value.as_bytes().split(|b| *b == b',');
    tokens.any(|part| {
        let part = part.split(|b| *b == b';').next().unwrap_or_default();
        part.trim_ascii().eq_ignore_ascii_case(token.as_bytes())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parts(method: &str, uri: &str, fields: &[(&str, &str)]) -> Parts {
        let mut builder = http::Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    fn reason(method: &str, uri: &str, fields: &[(&str, &str)]) -> Option<Reason> {
        prepare(&mut parts(method, uri, fields)).err().map(|refusal| refusal.reason)
    }

    #[test]
    fn one_host_and_only_one_is_asked_for() {
        for good in ["a", "a:80", "a.b-c_d:8080", "127.0.0.1", "[::1]", "[::1]:80", "a:"] {
            assert_eq!(reason("GET", "/", &[("host", good)]), None, "{good}");
        }
        for odd in
            ["", "a b", "a,b", "u@a", "a/b", "a:80:80", "a:x", "[::1", "[::1]x", "a:123456", "a?b", "a#b", "a\\b"]
        {
            assert_eq!(reason("GET", "/", &[("host", odd)]), Some(Reason::BadRequest), "{odd}");
        }
        assert_eq!(reason("GET", "/", &[]), Some(Reason::BadRequest));
        assert_eq!(reason("GET", "/", &[("host", "a"), ("host", "a")]), Some(Reason::BadRequest));
    }

    #[test]
    fn an_absolute_target_must_say_the_same_as_host_and_becomes_a_path() {
        assert_eq!(reason("GET", "http://a/x", &[("host", "b")]), Some(Reason::BadRequest));
        assert_eq!(reason("GET", "ftp://a/x", &[("host", "a")]), Some(Reason::BadRequest));
        assert_eq!(reason("GET", "http://u@a/x", &[("host", "u@a")]), Some(Reason::BadRequest));
        assert_eq!(reason("GET", "a:80", &[("host", "a")]), Some(Reason::BadRequest));
        for host in ["a", "A", "a:80"] {
            let mut parts = parts("GET", "http://a:80/x?y=1", &[("host", host)]);
            prepare(&mut parts).unwrap();
            assert_eq!(parts.uri, "/x?y=1");
        }
        let mut parts = parts("GET", "http://a", &[]);
        prepare(&mut parts).unwrap();
        assert_eq!((parts.uri.path(), parts.headers[HOST].to_str().unwrap()), ("/", "a"));
    }

    #[test]
    fn only_plain_chunked_is_understood() {
        for odd in ["gzip, chunked", "chunked, chunked", "xchunked", "identity"] {
            let fields = [("host", "a"), ("transfer-encoding", odd)];
            assert_eq!(reason("POST", "/", &fields), Some(Reason::NotSupported), "{odd}");
        }
        let twice = [("host", "a"), ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")];
        assert_eq!(reason("POST", "/", &twice), Some(Reason::NotSupported));
        let both = [("host", "a"), ("transfer-encoding", "chunked"), ("content-length", "1")];
        assert_eq!(reason("POST", "/", &both), Some(Reason::BadRequest));
        assert_eq!(reason("POST", "/", &[("host", "a"), ("transfer-encoding", "Chunked")]), None);
    }

    #[test]
    fn what_connection_nominates_goes_no_further() {
        let mut parts = parts(
            "GET",
            "/",
            &[
                ("host", "a"),
                ("connection", "close, X-Secret"),
                ("x-secret", "1"),
                ("keep-alive", "timeout=5"),
                ("te", "trailers, deflate"),
                ("proxy-connection", "keep-alive"),
                ("x-kept", "1"),
            ],
        );
        prepare(&mut parts).unwrap();
        let names: Vec<_> = parts.headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(names.len(), 3, "{names:?}");
        assert_eq!(parts.headers[TE], "trailers");
        for field in ["host", "content-length", "Content-Type"] {
            assert_eq!(
                reason("GET", "/", &[("host", "a"), ("connection", field)]),
                Some(Reason::BadRequest),
                "{field}"
            );
        }
    }

    #[test]
    fn an_upgrade_is_left_for_the_instance_to_decide() {
        let mut wanted = parts("GET", "/", &[("host", "a"), ("connection", "Upgrade"), ("upgrade", "websocket")]);
        assert!(prepare(&mut wanted).unwrap().upgrade);
        assert_eq!(
            (&wanted.headers[CONNECTION], &wanted.headers[UPGRADE]),
            (&HeaderValue::from_static("upgrade"), &HeaderValue::from_static("websocket"))
        );
        let mut to_http2 = parts("GET", "/", &[("host", "a"), ("connection", "upgrade"), ("upgrade", "h2c")]);
        assert!(!prepare(&mut to_http2).unwrap().upgrade && !to_http2.headers.contains_key(UPGRADE));
        let mut not_nominated = parts("GET", "/", &[("host", "a"), ("upgrade", "websocket")]);
        assert!(!prepare(&mut not_nominated).unwrap().upgrade);
        assert!(!not_nominated.headers.contains_key(UPGRADE));
    }
}
