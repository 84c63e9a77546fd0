//! `switchyard check`: everything that would be said of a folder of manifests, without a cluster and before anything is in
//! force. It decides nothing itself: the controller reads and compiles, and this shows what that finds.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;
use switchyard_controller::source::manifest::Places;
use switchyard_controller::source::texts::Texts;
use switchyard_controller::{Loaded, console};
use switchyard_crds::findings::Severity;
use switchyard_crds::render::{render, visible};
use switchyard_crds::{Finding, ObjectName, Place, Reason};

use crate::cluster::{Cluster, Scope};
use crate::output;

/// What stood before.
mod before;
/// What a change does.
mod changes;
/// Annotations of a pull request.
mod github;
/// For build servers.
mod junit;
/// For code scanning.
mod sarif;

use changes::{Change, What};

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
    /// Say in words what is other than there: a folder, a file, or a revision of the Git repository that the files are in.
    #[arg(long, value_name = "DIR|FILE|GIT-REV", conflicts_with = "cluster")]
    pub(crate) against: Option<String>,
    /// How findings are written.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
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
    /// For programs: a list of objects, also when it is empty; with --against an object with two lists, findings and changes.
    Json,
    /// For code scanning and editors: SARIF 2.1.0.
    Sarif,
    /// For build servers: a test case for each object.
    Junit,
    /// For GitHub Actions: annotations of the lines.
    Github,
}

const HELP: &str = "\
Reads the same YAML a cluster takes: RouteRule, CircuitPolicy, RetryPolicy, Service, EndpointSlice, Pod, Namespace. What makes
Pods (Deployment, StatefulSet, DaemonSet, Argo Rollout) says which versions there are; of a Service with neither Pods nor any of
these in sight, that is not asked. Other kinds are skipped.

With --against the findings are followed by what the change does: rules and policies that are new, gone or say something else,
requests that go elsewhere with one to show, rules that no request reaches any more, and what is wrong that was not. The exit
status is that of the findings.

Exit status:
  0  nothing is wrong, or there are only warnings
  1  there are errors (with --strict: or warnings)
  2  the files, or what to compare them with, could not be looked at, or there are none

Examples:
  switchyard check examples/canary
  switchyard check --strict --output json rules/ services.yaml
  switchyard check --against origin/main deploy/
  kustomize build . | switchyard check -
  helm template . | switchyard check --output github -
  kubectl switchyard check --cluster -n shop
  kubectl switchyard check --cluster -n shop new-rule.yaml";

/// Exit status when something is wrong.
const FOUND: u8 = 1;
/// Exit status when nobody could look.
const COULD_NOT_LOOK: u8 = 2;

/// What is to be told.
struct Report {
    /// In the order of the files.
    findings: Vec<Finding>,
    /// What is other than before, if that is asked for.
    changes: Option<Vec<Change>>,
    /// The objects that were read from files.
    objects: Vec<(ObjectName, Place)>,
    /// How many objects of others were skipped, by their kinds.
    skipped: BTreeMap<String, usize>,
    files: usize,
    /// With those of a cluster.
    all_objects: usize,
}

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
    let before = check.against.as_ref().map(|against| before::load(against, &check.paths)).transpose();
    let before = match before {
        Ok(before) => before,
        Err(error) => return could_not_look(&format!("--against: {error:#}")),
    };
    let mut texts = std::mem::take(&mut loaded.texts);
    let report = Report::new(&loaded, before.as_ref(), &mut texts);
    let out = match check.output {
        Output::Text => report.text(&mut texts, colour()),
        Output::Json => report.json()?,
        Output::Sarif => sarif::write(&report)?,
        Output::Junit => junit::write(&report, check.strict),
        Output::Github => github::write(&report),
    };
    output::answer(&out)?;
    Ok(if fails(&report.findings, check.strict) { ExitCode::from(FOUND) } else { ExitCode::SUCCESS })
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

/// `Shadowed: RouteRule shop/a`, as the heading of something short.
fn title(word: &str, object: &ObjectName) -> String {
    if object.kind.is_empty() { word.to_owned() } else { format!("{word}: {object}") }
}

impl Report {
    fn new(loaded: &Loaded, before: Option<&Loaded>, texts: &mut Texts) -> Self {
        let is_note = |finding: &Finding| finding.reason == Reason::UnknownKind && !finding.is_error();
        let (notes, findings): (Vec<_>, Vec<_>) = findings(loaded, texts).into_iter().partition(is_note);
        let mut skipped = BTreeMap::new();
        for note in notes {
            *skipped.entry(note.object.kind).or_default() += 1;
        }
        let objects = loaded.places.iter().map(|(key, place)| (key.object_name(), place.clone())).collect();
        let changes = before.map(|before| changes::changes(before, loaded));
        Self { findings, changes, objects, skipped, files: loaded.files, all_objects: loaded.objects }
    }

    fn json(&self) -> serde_json::Result<String> {
        let text = match &self.changes {
            None => serde_json::to_string_pretty(&self.findings)?,
            Some(changes) => serde_json::to_string_pretty(&json!({ "findings": self.findings, "changes": changes }))?,
        };
        Ok(text + "\n")
    }

    fn text(&self, texts: &mut Texts, colour: bool) -> String {
        let mut out = String::new();
        for finding in &self.findings {
            out.push_str(&render(finding, finding.place.as_ref().and_then(|place| texts.line(place)), colour));
            out.push('\n');
        }
        if let Some(changes) = &self.changes {
            out.push_str(&told(changes));
            out.push('\n');
        }
        out.push_str(&self.summary());
        out
    }

    /// `3 files, 12 objects: 2 errors, 1 warning; 4 objects of other kinds skipped (2 ConfigMap, 2 Ingress)`
    fn summary(&self) -> String {
        let mut out = summary(&self.findings, self.files, self.all_objects);
        let all: usize = self.skipped.values().sum();
        if all > 0 {
            let kinds: Vec<String> = self.skipped.iter().map(|(kind, number)| format!("{number} {kind}")).collect();
            out.truncate(out.trim_end().len());
            let _ = writeln!(out, "; {} of other kinds skipped ({})", count(all, "object"), visible(&kinds.join(", ")));
        }
        out
    }
}

/// What a change does, in paragraphs.
fn told(changes: &[Change]) -> String {
    let headings = [
        (What::Added, "new"),
        (What::Removed, "gone"),
        (What::Changed, "changed"),
        (What::Moved, "requests that go elsewhere"),
        (What::Unreachable, "no request reaches any more"),
        (What::Broken, "wrong that was not"),
        (What::Mended, "not wrong any more"),
    ];
    let mut out = String::from("what the change does:");
    for (what, heading) in headings {
        let mut of_it = changes.iter().filter(|change| change.change == what).peekable();
        if of_it.peek().is_some() {
            let _ = write!(out, "\n  {heading}");
        }
        for change in of_it {
            let _ = write!(out, "\n    {}: {}", change.object, visible(&change.message));
            // What came with a finding shows its request already.
            if let Some(example) = change.request() {
                let _ = write!(out, "\n      such as {}", visible(&example));
            }
        }
    }
    if changes.is_empty() {
        out.push_str(" nothing to rules, policies and requests");
    }
    out.push('\n');
    out
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
