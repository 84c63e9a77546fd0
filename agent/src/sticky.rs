//! Stickiness: which arm of a split a user belongs to. An arm is a destination; within it, the instance is chosen as for any request.
//!
//! It is weighted rendezvous hashing. Each arm has a score for the user's key, `-ln(u) / weight`, where `u` is a number between 0 and 1
//! that a hash makes of the key and the arm; the lowest score wins. So
//! - each arm wins a share of the keys that is its share of the weights;
//! - when a weight grows, keys move to that arm, only from others, and only as many as its share grows by;
//! - an arm that cannot serve leaves the order of the others as it is, so its keys go to their next best, and come back.
//!
//! Keeps true: the same key is in the same arm at every agent, on every machine, after every restart. Nothing in it is random or the
//! process's own: the hash is FNV-1a of 64 bits, finished as in SplitMix64, over the key's bytes and over the arm's name (namespace,
//! Service, port, version, labels; never its place in the rule); the logarithm is made of additions, multiplications and divisions,
//! which IEEE 754 defines to the last bit. `the_numbers_are_those_of_every_other_build` holds it.

use std::net::IpAddr;

use http::HeaderMap;
use http::header::{COOKIE, HeaderName, HeaderValue};
use rand::Rng;
use switchyard_proto::v1;

use crate::table::Destination;

/// How a rule tells users apart, and its arms.
#[derive(Debug)]
pub struct Stickiness {
    on: On,
    /// The hash of each destination's name.
    arms: Vec<u64>,
}

/// What tells users apart.
#[derive(Debug)]
enum On {
    Header(HeaderName),
    Cookie {
        name: Box<str>,
        /// What follows the value in `Set-Cookie`.
        attributes: Box<str>,
    },
    SourceIp,
}

/// A user, as the request says.
#[derive(Debug, Default)]
pub struct User {
    /// The hash of the key; none: the request has none, and goes where chance sends it.
    pub key: Option<u64>,
    /// The cookie that it is to be told.
    pub set_cookie: Option<HeaderValue>,
}

impl Stickiness {
    /// From the wire, for a rule with these destinations.
    ///
    /// # Errors
    /// Something else than this build can tell users apart by.
    pub fn compile(wire: &v1::Stickiness, destinations: &[v1::Destination]) -> Result<Self, String> {
        let on = match &wire.on {
            Some(v1::stickiness::On::Header(name)) => {
                let name = HeaderName::from_bytes(name.as_bytes());
                On::Header(name.map_err(|error| format!("what users are told apart by: {error}"))?)
            }
            Some(v1::stickiness::On::Cookie(cookie)) => {
                // A browser counts in seconds.
                let age = cookie.ttl_ms.map(|ms| format!("; Max-Age={}", ms.div_ceil(1000))).unwrap_or_default();
                HeaderValue::from_str(&cookie.name).map_err(|_| format!("{:?} is no cookie's name", cookie.name))?;
                let attributes = format!("; Path=/; HttpOnly; SameSite=Lax{age}").into();
                On::Cookie { name: cookie.name.as_str().into(), attributes }
            }
            Some(v1::stickiness::On::SourceIp(_)) => On::SourceIp,
            None => return Err("users are told apart in a way that this build does not know".to_owned()),
        };
        let mut names: Vec<String> = Vec::with_capacity(destinations.len());
        for destination in destinations {
            let name = arm_name(destination);
            // Two that are the same are two arms all the same.
            let before = names.iter().filter(|other| other.split('#').next() == Some(&name)).count();
            names.push(if before == 0 { name } else { format!("{name}#{before}") });
        }
        Ok(Self { on, arms: names.iter().map(|name| hash(name.as_bytes())).collect() })
    }

    /// Whose request it is. One that should have a cookie and has none gets one.
    pub fn user(&self, headers: &HeaderMap, caller: IpAddr, rng: &mut impl Rng) -> User {
        match &self.on {
            On::Cookie { name, attributes } => {
                if let Some(value) = cookie(headers, name) {
                    return User { key: Some(hash(value)), set_cookie: None };
                }
                let value = format!("{:032x}", rng.random::<u128>());
                let set_cookie = HeaderValue::try_from(format!("{name}={value}{attributes}")).ok();
                User { key: Some(hash(value.as_bytes())), set_cookie }
            }
            _ => User { key: self.key(headers, Some(caller)), set_cookie: None },
        }
    }

    /// The hash of the key that a request has; none: it has none, or the caller is not known.
    pub fn key(&self, headers: &HeaderMap, caller: Option<IpAddr>) -> Option<u64> {
        match &self.on {
            On::Header(name) => header(headers, name),
            On::Cookie { name, .. } => cookie(headers, name).map(hash),
            On::SourceIp => caller.and_then(|caller| self.key_of_caller(caller)),
        }
    }

    /// The same where nothing but the caller is known.
    pub fn key_of_caller(&self, caller: IpAddr) -> Option<u64> {
        matches!(self.on, On::SourceIp).then(|| match caller.to_canonical() {
            IpAddr::V4(ip) => hash(&ip.octets()),
            IpAddr::V6(ip) => hash(&ip.octets()),
        })
    }

    /// The arm that wins a key among those that may, by the weights of the rule's destinations.
    pub fn arm(&self, key: u64, destinations: &[Destination], may: impl Fn(usize) -> bool) -> Option<usize> {
        let weights = destinations.iter().enumerate();
        let weights = weights.map(|(at, destination)| if may(at) { destination.weight } else { 0 });
        winner(key, self.arms.iter().copied().zip(weights))
    }
}

impl std::fmt::Display for Stickiness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.on {
            On::Header(name) => write!(f, "header {name}"),
            On::Cookie { name, .. } => write!(f, "cookie {name}"),
            On::SourceIp => f.write_str("the caller's address"),
        }
    }
}

/// What an arm is called, whatever its place in the rule.
fn arm_name(destination: &v1::Destination) -> String {
    let v1::Destination { namespace, service, port, selector, .. } = destination;
    let version = selector.as_ref().map_or("", |selector| &selector.version);
    let mut name = format!("{namespace}/{service}:{port}/{version}");
    // In order of their names: on the wire they are a sorted map, but here that is not known.
    let mut labels: Vec<_> = selector.iter().flat_map(|selector| &selector.labels).collect();
    labels.sort();
    for (label, value) in labels {
        name.extend([",", label, "=", value]);
    }
    name
}

/// The key in a header field, of which all values count; one that is empty tells nobody apart.
fn header(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    let mut hashed = None;
    for value in headers.get_all(name).iter().map(HeaderValue::as_bytes).filter(|value| !value.is_empty()) {
        hashed = Some(fnv(hashed.map_or(OFFSET, |before| fnv(before, b",")), value));
    }
    hashed.map(finish)
}

/// A cookie's value (RFC 6265 section 5.4), of those with that name the first.
fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    let pairs = headers.get_all(COOKIE).iter().flat_map(|field| field.as_bytes().split(|b| *b == b';'));
    let mut values = pairs.filter_map(|pair| pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="));
    values.find(|value| !value.is_empty())
}

/// Where FNV-1a of 64 bits begins, and what it multiplies by.
const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

fn fnv(state: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(state, |state, byte| (state ^ u64::from(*byte)).wrapping_mul(PRIME))
}

/// Spreads each bit over all of them, as SplitMix64 does.
fn finish(mut state: u64) -> u64 {
    state = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ state >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ state >> 31
}

fn hash(bytes: &[u8]) -> u64 {
    finish(fnv(OFFSET, bytes))
}

/// The position of the arm with the lowest score, of those with a weight.
fn winner(key: u64, arms: impl Iterator<Item = (u64, u32)>) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (position, (arm, weight)) in arms.enumerate().filter(|(_, (_, weight))| *weight > 0) {
        let score = -ln(between_0_and_1(finish(key ^ arm))) / f64::from(weight);
        if best.is_none_or(|(_, lowest)| score < lowest) {
            best = Some((position, score));
        }
    }
    best.map(|(position, _)| position)
}

/// The first 53 bits as a fraction, never 0 or 1.
fn between_0_and_1(number: u64) -> f64 {
    const UNIT: f64 = 1.0 / (1u64 << 53) as f64;
    ((number >> 11) as f64 + 0.5) * UNIT
}

/// The natural logarithm of a number between 0 and 1, by `ln(m 2^e) = e ln 2 + 2 artanh((m - 1) / (m + 1))`. The system's own differs in
/// the last bit from one machine to the next.
fn ln(number: f64) -> f64 {
    const FRACTION: u64 = (1 << 52) - 1;
    const TERMS: i32 = 11;
    let bits = number.to_bits();
    let mut exponent = (bits >> 52) as i32 - 1023;
    let mut m = f64::from_bits(bits & FRACTION | 1.0f64.to_bits());
    if m > std::f64::consts::SQRT_2 {
        m /= 2.0;
        exponent += 1;
    }
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let series = (0..TERMS).rev().fold(0.0, |sum, term| sum * square + 2.0 / f64::from(2 * term + 1));
    f64::from(exponent) * std::f64::consts::LN_2 + s * series
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    const KEYS: u64 = 100_000;

    fn to(version: &str) -> v1::Destination {
        v1::Destination {
            namespace: "shop".into(),
            service: "cart".into(),
            selector: Some(v1::Selector { version: version.into(), ..v1::Selector::default() }),
            weight: 1,
            ..v1::Destination::default()
        }
    }

    fn by(on: v1::stickiness::On, destinations: &[v1::Destination]) -> Stickiness {
        Stickiness::compile(&v1::Stickiness { on: Some(on) }, destinations).unwrap()
    }

    fn by_header(destinations: &[v1::Destination]) -> Stickiness {
        by(v1::stickiness::On::Header("x-user".into()), destinations)
    }

    /// Which arm each of many users is in.
    fn arms(of: &[(&str, u32)]) -> Vec<String> {
        let destinations: Vec<_> = of.iter().map(|(version, _)| to(version)).collect();
        let sticky = by_header(&destinations);
        let user = |user: u64| {
            let key = hash(format!("user-{user}").as_bytes());
            let arms = sticky.arms.iter().copied().zip(of.iter().map(|(_, weight)| *weight));
            of[winner(key, arms).unwrap()].0.to_owned()
        };
        (0..KEYS).map(user).collect()
    }

    fn share(arms: &[String], of: &str) -> f64 {
        arms.iter().filter(|arm| *arm == of).count() as f64 / KEYS as f64
    }

    #[test]
    fn moving_a_weight_from_10_to_20_percent_moves_10_percent_of_the_keys_all_in_one_direction() {
        let (before, after) = (arms(&[("v2", 10), ("v1", 90)]), arms(&[("v2", 20), ("v1", 80)]));
        let moves = |from: &str, into: &str| {
            before.iter().zip(&after).filter(|(b, a)| *b == from && *a == into).count() as f64 / KEYS as f64
        };
        assert_eq!(moves("v2", "v1"), 0.0, "nobody goes the other way");
        // Five standard deviations of that many draws are half a percent.
        assert!((moves("v1", "v2") - 0.1).abs() < 0.005, "{}", moves("v1", "v2"));
        assert!((share(&before, "v2") - 0.1).abs() < 0.005 && (share(&after, "v2") - 0.2).abs() < 0.0065);
    }

    #[test]
    fn an_arm_that_goes_takes_only_its_own_keys_with_it_by_the_others_weights() {
        let all = arms(&[("a", 50), ("b", 30), ("c", 20)]);
        let without = arms(&[("a", 50), ("b", 0), ("c", 20)]);
        for (before, after) in all.iter().zip(&without) {
            assert!(before == after || before == "b", "{before} became {after}");
        }
        assert!((share(&without, "a") - 5.0 / 7.0).abs() < 0.01, "{}", share(&without, "a"));
    }

    #[test]
    fn neither_order_nor_scale_of_the_weights_changes_an_arm() {
        assert_eq!(arms(&[("a", 1), ("b", 2), ("c", 3)]), arms(&[("c", 3000), ("a", 1000), ("b", 2000)]));
    }

    #[test]
    fn two_arms_that_are_the_same_share_what_both_have() {
        let twice = arms(&[("a", 10), ("b", 20), ("a", 10)]);
        assert!((share(&twice, "a") - 0.5).abs() < 0.01, "{}", share(&twice, "a"));
    }

    #[test]
    fn the_numbers_are_those_of_every_other_build() {
        // FNV-1a's own published values, and SplitMix64's first output from seed 0.
        assert_eq!(
            (fnv(OFFSET, b""), fnv(OFFSET, b"a"), fnv(OFFSET, b"foobar")),
            (0xcbf2_9ce4_8422_2325, 0xaf63_dc4c_8601_ec8c, 0x8594_4171_f739_67e8,)
        );
        assert_eq!(finish(0x9e37_79b9_7f4a_7c15), 0xe220_a839_7b1d_cdaf);
        let names = [to("v2"), v1::Destination { port: 8080, ..to("v1") }].map(|destination| arm_name(&destination));
        assert_eq!(names, ["shop/cart:0/v2", "shop/cart:8080/v1"]);
        let of = arms(&[("v2", 20), ("v1", 80)]);
        let first: Vec<_> = (0..KEYS).filter(|user| of[*user as usize] == "v2").take(8).collect();
        assert_eq!(first, [1, 3, 6, 11, 25, 31, 33, 34], "as reckoned by another program");
    }

    #[test]
    fn labels_are_part_of_an_arms_name() {
        let selector = v1::Selector {
            version: "v1".into(),
            labels: [("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())].into(),
        };
        assert_eq!(arm_name(&v1::Destination { selector: Some(selector), ..to("") }), "shop/cart:0/v1,a=1,b=2");
    }

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    const NOBODY: Option<IpAddr> = None;

    #[test]
    fn a_header_is_the_key_with_all_its_values_and_without_one_there_is_none() {
        let sticky = by_header(&[]);
        let key = |fields: &[(&'static str, &'static str)]| sticky.key(&headers(fields), NOBODY);
        assert_eq!(key(&[("x-user", "ann")]), Some(hash(b"ann")));
        assert_eq!(key(&[("x-user", "ann"), ("x-user", "bob")]), Some(hash(b"ann,bob")));
        assert_eq!((key(&[]), key(&[("x-user", "")])), (None, None));
    }

    #[test]
    fn a_cookie_is_the_key_and_set_where_it_is_missing() {
        let cookie = |ttl_ms| v1::stickiness::On::Cookie(v1::StickyCookie { name: "arm".into(), ttl_ms });
        let sticky = by(cookie(Some(1500)), &[]);
        for with in [
            &[("cookie", "arm=abc")][..],
            &[("cookie", "a=b; arm=abc; arm=second")],
            &[("cookie", "charm=x;ARM=y;  arm=abc")],
            &[("cookie", "a=b"), ("cookie", "arm=; arm=abc")],
        ] {
            let user = sticky.user(&headers(with), [0, 0, 0, 0].into(), &mut SmallRng::seed_from_u64(1));
            assert_eq!((user.key, user.set_cookie), (Some(hash(b"abc")), None), "{with:?}");
        }
        let mut rng = SmallRng::seed_from_u64(1);
        let mut set = || {
            let user = sticky.user(&headers(&[("cookie", "a=b")]), [0, 0, 0, 0].into(), &mut rng);
            (user.key.unwrap(), user.set_cookie.unwrap().to_str().unwrap().to_owned())
        };
        let (key, text) = set();
        let (value, attributes) = text.strip_prefix("arm=").unwrap().split_once(';').unwrap();
        assert_eq!(attributes, " Path=/; HttpOnly; SameSite=Lax; Max-Age=2");
        assert_eq!((value.len(), hash(value.as_bytes())), (32, key), "the next request has the same key");
        assert_ne!(set().1, text, "each user has another one");
        let session = by(cookie(None), &[]).user(&HeaderMap::new(), [0, 0, 0, 0].into(), &mut rng);
        assert!(session.set_cookie.unwrap().to_str().unwrap().ends_with("; SameSite=Lax"));
    }

    #[test]
    fn a_callers_address_is_the_key_however_it_is_written() {
        let sticky = by(v1::stickiness::On::SourceIp(true), &[]);
        let key = |ip: &str| sticky.key(&HeaderMap::new(), Some(ip.parse().unwrap()));
        assert_eq!(key("::ffff:10.0.0.1"), key("10.0.0.1"));
        assert_ne!(key("10.0.0.1"), key("10.0.0.2"));
        assert_eq!(sticky.key(&HeaderMap::new(), NOBODY), None);
    }

    proptest! {
        #[test]
        fn the_logarithm_is_one(number: u64) {
            let number = between_0_and_1(number);
            prop_assert!(number > 0.0 && number < 1.0);
            prop_assert!((ln(number) - number.ln()).abs() <= 1e-15 * number.ln().abs().max(1e-1), "{} {}", ln(number), number.ln());
        }

        #[test]
        fn a_weight_that_grows_only_wins_keys(key: u64, weights in prop::collection::vec(0u32..100, 2..6), grown in 1u32..100) {
            let arms = |weights: &[u32]| {
                winner(key, weights.iter().enumerate().map(|(at, w)| (hash(&[at as u8]), *w)).collect::<Vec<_>>().into_iter())
            };
            let mut more = weights.clone();
            more[0] += grown;
            let (before, after) = (arms(&weights), arms(&more));
            prop_assert!(after == before || after == Some(0), "{before:?} {after:?}");
        }
    }
}
