//! `switchyard check`: everything that would be said of a folder of manifests, without a cluster and before anything is in
//! force. It decides nothing itself: the controller reads and compiles, and this shows what that finds.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use switchyard_controller::Loaded;
use switchyard_controller::source::manifest::{MAX_FILE_BYTES, Places};
use switchyard_crds::render::render;
use switchyard_crds::{Finding, Place, Reason};

/// Says what is wrong with manifests, offline: fields, values, names that lead nowhere, rules that clash.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Check {
    /// Folders and files; `-` is standard input.
    #[arg(required = true, value_name = "DIR|FILE|-")]
    pub(crate) paths: Vec<PathBuf>,
    /// How findings are written.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
    /// Warnings count as errors, except the notes about kinds that are not for switchyard.
    #[arg(long)]
    pub(crate) strict: bool,
}

/// How findings are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// For people: each finding with its line, and a summary.
    Text,
    /// For programs: a list of objects, also when it is empty.
    Json,
}

const HELP: &str = "\
Reads the same YAML a cluster takes: RouteRule, CircuitPolicy, RetryPolicy, Service, EndpointSlice, Pod, Namespace. Other
kinds are skipped with a note.

Exit status:
  0  nothing is wrong, or there are only warnings
  1  there are errors (with --strict: or warnings)
  2  the files could not be looked at

Examples:
  switchyard check examples/canary
  switchyard check --strict --output json rules/ services.yaml
  kustomize build . | switchyard check -";

/// Exit status when something is wrong.
const FOUND: u8 = 1;
/// Exit status when nobody could look.
const COULD_NOT_LOOK: u8 = 2;

/// Runs the command. An error is one of writing the output.
pub(crate) fn run(check: &Check) -> anyhow::Result<ExitCode> {
    let loaded = match switchyard_controller::load(&check.paths) {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("error: {error}");
            return Ok(ExitCode::from(COULD_NOT_LOOK));
        }
    };
    let mut texts = Texts::default();
    let findings = findings(&loaded, &mut texts);
    let out = match check.output {
        Output::Text => text(&findings, &loaded, &mut texts, colour()),
        Output::Json => serde_json::to_string_pretty(&findings)? + "\n",
    };
    match std::io::stdout().write_all(out.as_bytes()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        written => written?,
    }
    Ok(if fails(&findings, check.strict) { ExitCode::from(FOUND) } else { ExitCode::SUCCESS })
}

fn fails(findings: &[Finding], strict: bool) -> bool {
    findings.iter().any(|finding| finding.is_error() || (strict && finding.reason != Reason::UnknownKind))
}

/// All that was found, in the order of the files, each at the place of its field.
fn findings(loaded: &Loaded, texts: &mut Texts) -> Vec<Finding> {
    let of_objects: BTreeMap<_, _> = loaded.places.iter().map(|(key, place)| (key.object_name(), place)).collect();
    let mut findings = loaded.findings.clone();
    let mut fields: BTreeMap<&Path, Places> = BTreeMap::new();
    for finding in &mut findings {
        // What comes up between objects is at the object's name; the field's place says more.
        if let Some(place) = of_objects.get(&finding.object).filter(|place| finding.place.as_ref() == Some(**place)) {
            let read = || Places::of_file(&place.file, texts.of(&place.file));
            let field = fields.entry(&place.file).or_insert_with(read).field(&finding.object, &finding.field);
            finding.place = field.or_else(|| finding.place.take());
        }
    }
    findings.sort_by(|a, b| position(a).cmp(&position(b)).then_with(|| a.cmp(b)));
    findings
}

fn position(finding: &Finding) -> Option<(&Path, usize, usize)> {
    finding.place.as_ref().map(|place| (place.file.as_path(), place.line, place.column))
}

fn text(findings: &[Finding], loaded: &Loaded, texts: &mut Texts, colour: bool) -> String {
    let mut out = String::new();
    for finding in findings {
        out.push_str(&render(finding, finding.place.as_ref().and_then(|place| texts.line(place)), colour));
        out.push('\n');
    }
    out.push_str(&summary(findings, loaded.files, loaded.objects));
    out
}

/// `3 files, 12 objects: 2 errors, 1 warning`
fn summary(findings: &[Finding], files: usize, objects: usize) -> String {
    let errors = findings.iter().filter(|finding| finding.is_error()).count();
    let found = match (errors, findings.len() - errors) {
        (0, 0) => "nothing wrong".to_owned(),
        (errors, 0) => count(errors, "error"),
        (0, warnings) => count(warnings, "warning"),
        (errors, warnings) => format!("{}, {}", count(errors, "error"), count(warnings, "warning")),
    };
    format!("{}, {}: {found}\n", count(files, "file"), count(objects, "object"))
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The texts of the files that findings are about, each read once. One that cannot be read (any more) has no lines to show.
#[derive(Default)]
struct Texts {
    texts: BTreeMap<PathBuf, Text>,
}

/// A file's text, and where each of its lines begins: ten thousand findings look up ten thousand lines.
struct Text {
    text: String,
    lines: Vec<usize>,
}

impl Texts {
    fn of(&mut self, file: &Path) -> &str {
        &self.load(file).text
    }

    fn line(&mut self, place: &Place) -> Option<&str> {
        let Text { text, lines } = self.load(&place.file);
        let from = *lines.get(place.line.checked_sub(1)?)?;
        text[from..].lines().next()
    }

    fn load(&mut self, file: &Path) -> &Text {
        self.texts.entry(file.to_owned()).or_insert_with(|| Text::new(read(file).unwrap_or_default()))
    }
}

impl Text {
    fn new(text: String) -> Self {
        let after_breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(i, _)| i + 1);
        let lines = std::iter::once(0).chain(after_breaks).collect();
        Self { text, lines }
    }
}

fn read(file: &Path) -> Option<String> {
    let metadata = std::fs::metadata(file).ok()?;
    let fits = metadata.is_file() && metadata.len() <= MAX_FILE_BYTES;
    fits.then(|| std::fs::read_to_string(file).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_in_plain_words() {
        let error = Finding::error(Reason::Invalid, "", "");
        let note = Finding::warning(Reason::UnknownKind, "", "");
        assert_eq!(summary(&[], 1, 0), "1 file, 0 objects: nothing wrong\n");
        let found = [error.clone(), error.clone(), note.clone()];
        assert_eq!(summary(&found, 3, 12), "3 files, 12 objects: 2 errors, 1 warning\n");
        assert_eq!(summary(std::slice::from_ref(&note), 1, 1), "1 file, 1 object: 1 warning\n");
    }

    #[test]
    fn strict_fails_on_warnings_but_not_on_the_kinds_of_others() {
        let error = Finding::error(Reason::Invalid, "", "");
        let warning = Finding::warning(Reason::NotEnforced, "", "");
        let note = Finding::warning(Reason::UnknownKind, "", "");
        assert!(fails(&[error], false));
        assert!(!fails(std::slice::from_ref(&warning), false) && fails(&[warning], true));
        assert!(!fails(&[note], true) && !fails(&[], true));
    }
}
