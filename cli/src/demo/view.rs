//! What the demo shows: a line for each thing that happens, and on a terminal also a picture below it that moves.

use std::io::{IsTerminal, Write as _, stdout};
use std::time::Duration;

/// Width of a bar in characters.
const BAR: usize = 40;

/// Width of the picture.
const WIDTH: usize = 79;

/// The moment, in figures.
#[derive(Clone, Debug, Default)]
pub(crate) struct Frame {
    /// Since the demo began.
    pub(crate) elapsed: Duration,
    /// The rule's weight of v2 in percent, as it is on disk.
    pub(crate) v2_percent: u32,
    /// What goes to each instance now.
    pub(crate) rows: Vec<Row>,
    /// Requests so far.
    pub(crate) requests: u64,
    /// Errors that callers saw so far.
    pub(crate) errors: u64,
    /// Tries that failed so far.
    pub(crate) failed_tries: u64,
}

/// One instance.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its version.
    pub(crate) version: &'static str,
    /// Good answers a second.
    pub(crate) per_second: f64,
    /// The state of its circuit, and why.
    pub(crate) circuit: String,
}

/// Where it is shown.
#[derive(Debug)]
pub(crate) struct View {
    live: bool,
    /// Lines of the picture on the screen.
    drawn: usize,
}

impl View {
    /// A moving picture if standard output is a terminal, plain lines if not.
    pub(crate) fn new() -> Self {
        Self { live: stdout().is_terminal(), drawn: 0 }
    }

    /// Something happened.
    pub(crate) fn say(&mut self, text: &str) {
        // A reader that went away is no reason to stop.
        let _ = writeln!(stdout(), "{}{text}", self.erasure());
        self.drawn = 0;
        let _ = stdout().flush();
    }

    /// A heading.
    pub(crate) fn head(&mut self, text: &str) {
        let text = if self.live { format!("\n\x1b[1m{text}\x1b[0m") } else { format!("\n{text}") };
        self.say(&text);
    }

    /// A result: what was claimed, and whether it was so.
    pub(crate) fn verdict(&mut self, held: bool, text: &str) {
        let word = match (self.live, held) {
            (true, true) => "\x1b[32m  ok\x1b[0m",
            (true, false) => "\x1b[31mFAIL\x1b[0m",
            (false, true) => "  ok",
            (false, false) => "FAIL",
        };
        self.say(&format!("{word}  {text}"));
    }

    /// Shows the moment, on a terminal.
    pub(crate) fn draw(&mut self, frame: &Frame) {
        if !self.live {
            return;
        }
        let lines = frame.lines();
        // In one piece, so that it does not flicker.
        let picture = format!("{}{}\n", self.erasure(), lines.join("\n"));
        self.drawn = lines.len();
        let _ = stdout().write_all(picture.as_bytes());
        let _ = stdout().flush();
    }

    /// What takes the picture away.
    fn erasure(&self) -> String {
        if self.drawn > 0 { format!("\x1b[{}A\x1b[J", self.drawn) } else { String::new() }
    }
}

impl Frame {
    fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            String::new(),
            format!(
                "canary-deployment: v2 {} %, v1 {} %   {:>26} s",
                self.v2_percent,
                100 - self.v2_percent,
                self.elapsed.as_secs()
            ),
        ];
        let all: f64 = self.rows.iter().map(|row| row.per_second).sum();
        for version in ["v1", "v2"] {
            let of_version = self.rows.iter().filter(|row| row.version == version);
            let share = of_version.map(|row| row.per_second).sum::<f64>() / all.max(1.0);
            lines.push(format!("{version}  {} {:>5.1} %", bar(share), share * 100.0));
        }
        for row in &self.rows {
            lines.push(format!("  {:<5} {:>4.0}/s   circuit {}", row.name, row.per_second, row.circuit));
        }
        lines.push(format!(
            "{} requests, {} tries failed, callers saw {} errors",
            self.requests, self.failed_tries, self.errors
        ));
        // A line that wraps would not be taken away whole.
        lines.into_iter().map(|line| line.chars().take(WIDTH).collect()).collect()
    }
}

fn bar(share: f64) -> String {
    let full = ((share * BAR as f64).round() as usize).min(BAR);
    format!("{}{}", "█".repeat(full), "·".repeat(BAR - full))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use expect_test::expect;

    use super::*;

    #[test]
    fn the_picture_shows_shares_and_circuits() {
        let row =
            |name, version, per_second, circuit: &str| Row { name, version, per_second, circuit: circuit.to_owned() };
        let frame = Frame {
            elapsed: Duration::from_secs(12),
            v2_percent: 20,
            rows: vec![
                row("v1-a", "v1", 79.0, "closed"),
                row("v1-b", "v1", 81.0, "closed"),
                row("v2-a", "v2", 40.0, "closed"),
                row("v2-b", "v2", 0.0, "open: 5 failures in a row"),
            ],
            requests: 2400,
            errors: 0,
            failed_tries: 5,
        };
        expect![[r#"

              canary-deployment: v2 20 %, v1 80 %                           12 s
              v1  ████████████████████████████████········  80.0 %
              v2  ████████································  20.0 %
                v1-a    79/s   circuit closed
                v1-b    81/s   circuit closed
                v2-a    40/s   circuit closed
                v2-b     0/s   circuit open: 5 failures in a row
              2400 requests, 5 tries failed, callers saw 0 errors"#]]
        .assert_eq(&frame.lines().join("\n"));
    }
}
