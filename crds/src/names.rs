//! How names are spelt: the patterns that the schemas state, what they mean in words, and the rules for labels.

/// A name of one part: Services, namespaces (RFC 1123 label).
pub const LABEL: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// The same in words.
pub const LABEL_HINT: &str =
    "a name of lower-case letters, digits and `-`, that begins and ends with a letter or digit";

/// A name of one or more parts: most objects (RFC 1123 subdomain).
pub const SUBDOMAIN: &str = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
/// The same in words.
pub const SUBDOMAIN_HINT: &str =
    "a name of lower-case letters, digits, `-` and `.`, whose parts begin and end with a letter or digit";

/// A label's value that is not empty.
pub const LABEL_VALUE: &str = "^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$";
/// The same in words.
pub const LABEL_VALUE_HINT: &str =
    "a label's value: letters, digits, `-`, `_` and `.`, with a letter or digit at both ends";

/// A label's value.
pub const LABEL_VALUE_OR_EMPTY: &str = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$";
/// The same in words.
pub const LABEL_VALUE_OR_EMPTY_HINT: &str =
    "a label's value: empty, or letters, digits, `-`, `_` and `.`, with a letter or digit at both ends";

/// A label's key. How long its domain may be is a rule of its own.
pub const LABEL_KEY: &str = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$";

/// What no header field's value can have in it: control characters other than tabs.
pub const NO_CONTROLS: &str = r"^[^\x00-\x08\x0a-\x1f\x7f]*$";
/// The same in words.
pub const NO_CONTROLS_HINT: &str = "text without control characters, which no header field has";

/// What a header field's value can be: no control characters but tabs, and no white space around it (RFC 9110, section 5.5).
pub const FIELD_VALUE: &str = r"^([^\x00-\x20\x7f]([^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?)?$";
/// The same in words.
pub const FIELD_VALUE_HINT: &str = "a header field's value: no control characters, and no white space at either end";

/// The name of a header field or a cookie (RFC 9110 token).
pub const TOKEN: &str = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$";
/// The same in words.
pub const TOKEN_HINT: &str = "a name of letters, digits and !#$%&'*+.^_`|~-";

/// The full name of a gRPC service, as protobuf spells it.
pub const GRPC_SERVICE: &str = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$";
/// The same in words.
pub const GRPC_SERVICE_HINT: &str = "a gRPC service's full name, such as shop.Cart";
/// The name of a method of a gRPC service.
pub const GRPC_METHOD: &str = "^[A-Za-z_][A-Za-z0-9_]*$";
/// The same in words.
pub const GRPC_METHOD_HINT: &str = "a gRPC method's name, such as AddItem";
/// A path as it is sent (RFC 3986, section 3.3): what is no letter, digit or one of few signs is percent-encoded.
pub const SENT_PATH: &str = r"^/([-A-Za-z0-9/._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})*$";
/// The same in words.
pub const SENT_PATH_HINT: &str = "a path as it is sent: it begins with `/`, has no query, and what is no letter, digit or one of \
     -._~!$&'()*+,;=:@ is percent-encoded";

/// A path as it is sent, or none.
pub const SENT_PATH_OR_EMPTY: &str = r"^(/([-A-Za-z0-9/._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})*)?$";
/// The same in words.
pub const SENT_PATH_OR_EMPTY_HINT: &str = "empty, or a path as it is sent: it begins with `/`, has no query, and what is no letter, \
     digit or one of -._~!$&'()*+,;=:@ is percent-encoded";

/// Origins: all, those of a scheme, those below a domain, or one.
pub const ORIGIN: &str = concat!(
    r"^(\*|https?://(\*|(\*\.)?[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])",
    "(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?)$"
);
/// The same in words.
pub const ORIGIN_HINT: &str =
    "an origin, such as https://example.org, https://*.example.org:8443 or https://*; or `*` for all";

/// A method. Methods tell lower case from upper case, and all that are in use are upper case.
pub const METHOD: &str = "^[A-Z][A-Z0-9_-]*$";
/// The same in words.
pub const METHOD_HINT: &str = "a method in upper case, such as GET";

/// A method, or all of them.
pub const METHOD_OR_ANY: &str = r"^(\*|[A-Z][A-Z0-9_-]*)$";
/// The same in words.
pub const METHOD_OR_ANY_HINT: &str = "a method in upper case, such as GET; or `*` for all";

/// Header fields that no filter touches: they say whose a message is, how long it is, or are for one connection only.
pub const UNTOUCHED_FIELDS: [&str; 11] = [
    "host",
    "content-length",
    "transfer-encoding",
    "trailer",
    "te",
    "connection",
    "keep-alive",
    "proxy-connection",
    "upgrade",
    "http2-settings",
    "expect",
];
/// How the agents' own fields begin, which no filter touches either.
pub const OWN_FIELDS: &str = "x-switchyard-";

/// Whether a filter may touch a header field.
pub fn may_be_touched(field: &str) -> bool {
    let field = field.to_ascii_lowercase();
    !UNTOUCHED_FIELDS.contains(&field.as_str()) && !field.starts_with(OWN_FIELDS)
}

/// What is wrong with a label's key, if anything: an optional domain with a slash, and a name of up to 63 characters.
pub fn label_key_fault(key: &str) -> Option<&'static str> {
    let (domain, name) = key.split_once('/').map_or((None, key), |(domain, name)| (Some(domain), name));
    if !(1..=63).contains(&name.len()) || !spelt_as_value(name) {
        return Some("is not a label's key: its name has 1 to 63 letters, digits, `-`, `_` and `.`");
    }
    match domain {
        Some(domain) if domain.len() > 253 || !spelt_as_subdomain(domain) => {
            Some("is not a label's key: what stands before the slash is a domain, such as example.org")
        }
        _ => None,
    }
}

/// What is wrong with a label's value, if anything: empty, or up to 63 characters.
pub fn label_value_fault(value: &str) -> Option<&'static str> {
    let good = value.is_empty() || (value.len() <= 63 && spelt_as_value(value));
    (!good).then_some(
        "is not a label's value: up to 63 letters, digits, `-`, `_` and `.`, with a letter or digit at both ends",
    )
}

fn spelt_as_value(text: &str) -> bool {
    let ends = |c: char| c.is_ascii_alphanumeric();
    text.starts_with(ends) && text.ends_with(ends) && text.chars().all(|c| ends(c) || "-_.".contains(c))
}

fn spelt_as_subdomain(text: &str) -> bool {
    text.split('.').all(|part| {
        let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        part.starts_with(ends) && part.ends_with(ends) && part.chars().all(|c| ends(c) || c == '-')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_spelt_as_kubernetes_spells_them() {
        for key in ["app", "app.kubernetes.io/name", "a/b", "A_b.c"] {
            assert_eq!(label_key_fault(key), None, "{key}");
        }
        for key in ["", "/", "a/", "/a", "-a", "a/b/c", "Ex.org/a", "a b"] {
            assert!(label_key_fault(key).is_some(), "{key}");
        }
        assert_eq!(label_value_fault(""), None);
        assert_eq!(label_value_fault("v1.2_3-x"), None);
        assert!(label_value_fault("-v").is_some());
        assert!(label_value_fault(&"v".repeat(64)).is_some());
    }
}
