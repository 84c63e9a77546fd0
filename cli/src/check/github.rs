//! Findings as annotations of a pull request: lines that GitHub Actions reads from what a step writes.

use switchyard_crds::Place;

use super::{Report, Severity, title};

/// One line each; what a change does comes as notices.
pub(super) fn write(report: &Report) -> String {
    let mut out = String::new();
    for finding in &report.findings {
        let level = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let title = title(&format!("{:?}", finding.reason), &finding.object);
        out.push_str(&annotation(level, finding.place.as_ref(), &title, &finding.message));
    }
    for change in report.changes.iter().flatten() {
        let title = title(&format!("{:?}", change.change), &change.object);
        out.push_str(&annotation("notice", change.place.as_ref(), &title, &change.told()));
    }
    out.push_str(&report.summary());
    out
}

/// `::warning file=a.yaml,line=3,col=5,endColumn=9,title=Shadowed: RouteRule shop/a::no request reaches this rule`
fn annotation(level: &str, place: Option<&Place>, title: &str, message: &str) -> String {
    let mut properties = Vec::new();
    if let Some(place) = place {
        let file = place.file.strip_prefix(".").unwrap_or(&place.file);
        properties.push(format!("file={}", property(&file.display().to_string())));
        if place.line > 0 {
            let end = place.column + place.length;
            properties.push(format!("line={},col={},endColumn={end}", place.line, place.column));
        }
    }
    properties.push(format!("title={}", property(title)));
    format!("::{level} {}::{}\n", properties.join(","), data(message))
}

/// What would end the line, or begin something else, is written as GitHub decodes it.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_message_can_begin_another_command() {
        let place = Place { file: "a,b:c.yaml".into(), line: 3, column: 5, length: 4 };
        let line = annotation("error", Some(&place), "Invalid: x", "50%\n::set-output name=a::b");
        let expected =
            "::error file=a%2Cb%3Ac.yaml,line=3,col=5,endColumn=9,title=Invalid%3A x::50%25%0A::set-output name=a::b\n";
        assert_eq!(line, expected);
    }
}
