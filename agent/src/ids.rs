//! The ids by which a request is found again in logs and traces: `x-request-id`, and `traceparent` (W3C Trace Context). What the caller
//! gave is passed on as it is; what is missing is made here, once for all tries of a request.
//!
//! A trace that begins here is not marked as sampled: the agent records no spans, and leaves the decision to who does (the
//! recommendation's section 3.2.2.5). A `traceparent` that cannot be read is replaced, and its `tracestate` goes with it (section 4.3).

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use rand::Rng;

use crate::message::Facts;

/// Names the request, in the form of a random UUID.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// `xxxxxxxx-xxxx-4xxx-Vxxx-xxxxxxxxxxxx`.
const ID: usize = 36;
/// `00-(32 digits)-(16 digits)-00`.
const TRACE: usize = 55;
/// Room for both ids, and for what is said of tries and of the time that is left.
const FIELDS: usize = 5;

/// Makes the ids that the request has not.
pub fn complete(headers: &mut HeaderMap, facts: &Facts, rng: &mut impl Rng) {
    if facts.request_id && facts.trace {
        return;
    }
    headers.reserve(FIELDS);
    // Both values in one piece of memory.
    let both = Bytes::from_owner(both(rng));
    let value = |bytes: Bytes| HeaderValue::from_maybe_shared(bytes).ok();
    if !facts.request_id
        && let Some(id) = value(both.slice(..ID))
    {
        headers.insert(REQUEST_ID, id);
    }
    if !facts.trace
        && let Some(trace) = value(both.slice(ID..))
    {
        headers.insert(TRACEPARENT, trace);
        headers.remove(TRACESTATE);
    }
}

fn both(rng: &mut impl Rng) -> [u8; ID + TRACE] {
    let mut text = *b"00000000-0000-4000-8000-00000000000000-00000000000000000000000000000000-0000000000000000-00";
    let mut id = rng.random::<u128>().to_be_bytes();
    let (mut trace, mut span) = (rng.random::<u128>().to_be_bytes(), rng.random::<u64>().to_be_bytes());
    // Version 4, variant 1 (RFC 9562 section 5.4): what is left is random.
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    // No id is all zeros; so is next to no random one.
    trace[15] |= 1;
    span[7] |= 1;
    for (at, part) in [(0, 0..4), (9, 4..6), (14, 6..8), (19, 8..10), (24, 10..16)] {
        hexadecimal(&mut text[at..], &id[part]);
    }
    hexadecimal(&mut text[ID + 3..], &trace);
    hexadecimal(&mut text[ID + 36..], &span);
    text
}

/// Two digits for each byte.
fn hexadecimal(into: &mut [u8], bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (digits, byte) in into.chunks_exact_mut(2).zip(bytes) {
        digits.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 0xf)]]);
    }
}

/// Whether a `traceparent` can be read: of this version of the recommendation, or of a later one by its rules.
pub fn is_traceparent(value: &[u8]) -> bool {
    let digits = |from: usize, to: usize| {
        let part = value.get(from..to)?;
        part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')).then_some(part)
    };
    let dash = |at: usize| value.get(at) == Some(&b'-');
    let is_id = |part: Option<&[u8]>| part.is_some_and(|part| part.iter().any(|b| *b != b'0'));
    let version = digits(0, 2);
    let length_fits = if version == Some(b"00") { value.len() == TRACE } else { value.len() == TRACE || dash(TRACE) };
    version.is_some_and(|version| version != b"ff")
        && length_fits
        && dash(2)
        && is_id(digits(3, 35))
        && dash(35)
        && is_id(digits(36, 52))
        && dash(52)
        && digits(53, 55).is_some()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    fn completed(facts: Facts, mut headers: HeaderMap, seed: u64) -> HeaderMap {
        complete(&mut headers, &facts, &mut SmallRng::seed_from_u64(seed));
        headers
    }

    #[test]
    fn what_is_missing_is_made_and_is_well_formed_and_new_each_time() {
        let mut seen = std::collections::HashSet::new();
        for seed in 0..200 {
            let headers = completed(Facts::default(), HeaderMap::new(), seed);
            let (id, trace) = (headers[&REQUEST_ID].to_str().unwrap(), headers[&TRACEPARENT].to_str().unwrap());
            let groups: Vec<usize> = id.split('-').map(str::len).collect();
            assert_eq!(groups, [8, 4, 4, 4, 12], "{id}");
            assert!(id.as_bytes()[14] == b'4' && b"89ab".contains(&id.as_bytes()[19]), "{id}");
            assert!(id.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit()), "{id}");
            assert!(is_traceparent(trace.as_bytes()) && trace.starts_with("00-") && trace.ends_with("-00"), "{trace}");
            assert!(seen.insert(id.to_owned()) && seen.insert(trace.to_owned()));
        }
    }

    #[test]
    fn what_is_there_is_left_as_it_is() {
        let mut given = HeaderMap::new();
        given.insert(REQUEST_ID, HeaderValue::from_static("mine"));
        let headers = completed(Facts { request_id: true, trace: true, ..Facts::default() }, given.clone(), 1);
        assert_eq!(headers, given);
        let headers = completed(Facts { request_id: true, ..Facts::default() }, given, 1);
        assert_eq!((headers[&REQUEST_ID].as_bytes(), headers.len()), (&b"mine"[..], 2));
        let mut odd = HeaderMap::new();
        odd.insert(TRACEPARENT, HeaderValue::from_static("00-x"));
        odd.insert(TRACESTATE, HeaderValue::from_static("a=b"));
        let headers = completed(Facts::default(), odd, 1);
        assert!(is_traceparent(headers[&TRACEPARENT].as_bytes()) && !headers.contains_key(TRACESTATE));
    }

    #[test]
    fn a_traceparent_is_read_as_the_recommendation_says() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let later = format!("01{}", &good[2..]);
        for good in [good, &later, &format!("{later}-more")] {
            assert!(is_traceparent(good.as_bytes()), "{good}");
        }
        for odd in [
            "",
            "00",
            &good[..54],
            &format!("{good}-more"),
            &format!("{later}more"),
            &good.to_uppercase(),
            &format!("ff{}", &good[2..]),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7-01",
        ] {
            assert!(!is_traceparent(odd.as_bytes()), "{odd}");
        }
    }
}
