//! The state machine of a circuit, as a value: pure functions from a state, with clock and chance as arguments, to the next state and
//! its reason. [`super::breaker`] is the form of it that threads share.
//!
//! Closed, everything passes. Enough failures open it, in a row or as a share of the window, or enough slow replies, and nothing passes.
//! After a while it is half-open: a few probes pass, and their results close it or open it again for longer. A probe that is slow, where
//! slow calls count, opens it again as one that failed does: closed on the very evidence that opened it, it would only open once more.
//!
//! Health checks are evidence of their own: when they fail nothing passes, and when they are good again it is closed, or, if the traffic
//! had opened it, probes begin.
//!
//! What other nodes see ([`Others`]) never opens a circuit: it only makes a failure of this node's own weigh more
//! (`no_circuit_opens_without_a_failure_of_its_own`).

use std::fmt;

use super::window::{Counts, Millis};

/// Most of `half_open_requests` and `success_threshold`: what their bits in the word hold.
pub(super) const MOST_PROBES: u32 = 100;

/// Openings in a row are counted up to here; the back-off has met its cap long before.
pub(super) const MOST_OPENINGS: u8 = 63;

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
    /// From which share of slow replies on it opens, in parts per million; `None`: slow replies are replies like others.
    pub slow_rate_ppm: Option<u32>,
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
    /// Nothing passes, until health checks are good.
    Unhealthy {
        /// The traffic had opened it, and it is for probes to close it.
        opened: bool,
    },
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen { .. } => "half-open",
            Self::Unhealthy { .. } => "unhealthy",
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
    /// Health checks fail; when they will be good, nobody knows.
    Unhealthy,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "the circuit is open",
            Self::ProbesTaken => "the circuit is half-open and its probes are under way",
            Self::Unhealthy => "health checks fail",
        })
    }
}

/// The right to send one request, to be handed back with its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    pub(super) generation: u16,
    pub(super) probe: bool,
    /// It has one of the places of probes, until that is given on.
    pub(super) placed: bool,
    /// Its circuit was still to be open, but all others fail as well ([`Circuit::early`]). That it fails makes no later one longer.
    pub(super) early: bool,
    /// Set for the probe that ended an open spell: until when that was to last.
    pub(super) ended: Option<Millis>,
    /// The circuit would be open, and may not be: too many others are out.
    pub(super) kept_in: bool,
}

impl Ticket {
    /// The same, of a probe whose place was given on: what comes of it still counts.
    #[must_use]
    pub fn without_place(self) -> Self {
        Self { placed: false, ..self }
    }

    /// Whether the request is a probe.
    pub fn is_probe(self) -> bool {
        self.probe
    }

    /// Whether the circuit would be open if it might: too many others are out.
    pub fn is_kept_in(self) -> bool {
        self.kept_in
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
    Success {
        /// But it took as long as the policy calls slow.
        slow: bool,
    },
    /// It failed in one of the ways that the policy lists.
    Failure {
        /// And it took long, too.
        slow: bool,
    },
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
    /// The share of slow replies in the window.
    SlowRate {
        /// Requests that took long.
        slow: u64,
        /// All requests.
        total: u64,
    },
    /// A probe failed.
    ProbeFailed,
    /// A probe took long.
    ProbeSlow,
    /// Enough probes succeeded.
    ProbesSucceeded,
    /// It was open long enough.
    ProbeTime,
    /// More were out than may be, since there are fewer instances or the policy lets fewer be out.
    TooManyOut,
    /// It is governed by a policy of another window, or had none for a while.
    BegunAnew,
    /// So many health checks failed in a row.
    ChecksFailed(u32),
    /// Enough health checks were good.
    ChecksGood,
    /// Its policy asks for no health checks any more.
    Unchecked,
    /// Fewer failures in a row than the policy asks for, since others see it fail.
    FewerFailures {
        /// In a row.
        row: u32,
        /// What the policy asks for.
        of: u32,
        /// Who sees it fail.
        others: Others,
    },
    /// The share of failures in a window with fewer requests than the policy asks for, since others see it fail.
    FewerRequests {
        /// Requests that failed.
        failed: u64,
        /// All requests.
        total: u64,
        /// What the policy asks for.
        of: u32,
        /// Who sees it fail.
        others: Others,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConsecutiveFailures(1) => f.write_str("1 failure"),
            Self::ConsecutiveFailures(failures) => write!(f, "{failures} failures in a row"),
            Self::ErrorRate { failed, total } => write!(f, "{failed} of {total} requests failed"),
            Self::SlowRate { slow, total } => write!(f, "{slow} of {total} requests were slow"),
            Self::ProbeFailed => f.write_str("a probe failed"),
            Self::ProbeSlow => f.write_str("a probe was slow"),
            Self::ProbesSucceeded => f.write_str("the probes succeeded"),
            Self::ProbeTime => f.write_str("time to probe"),
            Self::TooManyOut => f.write_str("more were out than may be"),
            Self::BegunAnew => f.write_str("its policy has another window, or is another one"),
            Self::ChecksFailed(1) => f.write_str("health-check: 1 failed"),
            Self::ChecksFailed(checks) => write!(f, "health-check: {checks} failed in a row"),
            Self::ChecksGood => f.write_str("health-check: it is good again"),
            Self::Unchecked => f.write_str("health-check: none is made any more"),
            Self::FewerFailures { row, of, others } => {
                write!(f, "{} (of {of}; {others})", Self::ConsecutiveFailures(*row))
            }
            Self::FewerRequests { failed, total, of, others } => {
                write!(f, "{failed} of {total} requests failed (of {of} that it takes; {others})")
            }
        }
    }
}

/// How other nodes find the instance: of those that have asked it lately, how many see it fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// See it fail; no more than `asked`.
    pub failing: u32,
    /// Have asked it.
    pub asked: u32,
}

/// So many others must see an instance fail before that says anything: a fault of one node is none of the instance.
const FEWEST_OTHERS: u32 = 2;

impl Others {
    /// What is left of so many failures, or requests, that a policy asks for: the fewer, the larger the share of others that see the
    /// instance fail; at least one, so that no circuit opens without a failure of its own.
    fn lower(self, count: u32) -> u32 {
        let (asked, well) = (u64::from(self.asked), u64::from(self.asked.saturating_sub(self.failing)));
        if self.failing < FEWEST_OTHERS || asked == 0 {
            return count;
        }
        // No more than `count`, as `well` is no more than `asked`.
        ((u64::from(count) * well).div_ceil(asked) as u32).max(1)
    }

    pub(super) fn pack(self) -> u64 {
        u64::from(self.failing) << 32 | u64::from(self.asked)
    }

    pub(super) fn unpack(word: u64) -> Self {
        Self { failing: (word >> 32) as u32, asked: word as u32 }
    }
}

impl fmt::Display for Others {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let see = if self.failing == 1 { "sees" } else { "see" };
        write!(f, "{} of {} other nodes {see} it fail", self.failing, self.asked)
    }
}

/// All that decides, as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Circuit {
    pub(super) state: State,
    /// Times it opened since it was last closed, less one.
    pub(super) openings: u8,
    /// Grows with each opening and closing; 12 bits. A request's result counts only in the generation that admitted it.
    pub(super) generation: u16,
}

impl Circuit {
    pub(super) const NEW: Self = Self { state: State::Closed, openings: 0, generation: 0 };
    const PAYLOAD_BITS: u32 = 44;
    const OPENINGS_BITS: u32 = 6;
    const GENERATION_BITS: u32 = 12;
    const PROBE_BITS: u32 = 7;
    /// Until when a circuit is open that may be probed at once although its time is not over. No clock begins there.
    const EARLY: Millis = Millis(0);

    pub(super) fn ask(self, settings: &Settings, now: Millis) -> (Self, Answer) {
        let ticket = Ticket {
            generation: self.generation,
            probe: true,
            placed: true,
            early: false,
            ended: None,
            kept_in: false,
        };
        let half_open = |in_flight, successes| Self { state: State::HalfOpen { in_flight, successes }, ..self };
        match self.state {
            State::Closed => (self, Answer::Admit(Ticket { probe: false, placed: false, ..ticket })),
            State::Open { until } if now < until => (self, Answer::Refuse { until, why: Refusal::Open }),
            State::Open { until } => {
                (half_open(1, 0), Answer::Probe(Ticket { ended: Some(until), early: until == Self::EARLY, ..ticket }))
            }
            State::HalfOpen { in_flight, successes }
                if u32::from(in_flight) < settings.half_open_requests.clamp(1, MOST_PROBES) =>
            {
                (half_open(in_flight + 1, successes), Answer::Probe(ticket))
            }
            State::HalfOpen { .. } => (self, Answer::Refuse { until: now, why: Refusal::ProbesTaken }),
            State::Unhealthy { .. } => (self, Answer::Refuse { until: now, why: Refusal::Unhealthy }),
        }
    }

    /// After a probe came back; `None` if it belongs to an earlier spell.
    pub(super) fn probed(
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
        let in_flight = in_flight.saturating_sub(u8::from(ticket.placed));
        let half_open = |successes| Self { state: State::HalfOpen { in_flight, successes }, ..self };
        Some(match outcome {
            Outcome::Cancelled => (half_open(successes), None),
            Outcome::Failure { .. } | Outcome::Success { slow: true } => {
                let openings = (self.openings + u8::from(!ticket.early)).min(MOST_OPENINGS);
                let failed = matches!(outcome, Outcome::Failure { .. });
                let reason = if failed { Reason::ProbeFailed } else { Reason::ProbeSlow };
                (self.opened(settings, openings, now, random), Some(reason))
            }
            Outcome::Success { .. } if u32::from(successes) + 1 >= settings.success_threshold.min(MOST_PROBES) => {
                (self.closed(), Some(Reason::ProbesSucceeded))
            }
            Outcome::Success { .. } => (half_open(successes + 1), None),
        })
    }

    /// To be probed at once, though it was to be open for longer; `None`: it is not open.
    pub(super) fn early(self) -> Option<Self> {
        let is_open = matches!(self.state, State::Open { .. });
        is_open.then_some(Self { state: State::Open { until: Self::EARLY }, ..self })
    }

    /// With the place of a probe for another one; `None`: it has none.
    pub(super) fn with_place_given_on(self, ticket: Ticket) -> Option<Self> {
        let State::HalfOpen { in_flight, successes } = self.state else { return None };
        let in_flight = in_flight.checked_sub(1)?;
        let has = ticket.placed && ticket.generation == self.generation;
        has.then_some(Self { state: State::HalfOpen { in_flight, successes }, ..self })
    }

    pub(super) fn opened(self, settings: &Settings, openings: u8, now: Millis, random: u32) -> Self {
        let until = now.plus(settings.open_for_ms(openings, random));
        Self { state: State::Open { until }, openings, generation: self.next_generation() }
    }

    pub(super) fn closed(self) -> Self {
        Self { state: State::Closed, openings: 0, generation: self.next_generation() }
    }

    /// Health checks have failed; `None`: that is known.
    pub(super) fn unhealthy(self) -> Option<Self> {
        let opened = match self.state {
            State::Unhealthy { .. } => return None,
            state => state != State::Closed,
        };
        Some(Self { state: State::Unhealthy { opened }, generation: self.next_generation(), ..self })
    }

    /// Health checks are good; `None`: they were. What the traffic had found is for probes to find well, which may begin.
    pub(super) fn healthy(self, now: Millis) -> Option<Self> {
        match self.state {
            State::Unhealthy { opened: false } => Some(self.closed()),
            State::Unhealthy { opened: true } => {
                Some(Self { state: State::Open { until: now }, generation: self.next_generation(), ..self })
            }
            _ => None,
        }
    }

    fn next_generation(self) -> u16 {
        self.generation.wrapping_add(1) & ((1 << Self::GENERATION_BITS) - 1)
    }

    pub(super) fn pack(self) -> u64 {
        let (tag, payload) = match self.state {
            State::Closed => (0, 0),
            State::Open { until } => (1, until.0.min((1 << Self::PAYLOAD_BITS) - 1)),
            State::HalfOpen { in_flight, successes } => {
                (2, u64::from(in_flight) | u64::from(successes) << Self::PROBE_BITS)
            }
            State::Unhealthy { opened } => (3, u64::from(opened)),
        };
        let head = (tag << Self::GENERATION_BITS | u64::from(self.generation)) << Self::OPENINGS_BITS;
        (head | u64::from(self.openings)) << Self::PAYLOAD_BITS | payload
    }

    pub(super) fn unpack(word: u64) -> Self {
        let low = |word: u64, bits: u32| word & ((1 << bits) - 1);
        let payload = low(word, Self::PAYLOAD_BITS);
        let openings = low(word >> Self::PAYLOAD_BITS, Self::OPENINGS_BITS);
        let generation = low(word >> (Self::PAYLOAD_BITS + Self::OPENINGS_BITS), Self::GENERATION_BITS);
        let state = match word >> (Self::PAYLOAD_BITS + Self::OPENINGS_BITS + Self::GENERATION_BITS) {
            0 => State::Closed,
            1 => State::Open { until: Millis(payload) },
            3 => State::Unhealthy { opened: payload & 1 == 1 },
            _ => State::HalfOpen {
                in_flight: low(payload, Self::PROBE_BITS) as u8,
                successes: low(payload >> Self::PROBE_BITS, Self::PROBE_BITS) as u8,
            },
        };
        Self { state, openings: openings as u8, generation: generation as u16 }
    }
}

impl Settings {
    /// What is asked of a failure of this node's own while others find the instance so.
    pub(super) fn beside(&self, others: Others) -> Self {
        Self {
            failure_threshold: others.lower(self.failure_threshold),
            minimum_requests: others.lower(self.minimum_requests),
            ..*self
        }
    }

    /// The reason with the part that others have in it, if it would not have been one without them. They see it fail, and say nothing
    /// about slow replies.
    pub(super) fn credit(&self, reason: Reason, others: Others) -> Option<Reason> {
        Some(match reason {
            Reason::ConsecutiveFailures(row) if row < self.failure_threshold => {
                Reason::FewerFailures { row, of: self.failure_threshold, others }
            }
            Reason::ErrorRate { failed, total } if total < u64::from(self.minimum_requests) => {
                Reason::FewerRequests { failed, total, of: self.minimum_requests, others }
            }
            Reason::SlowRate { total, .. } if total < u64::from(self.minimum_requests) => return None,
            reason => reason,
        })
    }

    /// What the window says against the instance.
    pub(super) fn against(&self, counts: Counts) -> Option<Reason> {
        let Counts { total, failed, slow } = counts;
        let reached = |part: u64, ppm: u32| part > 0 && part * 1_000_000 >= total * u64::from(ppm);
        if total < u64::from(self.minimum_requests) {
            None
        } else if reached(failed, self.error_rate_ppm) {
            Some(Reason::ErrorRate { failed, total })
        } else {
            let too_slow = self.slow_rate_ppm.is_some_and(|ppm| reached(slow, ppm));
            too_slow.then_some(Reason::SlowRate { slow, total })
        }
    }

    /// How long the circuit stays open, in milliseconds, after so many failed spells of probing: evenly spread over what
    /// the jitter allows below the cap.
    pub fn open_for_ms(&self, openings: u8, random: u32) -> u64 {
        let cap = self.max_timeout_ms as f64;
        let grown = self.timeout_ms as f64 * (f64::from(self.multiplier_milli) / 1000.0).powi(i32::from(openings));
        let middle = grown.min(cap);
        let spread = middle * f64::from(self.jitter_ppm.min(1_000_000)) / 1e6;
        let (shortest, longest) = (middle - spread, (middle + spread).min(cap));
        (shortest + (longest - shortest) * f64::from(random) / f64::from(u32::MAX)).round() as u64
    }
}
