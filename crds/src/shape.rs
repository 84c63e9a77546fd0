//! Checks the shape of an object against the very schema that the API server uses, and says in words for people what is
//! wrong: all of it, each with the path of its field.
//!
//! `null` counts as absent, as for the API server. A field that the schema does not know is an error: a misspelt field
//! that is dropped in silence does harm. `status` is not looked at; it is the controller's to write.

use std::sync::LazyLock;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::findings::{Finding, Reason};
use crate::{names, schema};

/// Says what a wrong value is, and what would be right.
mod words;

pub use words::{is_not, nearest};

/// Findings of one object beyond these are not shown: whoever has so many begins with the first ones.
pub const MAX_FINDINGS: usize = 100;

/// One of the three kinds: what is needed to read and check one, whichever it is.
pub trait Custom: kube::Resource<DynamicType = ()> + kube::CustomResourceExt + DeserializeOwned {
    /// The schema of its objects, `metadata` included.
    fn schema() -> &'static Value;
    /// What is wrong with an object of the right shape.
    fn validate(&self) -> Vec<Finding>;
}

macro_rules! custom {
    ($($kind:ident => $validate:path),* $(,)?) => {$(
        impl Custom for crate::$kind {
            fn schema() -> &'static Value {
                static SCHEMA: LazyLock<Value> = LazyLock::new(|| with_metadata(schema::of::<crate::$kind>()));
                &SCHEMA
            }

            fn validate(&self) -> Vec<Finding> {
                $validate(self)
            }
        }
    )*};
}

custom! {
    RouteRule => crate::validate::validate_route_rule,
    CircuitPolicy => crate::validate::validate_circuit_policy,
    RetryPolicy => crate::validate::validate_retry_policy,
}

/// Reads an object: the object, if its shape is right, and what is wrong with it. Its rules are checked too, where the
/// shape lets one. An object that comes with an error-severity finding is not to be used.
pub fn parse<K: Custom>(value: &Value) -> (Option<K>, Vec<Finding>) {
    let value = settled(value, "status");
    let mut findings = against(K::schema(), &value, "");
    findings.extend(metadata(&value));
    if findings.iter().any(Finding::is_error) {
        return (None, findings);
    }
    match serde_path_to_error::deserialize::<_, K>(without_nulls(&value)) {
        Ok(object) => {
            findings.extend(object.validate());
            (Some(object), findings)
        }
        Err(error) => {
            let path = error.path().to_string();
            let field = if path == "." { String::new() } else { path };
            findings.push(Finding::error(Reason::Invalid, field, error.into_inner().to_string()));
            (None, findings)
        }
    }
}

/// What the API server asks of every object's labels and annotations, whatever its kind: how they are spelt.
pub fn metadata(object: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    let texts = |field: &str| object["metadata"][field].as_object().into_iter().flatten();
    let mut say = |field: String, message: String| findings.push(Finding::error(Reason::Invalid, field, message));
    for (key, value) in texts("labels") {
        if let Some(fault) = names::label_key_fault(key) {
            say(format!("metadata.labels[{key}]"), format!("{key:?} {fault}"));
        } else if let Some((value, fault)) = value.as_str().and_then(|v| Some((v, names::label_value_fault(v)?))) {
            say(format!("metadata.labels[{key}]"), format!("{value:?} {fault}"));
        }
    }
    for (key, _) in texts("annotations") {
        // An annotation's key may have upper case before the slash too.
        if names::label_key_fault(&key.to_lowercase()).is_some() {
            let message = format!("{key:?} is not an annotation's key; it is spelt as a label's is");
            say(format!("metadata.annotations[{key}]"), message);
        }
    }
    findings.truncate(MAX_FINDINGS);
    findings
}

/// What is wrong with the shape of a value, by a schema. `path` is where the value stands.
pub fn against(schema: &Value, value: &Value, path: &str) -> Vec<Finding> {
    let mut walk = Walk { findings: Vec::new() };
    walk.value(schema, value, path);
    walk.findings
}

/// The path of a field inside of another: `spec` and `weight` give `spec.weight`. A name that is not a plain word, such
/// as a label's, is put in brackets.
pub fn field(path: &str, name: &str) -> String {
    let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '$');
    match (path, plain) {
        ("", true) => name.to_owned(),
        (_, true) => format!("{path}.{name}"),
        (_, false) => format!("{path}[{name}]"),
    }
}

/// The schema with what every Kubernetes object has beside.
fn with_metadata(mut schema: Value) -> Value {
    let text = json!({"type": "string"});
    let map = json!({"type": "object", "additionalProperties": text});
    let metadata = json!({
        "type": "object",
        "description": "The object's name and what else Kubernetes keeps of it.",
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "maxLength": 253, "pattern": names::SUBDOMAIN, "description": "The object's name."},
            "namespace": {"type": "string", "maxLength": 63, "pattern": names::LABEL},
            "labels": map, "annotations": map, "generateName": text, "uid": text, "resourceVersion": text,
            "selfLink": text, "generation": {"type": "integer"}, "creationTimestamp": text, "deletionTimestamp": text,
            "deletionGracePeriodSeconds": {"type": "integer"}, "finalizers": {"type": "array", "items": text},
            "ownerReferences": {"type": "array", "items": {"type": "object", "additionalProperties": {}}},
            "managedFields": {"type": "array", "items": {"type": "object", "additionalProperties": {}}},
        }
    });
    if let Some(properties) = schema["properties"].as_object_mut() {
        properties.insert("apiVersion".into(), json!({"type": "string"}));
        properties.insert("kind".into(), json!({"type": "string"}));
        properties.insert("metadata".into(), metadata);
        properties.insert("status".into(), json!({}));
    }
    if let Some(required) = schema["required"].as_array_mut() {
        required.insert(0, json!("metadata"));
    }
    schema
}

/// The value as it is read: without one of its fields (which is not looked at), and with whole numbers as such.
fn settled(value: &Value, without: &str) -> Value {
    match value {
        Value::Object(fields) => {
            fields.iter().filter(|(name, _)| *name != without).map(|(k, v)| (k.clone(), whole_numbers(v))).collect()
        }
        other => other.clone(),
    }
}

/// `80.0` and `8e1` are 80, as for the API server, which takes every whole number for an integer that JSON's readers agree about.
pub fn whole_numbers(value: &Value) -> Value {
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < MAX_SAFE_INTEGER => {
                Value::from(float as i64)
            }
            _ => value.clone(),
        },
        Value::Object(fields) => fields.iter().map(|(k, v)| (k.clone(), whole_numbers(v))).collect(),
        Value::Array(items) => items.iter().map(whole_numbers).collect(),
        other => other.clone(),
    }
}

/// Below this every whole number is a float of its own.
const MAX_SAFE_INTEGER: f64 = 9_007_199_254_740_992.0;

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), without_nulls(v)));
            Value::Object(kept.collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}

struct Walk {
    findings: Vec<Finding>,
}

impl Walk {
    fn say(&mut self, path: &str, message: String) {
        self.push(Finding::error(Reason::Invalid, path, message));
    }

    fn push(&mut self, finding: Finding) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        }
    }

    fn value(&mut self, schema: &Value, value: &Value, path: &str) {
        let int_or_string = schema["x-kubernetes-int-or-string"].as_bool().unwrap_or_default();
        let either = if value.is_string() { "string" } else { "integer" };
        let Some(wanted) = schema["type"].as_str().or(int_or_string.then_some(either)) else { return };
        match (wanted, value) {
            ("object", Value::Object(fields)) => self.object(schema, fields, path),
            ("array", Value::Array(items)) => self.array(schema, items, path),
            ("string", Value::String(text)) => self.text(schema, text, path),
            // Whole, and too large to be exact: the bounds say what is wrong with it.
            ("integer", Value::Number(number)) if number.as_f64().is_some_and(|float| float.fract() == 0.0) => {
                self.number(schema, value, path)
            }
            ("number", Value::Number(_)) => self.number(schema, value, path),
            ("boolean", Value::Bool(_)) => {}
            _ => self.say(path, words::wrong_type(schema, wanted, value)),
        }
    }

    fn object(&mut self, schema: &Value, fields: &Map<String, Value>, path: &str) {
        static NONE: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);
        let properties = schema["properties"].as_object().unwrap_or(&NONE);
        let others = schema.get("additionalProperties");
        for (name, value) in fields {
            if let Some(schema) = properties.get(name) {
                if !value.is_null() {
                    self.value(schema, value, &field(path, name));
                }
            } else if let Some(schema) = others {
                self.value(schema, value, &format!("{path}[{name}]"));
            } else {
                let known: Vec<&str> = properties.keys().map(String::as_str).collect();
                self.push(Finding::error(Reason::UnknownField, field(path, name), words::unknown_field(name, &known)));
            }
        }
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if fields.get(name).is_none_or(Value::is_null) {
                self.say(&field(path, name), words::missing(&properties[name]));
            }
        }
        if let Some(most) = schema["maxProperties"].as_u64().filter(|most| fields.len() as u64 > *most) {
            self.say(path, format!("has {} entries, at most {most} are taken", fields.len()));
        }
    }

    fn array(&mut self, schema: &Value, items: &[Value], path: &str) {
        if let Some(most) = schema["maxItems"].as_u64().filter(|most| items.len() as u64 > *most) {
            self.say(path, format!("has {} entries, at most {most} are taken", items.len()));
        }
        if let Some(least) = schema["minItems"].as_u64().filter(|least| (items.len() as u64) < *least) {
            self.say(path, format!("has {} entries, at least {least} must be given", items.len()));
        }
        for (position, item) in items.iter().enumerate() {
            self.value(&schema["items"], item, &format!("{path}[{position}]"));
        }
    }

    fn text(&mut self, schema: &Value, text: &str, path: &str) {
        if let Some(words) = schema["enum"].as_array() {
            let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
            if !words.contains(&text) {
                self.say(path, words::not_among(text, &words));
            }
            return;
        }
        let length = text.chars().count() as u64;
        if let Some(most) = schema["maxLength"].as_u64().filter(|most| length > *most) {
            return self.say(path, format!("is {length} characters long, at most {most} are taken"));
        }
        if let Some(least) = schema["minLength"].as_u64().filter(|least| length < *least) {
            return match length {
                0 => self.say(path, "is empty".to_owned()),
                _ => self.say(path, format!("is {length} characters long, at least {least} must be given")),
            };
        }
        if let Some(pattern) = schema["pattern"].as_str().filter(|pattern| !words::matches(pattern, text)) {
            self.say(path, words::not_of_pattern(text, pattern));
        }
    }

    fn number(&mut self, schema: &Value, value: &Value, path: &str) {
        let Some(number) = value.as_f64() else { return };
        if let Some(most) = schema["maximum"].as_f64().filter(|most| number > *most) {
            self.say(path, format!("{} is above {most}", words::number(value)));
        }
        if let Some(least) = schema["minimum"].as_f64().filter(|least| number < *least) {
            self.say(path, format!("{} is below {least}", words::number(value)));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests;
