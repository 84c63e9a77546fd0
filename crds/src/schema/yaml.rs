//! Writes a JSON value as YAML, one way only: block style, keys in alphabetical order, text in double quotes unless it
//! is plainly a word. Enough for generated files; reading is elsewhere.

use serde_json::Value;

/// The value as a YAML document that ends in a line break.
pub fn write(value: &Value) -> String {
    let mut out = String::new();
    block(value, 0, &mut out);
    out
}

/// Writes a value at the beginning of a line, each line indented by so many spaces.
fn block(value: &Value, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            for (name, value) in fields {
                out.push_str(&pad);
                text(name, out);
                out.push(':');
                member(value, indent, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                out.push_str(&pad);
                out.push('-');
                entry(item, indent, out);
            }
        }
        scalar => {
            out.push_str(&pad);
            flat(scalar, out);
            out.push('\n');
        }
    }
}

fn nests(value: &Value) -> bool {
    match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

/// What stands after `key:`.
fn member(value: &Value, indent: usize, out: &mut String) {
    if nests(value) {
        out.push('\n');
        // A list stands as far in as its key, as Kubernetes' own files have it.
        block(value, if value.is_array() { indent } else { indent + 2 }, out);
    } else {
        out.push(' ');
        flat(value, out);
        out.push('\n');
    }
}

/// What stands after `-`: the first line beside it, the others below.
fn entry(value: &Value, indent: usize, out: &mut String) {
    let mut inner = String::new();
    block(value, indent + 2, &mut inner);
    out.push(' ');
    out.push_str(inner.trim_start_matches(' '));
}

fn flat(value: &Value, out: &mut String) {
    match value {
        Value::String(string) => text(string, out),
        // JSON of these is YAML of them.
        other => out.push_str(&other.to_string()),
    }
}

fn text(string: &str, out: &mut String) {
    let word = string.starts_with(|c: char| c.is_ascii_alphabetic())
        && string.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
    let means_more = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    if word && !means_more.contains(&string.to_ascii_lowercase().as_str()) {
        out.push_str(string);
    } else {
        // JSON's text is YAML's double-quoted text.
        out.push_str(&Value::from(string).to_string());
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn nested_values_are_written_in_block_style() {
        let value = json!({
            "kind": "List", "on": true, "empty": [], "none": {}, "text": "a: b", "yes": "no", "n": 2,
            "items": [{"b": [1, [2, 3]], "a": "x y"}, "plain"],
        });
        expect![[r#"
            empty: []
            items:
            - a: "x y"
              b:
              - 1
              - - 2
                - 3
            - plain
            kind: List
            "n": 2
            none: {}
            "on": true
            text: "a: b"
            "yes": "no"
        "#]]
        .assert_eq(&write(&value));
    }
}
