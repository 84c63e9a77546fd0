//! From entries to an index: which thing each entry is found by.
//!
//! What an entry asks for is a list of needs; a need is met by any of its marks (a value of a field, a beginning, a text in it), and all
//! needs must be met. At each node every entry goes to the bucket of its rarest need; a bucket of more than a few is a node of its
//! own, where the need that led there counts no more. So it ends, and no deeper than an entry has needs.

use std::collections::BTreeMap;

use aho_corasick::{AhoCorasick, AhoCorasickKind};

use super::{Begins, Bucket, CROWD, Contains, Crowd, Field, Group, Is, Kind, Node, Values};
use crate::matching::Entry;
use crate::matching::matchers::{NamedMatcher, PathMatcher, PathPattern, ValueMatcher};
use crate::matching::pattern::Pattern;
use crate::matching::quick::{Map, hash};

/// So many entries are walked.
const FEW: usize = 4;

/// How a value is looked up; of needs that are equally rare, the cheaper one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Test {
    Is,
    Begins,
    Contains,
    Present,
}

/// A field, as an entry names it. The order is that of looking up, the cheapest in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Named<'e> {
    Path,
    Call,
    Header(&'e str),
    Cookie(&'e str),
    Query(&'e str),
    Identity,
    Account,
    Namespace,
    Label(&'e str),
    Method,
    Port,
}

/// Something that a request has or has not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Mark<'e> {
    test: Test,
    field: Named<'e>,
    value: Value,
}

/// What a field is compared with. Values of one hash and length are one mark.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Value {
    Any,
    Hashed { hash: u64, length: usize },
    Text(Box<[u8]>),
}

/// A mark, as a position in the plan's list.
type MarkAt = u32;

/// The marks of which a request must have one.
type Need = Box<[MarkAt]>;

struct Plan<'e> {
    marks: Vec<Mark<'e>>,
    /// For each entry.
    needs: Vec<Box<[Need]>>,
    /// For each mark, how many entries of a node ask for it; zero between nodes.
    uses: Vec<u32>,
}

/// The bucket of all entries.
pub(super) fn bucket(entries: &[Entry]) -> Bucket {
    let mut plan = Plan::new(entries);
    plan.bucket((0..).zip(entries).map(|(position, _)| position).collect(), &mut Vec::new())
}

impl<'e> Plan<'e> {
    fn new(entries: &'e [Entry]) -> Self {
        let mut known: Map<Mark<'e>, MarkAt> = Map::default();
        let mut number = |mark: Mark<'e>| {
            let next = u32::try_from(known.len()).unwrap_or(u32::MAX);
            *known.entry(mark).or_insert(next)
        };
        let mut needs = Vec::with_capacity(entries.len());
        for entry in entries {
            let of_entry = if entries.len() > FEW { needs_of(entry) } else { Vec::new() };
            needs.push(of_entry.into_iter().map(|need| need.into_iter().map(&mut number).collect()).collect());
        }
        let mut marks: Vec<(Mark<'e>, MarkAt)> = known.into_iter().collect();
        marks.sort_unstable_by_key(|(_, at)| *at);
        let uses = vec![0; marks.len()];
        Self { marks: marks.into_iter().map(|(mark, _)| mark).collect(), needs, uses }
    }

    /// The bucket of some entries, in order. `met` are the marks that led there.
    fn bucket(&mut self, entries: Vec<u32>, met: &mut Vec<MarkAt>) -> Bucket {
        match entries.as_slice() {
            [entry] => return Bucket::One(*entry),
            few if few.len() <= FEW => return Bucket::Few(entries.into()),
            _ => {}
        }
        let mut rest = Vec::new();
        let mut by_mark: BTreeMap<MarkAt, Vec<u32>> = BTreeMap::new();
        for (entry, need) in self.rarest(&entries, met) {
            match need {
                Some(marks) => marks.iter().for_each(|mark| by_mark.entry(*mark).or_default().push(entry)),
                None => rest.push(entry),
            }
        }
        if by_mark.is_empty() {
            return Bucket::Few(rest.into());
        }
        let mut fields: BTreeMap<Named<'e>, Vec<(MarkAt, Bucket)>> = BTreeMap::new();
        for (mark, entries) in by_mark {
            met.push(mark);
            let bucket = self.bucket(entries, met);
            met.pop();
            fields.entry(self.marks[mark as usize].field).or_default().push((mark, bucket));
        }
        self.node(fields, rest)
    }

    /// For each entry the need that fewest others have. `None`: it has none that is not met.
    fn rarest(&mut self, entries: &[u32], met: &[MarkAt]) -> Vec<(u32, Option<Need>)> {
        let open = |need: &&Need| !need.iter().any(|mark| met.contains(mark));
        for entry in entries {
            let marks = self.needs[*entry as usize].iter().filter(open).flatten();
            marks.for_each(|mark| self.uses[*mark as usize] += 1);
        }
        let cost = |need: &&Need| {
            let uses: u32 = need.iter().map(|mark| self.uses[*mark as usize]).sum();
            let mark = need.first().map(|mark| &self.marks[*mark as usize]);
            (uses, mark.map(|mark| (mark.test, mark.field)))
        };
        let chosen = entries.iter().map(|entry| {
            let needs = self.needs[*entry as usize].iter().filter(open);
            (*entry, needs.min_by_key(cost).cloned())
        });
        let chosen = chosen.collect();
        for entry in entries {
            self.needs[*entry as usize].iter().flatten().for_each(|mark| self.uses[*mark as usize] = 0);
        }
        chosen
    }

    fn node(&self, fields: BTreeMap<Named<'e>, Vec<(MarkAt, Bucket)>>, mut rest: Vec<u32>) -> Bucket {
        let mut count: BTreeMap<Kind, usize> = BTreeMap::new();
        fields.keys().filter_map(Named::kind).for_each(|(kind, _)| *count.entry(kind).or_default() += 1);
        let (mut groups, mut crowds): (Vec<Group>, BTreeMap<Kind, Crowd>) = Default::default();
        for (field, buckets) in fields {
            let (min, values) = self.values(field, buckets, &mut rest);
            match field.kind().filter(|(kind, _)| count.get(kind).is_some_and(|names| *names > CROWD)) {
                Some((kind, name)) => {
                    let crowd = crowds.entry(kind).or_insert_with(|| Crowd { min, kind, by_name: Map::default() });
                    crowd.min = crowd.min.min(min);
                    crowd.by_name.insert(name.as_bytes().into(), values);
                }
                // No request has a field of such a name.
                None => groups.extend(field.owned().map(|field| Group { min, field, values })),
            }
        }
        groups.sort_by_key(|group| group.min);
        rest.sort_unstable();
        rest.dedup();
        let crowds: Vec<Crowd> = crowds.into_values().collect();
        let lowest = groups.first().map(|group| group.min).into_iter().chain(crowds.iter().map(|crowd| crowd.min));
        let min = lowest.chain(rest.first().copied()).min().unwrap_or(u32::MAX);
        Bucket::Node(Box::new(Node { min, groups, crowds, rest: rest.into() }))
    }

    /// What is asked of one field. What cannot be looked up goes to `rest`.
    fn values(&self, field: Named<'_>, buckets: Vec<(MarkAt, Bucket)>, rest: &mut Vec<u32>) -> (u32, Values) {
        let mut values = Values::default();
        let mut min = u32::MAX;
        let (mut is, mut begins) = (Map::<u64, Bucket>::default(), Map::<u64, Bucket>::default());
        let (mut lengths, mut texts) = (Vec::new(), Vec::new());
        for (mark, bucket) in buckets {
            let mark = &self.marks[mark as usize];
            min = min.min(bucket.min());
            let other = match (mark.test, &mark.value) {
                (Test::Begins, Value::Hashed { hash, length }) => {
                    lengths.push(*length);
                    begins.insert(*hash, bucket)
                }
                (_, Value::Hashed { hash, .. }) => is.insert(*hash, bucket),
                (_, Value::Text(text)) => {
                    texts.push((text, bucket));
                    None
                }
                (_, Value::Any) => values.present.replace(Box::new(bucket)).map(|other| *other),
            };
            // Of the same hash and another length.
            other.iter().for_each(|other| all_of(other, rest));
        }
        values.is = match is.len() {
            0 => Is::None,
            1 => is.into_iter().next().map_or(Is::None, |(hash, bucket)| Is::One(hash, bucket)),
            _ => Is::Many(is),
        };
        if !begins.is_empty() {
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            lengths.dedup();
            let segments = field == Named::Path;
            values.begins = Some(Box::new(Begins { lengths, segments, by_hash: begins }));
        }
        if !texts.is_empty() {
            texts.sort_by_key(|(_, bucket)| bucket.min());
            // The smallest of the library's automata; the quickest would take kilobytes for each text.
            let kind = Some(AhoCorasickKind::ContiguousNFA);
            match AhoCorasick::builder().kind(kind).build(texts.iter().map(|(text, _)| text)) {
                Ok(automaton) => {
                    let buckets = texts.into_iter().map(|(_, bucket)| bucket).collect();
                    values.contains = Some(Box::new(Contains { texts: automaton, buckets }));
                }
                // More texts than it can tell apart.
                Err(_) => texts.iter().for_each(|(_, bucket)| all_of(bucket, rest)),
            }
        }
        (min, values)
    }
}

/// Puts all entries of a bucket into a list.
fn all_of(bucket: &Bucket, list: &mut Vec<u32>) {
    match bucket {
        Bucket::One(entry) => list.push(*entry),
        Bucket::Few(entries) => list.extend(entries),
        Bucket::Node(node) => {
            list.extend(&node.rest);
            let groups = node.groups.iter().map(|group| &group.values);
            let crowds = node.crowds.iter().flat_map(|crowd| crowd.by_name.values());
            for values in groups.chain(crowds) {
                let begins = values.begins.iter().flat_map(|begins| begins.by_hash.values());
                let contains = values.contains.iter().flat_map(|contains| &contains.buckets);
                let (one, many) = match &values.is {
                    Is::None => (None, None),
                    Is::One(_, bucket) => (Some(bucket), None),
                    Is::Many(by_hash) => (None, Some(by_hash.values())),
                };
                let buckets = one.into_iter().chain(many.into_iter().flatten()).chain(begins).chain(contains);
                buckets.chain(values.present.as_deref()).for_each(|bucket| all_of(bucket, list));
            }
        }
    }
}

impl<'e> Named<'e> {
    /// The kind and the name of a field that has one.
    fn kind(&self) -> Option<(Kind, &'e str)> {
        match self {
            Self::Header(name) => Some((Kind::Header, name)),
            Self::Query(name) => Some((Kind::Query, name)),
            Self::Cookie(name) => Some((Kind::Cookie, name)),
            Self::Label(name) => Some((Kind::Label, name)),
            _ => None,
        }
    }

    fn owned(self) -> Option<Field> {
        Some(match self {
            Self::Path => Field::Path,
            Self::Call => Field::Call,
            Self::Method => Field::Method,
            Self::Port => Field::Port,
            Self::Namespace => Field::Namespace,
            Self::Account => Field::Account,
            Self::Identity => Field::Identity,
            Self::Header(name) => Field::Header(name.parse().ok()?),
            Self::Query(name) => Field::Query(name.as_bytes().into()),
            Self::Cookie(name) => Field::Cookie(name.as_bytes().into()),
            Self::Label(name) => Field::Label(name.into()),
        })
    }
}

impl<'e> Mark<'e> {
    fn hashed(test: Test, field: Named<'e>, value: &[u8]) -> Self {
        Self { test, field, value: Value::Hashed { hash: hash(value), length: value.len() } }
    }

    fn is(field: Named<'e>, value: &str) -> Vec<Self> {
        vec![Self::hashed(Test::Is, field, value.as_bytes())]
    }

    fn begins(field: Named<'e>, value: &str) -> Vec<Self> {
        vec![Self::hashed(Test::Begins, field, value.as_bytes())]
    }
}

/// What an entry needs; what no request can be looked up by is left out.
fn needs_of(entry: &Entry) -> Vec<Vec<Mark<'_>>> {
    let mut needs = Vec::new();
    match &entry.path {
        None => {}
        Some(PathMatcher::Exact(path)) => needs.push(Mark::is(Named::Path, path)),
        // All paths begin so.
        Some(PathMatcher::Prefix(prefix)) if prefix.is_empty() => {}
        Some(PathMatcher::Prefix(prefix)) => needs.push(Mark::begins(Named::Path, prefix)),
        Some(PathMatcher::Pattern(PathPattern(pattern))) => texts(&mut needs, Named::Path, pattern),
    }
    if let Some(grpc) = &entry.grpc {
        match (&grpc.service, &grpc.method) {
            (Some(service), Some(method)) => needs.push(Mark::is(Named::Path, &format!("/{service}/{method}"))),
            (Some(service), None) => needs.push(Mark::begins(Named::Path, &format!("/{service}"))),
            (None, Some(method)) => needs.push(Mark::is(Named::Call, method)),
            (None, None) => {}
        }
    }
    entry.headers.iter().for_each(|header| named(&mut needs, Named::Header(header.name()), header));
    entry.cookies.iter().for_each(|cookie| named(&mut needs, Named::Cookie(cookie.name()), cookie));
    entry.query.iter().for_each(|query| named(&mut needs, Named::Query(query.name()), query));
    if let Some(source) = &entry.source {
        // An account is one of a namespace: both together say more than one after the other.
        if let (Some(namespace), Some(account)) = (&source.namespace, &source.service_account) {
            needs.push(Mark::is(Named::Identity, &format!("{namespace}/{account}")));
        }
        needs.extend(source.namespace.iter().map(|namespace| Mark::is(Named::Namespace, namespace)));
        needs.extend(source.service_account.iter().map(|account| Mark::is(Named::Account, account)));
        needs.extend(source.labels.iter().map(|(name, value)| Mark::is(Named::Label(name), value)));
    }
    needs.extend(entry.method.iter().map(|method| Mark::is(Named::Method, method.as_str())));
    let port = |port: u16| vec![Mark::hashed(Test::Is, Named::Port, &port.to_be_bytes())];
    needs.extend(entry.port.map(port));
    needs
}

fn named<'e>(needs: &mut Vec<Vec<Mark<'e>>>, field: Named<'e>, matcher: &'e NamedMatcher) {
    let present = || vec![Mark { test: Test::Present, field, value: Value::Any }];
    match matcher.value() {
        ValueMatcher::Exact(value) => needs.push(vec![Mark::hashed(Test::Is, field, value)]),
        ValueMatcher::Prefix(value) if !value.is_empty() => {
            needs.push(vec![Mark::hashed(Test::Begins, field, value)]);
        }
        ValueMatcher::Prefix(_) | ValueMatcher::Present => needs.push(present()),
        ValueMatcher::Pattern(pattern) => {
            needs.push(present());
            texts(needs, field, pattern);
        }
        ValueMatcher::Absent => {}
    }
}

/// What a regular expression takes for granted.
fn texts<'e>(needs: &mut Vec<Vec<Mark<'e>>>, field: Named<'e>, pattern: &Pattern) {
    for texts in pattern.required() {
        let mark = |text| Mark { test: Test::Contains, field, value: Value::Text(text) };
        needs.push(texts.into_iter().map(mark).collect());
    }
}
