//! Cross-origin requests (the Gateway API's HTTPCORSFilter, the WHATWG Fetch standard's CORS protocol).
//!
//! A preflight is answered here, always with 204; what its origin may not do is simply not in it, and the browser draws the conclusion.
//! All else is passed on, and its reply says which origin may read it. What an instance says of that is replaced: two answers are none.

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderValue, ORIGIN, VARY,
};
use http::{HeaderMap, Method, StatusCode};
use switchyard_proto::v1;

use super::headers::value;
use crate::message::has_token;
use crate::refusal::{Reason, Refusal, Stated};

/// Which origins may do what.
#[derive(Debug)]
pub struct Cors {
    origins: Origins,
    methods: Allowed,
    headers: Allowed,
    expose: Option<HeaderValue>,
    credentials: bool,
    max_age: HeaderValue,
}

#[derive(Debug)]
enum Origins {
    Any,
    These(Vec<Origin>),
}

/// An origin, with its scheme's port where it names none.
#[derive(Debug, PartialEq, Eq)]
struct Origin {
    https: bool,
    host: Host,
    port: u16,
}

#[derive(Debug, PartialEq, Eq)]
enum Host {
    Any,
    /// What follows a `*`, with its dot.
    EndsWith(Box<str>),
    Is(Box<str>),
}

/// What a preflight is told of methods, or of header fields.
#[derive(Debug)]
enum Allowed {
    Nothing,
    /// Whatever it asks for, which is named, for `*` would not hold with credentials, nor for Authorization.
    Anything,
    These(HeaderValue),
}

const ANY: &str = "*";

impl Cors {
    /// From the wire.
    ///
    /// # Errors
    /// An origin that is none, or a name that cannot stand in a header field.
    pub fn compile(wire: &v1::Cors) -> Result<Self, String> {
        let origins = match has_any(&wire.allow_origins) {
            true => Origins::Any,
            false => Origins::These(wire.allow_origins.iter().map(|o| Origin::read(o)).collect::<Result<_, _>>()?),
        };
        let exposes_any = has_any(&wire.expose_headers);
        let expose = match exposes_any {
            // With credentials it would be the name of a field.
            true if wire.allow_credentials => None,
            true => Some(HeaderValue::from_static(ANY)),
            false => joined(&wire.expose_headers)?,
        };
        Ok(Self {
            origins,
            methods: Allowed::of(&wire.allow_methods)?,
            headers: Allowed::of(&wire.allow_headers)?,
            expose,
            credentials: wire.allow_credentials,
            max_age: HeaderValue::from(wire.max_age_seconds),
        })
    }

    /// The reply to a preflight; none: it is another request.
    pub fn preflight(&self, method: &Method, headers: &HeaderMap) -> Option<Refusal> {
        let asked = headers.get(ACCESS_CONTROL_REQUEST_METHOD).filter(|_| method == Method::OPTIONS)?;
        headers.get(ORIGIN)?;
        let mut reply = HeaderMap::new();
        if let Some(origin) = self.origin(headers) {
            reply.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            if self.credentials {
                reply.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
            }
            let fields = headers.get(ACCESS_CONTROL_REQUEST_HEADERS);
            for (name, allowed, asked) in [
                (ACCESS_CONTROL_ALLOW_METHODS, &self.methods, Some(asked)),
                (ACCESS_CONTROL_ALLOW_HEADERS, &self.headers, fields),
            ] {
                match allowed {
                    Allowed::Nothing => {}
                    Allowed::Anything => drop(asked.map(|asked| reply.insert(name, asked.clone()))),
                    Allowed::These(list) => drop(reply.insert(name, list.clone())),
                }
            }
            reply.insert(ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        }
        self.vary(&mut reply);
        let detail = "a preflight is answered as the rule's CORS filter says".to_owned();
        let stated = Stated { headers: reply, body: Bytes::new() };
        Some(Refusal::stated(Reason::Preflight, StatusCode::NO_CONTENT, detail, stated))
    }

    /// The origin that may read the reply to this request, as it is told.
    pub fn origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        if self.is_constant() {
            // Said to everybody, so that a cache need not tell requests apart.
            return Some(HeaderValue::from_static(ANY));
        }
        let origin = headers.get(ORIGIN)?;
        let may = match &self.origins {
            Origins::Any => true,
            Origins::These(origins) => {
                let origin = origin.to_str().ok().and_then(|origin| Origin::read(origin).ok())?;
                origins.iter().any(|allowed| allowed.is_met_by(&origin))
            }
        };
        may.then(|| origin.clone())
    }

    /// Tells who may read a reply.
    pub fn apply(&self, origin: Option<HeaderValue>, headers: &mut HeaderMap) {
        for name in [ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_EXPOSE_HEADERS] {
            headers.remove(name);
        }
        if let Some(origin) = origin {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            if self.credentials {
                headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
            }
            if let Some(expose) = &self.expose {
                headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
            }
        }
        self.vary(headers);
    }

    /// Whether all requests are told the same.
    fn is_constant(&self) -> bool {
        matches!(self.origins, Origins::Any) && !self.credentials
    }

    fn vary(&self, headers: &mut HeaderMap) {
        let says = |value: &HeaderValue| has_token(value.as_bytes(), "origin") || has_token(value.as_bytes(), ANY);
        if !self.is_constant() && !headers.get_all(VARY).iter().any(says) {
            headers.append(VARY, HeaderValue::from_static("origin"));
        }
    }
}

impl Allowed {
    fn of(list: &[String]) -> Result<Self, String> {
        if has_any(list) {
            return Ok(Self::Anything);
        }
        Ok(joined(list)?.map_or(Self::Nothing, Self::These))
    }
}

fn has_any(list: &[String]) -> bool {
    list.iter().any(|entry| entry == ANY)
}

fn joined(list: &[String]) -> Result<Option<HeaderValue>, String> {
    if list.is_empty() { Ok(None) } else { value(&list.join(", ")).map(Some) }
}

impl Origin {
    /// `scheme://host`, with or without a port; the host may be `*`, or begin with `*.`.
    fn read(text: &str) -> Result<Self, String> {
        let odd = || format!("{text:?} is no origin");
        let (scheme, authority) = text.split_once("://").ok_or_else(odd)?;
        let https = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(odd()),
        };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| odd())?),
            _ => (authority, if https { 443 } else { 80 }),
        };
        let host = host.to_ascii_lowercase();
        let host = match host.strip_prefix('*') {
            _ if host.is_empty() || host.contains(['/', '@', '?', '#']) => return Err(odd()),
            Some("") => Host::Any,
            Some(rest) => Host::EndsWith(rest.into()),
            None => Host::Is(host.into()),
        };
        Ok(Self { https, host, port })
    }

    fn is_met_by(&self, origin: &Self) -> bool {
        let Host::Is(name) = &origin.host else { return false };
        let meets = match &self.host {
            Host::Any => true,
            Host::EndsWith(rest) => name.len() > rest.len() && name.ends_with(&**rest),
            Host::Is(host) => name == host,
        };
        meets && self.https == origin.https && self.port == origin.port
    }
}

impl std::fmt::Display for Cors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let credentials = if self.credentials { ", with credentials" } else { "" };
        match &self.origins {
            Origins::Any => write!(f, "any origin{credentials}"),
            Origins::These(list) => write!(f, "{} origin(s){credentials}", list.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cors(origins: &[&str], credentials: bool, more: impl FnOnce(&mut v1::Cors)) -> Cors {
        let mut wire = v1::Cors {
            allow_origins: origins.iter().map(|o| (*o).to_owned()).collect(),
            allow_credentials: credentials,
            max_age_seconds: 5,
            ..v1::Cors::default()
        };
        more(&mut wire);
        Cors::compile(&wire).unwrap()
    }

    fn list(of: &[&str]) -> Vec<String> {
        of.iter().map(|entry| (*entry).to_owned()).collect()
    }

    fn fields(fields: &[(&'static str, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn preflight(cors: &Cors, origin: &str, headers: Option<&str>) -> HeaderMap {
        let mut asked = fields(&[("origin", origin), ("access-control-request-method", "PUT")]);
        if let Some(headers) = headers {
            asked.insert(ACCESS_CONTROL_REQUEST_HEADERS, headers.parse().unwrap());
        }
        let reply = cors.preflight(&Method::OPTIONS, &asked).unwrap().reply(false);
        assert_eq!(reply.status(), 204, "always an OK status");
        reply.headers().clone()
    }

    fn seen<'h>(headers: &'h HeaderMap, name: &str) -> &'h str {
        headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[test]
    fn a_preflight_is_an_options_with_an_origin_and_the_method_it_asks_for() {
        let cors = cors(&["*"], false, |_| {});
        let asked = fields(&[("origin", "https://a.org"), ("access-control-request-method", "PUT")]);
        assert!(cors.preflight(&Method::OPTIONS, &asked).is_some());
        assert!(cors.preflight(&Method::GET, &asked).is_none());
        for lacking in ["origin", "access-control-request-method"] {
            let mut asked = asked.clone();
            asked.remove(lacking);
            assert!(cors.preflight(&Method::OPTIONS, &asked).is_none(), "{lacking}");
        }
    }

    #[test]
    fn if_the_request_origin_matches_the_gateway_returns_the_given_origin() {
        for (allowed, origin, may) in [
            ("https://a.org", "https://a.org", true),
            ("https://a.org", "https://A.org", true),
            ("https://a.org", "http://a.org", false),
            ("https://a.org", "https://a.org:8443", false),
            ("https://a.org", "https://b.a.org", false),
            // Port 80 is assumed for http, port 443 for https.
            ("https://a.org:443", "https://a.org", true),
            ("http://a.org:80", "http://a.org", true),
            ("http://a.org:8080", "http://a.org:8080", true),
            ("http://a.org:8080", "http://a.org", false),
            // A greedy match to the left, including any number of labels.
            ("https://*.a.org", "https://b.a.org", true),
            ("https://*.a.org", "https://c.b.a.org", true),
            ("https://*.a.org", "https://a.org", false),
            ("https://*.a.org", "https://ba.org", false),
            ("https://*.a.org", "https://.a.org", false),
            ("https://*", "https://any.thing", true),
            ("https://*", "http://any.thing", false),
            ("http://[::1]:80", "http://[::1]", true),
            ("https://*", "null", false),
            ("https://*", "https://*", false),
        ] {
            let cors = cors(&["https://other.org", allowed], false, |_| {});
            let expected = if may { origin } else { "" };
            assert_eq!(
                seen(&preflight(&cors, origin, None), "access-control-allow-origin"),
                expected,
                "{allowed} {origin}"
            );
            let mut reply = HeaderMap::new();
            cors.apply(cors.origin(&fields(&[("origin", origin)])), &mut reply);
            assert_eq!(seen(&reply, "access-control-allow-origin"), expected, "{allowed} {origin}");
        }
    }

    #[test]
    fn if_the_origin_does_not_match_the_cors_headers_are_omitted() {
        let cors = cors(&["https://a.org"], true, |wire| {
            wire.allow_methods = list(&["PUT"]);
            wire.allow_headers = list(&["x-a"]);
        });
        let reply = preflight(&cors, "https://b.org", Some("x-a"));
        assert!(reply.keys().all(|name| !name.as_str().starts_with("access-control-")), "{reply:?}");
    }

    #[test]
    fn with_the_wildcard_origin_credentials_decide_between_a_wildcard_and_the_origin() {
        let origin = |credentials: bool| {
            let cors = cors(&["*"], credentials, |_| {});
            let reply = preflight(&cors, "https://a.org", None);
            seen(&reply, "access-control-allow-origin").to_owned()
        };
        assert_eq!((origin(false), origin(true)), ("*".into(), "https://a.org".into()));
    }

    #[test]
    fn allow_credentials_is_true_or_omitted() {
        let said = |credentials: bool| {
            let cors = cors(&["https://a.org"], credentials, |_| {});
            seen(&preflight(&cors, "https://a.org", None), "access-control-allow-credentials").to_owned()
        };
        assert_eq!((said(false), said(true)), (String::new(), "true".into()));
    }

    #[test]
    fn methods_and_headers_are_listed_and_a_wildcard_is_never_returned_for_them() {
        let listed = cors(&["*"], false, |wire| {
            wire.allow_methods = list(&["PUT", "DELETE"]);
            wire.allow_headers = list(&["x-a", "X-B"]);
        });
        let reply = preflight(&listed, "https://a.org", Some("x-c"));
        assert_eq!(seen(&reply, "access-control-allow-methods"), "PUT, DELETE");
        assert_eq!(seen(&reply, "access-control-allow-headers"), "x-a, X-B");
        for credentials in [false, true] {
            let any = cors(&["*"], credentials, |wire| {
                wire.allow_methods = list(&["*"]);
                wire.allow_headers = list(&["*"]);
            });
            let reply = preflight(&any, "https://a.org", Some("x-c, authorization"));
            assert_eq!(seen(&reply, "access-control-allow-methods"), "PUT");
            assert_eq!(seen(&reply, "access-control-allow-headers"), "x-c, authorization");
            let reply = preflight(&any, "https://a.org", None);
            assert!(!reply.contains_key(ACCESS_CONTROL_ALLOW_HEADERS), "omitted where none are asked for");
        }
        let reply = preflight(&cors(&["*"], false, |_| {}), "https://a.org", Some("x-c"));
        assert!(!reply.contains_key(ACCESS_CONTROL_ALLOW_METHODS) && !reply.contains_key(ACCESS_CONTROL_ALLOW_HEADERS));
    }

    #[test]
    fn expose_headers_lists_them_and_a_wildcard_holds_without_credentials_only() {
        for (expose, credentials, expected) in
            [(&["x-a", "x-b"][..], true, "x-a, x-b"), (&["*"], false, "*"), (&["*"], true, ""), (&[], false, "")]
        {
            let cors = cors(&["*"], credentials, |wire| wire.expose_headers = list(expose));
            let mut reply = HeaderMap::new();
            cors.apply(cors.origin(&fields(&[("origin", "https://a.org")])), &mut reply);
            assert_eq!(seen(&reply, "access-control-expose-headers"), expected);
        }
    }

    #[test]
    fn max_age_is_said_in_seconds() {
        let cors = cors(&["*"], false, |wire| wire.max_age_seconds = 600);
        assert_eq!(seen(&preflight(&cors, "https://a.org", None), "access-control-max-age"), "600");
    }

    #[test]
    fn what_the_instance_says_of_it_is_replaced() {
        let instances = [("access-control-allow-origin", "*"), ("access-control-expose-headers", "x-z")];
        let cors = cors(&["https://a.org"], false, |_| {});
        let mut reply = fields(&instances);
        cors.apply(cors.origin(&fields(&[("origin", "https://a.org")])), &mut reply);
        assert_eq!(seen(&reply, "access-control-allow-origin"), "https://a.org");
        assert!(!reply.contains_key("access-control-expose-headers"));
        let mut reply = fields(&instances);
        cors.apply(cors.origin(&fields(&[("origin", "https://b.org")])), &mut reply);
        assert!(!reply.contains_key("access-control-allow-origin"));
    }

    #[test]
    fn a_cache_is_told_where_replies_differ_by_origin() {
        let vary = |origins: &[&str], credentials, before: &[(&'static str, &str)]| {
            let cors = cors(origins, credentials, |_| {});
            let mut reply = fields(before);
            cors.apply(cors.origin(&HeaderMap::new()), &mut reply);
            let all: Vec<_> = reply.get_all(VARY).iter().map(|value| value.to_str().unwrap().to_owned()).collect();
            (all.join("; "), seen(&reply, "access-control-allow-origin").to_owned())
        };
        assert_eq!(vary(&["*"], false, &[]), (String::new(), "*".into()));
        assert_eq!(vary(&["*"], true, &[]), ("origin".into(), String::new()));
        assert_eq!(vary(&["https://a.org"], false, &[]).0, "origin");
        assert_eq!(vary(&["https://a.org"], false, &[("vary", "Accept, Origin")]).0, "Accept, Origin");
        assert_eq!(vary(&["https://a.org"], false, &[("vary", "accept")]).0, "accept; origin");
    }

    #[test]
    fn what_is_no_origin_is_turned_down() {
        for odd in [
            "",
            "a.org",
            "ftp://a.org",
            "https://",
            "https://a.org:x",
            "https://a.org:70000",
            "https://a.org/x",
            "https://u@a.org",
        ] {
            let wire = v1::Cors { allow_origins: vec![odd.to_owned()], ..v1::Cors::default() };
            assert!(Cors::compile(&wire).is_err(), "{odd:?}");
        }
    }
}
