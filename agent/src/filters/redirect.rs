//! A redirect as the reply (the Gateway API's HTTPRequestRedirectFilter).
//!
//! An agent is asked in HTTP without TLS, so that is the request's scheme; and the port that the caller connected to is the one that
//! its Host names (RFC 9110 section 7.2), 80 where it names none.

use http::header::{HOST, LOCATION};
use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use switchyard_proto::v1;

use super::path::PathModifier;
use crate::refusal::{Reason, Refusal, Stated};

/// A redirect; what is not given is as in the request.
#[derive(Debug)]
pub struct Redirect {
    scheme: Option<&'static str>,
    hostname: Option<Box<str>>,
    port: Option<u16>,
    path: Option<PathModifier>,
    status: StatusCode,
}

impl Redirect {
    /// From the wire.
    ///
    /// # Errors
    /// What cannot be redirected to.
    pub fn compile(wire: &v1::RequestRedirect) -> Result<Self, String> {
        let scheme = match wire.scheme.as_str() {
            "" => None,
            "http" => Some("http"),
            "https" => Some("https"),
            other => return Err(format!("{other:?} is no scheme that is redirected to")),
        };
        let status = match wire.status {
            301 => StatusCode::MOVED_PERMANENTLY,
            302 => StatusCode::FOUND,
            303 => StatusCode::SEE_OTHER,
            307 => StatusCode::TEMPORARY_REDIRECT,
            308 => StatusCode::PERMANENT_REDIRECT,
            other => return Err(format!("{other} is no redirect's status")),
        };
        super::headers::value(&wire.hostname)?;
        Ok(Self {
            scheme,
            hostname: Some(wire.hostname.as_str()).filter(|name| !name.is_empty()).map(Into::into),
            port: u16::try_from(wire.port).ok().filter(|port| *port != 0),
            path: wire.path.as_ref().map(PathModifier::compile).transpose()?,
            status,
        })
    }

    /// The reply to a request that was matched by a prefix of so many segments.
    pub fn reply(&self, headers: &HeaderMap, uri: &Uri, segments: usize) -> Refusal {
        let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let Some(location) = self.location(host, uri, segments) else {
            return Refusal::new(Reason::BadRequest, "the path is too long once it is changed");
        };
        let detail = format!("Location: {}", String::from_utf8_lossy(location.as_bytes()));
        let headers = HeaderMap::from_iter([(LOCATION, location)]);
        Refusal::stated(Reason::Redirect, self.status, detail, Stated { headers, body: bytes::Bytes::new() })
    }

    fn location(&self, host: &str, uri: &Uri, segments: usize) -> Option<HeaderValue> {
        let changed = self.path.as_ref().map(|path| path.apply(uri, segments));
        let target = match &changed {
            Some(path) => path.as_ref()?.as_str(),
            None => uri.path_and_query().map_or("/", |path| path.as_str()),
        };
        // OPTIONS of the server as a whole has no path of its own.
        let target = if target == "*" { "" } else { target };
        let (name, named) = split_port(host);
        let name = self.hostname.as_deref().unwrap_or(name);
        let scheme = self.scheme.unwrap_or("http");
        let well_known = if scheme == "https" { 443 } else { 80 };
        let port = self.port.or(if self.scheme.is_some() { None } else { named }).unwrap_or(well_known);
        let location = if name.is_empty() {
            target.to_owned()
        } else if port == well_known {
            format!("{scheme}://{name}{target}")
        } else {
            format!("{scheme}://{name}:{port}{target}")
        };
        HeaderValue::try_from(location).ok()
    }
}

/// A Host's name and port; an IPv6 address is in brackets.
fn split_port(host: &str) -> (&str, Option<u16>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, port.parse().ok()),
        _ => (host, None),
    }
}

impl std::fmt::Display for Redirect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.status.as_u16())?;
        let port = self.port.map(|port| port.to_string());
        for (what, given) in [("scheme", self.scheme), ("host", self.hostname.as_deref()), ("port", port.as_deref())] {
            if let Some(given) = given {
                write!(f, ", {what} {given}")?;
            }
        }
        self.path.as_ref().map_or(Ok(()), |path| write!(f, ", {path}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(wire: v1::RequestRedirect, host: &'static str, target: &str) -> String {
        let redirect = Redirect::compile(&v1::RequestRedirect { status: 302, ..wire }).unwrap();
        let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static(host))]);
        let refusal = redirect.reply(&headers, &target.parse().unwrap(), 1);
        let reply = refusal.reply(false);
        assert_eq!(reply.status(), 302);
        reply.headers()[LOCATION].to_str().unwrap().to_owned()
    }

    fn wire(scheme: &str, hostname: &str, port: u32) -> v1::RequestRedirect {
        v1::RequestRedirect { scheme: scheme.into(), hostname: hostname.into(), port, ..v1::RequestRedirect::default() }
    }

    #[test]
    fn when_empty_the_scheme_the_hostname_and_the_path_of_the_request_are_used() {
        assert_eq!(location(wire("", "", 0), "a.shop", "/x?y=1"), "http://a.shop/x?y=1");
        assert_eq!(location(wire("", "b.org", 0), "a.shop", "/x"), "http://b.org/x");
        assert_eq!(location(wire("", "b.org", 0), "", "/x"), "http://b.org/x");
        assert_eq!(location(wire("https", "", 0), "[::1]:8080", "/"), "https://[::1]/");
    }

    #[test]
    fn if_redirect_scheme_is_not_empty_the_redirect_port_is_the_well_known_port_of_it() {
        assert_eq!(location(wire("https", "", 0), "a.shop:8080", "/"), "https://a.shop/");
        assert_eq!(location(wire("http", "", 0), "a.shop:8080", "/"), "http://a.shop/");
    }

    #[test]
    fn if_redirect_scheme_is_empty_the_redirect_port_is_the_one_that_was_connected_to() {
        assert_eq!(location(wire("", "", 0), "a.shop:8080", "/"), "http://a.shop:8080/");
        assert_eq!(location(wire("", "b.org", 0), "a.shop:8080", "/"), "http://b.org:8080/");
    }

    #[test]
    fn the_port_is_not_added_for_http_on_80_and_https_on_443() {
        assert_eq!(location(wire("http", "", 80), "a.shop:8080", "/"), "http://a.shop/");
        assert_eq!(location(wire("", "", 80), "a.shop:8080", "/"), "http://a.shop/");
        assert_eq!(location(wire("https", "", 443), "a.shop", "/"), "https://a.shop/");
        assert_eq!(location(wire("https", "", 80), "a.shop", "/"), "https://a.shop:80/");
        assert_eq!(location(wire("http", "", 443), "a.shop", "/"), "http://a.shop:443/");
        assert_eq!(location(wire("", "", 8443), "a.shop", "/"), "http://a.shop:8443/");
    }

    #[test]
    fn the_modified_path_is_used_to_construct_the_location_header() {
        let path = |path| Some(v1::PathModifier { path: Some(path) });
        let prefix = path(v1::path_modifier::Path::Prefix("/new".into()));
        let redirect = v1::RequestRedirect { path: prefix, ..wire("", "", 0) };
        assert_eq!(location(redirect, "a.shop", "/old/x?y"), "http://a.shop/new/x?y");
        let full = path(v1::path_modifier::Path::Full("/new".into()));
        assert_eq!(
            location(v1::RequestRedirect { path: full, ..wire("", "", 0) }, "a.shop", "/old"),
            "http://a.shop/new"
        );
    }

    #[test]
    fn status_codes_that_are_no_redirects_are_turned_down() {
        for status in [301, 302, 303, 307, 308] {
            assert!(Redirect::compile(&v1::RequestRedirect { status, ..wire("", "", 0) }).is_ok());
        }
        for status in [0, 200, 300, 304, 305, 306, 400] {
            assert!(Redirect::compile(&v1::RequestRedirect { status, ..wire("", "", 0) }).is_err());
        }
    }
}
