//! Builds the tree from the parser's events, with a stack of its own: nothing here recurses over what a file nests.

use std::collections::HashMap;

use saphyr_parser::{Event, ScalarStyle, Tag};
use switchyard_crds::Severity;

use super::{Broken, Document, Entry, MAX_DEPTH, MAX_NODES, Node, Problem, Span, Value, scalar};

/// The tree so far.
#[derive(Default)]
pub(super) struct Builder {
    pub(super) documents: Vec<Document>,
    problems: Vec<Problem>,
    open: Vec<Open>,
    anchors: HashMap<usize, Built>,
    nodes: usize,
}

/// A value that is complete, and how much it is.
#[derive(Clone)]
struct Built {
    node: Node,
    nodes: usize,
    levels: usize,
}

/// A collection whose end has not come yet.
struct Open {
    start: saphyr_parser::Span,
    anchor: usize,
    nodes: usize,
    levels: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, key: Option<Key>, merged: Vec<Node> },
}

/// A key whose value has not come yet. One that is no text is a problem already told, and its value is dropped.
enum Key {
    Text(String, Span),
    Merge,
    Unusable,
}

impl Builder {
    /// Takes the next event in.
    pub(super) fn take(&mut self, event: Event<'_>, span: saphyr_parser::Span) -> Result<(), Broken> {
        match event {
            Event::DocumentStart(_) => {
                // Anchors hold for one document.
                self.anchors.clear();
                self.problems.clear();
            }
            Event::DocumentEnd | Event::Nothing | Event::StreamStart | Event::StreamEnd => {}
            Event::Scalar(text, style, anchor, tag) => {
                if !self.key(&text, style, tag.as_deref(), &span) {
                    let value = self.scalar(&text, style, tag.as_deref(), &span);
                    let built = Built { node: Node { value, span: of_scalar(&span, style) }, nodes: 1, levels: 0 };
                    self.count(1, &span)?;
                    self.keep(anchor, &built, &span)?;
                    self.complete(built, &span);
                }
            }
            Event::Alias(anchor) => {
                let Some(built) = self.anchors.get(&anchor).cloned() else {
                    return Err(broken(&span, "an alias that stands inside of what it stands for"));
                };
                self.count(built.nodes, &span)?;
                self.nest(built.levels, &span)?;
                self.complete(built, &span);
            }
            Event::SequenceStart(anchor, tag) => self.open(span, anchor, tag.as_deref(), Content::List(Vec::new()))?,
            Event::MappingStart(anchor, tag) => {
                self.open(
                    span,
                    anchor,
                    tag.as_deref(),
                    Content::Map { entries: Vec::new(), key: None, merged: Vec::new() },
                )?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(&span)?,
        }
        Ok(())
    }

    /// The bracket of the innermost flow collection that is still open.
    pub(super) fn unclosed(&self) -> Option<Span> {
        let flow = self.open.last().filter(|open| !open.start.is_empty())?;
        Some(Span { length: 1, ..one_line(&flow.start) })
    }

    fn open(
        &mut self,
        start: saphyr_parser::Span,
        anchor: usize,
        tag: Option<&Tag>,
        content: Content,
    ) -> Result<(), Broken> {
        self.count(1, &start)?;
        self.nest(1, &start)?;
        let usual = tag.is_none_or(|tag| tag.is_yaml_core_schema() && (tag.suffix == "map" || tag.suffix == "seq"));
        if !usual {
            self.problem(one_line(&start), "a tag that Kubernetes does not know".to_owned());
        }
        self.open.push(Open { start, anchor, nodes: 1, levels: 1, content });
        Ok(())
    }

    fn close(&mut self, end: &saphyr_parser::Span) -> Result<(), Broken> {
        let Some(open) = self.open.pop() else { return Ok(()) };
        let first = open.content.first();
        let value = match open.content {
            Content::List(items) => Value::List(items),
            Content::Map { entries, merged, .. } => Value::Map(self.merged(entries, merged)),
        };
        // A flow collection has a bracket at both ends; a block collection begins with its first entry.
        let flow = !open.start.is_empty() && open.start.start.line() == end.end.line();
        let span = match first {
            _ if flow => Span { length: end.end.col().saturating_sub(open.start.start.col()), ..one_line(&open.start) },
            Some(first) => first,
            None => one_line(&open.start),
        };
        let built = Built { node: Node { value, span }, nodes: open.nodes, levels: open.levels };
        self.keep(open.anchor, &built, &open.start)?;
        self.complete(built, &open.start);
        Ok(())
    }

    /// Takes a scalar as a key, if one is due.
    fn key(&mut self, text: &str, style: ScalarStyle, tag: Option<&Tag>, span: &saphyr_parser::Span) -> bool {
        let Some(Open { content: Content::Map { key: key @ None, .. }, .. }) = self.open.last_mut() else {
            return false;
        };
        let plain = style == ScalarStyle::Plain && tag.is_none();
        let place = of_scalar(span, style);
        if plain && text == "<<" {
            *key = Some(Key::Merge);
            return true;
        }
        *key = Some(Key::Text(text.to_owned(), place));
        let literal = text.eq_ignore_ascii_case("true") || text.eq_ignore_ascii_case("false");
        if let Some(bool) = scalar::boolean(text).filter(|_| plain && !literal) {
            let message = format!("kubectl reads the key {text} as {bool}; write it in quotes: \"{text}\"");
            self.problems.push(Problem { severity: Severity::Warning, span: place, message });
        }
        true
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, tag: Option<&Tag>, span: &saphyr_parser::Span) -> Value {
        let suffix = match tag {
            None => None,
            Some(tag) if tag.is_yaml_core_schema() => Some(tag.suffix.as_str()),
            Some(tag) if tag.handle == "!" && tag.suffix.is_empty() => Some("str"),
            Some(_) => Some("?"),
        };
        let read = match suffix {
            None if style == ScalarStyle::Plain => scalar::plain(text),
            None | Some("str") => Ok(Value::Text(text.to_owned())),
            Some("int" | "float" | "bool" | "null") => scalar::plain(text),
            Some(_) => Err("a tag that Kubernetes does not know".to_owned()),
        };
        read.unwrap_or_else(|message| {
            self.problem(of_scalar(span, style), message);
            Value::Null
        })
    }

    /// Puts a complete value where it belongs.
    fn complete(&mut self, built: Built, span: &saphyr_parser::Span) {
        let Some(open) = self.open.last_mut() else {
            self.documents.push(Document { root: built.node, problems: std::mem::take(&mut self.problems) });
            return;
        };
        open.nodes += built.nodes;
        open.levels = open.levels.max(built.levels + 1);
        match &mut open.content {
            Content::List(items) => items.push(built.node),
            Content::Map { entries, key, merged } => match key.take() {
                Some(Key::Text(key, span)) => entries.push(Entry { key, span, node: built.node }),
                Some(Key::Merge) => merged.push(built.node),
                Some(Key::Unusable) => {}
                None => {
                    *key = Some(Key::Unusable);
                    self.problem(one_line(span), "a key must be a word or a text".to_owned());
                }
            },
        }
    }

    /// A mapping's entries, with what it merges in (`<<`), and without a key that is there twice.
    fn merged(&mut self, entries: Vec<Entry>, merged: Vec<Node>) -> Vec<Entry> {
        let mut kept: Vec<Entry> = Vec::with_capacity(entries.len());
        let mut first_lines: HashMap<String, usize> = HashMap::new();
        for entry in entries {
            if let Some(line) = first_lines.get(&entry.key) {
                let message = format!("the key {:?} is there twice, first in line {line}", entry.key);
                self.problem(entry.span, message);
            } else {
                first_lines.insert(entry.key.clone(), entry.span.line);
                kept.push(entry);
            }
        }
        let mut sources = Vec::new();
        for node in merged {
            match node.value {
                Value::List(items) => sources.extend(items),
                _ => sources.push(node),
            }
        }
        for source in sources {
            let Value::Map(entries) = source.value else {
                self.problem(source.span, "`<<` merges mappings, and this is none".to_owned());
                continue;
            };
            for entry in entries {
                if !first_lines.contains_key(&entry.key) {
                    first_lines.insert(entry.key.clone(), entry.span.line);
                    kept.push(entry);
                }
            }
        }
        kept
    }

    fn keep(&mut self, anchor: usize, built: &Built, span: &saphyr_parser::Span) -> Result<(), Broken> {
        if anchor > 0 {
            // The copy takes memory too.
            self.count(built.nodes, span)?;
            self.anchors.insert(anchor, built.clone());
        }
        Ok(())
    }

    fn count(&mut self, more: usize, span: &saphyr_parser::Span) -> Result<(), Broken> {
        self.nodes += more;
        if self.nodes > MAX_NODES {
            return Err(broken(span, &format!("the file holds more than {MAX_NODES} values, aliases put in")));
        }
        Ok(())
    }

    fn nest(&self, more: usize, span: &saphyr_parser::Span) -> Result<(), Broken> {
        if self.open.len() + more > MAX_DEPTH {
            return Err(broken(span, &format!("nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(())
    }

    fn problem(&mut self, span: Span, message: String) {
        self.problems.push(Problem { severity: Severity::Error, span, message });
    }
}

impl Content {
    fn first(&self) -> Option<Span> {
        match self {
            Self::List(items) => items.first().map(|node| node.span),
            Self::Map { entries, .. } => entries.first().map(|entry| entry.span),
        }
    }
}

fn broken(span: &saphyr_parser::Span, message: &str) -> Broken {
    Broken { span: one_line(span), message: message.to_owned() }
}

/// Where a span begins, and how long it is if it ends in the same line.
fn one_line(span: &saphyr_parser::Span) -> Span {
    let same = span.start.line() == span.end.line();
    Span {
        line: span.start.line(),
        column: span.start.col() + 1,
        length: if same { span.end.col().saturating_sub(span.start.col()) } else { 1 },
    }
}

fn of_scalar(span: &saphyr_parser::Span, style: ScalarStyle) -> Span {
    match style {
        // Where the text of a block begins, its indicator stands; that is what can be pointed at.
        ScalarStyle::Literal | ScalarStyle::Folded => Span { length: 1, ..one_line(span) },
        _ => one_line(span),
    }
}
