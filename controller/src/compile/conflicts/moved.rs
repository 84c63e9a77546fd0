//! What a change of rules does to requests: for each two rules, whether a request went by the one and now goes by the other. The old rules
//! and the new ones are read together, and a request is looked for that gets to the one among the old and to the other among the new.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use switchyard_crds::RouteRule;
use switchyard_crds::findings::ExampleRequest;

use super::entries::Entries;
use super::index::{Index, Query};
use super::reach::{Question, Reach, Takers};
use super::words;
use super::work::{STEPS_PER_SERVICE, Work};
use crate::object::Service;

/// Requests that go by another rule than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The rule that they went by, by its position among the old ones; none: no rule took them.
    pub from: Option<usize>,
    /// The rule that they go by now.
    pub to: Option<usize>,
    /// One of them.
    pub example: ExampleRequest,
}

/// One side of the change: an entry that a request is to get to, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct End {
    rule: Option<usize>,
    entry: Option<usize>,
}

/// All pairs of rules between which requests move, with a request each; none where `is_same` says that both do the same with it. The
/// positions that it is asked about are those in [`Moved`].
pub fn moved(
    service: &Service,
    before: &[&RouteRule],
    after: &[&RouteRule],
    is_same: &dyn Fn(Option<usize>, Option<usize>) -> bool,
) -> Vec<Moved> {
    let rules: Vec<&RouteRule> = before.iter().chain(after).copied().collect();
    let entries = Entries::of(service, &rules);
    let work = Work::new(STEPS_PER_SERVICE);
    let index = Index::new(&entries, 0..entries.entries.len());
    let host = format!("{}.{}", service.name, service.namespace);
    let question = Question { entries: &entries, index: &index, work: &work, host };
    let changed = |rule: usize, others: &[&RouteRule]| !others.iter().any(|other| is_unchanged(rules[rule], other));
    let changed: BTreeSet<usize> =
        (0..rules.len()).filter(|rule| changed(*rule, if *rule < before.len() { after } else { before })).collect();
    let mut search = Search { question, split: before.len(), is_same, found: Vec::new(), known: BTreeSet::new() };
    // Between two rules that have not changed nothing moves: who is asked first has not changed either.
    for (at, entry) in entries.entries.iter().enumerate().filter(|(_, entry)| changed.contains(&entry.rule)) {
        let end = End { rule: Some(entry.rule), entry: Some(at) };
        search.against_all(end);
    }
    search.found.sort_by_key(|moved| (moved.from.is_none(), moved.from, moved.to.is_none(), moved.to));
    search.found
}

/// Whether it is the same rule and asks for the same with the same precedence. What it does with a request may be something else.
fn is_unchanged(rule: &RouteRule, other: &RouteRule) -> bool {
    rule.metadata.name == other.metadata.name
        && rule.metadata.namespace == other.metadata.namespace
        && rule.spec == other.spec
}

struct Search<'m, 'a, 'q> {
    question: Question<'m, 'a>,
    /// Where the new rules begin.
    split: usize,
    is_same: &'q dyn Fn(Option<usize>, Option<usize>) -> bool,
    found: Vec<Moved>,
    /// Pairs of rules that are done with.
    known: BTreeSet<(Option<usize>, Option<usize>)>,
}

impl Search<'_, '_, '_> {
    fn against_all(&mut self, end: End) {
        let Some(at) = end.entry else { return };
        let entries = &self.question.entries.entries;
        let is_old = |rule: usize| rule < self.split;
        let side = is_old(entries[at].rule);
        let mut others = Vec::new();
        let _ = self.question.index.visit(&Query::beside(&entries[at], entries.len()), &mut |other| {
            self.question.work.spend(1);
            if is_old(entries[other].rule) != side && !entries[at].is_apart_from(&entries[other]) {
                others.push(End { rule: Some(entries[other].rule), entry: Some(other) });
            }
            if self.question.work.is_used_up() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        others.sort();
        for other in others.into_iter().chain([End { rule: None, entry: None }]) {
            if side { self.pair(end, other) } else { self.pair(other, end) }
        }
    }

    fn pair(&mut self, from: End, to: End) {
        let (old, new) = (from.rule, to.rule.map(|rule| rule - self.split));
        if self.known.contains(&(old, new)) || (self.is_same)(old, new) {
            return;
        }
        let wanted: Vec<usize> = [from.entry, to.entry].into_iter().flatten().collect();
        let all = self.question.entries.entries.len();
        let end = |end: End| (end.entry.unwrap_or(all), end.rule);
        let takers = Takers::OfBoth { old: end(from), new: end(to), split: self.split };
        if let Reach::Request(request) = self.question.ask(&wanted, takers) {
            self.known.insert((old, new));
            self.found.push(Moved { from: old, to: new, example: words::shown(&self.question, &request) });
        }
    }
}
