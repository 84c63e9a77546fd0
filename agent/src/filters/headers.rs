//! Header fields that a rule sets, adds or takes away (the Gateway API's HTTPHeaderFilter).
//!
//! Set replaces whatever is there, add puts a further value beside it, remove takes all values away; names fold case.

use http::HeaderMap;
use http::header::{CONTENT_LENGTH, EXPECT, HOST, HeaderName, HeaderValue, TRAILER};
use switchyard_proto::v1;

use crate::message::is_hop_by_hop;

/// Changes of header fields.
#[derive(Debug, Default)]
pub struct Modifier {
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
}

impl Modifier {
    /// From the wire.
    ///
    /// # Errors
    /// A field that no filter may touch, or that is none.
    pub fn compile(wire: &v1::HeaderModifier) -> Result<Self, String> {
        let remove = wire.remove.iter().map(|name| self::name(name)).collect::<Result<_, _>>()?;
        Ok(Self { set: fields(&wire.set)?, add: fields(&wire.add)?, remove })
    }

    /// Makes them.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

impl std::fmt::Display for Modifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let with_value = |what: &str, (name, value): &(HeaderName, HeaderValue)| {
            format!("{what} {name}: {}", String::from_utf8_lossy(value.as_bytes()))
        };
        let set = self.set.iter().map(|field| with_value("set", field));
        let add = self.add.iter().map(|field| with_value("add", field));
        let all: Vec<_> = set.chain(add).chain(self.remove.iter().map(|name| format!("remove {name}"))).collect();
        f.write_str(&all.join(", "))
    }
}

/// Fields from the wire.
///
/// # Errors
/// One that no filter may touch, or that is none.
pub fn fields(wire: &[v1::HeaderField]) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    wire.iter().map(|field| Ok((name(&field.name)?, value(&field.value)?))).collect()
}

fn name(text: &str) -> Result<HeaderName, String> {
    let name = HeaderName::from_bytes(text.as_bytes()).map_err(|_| format!("{text:?} is no header field's name"))?;
    if [HOST, CONTENT_LENGTH, TRAILER, EXPECT].contains(&name)
        || is_hop_by_hop(&name)
        || name.as_str() == "http2-settings"
        || name.as_str().starts_with("x-switchyard-")
    {
        return Err(format!("no filter may touch the field {name}"));
    }
    Ok(name)
}

/// A field's value.
///
/// # Errors
/// It is none.
pub fn value(text: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_bytes(text.as_bytes()).map_err(|_| format!("{text:?} is no header field's value"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modifier(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> Result<Modifier, String> {
        let fields = |all: &[(&str, &str)]| {
            all.iter().map(|(name, value)| v1::HeaderField { name: (*name).into(), value: (*value).into() }).collect()
        };
        let remove = remove.iter().map(|name| (*name).to_owned()).collect();
        Modifier::compile(&v1::HeaderModifier { set: fields(set), add: fields(add), remove })
    }

    fn applied(modifier: &Modifier, before: &[(&'static str, &str)]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in before {
            headers.append(*name, value.parse().unwrap());
        }
        modifier.apply(&mut headers);
        headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect()
    }

    #[test]
    fn set_overwrites_the_request_with_the_given_header() {
        let set = modifier(&[("my-header", "bar")], &[], &[]).unwrap();
        assert_eq!(applied(&set, &[("my-header", "foo")]), ["my-header: bar"]);
        assert_eq!(applied(&set, &[("my-header", "foo"), ("my-header", "baz")]), ["my-header: bar"]);
        assert_eq!(applied(&set, &[]), ["my-header: bar"]);
    }

    #[test]
    fn add_appends_to_any_existing_values_associated_with_the_header_name() {
        let add = modifier(&[], &[("my-header", "bar,baz")], &[]).unwrap();
        assert_eq!(applied(&add, &[("my-header", "foo")]), ["my-header: foo", "my-header: bar,baz"]);
        assert_eq!(applied(&add, &[]), ["my-header: bar,baz"]);
    }

    #[test]
    fn remove_the_given_headers_from_the_request() {
        let remove = modifier(&[], &[], &["my-header1", "my-header3"]).unwrap();
        let before = [("my-header1", "foo"), ("my-header2", "bar"), ("my-header3", "baz"), ("my-header3", "more")];
        assert_eq!(applied(&remove, &before), ["my-header2: bar"]);
    }

    #[test]
    fn header_names_are_case_insensitive() {
        let all = modifier(&[("X-Set", "a")], &[("X-Add", "b")], &["X-Gone"]).unwrap();
        let after = applied(&all, &[("x-set", "old"), ("x-add", "old"), ("x-gone", "old")]);
        assert_eq!(after, ["x-set: a", "x-add: old", "x-add: b"]);
    }

    #[test]
    fn what_says_whose_and_how_long_a_message_is_cannot_be_touched() {
        for name in [
            "Host",
            "content-length",
            "Transfer-Encoding",
            "connection",
            "keep-alive",
            "proxy-connection",
            "TE",
            "upgrade",
            "trailer",
            "http2-settings",
            "expect",
            "x-switchyard-attempt",
            "a b",
            "",
        ] {
            assert!(modifier(&[(name, "x")], &[], &[]).is_err(), "set {name}");
            assert!(modifier(&[], &[(name, "x")], &[]).is_err(), "add {name}");
            assert!(modifier(&[], &[], &[name]).is_err(), "remove {name}");
        }
        assert!(modifier(&[("x-a", "a\r\nb: c")], &[], &[]).is_err());
        assert!(modifier(&[("x-a", "für")], &[], &[]).is_ok());
    }
}
