//! Finds the place of a field by its path, such as `spec.destinations[1].weight` or `metadata.labels[a/b]`.

use super::{Node, Span, Value};

/// One step of a path.
#[derive(Debug, PartialEq, Eq)]
enum Step<'a> {
    Name(&'a str),
    Bracket(&'a str),
}

impl Node {
    /// Where the field stands: its value, or its key where the value takes several lines. Where the field is missing, the
    /// nearest thing around it that is there.
    pub fn place(&self, field: &str) -> Span {
        self.walk(field).0
    }

    /// Where the field's key stands; the same as [`Node::place`] for what has none.
    pub fn key_place(&self, field: &str) -> Span {
        let (value, key) = self.walk(field);
        key.unwrap_or(value)
    }

    fn walk(&self, field: &str) -> (Span, Option<Span>) {
        let (mut node, mut place, mut key) = (self, self.span, None);
        for step in steps(field) {
            let (next, at) = match (step, &node.value) {
                (Step::Bracket(text), Value::List(items)) => {
                    match text.parse().ok().and_then(|i: usize| items.get(i)) {
                        Some(item) => (item, None),
                        None => break,
                    }
                }
                (Step::Name(name) | Step::Bracket(name), Value::Map(_)) => match node.entry(name) {
                    Some(entry) => (&entry.node, Some(entry.span)),
                    None => break,
                },
                _ => break,
            };
            node = next;
            key = at;
            place = match at {
                Some(at) if node.takes_lines() || node.span.length == 0 => at,
                _ => node.span,
            };
        }
        (place, key)
    }

    /// Whether it is a collection that is not written on one line: then its span is its first entry's.
    fn takes_lines(&self) -> bool {
        match &self.value {
            Value::List(items) => items.first().is_some_and(|first| first.span == self.span),
            Value::Map(entries) => entries.first().is_some_and(|first| first.span == self.span),
            _ => false,
        }
    }
}

fn steps(path: &str) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(inside) = rest.strip_prefix('[') {
            let (text, tail) = inside.split_once(']').unwrap_or((inside, ""));
            steps.push(Step::Bracket(text));
            rest = tail;
        } else {
            rest = rest.strip_prefix('.').unwrap_or(rest);
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            let (name, tail) = rest.split_at(end);
            if !name.is_empty() {
                steps.push(Step::Name(name));
            }
            rest = tail;
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_apart_into_names_and_brackets() {
        let expected =
            [Step::Name("spec"), Step::Name("list"), Step::Bracket("1"), Step::Bracket("a.b/c"), Step::Name("x")];
        assert_eq!(steps("spec.list[1][a.b/c].x"), expected);
        assert_eq!(steps(""), []);
        assert_eq!(steps("..["), [Step::Bracket("")]);
    }
}
