//! May this instance be asked? Its circuit, which may be one that it shares with others, is asked, and what comes of the try is told to
//! it: once, by a [`Permit`], which gives itself back in `Drop` when the request is cancelled. What the caller is to blame for says
//! nothing about the instance, and counts as cancelled.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::body::Coming;
use crate::clock;
use crate::runtime::Told;
use crate::table::{At, Circuit, Instance, Outcome};
use crate::worker::{TableRef, Worker};

/// What is shared between threads; the model check (`agent/tests/model.rs`) has its own in their place.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
    pub(super) use std::sync::{Mutex, MutexGuard};
}

/// How many requests may be under way, by how long they take.
pub mod adaptive;
/// The circuit breaker as threads share it.
pub mod breaker;
/// How many of several may be out.
pub mod ejections;
/// Bounds on what is under way.
pub mod limits;
/// The circuit breaker as a pure state machine.
pub mod machine;
/// Whom a circuit that is half-open lets pass.
mod place;
/// Counting over a sliding window.
pub mod window;

use breaker::{Answer, Moment, Refusal, State, Ticket};
use limits::{Bound, Slot};
use place::Place;

/// The right to ask one instance once.
#[derive(Debug)]
pub struct Permit {
    worker: Rc<Worker>,
    table: TableRef,
    at: At,
    since: Instant,
    /// How long the reply's head took; a body's length and its reader's pace say nothing about the instance.
    answered: Option<Duration>,
    /// The same from when the instance had all of the request; absent while it has not.
    reckoned: Option<Duration>,
    ticket: Option<Ticket>,
    place: Option<Rc<Place>>,
    open: bool,
    /// The request has a body, whose pace is the caller's.
    with_body: bool,
    slot: Option<Slot>,
}

/// Whether an instance could be asked now, without asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its circuit is closed, or it has none.
    Well,
    /// It is time to find out whether it is well again.
    Due,
    /// Not before then.
    Out,
}

/// What stands against a request to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barred {
    /// Its circuit; how long to wait before asking again makes sense, where that is known.
    Circuit(Option<Duration>),
    /// There is as much under way as this bound of its policy allows.
    Overloaded(Bound),
}

/// How an instance stands.
pub fn standing(instance: &Instance, now: window::Millis) -> Standing {
    let Some(circuit) = &instance.circuit else { return Standing::Well };
    if let Some(held) = circuit.held(now) {
        return if held.open { Standing::Out } else { Standing::Well };
    }
    if instance.is_unhealthy() {
        return Standing::Out;
    }
    match circuit.breaker.state() {
        State::Closed => Standing::Well,
        State::Unhealthy { .. } => Standing::Out,
        State::Open { until } if until > now => Standing::Out,
        State::HalfOpen { in_flight, .. } if u32::from(in_flight) >= circuit.settings.breaker.half_open_requests => {
            Standing::Out
        }
        State::Open { .. } | State::HalfOpen { .. } => Standing::Due,
    }
}

/// How long the circuit surely lets no request pass. One that is half-open, or waits for good health checks, may do so at any time.
pub fn out_for(circuit: Option<&Circuit>, now: window::Millis) -> Duration {
    let Some(circuit) = circuit else { return Duration::ZERO };
    match (circuit.held(now), circuit.breaker.state()) {
        (Some(held), _) if !held.open => Duration::ZERO,
        (Some(held), _) => held.until.map_or(Duration::MAX, |until| Duration::from_millis(until.since(now))),
        (None, State::Open { until }) => Duration::from_millis(until.since(now)),
        (None, State::Closed | State::HalfOpen { .. } | State::Unhealthy { .. }) => Duration::ZERO,
    }
}

/// Asks one circuit. One that is held closed is not asked, nor told what comes of it.
fn ask(worker: &Worker, circuit: &Circuit, now: window::Millis) -> Result<Option<Ticket>, Barred> {
    if let Some(held) = circuit.held(now) {
        let left = held.until.map(|until| Duration::from_millis(until.since(now)));
        return if held.open { Err(Barred::Circuit(left)) } else { Ok(None) };
    }
    match circuit.breaker.ask(&circuit.settings.breaker, now) {
        Answer::Admit(ticket) => Ok(Some(ticket)),
        Answer::Probe(ticket) => {
            if let Some(transition) = ticket.transition() {
                worker.shared.transitions.note(circuit, transition);
            }
            Ok(Some(ticket))
        }
        // Nobody knows when it is well.
        Answer::Refuse { why: Refusal::Unhealthy, .. } => Err(Barred::Circuit(None)),
        Answer::Refuse { until, .. } => Err(Barred::Circuit(Some(Duration::from_millis(until.since(now))))),
    }
}

/// Asks whether an instance may be asked: first for room among what is under way, then its circuit.
///
/// # Errors
/// What stands against it.
pub fn instance(worker: &Rc<Worker>, table: &TableRef, at: At, now: Instant) -> Result<Permit, Barred> {
    let instance = table.instance(at);
    let (mut slot, mut ticket) = (None, None);
    if let Some(circuit) = &instance.circuit {
        if instance.is_unhealthy() && circuit.held(worker.millis(now)).is_none() {
            return Err(Barred::Circuit(None));
        }
        slot = circuit.take(Bound::Requests, worker.index).map_err(Barred::Overloaded)?;
        ticket = ask(worker, circuit, worker.millis(now))?;
    }
    instance.load.begin(worker.index);
    Ok(Permit {
        worker: Rc::clone(worker),
        table: Rc::clone(table),
        at,
        since: now,
        answered: None,
        reckoned: None,
        ticket,
        place: ticket.filter(|ticket| ticket.is_probe()).map(|ticket| Place::of(table, at, ticket)),
        open: true,
        with_body: false,
        slot,
    })
}

fn record(worker: &Worker, circuit: Option<&Circuit>, ticket: Option<Ticket>, outcome: breaker::Outcome, now: Instant) {
    if let (Some(circuit), Some(ticket)) = (circuit, ticket) {
        let random = u32::try_from(worker.random_below(1 << 32)).unwrap_or(0);
        let moment = Moment { worker: worker.index, now: worker.millis(now), random };
        let (settings, ejections) = (&circuit.settings.breaker, circuit.ejections.as_deref());
        if let Some(transition) = circuit.breaker.record(settings, ticket, outcome, moment, ejections) {
            worker.shared.transitions.note(circuit, transition);
        }
    }
}

impl Permit {
    /// The worker that asks.
    pub fn worker(&self) -> usize {
        self.worker.index
    }

    /// The reply's head has come. `coming` says how the request's body came, where it has one.
    pub fn answered(&mut self, coming: Option<Coming>) {
        let now = clock::now();
        self.answered = Some(now.saturating_duration_since(self.since));
        self.reckoned = match coming {
            None => self.answered,
            Some(Coming::Whole(at)) => Some(now.saturating_duration_since(self.since.max(at))),
            Some(_) => None,
        };
    }

    /// The request has a body: how long it takes says little about the instance.
    pub fn with_body(&mut self, coming: &Rc<Cell<Coming>>) {
        self.with_body = true;
        self.place.iter().for_each(|place| place.with_body(coming));
    }

    /// What the request takes up of the bounds of its policy; whoever has it holds it until the request's end.
    pub fn take_slot(&mut self) -> Option<Slot> {
        self.slot.take()
    }

    /// Tells the circuit how the try ended. Only the first call counts.
    pub fn close(&mut self, outcome: Outcome) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        let now = clock::now();
        let took = self.answered.unwrap_or_else(|| now.saturating_duration_since(self.since));
        let told = match outcome {
            Outcome::CallersFault | Outcome::CallersBody | Outcome::Overloaded(_) => Told::Nothing,
            Outcome::CallersLimit => self.unfinished(took),
            _ if outcome.is_failure() => Told::Failed(took),
            _ => Told::Good(took),
        };
        self.end(Some(outcome), told, now);
    }

    /// Whether the try is one that decides about a circuit which is half-open.
    pub fn is_probe(&self) -> bool {
        self.ticket.is_some_and(Ticket::is_probe)
    }

    /// Whether the instance is asked only because too many others are out.
    pub fn is_kept_in(&self) -> bool {
        self.ticket.is_some_and(Ticket::is_kept_in)
    }

    fn unfinished(&self, took: Duration) -> Told {
        if self.with_body { Told::Nothing } else { Told::Unfinished(took) }
    }

    /// Whether the instance took as long as its policy calls slow. With no reply at all, it had the whole time of the try.
    fn is_slow(&self, circuit: &Circuit, outcome: Outcome, now: Instant) -> bool {
        let Some(slow_after) = circuit.settings.slow_after else { return false };
        let waited = || (outcome == Outcome::Timeout).then(|| now.saturating_duration_since(self.since));
        let took = if self.answered.is_some() { self.reckoned } else { waited() };
        took.is_some_and(|took| took >= slow_after)
    }

    /// What it says about the target's latency: how long a reply took from when the instance had all of the request, and what its policy
    /// calls a failure is one. Where the instance did not have all of it, the time was the caller's.
    fn latency_told(&self, told: Told, judged: breaker::Outcome) -> Told {
        let has_failed = matches!(judged, breaker::Outcome::Failure { .. }) || matches!(told, Told::Failed(_));
        match told {
            Told::Good(_) | Told::Failed(_) if self.answered.is_some() => {
                self.reckoned.map_or(Told::Nothing, if has_failed { Told::Failed } else { Told::Good })
            }
            told => told,
        }
    }

    /// `outcome` is absent when the caller went away.
    fn end(&self, outcome: Option<Outcome>, told: Told, now: Instant) {
        let instance = self.table.instance(self.at);
        let circuit = instance.circuit.as_ref();
        let judged = match (outcome, circuit) {
            (Some(outcome), Some(circuit)) if !outcome.says_nothing() => {
                let slow = self.is_slow(circuit, outcome, now);
                match circuit.settings.failures.hold(outcome) {
                    true => {
                        if circuit.settings.correlated {
                            circuit.breaker.note_failure(outcome.is_unreached(self.answered.is_some()));
                        }
                        breaker::Outcome::Failure { slow }
                    }
                    false => breaker::Outcome::Success { slow },
                }
            }
            _ => breaker::Outcome::Cancelled,
        };
        let has_place = self.place.as_ref().is_none_or(|place| place.is_held());
        let ticket = self.ticket.map(|ticket| if has_place { ticket } else { ticket.without_place() });
        record(&self.worker, circuit, ticket, judged, now);
        if let Some(circuit) = circuit {
            circuit.tell(self.worker.index, self.latency_told(told, judged), self.worker.millis(now));
        }
        instance.load.end(self.worker.index, told, self.worker.millis(now));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.open {
            let now = clock::now();
            let took = self.answered.unwrap_or_else(|| now.saturating_duration_since(self.since));
            self.end(None, self.unfinished(took), now);
        }
    }
}

#[cfg(test)]
mod tests;
