//! Comparing one value with what a rule asks of it.
//!
//! Paths: a prefix is whole segments, and a slash at its end means nothing. Header fields: names fold case (they are kept in
//! lower case), a repeated field is joined with `,` as RFC 9110 section 5.3 allows. Query parameters: name and value are
//! percent-decoded and `+` is a space; of a repeated one the first counts. A regular expression must match all of it.

use std::borrow::Cow;
use std::fmt;

use http::HeaderMap;
use http::header::HeaderName;
use regex_automata::meta::Regex;
use regex_automata::util::syntax;
use switchyard_proto::v1;

/// The most memory, in bytes, that one regular expression may compile to; what validation allows fits.
const REGEX_SIZE_LIMIT: usize = 1 << 20;

/// Compares a path.
#[derive(Debug)]
pub enum PathMatcher {
    /// All of it.
    Exact(Box<str>),
    /// Its first segments; with no slash at the end.
    Prefix(Box<str>),
    /// By a regular expression; kept as text too, for showing.
    Pattern(Box<str>, Regex),
}

/// Compares the value of something that has a name.
#[derive(Debug)]
pub struct NamedMatcher {
    name: Box<str>,
    header: Option<HeaderName>,
    value: ValueMatcher,
}

#[derive(Debug)]
enum ValueMatcher {
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Pattern(Box<str>, Regex),
    Present,
    Absent,
}

/// A regular expression that matches the whole of a value.
fn compile_regex(pattern: &str) -> Result<Regex, String> {
    Regex::builder()
        // Values are bytes: not every header field is UTF-8.
        .syntax(syntax::Config::new().utf8(false))
        .configure(Regex::config().utf8_empty(false).nfa_size_limit(Some(REGEX_SIZE_LIMIT)))
        .build(&format!(r"\A(?:{pattern})\z"))
        .map_err(|error| format!("{pattern:?} is not a regular expression that can be used: {error}"))
}

impl PathMatcher {
    /// From the wire.
    ///
    /// # Errors
    /// What cannot be compiled.
    pub fn compile(wire: &v1::StringMatch) -> Result<Self, String> {
        let value = wire.value.as_str();
        match wire.r#type() {
            v1::MatchType::Exact => Ok(Self::Exact(value.into())),
            v1::MatchType::Prefix => Ok(Self::Prefix(value.trim_end_matches('/').into())),
            v1::MatchType::RegularExpression => Ok(Self::Pattern(value.into(), compile_regex(value)?)),
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
            Self::Pattern(_, regex) => regex.is_match(path),
        }
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
            Self::Pattern(pattern, _) => write!(f, "matching {pattern}"),
        }
    }
}

impl NamedMatcher {
    /// From the wire.
    ///
    /// # Errors
    /// What cannot be compiled.
    pub fn compile(wire: &v1::NamedMatch) -> Result<Self, String> {
        let matched = wire.r#match.as_ref().ok_or_else(|| format!("{:?} is compared with nothing", wire.name))?;
        let bytes = || matched.value.as_bytes().into();
        let value = match matched.r#type() {
            v1::MatchType::Exact => ValueMatcher::Exact(bytes()),
            v1::MatchType::Prefix => ValueMatcher::Prefix(bytes()),
            v1::MatchType::RegularExpression => {
                ValueMatcher::Pattern(matched.value.as_str().into(), compile_regex(&matched.value)?)
            }
            v1::MatchType::Present => ValueMatcher::Present,
            v1::MatchType::Absent => ValueMatcher::Absent,
            v1::MatchType::Unspecified => return Err(format!("{:?} is compared in an unknown way", wire.name)),
        };
        let header = HeaderName::from_bytes(wire.name.as_bytes()).ok();
        Ok(Self { name: wire.name.as_str().into(), header, value })
    }

    /// Whether the header fields are as they must be.
    pub fn matches_header(&self, headers: &HeaderMap) -> bool {
        let Some(name) = &self.header else { return matches!(self.value, ValueMatcher::Absent) };
        let mut all = headers.get_all(name).iter();
        let Some(first) = all.next() else { return self.value.matches(None) };
        let Some(second) = all.next() else { return self.value.matches(Some(first.as_bytes())) };
        let mut joined = first.as_bytes().to_vec();
        for further in std::iter::once(second).chain(all) {
            joined.push(b',');
            joined.extend_from_slice(further.as_bytes());
        }
        self.value.matches(Some(&joined))
    }

    /// Whether the query is as it must be.
    pub fn matches_query(&self, query: Option<&str>) -> bool {
        let found = query.unwrap_or_default().split('&').find_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (!pair.is_empty() && *decode(name) == *self.name.as_bytes()).then(|| decode(value))
        });
        self.value.matches(found.as_deref())
    }

    /// What must hold, for showing: `x-version = v2`.
    pub fn condition(&self) -> String {
        let name = &self.name;
        match &self.value {
            ValueMatcher::Exact(value) => format!("{name} = {}", String::from_utf8_lossy(value)),
            ValueMatcher::Prefix(value) => format!("{name} begins with {}", String::from_utf8_lossy(value)),
            ValueMatcher::Pattern(pattern, _) => format!("{name} matches {pattern}"),
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
        let name = &self.name;
        match &self.value {
            ValueMatcher::Exact(value) => write!(f, "{name} is not {}", String::from_utf8_lossy(value)),
            ValueMatcher::Prefix(value) => write!(f, "{name} does not begin with {}", String::from_utf8_lossy(value)),
            ValueMatcher::Pattern(pattern, _) => write!(f, "{name} does not match {pattern}"),
            ValueMatcher::Present => write!(f, "{name} is not there"),
            ValueMatcher::Absent => write!(f, "{name} is there"),
        }
    }
}

impl ValueMatcher {
    fn matches(&self, value: Option<&[u8]>) -> bool {
        match (self, value) {
            (Self::Absent, value) => value.is_none(),
            (_, None) => false,
            (Self::Present, _) => true,
            (Self::Exact(wanted), Some(value)) => **wanted == *value,
            (Self::Prefix(wanted), Some(value)) => value.starts_with(wanted),
            (Self::Pattern(_, regex), Some(value)) => regex.is_match(value),
        }
    }
}

/// Undoes the encoding of a form (percent signs and `+`); what is no encoding stays as it is.
fn decode(text: &str) -> Cow<'_, [u8]> {
    if !text.bytes().any(|b| b == b'%' || b == b'+') {
        return Cow::Borrowed(text.as_bytes());
    }
    let bytes = text.as_bytes();
    let hex = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16));
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let pair = (byte == b'%').then(|| hex(bytes.get(at + 1)).zip(hex(bytes.get(at + 2)))).flatten();
        match pair {
            Some((high, low)) => {
                decoded.push(u8::try_from(high * 16 + low).unwrap_or_default());
                at += 3;
            }
            None => {
                decoded.push(if byte == b'+' { b' ' } else { byte });
                at += 1;
            }
        }
    }
    Cow::Owned(decoded)
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
        NamedMatcher::compile(&v1::NamedMatch { name: name.into(), r#match: Some(matched) }).unwrap()
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
