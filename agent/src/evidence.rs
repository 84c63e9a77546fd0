//! What this node sees of instances, for the controller, and what all others see of them, for this node's circuits.
//!
//! The controller puts together what the agents see, and hands that down as evidence. It never opens a circuit: it makes the failures of
//! this node's own weigh more ([`Others`]), for a fault of one node must not take an instance from all.
//!
//! Keeps true:
//! - What this node sees is not among what it is told of others: its own part is taken off, and where it may have been counted or not,
//!   the error is on the side of no effect ([`Own`]).
//! - Evidence ends with the stream that it came on.
//! - Nothing of this is on the path of a request: it looks at the circuits once a second ([`EVERY`]), and at those that had no failure
//!   and that nobody was told of with a few loads each.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use switchyard_proto::v1::{self, Sight};

use crate::admit::breaker::{Others, State};
use crate::admit::window::Millis;
use crate::check::Checks;
use crate::runtime::{KnownCircuit, Runtime};
use crate::table::ServiceKey;

/// How often the circuits are looked at, and no more often is anything sent.
pub const EVERY: Duration = Duration::from_secs(1);

/// Instances that are told of, or of which evidence is taken in. A node that sees more of them fail has a trouble of its own.
const MOST: usize = 1000;

/// Fewer failures in the window are noise.
const FEWEST_FAILURES: u64 = 2;

/// What was sent to the controller is in what it hands down after this time at the latest, in milliseconds: it looks once a second.
const UNDER_WAY_MS: u64 = 3000;

/// What is told, and what was told. One task owns it.
#[derive(Debug, Default)]
pub struct Evidence {
    /// What the controller handed down, by Service and instance.
    told: HashMap<ServiceKey, HashMap<String, Others>>,
    /// What this node has told of these.
    own: HashMap<ServiceKey, HashMap<String, Own>>,
    /// What was sent last on this stream; nothing yet is as good as that there is nothing.
    sent: Vec<View>,
    /// Circuits may have evidence.
    is_applied: bool,
    /// There were more than may be told of.
    is_cut: bool,
}

/// What this node has told of an instance.
#[derive(Clone, Copy, Debug)]
struct Own {
    /// It has told something of it since then; from a while later on it is among those who have asked.
    since: Millis,
    /// When it last told that it fails; for a while longer it may be among those who see it fail.
    failing: Option<Millis>,
}

/// What this node sees of an instance. The order is that in which they are told: those that fail first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct View {
    is_well: bool,
    service: ServiceKey,
    target: String,
    policy: Arc<str>,
    sight: i32,
}

impl Own {
    /// What is left of the evidence without this node.
    fn without(self, all: Others, now: Millis) -> Others {
        let is_asked = now.since(self.since) >= UNDER_WAY_MS;
        let is_failing = self.failing.is_some_and(|last| now.since(last) < UNDER_WAY_MS);
        let failing = all.failing.saturating_sub(u32::from(is_failing));
        Others { failing, asked: all.asked.saturating_sub(u32::from(is_asked)).max(failing) }
    }
}

impl Evidence {
    /// Takes in what the controller hands down, whole, in place of what it did before.
    pub fn take(&mut self, evidence: v1::Evidence) {
        self.told.clear();
        for told in evidence.instances.into_iter().take(MOST) {
            let service = ServiceKey { namespace: told.namespace, name: told.service };
            let others = Others { failing: told.failing.min(told.nodes), asked: told.nodes };
            self.told.entry(service).or_default().insert(told.target, others);
        }
    }

    /// Looks at the circuits; all that is to be told of them, if it is something else than before.
    pub fn look(&mut self, runtime: &Runtime, checks: &Checks, now: Millis) -> Option<v1::InstanceViews> {
        let mut views = Vec::new();
        runtime.each_circuit(|known| {
            let is_named = find(&self.told, known).is_some();
            if let Some(sight) = sight(known, checks, is_named, now) {
                views.push(View {
                    is_well: sight == Sight::Well,
                    service: known.service.clone(),
                    target: known.target.clone(),
                    policy: Arc::clone(&known.settings.name),
                    sight: sight.into(),
                });
            }
        });
        views.sort_unstable();
        if views.len() > MOST && !self.is_cut {
            tracing::warn!(instances = views.len(), told = MOST, "more instances fail than the controller is told of");
        }
        self.is_cut = views.len() > MOST;
        views.truncate(MOST);
        self.note(&views, now);
        self.apply(runtime, now);
        if views == self.sent {
            return None;
        }
        self.sent = views;
        Some(v1::InstanceViews { instances: self.sent.iter().map(View::to_wire).collect() })
    }

    /// Remembers what is told of which instance.
    fn note(&mut self, views: &[View], now: Millis) {
        let mut own: HashMap<ServiceKey, HashMap<String, Own>> = HashMap::new();
        for view in views {
            let before = self.own.get(&view.service).and_then(|of| of.get(&view.target));
            let failing = if view.is_well { before.and_then(|own| own.failing) } else { Some(now) };
            let since = before.map_or(now, |own| own.since);
            own.entry(view.service.clone()).or_default().insert(view.target.clone(), Own { since, failing });
        }
        // Who is told of no more may still be counted.
        for (service, before) in self.own.drain() {
            for (target, before) in before {
                let may_be_counted = before.failing.is_some_and(|last| now.since(last) < UNDER_WAY_MS);
                if may_be_counted && own.get(&service).is_none_or(|of| !of.contains_key(&target)) {
                    own.entry(service.clone()).or_default().insert(target, Own { since: now, ..before });
                }
            }
        }
        self.own = own;
    }

    /// Lets the circuits know what others see.
    pub fn apply(&mut self, runtime: &Runtime, now: Millis) {
        if self.told.is_empty() && !self.is_applied {
            return;
        }
        self.is_applied = !self.told.is_empty();
        runtime.each_circuit(|known| {
            let all = find(&self.told, known).copied().filter(|_| known.settings.correlated).unwrap_or_default();
            let others = find(&self.own, known).map_or(all, |own| own.without(all, now));
            if known.breaker.others() != others {
                known.breaker.set_others(others);
            }
        });
    }

    /// The stream has ended: nobody knows what others see now, and the next one is told everything.
    pub fn forget(&mut self, runtime: &Runtime, now: Millis) {
        self.told.clear();
        self.apply(runtime, now);
        *self = Self::default();
    }
}

impl View {
    fn to_wire(&self) -> v1::InstanceView {
        v1::InstanceView {
            namespace: self.service.namespace.clone(),
            service: self.service.name.clone(),
            target: self.target.clone(),
            policy: self.policy.to_string(),
            sight: self.sight,
        }
    }
}

fn find<'a, T>(all: &'a HashMap<ServiceKey, HashMap<String, T>>, known: &KnownCircuit) -> Option<&'a T> {
    all.get(&known.service)?.get(&known.target)
}

/// How this node finds an instance; nothing, where there is nothing to tell. `is_named`: the controller wants to know.
fn sight(known: &KnownCircuit, checks: &Checks, is_named: bool, now: Millis) -> Option<Sight> {
    if !known.settings.correlated || known.held(now).is_some() {
        return None;
    }
    let (breaker, settings) = (&known.breaker, &known.settings.breaker);
    let (lately, is_unhealthy) = (breaker.lately(), breaker.is_unhealthy());
    if lately.failures == 0 && !is_unhealthy && !is_named {
        return None;
    }
    let checked = || checks.of(&known.service.to_string(), &known.target);
    if is_unhealthy {
        let is_unreached = checked().and_then(|checks| checks.last_failure).is_some_and(|failed| failed.unreached);
        return Some(if is_unreached { Sight::Unreached } else { Sight::Failing });
    }
    let counts = breaker.counts(settings, now);
    // One that slow replies alone have opened has no failures.
    let is_out = lately.failures > 0 && (breaker.state() != State::Closed || breaker.is_kept_in());
    // The share that opens a circuit, of however few requests, or half of the row that does. With less, the nodes would take an instance out
    // together that none of them may take out alone.
    let share = counts.failed * 1_000_000 >= counts.total * u64::from(settings.error_rate_ppm);
    let row = breaker.row().saturating_mul(2) >= settings.failure_threshold;
    if is_out || (counts.failed >= FEWEST_FAILURES && (share || row)) {
        return Some(if lately.is_unreached() { Sight::Unreached } else { Sight::Failing });
    }
    if counts.failed == 0 && lately.failures > 0 {
        breaker.forget_lately();
    }
    let is_asked = counts.total > 0 || checked().is_some_and(|checks| checks.good > 0);
    (is_named && is_asked).then_some(Sight::Well)
}

#[cfg(test)]
mod tests;
