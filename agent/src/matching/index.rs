//! Finds the first entry that holds, among any number, without asking each.
//!
//! Every entry is found by one thing that a request must have for it to hold, the one that fewest other entries ask for: a path, the
//! beginning of one, the value of a header field, a text that a regular expression takes for granted. Entries that share it
//! are parted again by the next thing that tells them apart. What a request has of all that is looked up; the entries found so are asked
//! ([`Entry::holds`]), and the lowest that holds is the answer.
//!
//! Keeps true:
//! - The answer is that of a walk over the entries in their order (`the_index_finds_what_a_walk_finds`).
//! - How long it takes depends on the request and on how many kinds of things rules ask for, hardly on how many rules there are
//!   (`benches/match`). What is left to a walk are entries that ask for nothing but `Absent`, and for regular expressions in which no
//!   text is certain, such as `/[a-z]+`.
//! - It takes no memory per request, but for what is used again.

use http::header::HeaderName;

use super::quick::{Map, hash};
use super::{Entry, View, fields, grpc};

/// From entries to an index.
mod plan;

/// More names than this of one kind are not looked for one by one: what a request has is looked up among them.
const CROWD: usize = 8;

/// How the entries of one Service are found.
#[derive(Debug, Default)]
pub struct Index {
    root: Bucket,
    for_connections: Box<[u32]>,
    asks_who_calls: bool,
}

/// Entries that share what was looked up so far, as their positions.
#[derive(Debug)]
enum Bucket {
    One(u32),
    /// In order.
    Few(Box<[u32]>),
    Node(Box<Node>),
}

/// Entries, parted by what else they ask for.
#[derive(Debug)]
struct Node {
    /// The lowest of all.
    min: u32,
    /// Those of few names, the lowest in front.
    groups: Vec<Group>,
    crowds: Vec<Crowd>,
    /// Those that nothing tells apart.
    rest: Box<[u32]>,
}

/// What entries ask of one field.
#[derive(Debug)]
struct Group {
    min: u32,
    field: Field,
    values: Values,
}

/// Many groups for fields of one kind, by their names.
#[derive(Debug)]
struct Crowd {
    min: u32,
    kind: Kind,
    by_name: Map<Box<[u8]>, Values>,
}

/// Kinds of fields that have names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Header,
    Query,
    Cookie,
    Label,
}

/// Something of a request that has a value.
#[derive(Debug)]
enum Field {
    Path,
    /// The method of a gRPC call.
    Call,
    Method,
    Port,
    /// The caller's namespace.
    Namespace,
    /// The caller's account.
    Account,
    /// Both: namespace/account.
    Identity,
    Header(HeaderName),
    Query(Box<[u8]>),
    Cookie(Box<[u8]>),
    Label(Box<str>),
}

/// What values there may be, and who asks for each.
#[derive(Debug, Default)]
struct Values {
    is: Is,
    begins: Option<Box<Begins>>,
    contains: Option<Box<Contains>>,
    /// Whatever it is.
    present: Option<Box<Bucket>>,
}

/// Whole values, by their hashes.
#[derive(Debug, Default)]
enum Is {
    #[default]
    None,
    One(u64, Bucket),
    Many(Map<u64, Bucket>),
}

/// Beginnings of values.
#[derive(Debug)]
struct Begins {
    /// Their lengths, the longest in front.
    lengths: Vec<usize>,
    /// They are paths: whole segments only.
    segments: bool,
    by_hash: Map<u64, Bucket>,
}

/// Texts in values, found in one pass.
#[derive(Debug)]
struct Contains {
    texts: aho_corasick::AhoCorasick,
    /// For each text; the lowest in front.
    buckets: Vec<Bucket>,
}

impl Default for Bucket {
    fn default() -> Self {
        Self::Few(Box::default())
    }
}

impl Bucket {
    /// The lowest of its entries.
    fn min(&self) -> u32 {
        match self {
            Self::One(entry) => *entry,
            Self::Few(entries) => entries.first().copied().unwrap_or(u32::MAX),
            Self::Node(node) => node.min,
        }
    }
}

impl Index {
    /// The index of these entries, which stand in order of precedence.
    pub fn new(entries: &[Entry]) -> Self {
        let for_connections = (0..).zip(entries).filter(|(_, entry)| entry.is_for_connections());
        Self {
            root: plan::bucket(entries),
            for_connections: for_connections.map(|(position, _)| position).collect(),
            asks_who_calls: entries.iter().any(|entry| entry.source.is_some()),
        }
    }

    /// Whether it matters who calls.
    pub fn asks_who_calls(&self) -> bool {
        self.asks_who_calls
    }

    /// The entries that may be for a connection which is not HTTP, in order.
    pub(super) fn for_connections<'e>(&self, entries: &'e [Entry]) -> impl Iterator<Item = &'e Entry> {
        self.for_connections.iter().filter_map(|position| entries.get(*position as usize))
    }

    /// The first of the entries that holds. They are those that the index was made of.
    pub fn first<'e>(&self, entries: &'e [Entry], view: &View<'_>) -> Option<&'e Entry> {
        let mut search = Search {
            entries,
            view,
            best: u32::MAX,
            #[cfg(test)]
            asked: 0,
        };
        search.bucket(&self.root);
        entries.get(search.best as usize)
    }
}

struct Search<'s, 'e> {
    entries: &'e [Entry],
    view: &'s View<'s>,
    /// The lowest entry so far that holds.
    best: u32,
    /// How many entries have been asked.
    #[cfg(test)]
    asked: usize,
}

impl Search<'_, '_> {
    /// Looks at one entry. False when neither it nor a higher one is of interest any more.
    fn entry(&mut self, position: u32) -> bool {
        if position >= self.best {
            return false;
        }
        #[cfg(test)]
        {
            self.asked += 1;
        }
        let holds = self.entries.get(position as usize).is_some_and(|entry| entry.holds(self.view).is_ok());
        if holds {
            self.best = position;
        }
        !holds
    }

    fn bucket(&mut self, bucket: &Bucket) {
        match bucket {
            Bucket::One(entry) => {
                self.entry(*entry);
            }
            Bucket::Few(entries) => self.walk(entries),
            Bucket::Node(node) if node.min < self.best => self.node(node),
            Bucket::Node(_) => {}
        }
    }

    fn walk(&mut self, entries: &[u32]) {
        for entry in entries {
            if !self.entry(*entry) {
                return;
            }
        }
    }

    fn node(&mut self, node: &Node) {
        for group in &node.groups {
            if group.min >= self.best {
                break;
            }
            self.group(group);
        }
        for crowd in &node.crowds {
            if crowd.min < self.best {
                self.crowd(crowd);
            }
        }
        self.walk(&node.rest);
    }

    fn group(&mut self, group: &Group) {
        let (view, values) = (self.view, &group.values);
        let caller = view.caller;
        match &group.field {
            Field::Path => self.value(values, view.path.as_bytes()),
            Field::Call if view.grpc => {
                if let Some((_, method)) = grpc::call(view.path) {
                    self.value(values, method.as_bytes());
                }
            }
            Field::Call => {}
            Field::Method => self.value(values, view.method.as_str().as_bytes()),
            Field::Port => self.value(values, &view.port.to_be_bytes()),
            Field::Namespace => self.optional(values, caller.map(|caller| caller.namespace.as_bytes())),
            Field::Account => self.optional(values, caller.map(|caller| caller.service_account.as_bytes())),
            Field::Identity => fields::with_buffer(|identity: &mut Vec<u8>| {
                let Some(caller) = caller else { return };
                for part in [&caller.namespace, "/", &caller.service_account] {
                    identity.extend_from_slice(part.as_bytes());
                }
                self.value(values, identity);
            }),
            Field::Header(name) => fields::header(view.headers, name, |value| self.optional(values, value)),
            Field::Query(name) => fields::parameter(view.query, name, |value| self.optional(values, value)),
            Field::Cookie(name) => self.optional(values, fields::cookie(view.headers, name)),
            Field::Label(name) => {
                let label = caller.and_then(|caller| caller.labels.get(&**name));
                self.optional(values, label.map(String::as_bytes));
            }
        }
    }

    /// Looks up what the request has of one kind. Of a name that it has twice another value may count: the entries tell.
    fn crowd(&mut self, crowd: &Crowd) {
        let view = self.view;
        match crowd.kind {
            Kind::Header => {
                for name in view.headers.keys() {
                    if let Some(values) = crowd.by_name.get(name.as_str().as_bytes()) {
                        fields::header(view.headers, name, |value| self.optional(values, value));
                    }
                }
            }
            Kind::Query => {
                for (name, value) in fields::parameters(view.query) {
                    let values = fields::decoded(name, |name| crowd.by_name.get(name));
                    if let Some(values) = values {
                        fields::decoded(value, |value| self.value(values, value));
                    }
                }
            }
            Kind::Cookie => {
                for (name, value) in fields::cookies(view.headers) {
                    if let Some(values) = crowd.by_name.get(name) {
                        self.value(values, value);
                    }
                }
            }
            Kind::Label => {
                for (name, value) in view.caller.into_iter().flat_map(|caller| &caller.labels) {
                    if let Some(values) = crowd.by_name.get(name.as_bytes()) {
                        self.value(values, value.as_bytes());
                    }
                }
            }
        }
    }

    fn optional(&mut self, values: &Values, value: Option<&[u8]>) {
        if let Some(value) = value {
            self.value(values, value);
        }
    }

    fn value(&mut self, values: &Values, value: &[u8]) {
        let whole = match &values.is {
            Is::None => None,
            Is::One(hashed, bucket) => (*hashed == hash(value)).then_some(bucket),
            Is::Many(by_hash) => by_hash.get(&hash(value)),
        };
        if let Some(bucket) = whole {
            self.bucket(bucket);
        }
        if let Some(begins) = &values.begins {
            self.begins(begins, value);
        }
        if let Some(contains) = &values.contains {
            self.contains(contains, value);
        }
        if let Some(bucket) = &values.present {
            self.bucket(bucket);
        }
    }

    fn begins(&mut self, begins: &Begins, value: &[u8]) {
        for length in &begins.lengths {
            let Some((beginning, rest)) = value.split_at_checked(*length) else { continue };
            let is_whole = !begins.segments || matches!(rest.first(), None | Some(b'/'));
            if is_whole && let Some(bucket) = begins.by_hash.get(&hash(beginning)) {
                self.bucket(bucket);
            }
        }
    }

    fn contains(&mut self, contains: &Contains, value: &[u8]) {
        fields::with_buffer(|found: &mut Vec<u32>| {
            let texts = contains.texts.find_overlapping_iter(value).map(|text| text.pattern().as_u32());
            found.extend(texts);
            // A text may be there many times, and the lowest is to come first.
            found.sort_unstable();
            found.dedup();
            for text in found.iter() {
                let Some(bucket) = contains.buckets.get(*text as usize) else { continue };
                if bucket.min() >= self.best {
                    break;
                }
                self.bucket(bucket);
            }
        });
    }
}

#[cfg(test)]
mod tests;
