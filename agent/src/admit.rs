//! May this instance be asked? Its circuit, which may be one that it shares with others, is asked, and what comes of the try is told to
//! it: once, by a [`Permit`], which gives itself back in `Drop` when the request is cancelled. What the caller is to blame for says
//! nothing about the instance, and counts as cancelled.

use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::clock;
use crate::runtime::Told;
use crate::table::{At, Circuit, Outcome};
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
    ticket: Option<Ticket>,
    open: bool,
    /// The request has a body, whose pace is the caller's.
    with_body: bool,
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

/// Asks the circuit of an instance.
///
/// # Errors
/// How long to wait before asking again makes sense.
pub fn instance(worker: &Rc<Worker>, table: &TableRef, at: At, now: Instant) -> Result<Permit, Duration> {
    let instance = table.instance(at);
    let ticket = ask(worker, instance.circuit.as_ref(), worker.millis(now))?;
    instance.load.begin(worker.index);
    Ok(Permit {
        worker: Rc::clone(worker),
        table: Rc::clone(table),
        at,
        since: now,
        answered: None,
        ticket,
        open: true,
        with_body: false,
    })
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

    /// The request has a body: how long it takes says little about the instance.
    pub fn with_body(&mut self) {
        self.with_body = true;
    }

    /// Tells the circuit how the try ended. Only the first call counts.
    pub fn close(&mut self, outcome: Outcome) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        let now = clock::now();
        let took = self.answered.unwrap_or_else(|| now.saturating_duration_since(self.since));
        let told = match outcome {
            Outcome::CallersFault | Outcome::CallersBody => Told::Nothing,
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

    fn unfinished(&self, took: Duration) -> Told {
        if self.with_body { Told::Nothing } else { Told::Unfinished(took) }
    }

    /// `outcome` is absent when the caller went away.
    fn end(&self, outcome: Option<Outcome>, told: Told, now: Instant) {
        let instance = self.table.instance(self.at);
        let circuit = instance.circuit.as_ref();
        let judged = match (outcome, circuit) {
            (Some(outcome), Some(circuit)) if circuit.settings.failures.hold(outcome) => breaker::Outcome::Failure,
            (Some(outcome), _) if !outcome.is_callers() => breaker::Outcome::Success,
            _ => breaker::Outcome::Cancelled,
        };
        record(&self.worker, circuit, self.ticket, judged, now);
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
