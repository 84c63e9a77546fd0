//! Findings as SARIF 2.1.0, which code scanning services and editors read.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use switchyard_crds::findings::ObjectName;
use switchyard_crds::{Place, Reason};

use super::{Report, Severity};

/// One run with a result for each finding, and a note for each thing that a change does.
pub(super) fn write(report: &Report) -> serde_json::Result<String> {
    let mut rules: BTreeMap<String, &str> = BTreeMap::new();
    let mut results = Vec::new();
    for finding in &report.findings {
        let id = format!("{:?}", finding.reason);
        rules.insert(id.clone(), about(finding.reason));
        let level = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let mut found = result(&id, level, &finding.message, &finding.object, finding.place.as_ref());
        found["properties"] = json!({ "field": finding.field, "others": finding.others, "example": finding.example });
        results.push(found);
    }
    for change in report.changes.iter().flatten() {
        let id = format!("{:?}", change.change);
        rules.insert(id.clone(), "What the change does.");
        let mut found = result(&id, "note", &change.told(), &change.object, change.place.as_ref());
        found["properties"] = json!({ "example": change.example });
        results.push(found);
    }
    let rules: Vec<Value> =
        rules.into_iter().map(|(id, text)| json!({ "id": id, "shortDescription": { "text": text } })).collect();
    let log = json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": { "name": "switchyard check", "version": env!("CARGO_PKG_VERSION"), "rules": rules } },
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    });
    Ok(serde_json::to_string_pretty(&log)? + "\n")
}

fn result(id: &str, level: &str, message: &str, object: &ObjectName, place: Option<&Place>) -> Value {
    // Code scanning takes nothing without a file. What is gone stands in none, and is told of the whole.
    let mut location = json!({ "physicalLocation": { "artifactLocation": { "uri": "." } } });
    if let Some(place) = place {
        location["physicalLocation"]["artifactLocation"]["uri"] = uri(&place.file).into();
        if place.line > 0 {
            location["physicalLocation"]["region"] = json!({
                "startLine": place.line, "startColumn": place.column.max(1), "endColumn": place.column.max(1) + place.length.max(1),
            });
        }
    }
    let name = object.to_string();
    let text = if name.is_empty() { message.to_owned() } else { format!("{name}: {message}") };
    if !name.is_empty() {
        location["logicalLocations"] = json!([{ "fullyQualifiedName": name, "kind": "resource" }]);
    }
    json!({ "ruleId": id, "level": level, "message": { "text": text }, "locations": [location] })
}

/// A file as a reference: relative ones as they are, with what has a meaning in a URI encoded.
fn uri(file: &Path) -> String {
    let plain = file.strip_prefix("./").unwrap_or(file);
    let text = plain.display().to_string();
    let encode = |byte: u8| match byte {
        byte if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    let encoded: String = text.bytes().map(encode).collect();
    if plain.is_absolute() { format!("file://{encoded}") } else { encoded }
}

/// A reason in a sentence.
fn about(reason: Reason) -> &'static str {
    match reason {
        Reason::Syntax => "The text is not what its format asks for.",
        Reason::Unreadable => "The file could not be read.",
        Reason::Invalid => "A value that cannot be.",
        Reason::UnknownField => "A field that does not exist.",
        Reason::UnknownKind => "A kind that is not for Switchyard.",
        Reason::Duplicate => "Two objects with one name.",
        Reason::UnresolvedRef => "Something is named that does not exist.",
        Reason::Conflicted => "Two objects want the same, and only age tells them apart.",
        Reason::Shadowed => "A rule that no request can reach.",
        Reason::NotEnforced => "A field that this build accepts but does not act on yet.",
        Reason::Suspicious => "It works, and is likely a mistake.",
        Reason::NotOptedIn => "The Service is not taken into the mesh.",
    }
}
