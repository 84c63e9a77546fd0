//! The values that users write as text: durations, percentages, sizes. Each is a type that cannot hold nonsense, made
//! at the edge; past it no `String` means a duration.
//!
//! Each type states the pattern that the CRD's schema checks; parsing accepts exactly what the pattern accepts (held by
//! the property tests below), so the API server and every other reader agree.

use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A length of time in the Gateway API's form (GEP-2257): one to four numbers of up to five digits, each with a unit of
/// `h`, `m`, `s` or `ms`, as in `1h30m` or `250ms`. At most 99999h and a bit; zero is written `0s`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Duration {
    millis: u64,
}

impl Duration {
    /// What the schema accepts.
    pub const PATTERN: &'static str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";
    /// How many characters that can be.
    pub const LONGEST: usize = 28;
    /// How to write one, for messages.
    pub const HINT: &'static str = "a duration, such as 250ms, 10s or 1h30m";

    /// A duration of so many milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self { millis }
    }

    /// A duration of so many seconds.
    pub const fn from_secs(secs: u64) -> Self {
        Self { millis: secs * 1000 }
    }

    /// The whole length in milliseconds.
    pub const fn as_millis(self) -> u64 {
        self.millis
    }

    /// The same length for use with clocks.
    pub const fn to_std(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.millis)
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.millis == 0 {
            return f.write_str("0s");
        }
        let mut rest = self.millis;
        for (unit, size) in [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
            let count = rest / size;
            rest %= size;
            if count > 0 {
                write!(f, "{count}{unit}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for Duration {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let nonsense = || ValueError::new(text, Self::HINT);
        let (mut rest, mut millis, mut parts) = (text, 0u64, 0);
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, tail) = rest.split_at(digits);
            let unit = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
            let (unit, tail) = tail.split_at(unit);
            let size = match unit {
                "h" => 3_600_000,
                "m" => 60_000,
                "s" => 1000,
                "ms" => 1,
                _ => return Err(nonsense()),
            };
            parts += 1;
            if digits == 0 || digits > 5 || parts > 4 {
                return Err(nonsense());
            }
            millis += number.parse::<u64>().map_err(|_| nonsense())? * size;
            rest = tail;
        }
        if parts == 0 {
            return Err(nonsense());
        }
        Ok(Self { millis })
    }
}

/// A share, written as text with a percent sign: `50%`, `0.5%`. From 0% to 100%, in steps of 0.0001% (parts per
/// million), so that arithmetic with it is exact.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Percent {
    ppm: u32,
}

impl Percent {
    /// What the schema accepts.
    pub const PATTERN: &'static str = r"^(100(\.0{1,4})?|[0-9]{1,2}(\.[0-9]{1,4})?)%$";
    /// How many characters that can be.
    pub const LONGEST: usize = 9;
    /// How to write one, for messages.
    pub const HINT: &'static str = "a percentage from 0% to 100% as text, such as \"50%\" or \"0.5%\"";

    /// A share of so many whole percent; more than 100 is 100.
    pub const fn whole(percent: u32) -> Self {
        let percent = if percent > 100 { 100 } else { percent };
        Self { ppm: percent * 10_000 }
    }

    /// The share in parts per million: 1,000,000 is all.
    pub const fn ppm(self) -> u32 {
        self.ppm
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.ppm / 10_000, self.ppm % 10_000);
        if part == 0 {
            return write!(f, "{whole}%");
        }
        let part = format!("{part:04}");
        write!(f, "{whole}.{}%", part.trim_end_matches('0'))
    }
}

impl FromStr for Percent {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let nonsense = || ValueError::new(text, Self::HINT);
        let number = text.strip_suffix('%').ok_or_else(nonsense)?;
        let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |s: &str, most| (1..=most).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole, 3) || !digits(part, 4) || (whole.len() == 3 && whole != "100") {
            return Err(nonsense());
        }
        let ppm = whole.parse::<u32>().map_err(|_| nonsense())? * 10_000
            + format!("{part:0<4}").parse::<u32>().map_err(|_| nonsense())?;
        if ppm > 1_000_000 {
            return Err(nonsense());
        }
        Ok(Self { ppm })
    }
}

/// A number of bytes, written as Kubernetes writes quantities: `64Ki`, `1Mi`, `1Gi`, `500k`, or plain `65536`.
/// At most 999999999Gi.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Size {
    bytes: u64,
}

impl Size {
    /// What the schema accepts.
    pub const PATTERN: &'static str = "^[0-9]{1,9}(Ki|Mi|Gi|k|M|G)?$";
    /// How many characters that can be.
    pub const LONGEST: usize = 11;
    /// How to write one, for messages.
    pub const HINT: &'static str = "a size, such as 64Ki or 1Mi";

    /// A size of so many bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self { bytes }
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.bytes
    }
}

const UNITS: [(&str, u64); 7] =
    [("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10), ("G", 1_000_000_000), ("M", 1_000_000), ("k", 1000), ("", 1)];

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The largest unit that loses nothing; the last one always fits.
        for (unit, size) in UNITS {
            if self.bytes >= size && self.bytes.is_multiple_of(size) {
                return write!(f, "{}{unit}", self.bytes / size);
            }
        }
        write!(f, "{}", self.bytes)
    }
}

impl FromStr for Size {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let nonsense = || ValueError::new(text, Self::HINT);
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let (_, size) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(nonsense)?;
        if !(1..=9).contains(&digits) {
            return Err(nonsense());
        }
        Ok(Self { bytes: number.parse::<u64>().map_err(|_| nonsense())? * size })
    }
}

/// A length of time where the Gateway API takes a whole number of seconds, as in `600`; a [`Duration`], as in `10m`, says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seconds(pub Duration);

impl Seconds {
    /// The most that a number may say: as much as a duration can.
    const MOST: u64 = 99_999 * 3600;
}

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Text(String),
        }
        match Either::deserialize(deserializer) {
            Ok(Either::Number(seconds)) if seconds <= Self::MOST => Ok(Self(Duration::from_secs(seconds))),
            Ok(Either::Text(text)) => text.parse().map(Self).map_err(D::Error::custom),
            _ => Err(D::Error::custom(format!("not {}, or a number of seconds", Duration::HINT))),
        }
    }
}

impl JsonSchema for Seconds {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Seconds".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "pattern": Duration::PATTERN,
            "maxLength": Duration::LONGEST,
            "minimum": 0,
            "maximum": Self::MOST,
        })
    }
}

/// A text that is not what its field takes; the message says what is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {hint}")]
pub struct ValueError {
    text: String,
    hint: &'static str,
}

impl ValueError {
    pub(crate) fn new(text: &str, hint: &'static str) -> Self {
        Self { text: text.to_owned(), hint }
    }
}

/// Text on the wire, a checked value in the program: what the three types above have in common.
macro_rules! text_value {
    ($type:ident, $name:literal) => {
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(D::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $name.into()
            }

            fn inline_schema() -> bool {
                true
            }

            // The pattern bounds the length; an API server, which reckons what rules cost, sees only the number.
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "string", "pattern": Self::PATTERN, "maxLength": Self::LONGEST})
            }
        }
    };
}

text_value!(Duration, "Duration");
text_value!(Percent, "Percent");
text_value!(Size, "Size");

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use proptest::prelude::*;
    use regex_automata::meta::Regex;

    use super::*;

    #[test]
    fn the_forms_that_the_documents_use_are_read_and_written_back() {
        for text in ["0s", "250ms", "1s", "10s", "1m", "1h30m", "10m", "1h2m3s4ms"] {
            assert_eq!(text.parse::<Duration>().unwrap().to_string(), text);
        }
        for text in ["0%", "50%", "0.5%", "100%", "12.0625%", "0.0001%"] {
            assert_eq!(text.parse::<Percent>().unwrap().to_string(), text);
        }
        for text in ["0", "1", "64Ki", "1Mi", "3Gi", "500k", "1000001"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        assert_eq!("60s".parse::<Duration>().unwrap(), "1m".parse().unwrap());
    }

    #[test]
    fn seconds_are_a_number_or_a_duration() {
        let read = |text: &str| serde_json::from_str::<Seconds>(text).map(|seconds| seconds.0);
        assert_eq!(read("600").unwrap(), read("\"10m\"").unwrap());
        for wrong in ["-1", "1.5", "\"600\"", "true", "360000000"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    fn agrees<T: FromStr>(pattern: &str, text: &str) {
        let by_schema = Regex::new(pattern).unwrap().is_match(text);
        assert_eq!(text.parse::<T>().is_ok(), by_schema, "{text:?} against {pattern}");
    }

    proptest! {
        #[test]
        fn parsing_accepts_exactly_what_the_schema_accepts(text in "[0-9hmsKiMG.%k ]{0,9}|[0-9]{1,4}(\\.[0-9]{0,5})?%") {
            agrees::<Duration>(Duration::PATTERN, &text);
            agrees::<Percent>(Percent::PATTERN, &text);
            agrees::<Size>(Size::PATTERN, &text);
        }

        #[test]
        fn what_is_written_reads_back_as_the_same(millis in 0u64..359_999_999_999, ppm in 0u32..=1_000_000, bytes: u32) {
            let duration = Duration::from_millis(millis);
            if millis < 99_999 * 3_600_000 {
                prop_assert_eq!(duration.to_string().parse::<Duration>().unwrap(), duration);
            }
            let percent = Percent { ppm };
            prop_assert_eq!(percent.to_string().parse::<Percent>().unwrap(), percent);
            let size = Size::from_bytes(u64::from(bytes % 1_000_000_000));
            prop_assert_eq!(size.to_string().parse::<Size>().unwrap(), size);
        }
    }
}
