//! Where a request goes: a destination by weight, then an instance by two random choices.
//!
//! Keeps true:
//! - Shares are drawn over destinations that have a ready instance; the sums were made with the table.
//! - An instance whose circuit is open is never chosen; one that is due for a probe is taken when it is drawn, whatever its
//!   load, so that an instance that is well again gets traffic again.
//! - A retry avoids what was tried before where there is anything else.
//! - A request that sticks by a key goes to the destination which wins the key, else to its next best; nothing is drawn.
//! - Where no circuit of a destination lets a request pass, it goes to the destination's fallback, and no further than that one.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::admit::limits::Bound;
use crate::admit::{self, Barred, Permit, Standing};
use crate::record::metrics::Fallback;
use crate::refusal::{Reason, Refusal};
use crate::retry::Ahead;
use crate::runtime::Expected;
use crate::table::{At, Destination, Instance, PortInstances, Rule, Shares};
use crate::worker::{TableRef, Worker};

/// What earlier tries of the same request have used.
#[derive(Clone, Debug, Default)]
pub struct Tried {
    /// The destination of the first try: later ones stay there unless the policy lets them choose again.
    pub destination: Option<usize>,
    /// Choices that were made.
    pub places: Vec<At>,
    /// The key by which the request sticks to a destination, where its rule has it do so.
    pub sticks_by: Option<u64>,
}

/// The destination that a number below `shares.total` falls into.
pub fn draw(shares: &Shares, number: u64) -> usize {
    shares.ends.partition_point(|end| *end <= number)
}

/// A request that nobody can take.
#[derive(Debug)]
pub struct Refused {
    /// What its caller is told.
    pub refusal: Refusal,
    /// The destination that was drawn first, if one could be.
    pub destination: Option<usize>,
}

/// Chooses an instance and asks its circuit.
///
/// # Errors
/// A refusal when no destination has an instance, or all that could be asked have open circuits.
pub fn instance(
    worker: &Rc<Worker>,
    table: &TableRef,
    place: (usize, Option<u32>, usize),
    tried: &Tried,
    now: Instant,
) -> Result<(At, Permit), Refused> {
    let (service, rule_position, port) = place;
    let rule = table.at(service).rule(rule_position);
    let mut refused: Vec<usize> = Vec::new();
    let mut first: Option<Refused> = None;
    loop {
        let drawn = tried.destination.or_else(|| destination(worker, rule, port, tried, &refused));
        let Some(position) = drawn.filter(|drawn| !refused.contains(drawn)) else {
            let none = || no_instances(&table.at(service).label, rule, None);
            return Err(first.unwrap_or_else(|| Refused { refusal: none(), destination: None }));
        };
        let at = At { service, rule: rule_position, port, destination: position, instance: 0 };
        let refusal = match within(worker, table, at, tried, now) {
            Ok(chosen) => return Ok(chosen),
            Err(refusal) => refusal,
        };
        if refusal.reason == Reason::CircuitOpen
            && let Some(fallback) = rule.destinations[position].fallback.filter(|fallback| !refused.contains(fallback))
        {
            if let Ok(chosen) = within(worker, table, At { destination: fallback, ..at }, tried, now) {
                table.at(service).runtime.retries.fell_back(worker.index, Fallback::Destination);
                return Ok(chosen);
            }
            refused.push(fallback);
        }
        let mut so_far = first.unwrap_or_else(|| Refused { refusal: refusal.clone(), destination: drawn });
        so_far.refusal.retry_after = so_far.refusal.retry_after.into_iter().chain(refusal.retry_after).min();
        if !rule.destinations[position].may_rechoose(port) {
            return Err(so_far);
        }
        // Another one in its place, as the policy lets the request choose again.
        first = Some(so_far);
        refused.push(position);
    }
}

/// Chooses among the instances of one destination; the instance that `at` names is of no account.
fn within(worker: &Rc<Worker>, table: &TableRef, at: At, tried: &Tried, now: Instant) -> Result<(At, Permit), Refusal> {
    let service = table.at(at.service);
    let chosen = table.destination(at);
    let Some(instances) = chosen.ports.get(at.port).filter(|p| !p.ready.is_empty()) else {
        return Err(no_instances(&service.label, service.rule(at.rule), Some(at.destination)));
    };
    let ask = |instance: usize| {
        let at = At { instance, ..at };
        admit::instance(worker, table, at, now).map(|permit| (at, permit))
    };
    let avoid =
        |instance: usize| tried.places.iter().any(|p| p.destination == at.destination && p.instance == instance);
    let mut barred = AllBarred::default();
    if let Some(position) = two_choices(worker, instances, avoid, now) {
        match ask(position) {
            Ok(chosen) => return Ok(chosen),
            Err(why) => barred.by(why),
        }
    }
    // The draw found none that can be asked: walk over all of them, those not tried before first.
    let count = instances.ready.len();
    let offset = usize::try_from(worker.random_below(count as u64)).unwrap_or(0);
    for again in [false, true] {
        for position in (0..count).map(|step| (offset + step) % count).filter(|p| avoid(*p) == again) {
            match ask(position) {
                Ok(chosen) => return Ok(chosen),
                Err(why) => barred.by(why),
            }
        }
    }
    Err(barred.refusal(chosen, instances))
}

/// What a further try of a request may hope for that was sent to `at`: there or, if it may choose anew, at any destination of its rule.
pub fn ahead(worker: &Worker, table: &TableRef, at: At, rechoose: bool, now: Instant) -> Ahead {
    let millis = worker.millis(now);
    let rule = table.at(at.service).rule(at.rule);
    let fallback = rule.destinations[at.destination].fallback;
    let may = |d: usize| rechoose || d == at.destination || Some(d) == fallback;
    let destinations =
        rule.destinations.iter().enumerate().filter(|(d, _)| may(*d)).map(|(_, destination)| destination);
    let instances = destinations.filter_map(|d| d.ports.get(at.port)).flat_map(|port| &port.ready);
    let (mut soonest, mut latency) = (Duration::MAX, None);
    for instance in instances {
        let out_for = admit::out_for(instance.circuit.as_ref(), millis);
        soonest = soonest.min(out_for);
        if out_for.is_zero() {
            latency = latency.into_iter().chain([instance.load.latency(worker.index, millis)]).min();
        }
    }
    Ahead { soonest, latency: latency.unwrap_or_default() }
}

/// What stands against all instances of a destination.
#[derive(Default)]
struct AllBarred {
    /// When the first circuit lets a probe through, where that is known of any.
    soonest: Option<Duration>,
    /// One would be well enough, and has as much to do as it may have.
    overloaded: Option<Bound>,
}

impl AllBarred {
    fn by(&mut self, why: Barred) {
        match why {
            Barred::Circuit(after) => self.soonest = self.soonest.into_iter().chain(after).min(),
            Barred::Overloaded(bound) => self.overloaded = Some(bound),
        }
    }

    fn refusal(self, destination: &Destination, instances: &PortInstances) -> Refusal {
        let which = match &*destination.version {
            "" => destination.service.to_string(),
            version => format!("{} version {version}", destination.service),
        };
        if let Some(bound) = self.overloaded {
            return Refusal::overloaded(&which, bound);
        }
        let mut refusal = Refusal::new(Reason::CircuitOpen, format!("the circuit of {which} is open"));
        refusal.retry_after = self.soonest;
        let mut circuits = instances.ready.iter().filter_map(|instance| instance.circuit.as_ref());
        refusal.canned = circuits.find_map(|circuit| circuit.settings.reply.clone());
        refusal
    }
}

/// Draws a destination that has not refused. One that was tried before is drawn again only when there is no other.
fn destination(worker: &Worker, rule: &Rule, port: usize, tried: &Tried, refused: &[usize]) -> Option<usize> {
    let shares = rule.shares.get(port)?;
    if shares.total == 0 {
        return None;
    }
    let before = |destination: usize| tried.places.iter().any(|p| p.destination == destination);
    let out = |destination: usize| refused.contains(&destination);
    if let (Some(key), Some(stickiness)) = (tried.sticks_by, &rule.stickiness) {
        let may = |d: usize| !out(d) && shares.width(d) > 0;
        let next = stickiness.arm(key, &rule.destinations, |d| may(d) && !before(d));
        return next.or_else(|| stickiness.arm(key, &rule.destinations, may));
    }
    let drawn = draw(shares, worker.random_below(shares.total));
    if !before(drawn) && !out(drawn) {
        return Some(drawn);
    }
    draw_among(worker, shares, |d| !before(d) && !out(d)).or_else(|| draw_among(worker, shares, |d| !out(d)))
}

/// Draws one of those that may be drawn, by their weights.
fn draw_among(worker: &Worker, shares: &Shares, may: impl Fn(usize) -> bool) -> Option<usize> {
    let width = |d: usize| shares.width(d);
    let total: u64 = (0..shares.ends.len()).filter(|d| may(*d)).map(width).sum();
    let mut number = worker.random_below(total);
    for destination in (0..shares.ends.len()).filter(|d| may(*d)) {
        match number.checked_sub(width(destination)) {
            Some(rest) => number = rest,
            None => return Some(destination),
        }
    }
    None
}

/// The instance that a copy of a request goes to. One that is due for a probe is left to requests that somebody waits for.
pub fn for_copy<'t>(worker: &Worker, instances: &'t PortInstances, now: Instant) -> Option<&'t Arc<Instance>> {
    let millis = worker.millis(now);
    let unwell = |at: usize| admit::standing(&instances.ready[at], millis) != Standing::Well;
    let position = if instances.ready.is_empty() { None } else { two_choices(worker, instances, unwell, now) };
    position.map(|position| &instances.ready[position])
}

/// Of an instance that fails others are looked at, up to so many: enough where few are well, and a bound where none is.
const MOST_LOOKS: u64 = 16;

/// Two instances at random, and of those the one that promises more; one that is due for a probe at once. Where that one has been
/// failing, others are looked at as well. `None`: none of them can be asked, or all are to be avoided.
fn two_choices(
    worker: &Worker,
    instances: &PortInstances,
    avoid: impl Fn(usize) -> bool,
    now: Instant,
) -> Option<usize> {
    let ready = &instances.ready;
    let millis = worker.millis(now);
    let count = ready.len() as u64;
    let first = worker.random_below(count);
    let second = if count > 1 { first + 1 + worker.random_below(count - 1) } else { first };
    let mut best: Option<(usize, Expected)> = None;
    // Behind the second all others follow, each once.
    let others = (1..count).filter(|step| second + step - first != count).map(|step| second + step);
    for (looks, position) in [first, second].into_iter().chain(others).enumerate() {
        let enough = looks >= 2 && best.is_none_or(|(_, best)| !best.is_failing());
        if enough || looks as u64 >= MOST_LOOKS.min(count.max(2)) {
            break;
        }
        let position = usize::try_from(position % count).unwrap_or(0);
        if avoid(position) {
            continue;
        }
        match admit::standing(&ready[position], millis) {
            Standing::Out => {}
            Standing::Due => return Some(position),
            Standing::Well => {
                // One that must not be taken out although it fails is watched in vain.
                let is_watched = ready[position].circuit.as_ref().is_some_and(|circuit| !circuit.breaker.is_kept_in());
                let expected = ready[position].load.expected(worker.index, is_watched, millis);
                // A tie stays with the first, which the draw has decided.
                let chance = || worker.with_rng(rand::Rng::random);
                if best.is_none_or(|(_, other)| expected.beats(&other, chance)) {
                    best = Some((position, expected));
                }
            }
        }
    }
    best.map(|(position, _)| position)
}

fn no_instances(service: &str, rule: &Rule, destination: Option<usize>) -> Refusal {
    let detail = match destination.and_then(|d| rule.destinations.get(d)) {
        Some(destination) if !destination.version.is_empty() => {
            format!("{} has no ready instance of version {}", destination.service, destination.version)
        }
        Some(destination) => format!("{} has no ready instance", destination.service),
        None if rule.name.is_empty() => format!("{service} has no ready instance"),
        None => format!("no destination of {} has a ready instance", rule.name),
    };
    Refusal::new(Reason::NoInstances, detail)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Weights written out one by one: what `draw` must agree with.
    fn naive(weights: &[u64], number: u64) -> usize {
        let spread: Vec<usize> = weights.iter().enumerate().flat_map(|(at, w)| vec![at; *w as usize]).collect();
        spread[number as usize]
    }

    proptest! {
        #[test]
        fn a_number_falls_into_the_share_it_would_fall_into_if_weights_were_written_out(
            weights in prop::collection::vec(0u64..50, 1..8), number: u64,
        ) {
            let mut shares = Shares::default();
            for weight in &weights {
                shares.total += weight;
                shares.ends.push(shares.total);
            }
            prop_assume!(shares.total > 0);
            let number = number % shares.total;
            prop_assert_eq!(draw(&shares, number), naive(&weights, number));
        }
    }
}
