//! Changes of circuits, as they happen: logged, counted, kept for showing, and told to the controller.
//!
//! A change is rare (a circuit opens at most once per `timeout`), so this is the one place near the path of a request that
//! takes a lock.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use switchyard_proto::v1;
use tokio::sync::broadcast;

use crate::admit::breaker::{State, Transition};
use crate::clock;
use crate::table::Circuit;

/// Changes that wait for a slow controller stream; older ones are dropped, as the newest say what is.
const BACKLOG: usize = 1024;

/// All changes of an agent's circuits.
#[derive(Debug)]
pub struct Transitions {
    latest: Mutex<HashMap<(String, String), Latest>>,
    told: broadcast::Sender<v1::CircuitTransition>,
}

/// What is known of a circuit's last change.
#[derive(Clone, Debug)]
pub struct Latest {
    /// Why it changed.
    pub reason: String,
    /// When, in milliseconds since 1970.
    pub since_ms: i64,
    /// How often it changed to open, half-open and closed.
    pub counts: [u64; 3],
}

impl Default for Transitions {
    fn default() -> Self {
        Self { latest: Mutex::default(), told: broadcast::channel(BACKLOG).0 }
    }
}

/// The word for a state.
pub fn word(state: State) -> &'static str {
    match state {
        State::Closed => "closed",
        State::Open { .. } => "open",
        State::HalfOpen { .. } => "half-open",
    }
}

impl Transitions {
    fn latest(&self) -> MutexGuard<'_, HashMap<(String, String), Latest>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A circuit changed.
    pub fn note(&self, circuit: &Circuit, transition: Transition) {
        let to = word(transition.to);
        let reason = transition.reason.to_string();
        let since_ms = clock::unix_millis();
        tracing::info!(
            service = %circuit.service,
            target = %circuit.target,
            policy = %circuit.settings.name,
            from = word(transition.from),
            to,
            reason,
            "circuit changed"
        );
        {
            let mut latest = self.latest();
            let entry = latest
                .entry((circuit.service.to_string(), circuit.target.to_string()))
                .or_insert_with(|| Latest { reason: String::new(), since_ms, counts: [0; 3] });
            let count = match transition.to {
                State::Open { .. } => 0,
                State::HalfOpen { .. } => 1,
                State::Closed => 2,
            };
            entry.counts[count] += 1;
            entry.reason.clone_from(&reason);
            entry.since_ms = since_ms;
        }
        let (namespace, service) = circuit.service.split_once('/').unwrap_or(("", &circuit.service));
        // Nobody listening is no error: the next stream begins with what is.
        let _ = self.told.send(v1::CircuitTransition {
            namespace: namespace.to_owned(),
            service: service.to_owned(),
            target: circuit.target.to_string(),
            state: to.to_owned(),
            reason,
            since_ms,
            policy: circuit.settings.name.to_string(),
        });
    }

    /// What is known of a circuit's last change; `None`: it never changed.
    pub fn of(&self, service: &str, target: &str) -> Option<Latest> {
        self.latest().get(&(service.to_owned(), target.to_owned())).cloned()
    }

    /// The changes from now on.
    pub fn listen(&self) -> broadcast::Receiver<v1::CircuitTransition> {
        self.told.subscribe()
    }
}
