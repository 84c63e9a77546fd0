//! Says what a wrong value is, and what would be right. A closed set of sentences, so that the same mistake reads the same
//! wherever it is made.

use std::sync::LazyLock;

use regex_automata::meta::Regex;
use serde_json::Value;

use crate::names;
use crate::validate::conditions;
use crate::values::{Duration, Percent, Size};

/// Names that are offered when a field is unknown and none is alike.
const MAX_OFFERED: usize = 12;

/// The patterns of the schemas, and what they mean. A test holds that none is missing.
static PATTERNS: LazyLock<Vec<(&str, &str, Option<Regex>)>> = LazyLock::new(|| {
    [
        (Duration::PATTERN, Duration::HINT),
        (Percent::PATTERN, Percent::HINT),
        (Size::PATTERN, Size::HINT),
        (names::LABEL, names::LABEL_HINT),
        (names::SUBDOMAIN, names::SUBDOMAIN_HINT),
        (names::LABEL_VALUE, names::LABEL_VALUE_HINT),
        (names::LABEL_VALUE_OR_EMPTY, names::LABEL_VALUE_OR_EMPTY_HINT),
        (names::NO_CONTROLS, names::NO_CONTROLS_HINT),
        (names::FIELD_VALUE, names::FIELD_VALUE_HINT),
        (names::TOKEN, names::TOKEN_HINT),
        (names::METHOD, names::METHOD_HINT),
        (names::GRPC_SERVICE, names::GRPC_SERVICE_HINT),
        (names::GRPC_METHOD, names::GRPC_METHOD_HINT),
        (names::METHOD_OR_ANY, names::METHOD_OR_ANY_HINT),
        (names::SENT_PATH, names::SENT_PATH_HINT),
        (names::SENT_PATH_OR_EMPTY, names::SENT_PATH_OR_EMPTY_HINT),
        (names::ORIGIN, names::ORIGIN_HINT),
        (conditions::PATTERN, conditions::HINT),
        ("^https?$", "http or https"),
        ("^.+$", "one line of text"),
        ("^(True|False|Unknown)$", "True, False or Unknown"),
    ]
    .map(|(pattern, hint)| (pattern, hint, Regex::new(pattern).ok()))
    .into()
});

/// Whether a text matches a pattern of a schema.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    match PATTERNS.iter().find(|(known, ..)| *known == pattern) {
        Some((.., Some(regex))) => regex.is_match(text),
        _ => Regex::new(pattern).is_ok_and(|regex| regex.is_match(text)),
    }
}

/// A text that does not match a pattern.
pub(super) fn not_of_pattern(text: &str, pattern: &str) -> String {
    let alike = match pattern {
        conditions::PATTERN => nearest(text, &conditions::WORDS),
        _ => None,
    };
    let meant = alike.map(|word| format!("; did you mean `{word}`?")).unwrap_or_default();
    format!("{text:?} is not {}{meant}", of_pattern(pattern))
}

/// What a pattern stands for.
fn of_pattern(pattern: &str) -> String {
    match PATTERNS.iter().find(|(known, ..)| *known == pattern) {
        Some((_, hint, _)) => (*hint).to_owned(),
        None => format!("of the form {pattern}"),
    }
}

/// A number as people write it: all its digits, as long as they can be read.
pub(super) fn number(value: &Value) -> String {
    match value.as_f64() {
        Some(float) if value.is_f64() && float.fract() == 0.0 && float.abs() < 1e30 => format!("{float:.0}"),
        _ => value.to_string(),
    }
}

/// A value that is not what it must be: `is text, must be a list`.
pub fn is_not(value: &Value, must: &str) -> String {
    let is = match value {
        Value::Null => "is empty",
        Value::Bool(_) => "is true or false",
        Value::Number(number) if number.as_f64().is_some_and(|float| float.fract() != 0.0) => {
            "is a number with a fraction"
        }
        Value::Number(_) => "is a number",
        Value::String(_) => "is text",
        Value::Array(_) => "is a list",
        Value::Object(_) => "is a mapping",
    };
    format!("{is}, must be {must}")
}

/// A value of the wrong type.
pub(super) fn wrong_type(schema: &Value, wanted: &str, value: &Value) -> String {
    let must = match wanted {
        "integer" => "a whole number".to_owned(),
        "number" => "a number".to_owned(),
        "boolean" => "true or false".to_owned(),
        "array" => "a list".to_owned(),
        "object" => "a mapping".to_owned(),
        _ => match schema["pattern"].as_str() {
            // What is spelt in one of few ways is told at once; of a name, being text is news enough.
            Some(spelt @ (Duration::PATTERN | Percent::PATTERN | Size::PATTERN | conditions::PATTERN)) => {
                of_pattern(spelt)
            }
            _ => "text".to_owned(),
        },
    };
    let how = match (wanted, value) {
        ("integer", Value::String(text)) if text.parse::<i64>().is_ok() => NO_QUOTES.to_owned(),
        ("number", Value::String(text)) if text.parse::<f64>().is_ok() => NO_QUOTES.to_owned(),
        ("boolean", Value::String(text)) if text == "true" || text == "false" => NO_QUOTES.to_owned(),
        ("string", Value::Number(_) | Value::Bool(_)) => match schema["pattern"].as_str() {
            // Quotes alone do not make a duration of a number.
            Some(Duration::PATTERN | Percent::PATTERN) => String::new(),
            _ => "; write it in quotes".to_owned(),
        },
        ("array", Value::Object(_) | Value::String(_)) => "; begin it with `- `".to_owned(),
        ("object", Value::String(text)) => {
            as_mapping(schema, text).map_or_else(String::new, |form| format!("; write it as {form}"))
        }
        _ => String::new(),
    };
    format!("{}{how}", is_not(value, &must))
}

const NO_QUOTES: &str = "; write it without quotes";

/// The mapping that whoever wrote a text meant: the text is the one field that must be given. `type` is shown with its default.
fn as_mapping(schema: &Value, text: &str) -> Option<String> {
    let [only] = schema["required"].as_array()?.as_slice() else { return None };
    let only = only.as_str().filter(|only| schema["properties"][only]["type"] == "string")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "/-_.".contains(c);
    let text = if !text.is_empty() && text.len() <= 64 && text.chars().all(plain) {
        text.to_owned()
    } else {
        "...".to_owned()
    };
    let default = schema["properties"]["type"]["default"].as_str().filter(|_| only == "value");
    let kind = default.map(|default| format!("type: {default}, ")).unwrap_or_default();
    Some(format!("{{{kind}{only}: {text}}}"))
}

/// A field that does not exist.
pub(super) fn unknown_field(name: &str, known: &[&str]) -> String {
    if name == "true" && known.contains(&"on") {
        return "no such field; to YAML a bare `on` is the value true: write \"on\", in quotes".to_owned();
    }
    if let Some(alike) = nearest(name, known) {
        return format!("no such field; did you mean `{alike}`?");
    }
    match known.len() {
        0 => "no such field; nothing is set here".to_owned(),
        1..=MAX_OFFERED => format!("no such field; there are {}", sorted(known)),
        _ => "no such field".to_owned(),
    }
}

/// A field that must be given.
pub(super) fn missing(schema: &Value) -> String {
    let description = schema["description"].as_str().unwrap_or_default();
    match description.split_terminator(['.', ';', ':']).next() {
        Some(first) if !first.is_empty() => format!("is missing: {}", lower_first(first)),
        _ => "is missing".to_owned(),
    }
}

/// A word that is not one of those taken.
pub(super) fn not_among(text: &str, words: &[&str]) -> String {
    let list = words.join(", ");
    match nearest(text, words) {
        Some(alike) => format!("{text:?} is none of {list}; did you mean `{alike}`?"),
        None => format!("{text:?} is none of {list}"),
    }
}

fn sorted(words: &[&str]) -> String {
    let mut words = words.to_vec();
    words.sort_unstable();
    words.join(", ")
}

fn lower_first(text: &str) -> String {
    let mut letters = text.chars();
    let rest_is_lower = text.chars().nth(1).is_some_and(|c| c.is_lowercase() || c == ' ');
    match letters.next() {
        Some(first) if rest_is_lower => first.to_lowercase().chain(letters).collect(),
        _ => text.to_owned(),
    }
}

/// The word that is most alike, if one is alike enough to be meant: a third of its letters may differ.
pub fn nearest<'a>(text: &str, words: &[&'a str]) -> Option<&'a str> {
    if text.len() > 64 {
        return None;
    }
    let text = text.to_lowercase();
    let mut alike: Vec<(usize, &str)> =
        words.iter().map(|word| (distance(&text, &word.to_lowercase()), *word)).collect();
    alike.sort_unstable();
    alike.first().filter(|(distance, word)| *distance <= word.chars().count().max(3) / 3).map(|(_, word)| *word)
}

/// How many letters must be put in, taken out, replaced or swapped with their neighbour to make one of the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = changed.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(before[j - 2] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Custom;
    use crate::{CircuitPolicy, RetryPolicy, RouteRule};

    #[test]
    fn a_slip_of_the_fingers_is_recognised_and_another_word_is_not() {
        let words = ["weight", "service", "version"];
        assert_eq!(nearest("wieght", &words), Some("weight"));
        assert_eq!(nearest("Weigth", &words), Some("weight"));
        assert_eq!(nearest("services", &words), Some("service"));
        assert_eq!(nearest("colour", &words), None);
        assert_eq!(distance("abc", "acb"), 1);
        assert_eq!(distance("", "abc"), 3);
    }

    #[test]
    fn every_pattern_of_the_schemas_has_words() {
        fn patterns(schema: &Value, found: &mut Vec<String>) {
            match schema {
                Value::Object(fields) => fields.iter().for_each(|(name, value)| match value {
                    Value::String(pattern) if name == "pattern" => found.push(pattern.clone()),
                    other => patterns(other, found),
                }),
                Value::Array(items) => items.iter().for_each(|item| patterns(item, found)),
                _ => {}
            }
        }
        let mut found = Vec::new();
        for schema in [RouteRule::schema(), CircuitPolicy::schema(), RetryPolicy::schema()] {
            patterns(schema, &mut found);
        }
        assert!(found.len() > 20);
        for pattern in found {
            assert!(PATTERNS.iter().any(|(known, _, regex)| *known == pattern && regex.is_some()), "{pattern}");
        }
    }
}
