//! A finding as text for people: what, where, and the line it is about with the offending part underlined.

use std::borrow::Cow;
use std::fmt::Write;

use crate::findings::{Finding, Place, Severity};

/// Columns of a line that are shown; of a longer line, the part around what is meant.
const MAX_WIDTH: usize = 120;
/// A tab stands for so many columns.
const TAB: usize = 4;

/// The finding in several lines, the last of which ends in a line break. `line_text` is the text of the line that its
/// place names, without its line break; without it, only the place is named. Colours are ANSI sequences.
pub fn render(finding: &Finding, line_text: Option<&str>, colour: bool) -> String {
    let paint = Paint { on: colour };
    let (word, tone) = match finding.severity {
        Severity::Error => ("error", RED),
        Severity::Warning => ("warning", YELLOW),
    };
    let mut out = paint.with(tone, &format!("{word}[{:?}]", finding.reason));
    out.push_str(&paint.with(BOLD, &format!(": {}", visible(&headline(finding)))));
    out.push('\n');
    let line_text = line_text.filter(|_| finding.place.as_ref().is_some_and(|place| place.line > 0));
    let gutter = match (&finding.place, line_text) {
        (Some(place), Some(_)) => place.line.to_string().len(),
        _ => 1,
    };
    if let Some(place) = &finding.place {
        let _ = writeln!(out, "{}{} {}", " ".repeat(gutter), paint.with(BLUE, "-->"), visible(&whereabouts(place)));
        if let Some(text) = line_text {
            excerpt(place, text, gutter, tone, &paint, &mut out);
        }
    }
    for note in notes(finding) {
        let _ = writeln!(out, "{} {} {}", " ".repeat(gutter), paint.with(BLUE, "="), visible(&note));
    }
    out
}

/// The text with its control characters written out: the name of a file must not be able to move a terminal's cursor.
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    Cow::Owned(text.chars().map(escaped).collect())
}

/// `RouteRule shop/canary: spec.destinations[1].weight: 1000001 is above 1000000`, without what is not known.
fn headline(finding: &Finding) -> String {
    let object = if finding.object.kind.is_empty() { String::new() } else { finding.object.to_string() };
    let parts = [object.as_str(), finding.field.as_str(), finding.message.as_str()];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ")
}

fn whereabouts(place: &Place) -> String {
    match place.line {
        0 => place.file.display().to_string(),
        line => format!("{}:{line}:{}", place.file.display(), place.column),
    }
}

fn notes(finding: &Finding) -> Vec<String> {
    let mut notes = Vec::new();
    // What the message says already is not said again.
    let is_new = |text: &str| !finding.message.contains(text);
    if finding.others.iter().any(|other| is_new(other)) {
        notes.push(format!("also: {}", finding.others.join(", ")));
    }
    if let Some(example) = finding.example.as_ref().map(ToString::to_string).filter(|example| is_new(example)) {
        notes.push(format!("example: {example}"));
    }
    notes
}

fn excerpt(place: &Place, text: &str, gutter: usize, tone: &str, paint: &Paint, out: &mut String) {
    let (shown, before, length) = cropped(text, place.column.max(1) - 1, place.length.max(1));
    let bar = paint.with(BLUE, "|");
    let blank = " ".repeat(gutter);
    let _ = writeln!(out, "{blank} {bar}");
    let _ = writeln!(out, "{} {bar} {shown}", paint.with(BLUE, &place.line.to_string()));
    let _ = writeln!(out, "{blank} {bar} {}{}", " ".repeat(before), paint.with(tone, &"^".repeat(length)));
}

/// The part of a line to show, the columns before what is meant, and how many columns that takes.
fn cropped(text: &str, start: usize, length: usize) -> (String, usize, usize) {
    let text = text.trim_end();
    let letters: Vec<char> = text.chars().collect();
    // Where more would be shown than fits, begin a little before what is meant.
    let from = if letters.len() <= MAX_WIDTH { 0 } else { start.saturating_sub(MAX_WIDTH / 3).min(letters.len()) };
    let to = letters.len().min(from + MAX_WIDTH);
    let mut shown = String::from(if from > 0 { "..." } else { "" });
    let (mut before, mut marked) = (shown.len(), 0);
    for (position, letter) in letters.iter().enumerate().take(to).skip(from) {
        let columns = match letter {
            '\t' => {
                shown.push_str(&" ".repeat(TAB));
                TAB
            }
            // What would move the cursor, or nothing, is shown as a mark.
            c if c.is_control() => {
                shown.push('\u{fffd}');
                1
            }
            c => {
                shown.push(*c);
                columns(*c)
            }
        };
        if position < start {
            before += columns;
        } else if position < start + length {
            marked += columns;
        }
    }
    if to < letters.len() {
        shown.push_str("...");
    }
    (shown, before, marked.max(1))
}

/// Columns that a terminal gives a character: two for the wide ones of East Asia and for pictures, none for what combines
/// with the one before.
fn columns(letter: char) -> usize {
    match u32::from(letter) {
        0x0300..=0x036f | 0x200b..=0x200f | 0xfe00..=0xfe0f => 0,
        0x1100..=0x115f | 0x2e80..=0xa4cf | 0xac00..=0xd7a3 | 0xf900..=0xfaff | 0xfe30..=0xfe6f => 2,
        0xff00..=0xff60 | 0xffe0..=0xffe6 | 0x1f300..=0x1f64f | 0x1f900..=0x1f9ff | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

const RED: &str = "\x1b[1;31m";
const YELLOW: &str = "\x1b[1;33m";
const BLUE: &str = "\x1b[1;34m";
const BOLD: &str = "\x1b[1m";

struct Paint {
    on: bool,
}

impl Paint {
    fn with(&self, tone: &str, text: &str) -> String {
        if self.on { format!("{tone}{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests;
