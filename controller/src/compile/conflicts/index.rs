//! Finds, among many entries, those that a request could match, or that a request could match together with another entry, without a
//! look at the others: a tree that splits the entries by how the values begin that they ask for.
//!
//! What it leaves out is certain not to match; what it names may still not.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::{Bound, ControlFlow};

use super::entries::{Condition, Entries, Entry, ThingId};
use super::values::Test;

/// A list this short is walked.
const SHORT: usize = 8;

/// Splits below one another; by then what is left has little in common with the rest.
const DEEPEST: usize = 12;

/// Segments of a path that are looked at.
const SEGMENTS: usize = 6;

/// What of a request entries are told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key {
    /// A value, from its beginning.
    Value(ThingId),
    /// A value, from its end.
    End(ThingId),
    /// A segment of the path.
    Segment(usize),
}

/// The path has this number among the things.
const PATH: ThingId = 1;

/// What is known of a request about a key.
pub(super) enum Known<'q> {
    /// It is this.
    Whole(Cow<'q, [u8]>),
    /// It begins with this.
    Begins(Cow<'q, [u8]>),
    /// It is not there.
    Absent,
    /// Nothing.
    Nothing,
}

/// What an entry asks for about a key: a text, and whether it is all of it.
type Literal<'m> = (Key, Cow<'m, [u8]>, bool);

/// The index.
pub(super) struct Index<'m> {
    root: Node<'m>,
}

enum Node<'m> {
    /// Entries by their positions, ascending.
    List(Vec<usize>),
    Split {
        key: Key,
        whole: BTreeMap<Cow<'m, [u8]>, Node<'m>>,
        begins: BTreeMap<Cow<'m, [u8]>, Node<'m>>,
        /// How long the texts of `begins` are.
        lengths: Vec<usize>,
        /// Those that ask for nothing that can be told by the key.
        others: Box<Node<'m>>,
    },
}

impl<'m> Index<'m> {
    /// Of some entries, by their positions in ascending order.
    pub(super) fn new(entries: &'m Entries<'_>, of: impl Iterator<Item = usize>) -> Self {
        let of: Vec<usize> = of.collect();
        let has_patterns = of.iter().any(|at| entries.entries[*at].conditions.iter().any(is_pattern));
        let asks = of.into_iter().map(|at| (at, literals(&entries.entries[at], has_patterns))).collect();
        Self { root: Node::build(asks, DEEPEST) }
    }

    /// Visits the entries that may match what is known, until told to stop.
    pub(super) fn visit<'q>(
        &self,
        known: &impl Fn(Key) -> Known<'q>,
        visit: &mut impl FnMut(usize) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        self.root.visit(known, visit)
    }
}

fn is_pattern(condition: &Condition<'_>) -> bool {
    matches!(condition.test, Test::Pattern(_))
}

impl<'m> Node<'m> {
    fn build(of: Vec<(usize, Vec<Literal<'m>>)>, depth: usize) -> Self {
        match best_key(&of).filter(|_| depth > 0) {
            Some(key) => Self::split(key, of, depth),
            None => Self::List(of.into_iter().map(|(at, _)| at).collect()),
        }
    }

    fn split(key: Key, of: Vec<(usize, Vec<Literal<'m>>)>, depth: usize) -> Self {
        let mut whole: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let mut begins: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let mut others = Vec::new();
        for (at, mut literals) in of {
            match literals.iter().position(|(other, ..)| *other == key) {
                Some(found) => {
                    let (_, text, is_whole) = literals.swap_remove(found);
                    let into = if is_whole { &mut whole } else { &mut begins };
                    into.entry(text).or_default().push((at, literals));
                }
                None => others.push((at, literals)),
            }
        }
        let mut lengths: Vec<usize> = begins.keys().map(|text| text.len()).collect();
        lengths.sort_unstable();
        lengths.dedup();
        let build =
            |map: BTreeMap<_, _>| map.into_iter().map(|(text, of)| (text, Self::build(of, depth - 1))).collect();
        Self::Split {
            key,
            whole: build(whole),
            begins: build(begins),
            lengths,
            others: Box::new(Self::build(others, depth - 1)),
        }
    }

    fn visit<'q>(
        &self,
        known: &impl Fn(Key) -> Known<'q>,
        visit: &mut impl FnMut(usize) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let (key, whole, begins, lengths, others) = match self {
            Self::List(list) => return list.iter().try_for_each(|at| visit(*at)),
            Self::Split { key, whole, begins, lengths, others } => (key, whole, begins, lengths, others),
        };
        let shorter = |text: &[u8], up_to: usize| {
            let lengths = lengths.iter().take_while(move |length| **length <= up_to);
            lengths.filter_map(|length| begins.get(&text[..*length])).collect::<Vec<_>>()
        };
        match known(*key) {
            Known::Absent => {}
            Known::Nothing => {
                whole.values().chain(begins.values()).try_for_each(|node| node.visit(known, visit))?;
            }
            Known::Whole(text) => {
                let found = shorter(&text, text.len()).into_iter().chain(whole.get(text.as_ref()));
                found.into_iter().try_for_each(|node| node.visit(known, visit))?;
            }
            Known::Begins(text) => {
                let longer = |map: &'_ BTreeMap<Cow<'m, [u8]>, Self>, visit: &mut _| {
                    let from = (Bound::Included(text.as_ref()), Bound::Unbounded);
                    let longer = map.range::<[u8], _>(from).take_while(|(other, _)| other.starts_with(&text));
                    longer.map(|(_, node)| node).try_for_each(|node| node.visit(known, visit))
                };
                let up_to = text.len().saturating_sub(1);
                shorter(&text, up_to).into_iter().try_for_each(|node| node.visit(known, visit))?;
                longer(whole, visit)?;
                longer(begins, visit)?;
            }
        }
        others.visit(known, visit)
    }
}

/// The key that tells most entries apart, where any does.
fn best_key(of: &[(usize, Vec<Literal<'_>>)]) -> Option<Key> {
    if of.len() <= SHORT {
        return None;
    }
    let mut texts: HashMap<Key, HashSet<&[u8]>> = HashMap::new();
    for (key, text, _) in of.iter().flat_map(|(_, literals)| literals) {
        texts.entry(*key).or_default().insert(text);
    }
    let most = texts.into_iter().map(|(key, texts)| (texts.len(), std::cmp::Reverse(key))).max()?;
    (most.0 > 1).then_some(most.1.0)
}

/// What an entry's conditions say about keys. The ends of values and the segments of paths are only of use beside patterns.
fn literals<'m>(entry: &'m Entry<'_>, has_patterns: bool) -> Vec<Literal<'m>> {
    let mut found: Vec<Literal<'m>> = Vec::with_capacity(entry.conditions.len());
    let mut add = |key: Key, text: Cow<'m, [u8]>, is_whole: bool| {
        // Of two conditions on one thing, one is enough.
        if !found.iter().any(|(other, ..)| *other == key) {
            found.push((key, text, is_whole));
        }
    };
    for Condition { of, test } in &entry.conditions {
        if let Some((text, is_whole)) = test.beginning().filter(|(text, is_whole)| *is_whole || !text.is_empty()) {
            add(Key::Value(*of), text.into(), is_whole);
        }
        if !has_patterns {
            continue;
        }
        match test {
            Test::Exact(text) => {
                add(Key::End(*of), reversed(text.as_bytes()), true);
                if *of == PATH {
                    for (position, segment) in segments_of(text.as_bytes()) {
                        add(Key::Segment(position), segment.into(), true);
                    }
                }
            }
            Test::Below(text) => {
                for (position, segment) in segments_of(text.as_bytes()) {
                    add(Key::Segment(position), segment.into(), true);
                }
            }
            Test::Pattern(pattern) => {
                if !pattern.suffix.is_empty() {
                    add(Key::End(*of), reversed(&pattern.suffix), false);
                }
                if *of == PATH {
                    for (position, segment) in pattern.segments.iter().filter(|(position, _)| *position <= SEGMENTS) {
                        add(Key::Segment(*position), segment.into(), true);
                    }
                }
            }
            Test::Prefix(_) | Test::Present | Test::Absent => {}
        }
    }
    found
}

/// What the conditions of an entry say about a key, as a question.
pub(super) fn asked<'m>(entry: &'m Entry<'_>) -> impl Fn(Key) -> Known<'m> {
    let literals = literals(entry, true);
    let is_absent = |condition: &&Condition<'_>| matches!(condition.test, Test::Absent);
    let absent: Vec<ThingId> = entry.conditions.iter().filter(is_absent).map(|condition| condition.of).collect();
    move |key| {
        if let Key::Value(thing) | Key::End(thing) = key
            && absent.contains(&thing)
        {
            return Known::Absent;
        }
        match literals.iter().find(|(other, ..)| *other == key) {
            Some((_, text, true)) => Known::Whole(text.clone()),
            Some((_, text, false)) => Known::Begins(text.clone()),
            None => Known::Nothing,
        }
    }
}

/// What a request's values say about a key.
pub(super) fn seen<'q>(value: impl Fn(ThingId) -> Option<&'q [u8]>) -> impl Fn(Key) -> Known<'q> {
    move |key| {
        let (thing, text): (ThingId, fn(&'q [u8]) -> Cow<'q, [u8]>) = match key {
            Key::Value(thing) => (thing, Cow::Borrowed),
            Key::End(thing) => (thing, reversed),
            Key::Segment(position) => {
                let path = value(PATH).unwrap_or_default();
                let segment = segments_of(path).find(|(other, _)| *other == position);
                return segment.map_or(Known::Absent, |(_, segment)| Known::Whole(segment.into()));
            }
        };
        value(thing).map_or(Known::Absent, |value| Known::Whole(text(value)))
    }
}

/// The segments of a path, from 1.
fn segments_of(path: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    path.split(|byte| *byte == b'/').enumerate().skip(1).take(SEGMENTS)
}

fn reversed(text: &[u8]) -> Cow<'_, [u8]> {
    text.iter().rev().copied().collect::<Vec<_>>().into()
}
