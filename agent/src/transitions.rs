//! Changes of circuits, as they happen: logged, counted, kept for showing, and told to the controller.
//!
//! A change is rare (a circuit opens at most once per `timeout`), so this is the one place near the path of a request that
//! takes a lock.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use switchyard_proto::v1;
use tokio::sync::broadcast;

use crate::admit::breaker::{State, Transition};
use crate::admit::window::Millis;
use crate::clock;
use crate::runtime::KnownCircuit;
use crate::state::remembered;
use crate::table::{Circuit, Held};

/// Changes that wait for a slow controller stream; older ones are dropped, as the newest say what is.
const BACKLOG: usize = 1024;

/// All changes of an agent's circuits.
#[derive(Debug)]
pub struct Transitions {
    latest: Mutex<HashMap<(String, String), Latest>>,
    /// Circuits that were told to be held: how, since the last change.
    held: Mutex<HashMap<(String, String), bool>>,
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
        Self { latest: Mutex::default(), held: Mutex::default(), told: broadcast::channel(BACKLOG).0 }
    }
}

/// The word for a state.
pub fn word(state: State) -> &'static str {
    match state {
        State::Closed => "closed",
        State::Open { .. } | State::Unhealthy { .. } => "open",
        State::HalfOpen { .. } => "half-open",
    }
}

/// The word for what a circuit does to requests: its state, unless it is held by hand.
pub fn shown(state: State, held: Option<Held>) -> &'static str {
    match held {
        Some(Held { open: true, .. }) => "open",
        Some(Held { open: false, .. }) => "closed",
        None => word(state),
    }
}

impl Transitions {
    fn latest(&self) -> MutexGuard<'_, HashMap<(String, String), Latest>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These changed before the agent started.
    pub fn recall(&self, circuits: &[remembered::Circuit]) {
        let latest = circuits.iter().map(|circuit| {
            let service = format!("{}/{}", circuit.namespace, circuit.service);
            let latest = Latest { reason: circuit.reason.clone(), since_ms: circuit.since_unix_ms, counts: [0; 3] };
            ((service, circuit.target.clone()), latest)
        });
        self.latest().extend(latest);
    }

    /// A circuit changed.
    pub fn note(&self, circuit: &Circuit, transition: Transition) {
        let words = (word(transition.from), word(transition.to));
        self.changed(&circuit.service, &circuit.target, &circuit.settings.name, words, transition.reason.to_string());
    }

    /// The same for one that no request changed.
    pub fn note_known(&self, known: &KnownCircuit, transition: Transition) {
        let words = (word(transition.from), word(transition.to));
        let service = known.service.to_string();
        self.changed(&service, &known.target, &known.settings.name, words, transition.reason.to_string());
    }

    /// Whether some were told to be held.
    pub fn any_held(&self) -> bool {
        !self.held.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Tells of all circuits that are held by hand, or are no more, since this was asked last.
    pub fn note_held(&self, circuits: &[Arc<KnownCircuit>], now: Millis) {
        let mut told = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_empty() && circuits.iter().all(|known| known.held.is_none()) {
            return;
        }
        let mut gone: HashSet<_> = told.keys().cloned().collect();
        for known in circuits {
            let key = (known.service.to_string(), known.target.clone());
            gone.remove(&key);
            let state = word(known.breaker.state());
            let words = |held: Option<bool>| match held {
                Some(true) => "open",
                Some(false) => "closed",
                None => state,
            };
            let (before, held) = (told.get(&key).copied(), known.held(now).map(|held| held.open));
            if before == held {
                continue;
            }
            let reason = match (held, &known.settings.hold) {
                (Some(_), Some(hold)) => hold.to_string(),
                _ => "no longer held by hand".to_owned(),
            };
            self.changed(&key.0, &key.1, &known.settings.name, (words(before), words(held)), reason);
            match held {
                Some(open) => told.insert(key, open),
                None => told.remove(&key),
            };
        }
        told.retain(|key, _| !gone.contains(key));
    }

    fn changed(&self, service: &str, target: &str, policy: &str, (from, to): (&str, &str), reason: String) {
        let since_ms = clock::unix_millis();
        tracing::info!(service, target, policy, from, to, reason, "circuit changed");
        {
            let mut latest = self.latest();
            let entry = latest.entry((service.to_owned(), target.to_owned())).or_insert_with(|| Latest {
                reason: String::new(),
                since_ms,
                counts: [0; 3],
            });
            let count = match to {
                "open" => 0,
                "half-open" => 1,
                _ => 2,
            };
            entry.counts[count] += 1;
            entry.reason.clone_from(&reason);
            entry.since_ms = since_ms;
        }
        let (namespace, service) = service.split_once('/').unwrap_or(("", service));
        // Nobody listening is no error: the next stream begins with what is.
        let _ = self.told.send(v1::CircuitTransition {
            namespace: namespace.to_owned(),
            service: service.to_owned(),
            target: target.to_owned(),
            state: to.to_owned(),
            reason,
            since_ms,
            policy: policy.to_owned(),
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
