//! What happens, told to whoever runs a controller: a line each on standard error, findings as a compiler shows them.

use std::fmt;
use std::io::Write as _;
use std::net::SocketAddr;

use switchyard_crds::Finding;
use switchyard_crds::render::{render, visible};

use crate::run::Report;
use crate::source::texts::Texts;

/// Findings of one origin that are shown: whoever has more begins with the first ones, and a terminal holds no more anyhow.
const MAX_SHOWN: usize = 100;

/// One line for each thing that happens; findings as a compiler shows them.
pub fn tell(report: &Report, colour: bool) {
    say(format_args!("{}", words(report, colour).trim_end()));
}

fn words(report: &Report, colour: bool) -> String {
    match report {
        Report::Findings { origin, findings } => shown(origin, findings, colour),
        Report::Healed { origin } => format!("{}: all is well now", visible(origin)),
        Report::Published { revision, changed } => {
            format!(
                "revision {revision}: {}",
                if changed.is_empty() { "nothing was found".into() } else { changed.join(", ") }
            )
        }
        Report::InForce { revision, agents, total } => {
            format!("revision {revision} is in force on {agents} of {total} agents")
        }
        Report::Rejected { node, key, message } => format!("agent {} cannot use {key}: {message}", visible(node)),
    }
}

/// The first findings, each with its line; a file is read once for all of them.
fn shown(origin: &str, findings: &[Finding], colour: bool) -> String {
    let mut texts = Texts::default();
    let mut out = String::new();
    for finding in findings.iter().take(MAX_SHOWN) {
        out.push_str(&render(finding, finding.place.as_ref().and_then(|place| texts.line(place)), colour));
    }
    if let Some(more) = findings.len().checked_sub(MAX_SHOWN).filter(|more| *more > 0) {
        out.push_str(&format!("{}: and {more} more; `switchyard check` shows them all\n", visible(origin)));
    }
    out
}

/// Nobody to listen is no reason to stop.
pub fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Reads an address as a flag gives it.
///
/// # Errors
/// What it must look like.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        let port = text.rsplit(':').next().and_then(|port| port.parse::<u16>().ok()).unwrap_or(15001);
        format!("write an IP address and a port, such as 127.0.0.1:{port}")
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use switchyard_crds::{Place, Reason};

    use super::*;

    #[test]
    fn the_findings_of_one_file_have_an_end_and_the_first_ones_show_their_lines() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("many.yaml");
        std::fs::write(&file, "a: b\n".repeat(250)).unwrap();
        let finding = |line| {
            let mut finding = Finding::error(Reason::Invalid, "", "wrong");
            finding.place = Some(Place { file: file.clone(), line, column: 1, length: 1 });
            finding
        };
        let mut findings: Vec<Finding> = (1..=250).map(finding).collect();
        let said = words(&Report::Findings { origin: "many.yaml".into(), findings: findings.clone() }, false);
        assert_eq!(said.matches("| a: b").count(), 100);
        assert!(said.ends_with("\nmany.yaml: and 150 more; `switchyard check` shows them all\n"), "{said}");
        findings.truncate(100);
        let said = words(&Report::Findings { origin: "many.yaml".into(), findings }, false);
        assert!(!said.contains("more"), "{said}");
    }

    #[test]
    fn an_address_that_lacks_something_is_shown_whole() {
        assert_eq!(address("127.0.0.1:1"), Ok(([127, 0, 0, 1], 1).into()));
        for (text, shown) in [("23101", "127.0.0.1:23101"), ("localhost:80", "127.0.0.1:80"), ("x", "127.0.0.1:15001")]
        {
            assert!(address(text).unwrap_err().ends_with(shown), "{text}");
        }
    }

    #[test]
    fn a_name_cannot_move_the_cursor() {
        let said = words(&Report::Healed { origin: "a\u{1b}[2J\n.yaml".into() }, false);
        assert_eq!(said, "a\\u{1b}[2J\\n.yaml: all is well now");
    }
}
