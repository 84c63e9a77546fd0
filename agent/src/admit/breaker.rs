//! The circuit breaker: whether an instance or a destination is asked, decided by how it answered before.
//!
//! Closed, everything passes. Enough failures open it, in a row or as a share of the window, and nothing passes. After a
//! while it is half-open: a few probes pass, and their results close it or open it again for longer. A failure that finds
//! too few requests in the window for a share is judged again by the request that makes them enough.
//!
//! The state is one word, changed by pure functions of [`Circuit`] under compare-and-swap; no locks. A success in the closed
//! state writes only its worker's own shard of the window (and the row of failures, where one had begun). Clock and
//! randomness are arguments. Every admission has a [`Ticket`], and exactly one [`Breaker::record`] follows it, also for a
//! request that was cancelled; the permit that sees to this is not here.
//!
//! Invariants, each with its test:
//! - no more than `half_open_requests` probes of one half-open spell are under way (`no_more_probes_than_allowed_pass`,
//!   also with four threads: `four_threads_never_have_more_probes_than_allowed`);
//! - the result of a request that was admitted before the last change counts for nothing
//!   (`a_result_from_an_earlier_life_counts_for_nothing`);
//! - it does what a plain model does (`the_breaker_does_what_a_plain_model_does`).

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use super::window::Window;
pub use super::window::{Counts, Millis};

/// Most of `half_open_requests` and `success_threshold`: what their bits in the word hold.
const MOST_PROBES: u32 = 100;

/// Openings in a row are counted up to here; the back-off has met its cap long before.
const MOST_OPENINGS: u8 = 63;

/// What a policy asks of its breakers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Failures in a row that open the circuit; at least 1.
    pub failure_threshold: u32,
    /// The share of failures that opens it, in parts per million.
    pub error_rate_ppm: u32,
    /// The share counts from so many requests in the window on.
    pub minimum_requests: u32,
    /// Length of the window in milliseconds.
    pub window_ms: u64,
    /// How long it stays open the first time, in milliseconds.
    pub timeout_ms: u64,
    /// How many times as long after each failed probe, in thousandths.
    pub multiplier_milli: u32,
    /// It never stays open longer than this, in milliseconds.
    pub max_timeout_ms: u64,
    /// Shorter or longer at random by up to this share, in parts per million.
    pub jitter_ppm: u32,
    /// Successful probes that close it, 1 to 100.
    pub success_threshold: u32,
    /// Probes that may be under way at a time, 1 to 100.
    pub half_open_requests: u32,
}

/// What a circuit is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Requests pass.
    Closed,
    /// Nothing passes.
    Open {
        /// When the first probe may pass.
        until: Millis,
    },
    /// Probes pass.
    HalfOpen {
        /// Probes under way.
        in_flight: u8,
        /// Probes that succeeded.
        successes: u8,
    },
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen { .. } => "half-open",
        })
    }
}

/// May the request be sent?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Yes.
    Admit(Ticket),
    /// Yes, and its result decides about the circuit.
    Probe(Ticket),
    /// No.
    Refuse {
        /// When it makes sense to ask again.
        until: Millis,
        /// What stands against it.
        why: Refusal,
    },
}

/// What stands against a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The circuit is open.
    Open,
    /// The circuit is half-open, and all its probes are under way.
    ProbesTaken,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "the circuit is open",
            Self::ProbesTaken => "the circuit is half-open and its probes are under way",
        })
    }
}

/// The right to send one request, to be handed back with its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    generation: u16,
    probe: bool,
    /// Set for the probe that ended an open spell: until when that was to last.
    ended: Option<Millis>,
}

impl Ticket {
    /// Whether the request is a probe.
    pub fn is_probe(self) -> bool {
        self.probe
    }

    /// The change from open to half-open, if it was this admission that made it.
    pub fn transition(self) -> Option<Transition> {
        Some(Transition {
            from: State::Open { until: self.ended? },
            to: State::HalfOpen { in_flight: 1, successes: 0 },
            reason: Reason::ProbeTime,
        })
    }
}

/// How a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered, and well.
    Success,
    /// It failed in one of the ways that the policy lists.
    Failure,
    /// Nobody knows: the caller went away. A probe's slot is free again.
    Cancelled,
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// What it was.
    pub from: State,
    /// What it is.
    pub to: State,
    /// Why it changed.
    pub reason: Reason,
}

/// Why a state changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// So many failures in a row.
    ConsecutiveFailures(u32),
    /// The share of failures in the window.
    ErrorRate {
        /// Requests that failed.
        failed: u64,
        /// All requests.
        total: u64,
    },
    /// A probe failed.
    ProbeFailed,
    /// Enough probes succeeded.
    ProbesSucceeded,
    /// It was open long enough.
    ProbeTime,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConsecutiveFailures(1) => f.write_str("1 failure"),
            Self::ConsecutiveFailures(failures) => write!(f, "{failures} failures in a row"),
            Self::ErrorRate { failed, total } => write!(f, "{failed} of {total} requests failed"),
            Self::ProbeFailed => f.write_str("a probe failed"),
            Self::ProbesSucceeded => f.write_str("the probes succeeded"),
            Self::ProbeTime => f.write_str("time to probe"),
        }
    }
}

/// The breaker as workers share it.
#[derive(Debug)]
pub struct Breaker {
    /// A packed [`Circuit`].
    circuit: AtomicU64,
    /// Failures since the last success.
    row: AtomicU32,
    /// The last failure found fewer than `minimum_requests` in the window.
    undecided: AtomicBool,
    window: Window,
}

impl Breaker {
    /// A closed circuit for so many workers.
    pub fn new(workers: usize) -> Self {
        Self {
            circuit: AtomicU64::new(Circuit::NEW.pack()),
            row: AtomicU32::new(0),
            undecided: AtomicBool::new(false),
            window: Window::new(workers),
        }
    }

    /// What it is in now. An open circuit whose time is over stays open until somebody asks.
    pub fn state(&self) -> State {
        self.circuit().state
    }

    /// What the window holds.
    pub fn counts(&self, settings: &Settings, now: Millis) -> Counts {
        self.window.counts(now, settings.window_ms)
    }

    /// May a request be sent? The caller of an admitted one calls [`Breaker::record`] once, whatever becomes of it.
    pub fn ask(&self, settings: &Settings, now: Millis) -> Answer {
        loop {
            let before = self.circuit();
            let (after, answer) = before.ask(settings, now);
            if after == before || self.swap(before, after) {
                return answer;
            }
        }
    }

    /// Takes note of a request's outcome, and returns the change that it made, if it did. `worker` is the calling worker's
    /// number, `random` any number that is evenly spread over its range. A result that comes in the very moment in which
    /// another one changes the state may still be counted, at most one per worker.
    pub fn record(
        &self,
        settings: &Settings,
        ticket: Ticket,
        worker: usize,
        outcome: Outcome,
        now: Millis,
        random: u32,
    ) -> Option<Transition> {
        if ticket.probe {
            return self.record_probe(settings, ticket, outcome, now, random);
        }
        let before = self.circuit();
        if before.generation != ticket.generation || before.state != State::Closed {
            return None;
        }
        let reason = match outcome {
            Outcome::Cancelled => None,
            Outcome::Success => self.succeeded(settings, worker, now),
            Outcome::Failure => self.failed(settings, worker, now),
        }?;
        let after = before.opened(settings, 0, now, random);
        self.swap(before, after).then_some(Transition { from: before.state, to: after.state, reason })
    }

    fn succeeded(&self, settings: &Settings, worker: usize, now: Millis) -> Option<Reason> {
        if self.row.load(Relaxed) != 0 {
            self.row.store(0, Relaxed);
        }
        self.window.record(worker, now, settings.window_ms, false);
        if self.undecided.load(Relaxed) { self.error_rate(settings, now) } else { None }
    }

    fn failed(&self, settings: &Settings, worker: usize, now: Millis) -> Option<Reason> {
        let row = self.row.fetch_add(1, Relaxed).saturating_add(1);
        self.window.record(worker, now, settings.window_ms, true);
        let error_rate = self.error_rate(settings, now);
        if row >= settings.failure_threshold { Some(Reason::ConsecutiveFailures(row)) } else { error_rate }
    }

    /// Whether the share of failures opens the circuit; and if it cannot be told yet, that is noted.
    fn error_rate(&self, settings: &Settings, now: Millis) -> Option<Reason> {
        let Counts { total, failed } = self.counts(settings, now);
        let undecided = total < u64::from(settings.minimum_requests);
        if self.undecided.load(Relaxed) != undecided {
            self.undecided.store(undecided, Relaxed);
        }
        let reached = failed > 0 && failed * 1_000_000 >= total * u64::from(settings.error_rate_ppm);
        (reached && !undecided).then_some(Reason::ErrorRate { failed, total })
    }

    fn record_probe(
        &self,
        settings: &Settings,
        ticket: Ticket,
        outcome: Outcome,
        now: Millis,
        random: u32,
    ) -> Option<Transition> {
        loop {
            let before = self.circuit();
            let (after, reason) = before.probed(settings, ticket, outcome, now, random)?;
            if after.state == State::Closed {
                // Nobody records while it is half-open, so this is safe before the change, and too late after it.
                self.start_afresh(settings, now);
            }
            if self.swap(before, after) {
                return reason.map(|reason| Transition { from: before.state, to: after.state, reason });
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
        self.undecided.store(false, Relaxed);
    }

    fn circuit(&self) -> Circuit {
        Circuit::unpack(self.circuit.load(Acquire))
    }

    fn swap(&self, before: Circuit, after: Circuit) -> bool {
        self.circuit.compare_exchange(before.pack(), after.pack(), Release, Relaxed).is_ok()
    }
}

/// All that decides, as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Circuit {
    state: State,
    /// Times it opened since it was last closed, less one.
    openings: u8,
    /// Grows with each opening and closing; 12 bits. A request's result counts only in the generation that admitted it.
    generation: u16,
}

impl Circuit {
    const NEW: Self = Self { state: State::Closed, openings: 0, generation: 0 };
    const PAYLOAD_BITS: u32 = 44;
    const OPENINGS_BITS: u32 = 6;
    const GENERATION_BITS: u32 = 12;
    const PROBE_BITS: u32 = 7;

    fn ask(self, settings: &Settings, now: Millis) -> (Self, Answer) {
        let ticket = Ticket { generation: self.generation, probe: true, ended: None };
        let half_open = |in_flight, successes| Self { state: State::HalfOpen { in_flight, successes }, ..self };
        match self.state {
            State::Closed => (self, Answer::Admit(Ticket { probe: false, ..ticket })),
            State::Open { until } if now < until => (self, Answer::Refuse { until, why: Refusal::Open }),
            State::Open { until } => (half_open(1, 0), Answer::Probe(Ticket { ended: Some(until), ..ticket })),
            State::HalfOpen { in_flight, successes }
                if u32::from(in_flight) < settings.half_open_requests.clamp(1, MOST_PROBES) =>
            {
                (half_open(in_flight + 1, successes), Answer::Probe(ticket))
            }
            State::HalfOpen { .. } => (self, Answer::Refuse { until: now, why: Refusal::ProbesTaken }),
        }
    }

    /// After a probe came back; `None` if it belongs to an earlier spell.
    fn probed(
        self,
        settings: &Settings,
        ticket: Ticket,
        outcome: Outcome,
        now: Millis,
        random: u32,
    ) -> Option<(Self, Option<Reason>)> {
        let State::HalfOpen { in_flight, successes } = self.state else { return None };
        if ticket.generation != self.generation {
            return None;
        }
        let in_flight = in_flight.saturating_sub(1);
        let half_open = |successes| Self { state: State::HalfOpen { in_flight, successes }, ..self };
        Some(match outcome {
            Outcome::Cancelled => (half_open(successes), None),
            Outcome::Failure => {
                let openings = (self.openings + 1).min(MOST_OPENINGS);
                (self.opened(settings, openings, now, random), Some(Reason::ProbeFailed))
            }
            Outcome::Success if u32::from(successes) + 1 >= settings.success_threshold.min(MOST_PROBES) => {
                let closed = Self { state: State::Closed, openings: 0, generation: self.next_generation() };
                (closed, Some(Reason::ProbesSucceeded))
            }
            Outcome::Success => (half_open(successes + 1), None),
        })
    }

    fn opened(self, settings: &Settings, openings: u8, now: Millis, random: u32) -> Self {
        let until = now.plus(settings.open_for_ms(openings, random));
        Self { state: State::Open { until }, openings, generation: self.next_generation() }
    }

    fn next_generation(self) -> u16 {
        self.generation.wrapping_add(1) & ((1 << Self::GENERATION_BITS) - 1)
    }

    fn pack(self) -> u64 {
        let (tag, payload) = match self.state {
            State::Closed => (0, 0),
            State::Open { until } => (1, until.0.min((1 << Self::PAYLOAD_BITS) - 1)),
            State::HalfOpen { in_flight, successes } => {
                (2, u64::from(in_flight) | u64::from(successes) << Self::PROBE_BITS)
            }
        };
        let head = (tag << Self::GENERATION_BITS | u64::from(self.generation)) << Self::OPENINGS_BITS;
        (head | u64::from(self.openings)) << Self::PAYLOAD_BITS | payload
    }

    fn unpack(word: u64) -> Self {
        let low = |word: u64, bits: u32| word & ((1 << bits) - 1);
        let payload = low(word, Self::PAYLOAD_BITS);
        let openings = low(word >> Self::PAYLOAD_BITS, Self::OPENINGS_BITS);
        let generation = low(word >> (Self::PAYLOAD_BITS + Self::OPENINGS_BITS), Self::GENERATION_BITS);
        let state = match word >> (Self::PAYLOAD_BITS + Self::OPENINGS_BITS + Self::GENERATION_BITS) {
            0 => State::Closed,
            1 => State::Open { until: Millis(payload) },
            _ => State::HalfOpen {
                in_flight: low(payload, Self::PROBE_BITS) as u8,
                successes: low(payload >> Self::PROBE_BITS, Self::PROBE_BITS) as u8,
            },
        };
        Self { state, openings: openings as u8, generation: generation as u16 }
    }
}

impl Settings {
    /// How long the circuit stays open, in milliseconds, after so many failed spells of probing: evenly spread over what
    /// the jitter allows below the cap.
    fn open_for_ms(&self, openings: u8, random: u32) -> u64 {
        let cap = self.max_timeout_ms as f64;
        let grown = self.timeout_ms as f64 * (f64::from(self.multiplier_milli) / 1000.0).powi(i32::from(openings));
        let middle = grown.min(cap);
        let spread = middle * f64::from(self.jitter_ppm.min(1_000_000)) / 1e6;
        let (shortest, longest) = (middle - spread, (middle + spread).min(cap));
        (shortest + (longest - shortest) * f64::from(random) / f64::from(u32::MAX)).round() as u64
    }
}

#[cfg(test)]
mod tests;
