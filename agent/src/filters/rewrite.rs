//! Another host or path for instances to see (the Gateway API's HTTPURLRewriteFilter).

use http::Uri;
use http::header::{HOST, HeaderValue};
use http::request::Parts;
use switchyard_proto::v1;

use super::headers::value;
use super::path::PathModifier;
use crate::refusal::{Reason, Refusal};

/// A rewrite.
#[derive(Debug)]
pub struct Rewrite {
    hostname: Option<HeaderValue>,
    path: Option<PathModifier>,
}

impl Rewrite {
    /// From the wire.
    ///
    /// # Errors
    /// What is no host or no path.
    pub fn compile(wire: &v1::UrlRewrite) -> Result<Self, String> {
        let hostname = Some(&wire.hostname).filter(|name| !name.is_empty()).map(|name| value(name)).transpose()?;
        Ok(Self { hostname, path: wire.path.as_ref().map(PathModifier::compile).transpose()? })
    }

    /// Rewrites a request that was matched by a prefix of so many segments.
    ///
    /// # Errors
    /// The path has become too long.
    pub fn apply(&self, parts: &mut Parts, segments: usize) -> Result<(), Refusal> {
        if let Some(hostname) = &self.hostname {
            parts.headers.insert(HOST, hostname.clone());
        }
        if let Some(path) = &self.path {
            let Some(rewritten) = path.apply(&parts.uri, segments) else {
                return Err(Refusal::new(Reason::BadRequest, "the path is too long once it is rewritten"));
            };
            parts.uri = Uri::from(rewritten);
        }
        Ok(())
    }
}

impl std::fmt::Display for Rewrite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let host = self.hostname.as_ref().map(|host| format!("Host {}", String::from_utf8_lossy(host.as_bytes())));
        let parts: Vec<_> = host.into_iter().chain(self.path.as_ref().map(ToString::to_string)).collect();
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(hostname: &str, path: Option<v1::path_modifier::Path>, target: &str) -> (String, String) {
        let path = path.map(|path| v1::PathModifier { path: Some(path) });
        let rewrite = Rewrite::compile(&v1::UrlRewrite { hostname: hostname.into(), path }).unwrap();
        let request = http::Request::builder().uri(target).header("host", "a.shop:8080");
        let mut parts = request.body(()).unwrap().into_parts().0;
        rewrite.apply(&mut parts, 1).unwrap();
        (parts.headers[HOST].to_str().unwrap().to_owned(), parts.uri.to_string())
    }

    #[test]
    fn hostname_replaces_the_host_header_value_during_forwarding() {
        assert_eq!(rewritten("b.example.org", None, "/x?y"), ("b.example.org".into(), "/x?y".into()));
        assert_eq!(rewritten("", None, "/x").0, "a.shop:8080");
    }

    #[test]
    fn path_defines_a_path_rewrite() {
        let path = v1::path_modifier::Path::Prefix("/new".into());
        assert_eq!(rewritten("b", Some(path), "/old/x?y"), ("b".into(), "/new/x?y".into()));
    }

    #[test]
    fn a_path_that_grows_beyond_what_a_target_can_be_is_refused() {
        let path =
            Some(v1::PathModifier { path: Some(v1::path_modifier::Path::Prefix("/".to_owned() + &"x".repeat(1000))) });
        let rewrite = Rewrite::compile(&v1::UrlRewrite { hostname: String::new(), path }).unwrap();
        let target = format!("/{}", "y".repeat(65_000));
        let mut parts = http::Request::builder().uri(target).body(()).unwrap().into_parts().0;
        assert_eq!(rewrite.apply(&mut parts, 0).unwrap_err().reason, Reason::BadRequest);
    }
}
