//! The values of a request that rules ask for: of a header field that is repeated, all of them joined with `,` (RFC 9110 section 5.3), those of Cookie
//! with `; ` (RFC 9113 section 8.2.3);
//! of a query parameter, the first, decoded as a form is (percent signs and `+`); of a cookie, the first (RFC 6265).
//!
//! Nothing is copied that stands in the request as it is asked for; what has to be put together is put into memory that is
//! used again.

use std::cell::RefCell;

use http::HeaderMap;
use http::header::{COOKIE, HeaderName};

/// What is kept of memory for values; a longer one gives its memory back.
const KEPT_BYTES: usize = 16 * 1024;

/// Hands out memory to put something together in. It may be asked for again meanwhile.
pub(super) fn with_buffer<B: Buffer, T>(fill: impl FnOnce(&mut B) -> T) -> T {
    let mut buffer = B::spare(Vec::pop).unwrap_or_default();
    let made = fill(&mut buffer);
    if buffer.empty() <= KEPT_BYTES {
        B::spare(|spare| spare.push(buffer));
    }
    made
}

/// Memory that is used again.
pub(super) trait Buffer: Default + Sized {
    /// Those that nobody uses now.
    fn spare<T>(with: impl FnOnce(&mut Vec<Self>) -> T) -> T;
    /// Empties it; how many bytes it can hold.
    fn empty(&mut self) -> usize;
}

macro_rules! buffer {
    ($of:ty) => {
        impl Buffer for Vec<$of> {
            fn spare<T>(with: impl FnOnce(&mut Vec<Self>) -> T) -> T {
                thread_local! { static SPARE: RefCell<Vec<Vec<$of>>> = const { RefCell::new(Vec::new()) } }
                SPARE.with_borrow_mut(with)
            }
            fn empty(&mut self) -> usize {
                self.clear();
                self.capacity() * size_of::<$of>()
            }
        }
    };
}

buffer!(u8);
buffer!(u32);

/// The value of a header field.
pub(super) fn header<T>(headers: &HeaderMap, name: &HeaderName, with: impl FnOnce(Option<&[u8]>) -> T) -> T {
    let mut all = headers.get_all(name).iter();
    let Some(first) = all.next() else { return with(None) };
    let Some(second) = all.next() else { return with(Some(first.as_bytes())) };
    let between: &[u8] = if name == COOKIE { b"; " } else { b"," };
    with_buffer(|joined: &mut Vec<u8>| {
        joined.extend_from_slice(first.as_bytes());
        for further in std::iter::once(second).chain(all) {
            joined.extend_from_slice(between);
            joined.extend_from_slice(further.as_bytes());
        }
        with(Some(joined))
    })
}

/// The value of a query parameter.
pub(super) fn parameter<T>(query: Option<&str>, name: &[u8], with: impl FnOnce(Option<&[u8]>) -> T) -> T {
    match parameters(query).find(|(found, _)| is_decoded(found, name)) {
        Some((_, value)) => decoded(value, |value| with(Some(value))),
        None => with(None),
    }
}

/// Names and values of a query, as they stand there.
pub(super) fn parameters(query: Option<&str>) -> impl Iterator<Item = (&[u8], &[u8])> {
    let pairs = query.unwrap_or_default().as_bytes().split(|b| *b == b'&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| split(pair).unwrap_or((pair, b"")))
}

/// The value of a cookie, with the quotes that may be around it.
pub fn cookie<'h>(headers: &'h HeaderMap, name: &[u8]) -> Option<&'h [u8]> {
    cookies(headers).find(|(found, _)| *found == name).map(|(_, value)| value)
}

/// Names and values of all cookies. Of several Cookie fields, which HTTP/2 allows (RFC 9113 section 8.2.3), the later ones come behind.
pub(super) fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    let pairs = headers.get_all(COOKIE).iter().flat_map(|field| field.as_bytes().split(|b| *b == b';'));
    pairs.filter_map(split).map(|(name, value)| (name.trim_ascii(), value.trim_ascii()))
}

/// What is before and after the first `=`.
fn split(pair: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = memchr::memchr(b'=', pair)?;
    Some((&pair[..at], &pair[at + 1..]))
}

/// Undoes the encoding of a form; what is no encoding stays as it is.
pub(super) fn decoded<T>(text: &[u8], with: impl FnOnce(&[u8]) -> T) -> T {
    if memchr::memchr2(b'%', b'+', text).is_none() {
        return with(text);
    }
    with_buffer(|buffer: &mut Vec<u8>| {
        buffer.extend(decode(text));
        with(buffer)
    })
}

fn is_decoded(text: &[u8], wanted: &[u8]) -> bool {
    if memchr::memchr2(b'%', b'+', text).is_none() { text == wanted } else { decode(text).eq(wanted.iter().copied()) }
}

fn decode(text: &[u8]) -> impl Iterator<Item = u8> {
    let hex = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16)).and_then(|digit| u8::try_from(digit).ok());
    let mut rest = text;
    std::iter::from_fn(move || {
        let (byte, after) = rest.split_first()?;
        rest = after;
        match byte {
            b'+' => Some(b' '),
            b'%' => match hex(after.first()).zip(hex(after.get(1))) {
                Some((high, low)) => {
                    rest = &after[2..];
                    Some(high << 4 | low)
                }
                None => Some(b'%'),
            },
            byte => Some(*byte),
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_cookie_is_found_in_any_field_and_the_first_counts() {
        let mut headers = HeaderMap::new();
        for field in ["a=1; b=2 ;c = \"3\";d", "a=9;e=x=y; =nameless", "f="] {
            headers.append(COOKIE, field.parse().unwrap());
        }
        for (name, value) in
            [("a", Some("1")), ("b", Some("2")), ("c", Some("\"3\"")), ("d", None), ("e", Some("x=y")), ("f", Some(""))]
        {
            assert_eq!(cookie(&headers, name.as_bytes()), value.map(str::as_bytes), "{name}");
        }
        assert_eq!(cookie(&headers, b"A"), None, "names do not fold case");
    }

    #[test]
    fn memory_may_be_asked_for_while_it_is_used() {
        let all = with_buffer(|outer: &mut Vec<u8>| {
            outer.push(1);
            decoded(b"a%62+", |inner| [outer, inner].concat())
        });
        assert_eq!(all, b"\x01ab ");
    }

    #[test]
    fn cookies_that_came_in_pieces_are_one_again() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, "a=1".parse().unwrap());
        headers.append(COOKIE, "b=2".parse().unwrap());
        header(&headers, &COOKIE, |value| assert_eq!(value, Some(&b"a=1; b=2"[..])));
    }
}
