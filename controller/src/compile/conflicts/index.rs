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

/// What is asked of the index: what a request's values are, or what another entry asks for.
pub(super) struct Query<'q> {
    known: Box<dyn Fn(Key) -> Known<'q> + 'q>,
    /// All things that the request has; none where that is not settled.
    present: Option<Vec<ThingId>>,
    /// Only entries before this one.
    before: usize,
}

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
    /// Entries by one of the things that must be there for them.
    Groups(BTreeMap<ThingId, Node<'m>>, Box<Node<'m>>),
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
    pub(super) fn visit(&self, query: &Query<'_>, visit: &mut impl FnMut(usize) -> ControlFlow<()>) -> ControlFlow<()> {
        self.root.visit(query, visit)
    }
}

fn is_pattern(condition: &Condition<'_>) -> bool {
    matches!(condition.test, Test::Pattern(_))
}

impl<'m> Node<'m> {
    fn build(of: Vec<(usize, Vec<Literal<'m>>)>, depth: usize) -> Self {
        match best(&of).filter(|_| depth > 0) {
            Some(Best::Split(key)) => Self::split(key, of, depth),
            Some(Best::Groups) => Self::groups(of, depth),
            None => Self::List(of.into_iter().map(|(at, _)| at).collect()),
        }
    }

    fn groups(of: Vec<(usize, Vec<Literal<'m>>)>, depth: usize) -> Self {
        let things = |literals: &[Literal<'m>]| {
            let value = |(key, ..): &Literal<'m>| match key {
                Key::Value(thing) => Some(*thing),
                _ => None,
            };
            literals.iter().filter_map(value).collect::<Vec<_>>()
        };
        let mut counts: HashMap<ThingId, usize> = HashMap::new();
        for thing in of.iter().flat_map(|(_, literals)| things(literals)) {
            *counts.entry(thing).or_default() += 1;
        }
        let mut groups: BTreeMap<ThingId, Vec<_>> = BTreeMap::new();
        let mut others = Vec::new();
        for (at, literals) in of {
            match things(&literals).into_iter().min_by_key(|thing| (counts.get(thing), *thing)) {
                Some(thing) => groups.entry(thing).or_default().push((at, literals)),
                None => others.push((at, literals)),
            }
        }
        let groups = groups.into_iter().map(|(thing, of)| (thing, Self::build(of, depth - 1)));
        Self::Groups(groups.collect(), Box::new(Self::build(others, depth - 1)))
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

    fn visit(&self, query: &Query<'_>, visit: &mut impl FnMut(usize) -> ControlFlow<()>) -> ControlFlow<()> {
        let (key, whole, begins, lengths, others) = match self {
            Self::List(list) => {
                return list.iter().take_while(|at| **at < query.before).try_for_each(|at| visit(*at));
            }
            Self::Groups(groups, others) => {
                match &query.present {
                    Some(present) => {
                        let mut found = present.iter().filter_map(|thing| groups.get(thing));
                        found.try_for_each(|node| node.visit(query, visit))?;
                    }
                    None => groups.values().try_for_each(|node| node.visit(query, visit))?,
                }
                return others.visit(query, visit);
            }
            Self::Split { key, whole, begins, lengths, others } => (key, whole, begins, lengths, others),
        };
        let shorter = |text: &[u8], up_to: usize| {
            let lengths = lengths.iter().take_while(move |length| **length <= up_to);
            lengths.filter_map(|length| begins.get(&text[..*length])).collect::<Vec<_>>()
        };
        match (query.known)(*key) {
            Known::Absent => {}
            Known::Nothing => {
                whole.values().chain(begins.values()).try_for_each(|node| node.visit(query, visit))?;
            }
            Known::Whole(text) => {
                let found = shorter(&text, text.len()).into_iter().chain(whole.get(text.as_ref()));
                found.into_iter().try_for_each(|node| node.visit(query, visit))?;
            }
            Known::Begins(text) => {
                let longer = |map: &'_ BTreeMap<Cow<'m, [u8]>, Self>, visit: &mut _| {
                    let from = (Bound::Included(text.as_ref()), Bound::Unbounded);
                    let longer = map.range::<[u8], _>(from).take_while(|(other, _)| other.starts_with(&text));
                    longer.map(|(_, node)| node).try_for_each(|node| node.visit(query, visit))
                };
                let up_to = text.len().saturating_sub(1);
                shorter(&text, up_to).into_iter().try_for_each(|node| node.visit(query, visit))?;
                longer(whole, visit)?;
                longer(begins, visit)?;
            }
        }
        others.visit(query, visit)
    }
}

/// What to do with entries that are too many to walk.
enum Best {
    /// This key tells most of them apart.
    Split(Key),
    /// They are told apart by what they ask about rather than by the values.
    Groups,
}

fn best(of: &[(usize, Vec<Literal<'_>>)]) -> Option<Best> {
    if of.len() <= SHORT {
        return None;
    }
    let mut texts: HashMap<Key, HashSet<&[u8]>> = HashMap::new();
    for (key, text, _) in of.iter().flat_map(|(_, literals)| literals) {
        texts.entry(*key).or_default().insert(text);
    }
    let keys = texts.keys().filter(|key| matches!(key, Key::Value(_))).count();
    let (most, key) = texts.into_iter().map(|(key, texts)| (texts.len(), std::cmp::Reverse(key))).max()?;
    match most {
        most if most > 1 && most >= keys => Some(Best::Split(key.0)),
        _ if keys > 1 => Some(Best::Groups),
        _ => None,
    }
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

impl<'q> Query<'q> {
    /// Entries before this one that could match together with it.
    pub(super) fn beside(entry: &'q Entry<'_>, before: usize) -> Self {
        let literals = literals(entry, true);
        let is_absent = |condition: &&Condition<'_>| matches!(condition.test, Test::Absent);
        let absent: Vec<ThingId> = entry.conditions.iter().filter(is_absent).map(|condition| condition.of).collect();
        let known = move |key| {
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
        };
        Self { known: Box::new(known), present: None, before }
    }

    /// Entries before a given one that could match a request. `value` tells what it has of a thing, `present` of which things it has
    /// any.
    pub(super) fn of_request(
        value: impl Fn(ThingId) -> Option<&'q [u8]> + 'q,
        present: Vec<ThingId>,
        before: usize,
    ) -> Self {
        let known = move |key| {
            let whole = match key {
                Key::Value(thing) => value(thing).map(Cow::Borrowed),
                Key::End(thing) => value(thing).map(reversed),
                Key::Segment(position) => {
                    let path = value(PATH).unwrap_or_default();
                    let segment = segments_of(path).find(|(other, _)| *other == position);
                    segment.map(|(_, segment)| Cow::Borrowed(segment))
                }
            };
            whole.map_or(Known::Absent, Known::Whole)
        };
        Self { known: Box::new(known), present: Some(present), before }
    }
}

/// The segments of a path, from 1.
fn segments_of(path: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    path.split(|byte| *byte == b'/').enumerate().skip(1).take(SEGMENTS)
}

fn reversed(text: &[u8]) -> Cow<'_, [u8]> {
    text.iter().rev().copied().collect::<Vec<_>>().into()
}
