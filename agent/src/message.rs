//! What a proxy must see to in messages that pass through it (RFC 9110 section 7, RFC 9112 section 3 and 6): that a request
//! can be read in one way only, and that what was said to us alone goes no further.
//!
//! Keeps true: whatever reaches an instance is exactly one request. hyper refuses what it cannot read; what it does let
//! through and two parsers could read differently is refused here. One pass over the fields does all of it.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderName, HeaderValue, MAX_FORWARDS, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Response, StatusCode, Uri, Version};
use switchyard_proto::path;

use crate::ids;
use crate::refusal::{Reason, Refusal};
use crate::retry::hints;

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

/// Checks a request's head and takes out of it what is not for the instance. Afterwards the target is in origin form (or `*`), its
/// path in normal form, and there is exactly one Host.
///
/// # Errors
/// A refusal, when the request could be read in more than one way or is not one for a proxy of this kind.
pub fn prepare(parts: &mut Parts) -> Result<Facts, Refusal> {
    if parts.method == Method::CONNECT {
        return Err(Refusal::new(Reason::NotSupported, "CONNECT is not done here"));
    }
    let mut facts = Facts::default();
    let (mut count, mut bytes, mut lengths, mut traces) = (0, 0, 0, 0);
    let (mut hop_by_hop, mut max_forwards) = (false, false);
    for (name, value) in &parts.headers {
        count += 1;
        // As a line of HTTP/1 it would be as long as this.
        bytes += name.as_str().len() + value.len() + ": \r\n".len();
        match name.as_str() {
            "connection" | "te" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade"
            | "http2-settings" => {
                hop_by_hop = true;
            }
            "grpc-timeout" | "x-request-timeout" => facts.has_deadline = true,
            "x-switchyard-attempt" => facts.already_retried = true,
            "baggage" => facts.already_retried |= hints::is_counted(value),
            "x-request-id" => facts.request_id = true,
            "traceparent" => {
                traces += 1;
                facts.trace = traces == 1 && ids::is_traceparent(value.as_bytes());
            }
            "expect" => facts.expects_continue = value.as_bytes().eq_ignore_ascii_case(b"100-continue"),
            "content-type" => facts.grpc = names_grpc(value),
            "content-length" => lengths += 1,
            "max-forwards" => max_forwards = true,
            _ => {}
        }
    }
    if count > MAX_FIELDS || bytes > MAX_HEADER_BYTES {
        let detail =
            format!("{count} header fields of {bytes} bytes, and {MAX_FIELDS} of {MAX_HEADER_BYTES} bytes are allowed");
        return Err(Refusal::new(Reason::HeadersTooLarge, detail));
    }
    // On HTTP/1 the library has made one of two that are equal; on HTTP/2 it looks at the first.
    if lengths > 1 {
        return Err(Refusal::new(Reason::BadRequest, "more than one Content-Length"));
    }
    host(parts)?;
    normal_path(parts)?;
    if max_forwards && (parts.method == Method::OPTIONS || parts.method == Method::TRACE) {
        one_hop_fewer(&mut parts.headers)?;
    }
    if facts.expects_continue && parts.version == Version::HTTP_10 {
        // From HTTP/1.0 it means nothing (RFC 9110 section 10.1.1), and an instance must not think that it does.
        facts.expects_continue = false;
        parts.headers.remove(EXPECT);
    }
    if hop_by_hop {
        facts.upgrade = request_hop_by_hop(&mut parts.headers, parts.version)?;
    }
    Ok(facts)
}

/// Whether a message is of gRPC, by its Content-Type: `application/grpc`, with `+proto` or the like; not gRPC-Web, which is plain HTTP.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(names_grpc)
}

fn names_grpc(value: &HeaderValue) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let value = value.as_bytes();
    let rest = value.get(GRPC.len()..);
    rest.is_some_and(|rest| {
        value[..GRPC.len()].eq_ignore_ascii_case(GRPC)
            && matches!(rest.first(), None | Some(b'+' | b';' | b' ' | b'\t'))
    })
}

/// Counts the request's way down (RFC 9110 section 7.6.2).
fn one_hop_fewer(headers: &mut HeaderMap) -> Result<(), Refusal> {
    let text = headers.get(MAX_FORWARDS).and_then(|value| value.to_str().ok());
    let number = text.filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
    // A larger one becomes the largest that we count.
    let left = number.map(|number| number.parse::<u32>().unwrap_or(u32::MAX));
    match left.map(|left| left.checked_sub(1)) {
        // What is no number says nothing.
        None => {}
        Some(Some(left)) => drop(headers.insert(MAX_FORWARDS, HeaderValue::from(left))),
        Some(None) => {
            let detail = "Max-Forwards is used up, and an agent has nothing to say to this method itself";
            return Err(Refusal::new(Reason::NotSupported, detail));
        }
    }
    Ok(())
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
                Some(field) if !same_host(authority, field, parts.uri.scheme()) => {
                    return bad("Host and the target differ");
                }
                Some(_) => {}
                // On HTTP/2 the target may say it alone (RFC 9113 section 8.3.1), and before HTTP/1.1 nobody had to.
                None if parts.version == Version::HTTP_11 => return bad("no Host"),
                None => {
                    let Ok(value) = HeaderValue::from_str(authority.as_str()) else { return bad("the target is odd") };
                    parts.headers.insert(HOST, value);
                }
            }
            let path = match parts.uri.path_and_query() {
                None => PathAndQuery::from_static("/"),
                // HTTP/2 says the path by itself, and it must be one; an absolute target may leave out that it is `/`.
                Some(query) if query.as_str().starts_with('?') => {
                    match PathAndQuery::try_from(format!("/{}", query.as_str())) {
                        Ok(path) if parts.version < Version::HTTP_2 => path,
                        _ => return bad("the target is not a path"),
                    }
                }
                Some(path) => path.clone(),
            };
            parts.uri = Uri::from(path);
        }
    }
    let (path, options) = (parts.uri.path(), parts.method == Method::OPTIONS);
    if !path.starts_with('/') && (path != "*" || !options) {
        return bad("the target is not a path");
    }
    Ok(())
}

/// Puts the path into its normal form, in which it is matched and passed on. `*` is none.
fn normal_path(parts: &mut Parts) -> Result<(), Refusal> {
    let bad = |detail: String| Refusal::new(Reason::BadRequest, detail);
    let given = parts.uri.path();
    if given == "*" {
        return Ok(());
    }
    let Cow::Owned(normal) = path::normal(given).map_err(|fault| bad(fault.to_string()))? else { return Ok(()) };
    let target = match parts.uri.query() {
        Some(query) => format!("{normal}?{query}"),
        None => normal,
    };
    // Encoded it may have become too long.
    let target = PathAndQuery::try_from(target).map_err(|error| bad(format!("the target is no path: {error}")))?;
    parts.uri = Uri::from(target);
    Ok(())
}

/// A name or an address with or without a port, as RFC 3986 section 3.2 has it; commas, which would make a list of it, have no place.
fn is_host(host: &[u8]) -> bool {
    let end = match host.first() {
        Some(b'[') => host.iter().position(|b| *b == b']').map_or(0, |at| at + 1),
        _ => host.iter().position(|b| *b == b':').unwrap_or(host.len()),
    };
    let (name, port) = host.split_at(end);
    let name_is_one = match name {
        [b'[', address @ .., b']'] => {
            std::str::from_utf8(address).is_ok_and(|address| address.parse::<Ipv6Addr>().is_ok())
        }
        name => is_registered_name(name),
    };
    name_is_one
        && match port.split_first() {
            None => true,
            Some((b':', digits)) => {
                let number = digits.iter().try_fold(0u32, |n, b| {
                    b.is_ascii_digit().then(|| n.saturating_mul(10).saturating_add(u32::from(b - b'0')))
                });
                digits.len() <= 5 && number.is_some_and(|n| n <= u32::from(u16::MAX))
            }
            Some(_) => false,
        }
}

/// Whether it is of the characters that a registered name may have; what is percent-encoded may be no control character.
fn is_registered_name(name: &[u8]) -> bool {
    if name.iter().all(|byte| IN_NAMES[usize::from(*byte)]) {
        return !name.is_empty();
    }
    let mut rest = name;
    while let Some((byte, after)) = rest.split_first() {
        rest = match (byte, after) {
            (b'%', [high @ (b'2'..=b'9' | b'a'..=b'f' | b'A'..=b'F'), low, after @ ..])
                if low.is_ascii_hexdigit() && !(*high == b'7' && low.eq_ignore_ascii_case(&b'f')) =>
            {
                after
            }
            (byte, after) if IN_NAMES[usize::from(*byte)] => after,
            _ => return false,
        };
    }
    !name.is_empty()
}

/// The bytes that a registered name may have as they are.
const IN_NAMES: [bool; 256] = {
    let mut all = [false; 256];
    let others = b"-._~!$&'()*+;=";
    let mut byte = 0;
    while byte < all.len() {
        all[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < others.len() {
        all[others[at] as usize] = true;
        at += 1;
    }
    all
};

/// Whether Host says the same as the target's authority; the scheme's own port may be left out.
fn same_host(authority: &Authority, field: &HeaderValue, scheme: Option<&Scheme>) -> bool {
    let default = if scheme == Some(&Scheme::HTTPS) { ":443" } else { ":80" };
    let strip = |text: &str| {
        let name = text.strip_suffix(default).or_else(|| text.strip_suffix(':')).unwrap_or(text);
        name.to_ascii_lowercase()
    };
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
    let to_http2 = headers.get_all(UPGRADE).iter().any(|value| has_token(value.as_bytes(), "h2c"));
    let asked = version == Version::HTTP_11 && headers.contains_key(UPGRADE) && nominates(headers, "upgrade");
    let upgrade = asked && !to_http2;
    for name in nominated(headers) {
        match name.as_str() {
            "close" | "keep-alive" | "upgrade" | "te" | "http2-settings" | "proxy-connection" | "transfer-encoding" => {
            }
            // It bounds the retries of a call from end to end, whatever an agent on the way is told.
            "x-switchyard-attempt" => {}
            // Without these the instance would read another request than we did, or one from somebody else.
            _ if belongs_to_the_message(&name) => {
                return bad("Connection nominates a field that says what the message is");
            }
            _ => {
                headers.remove(&name);
            }
        }
    }
    let trailers = headers.get_all(TE).iter().any(|v| has_token(v.as_bytes(), "trailers"));
    let wanted: Vec<HeaderValue> = headers.get_all(UPGRADE).iter().cloned().collect();
    remove_hop_by_hop(headers);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        for protocols in wanted {
            headers.append(UPGRADE, protocols);
        }
    }
    Ok(upgrade)
}

/// Takes out of a reply's head what its instance said to us alone, and settles how long the reply is (RFC 9112 section 6.3). A switch
/// of protocols keeps what the caller must see. False when the reply could be read in more than one way.
#[must_use]
pub fn prepare_reply<B>(reply: &mut Response<B>) -> bool {
    // Which version the instance speaks is between it and us; hyper falls back to HTTP/1.0 for a caller who speaks that.
    *reply.version_mut() = Version::HTTP_11;
    let status = reply.status();
    let headers = reply.headers_mut();
    let (mut hop_by_hop, mut count, mut codings, mut lengths, mut plain) = (false, 0, 0, 0, false);
    for (name, value) in &*headers {
        count += 1;
        match name.as_str() {
            "content-length" => {
                lengths += 1;
                plain = lengths == 1 && !value.is_empty() && value.as_bytes().iter().all(u8::is_ascii_digit);
            }
            "transfer-encoding" => {
                // Any other coding is for this connection only, and would have to be undone.
                if !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                    return false;
                }
                codings += 1;
            }
            "connection" | "te" | "keep-alive" | "proxy-connection" | "upgrade" => hop_by_hop = true,
            _ => {}
        }
    }
    // The library sees to it on HTTP/1 only.
    if codings > 1 || count > MAX_FIELDS {
        return false;
    }
    if lengths > 0 {
        if codings > 0 || status.is_informational() || status == StatusCode::NO_CONTENT {
            headers.remove(CONTENT_LENGTH);
        } else if !plain && !one_length(headers, lengths) {
            return false;
        }
    }
    if hop_by_hop || codings > 0 {
        let switched = (status == StatusCode::SWITCHING_PROTOCOLS).then(|| headers.get(UPGRADE).cloned()).flatten();
        for name in nominated(headers) {
            if !belongs_to_the_message(&name) {
                headers.remove(&name);
            }
        }
        remove_hop_by_hop(headers);
        if let Some(to) = switched {
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, to);
        }
    }
    true
}

/// Makes one Content-Length of several that are equal. False when they differ, or one is no number.
fn one_length(headers: &mut HeaderMap, fields: usize) -> bool {
    let mut numbers = headers.get_all(CONTENT_LENGTH).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    let first = numbers.next().unwrap_or_default();
    let (mut several, trimmed) = (fields > 1, first.trim_ascii());
    if trimmed.is_empty() || !trimmed.iter().all(u8::is_ascii_digit) {
        return false;
    }
    for number in numbers {
        several = true;
        if number.trim_ascii() != trimmed {
            return false;
        }
    }
    if several {
        let Ok(value) = HeaderValue::from_bytes(trimmed) else { return false };
        headers.insert(CONTENT_LENGTH, value);
    }
    true
}

/// Takes out of trailers what belongs to one connection, or into a head (RFC 9110 section 6.5.1). False when they are longer than a
/// header may be, which an instance of HTTP/1 would not take.
#[must_use]
pub fn prepare_trailers(trailers: &mut HeaderMap) -> bool {
    let misplaced = |name: &HeaderName| match name.as_str() {
        "content-length" | "content-type" | "content-encoding" | "content-range" | "cache-control" => true,
        "host" | "expect" | "max-forwards" | "authorization" | "cookie" | "set-cookie" => true,
        "trailer" | "http2-settings" => true,
        _ => is_hop_by_hop(name),
    };
    // Hardly ever is there one.
    while let Some(name) = trailers.keys().find(|name| misplaced(name)).cloned() {
        trailers.remove(name);
    }
    trailers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>() <= MAX_HEADER_BYTES
}

/// Whether a field says what the message is, whom it is for or whom it is from: it goes wherever the message does.
fn belongs_to_the_message(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with("content-") || ["host", "expect", "trailer", "authorization", "cookie"].contains(&name)
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
pub(crate) fn nominated(headers: &HeaderMap) -> Vec<HeaderName> {
    let tokens = headers.get_all(CONNECTION).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    tokens.filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok()).collect()
}

fn nominates(headers: &HeaderMap, token: &str) -> bool {
    headers.get_all(CONNECTION).iter().any(|value| has_token(value.as_bytes(), token))
}

/// Whether a list has this member.
pub fn has_token(value: &[u8], token: &str) -> bool {
    let mut tokens = value.split(|b| *b == b',');
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
        for good in ["a", "a:80", "a.b-c_d:8080", "127.0.0.1", "[::1]", "[::1]:80", "a:", "a%20b", "a:65535"] {
            assert_eq!(reason("GET", "/", &[("host", good)]), None, "{good}");
        }
        for odd in [
            "", "a b", "a,b", "u@a", "a/b", "a:80:80", "a:x", "[::1", "[::1]x", "a:123456", "a?b", "a#b", "a\\b", "[]",
            "[zz]", "[::::]", "%", "a%zz", "%0d%0a", "a%7f", "a:65536", "[]:80",
        ] {
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
        assert_eq!(reason("GET", "http://a", &[]), Some(Reason::BadRequest), "HTTP/1.1 has a Host");
        for version in [Version::HTTP_10, Version::HTTP_2] {
            let mut parts = parts("GET", "http://a", &[]);
            parts.version = version;
            prepare(&mut parts).unwrap();
            assert_eq!((parts.uri.path(), parts.headers[HOST].to_str().unwrap()), ("/", "a"));
        }
    }

    #[test]
    fn grpc_is_what_says_so_and_grpc_web_does_not() {
        for (kind, is) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("Application/GRPC", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/grpcx", false),
            ("application/json", false),
        ] {
            let mut parts = parts("POST", "/", &[("host", "a"), ("content-type", kind)]);
            assert_eq!((prepare(&mut parts).unwrap().grpc, is_grpc(&parts.headers)), (is, is), "{kind}");
        }
    }

    #[test]
    fn a_path_of_http2_is_one_by_itself() {
        for (uri, good) in [("http://a/?x", true), ("http://a?x", false)] {
            let mut parts = parts("GET", uri, &[]);
            parts.version = Version::HTTP_2;
            assert_eq!(prepare(&mut parts).is_ok(), good, "{uri}");
        }
    }

    #[test]
    fn a_path_is_passed_on_in_its_normal_form_and_the_query_as_it_is() {
        for (uri, wanted) in [
            ("/%61dmin?x=%61&y=/../z", "/admin?x=%61&y=/../z"),
            ("/x/../admin?", "/admin?"),
            ("//admin", "/admin"),
            ("http://a/x/%2e%2e", "/"),
            ("/a%2fb", "/a%2Fb"),
        ] {
            let mut parts = parts("GET", uri, &[("host", "a")]);
            prepare(&mut parts).unwrap();
            assert_eq!(parts.uri, wanted, "{uri}");
        }
        for odd in ["/..", "/x/../../y", "/%zz", "/%2", "/a%00"] {
            assert_eq!(reason("GET", odd, &[("host", "a")]), Some(Reason::BadRequest), "{odd}");
        }
        let mut all = parts("OPTIONS", "*", &[("host", "a")]);
        prepare(&mut all).unwrap();
        assert_eq!(all.uri, "*");
    }

    #[test]
    fn max_forwards_counts_the_agents_on_the_way() {
        let mut options = parts("OPTIONS", "/", &[("host", "a"), ("max-forwards", "3")]);
        prepare(&mut options).unwrap();
        assert_eq!(options.headers[MAX_FORWARDS], "2");
        let mut large = parts("OPTIONS", "/", &[("host", "a"), ("max-forwards", "99999999999999999999")]);
        prepare(&mut large).unwrap();
        assert_eq!(large.headers[MAX_FORWARDS], "4294967294");
        assert_eq!(reason("TRACE", "/", &[("host", "a"), ("max-forwards", "0")]), Some(Reason::NotSupported));
        assert_eq!(reason("GET", "/", &[("host", "a"), ("max-forwards", "0")]), None);
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
        for field in ["host", "content-length", "Content-Type", "content-encoding", "Cookie", "authorization"] {
            assert_eq!(
                reason("GET", "/", &[("host", "a"), ("connection", field)]),
                Some(Reason::BadRequest),
                "{field}"
            );
        }
    }

    #[test]
    fn the_attempt_of_another_agent_cannot_be_taken_off_on_the_way() {
        let fields = [("host", "a"), ("connection", "x-switchyard-attempt"), ("x-switchyard-attempt", "2")];
        let mut parts = parts("GET", "/", &fields);
        assert!(prepare(&mut parts).unwrap().already_retried);
        assert_eq!(parts.headers["x-switchyard-attempt"], "2");
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
