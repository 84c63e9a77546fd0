//! Whether a request exists that matches some entries and none of those that would take it away from them, and one to show.
//!
//! A request that matches is made up, and looked for among the entries that could take it. One that does is a reason to go on: a
//! request that does not match it fails one of its conditions, so each of them is turned round in its turn. That ends with a request that
//! nobody takes, or with the entries that together take all. Conditions on different things do not touch one another, so what is known
//! is kept thing by thing.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use super::entries::{Entries, Thing, ThingId};
use super::index::{Index, Query};
use super::values::{Solved, Tests};
use super::work::Work;

/// Requests that are made up for one question.
const TRIES: usize = 400;

/// Of the entries that take a request away, so many are looked at for one that takes many.
const TAKERS: usize = 8;

/// A request, as far as anything is asked of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Request {
    /// In order of the things.
    pub(super) values: Vec<(ThingId, Option<Vec<u8>>)>,
}

/// The answer.
pub(super) enum Reach {
    /// This one gets there.
    Request(Request),
    /// None does; these entries take them all. With none of them, the conditions contradict one another.
    Nothing(Vec<usize>),
    /// It could not be told within the bounds.
    Unclear,
}

/// A question about entries.
pub(super) struct Question<'m, 'a> {
    pub(super) entries: &'m Entries<'a>,
    /// Of all that could take a request away.
    pub(super) index: &'m Index<'m>,
    pub(super) work: &'m Work,
    /// How callers name the Service.
    pub(super) host: String,
}

/// What is known of one thing.
#[derive(Clone)]
struct Slot<'m, 'a> {
    thing: ThingId,
    tests: Tests<'m, 'a>,
    value: Option<Vec<u8>>,
}

/// Which entries could take a request away.
#[derive(Clone, Copy)]
pub(super) enum Takers<'q> {
    /// Those that are asked before this one, but for those of its own rule.
    Before(usize),
    /// Those that are asked before this one, whoever's they are.
    AllBefore(usize),
    /// These.
    Only(&'q [usize]),
    /// Of the rules up to `split` those before the first entry, of the others those before the second, but for those of the two
    /// entries' own rules.
    OfBoth { old: (usize, Option<usize>), new: (usize, Option<usize>), split: usize },
}

/// A search under way.
struct Search<'m, 'a, 'q> {
    question: &'q Question<'m, 'a>,
    takers: Takers<'q>,
    tries: usize,
}

impl<'m, 'a> Question<'m, 'a> {
    /// Whether a request matches all of `wanted` and none of the `takers`.
    pub(super) fn ask(&self, wanted: &[usize], takers: Takers<'_>) -> Reach {
        let slots = match self.slots(wanted) {
            Ok(slots) => slots,
            Err(answer) => return answer,
        };
        let mut search = Search { question: self, takers, tries: TRIES };
        match search.go(slots) {
            Reach::Nothing(mut takers) => {
                takers.sort_unstable();
                takers.dedup();
                Reach::Nothing(takers)
            }
            other => other,
        }
    }

    /// A request that matches all of `wanted`, whoever takes it.
    pub(super) fn any(&self, wanted: &[usize]) -> Option<Request> {
        self.slots(wanted).ok().map(|slots| request(&slots))
    }

    /// The thing about which the conditions of an entry contradict one another.
    pub(super) fn contradiction(&self, entry: usize) -> Option<&'m Thing<'a>> {
        let slots = self.gathered(&[entry]);
        let mut solved = slots.into_iter().map(|slot| {
            let solved = slot.tests.solve(self.entries.domain(slot.thing), self.work);
            (slot.thing, solved)
        });
        let found = solved.find(|(_, solved)| matches!(solved, Solved::Empty));
        found.map(|(thing, _)| &self.entries.things[thing as usize].0)
    }

    fn slots(&self, wanted: &[usize]) -> Result<Vec<Slot<'m, 'a>>, Reach> {
        let mut slots = self.gathered(wanted);
        let mut is_clear = true;
        for slot in &mut slots {
            match slot.tests.solve(self.entries.domain(slot.thing), self.work) {
                Solved::Value(value) => slot.value = value,
                Solved::Empty => return Err(Reach::Nothing(Vec::new())),
                Solved::Unclear => is_clear = false,
            }
        }
        if is_clear { Ok(slots) } else { Err(Reach::Unclear) }
    }

    /// The conditions, thing by thing.
    fn gathered(&self, wanted: &[usize]) -> Vec<Slot<'m, 'a>> {
        let entries = self.entries;
        let mut slots: Vec<Slot<'m, 'a>> = Vec::new();
        for condition in wanted.iter().flat_map(|at| &entries.entries[*at].conditions) {
            slot(&mut slots, condition.of).tests.yes.push(&condition.test);
        }
        if wanted.iter().any(|at| entries.entries[*at].is_grpc) {
            // A call as it comes, where nothing else is asked for.
            let content_type = entries.id(&Thing::Header("content-type".into()));
            for (thing, value) in [(entries.id(&Thing::Method), "POST"), (content_type, "application/grpc")] {
                if let Some(thing) = thing {
                    slot(&mut slots, thing).tests.preferred = Some(value);
                }
            }
        }
        slots
    }

    /// Whether an entry matches a request.
    fn matches<'v>(&self, at: usize, value: &impl Fn(ThingId) -> Option<&'v [u8]>) -> bool {
        self.entries.entries[at].conditions.iter().all(|condition| {
            let value = value(condition.of);
            self.work.spend(condition.test.cost(value));
            condition.test.holds(value)
        })
    }

    /// An entry that takes the request away.
    fn taker(&self, slots: &[Slot<'_, '_>], takers: Takers<'_>) -> Option<usize> {
        let entries = &self.entries.entries;
        let value = |thing: ThingId| match slots.binary_search_by_key(&thing, |slot| slot.thing) {
            Ok(at) => slots[at].value.as_deref(),
            Err(_) => self.entries.domain(thing).default_value(),
        };
        let before = match takers {
            Takers::Only(these) => {
                self.work.spend(these.len() as u64);
                return these.iter().copied().find(|at| self.matches(*at, &value));
            }
            Takers::Before(at) | Takers::AllBefore(at) => at,
            Takers::OfBoth { old, new, .. } => old.0.max(new.0),
        };
        let takes = |at: usize| match takers {
            Takers::Before(before) => entries[at].rule != entries[before].rule,
            Takers::OfBoth { old, new, split } => {
                let (before, own) = if entries[at].rule < split { old } else { new };
                at < before && Some(entries[at].rule) != own
            }
            Takers::AllBefore(_) | Takers::Only(_) => true,
        };
        let given = slots.iter().filter(|slot| slot.value.is_some()).map(|slot| slot.thing);
        let present = self.entries.always.iter().copied().chain(given).collect::<BTreeSet<_>>().into_iter().collect();
        let mut found: Vec<usize> = Vec::new();
        let _ = self.index.visit(&Query::of_request(value, present, before), &mut |at| {
            self.work.spend(1);
            if takes(at) && self.matches(at, &value) {
                found.push(at);
            }
            let is_enough = found.len() >= TAKERS || self.work.is_used_up();
            if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        // One that asks for little takes much, so the search is over sooner.
        found.into_iter().min_by_key(|at| (entries[*at].conditions.len(), *at))
    }
}

impl<'m, 'a> Search<'m, 'a, '_> {
    fn go(&mut self, slots: Vec<Slot<'m, 'a>>) -> Reach {
        let question = self.question;
        if self.tries == 0 || question.work.is_used_up() {
            return Reach::Unclear;
        }
        self.tries -= 1;
        let Some(taker) = question.taker(&slots, self.takers) else {
            return match is_consistent(question.entries, &slots) {
                true => Reach::Request(request(&slots)),
                false => Reach::Unclear,
            };
        };
        let mut takers = vec![taker];
        let mut is_clear = true;
        let mut conditions: Vec<_> = question.entries.entries[taker].conditions.iter().collect();
        // What nothing is asked of can be turned round most easily.
        conditions.sort_by_key(|condition| {
            let slot = slots.iter().find(|slot| slot.thing == condition.of);
            slot.map_or(0, |slot| slot.tests.yes.len())
        });
        for condition in conditions {
            let mut turned = slots.clone();
            let changed = slot(&mut turned, condition.of);
            changed.tests.no.push(&condition.test);
            match changed.tests.solve(question.entries.domain(condition.of), question.work) {
                Solved::Empty => continue,
                Solved::Unclear => {
                    is_clear = false;
                    continue;
                }
                Solved::Value(value) => changed.value = value,
            }
            match self.go(turned) {
                Reach::Nothing(more) => takers.extend(more),
                Reach::Unclear => is_clear = false,
                found => return found,
            }
        }
        if is_clear { Reach::Nothing(takers) } else { Reach::Unclear }
    }
}

/// What is known of a thing, in its place.
fn slot<'s, 'm, 'a>(slots: &'s mut Vec<Slot<'m, 'a>>, thing: ThingId) -> &'s mut Slot<'m, 'a> {
    let at = match slots.binary_search_by_key(&thing, |slot| slot.thing) {
        Ok(at) => at,
        Err(at) => {
            slots.insert(at, Slot { thing, tests: Tests::default(), value: None });
            at
        }
    };
    &mut slots[at]
}

fn request(slots: &[Slot<'_, '_>]) -> Request {
    Request { values: slots.iter().map(|slot| (slot.thing, slot.value.clone())).collect() }
}

/// Cookies come in a header field, so where one rule asks for the field and another for a cookie the two are not free of one another.
/// Such a request is only taken for one if the field is left to the cookies, or they to it.
fn is_consistent(entries: &Entries<'_>, slots: &[Slot<'_, '_>]) -> bool {
    let thing = |slot: &Slot<'_, '_>| &entries.things[slot.thing as usize].0;
    let field = slots.iter().find(|slot| matches!(thing(slot), Thing::Header(name) if name == "cookie"));
    let mut cookies = slots.iter().filter(|slot| matches!(thing(slot), Thing::Cookie(_)));
    match field {
        None => true,
        Some(field) if field.value.is_none() => cookies.all(|cookie| cookie.value.is_none()),
        Some(_) => cookies.next().is_none(),
    }
}
