//! `switchyard check`: everything that would be said of a folder of manifests, without a cluster and before anything is in
//! force. It decides nothing itself: the controller reads and compiles, and this shows what that finds.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use switchyard_controller::source::manifest::Places;
use switchyard_controller::source::texts::Texts;
use switchyard_controller::{Loaded, console};
use switchyard_crds::render::{render, visible};
use switchyard_crds::{Finding, Reason};

use crate::cluster::{Cluster, Scope};
use crate::output;

/// Says what is wrong with manifests, offline: fields, values, names that lead nowhere, rules that clash.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Check {
    /// Folders and files; `-` is standard input. With --cluster, none: what is in the cluster.
    #[arg(required_unless_present = "cluster", value_name = "DIR|FILE|-")]
    pub(crate) paths: Vec<PathBuf>,
    /// Look at the cluster that kubectl uses: at what it holds, or at the files as if they were applied to it.
    #[arg(long)]
    pub(crate) cluster: bool,
    #[command(flatten)]
    pub(crate) scope: Scope,
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
  2  the files could not be looked at, or there are none

Examples:
  switchyard check examples/canary
  switchyard check --strict --output json rules/ services.yaml
  kustomize build . | switchyard check -
  kubectl switchyard check --cluster -n shop
  kubectl switchyard check --cluster -n shop new-rule.yaml";

/// Exit status when something is wrong.
const FOUND: u8 = 1;
/// Exit status when nobody could look.
const COULD_NOT_LOOK: u8 = 2;

/// Runs the command. An error is one of writing the output.
pub(crate) fn run(check: &Check) -> anyhow::Result<ExitCode> {
    let could_not_look = |why: &str| {
        console::say(format_args!("error: {}", visible(why)));
        Ok(ExitCode::from(COULD_NOT_LOOK))
    };
    let loaded =
        if check.cluster { of_cluster(check) } else { switchyard_controller::load(&check.paths).map_err(Into::into) };
    let mut loaded = match loaded {
        Ok(loaded) => loaded,
        Err(error) => return could_not_look(&format!("{error:#}")),
    };
    if !check.cluster && loaded.objects == 0 && loaded.findings.is_empty() {
        let paths: Vec<_> = check.paths.iter().map(|path| path.display().to_string()).collect();
        return could_not_look(&format!("no manifests in {}", paths.join(", ")));
    }
    let mut texts = std::mem::take(&mut loaded.texts);
    let findings = findings(&loaded, &mut texts);
    let out = match check.output {
        Output::Text => text(&findings, &loaded, &mut texts, colour()),
        Output::Json => serde_json::to_string_pretty(&findings)? + "\n",
    };
    output::answer(&out)?;
    Ok(if fails(&findings, check.strict) { ExitCode::from(FOUND) } else { ExitCode::SUCCESS })
}

/// What a cluster holds, and the files beside it.
fn of_cluster(check: &Check) -> anyhow::Result<Loaded> {
    let cluster = Cluster::connect()?;
    let world = cluster.world(&cluster.namespaces(&check.scope)?)?;
    Ok(switchyard_controller::load_into(world, &check.paths)?)
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

/// `1 error`, `2 errors`.
pub(crate) fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
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
