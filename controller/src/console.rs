//! What happens, told to whoever runs a controller: a line each on standard error, findings as a compiler shows them.

use std::fmt;
use std::io::Write as _;

use switchyard_crds::Finding;
use switchyard_crds::render::render;

use crate::run::Report;

/// One line for each thing that happens; findings as a compiler shows them.
pub fn tell(report: &Report, colour: bool) {
    match report {
        Report::Findings { findings, .. } => findings.iter().for_each(|finding| show(finding, colour)),
        Report::Healed { origin } => say(format_args!("{origin}: all is well now")),
        Report::Published { revision, changed } => {
            say(format_args!(
                "revision {revision}: {}",
                if changed.is_empty() { "-".into() } else { changed.join(", ") }
            ));
        }
        Report::InForce { revision, agents, total } => {
            say(format_args!("revision {revision} is in force on {agents} of {total} agents"));
        }
        Report::Rejected { node, key, message } => say(format_args!("agent {node} cannot use {key}: {message}")),
    }
}

fn show(finding: &Finding, colour: bool) {
    let line = finding.place.as_ref().filter(|place| place.line > 0).and_then(|place| {
        let text = std::fs::read_to_string(&place.file).ok()?;
        text.lines().nth(place.line - 1).map(str::to_owned)
    });
    say(format_args!("{}", render(finding, line.as_deref(), colour).trim_end()));
}

/// Nobody to listen is no reason to stop.
pub fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
