//! What rules of one Service have to do with one another: a rule that no request can reach, and rules between which nothing but their age
//! decides. Exact within bounds that are counted and not timed, so the answer depends on the rules alone; beyond them nothing is claimed.
//!
//! Keeps true:
//! - A request that is shown does what is said of it (`the_example_does_what_is_said_of_it`); where nothing is said, no request says
//!   otherwise (`where_nothing_is_reported_no_request_says_otherwise`).
//! - Entries are read as if all that they ask for were looked at, whatever agents make of it.
//! - What is told apart by its first letters is never compared: 10,000 rules take well under a second (`cargo bench -p
//!   switchyard-controller`), so nothing is kept from one analysis to the next.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use switchyard_crds::{Finding, Reason, RouteRule};

use crate::compile::{name_of, warning_for};
use crate::object::{Kind, ObjectKey, Service};

use entries::Entries;
use index::{Index, Query};
use reach::{Question, Reach, Takers};
use work::{STEPS_PER_SERVICE, Work};

/// What entries ask for.
mod entries;
/// Which entries can have to do with one another.
mod index;
/// What a change does to requests.
mod moved;
/// Regular expressions.
mod pattern;
/// Automata, walked together.
mod product;
/// Which requests get where.
mod reach;
/// The values of one thing.
mod values;
/// Findings, in words.
mod words;
/// What the analysis may cost.
mod work;

pub use moved::{Moved, moved};

/// So many other rules are named; further ones are not looked for.
const NAMED: usize = 8;

/// Hiding rules up to this number are reduced to those that it takes.
const REDUCED: usize = 12;

/// What is to be said of the rules of a Service.
pub fn analyse(service: &Service, rules: &[&RouteRule]) -> Vec<Finding> {
    let entries = Entries::of(service, rules);
    let work = Work::new(STEPS_PER_SERVICE);
    let index = Index::new(&entries, 0..entries.entries.len());
    let question = Question {
        entries: &entries,
        index: &index,
        work: &work,
        host: format!("{}.{}", service.name, service.namespace),
    };
    let mut analysis = Analysis { rules, question, findings: Vec::new(), is_cut_short: false };
    let shadowed = analysis.shadowed();
    analysis.conflicted(&shadowed);
    if analysis.is_cut_short {
        analysis.findings.push(cut_short(service));
    }
    analysis.findings
}

struct Analysis<'m, 'a> {
    rules: &'m [&'a RouteRule],
    question: Question<'m, 'a>,
    findings: Vec<Finding>,
    /// Something was not looked at.
    is_cut_short: bool,
}

/// Another rule with which only age decides.
struct Rival {
    /// The entry of the younger rule, and of the older.
    entries: [usize; 2],
    /// A request that both match; none: they may.
    request: Option<reach::Request>,
}

impl<'a> Analysis<'_, 'a> {
    /// Reports the rules that no request reaches; which those are.
    fn shadowed(&mut self) -> BTreeSet<usize> {
        let entries = &self.question.entries.entries;
        let mut of_rules: Vec<Vec<usize>> = vec![Vec::new(); self.rules.len()];
        for (at, entry) in entries.iter().enumerate() {
            of_rules[entry.rule].push(at);
        }
        let mut shadowed = BTreeSet::new();
        for (rule, own) in of_rules.iter().enumerate().filter(|(_, own)| !own.is_empty()) {
            let Some(takers) = self.takers(own) else { continue };
            shadowed.insert(rule);
            let finding = words::shadowed(self.rules, &self.question, own, &takers);
            self.findings.push(finding.about(&name_of(self.rules[rule])));
        }
        shadowed
    }

    /// The entries that take all requests of a rule away from it; none if one reaches it, or it cannot be told.
    fn takers(&mut self, own: &[usize]) -> Option<Vec<usize>> {
        let mut all = BTreeSet::new();
        for at in own {
            match self.question.ask(&[*at], Takers::Before(*at)) {
                Reach::Request(_) => return None,
                Reach::Nothing(takers) => all.extend(self.reduced(*at, takers)),
                Reach::Unclear => {
                    self.is_cut_short |= self.question.work.is_used_up();
                    return None;
                }
            }
        }
        Some(all.into_iter().collect())
    }

    /// Of the entries that together take all requests of one, those that it takes.
    fn reduced(&self, at: usize, mut takers: Vec<usize>) -> Vec<usize> {
        if !(2..=REDUCED).contains(&takers.len()) {
            return takers;
        }
        // The first to be asked is the last to be left out.
        for candidate in takers.clone().into_iter().rev() {
            let without: Vec<usize> = takers.iter().copied().filter(|other| *other != candidate).collect();
            if matches!(self.question.ask(&[at], Takers::Only(&without)), Reach::Nothing(_)) {
                takers = without;
            }
        }
        takers
    }

    /// Reports the rules of which some requests go to an older one for its age alone.
    fn conflicted(&mut self, shadowed: &BTreeSet<usize>) {
        let entries = &self.question.entries.entries;
        let mut rivals: Vec<Vec<Rival>> = Vec::new();
        rivals.resize_with(self.rules.len(), Vec::new);
        let mut from = 0;
        for class in entries.chunk_by(|a, b| a.class == b.class) {
            let range = from..from + class.len();
            from = range.end;
            if class.iter().all(|entry| entry.rule == class[0].rule) {
                continue;
            }
            let peers = Index::new(self.question.entries, range.clone());
            for at in range.clone().filter(|at| !shadowed.contains(&entries[*at].rule)) {
                let mut known = std::mem::take(&mut rivals[entries[at].rule]);
                self.rivals(at, range.start, &peers, shadowed, &mut known);
                rivals[entries[at].rule] = known;
            }
        }
        for (rule, rivals) in rivals.into_iter().enumerate().filter(|(_, rivals)| !rivals.is_empty()) {
            let finding = words::conflicted(self.rules, &self.question, rivals);
            self.findings.push(finding.about(&name_of(self.rules[rule])));
        }
    }

    /// Older entries of one class that a request matches together with this one, while nobody of a better class takes it.
    fn rivals(
        &mut self,
        at: usize,
        class_start: usize,
        peers: &Index<'_>,
        shadowed: &BTreeSet<usize>,
        known: &mut Vec<Rival>,
    ) {
        let question = &self.question;
        let entries = &question.entries.entries;
        let entry = &entries[at];
        let mut is_cut_short = false;
        let _ = peers.visit(&Query::beside(entry, at), &mut |other| {
            question.work.spend(1);
            if known.len() >= NAMED {
                return ControlFlow::Break(());
            }
            if question.work.is_used_up() {
                is_cut_short = true;
                return ControlFlow::Break(());
            }
            let rule = entries[other].rule;
            let is_known = || known.iter().any(|rival| entries[rival.entries[1]].rule == rule);
            // One that gets nothing takes nothing either.
            let is_rival = rule != entry.rule && !shadowed.contains(&rule);
            if is_rival && !is_known() && !entry.is_apart_from(&entries[other]) {
                let request = match question.ask(&[at, other], Takers::AllBefore(class_start)) {
                    Reach::Nothing(_) => return ControlFlow::Continue(()),
                    Reach::Request(request) => Some(request),
                    Reach::Unclear => None,
                };
                known.push(Rival { entries: [at, other], request });
            }
            ControlFlow::Continue(())
        });
        self.is_cut_short |= is_cut_short;
    }
}

fn cut_short(service: &Service) -> Finding {
    let key = ObjectKey { kind: Kind::Service, namespace: service.namespace.clone(), name: service.name.clone() };
    let message = "its rules are so many and so alike that they were not all compared: there may be more of them that no request reaches, \
                   or that only their age tells apart";
    warning_for(&key, Reason::Suspicious, "", message.to_owned())
}

#[cfg(test)]
mod tests;
