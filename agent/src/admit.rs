//! May this instance be asked? The circuits of the destination and of the instance are asked, and what comes of the try is
//! told to them: once, by a [`Permit`], which gives itself back in `Drop` when the request is cancelled.

use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::clock;
use crate::table::{At, Circuit, Outcome, Table};
use crate::worker::{TableRef, Worker};

/// The circuit breaker: a pure state machine, and the form of it that threads share.
pub mod breaker;
/// Counting over a sliding window.
pub mod window;

use breaker::{Answer, State, Ticket};

/// The right to ask one instance once.
#[derive(Debug)]
pub struct Permit {
    worker: Rc<Worker>,
    table: TableRef,
    at: At,
    since: Instant,
    /// How long the reply's head took; a body's length and its reader's pace say nothing about the instance.
    answered: Option<Duration>,
    destination: Option<Ticket>,
    instance: Option<Ticket>,
    open: bool,
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

/// How an instance stands.
pub fn standing(circuit: Option<&Circuit>, now: window::Millis) -> Standing {
    let Some(circuit) = circuit else { return Standing::Well };
    match circuit.breaker.state() {
        State::Closed => Standing::Well,
        State::Open { until } if until > now => Standing::Out,
        State::HalfOpen { in_flight, .. } if u32::from(in_flight) >= circuit.settings.breaker.half_open_requests => {
            Standing::Out
        }
        State::Open { .. } | State::HalfOpen { .. } => Standing::Due,
    }
}

/// Asks one circuit.
///
/// # Errors
/// How long to wait before asking again makes sense.
fn ask(worker: &Worker, circuit: Option<&Circuit>, now: window::Millis) -> Result<Option<Ticket>, Duration> {
    let Some(circuit) = circuit else { return Ok(None) };
    match circuit.breaker.ask(&circuit.settings.breaker, now) {
        Answer::Admit(ticket) => Ok(Some(ticket)),
        Answer::Probe(ticket) => {
            if let Some(transition) = ticket.transition() {
                worker.shared.transitions.note(circuit, transition);
            }
            Ok(Some(ticket))
        }
        Answer::Refuse { until, .. } => Err(Duration::from_millis(until.since(now))),
    }
}

/// Asks the destination's circuit: first, as it stands for all of its instances.
///
/// # Errors
/// How long to wait before asking again makes sense.
pub fn destination(
    worker: &Worker,
    table: &Table,
    service: usize,
    rule: Option<u32>,
    destination: usize,
    now: Instant,
) -> Result<Option<Ticket>, Duration> {
    let circuit = table.at(service).rule(rule).destinations[destination].circuit.as_ref();
    ask(worker, circuit, worker.millis(now))
}

/// Asks the instance's circuit. `destination` is what its destination's circuit gave, and is given back on refusal.
///
/// # Errors
/// How long to wait before asking again makes sense, and the destination's ticket.
pub fn instance(
    worker: &Rc<Worker>,
    table: &TableRef,
    at: At,
    destination: Option<Ticket>,
    now: Instant,
) -> Result<Permit, (Duration, Option<Ticket>)> {
    let instance = table.instance(at);
    match ask(worker, instance.circuit.as_ref(), worker.millis(now)) {
        Err(after) => Err((after, destination)),
        Ok(ticket) => {
            instance.load.begin(worker.index);
            Ok(Permit {
                worker: Rc::clone(worker),
                table: Rc::clone(table),
                at,
                since: now,
                answered: None,
                destination,
                instance: ticket,
                open: true,
            })
        }
    }
}

/// Gives a destination's ticket back that no instance could be found for.
pub fn give_back(worker: &Worker, circuit: Option<&Circuit>, ticket: Option<Ticket>, now: Instant) {
    record(worker, circuit, ticket, breaker::Outcome::Cancelled, now);
}

fn record(worker: &Worker, circuit: Option<&Circuit>, ticket: Option<Ticket>, outcome: breaker::Outcome, now: Instant) {
    if let (Some(circuit), Some(ticket)) = (circuit, ticket) {
        let random = u32::try_from(worker.random_below(1 << 32)).unwrap_or(0);
        let (settings, now) = (&circuit.settings.breaker, worker.millis(now));
        if let Some(transition) = circuit.breaker.record(settings, ticket, worker.index, outcome, now, random) {
            worker.shared.transitions.note(circuit, transition);
        }
    }
}

impl Permit {
    /// The reply's head has come.
    pub fn answered(&mut self) {
        self.answered = Some(clock::now().saturating_duration_since(self.since));
    }

    /// Tells the circuits how the try ended. Only the first call counts.
    pub fn close(&mut self, outcome: Outcome) {
        // What the caller did says nothing about the instance; the permit is given back in `Drop`.
        if outcome == Outcome::CallersFault || !std::mem::take(&mut self.open) {
            return;
        }
        let now = clock::now();
        let destination = self.table.destination(self.at);
        let instance = self.table.instance(self.at);
        let judged = |circuit: Option<&Circuit>| match circuit {
            Some(circuit) if circuit.settings.failures.hold(outcome) => breaker::Outcome::Failure,
            _ => breaker::Outcome::Success,
        };
        record(&self.worker, destination.circuit.as_ref(), self.destination, judged(destination.circuit.as_ref()), now);
        record(&self.worker, instance.circuit.as_ref(), self.instance, judged(instance.circuit.as_ref()), now);
        let latency = self.answered.unwrap_or_else(|| now.saturating_duration_since(self.since));
        // A failure that comes quickly must not make an instance look quick.
        let told = matches!(outcome, Outcome::Reply { status, .. } if status < 500) || outcome == Outcome::Timeout;
        instance.load.end(self.worker.index, told.then_some(latency), self.worker.millis(now));
    }

    /// Whether the try is one that decides about a circuit which is half-open.
    pub fn is_probe(&self) -> bool {
        [self.destination, self.instance].into_iter().flatten().any(Ticket::is_probe)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.open {
            let now = clock::now();
            let cancelled = breaker::Outcome::Cancelled;
            let destination = self.table.destination(self.at);
            let instance = self.table.instance(self.at);
            record(&self.worker, destination.circuit.as_ref(), self.destination, cancelled, now);
            record(&self.worker, instance.circuit.as_ref(), self.instance, cancelled, now);
            instance.load.end(self.worker.index, None, self.worker.millis(now));
        }
    }
}
