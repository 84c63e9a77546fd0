//! What the agents see of instances, put together: what is handed down to all of them as evidence, and what the status of a policy says.
//! Pure.
//!
//! Keeps true:
//! - It says nothing of an instance until those who have asked it had the time to tell ([`SETTLE`]): of two nodes that are the first to
//!   see it fail nobody knows whether they are two of two or two of a hundred.
//! - A node counts once, however many streams its agents have.
//! - What the status says changes at once with what is to be done, and with mere counts seldom ([`Shown`]), so nothing is written in a
//!   loop (`what_is_shown_changes_no_more_often_than_it_may`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use switchyard_crds::circuit_policy::InstanceStatus;
use switchyard_proto::v1::{self, Sight};

use crate::object::ServiceKey;

/// From when on it is known who has asked an instance: it is handed down at once, an agent looks once a second, and what it tells is
/// looked at once a second.
const SETTLE: Duration = Duration::from_secs(3);

/// Instances that are handed down; of more, those that most nodes see fail.
const MOST: usize = 1000;

/// Instances that a status shows.
const SHOWN: usize = 100;

/// Nodes that a message names; of more, only how many.
const NAMED: usize = 3;

/// What a status says does not change for so long after it has.
const HOLD: Duration = Duration::from_secs(5);

/// And if only counts differ, for so long.
const HOLD_COUNTS: Duration = Duration::from_secs(30);

/// What each node sees, by its name.
pub type Views = BTreeMap<String, Arc<Vec<v1::InstanceView>>>;

/// An instance of a Service.
type Instance = (ServiceKey, String);

/// What is known from one look to the next.
#[derive(Debug, Default)]
pub struct Correlation {
    /// Since when each instance is handed down.
    since: BTreeMap<Instance, Instant>,
    shown: BTreeMap<String, Shown>,
    is_cut: bool,
}

/// What the status of a policy says.
#[derive(Debug)]
struct Shown {
    instances: Vec<InstanceStatus>,
    at: Instant,
}

/// What all nodes see of an instance.
#[derive(Debug, Default)]
struct Seen<'a> {
    policies: BTreeSet<&'a str>,
    nodes: u32,
    failing: Vec<&'a str>,
    unreached: Vec<&'a str>,
}

/// What a look at all views says.
#[derive(Debug, Default, PartialEq)]
pub struct Verdict {
    /// What is handed down.
    pub evidence: v1::Evidence,
    /// What the status of each policy is to say.
    pub shown: BTreeMap<String, Vec<InstanceStatus>>,
}

impl Verdict {
    /// There is nothing to say, and only another view can change that.
    pub fn is_quiet(&self) -> bool {
        *self == Self::default()
    }
}

impl Correlation {
    /// Looks at what all nodes see now.
    pub fn look(&mut self, views: &Views, now: Instant) -> Verdict {
        let mut seen: Vec<(Instance, Seen<'_>)> = put_together(views).into_iter().collect();
        // Well wherever it is asked: then nobody needs to know.
        seen.retain(|(_, seen)| !seen.failing.is_empty());
        seen.sort_by(|(a, of_a), (b, of_b)| of_b.failing.len().cmp(&of_a.failing.len()).then_with(|| a.cmp(b)));
        if seen.len() > MOST && !self.is_cut {
            tracing::warn!(instances = seen.len(), handed_down = MOST, "more instances fail than agents are told of");
        }
        self.is_cut = seen.len() > MOST;
        seen.truncate(MOST);
        let before = std::mem::take(&mut self.since);
        self.since =
            seen.iter().map(|(instance, _)| (instance.clone(), before.get(instance).copied().unwrap_or(now))).collect();
        let is_settled =
            |instance: &Instance| self.since.get(instance).is_some_and(|since| now.duration_since(*since) >= SETTLE);
        let evidence = seen.iter().map(|(instance, seen)| seen.to_wire(instance, is_settled(instance)));
        let evidence = v1::Evidence { instances: evidence.collect() };
        let mut fresh: BTreeMap<String, Vec<InstanceStatus>> = BTreeMap::new();
        for (instance, seen) in seen.iter().filter(|(instance, _)| is_settled(instance)) {
            for policy in &seen.policies {
                let of_policy = fresh.entry((*policy).to_owned()).or_default();
                if of_policy.len() < SHOWN {
                    of_policy.push(seen.status(instance));
                }
            }
        }
        Verdict { evidence, shown: self.show(fresh, now) }
    }

    /// What the statuses say from now on.
    fn show(
        &mut self,
        mut fresh: BTreeMap<String, Vec<InstanceStatus>>,
        now: Instant,
    ) -> BTreeMap<String, Vec<InstanceStatus>> {
        for instances in fresh.values_mut() {
            instances.sort_by(|a, b| (&a.destination, &a.instance).cmp(&(&b.destination, &b.instance)));
        }
        self.shown.retain(|policy, shown| fresh.contains_key(policy) || now.duration_since(shown.at) < HOLD);
        for (policy, instances) in fresh {
            let Some(shown) = self.shown.get_mut(&policy) else {
                self.shown.insert(policy, Shown { instances, at: now });
                continue;
            };
            let hold = if says_the_same(&shown.instances, &instances) { HOLD_COUNTS } else { HOLD };
            if shown.instances != instances && now.duration_since(shown.at) >= hold {
                *shown = Shown { instances, at: now };
            }
        }
        self.shown.iter().map(|(policy, shown)| (policy.clone(), shown.instances.clone())).collect()
    }
}

fn put_together(views: &Views) -> BTreeMap<Instance, Seen<'_>> {
    let mut all: BTreeMap<Instance, Seen<'_>> = BTreeMap::new();
    for (node, views) in views {
        for view in views.iter() {
            let service = ServiceKey { namespace: view.namespace.clone(), name: view.service.clone() };
            let seen = all.entry((service, view.target.clone())).or_default();
            seen.policies.insert(&view.policy);
            seen.nodes += 1;
            match view.sight() {
                Sight::Unspecified | Sight::Well => {}
                Sight::Failing => seen.failing.push(node),
                Sight::Unreached => {
                    seen.failing.push(node);
                    seen.unreached.push(node);
                }
            }
        }
    }
    all
}

/// Whether two lists ask for the same to be done: they are of the same instances, with the same fault.
fn says_the_same(one: &[InstanceStatus], other: &[InstanceStatus]) -> bool {
    let fault = |status: &InstanceStatus| {
        (status.failing == status.nodes, status.unreachable == status.failing, status.unreachable == 0)
    };
    let is_same = |(one, other): (&InstanceStatus, &InstanceStatus)| {
        (&one.destination, &one.instance, fault(one)) == (&other.destination, &other.instance, fault(other))
    };
    one.len() == other.len() && one.iter().zip(other).all(is_same)
}

impl Seen<'_> {
    fn to_wire(&self, (service, target): &Instance, is_settled: bool) -> v1::InstanceEvidence {
        v1::InstanceEvidence {
            namespace: service.namespace.clone(),
            service: service.name.clone(),
            target: target.clone(),
            nodes: if is_settled { self.nodes } else { 0 },
            failing: if is_settled { count(&self.failing) } else { 0 },
        }
    }

    fn status(&self, (service, target): &Instance) -> InstanceStatus {
        InstanceStatus {
            destination: service.to_string(),
            instance: target.clone(),
            nodes: self.nodes,
            failing: count(&self.failing),
            unreachable: count(&self.unreached),
            message: self.message(),
        }
    }

    /// What it says, and where to look.
    fn message(&self) -> String {
        let (all, failing, unreached) = (self.nodes, count(&self.failing), count(&self.unreached));
        let some = |nodes: u32| if nodes == 1 { "sees" } else { "see" };
        if all == failing {
            return match unreached {
                0 if all == 1 => "the one node that asks it sees it fail: look at the instance".to_owned(),
                0 => format!("all {all} nodes see it fail: look at the instance"),
                1 if all == 1 => {
                    format!(
                        "the one node that asks it cannot reach it: look at the instance, and at the network of {}",
                        named(&self.unreached)
                    )
                }
                _ if unreached == all => {
                    format!("none of {all} nodes can reach it: look whether it runs, and who may connect to it")
                }
                _ => format!(
                    "all {all} nodes see it fail, and {unreached} of them cannot reach it: look at the instance"
                ),
            };
        }
        match unreached {
            0 => format!(
                "{failing} of {all} nodes {} it fail: look at what is asked of it from {}",
                some(failing),
                named(&self.failing)
            ),
            _ if unreached == failing => {
                format!("{unreached} of {all} nodes cannot reach it: look at the network of {}", named(&self.unreached))
            }
            _ => format!(
                "{failing} of {all} nodes see it fail, and {unreached} of them cannot reach it: look at the instance, and at the network of {}",
                named(&self.unreached)
            ),
        }
    }
}

fn count(nodes: &[&str]) -> u32 {
    u32::try_from(nodes.len()).unwrap_or(u32::MAX)
}

/// The first few of these nodes, by name.
fn named(nodes: &[&str]) -> String {
    let names = nodes.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    match nodes.len().saturating_sub(NAMED) {
        0 => names,
        more => format!("{names} and {more} more"),
    }
}

#[cfg(test)]
mod tests;
