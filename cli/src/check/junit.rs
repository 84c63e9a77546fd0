//! Findings as a JUnit report, which build servers read: a test case for each object, that fails with what is wrong with it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use switchyard_crds::Finding;

use super::{Report, fails};

/// The report. What a run would not fail for is told without a failure.
pub(super) fn write(report: &Report, strict: bool) -> String {
    // By file, then by object; what is about no object is about its file.
    let mut cases: BTreeMap<(String, String), Vec<&Finding>> = BTreeMap::new();
    for (object, place) in &report.objects {
        cases.entry((place.file.display().to_string(), object.to_string())).or_default();
    }
    for finding in &report.findings {
        let file = finding.place.as_ref().map(|place| place.file.display().to_string()).unwrap_or_default();
        let object = finding.object.to_string();
        let case = if object.is_empty() { (file.clone(), file) } else { (file, object) };
        cases.entry(case).or_default().push(finding);
    }
    let failed = |findings: &[&Finding]| findings.iter().any(|finding| fails(std::slice::from_ref(*finding), strict));
    let failures = cases.values().filter(|findings| failed(findings)).count();
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let tests = cases.len();
    let _ = writeln!(out, "<testsuites tests=\"{tests}\" failures=\"{failures}\">");
    let _ =
        writeln!(out, "  <testsuite name=\"switchyard check\" tests=\"{tests}\" failures=\"{failures}\" errors=\"0\">");
    for ((file, name), findings) in &cases {
        let _ = write!(out, "    <testcase classname=\"{}\" name=\"{}\"", escaped(file), escaped(name));
        let told: Vec<String> = findings.iter().map(|finding| told(finding)).collect();
        match findings.first() {
            None => out.push_str("/>\n"),
            Some(first) if failed(findings) => {
                let reason = format!("{:?}", first.reason);
                let (message, text) = (escaped(&first.message), escaped(&told.join("\n")));
                let _ = writeln!(
                    out,
                    ">\n      <failure type=\"{reason}\" message=\"{message}\">{text}</failure>\n    </testcase>"
                );
            }
            Some(_) => {
                let _ =
                    writeln!(out, ">\n      <system-out>{}</system-out>\n    </testcase>", escaped(&told.join("\n")));
            }
        }
    }
    if let Some(changes) = &report.changes {
        let told: Vec<String> = changes.iter().map(|change| format!("{}: {}", change.object, change.told())).collect();
        let _ = writeln!(out, "    <system-out>{}</system-out>", escaped(&told.join("\n")));
    }
    out.push_str("  </testsuite>\n</testsuites>\n");
    out
}

/// `a.yaml:3:5: warning[Shadowed]: spec.matches[0]: no request reaches this rule`
fn told(finding: &Finding) -> String {
    let place = finding
        .place
        .as_ref()
        .map_or_else(String::new, |place| format!("{}:{}:{}: ", place.file.display(), place.line, place.column));
    let severity = format!("{:?}", finding.severity).to_lowercase();
    let field = if finding.field.is_empty() { String::new() } else { format!("{}: ", finding.field) };
    format!("{place}{severity}[{:?}]: {field}{}", finding.reason, finding.message)
}

/// As it stands in XML, also inside of quotes; what XML cannot hold is left out.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(letter),
            '\u{fffe}' | '\u{ffff}' => {}
            letter if letter.is_control() => {}
            letter => out.push(letter),
        }
    }
    out
}
