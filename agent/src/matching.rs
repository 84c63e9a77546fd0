//! Which rule a request belongs to: the first entry of the Service's ordered list that holds.
//!
//! Keeps true:
//! - The order was decided by the controller; here it is only followed, so every agent gives the same answer.
//! - The answer and its reason come out of one function: [`Entry::holds`] serves the proxy and `explain` alike.
//! - The index finds what a walk over the entries finds (`the_index_finds_what_a_walk_finds`).
//! - What is compared is what is forwarded: the path in its normal form, header fields after those that Connection
//!   nominates have been taken out.

use http::{HeaderMap, Method};
use switchyard_proto::v1;

use crate::table::{Service, Workload};

/// The values that are compared.
mod fields;
/// gRPC calls.
mod grpc;
/// Finding the first entry among many.
mod index;
/// Comparing one value.
mod matchers;
/// Regular expressions.
mod pattern;
/// Maps of what rules ask for.
pub(crate) mod quick;
/// Who calls.
mod source;

pub use fields::cookie;
pub use grpc::GrpcMatcher;
pub use index::Index;
pub use matchers::{NamedMatcher, PathMatcher, PathPattern};
pub use source::{SourceMatcher, Stranger};

/// What of a request is looked at.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path in its normal form, without the query.
    pub path: &'a str,
    /// What follows the question mark.
    pub query: Option<&'a str>,
    /// The header fields.
    pub headers: &'a HeaderMap,
    /// The Service's port that the request came for.
    pub port: u16,
    /// It is a gRPC call, by its content type.
    pub grpc: bool,
    /// Who sent it, where that is known.
    pub caller: Option<&'a Workload>,
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
    headers: Box<[NamedMatcher]>,
    query: Box<[NamedMatcher]>,
    cookies: Box<[NamedMatcher]>,
    grpc: Option<Box<GrpcMatcher>>,
    source: Option<Box<SourceMatcher>>,
}

/// Why an entry does not hold: the first condition that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch<'e> {
    /// It is for another port.
    Port(u16),
    /// The path is another.
    Path(&'e PathMatcher),
    /// It is no gRPC call, or another one.
    Grpc(&'e GrpcMatcher),
    /// The method is another.
    Method(&'e Method),
    /// A header field is not as it must be.
    Header(&'e NamedMatcher),
    /// A query parameter is not as it must be.
    Query(&'e NamedMatcher),
    /// A cookie is not as it must be.
    Cookie(&'e NamedMatcher),
    /// The caller is not one that it is for.
    Source(Stranger<'e>),
}

/// The entry that decides about the request; `None`: no rule matches.
pub fn first<'t>(service: &'t Service, view: &View<'_>) -> Option<&'t Entry> {
    service.index.first(&service.entries, view)
}

/// The entry that decides about a connection which is not HTTP: the first one that asks for nothing that only HTTP has, and whose rule
/// sends something somewhere.
pub fn first_for_connection<'t>(service: &'t Service, port: u16, caller: Option<&Workload>) -> Option<&'t Entry> {
    let leads_on = |entry: &&Entry| !service.rule(Some(entry.rule)).destinations.is_empty();
    let entries = service.index.for_connections(&service.entries);
    entries.filter(leads_on).find(|entry| entry.holds_for_connection(port, caller))
}

impl Entry {
    /// Whether it asks for nothing that only HTTP has.
    fn is_for_connections(&self) -> bool {
        self.path.is_none()
            && self.method.is_none()
            && self.grpc.is_none()
            && [&self.headers, &self.query, &self.cookies].into_iter().all(|named| named.is_empty())
    }

    fn holds_for_connection(&self, port: u16, caller: Option<&Workload>) -> bool {
        self.port.is_none_or(|p| p == port) && self.source.as_ref().is_none_or(|source| source.holds(caller).is_ok())
    }

    /// From the wire.
    ///
    /// # Errors
    /// What cannot be compiled, as a lower-case fragment: a method, a kind of match. Regular expressions are compiled when they are
    /// first asked; [`Entry::check`] tells before.
    pub fn compile(wire: &v1::Match) -> Result<Self, String> {
        let texts = |list: &[v1::NamedMatch]| list.iter().map(NamedMatcher::of_text).collect::<Result<_, _>>();
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
            headers: wire.headers.iter().map(NamedMatcher::of_header).collect::<Result<_, _>>()?,
            query: texts(&wire.query_params)?,
            cookies: texts(&wire.cookies)?,
            grpc: wire.grpc.as_ref().map(|grpc| Box::new(GrpcMatcher::compile(grpc))),
            source: wire.source.as_ref().map(|source| Box::new(SourceMatcher::compile(source))),
        })
    }

    /// Whether its regular expressions can be compiled.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), String> {
        self.path.as_ref().map_or(Ok(()), PathMatcher::check)?;
        let mut named = [&self.headers, &self.query, &self.cookies].into_iter().flatten();
        named.try_for_each(NamedMatcher::check)
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
        if let Some(grpc) = &self.grpc
            && !(view.grpc && view.method == Method::POST && grpc.matches(view.path))
        {
            return Err(Mismatch::Grpc(grpc));
        }
        if let Some(method) = &self.method
            && method != view.method
        {
            return Err(Mismatch::Method(method));
        }
        if let Some(header) = self.headers.iter().find(|h| !h.matches_header(view.headers)) {
            return Err(Mismatch::Header(header));
        }
        if let Some(cookie) = self.cookies.iter().find(|c| !c.matches_cookies(view.headers)) {
            return Err(Mismatch::Cookie(cookie));
        }
        if let Some(query) = self.query.iter().find(|q| !q.matches_query(view.query)) {
            return Err(Mismatch::Query(query));
        }
        match &self.source {
            Some(source) => source.holds(view.caller).map_err(Mismatch::Source),
            None => Ok(()),
        }
    }
}

impl std::fmt::Display for Mismatch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Port(port) => write!(f, "it is for port {port}"),
            Self::Path(path) => write!(f, "path is not {path}"),
            Self::Grpc(grpc) => write!(f, "it is not a gRPC call of {grpc}"),
            Self::Method(method) => write!(f, "method is not {method}"),
            Self::Header(header) => write!(f, "header {header}"),
            Self::Query(query) => write!(f, "query parameter {query}"),
            Self::Cookie(cookie) => write!(f, "cookie {cookie}"),
            Self::Source(stranger) => write!(f, "{stranger}"),
        }
    }
}

impl std::fmt::Display for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.port.map(|port| format!("port {port}")));
        parts.extend(self.path.as_ref().map(|path| format!("path {path}")));
        parts.extend(self.grpc.as_ref().map(|grpc| format!("gRPC call of {grpc}")));
        parts.extend(self.method.as_ref().map(|method| format!("method {method}")));
        parts.extend(self.headers.iter().map(|header| format!("header {}", header.condition())));
        parts.extend(self.cookies.iter().map(|cookie| format!("cookie {}", cookie.condition())));
        parts.extend(self.query.iter().map(|query| format!("query parameter {}", query.condition())));
        parts.extend(self.source.as_ref().map(|source| format!("a caller of {source}")));
        if parts.is_empty() { f.write_str("every request") } else { f.write_str(&parts.join(", ")) }
    }
}
