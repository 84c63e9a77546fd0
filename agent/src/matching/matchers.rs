//! Comparing one value with what a rule asks of it.
//!
//! Paths are compared in their normal form, and so are the paths of rules; a prefix is whole segments, and a slash at its end means
//! nothing. The names of header fields fold case (they are kept in lower case). A regular expression must match all of it. Of what a
//! request has twice, [`super::fields`] tells what counts.

use std::fmt;

use http::HeaderMap;
use http::header::HeaderName;
use switchyard_proto::{path, v1};

use super::fields;
use super::pattern::{Of, Pattern};

/// Compares a path.
#[derive(Debug)]
pub enum PathMatcher {
    /// All of it.
    Exact(Box<str>),
    /// Its first segments; with no slash at the end.
    Prefix(Box<str>),
    /// By a regular expression.
    Pattern(PathPattern),
}

/// A regular expression for paths.
#[derive(Debug)]
pub struct PathPattern(pub(super) Pattern);

/// Compares the value of something that has a name.
#[derive(Debug)]
pub struct NamedMatcher {
    name: Name,
    value: ValueMatcher,
}

/// The name of a header field, a query parameter or a cookie.
#[derive(Debug, PartialEq, Eq)]
enum Name {
    Field(HeaderName),
    Text(Box<str>),
}

/// Compares a value.
#[derive(Debug)]
pub(super) enum ValueMatcher {
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Pattern(Pattern),
    Present,
    Absent,
}

impl PathMatcher {
    /// From the wire.
    ///
    /// # Errors
    /// What cannot be compiled.
    pub fn compile(wire: &v1::StringMatch) -> Result<Self, String> {
        let value = wire.value.as_str();
        // What has no normal form is no request's path.
        let normal = || path::normal(value).unwrap_or(value.into());
        match wire.r#type() {
            v1::MatchType::Exact => Ok(Self::Exact(normal().into())),
            v1::MatchType::Prefix => Ok(Self::Prefix(normal().trim_end_matches('/').into())),
            v1::MatchType::RegularExpression => Ok(Self::Pattern(PathPattern(Pattern::new(value, Of::Path)))),
            other => Err(format!("{other:?} is not a way to match a path")),
        }
    }

    /// Whether the path is meant.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(value) => **value == *path,
            Self::Prefix(prefix) => match path.strip_prefix(&**prefix) {
                Some(rest) => rest.is_empty() || rest.starts_with('/'),
                None => false,
            },
            Self::Pattern(PathPattern(pattern)) => pattern.matches(path.as_bytes()),
        }
    }

    /// Whether what is compiled later can be compiled.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), String> {
        if let Self::Pattern(PathPattern(pattern)) = self { pattern.check() } else { Ok(()) }
    }
}

impl PartialEq for PathMatcher {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for PathMatcher {}

impl fmt::Display for PathMatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(value) => write!(f, "{value}"),
            Self::Prefix(prefix) if prefix.is_empty() => f.write_str("below /"),
            Self::Prefix(prefix) => write!(f, "{prefix} or below"),
            Self::Pattern(PathPattern(pattern)) => write!(f, "matching {}", pattern.text()),
        }
    }
}

impl NamedMatcher {
    /// For a header field, from the wire.
    ///
    /// # Errors
    /// What cannot be compiled.
    pub fn of_header(wire: &v1::NamedMatch) -> Result<Self, String> {
        // A name that no field has is kept as text: no request has such a field.
        let name = HeaderName::from_bytes(wire.name.as_bytes());
        let name = name.map_or_else(|_| Name::Text(wire.name.as_str().into()), Name::Field);
        Ok(Self { name, value: ValueMatcher::compile(wire)? })
    }

    /// For a query parameter or a cookie, from the wire.
    ///
    /// # Errors
    /// What cannot be compiled.
    pub fn of_text(wire: &v1::NamedMatch) -> Result<Self, String> {
        Ok(Self { name: Name::Text(wire.name.as_str().into()), value: ValueMatcher::compile(wire)? })
    }

    /// Whether what is compiled later can be compiled.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), String> {
        if let ValueMatcher::Pattern(pattern) = &self.value { pattern.check() } else { Ok(()) }
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        match &self.name {
            Name::Field(name) => name.as_str(),
            Name::Text(name) => name,
        }
    }

    /// What it asks of the value.
    pub(super) fn value(&self) -> &ValueMatcher {
        &self.value
    }

    /// Whether the header fields are as they must be.
    pub fn matches_header(&self, headers: &HeaderMap) -> bool {
        match &self.name {
            Name::Field(name) => fields::header(headers, name, |value| self.value.matches(value)),
            Name::Text(_) => self.value.matches(None),
        }
    }

    /// Whether the query is as it must be.
    pub fn matches_query(&self, query: Option<&str>) -> bool {
        fields::parameter(query, self.name().as_bytes(), |value| self.value.matches(value))
    }

    /// Whether the cookies are as they must be.
    pub fn matches_cookies(&self, headers: &HeaderMap) -> bool {
        self.value.matches(fields::cookie(headers, self.name().as_bytes()))
    }

    /// What must hold, for showing: `x-version = v2`.
    pub fn condition(&self) -> String {
        let name = self.name();
        match &self.value {
            ValueMatcher::Exact(value) => format!("{name} = {}", String::from_utf8_lossy(value)),
            ValueMatcher::Prefix(value) => format!("{name} begins with {}", String::from_utf8_lossy(value)),
            ValueMatcher::Pattern(pattern) => format!("{name} matches {}", pattern.text()),
            ValueMatcher::Present => format!("{name} is there"),
            ValueMatcher::Absent => format!("{name} is not there"),
        }
    }
}

impl PartialEq for NamedMatcher {
    fn eq(&self, other: &Self) -> bool {
        self.condition() == other.condition()
    }
}

impl Eq for NamedMatcher {}

/// Says what does not hold: `x-version is not v2`.
impl fmt::Display for NamedMatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match &self.value {
            ValueMatcher::Exact(value) => write!(f, "{name} is not {}", String::from_utf8_lossy(value)),
            ValueMatcher::Prefix(value) => write!(f, "{name} does not begin with {}", String::from_utf8_lossy(value)),
            ValueMatcher::Pattern(pattern) => write!(f, "{name} does not match {}", pattern.text()),
            ValueMatcher::Present => write!(f, "{name} is not there"),
            ValueMatcher::Absent => write!(f, "{name} is there"),
        }
    }
}

impl ValueMatcher {
    fn compile(wire: &v1::NamedMatch) -> Result<Self, String> {
        let matched = wire.r#match.as_ref().ok_or_else(|| format!("{:?} is compared with nothing", wire.name))?;
        let bytes = || matched.value.as_bytes().into();
        Ok(match matched.r#type() {
            v1::MatchType::Exact => Self::Exact(bytes()),
            v1::MatchType::Prefix => Self::Prefix(bytes()),
            v1::MatchType::RegularExpression => Self::Pattern(Pattern::new(&matched.value, Of::Bytes)),
            v1::MatchType::Present => Self::Present,
            v1::MatchType::Absent => Self::Absent,
            v1::MatchType::Unspecified => return Err(format!("{:?} is compared in an unknown way", wire.name)),
        })
    }

    fn matches(&self, value: Option<&[u8]>) -> bool {
        match (self, value) {
            (Self::Absent, value) => value.is_none(),
            (_, None) => false,
            (Self::Present, _) => true,
            (Self::Exact(wanted), Some(value)) => **wanted == *value,
            (Self::Prefix(wanted), Some(value)) => value.starts_with(wanted),
            (Self::Pattern(pattern), Some(value)) => pattern.matches(value),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn path(kind: v1::MatchType, value: &str) -> PathMatcher {
        PathMatcher::compile(&v1::StringMatch { r#type: kind.into(), value: value.into() }).unwrap()
    }

    fn named(kind: v1::MatchType, name: &str, value: &str) -> NamedMatcher {
        let matched = v1::StringMatch { r#type: kind.into(), value: value.into() };
        NamedMatcher::of_header(&v1::NamedMatch { name: name.into(), r#match: Some(matched) }).unwrap()
    }

    #[test]
    fn a_prefix_means_whole_segments() {
        for prefix in ["/api", "/api/"] {
            let api = path(v1::MatchType::Prefix, prefix);
            for (text, holds) in
                [("/api", true), ("/api/", true), ("/api/x", true), ("/apis", false), ("/ap", false), ("/API", false)]
            {
                assert_eq!(api.matches(text), holds, "{prefix} and {text}");
            }
        }
        assert!(path(v1::MatchType::Prefix, "/").matches("/anything"));
        assert!(path(v1::MatchType::Prefix, "/").matches("/"));
    }

    #[test]
    fn a_regular_expression_matches_all_of_the_value() {
        let regex = path(v1::MatchType::RegularExpression, "/v[0-9]+|/old");
        assert!(regex.matches("/v12") && regex.matches("/old"));
        assert!(!regex.matches("/v12/x") && !regex.matches("x/old"));
    }

    #[test]
    fn header_names_fold_case_and_repeated_fields_join() {
        let mut headers = HeaderMap::new();
        headers.append("X-Tier", "a".parse().unwrap());
        assert!(named(v1::MatchType::Exact, "x-tier", "a").matches_header(&headers));
        headers.append("x-tier", "b".parse().unwrap());
        assert!(named(v1::MatchType::Exact, "x-tier", "a,b").matches_header(&headers));
        assert!(named(v1::MatchType::Prefix, "x-tier", "a").matches_header(&headers));
        assert!(named(v1::MatchType::Absent, "x-other", "").matches_header(&headers));
        assert!(!named(v1::MatchType::Present, "x-other", "").matches_header(&headers));
    }

    #[test]
    fn of_a_repeated_query_parameter_the_first_counts_and_encoding_is_undone() {
        let beta = named(v1::MatchType::Exact, "beta", "1");
        assert!(beta.matches_query(Some("x=2&beta=1&beta=2")));
        assert!(beta.matches_query(Some("b%65ta=%31")));
        assert!(!beta.matches_query(Some("beta=2&beta=1")));
        assert!(!beta.matches_query(None));
        assert!(named(v1::MatchType::Exact, "q", "a b").matches_query(Some("q=a+b")));
        assert!(named(v1::MatchType::Exact, "q", "100%").matches_query(Some("q=100%")));
        assert!(named(v1::MatchType::Exact, "q", "").matches_query(Some("q")));
        assert!(named(v1::MatchType::Absent, "q", "").matches_query(Some("&&")));
    }
}
