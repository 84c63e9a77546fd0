//! The values that one thing of a request may have (its path, one header field ...), where some tests of it are to hold and others
//! are not: whether there is any, and one to show.
//!
//! Most questions are answered by trying a few likely values. What is left goes to [`product`], which is exact within its bound.

use std::borrow::Cow;
use std::rc::Rc;

use super::pattern::Pattern;
use super::product::{self, Found};
use super::work::Work;

/// One comparison.
#[derive(Clone)]
pub(super) enum Test<'a> {
    /// The same.
    Exact(Cow<'a, str>),
    /// It begins so.
    Prefix(&'a str),
    /// Of a path: this path or one below it; no slash at the end.
    Below(Cow<'a, str>),
    /// All of it.
    Pattern(Rc<Pattern>),
    /// It is there.
    Present,
    /// It is not there.
    Absent,
}

/// What can be there at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Domain {
    /// A request's path.
    Path,
    /// A method.
    Method,
    /// One of these ports.
    Port(Vec<String>),
    /// The Host field, and the name that the Service goes by.
    Host(String),
    /// Any other header field.
    Header,
    /// A cookie.
    Cookie,
    /// Anything: a query parameter, before it is encoded.
    Anything,
    /// A name of Kubernetes.
    Name,
}

/// The tests that are to hold of a value, and those that are not to.
#[derive(Clone, Default)]
pub(super) struct Tests<'m, 'a> {
    pub(super) yes: Vec<&'m Test<'a>>,
    pub(super) no: Vec<&'m Test<'a>>,
    /// What to show where it will do.
    pub(super) preferred: Option<&'static str>,
}

/// The answer. A value of `None` is one that is not there.
pub(super) enum Solved {
    /// Such a request can come, and can be shown.
    Value(Option<Vec<u8>>),
    /// There is none.
    Empty,
    /// It could not be told within the bounds, or whether a request with it gets as far as the rules; or such a request cannot be
    /// shown, since only bytes that are no text will do.
    Unclear,
}

/// Ends that are tried for a value of which only the beginning is known.
const ENDS: [&str; 6] = ["", "1", "a", "/", "/a", "/1"];

/// Further ones, numbered.
const MORE_ENDS: usize = 80;

/// Methods to show, the plainest first.
const METHODS: [&str; 8] = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE"];

impl Test<'_> {
    /// Whether it holds of a value.
    pub(super) fn holds(&self, value: Option<&[u8]>) -> bool {
        let Some(value) = value else { return matches!(self, Self::Absent) };
        match self {
            Self::Exact(text) => text.as_bytes() == value,
            Self::Prefix(text) => value.starts_with(text.as_bytes()),
            Self::Below(text) => {
                value.strip_prefix(text.as_bytes()).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
            }
            Self::Pattern(pattern) => pattern.matches(value),
            Self::Present => true,
            Self::Absent => false,
        }
    }

    /// What the comparison with a value costs, in steps.
    pub(super) fn cost(&self, value: Option<&[u8]>) -> u64 {
        match (self, value) {
            (Self::Pattern(pattern), Some(value)) => pattern.cost(value),
            _ => 1,
        }
    }

    /// How every value begins for which it holds, and whether that is all of the value.
    pub(super) fn beginning(&self) -> Option<(&[u8], bool)> {
        match self {
            Self::Exact(text) => Some((text.as_bytes(), true)),
            Self::Prefix(text) => Some((text.as_bytes(), false)),
            Self::Below(text) => Some((text.as_bytes(), false)),
            Self::Pattern(pattern) => Some((&pattern.prefix, false)),
            Self::Present | Self::Absent => None,
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b)) => a == b,
            (Self::Prefix(a), Self::Prefix(b)) => a == b,
            (Self::Below(a), Self::Below(b)) => a == b,
            (Self::Pattern(a), Self::Pattern(b)) => a == b,
            (Self::Present, Self::Present) | (Self::Absent, Self::Absent) => true,
            _ => false,
        }
    }

    /// Whether no value can pass both, as far as their beginnings tell.
    pub(super) fn is_apart_from(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Absent, Self::Absent) => false,
            (Self::Absent, _) | (_, Self::Absent) => true,
            (Self::Exact(a), Self::Exact(b)) => a != b,
            (Self::Below(a), Self::Below(_)) => {
                !other.holds(Some(a.as_bytes())) && other.beginning().is_none_or(|(b, _)| !self.holds(Some(b)))
            }
            _ => match (self.beginning(), other.beginning()) {
                (Some((a, a_whole)), Some((b, b_whole))) => {
                    let shared = a.len().min(b.len());
                    a[..shared] != b[..shared] || (a_whole && a.len() < b.len()) || (b_whole && b.len() < a.len())
                }
                _ => false,
            },
        }
    }

    /// Whether every value that passes the other passes this one, as far as their beginnings tell.
    fn takes_in(&self, other: &Self) -> bool {
        if self.is_same(other) {
            return true;
        }
        let Some((theirs, _)) = other.beginning() else { return false };
        match (self, other) {
            (Self::Present, _) => true,
            (Self::Prefix(text), _) => theirs.starts_with(text.as_bytes()),
            (Self::Below(_), Self::Below(_)) => self.holds(Some(theirs)),
            (Self::Below(text), _) => theirs.strip_prefix(text.as_bytes()).is_some_and(|rest| rest.starts_with(b"/")),
            _ => false,
        }
    }
}

impl Domain {
    /// Whether a request need not have it.
    fn may_be_absent(&self) -> bool {
        !matches!(self, Self::Path | Self::Method | Self::Port(_) | Self::Host(_))
    }

    /// What a request has of which nothing is asked.
    pub(super) fn default_value(&self) -> Option<&[u8]> {
        match self {
            Self::Path => Some(b"/"),
            Self::Method => Some(b"GET"),
            Self::Port(ports) => Some(ports.first().map_or(b"80", |port| port.as_bytes())),
            Self::Host(name) => Some(name.as_bytes()),
            _ => None,
        }
    }

    /// Whether a request with this value gets as far as the rules for certain and can be shown; with `loosely`, whether that it
    /// gets there cannot be excluded.
    pub(super) fn has(&self, value: &[u8], loosely: bool) -> bool {
        let inside = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
        // Bytes that are no text may come in a field, but nobody could be shown them.
        let is_shown = |value: &[u8]| loosely || std::str::from_utf8(value).is_ok();
        let is_field = |value: &[u8]| {
            let ends = [value.first(), value.last()];
            value.iter().all(inside)
                && !ends.into_iter().flatten().any(|byte| matches!(byte, b' ' | b'\t'))
                && is_shown(value)
        };
        match self {
            Self::Path if loosely => {
                let odd = |byte: &u8| *byte <= b' ' || matches!(byte, b'?' | b'#');
                let is_text = std::str::from_utf8(value).is_ok();
                value == b"*" || (value.first() == Some(&b'/') && !value.iter().any(odd) && is_text)
            }
            Self::Path => is_plain_path(value),
            Self::Method => {
                let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
                !value.is_empty() && value.iter().all(token) && value != b"CONNECT"
            }
            Self::Port(ports) => ports.iter().any(|port| port.as_bytes() == value),
            Self::Host(_) if !loosely => {
                let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-.".contains(byte);
                !value.is_empty() && value.iter().all(plain)
            }
            Self::Host(_) | Self::Header => is_field(value),
            Self::Cookie => is_field(value) && !value.contains(&b';'),
            Self::Anything => true,
            Self::Name => !value.is_empty(),
        }
    }

    /// The same as a regular expression, for where it is not finite.
    pub(super) fn expression(&self, loosely: bool) -> &'static str {
        match self {
            Self::Path if loosely => r"\*|/[^\x00-\x20?#]*",
            Self::Path => PLAIN_PATH,
            Self::Method => "[!#$%&'*+.^_`|~0-9A-Za-z-]+",
            Self::Host(_) if !loosely => "[0-9A-Za-z.-]+",
            Self::Header if !loosely => r"(?:[^\x00-\x20\x7F](?:[^\x00-\x08\x0A-\x1F\x7F]*[^\x00-\x20\x7F])?)?",
            Self::Cookie if !loosely => r"(?:[^\x00-\x20;\x7F](?:[^\x00-\x08\x0A-\x1F;\x7F]*[^\x00-\x20;\x7F])?)?",
            Self::Host(_) | Self::Header => {
                r"(?-u:(?:[\x21-\x7E\x80-\xFF](?:[\t\x20-\x7E\x80-\xFF]*[\x21-\x7E\x80-\xFF])?)?)"
            }
            Self::Cookie => {
                r"(?-u:(?:[\x21-\x3A\x3C-\x7E\x80-\xFF](?:[\t\x20-\x3A\x3C-\x7E\x80-\xFF]*[\x21-\x3A\x3C-\x7E\x80-\xFF])?)?)"
            }
            Self::Port(_) | Self::Anything => r"(?s-u:.*)",
            Self::Name => r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?",
        }
    }

    /// Values to try where nothing better is known, the plainest first.
    fn samples(&self) -> Vec<&str> {
        match self {
            Self::Path => vec!["/", "/a"],
            Self::Method => METHODS.to_vec(),
            Self::Port(ports) => ports.iter().map(String::as_str).collect(),
            Self::Host(name) => vec![name.as_str()],
            Self::Header | Self::Cookie | Self::Anything => vec!["1", "a"],
            Self::Name => vec!["a", "other"],
        }
    }
}

macro_rules! letter {
    () => {
        r"[A-Za-z0-9_~!$&'()*+,;=:@-]|%(?:2[0-9A-CF]|3[A-F]|40|5[B-E]|60|7[BCDF]|0[1-9A-F]|1[0-9A-F]|[89A-F][0-9A-F])"
    };
}

macro_rules! segment {
    () => {
        concat!("(?:(?:", letter!(), r")|\.(?:", letter!(), r")|\.\.(?:\.|", letter!(), r"))(?:\.|", letter!(), ")*")
    };
}

/// A path in its normal form: no empty segments, no `.` and `..`, nothing percent-encoded that need not be, digits in upper case.
const PLAIN_PATH: &str = concat!("(?-u)/(?:", segment!(), "(?:/", segment!(), ")*/?)?");

/// Whether it is one.
fn is_plain_path(path: &[u8]) -> bool {
    let Some(rest) = path.strip_prefix(b"/") else { return false };
    let rest = rest.strip_suffix(b"/").unwrap_or(rest);
    if rest.is_empty() {
        return path.len() == 1;
    }
    rest.split(|byte| *byte == b'/')
        .all(|segment| !segment.is_empty() && segment != b"." && segment != b".." && is_plain(segment))
}

fn is_plain(mut segment: &[u8]) -> bool {
    while let Some((byte, rest)) = segment.split_first() {
        segment = match (byte, rest) {
            (b'%', [high, low, rest @ ..]) if is_kept_encoded(*high, *low) => rest,
            (byte, rest) if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(byte) => rest,
            _ => return false,
        };
    }
    true
}

/// Whether these two digits after a percent sign stay as they are: for all but unreserved characters and NUL.
fn is_kept_encoded(high: u8, low: u8) -> bool {
    let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'A'..=b'F').then(|| char::from(byte).to_digit(16)).flatten();
    let Some((high, low)) = digit(high).zip(digit(low)) else { return false };
    let byte = u8::try_from(high * 16 + low).unwrap_or_default();
    byte != 0 && !byte.is_ascii_alphanumeric() && !b"-._~".contains(&byte)
}

impl<'a> Tests<'_, 'a> {
    /// A value of which all that is so, if there is one.
    pub(super) fn solve(&self, domain: &Domain, work: &Work) -> Solved {
        work.spend(1 + (self.yes.len() + self.no.len()) as u64);
        let is_absent = |test: &&&Test<'a>| matches!(test, Test::Absent);
        let must_be_there = !domain.may_be_absent()
            || self.yes.iter().any(|test| !is_absent(&test))
            || self.no.iter().any(|test| is_absent(&test));
        let must_not =
            self.yes.iter().any(|test| is_absent(&test)) || self.no.iter().any(|test| matches!(test, Test::Present));
        match (must_be_there, must_not) {
            (true, true) => return Solved::Empty,
            (false, true) => return Solved::Value(None),
            (false, false) if self.preferred.is_none() => return Solved::Value(None),
            _ => {}
        }
        if self.is_clearly_empty() {
            return Solved::Empty;
        }
        let exact = self.yes.iter().find_map(|test| match test {
            Test::Exact(text) => Some(text.as_bytes()),
            _ => None,
        });
        if let Some(value) = exact {
            return match self.hold(value) {
                true if domain.has(value, false) => Solved::Value(Some(value.to_vec())),
                true if domain.has(value, true) => Solved::Unclear,
                _ => Solved::Empty,
            };
        }
        if let Some(value) = self.likely(domain, work) {
            return Solved::Value(Some(value));
        }
        match domain {
            Domain::Port(_) => Solved::Empty,
            _ => self.search(domain, work),
        }
    }

    fn search(&self, domain: &Domain, work: &Work) -> Solved {
        match product::find(self, domain, false, work) {
            Found::Value(value) => Solved::Value(Some(value)),
            Found::Unclear => Solved::Unclear,
            Found::Nothing if domain.expression(true) == domain.expression(false) => Solved::Empty,
            Found::Nothing => match product::find(self, domain, true, work) {
                Found::Nothing => Solved::Empty,
                _ => Solved::Unclear,
            },
        }
    }

    /// Whether all tests come out as they are to.
    fn hold(&self, value: &[u8]) -> bool {
        self.yes.iter().all(|test| test.holds(Some(value))) && !self.no.iter().any(|test| test.holds(Some(value)))
    }

    fn is_clearly_empty(&self) -> bool {
        let pairs = self.yes.iter().enumerate();
        pairs.clone().any(|(i, a)| self.yes[..i].iter().any(|b| a.is_apart_from(b)))
            || self.no.iter().any(|no| self.yes.iter().any(|yes| no.takes_in(yes)))
    }

    /// A value that will do, among those that suggest themselves.
    fn likely(&self, domain: &Domain, work: &Work) -> Option<Vec<u8>> {
        let fits = |value: &[u8]| {
            if !domain.has(value, false) {
                return None;
            }
            work.spend(self.yes.iter().chain(&self.no).map(|test| test.cost(Some(value))).sum());
            self.hold(value).then(|| value.to_vec())
        };
        let given = self.preferred.into_iter().chain(domain.samples());
        if let Some(value) = given.map(str::as_bytes).find_map(fits) {
            return Some(value);
        }
        if matches!(domain, Domain::Port(_)) {
            return None;
        }
        let samples = self.yes.iter().filter_map(|test| match test {
            Test::Pattern(pattern) => pattern.sample.as_deref(),
            _ => None,
        });
        if let Some(value) = samples.clone().find_map(fits) {
            return Some(value);
        }
        // Expressions that look for something inside of a value often hold of two of them in a row.
        let pairs = samples.clone().flat_map(|one| samples.clone().map(move |other| [one, other].concat()));
        if let Some(value) = pairs.take(MORE_ENDS).find_map(|value| fits(&value)) {
            return Some(value);
        }
        let beginnings = self.yes.iter().filter_map(|test| test.beginning());
        let start = beginnings.map(|(text, _)| text).max_by_key(|text| text.len()).unwrap_or_default();
        let start = match domain {
            Domain::Path if start.is_empty() => b"/",
            _ => start,
        };
        let mut value = start.to_vec();
        let mut with = |end: &str| {
            value.truncate(start.len());
            value.extend_from_slice(end.as_bytes());
            fits(&value)
        };
        if let Some(value) = ENDS.iter().find_map(|end| with(end)) {
            return Some(value);
        }
        // What a pattern asks for is seldom met by chance.
        if self.yes.iter().any(|test| matches!(test, Test::Pattern(_))) {
            return None;
        }
        (0..(self.no.len() + 2).min(MORE_ENDS)).find_map(|n| with(&format!("x{n}")).or_else(|| with(&format!("/x{n}"))))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_can_be_there_is_the_same_as_an_expression(
            value in prop_oneof!["/[/.%0-9A-Fa~;é]{0,8}", "/(%[0-9A-F]{2}|/|\\.|a){0,4}", "[ \\ta;\"\\*\\x7f]{0,5}"],
            loosely in any::<bool>(),
        ) {
            for domain in [Domain::Path, Domain::Header, Domain::Cookie, Domain::Host(String::new()), Domain::Anything] {
                let expression = Pattern::new(domain.expression(loosely)).unwrap();
                let has = domain.has(value.as_bytes(), loosely);
                prop_assert_eq!(has, expression.matches(value.as_bytes()), "{:?} {:?}", domain, value);
            }
        }
    }
}
