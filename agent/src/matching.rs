//! Which rule a request belongs to: the first entry of the Service's ordered list that holds.
//!
//! Keeps true:
//! - The order was decided by the controller; here it is only followed, so every agent gives the same answer.
//! - The answer and its reason come out of one function: [`Entry::holds`] serves the proxy and `explain` alike.
//! - What is compared is what is forwarded: the path as it stands in the request line, header fields after those that
//!   Connection nominates have been taken out.

use http::{HeaderMap, Method};
use switchyard_proto::v1;

use crate::table::Service;

/// Comparing one value.
mod matchers;

pub use matchers::{NamedMatcher, PathMatcher};

/// What of a request is looked at.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path, without the query.
    pub path: &'a str,
    /// What follows the question mark.
    pub query: Option<&'a str>,
    /// The header fields.
    pub headers: &'a HeaderMap,
    /// The Service's port that the request came for.
    pub port: u16,
}

/// One entry of the ordered list: what must hold, and the rule that then decides.
#[derive(Debug)]
pub struct Entry {
    /// Position of the rule in the Service's list.
    pub rule: u32,
    /// Position in the RouteRule's own `matches`; -1: it has none.
    pub position: i32,
    port: Option<u16>,
    path: Option<PathMatcher>,
    method: Option<Method>,
    headers: Vec<NamedMatcher>,
    query: Vec<NamedMatcher>,
}

/// Why an entry does not hold: the first condition that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch<'e> {
    /// It is for another port.
    Port(u16),
    /// The path is another.
    Path(&'e PathMatcher),
    /// The method is another.
    Method(&'e Method),
    /// A header field is not as it must be.
    Header(&'e NamedMatcher),
    /// A query parameter is not as it must be.
    Query(&'e NamedMatcher),
}

/// The entry that decides about the request; `None`: no rule matches.
pub fn first<'t>(service: &'t Service, view: &View<'_>) -> Option<&'t Entry> {
    service.entries.iter().find(|entry| entry.holds(view).is_ok())
}

/// The entry that decides about a connection which is not HTTP: the first one that asks for nothing that only HTTP has, and whose rule
/// sends something somewhere.
pub fn first_for_connection(service: &Service, port: u16) -> Option<&Entry> {
    let leads_on = |entry: &&Entry| !service.rule(Some(entry.rule)).destinations.is_empty();
    service.entries.iter().filter(leads_on).find(|entry| entry.holds_for_connection(port))
}

impl Entry {
    fn holds_for_connection(&self, port: u16) -> bool {
        self.port.is_none_or(|p| p == port)
            && self.path.is_none()
            && self.method.is_none()
            && self.headers.is_empty()
            && self.query.is_empty()
    }

    /// From the wire.
    ///
    /// # Errors
    /// What cannot be compiled, as a lower-case fragment: a regular expression, a method, a kind of match.
    pub fn compile(wire: &v1::Match) -> Result<Self, String> {
        let named = |list: &[v1::NamedMatch]| list.iter().map(NamedMatcher::compile).collect::<Result<Vec<_>, _>>();
        let method = match wire.method.as_str() {
            "" => None,
            name => Some(Method::from_bytes(name.as_bytes()).map_err(|_| format!("{name:?} is not a method"))?),
        };
        Ok(Self {
            rule: wire.rule,
            position: wire.position,
            port: u16::try_from(wire.port).ok().filter(|p| *p != 0),
            path: wire.path.as_ref().map(PathMatcher::compile).transpose()?,
            method,
            headers: named(&wire.headers)?,
            query: named(&wire.query_params)?,
        })
    }

    /// How many segments the prefix has by which it compares the path; none where it compares otherwise, or not at all.
    pub fn prefix_segments(&self) -> usize {
        match &self.path {
            Some(PathMatcher::Prefix(prefix)) => prefix.matches('/').count(),
            _ => 0,
        }
    }

    /// Whether the request is one that this entry describes.
    ///
    /// # Errors
    /// The first condition that fails.
    pub fn holds(&self, view: &View<'_>) -> Result<(), Mismatch<'_>> {
        if let Some(port) = self.port
            && port != view.port
        {
            return Err(Mismatch::Port(port));
        }
        if let Some(path) = &self.path
            && !path.matches(view.path)
        {
            return Err(Mismatch::Path(path));
        }
        if let Some(method) = &self.method
            && method != view.method
        {
            return Err(Mismatch::Method(method));
        }
        if let Some(header) = self.headers.iter().find(|h| !h.matches_header(view.headers)) {
            return Err(Mismatch::Header(header));
        }
        match self.query.iter().find(|q| !q.matches_query(view.query)) {
            Some(query) => Err(Mismatch::Query(query)),
            None => Ok(()),
        }
    }
}

impl std::fmt::Display for Mismatch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Port(port) => write!(f, "it is for port {port}"),
            Self::Path(path) => write!(f, "path is not {path}"),
            Self::Method(method) => write!(f, "method is not {method}"),
            Self::Header(header) => write!(f, "header {header}"),
            Self::Query(query) => write!(f, "query parameter {query}"),
        }
    }
}

impl std::fmt::Display for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.port.map(|port| format!("port {port}")));
        parts.extend(self.path.as_ref().map(|path| format!("path {path}")));
        parts.extend(self.method.as_ref().map(|method| format!("method {method}")));
        parts.extend(self.headers.iter().map(|header| format!("header {}", header.condition())));
        parts.extend(self.query.iter().map(|query| format!("query parameter {}", query.condition())));
        if parts.is_empty() { f.write_str("every request") } else { f.write_str(&parts.join(", ")) }
    }
}
