//! The circuit breaker: whether an instance or a destination is asked, decided by how it answered before.
//!
//! The state is one word, changed by the pure functions of [`super::machine`] under compare-and-swap; no locks but one, at the moment
//! in which one of several instances is to be taken out ([`super::ejections`]). A success in the closed state writes only its worker's own
//! shard of the window (and the row of failures, where one had begun). Clock and chance are arguments. Every admission has a [`Ticket`],
//! and exactly one [`Breaker::record`] follows it, also for a request that was cancelled; the permit that sees to this is not here.
//!
//! A failure, or a slow reply, that finds too few requests in the window for a share is judged again by the request that makes them
//! enough. A circuit that would open and may not, for too many others are out, goes on counting and is judged again by each request.
//!
//! What other nodes see of the instance is one word beside the state, read with a failure and never with a good reply.
//!
//! Invariants, each with its test:
//! - no more than `half_open_requests` probes of one half-open spell have a place (`no_more_probes_than_allowed_pass`,
//!   also with four threads: `four_threads_never_have_more_probes_than_allowed`); one that takes too long gives its place on, so that
//!   none is waited for without end (`a_place_that_is_given_on_is_the_next_probes_and_the_result_still_counts`);
//! - the result of a request that was admitted before the last change counts for nothing
//!   (`a_result_from_an_earlier_life_counts_for_nothing`);
//! - it does what a plain model does (`the_breaker_does_what_a_plain_model_does`);
//! - all of this whatever the order in which threads come and memory becomes visible: `agent/tests/model.rs` goes through them all.

use super::atomic::{
    AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};
use super::ejections::Ejections;
pub use super::machine::{Answer, Others, Outcome, Reason, Refusal, Settings, State, Ticket, Transition};
use super::machine::{Circuit, MOST_OPENINGS};
use super::window::Window;
pub use super::window::{Counts, Millis};

/// Who records, when, and by what chance.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The calling worker's number.
    pub worker: usize,
    /// When.
    pub now: Millis,
    /// Any number that is evenly spread over its range.
    pub random: u32,
}

/// What the last judgement left open. The next one follows with the next request, whatever its outcome.
mod question {
    /// Nothing: the next failure or slow reply is judged.
    pub(super) const NONE: u8 = 0;
    /// There were fewer than `minimum_requests` in the window.
    pub(super) const TOO_FEW: u8 = 1;
    /// It was to open, and too many others were out.
    pub(super) const KEPT_IN: u8 = 2;
}

/// The breaker as workers share it.
#[derive(Debug)]
pub struct Breaker {
    /// A packed [`Circuit`].
    circuit: AtomicU64,
    /// Failures since the last success.
    row: AtomicU32,
    /// One of the [`question`]s.
    question: AtomicU8,
    /// Health checks fail, whether or not that takes it out.
    unhealthy: AtomicBool,
    /// A packed [`Others`].
    others: AtomicU64,
    /// A packed [`Lately`].
    lately: AtomicU16,
    window: Window,
}

/// The last failures, up to [`Lately::MOST`], as long as any is remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lately {
    /// How many are known.
    pub failures: u8,
    /// A bit for each, the newest lowest: the instance was not reached.
    unreached: u8,
}

impl Lately {
    /// So many are remembered.
    const MOST: u8 = 8;

    /// Whether the instance was not reached with most of them.
    pub fn is_unreached(self) -> bool {
        self.unreached.count_ones() * 2 > u32::from(self.failures)
    }

    fn and(self, unreached: bool) -> Self {
        Self { failures: (self.failures + 1).min(Self::MOST), unreached: self.unreached << 1 | u8::from(unreached) }
    }
}

impl Breaker {
    /// A closed circuit for so many workers.
    pub fn new(workers: usize) -> Self {
        Self {
            circuit: AtomicU64::new(Circuit::NEW.pack()),
            row: AtomicU32::new(0),
            question: AtomicU8::new(question::NONE),
            unhealthy: AtomicBool::new(false),
            others: AtomicU64::new(0),
            lately: AtomicU16::new(0),
            window: Window::new(workers),
        }
    }

    /// One that was in this state before, having opened so often in a row (less one).
    pub fn recalled(workers: usize, state: State, openings: u8) -> Self {
        let circuit = Circuit { state, openings: openings.min(MOST_OPENINGS), ..Circuit::NEW };
        let unhealthy = AtomicBool::new(matches!(state, State::Unhealthy { .. }));
        Self { circuit: AtomicU64::new(circuit.pack()), unhealthy, ..Self::new(workers) }
    }

    /// How often it opened in a row, less one.
    pub fn openings(&self) -> u8 {
        self.circuit().openings
    }

    /// What it is in now. An open circuit whose time is over stays open until somebody asks.
    pub fn state(&self) -> State {
        self.circuit().state
    }

    /// What the window holds.
    pub fn counts(&self, settings: &Settings, now: Millis) -> Counts {
        self.window.counts(now, settings.window_ms)
    }

    /// How other nodes find the instance, from here on.
    pub fn set_others(&self, others: Others) {
        self.others.store(others.pack(), Relaxed);
    }

    /// How other nodes find the instance.
    pub fn others(&self) -> Others {
        Others::unpack(self.others.load(Relaxed))
    }

    /// Takes note of what kind of failure there was. Of two that come at once one may be lost.
    pub fn note_failure(&self, unreached: bool) {
        let Lately { failures, unreached } = self.lately().and(unreached);
        self.lately.store(u16::from_le_bytes([failures, unreached]), Relaxed);
    }

    /// The last failures.
    pub fn lately(&self) -> Lately {
        let [failures, unreached] = self.lately.load(Relaxed).to_le_bytes();
        Lately { failures, unreached }
    }

    /// They are of no account any more.
    pub fn forget_lately(&self) {
        self.lately.store(0, Relaxed);
    }

    /// Failures since the last success.
    pub fn row(&self) -> u32 {
        self.row.load(Relaxed)
    }

    /// Whether it would be open if it might: too many others are out.
    pub fn is_kept_in(&self) -> bool {
        self.would_be_out() && self.state() == State::Closed
    }

    /// Lets a probe through at once, where the circuit is open; false: it is not.
    pub(super) fn probe_early(&self) -> bool {
        let before = self.circuit();
        before.early().is_some_and(|after| self.swap(before, after))
    }

    pub(super) fn would_be_out(&self) -> bool {
        self.question.load(Relaxed) == question::KEPT_IN || self.unhealthy.load(Relaxed)
    }

    /// Whether health checks fail.
    pub fn is_unhealthy(&self) -> bool {
        self.unhealthy.load(Relaxed)
    }

    /// So many health checks have failed in a row, enough to take it out, if there is room.
    pub fn checks_failed(&self, checks: u32, ejections: Option<&Ejections>) -> Option<Transition> {
        self.unhealthy.store(true, Relaxed);
        loop {
            let before = self.circuit();
            let after = before.unhealthy()?;
            let reason = Reason::ChecksFailed(checks);
            let change =
                || self.swap(before, after).then_some(Transition { from: before.state, to: after.state, reason });
            let changed = match ejections.filter(|_| before.state == State::Closed) {
                None => change(),
                // Where there is no room it stays in, and is judged again by the next check.
                Some(ejections) => ejections.take(change)?,
            };
            if changed.is_some() {
                return changed;
            }
        }
    }

    /// Health checks are good, or (`Reason::Unchecked`) are made no more.
    pub fn checks_good(
        &self,
        settings: &Settings,
        reason: Reason,
        now: Millis,
        ejections: Option<&Ejections>,
    ) -> Option<Transition> {
        self.unhealthy.store(false, Relaxed);
        loop {
            let before = self.circuit();
            let after = before.healthy(now)?;
            if after.state == State::Closed {
                // Nobody records while nothing passes, so this is safe before the change.
                self.start_afresh(settings, now);
            }
            if self.swap(before, after) {
                ejections.filter(|_| after.state == State::Closed).into_iter().for_each(Ejections::room);
                return Some(Transition { from: before.state, to: after.state, reason });
            }
        }
    }

    /// May a request be sent? The caller of an admitted one calls [`Breaker::record`] once, whatever becomes of it.
    pub fn ask(&self, settings: &Settings, now: Millis) -> Answer {
        loop {
            let before = self.circuit();
            let (after, answer) = before.ask(settings, now);
            if let Answer::Admit(ticket) = answer {
                let kept_in = self.would_be_out();
                return Answer::Admit(Ticket { kept_in, ..ticket });
            }
            if after == before || self.swap(before, after) {
                return answer;
            }
        }
    }

    /// Takes note of a request's outcome, and returns the change that it made, if it did. It opens only where `ejections` leave room, if
    /// it is one of several. A result that comes in the very moment in which another one changes the state may still be counted, at
    /// most one per worker.
    pub fn record(
        &self,
        settings: &Settings,
        ticket: Ticket,
        outcome: Outcome,
        moment: Moment,
        ejections: Option<&Ejections>,
    ) -> Option<Transition> {
        if ticket.probe {
            let transition = self.record_probe(settings, ticket, outcome, moment);
            if transition.is_some_and(|transition| transition.to == State::Closed) {
                ejections.into_iter().for_each(Ejections::room);
            }
            return transition;
        }
        let before = self.circuit();
        if before.generation != ticket.generation || before.state != State::Closed {
            return None;
        }
        let reason = match outcome {
            Outcome::Cancelled => None,
            Outcome::Success { slow } => self.judge(settings, false, slow, moment),
            Outcome::Failure { slow } => self.judge(settings, true, slow, moment),
        }?;
        let open = || {
            let after = before.opened(settings, 0, moment.now, moment.random);
            self.swap(before, after).then_some(Transition { from: before.state, to: after.state, reason })
        };
        match ejections {
            None => open(),
            Some(ejections) => ejections.take(open).unwrap_or_else(|| {
                self.question.store(question::KEPT_IN, Relaxed);
                ejections.look_among_those_out(moment.now);
                None
            }),
        }
    }

    /// Counts a request, and says why the circuit is to open, if it is.
    fn judge(&self, settings: &Settings, failed: bool, slow: bool, moment: Moment) -> Option<Reason> {
        let mut row = 0;
        if failed {
            row = self.row.fetch_add(1, Relaxed).saturating_add(1);
        } else if self.row.load(Relaxed) != 0 {
            self.row.store(0, Relaxed);
        }
        self.window.record(moment.worker, moment.now, settings.window_ms, failed, slow);
        let before = self.question.load(Relaxed);
        if !failed && !slow && before == question::NONE {
            return None;
        }
        // What others see weighs only with a failure of this node's own.
        let others = if failed { self.others() } else { Others::default() };
        let lowered = settings.beside(others);
        let counts = self.counts(settings, moment.now);
        let too_few = counts.total < u64::from(settings.minimum_requests);
        let after = if too_few { question::TOO_FEW } else { question::NONE };
        if before != after {
            self.question.store(after, Relaxed);
        }
        let in_a_row = failed && row >= lowered.failure_threshold;
        let reason = if in_a_row { Some(Reason::ConsecutiveFailures(row)) } else { lowered.against(counts) };
        reason.and_then(|reason| settings.credit(reason, others))
    }

    fn record_probe(
        &self,
        settings: &Settings,
        ticket: Ticket,
        outcome: Outcome,
        moment: Moment,
    ) -> Option<Transition> {
        loop {
            let before = self.circuit();
            let (after, reason) = before.probed(settings, ticket, outcome, moment.now, moment.random)?;
            if after.state == State::Closed {
                // Nobody records while it is half-open, so this is safe before the change, and too late after it.
                self.start_afresh(settings, moment.now);
            }
            if self.swap(before, after) {
                return reason.map(|reason| Transition { from: before.state, to: after.state, reason });
            }
        }
    }

    /// Lets another probe have the place of this one, which goes on.
    pub fn give_place_on(&self, ticket: Ticket) {
        loop {
            let before = self.circuit();
            let Some(after) = before.with_place_given_on(ticket) else { return };
            if self.swap(before, after) {
                return;
            }
        }
    }

    /// Closes it, for more are out than may be; `None`: it is closed.
    pub(super) fn bring_in(&self, settings: &Settings, now: Millis) -> Option<Transition> {
        loop {
            let before = self.circuit();
            if before.state == State::Closed {
                return None;
            }
            self.start_afresh(settings, now);
            let after = before.closed();
            if self.swap(before, after) {
                return Some(Transition { from: before.state, to: after.state, reason: Reason::TooManyOut });
            }
        }
    }

    /// The policy has changed: an open circuit stays open no longer than it would if it opened now.
    pub fn shorten(&self, settings: &Settings, now: Millis) {
        loop {
            let before = self.circuit();
            let State::Open { until } = before.state else { return };
            let latest = now.plus(settings.open_for_ms(before.openings, u32::MAX / 2));
            if until <= latest || self.swap(before, Circuit { state: State::Open { until: latest }, ..before }) {
                return;
            }
        }
    }

    fn start_afresh(&self, settings: &Settings, now: Millis) {
        self.window.reset(now, settings.window_ms);
        self.row.store(0, Relaxed);
        self.question.store(question::NONE, Relaxed);
    }

    fn circuit(&self) -> Circuit {
        Circuit::unpack(self.circuit.load(Acquire))
    }

    fn swap(&self, before: Circuit, after: Circuit) -> bool {
        self.circuit.compare_exchange(before.pack(), after.pack(), Release, Relaxed).is_ok()
    }
}
