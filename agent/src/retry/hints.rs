//! What agents, callers and instances say to one another of tries and of time, in header fields.
//!
//! Keeps true:
//! - A request that one agent retries says so twice: in a field of its own, and as a member of `baggage` (W3C Baggage). Applications pass on
//!   few fields that they do not know, but those that take part in tracing pass on their baggage.
//! - A deadline is never passed on longer than what is left of it, but for the last of its millisecond.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

/// Says, on every request that may be retried, which try it is; an agent that sees it does not retry by itself.
pub const ATTEMPT: HeaderName = HeaderName::from_static("x-switchyard-attempt");
const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
/// Of baggage: that an agent counts the tries. Which one it is, is said in the other field.
const MEMBER: &str = "switchyard-attempt";
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const REQUEST_TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout");

/// Says which try of its request it is.
pub fn count(headers: &mut HeaderMap, number: u32) {
    if headers.insert(ATTEMPT, attempt_number(number)).is_some() {
        return;
    }
    // Many readers look at one field of it only.
    let mine = HeaderValue::from_static("switchyard-attempt=1");
    let both = headers.get(BAGGAGE).map(|theirs| [theirs.as_bytes(), mine.as_bytes()].join(&b','));
    let both = both.map_or(Ok(mine), HeaderValue::from_maybe_shared);
    both.into_iter().for_each(|both| drop(headers.insert(BAGGAGE, both)));
}

/// Whether baggage says that an agent counts the tries.
pub fn is_counted(baggage: &HeaderValue) -> bool {
    let mut members = baggage.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii);
    members.any(|member| {
        member.strip_prefix(MEMBER.as_bytes()).is_some_and(|rest| rest.trim_ascii_start().starts_with(b"="))
    })
}

/// The number as a field's value, without an allocation.
fn attempt_number(number: u32) -> HeaderValue {
    const NUMBERS: [&str; 12] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"];
    match NUMBERS.get(number as usize) {
        Some(text) => HeaderValue::from_static(text),
        None => HeaderValue::from(number),
    }
}

/// What a reply says of sending its request again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pushback {
    /// Nothing.
    #[default]
    None,
    /// Not sooner than this.
    AtLeast(Duration),
    /// After just so long, and from there the waits grow anew.
    Exactly(Duration),
    /// Not at all.
    Never,
    /// Not at all: it was tried again below, and that is used up.
    UsedUp,
}

/// Says, on a reply that is the last of several, or for which no more retries were to be had, that its request is not to be sent again.
pub const RETRIED: HeaderName = HeaderName::from_static("x-switchyard-retried");

/// What a reply's head says of sending its request again: gRPC's own word for it (its retry design, A6) counts before `Retry-After`.
pub fn pushback(headers: &HeaderMap, grpc: bool) -> Pushback {
    if headers.contains_key(RETRIED) {
        return Pushback::UsedUp;
    }
    if grpc && let Some(value) = headers.get("grpc-retry-pushback-ms") {
        // A negative number, or what is none, is a no.
        let milliseconds = value.to_str().ok().and_then(|text| text.parse::<i32>().ok());
        let asked = milliseconds.and_then(|ms| u64::try_from(ms).ok());
        return asked.map_or(Pushback::Never, |ms| Pushback::Exactly(Duration::from_millis(ms)));
    }
    retry_after(headers).map_or(Pushback::None, Pushback::AtLeast)
}

/// What a reply's `Retry-After` (RFC 9110 section 10.2.3) asks for, where it is a number of seconds; a date is not waited for.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    // More than a number holds is longer than anybody waits.
    is_number.then(|| Duration::from_secs(text.parse().unwrap_or(u64::MAX)))
}

/// The caller's own deadline: `grpc-timeout` (gRPC over HTTP/2) or `x-request-timeout`, a duration such as `250ms` or `1.5s`.
/// The shorter one, where both are there.
pub fn callers_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    let grpc = text(GRPC_TIMEOUT.as_str()).and_then(|value| {
        let (number, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
        let number: u64 = number.parse().ok().filter(|_| number.len() <= 8)?;
        Some(match unit {
            "H" => Duration::from_secs(number * 3600),
            "M" => Duration::from_secs(number * 60),
            "S" => Duration::from_secs(number),
            "m" => Duration::from_millis(number),
            "u" => Duration::from_micros(number),
            "n" => Duration::from_nanos(number),
            _ => return None,
        })
    });
    let plain = text(REQUEST_TIMEOUT.as_str()).and_then(duration);
    match (grpc, plain) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// A duration as Gateway API writes it (GEP-2257), such as `1m30s` or `250ms`; parts with a fraction are read as well.
fn duration(mut text: &str) -> Option<Duration> {
    let mut sum = Duration::ZERO;
    loop {
        let (number, rest) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic())?);
        let (unit, rest) = rest.split_at(rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len()));
        let scale = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        sum = sum.checked_add(Duration::try_from_secs_f64(number.parse::<f64>().ok()? * scale).ok()?)?;
        if rest.is_empty() {
            return Some(sum);
        }
        text = rest;
    }
}

/// Says to the instance how long its answer is waited for. A gRPC call has a field of its own for that; where the caller gave the other
/// one, it is kept true as well.
pub fn pass_on(headers: &mut HeaderMap, grpc: bool, left: Duration) {
    let set = |headers: &mut HeaderMap, name: HeaderName, value: String| {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    };
    if grpc {
        set(headers, GRPC_TIMEOUT, grpc_timeout(left));
    }
    if !grpc || headers.contains_key(&REQUEST_TIMEOUT) {
        // Some time is left, so it is not said to be none.
        set(headers, REQUEST_TIMEOUT, format!("{}ms", left.as_millis().max(1)));
    }
}

/// Up to eight digits and a unit, as fine as that allows.
fn grpc_timeout(left: Duration) -> String {
    const MOST: u128 = 99_999_999;
    match (left.as_micros(), left.as_millis()) {
        (micros @ ..=MOST, _) => format!("{}u", micros.max(1)),
        (_, millis @ ..=MOST) => format!("{millis}m"),
        _ => format!("{}S", u128::from(left.as_secs()).min(MOST)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn with(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        headers
    }

    #[test]
    fn a_request_is_marked_once_whatever_baggage_it_has() {
        for (theirs, whole) in [("", "switchyard-attempt=1"), ("user=7;p, b=2", "user=7;p, b=2,switchyard-attempt=1")] {
            let mut headers = if theirs.is_empty() { HeaderMap::new() } else { with("baggage", theirs) };
            for number in 1..4 {
                count(&mut headers, number);
                let said = (headers[BAGGAGE].to_str().unwrap(), headers[ATTEMPT].to_str().unwrap());
                assert_eq!(said, (whole, &*number.to_string()));
            }
            assert!(is_counted(&headers[BAGGAGE]));
        }
        let counted = |text: &str| is_counted(&text.parse().unwrap());
        assert!(counted("a=b , switchyard-attempt = 1;p=2") && counted("switchyard-attempt=2"));
        assert!(
            !counted("my-switchyard-attempt=1")
                && !counted("switchyard-attempts=1")
                && !counted("a=switchyard-attempt")
        );
    }

    #[test]
    fn a_reply_may_say_when_to_ask_again_or_never() {
        let of = |name: &'static str, value: &str, grpc| pushback(&with(name, value), grpc);
        assert_eq!(of("grpc-retry-pushback-ms", "250", true), Pushback::Exactly(Duration::from_millis(250)));
        for no in ["-1", "", "soon", "1.5", "99999999999"] {
            assert_eq!(of("grpc-retry-pushback-ms", no, true), Pushback::Never, "{no}");
        }
        assert_eq!(of("grpc-retry-pushback-ms", "250", false), Pushback::None, "it is gRPC's");
        assert_eq!(of("retry-after", "2", true), Pushback::AtLeast(Duration::from_secs(2)));
        assert_eq!(of("x-switchyard-retried", "budget", false), Pushback::UsedUp);
    }

    #[test]
    fn retry_after_is_a_number_of_seconds_however_large() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(http::header::RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(of("7"), Some(Duration::from_secs(7)));
        assert_eq!(of("99999999999999999999999"), Some(Duration::from_secs(u64::MAX)));
        for other in ["", "-1", "+1", "1.5", "soon", "Wed, 21 Oct 2026 07:28:00 GMT"] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn what_is_passed_on_is_read_as_what_is_left_and_never_more(micros in 1000u64..1 << 50, grpc: bool, both: bool) {
            let mut headers = HeaderMap::new();
            if both {
                headers.insert("x-request-timeout", HeaderValue::from_static("99h"));
            }
            let left = Duration::from_micros(micros).min(Duration::from_secs(99_999_999));
            pass_on(&mut headers, grpc, left);
            let read = callers_timeout(&headers).unwrap();
            let plain = both || !grpc;
            prop_assert!(read <= left + Duration::from_nanos(left.as_nanos() as u64 >> 50), "{read:?} of {left:?}");
            let coarse = if grpc && left.as_millis() > 99_999_999 { Duration::from_secs(1) } else { Duration::from_millis(1) };
            prop_assert!(left - read.min(left) <= coarse, "{read:?} of {left:?}");
            prop_assert_eq!((headers.contains_key("grpc-timeout"), headers.contains_key("x-request-timeout")), (grpc, plain));
        }
    }

    #[test]
    fn the_callers_deadline_is_read_in_both_forms() {
        let read = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            callers_timeout(&headers)
        };
        assert_eq!(read("grpc-timeout", "250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("grpc-timeout", "2S"), Some(Duration::from_secs(2)));
        assert_eq!(read("x-request-timeout", "1.5s"), Some(Duration::from_millis(1500)));
        for odd in ["", "m", "1", "123456789S", "-1S", "1x"] {
            assert_eq!(read("grpc-timeout", odd), None, "{odd}");
        }
        assert_eq!(read("x-request-timeout", "1s100ms"), Some(Duration::from_millis(1100)));
        assert_eq!(read("x-request-timeout", "0h0m1s"), Some(Duration::from_secs(1)));
        assert_eq!(read("x-request-timeout", "1h30m"), Some(Duration::from_secs(5400)));
        for odd in ["1e400s", "1100", "1s1", "s", "1s-1s", "", "1 s"] {
            assert_eq!(read("x-request-timeout", odd), None, "{odd}");
        }
    }
}
