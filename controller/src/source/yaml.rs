//! Reads YAML (and so JSON) into a tree that remembers where everything stood.
//!
//! Scalars mean what they mean to `kubectl`: `yes` and `on` are booleans, `010` is eight. A file of another reader's
//! dialect would pass a check here and mean something else in a cluster.
//!
//! Bounds hold whatever a file says: [`MAX_NODES`] after aliases are put in (a few lines of aliases to aliases can stand
//! for billions), [`MAX_DEPTH`] levels. What makes a file unreadable is [`Broken`], of the file as a whole; what is wrong
//! inside a document that can be read on is a [`Problem`] of that document.

use std::borrow::Cow;
use std::ops::Range;

use saphyr_parser::Parser;
use serde_json::Number;
use switchyard_crds::Severity;

/// Builds the tree from the parser's events.
mod build;
/// Finds the place of a field.
mod places;
/// What a plain scalar means.
mod scalar;

/// Values in one file, each alias counted as often as it is used. A Service with 100,000 endpoints has fewer.
pub const MAX_NODES: usize = 1_000_000;
/// Levels of nesting. The deepest Kubernetes objects have fewer than 30.
pub const MAX_DEPTH: usize = 64;

/// A part of one line. Lines and columns count from 1, columns and lengths count characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
    /// How many characters; 0 where nothing is written, as after `key:`.
    pub length: usize,
}

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it is.
    pub value: Value,
    /// A scalar's own text; a collection's, if it is on one line; else its first entry.
    pub span: Span,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing, or `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number that JSON can hold.
    Number(Number),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping; no key is there twice.
    Map(Vec<Entry>),
}

/// An entry of a mapping.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// Where the key stands.
    pub span: Span,
    /// Its value.
    pub node: Node,
}

/// One document of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Its content.
    pub root: Node,
    /// What is wrong with it as YAML.
    pub problems: Vec<Problem>,
}

/// Something wrong inside a document that could be read on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Whether the document can be used in spite of it.
    pub severity: Severity,
    /// Where.
    pub span: Span,
    /// What, as a lower-case fragment.
    pub message: String,
}

/// Why a file could not be read to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {}, column {}: {message}", span.line, span.column)]
pub struct Broken {
    /// Where reading ended.
    pub span: Span,
    /// Why, as a lower-case fragment.
    pub message: String,
}

/// Tabs between a key and its value that are read as spaces in one file; each is found out by reading the file once more.
const MOST_TABS: usize = 64;

/// The documents of a file.
pub fn documents(text: &str) -> Result<Vec<Document>, Broken> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if let Some((at, letter)) = text.char_indices().find(|(_, letter)| !is_printable(*letter)) {
        let message = format!("this is not YAML: it has a control character (U+{:04X})", u32::from(letter));
        return Err(Broken { span: span_at(text, at), message });
    }
    let mut text = Cow::Borrowed(text);
    for _ in 0..MOST_TABS {
        match read(&text) {
            Err(Unread { tabs: Some(tabs), .. }) => {
                text = [&text[..tabs.start], &" ".repeat(tabs.len()), &text[tabs.end..]].concat().into();
            }
            read => return read.map_err(|unread| unread.why),
        }
    }
    read(&text).map_err(|unread| unread.why)
}

/// A text that could not be read.
struct Unread {
    why: Broken,
    /// The reason may be these bytes alone: tabs between a key and its value, which YAML lets stand there and the library does not.
    tabs: Option<Range<usize>>,
}

fn read(text: &str) -> Result<Vec<Document>, Unread> {
    let mut parser = Parser::new_from_str(text);
    let mut builder = build::Builder::default();
    while let Some(step) = parser.next_event() {
        let (event, span) = step.map_err(|error| {
            let at = text.char_indices().nth(error.marker().index()).map_or(text.len(), |(at, _)| at);
            let before = text[..at].trim_end_matches('\t');
            let tabs = (before.len() < at && before.ends_with(':')).then_some(before.len()..at);
            let tab = error.info().contains("tab").then(|| indenting_tab(text, at)).flatten();
            let (line, column) = (error.marker().line().max(1), error.marker().col() + 1);
            let (span, message) = match tab {
                Some(tab) => (span_at(text, tab), "a tab indents this line, and only spaces may"),
                None => (within(text, Span { line, column, length: 1 }, builder.unclosed()), error.info()),
            };
            Unread { why: Broken { span, message: format!("this is not YAML: {message}") }, tabs }
        })?;
        builder.take(event, span).map_err(|why| Unread { why, tabs: None })?;
    }
    Ok(builder.documents)
}

/// The first tab that indents a line, from the line of this byte on: the library stops before it or behind.
fn indenting_tab(text: &str, at: usize) -> Option<usize> {
    let mut start = text[..at].rfind('\n').map_or(0, |at| at + 1);
    text[start..].split_inclusive('\n').find_map(|line| {
        let tab = line.find('\t').filter(|tab| line[..*tab].trim().is_empty()).map(|tab| start + tab);
        start += line.len();
        tab
    })
}

/// What YAML lets stand in a text by itself (YAML 1.2, `c-printable`); anything else is written as an escape.
fn is_printable(letter: char) -> bool {
    matches!(letter, '\t' | '\n' | '\r' | '\u{85}' | ' '..='~' | '\u{a0}'..='\u{fffd}' | '\u{10000}'..)
}

/// The place of a byte.
fn span_at(text: &str, at: usize) -> Span {
    let before = &text[..at];
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    Span { line: before.matches('\n').count() + 1, column, length: 1 }
}

/// Where something is wrong that shows only at the end of the text: what was never closed, else the last thing that is there.
fn within(text: &str, span: Span, unclosed: Option<Span>) -> Span {
    let written = text.trim_end();
    let end = span_at(written, written.char_indices().next_back().map_or(0, |(at, _)| at));
    if (span.line, span.column) <= (end.line, end.column) {
        return span;
    }
    unclosed.unwrap_or(end)
}

impl Node {
    /// The value of a key, if this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.node)
    }

    /// The text, if this is text.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The same value without places.
    pub fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(bool) => (*bool).into(),
            Value::Number(number) => number.clone().into(),
            Value::Text(text) => text.as_str().into(),
            Value::List(items) => items.iter().map(Self::to_json).collect(),
            Value::Map(entries) => entries.iter().map(|entry| (entry.key.clone(), entry.node.to_json())).collect(),
        }
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests;
