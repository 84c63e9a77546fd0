//! The schema of the three kinds as the API server gets it, and as [`crate::shape`] walks it: there is one.
//!
//! It comes from the Rust types. What the API server would not take, or would take in a sense of its own, is settled here:
//! `null` means absent everywhere (so nothing is `nullable`), and number formats that Kubernetes does not know are written
//! as those it does. The result is kept in `crds/yaml/`, and a test holds that it is fresh.

use kube::CustomResourceExt;
use serde_json::{Value, json};

/// Writes a JSON value as YAML.
pub mod yaml;

/// The CustomResourceDefinition of a kind, as it is given to `kubectl apply`.
pub fn definition<K: CustomResourceExt>() -> Value {
    let mut definition = serde_json::to_value(K::crd()).unwrap_or_default();
    let versions = definition.pointer_mut("/spec/versions").and_then(Value::as_array_mut);
    for version in versions.into_iter().flatten() {
        if let Some(schema) = version.pointer_mut("/schema/openAPIV3Schema") {
            settle(schema);
            describe(schema);
        }
    }
    definition
}

/// The schema of a kind's objects: `spec` and `status`, without `metadata`.
pub fn of<K: CustomResourceExt>() -> Value {
    definition::<K>().pointer_mut("/spec/versions/0/schema/openAPIV3Schema").map(Value::take).unwrap_or_default()
}

/// The object as a whole is described as its spec is.
fn describe(schema: &mut Value) {
    if let (Some(text), Some(schema)) =
        (schema.pointer("/properties/spec/description").cloned(), schema.as_object_mut())
    {
        schema.insert("description".into(), text);
    }
}

fn settle(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else { return };
    fields.remove("nullable");
    if fields.get("type") == Some(&json!("integer")) && fields.get("format").is_some_and(|f| f == "uint32") {
        fields.insert("format".into(), json!("int64"));
        fields.insert("minimum".into(), json!(0));
    }
    // Lines of a doc comment are joined: where it breaks means nothing to a reader of the schema.
    if let Some(Value::String(text)) = fields.get_mut("description") {
        *text = text.split("\n\n").map(|p| p.replace('\n', " ")).collect::<Vec<_>>().join("\n\n");
    }
    for (name, value) in fields.iter_mut() {
        match name.as_str() {
            "properties" => value.as_object_mut().into_iter().flatten().for_each(|(_, schema)| settle(schema)),
            "items" | "additionalProperties" => settle(value),
            "maximum" | "minimum" | "default" => whole_numbers(value),
            _ => {}
        }
    }
}

/// Writes 2.0 as 2: to JSON they are the same, and people write the latter.
fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) => {
            if let Some(float) = number.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9e15) {
                *value = json!(float as i64);
            }
        }
        Value::Object(fields) => fields.iter_mut().for_each(|(_, value)| whole_numbers(value)),
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        _ => {}
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use crate::{CircuitPolicy, RetryPolicy, RouteRule};

    fn all() -> [(&'static str, Value); 3] {
        [
            ("routerules", definition::<RouteRule>()),
            ("circuitpolicies", definition::<CircuitPolicy>()),
            ("retrypolicies", definition::<RetryPolicy>()),
        ]
    }

    #[test]
    fn the_checked_in_yaml_is_what_the_types_say() {
        for (name, definition) in all() {
            let path = format!("{}/yaml/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
            let head =
                "# Generated from the types in crds/src; `UPDATE=1 cargo test -p switchyard-crds` writes it anew.\n";
            let fresh = format!("{head}{}", yaml::write(&definition));
            if std::env::var_os("UPDATE").is_some() {
                std::fs::write(&path, &fresh).unwrap();
            }
            let kept = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(kept == fresh, "{path} is stale: run UPDATE=1 cargo test -p switchyard-crds");
            // The chart brings the same.
            let copy = format!("{}/../charts/switchyard/files/crds/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
            if std::env::var_os("UPDATE").is_some() {
                std::fs::write(&copy, &fresh).unwrap();
            }
            let kept = std::fs::read_to_string(&copy).unwrap_or_default();
            assert!(kept == fresh, "{copy} is stale: run UPDATE=1 cargo test -p switchyard-crds");
        }
    }

    /// What an API server asks of a schema before it takes it (structural schemas, Kubernetes documentation).
    fn structural(path: &str, schema: &Value, findings: &mut Vec<String>) {
        let known = [
            "type",
            "format",
            "description",
            "properties",
            "required",
            "items",
            "additionalProperties",
            "enum",
            "pattern",
            "minimum",
            "maximum",
            "minLength",
            "maxLength",
            "minItems",
            "maxItems",
            "maxProperties",
            "default",
            "title",
            "x-kubernetes-validations",
            "x-kubernetes-int-or-string",
        ];
        for (name, _) in schema.as_object().unwrap() {
            if !known.contains(&name.as_str()) {
                findings.push(format!("{path}: {name}"));
            }
        }
        // A number or text, which has no type of its own.
        let either = schema["type"].is_null() && schema["x-kubernetes-int-or-string"] == true;
        if !either
            && !["object", "array", "string", "integer", "number", "boolean"].iter().any(|t| schema["type"] == **t)
        {
            findings.push(format!("{path}: type {}", schema["type"]));
        }
        if !matches!(schema["format"].as_str(), None | Some("int32" | "int64" | "double" | "date-time")) {
            findings.push(format!("{path}: format {}", schema["format"]));
        }
        for name in schema["required"].as_array().into_iter().flatten() {
            if schema["properties"].get(name.as_str().unwrap()).is_none() {
                findings.push(format!("{path}: requires {name}, which it lacks"));
            }
        }
        if let Some(default) = schema.get("default") {
            for finding in crate::shape::against(schema, default, path) {
                findings.push(format!("{path}: default: {}", finding.message));
            }
        }
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            structural(&format!("{path}.{name}"), inner, findings);
        }
        for inner in ["items", "additionalProperties"] {
            if let Some(inner) = schema.get(inner) {
                structural(&format!("{path}[]"), inner, findings);
            }
        }
    }

    #[test]
    fn an_api_server_can_take_the_schemas() {
        for (name, definition) in all() {
            let mut findings = Vec::new();
            structural(name, &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"], &mut findings);
            assert_eq!(findings, Vec::<String>::new());
            assert!(!yaml::write(&definition).contains("$ref"));
        }
    }

    #[test]
    fn the_defaults_of_the_documents_are_in_the_schema() {
        let circuit = of::<CircuitPolicy>();
        let retry = of::<RetryPolicy>();
        let default =
            |schema: &Value, field: &str| schema["properties"]["spec"]["properties"][field]["default"].clone();
        for (field, value) in [
            ("failureThreshold", json!(5)),
            ("successThreshold", json!(2)),
            ("timeout", json!("1m")),
            ("errorRateThreshold", json!("50%")),
            ("maxEjectionPercent", json!("50%")),
            ("correlation", json!("Enabled")),
            ("override", json!("None")),
            ("scope", json!("Instance")),
            ("backoff", json!({"multiplier": 2, "maxTimeout": "10m", "jitter": "10%"})),
        ] {
            assert_eq!(default(&circuit, field), value, "{field}");
        }
        for (field, value) in [
            ("maxRetries", json!(3)),
            ("strategy", json!("Exponential")),
            ("initialDelay", json!("1s")),
            ("jitter", json!("10%")),
            ("multiplier", json!(2)),
            ("respectRetryAfter", json!(true)),
        ] {
            assert_eq!(default(&retry, field), value, "{field}");
        }
    }
}
