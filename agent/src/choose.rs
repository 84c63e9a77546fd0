//! Where a request goes: a destination by weight, then an instance by two random choices.
//!
//! Keeps true:
//! - Shares are drawn over destinations that have a ready instance; the sums were made with the table.
//! - An instance whose circuit is open is never chosen; one that is due for a probe is taken when it is drawn, whatever its
//!   load, so that an instance that is well again gets traffic again.
//! - A retry avoids what was tried before where there is anything else.

use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::admit::{self, Permit, Standing};
use crate::refusal::{Reason, Refusal};
use crate::table::{At, PortInstances, Rule, Shares};
use crate::worker::{TableRef, Worker};

/// What earlier tries of the same request have used.
#[derive(Debug, Default)]
pub struct Tried {
    /// The destination of the first try: later ones stay there unless the policy lets them choose again.
    pub destination: Option<usize>,
    /// Choices that were made.
    pub places: Vec<At>,
}

/// The destination that a number below `shares.total` falls into.
pub fn draw(shares: &Shares, number: u64) -> usize {
    shares.ends.partition_point(|end| *end <= number)
}

/// Chooses an instance and asks its circuits.
///
/// # Errors
/// A refusal when no destination has an instance, or all that could be asked have open circuits.
pub fn instance(
    worker: &Rc<Worker>,
    table: &TableRef,
    place: (usize, Option<u32>, usize),
    tried: &Tried,
    now: Instant,
) -> Result<(At, Permit), Refusal> {
    let (service, rule_position, port) = place;
    let rule = table.at(service).rule(rule_position);
    let destination = match tried.destination {
        Some(destination) => destination,
        None => {
            destination(worker, rule, port, tried).ok_or_else(|| no_instances(&table.at(service).label, rule, None))?
        }
    };
    let chosen = &rule.destinations[destination];
    let Some(instances) = chosen.ports.get(port).filter(|p| !p.ready.is_empty()) else {
        return Err(no_instances(&table.at(service).label, rule, Some(destination)));
    };
    let open = |after| circuit_open(&chosen.service, &chosen.version, after);
    let ticket = admit::destination(worker, table, service, rule_position, destination, now).map_err(open)?;
    let at = |instance| At { service, rule: rule_position, port, destination, instance };
    let ask = |position: usize, ticket| admit::instance(worker, table, at(position), ticket, now);

    let avoid = |position: usize| tried.places.iter().any(|p| p.destination == destination && p.instance == position);
    let first = two_choices(worker, instances, avoid, now);
    let mut soonest = Duration::MAX;
    let mut ticket = ticket;
    if let Some(position) = first {
        match ask(position, ticket) {
            Ok(permit) => return Ok((at(position), permit)),
            Err((after, given_back)) => (soonest, ticket) = (after, given_back),
        }
    }
    // The draw found none that can be asked: walk over all of them, those not tried before first.
    let count = instances.ready.len();
    let offset = usize::try_from(worker.random_below(count as u64)).unwrap_or(0);
    for again in [false, true] {
        for position in (0..count).map(|step| (offset + step) % count).filter(|p| avoid(*p) == again) {
            match ask(position, ticket) {
                Ok(permit) => return Ok((at(position), permit)),
                Err((after, given_back)) => {
                    soonest = soonest.min(after);
                    ticket = given_back;
                }
            }
        }
    }
    admit::give_back(worker, chosen.circuit.as_ref(), ticket, now);
    Err(open(soonest))
}

/// Draws a destination. One that was tried before is drawn again only when there is no other.
fn destination(worker: &Worker, rule: &Rule, port: usize, tried: &Tried) -> Option<usize> {
    let shares = rule.shares.get(port)?;
    if shares.total == 0 {
        return None;
    }
    let drawn = draw(shares, worker.random_below(shares.total));
    let before = |destination: usize| tried.places.iter().any(|p| p.destination == destination);
    if !before(drawn) {
        return Some(drawn);
    }
    // Among those that were not tried, by their weights.
    let width = |d: usize| shares.ends[d] - if d == 0 { 0 } else { shares.ends[d - 1] };
    let total: u64 = (0..shares.ends.len()).filter(|d| !before(*d)).map(width).sum();
    let mut number = worker.random_below(total);
    for destination in (0..shares.ends.len()).filter(|d| !before(*d)) {
        match number.checked_sub(width(destination)) {
            Some(rest) => number = rest,
            None => return Some(destination),
        }
    }
    Some(drawn)
}

/// Two instances at random, and of those the one that costs less; one that is due for a probe at once. `None`: neither can be
/// asked, or both are to be avoided.
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
    let second = if count > 1 { (first + 1 + worker.random_below(count - 1)) % count } else { first };
    let mut best: Option<(usize, u64)> = None;
    for position in [first, second].map(|p| usize::try_from(p).unwrap_or(0)) {
        if avoid(position) {
            continue;
        }
        match admit::standing(ready[position].circuit.as_ref(), millis) {
            Standing::Out => {}
            Standing::Due => return Some(position),
            Standing::Well => {
                let cost = ready[position].load.cost(worker.index, millis);
                // Costs that are close are a tie, which the draw has decided: averages are never exact.
                if best.is_none_or(|(_, other)| cost < other / 2) {
                    best = Some((position, cost));
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

fn circuit_open(service: &str, version: &str, after: Duration) -> Refusal {
    let which = if version.is_empty() { service.to_owned() } else { format!("{service} version {version}") };
    let mut refusal = Refusal::new(Reason::CircuitOpen, format!("the circuit of {which} is open"));
    refusal.retry_after = Some(after);
    refusal
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
