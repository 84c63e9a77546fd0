//! What a plain scalar means: as Kubernetes' own tools read it (YAML 1.1 with some of 1.2), so that a file means here
//! what it means in a cluster.

use serde_json::Number;

use super::Value;

const NULLS: [&str; 5] = ["", "~", "null", "Null", "NULL"];
const TRUE: [&str; 11] = ["y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"];
const FALSE: [&str; 11] = ["n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"];
const NO_NUMBERS: [&str; 12] =
    [".nan", ".NaN", ".NAN", ".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF", "-.inf", "-.Inf", "-.INF"];

/// The value of a scalar that is written without quotes and without a tag. An error says why it has none.
pub(super) fn plain(text: &str) -> Result<Value, String> {
    if NULLS.contains(&text) {
        return Ok(Value::Null);
    }
    if let Some(bool) = boolean(text) {
        return Ok(Value::Bool(bool));
    }
    if NO_NUMBERS.contains(&text) {
        return Err(format!("{text} is a number that JSON cannot hold"));
    }
    let numeric = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
    let number = numeric.then(|| integer(text).or_else(|| float(text))).flatten();
    Ok(number.map_or_else(|| Value::Text(text.to_owned()), Value::Number))
}

/// The boolean that a word stands for.
pub(super) fn boolean(text: &str) -> Option<bool> {
    if TRUE.contains(&text) {
        return Some(true);
    }
    FALSE.contains(&text).then_some(false)
}

fn integer(text: &str) -> Option<Number> {
    let text = text.replace('_', "");
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(&text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.get(..2) {
        Some("0x") => (16, &lower[2..]),
        Some("0o") => (8, &lower[2..]),
        Some("0b") => (2, &lower[2..]),
        Some(begin) if begin.starts_with('0') => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    // `from_str_radix` would take a sign here once more.
    if !digits.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return None;
    }
    let size = u64::from_str_radix(digits, radix).ok()?;
    if negative { Some(0i64.checked_sub_unsigned(size)?.into()) } else { Some(size.into()) }
}

fn float(text: &str) -> Option<Number> {
    let text = text.replace('_', "");
    let body = text.strip_prefix(['+', '-']).unwrap_or(&text);
    let (mantissa, exponent) = body.split_once(['e', 'E']).map_or((body, None), |(m, e)| (m, Some(e)));
    let (whole, part) = mantissa.split_once('.').map_or((mantissa, None), |(w, p)| (w, Some(p)));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    let has_digits = !whole.is_empty() || part.is_some_and(|p| !p.is_empty());
    let exponent_is_good = exponent.is_none_or(|e| {
        let e = e.strip_prefix(['+', '-']).unwrap_or(e);
        !e.is_empty() && digits(e)
    });
    if !has_digits || !digits(whole) || !part.is_none_or(digits) || !exponent_is_good {
        return None;
    }
    Number::from_f64(text.parse().ok()?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn plain_scalars_mean_what_kubectl_takes_them_for() {
        for (text, value) in [
            ("", json!(null)),
            ("~", json!(null)),
            ("null", json!(null)),
            ("true", json!(true)),
            ("no", json!(false)),
            ("on", json!(true)),
            ("y", json!(true)),
            ("yES", json!("yES")),
            ("1", json!(1)),
            ("-1", json!(-1)),
            ("+7", json!(7)),
            ("010", json!(8)),
            ("0o10", json!(8)),
            ("0x1F", json!(31)),
            ("0b11", json!(3)),
            ("1_000", json!(1000)),
            ("08", json!(8.0)),
            ("1.10", json!(1.1)),
            (".5", json!(0.5)),
            ("1e3", json!(1000.0)),
            ("1.", json!(1.0)),
            ("1.2.3", json!("1.2.3")),
            ("-", json!("-")),
            ("--1", json!("--1")),
            ("0x", json!("0x")),
            ("v1", json!("v1")),
            ("10s", json!("10s")),
            ("50%", json!("50%")),
            ("2001-01-02", json!("2001-01-02")),
            ("18446744073709551615", json!(u64::MAX)),
            ("-9223372036854775808", json!(i64::MIN)),
            ("1e999", json!("1e999")),
            ("e3", json!("e3")),
            (".", json!(".")),
            ("+", json!("+")),
        ] {
            let node = super::super::Node { value: plain(text).unwrap(), span: Default::default() };
            assert_eq!(node.to_json(), value, "{text:?}");
        }
        assert!(plain(".nan").is_err() && plain("-.inf").is_err());
    }
}
