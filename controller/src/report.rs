//! What is reported of a rule or policy in its status: how it stands, and what the agents make of it. Pure; [`write`] does the rest.
//!
//! Keeps true:
//! - `Programmed` counts the agents that have in force exactly what is published with this generation in it, and have turned nothing
//!   of it down (`programmed_counts_those_that_have_this_generation_in_force`), whichever controller they are connected to: controllers
//!   count revisions each for itself, but the same content has the same version at all of them.
//! - A status that says the same is the same to the letter: times change only with the word that they are of
//!   (`a_status_that_says_the_same_is_not_written_again`), so nothing is ever written in a loop.
//! - Reasons are of a fixed list ([`REASONS`]); messages say what to do.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};
use switchyard_crds::circuit_policy::{CircuitStatus, InstanceStatus};
use switchyard_crds::route_rule::{AgentCount, Condition};
use switchyard_crds::{Finding, Reason, Severity};

use crate::object::{Kind, ObjectKey, ServiceKey};
use crate::snapshot::Routes;
use crate::standing::Standing;

/// Who leads.
pub mod lead;
/// Status and events, written to the API server.
pub mod write;

/// All reasons that conditions give.
pub const REASONS: [&str; 14] = [
    "Accepted",
    "Invalid",
    "ResolvedRefs",
    "UnresolvedRef",
    "NoInstances",
    "NoConflict",
    "Conflicted",
    "Shadowed",
    "Programmed",
    "NotEnforced",
    "NotOptedIn",
    "NoAgents",
    "Pending",
    "Ready",
];

/// Nodes that a message names; of more, only how many.
const NAMED: usize = 3;

/// The longest message of a condition, in characters; the API conventions' bound is 32 KiB.
const LONGEST: usize = 1024;

/// An agent, as far as a status is concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentView {
    /// Its node.
    pub node: String,
    /// What the controller that it is connected to has published.
    pub published: Arc<Routes>,
    /// The last revision of that controller that it has answered; 0 before the first, and where it is cut off.
    pub revision: u64,
    /// Services of which it has turned something down, and why.
    pub rejected: Vec<(ServiceKey, String)>,
}

/// What agents have, and are to have.
#[derive(Clone, Debug, Default)]
pub struct InForce {
    /// What is published here.
    pub published: Arc<Routes>,
    /// All agents, of all controllers.
    pub agents: Vec<AgentView>,
}

/// What agents see of a policy's instances.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic<'a> {
    /// Circuits that are not closed.
    pub circuits: &'a [CircuitStatus],
    /// Instances that some nodes see fail.
    pub instances: &'a [InstanceStatus],
}

impl Traffic<'_> {
    /// All is well, as far as it goes.
    pub fn is_well(&self) -> bool {
        self.circuits.is_empty() && self.instances.is_empty()
    }
}

/// The status of an object now. `now` is RFC 3339.
pub fn status(key: &ObjectKey, standing: &Standing, in_force: &InForce, traffic: Traffic<'_>, now: &str) -> Value {
    let before: Vec<Condition> = standing
        .observed
        .status
        .get("conditions")
        .and_then(|conditions| serde_json::from_value(conditions.clone()).ok())
        .unwrap_or_default();
    let lacking = in_force.lacking(standing);
    let words = words(standing, in_force, &lacking);
    let conditions: Vec<Condition> = words
        .into_iter()
        .map(|(kind, status, reason, message)| {
            let last = before.iter().find(|condition| condition.kind == kind && condition.status == status);
            Condition {
                kind: kind.to_owned(),
                status: status.to_owned(),
                observed_generation: Some(standing.observed.generation),
                last_transition_time: last.map_or_else(|| now.to_owned(), |last| last.last_transition_time.clone()),
                reason: reason.to_owned(),
                message: message.chars().take(LONGEST).collect(),
            }
        })
        .collect();
    let count = AgentCount {
        programmed: u32::try_from(in_force.agents.len() - lacking.len()).unwrap_or(u32::MAX),
        total: u32::try_from(in_force.agents.len()).unwrap_or(u32::MAX),
    };
    let mut status = json!({
        "observedGeneration": standing.observed.generation,
        "conditions": conditions,
        "agents": count,
    });
    if key.kind == Kind::RouteRule && !standing.destinations.is_empty() {
        status["destinations"] = json!(standing.destinations);
    }
    if key.kind == Kind::CircuitPolicy && !traffic.circuits.is_empty() {
        status["circuits"] = json!(traffic.circuits);
    }
    if key.kind == Kind::CircuitPolicy && !traffic.instances.is_empty() {
        status["instances"] = json!(traffic.instances);
    }
    status
}

impl InForce {
    /// The agents that do not have it in force.
    pub(crate) fn lacking<'a>(&'a self, standing: &Standing) -> Vec<&'a AgentView> {
        if !is_current(standing) || !standing.is_compiled {
            return self.agents.iter().collect();
        }
        let refuses = |(service, _): &(ServiceKey, String)| standing.services.contains(service);
        // All agents of a controller share what it has published, so that is looked into once and not for each of them.
        let mut last: Option<(&Arc<Routes>, Option<u64>)> = None;
        let mut lacks = |agent: &'a AgentView| {
            let since = match last {
                Some((published, since)) if Arc::ptr_eq(published, &agent.published) => since,
                _ => self.since(&agent.published, standing),
            };
            last = Some((&agent.published, since));
            agent.revision == 0
                || since.is_none_or(|since| agent.revision < since)
                || agent.rejected.iter().any(refuses)
        };
        self.agents.iter().filter(move |agent| lacks(agent)).collect()
    }

    /// The revision of the controller that publishes this from which on its agents have what is to be in force; none: they do not get it yet.
    fn since(&self, published: &Routes, standing: &Standing) -> Option<u64> {
        let mut all = 0;
        for service in &standing.services {
            // There is no such Service, or it is not opted in: nothing of it is for agents.
            let Some((wanted, _)) = self.published.get(service) else { continue };
            let (_, since) = published.get(service).filter(|(version, _)| version == wanted)?;
            all = all.max(*since);
        }
        Some(all)
    }
}

/// Whether what is published is the generation that the author wrote last.
fn is_current(standing: &Standing) -> bool {
    standing.generation == Some(standing.observed.generation)
}

type Words = (&'static str, &'static str, &'static str, String);

/// What is to be said, condition by condition.
fn words(standing: &Standing, in_force: &InForce, lacking: &[&AgentView]) -> Vec<Words> {
    let accepted = accepted(standing);
    let resolved = resolved(standing);
    let conflicted = conflicted(standing);
    let programmed = programmed(standing, in_force, lacking);
    let ready = [&accepted, &resolved, &programmed].into_iter().find(|word| word.1 != "True");
    let ready = ready.or((conflicted.1 == "True").then_some(&conflicted));
    let ready = match ready {
        Some((_, _, reason, message)) => ("Ready", "False", *reason, message.clone()),
        None => ("Ready", "True", "Ready", "in force on every agent".to_owned()),
    };
    vec![accepted, resolved, conflicted, programmed, ready]
}

fn accepted(standing: &Standing) -> Words {
    let errors: Vec<_> = standing.findings.iter().filter(|finding| finding.severity == Severity::Error).collect();
    if !errors.is_empty() {
        let holds = match standing.generation {
            Some(generation) => format!("; generation {generation} stays in force"),
            None => String::new(),
        };
        return ("Accepted", "False", "Invalid", format!("{}{holds}", texts(errors)));
    }
    let notes = standing.findings.iter().filter(|f| matches!(f.reason, Reason::NotEnforced | Reason::Suspicious));
    let notes: Vec<_> = notes.collect();
    let message =
        if notes.is_empty() { "the spec is valid".to_owned() } else { format!("the spec is valid; {}", texts(notes)) };
    ("Accepted", "True", "Accepted", message)
}

fn resolved(standing: &Standing) -> Words {
    let missing: Vec<_> = standing.findings.iter().filter(|f| f.reason == Reason::UnresolvedRef).collect();
    if !missing.is_empty() {
        return ("ResolvedRefs", "False", "UnresolvedRef", texts(missing));
    }
    let empty: Vec<String> = (standing.destinations.iter())
        .filter(|to| to.weight > 0 && to.instances == 0)
        .map(|to| match &to.version {
            Some(version) => format!("{} has no ready instance of version {version}", to.service),
            None => format!("{} has no ready instance that is meant", to.service),
        })
        .collect();
    if !empty.is_empty() {
        return ("ResolvedRefs", "False", "NoInstances", empty.join("; "));
    }
    ("ResolvedRefs", "True", "ResolvedRefs", "all that it names is there".to_owned())
}

fn conflicted(standing: &Standing) -> Words {
    let of = |reason: Reason| standing.findings.iter().filter(move |finding| finding.reason == reason);
    for (reason, word) in [(Reason::Conflicted, "Conflicted"), (Reason::Shadowed, "Shadowed")] {
        let findings: Vec<_> = of(reason).collect();
        if !findings.is_empty() {
            return ("Conflicted", "True", word, texts(findings));
        }
    }
    ("Conflicted", "False", "NoConflict", "no other object wants the same".to_owned())
}

fn programmed(standing: &Standing, in_force: &InForce, lacking: &[&AgentView]) -> Words {
    let agents = &in_force.agents;
    let no = |reason, message| ("Programmed", "False", reason, message);
    if !is_current(standing) {
        return no("Invalid", "this generation is refused, so no agent is given it".to_owned());
    }
    if let Some(finding) = standing.findings.iter().find(|finding| finding.reason == Reason::NotOptedIn) {
        return no("NotOptedIn", finding.message.clone());
    }
    if !standing.is_compiled {
        let why: Vec<_> = standing.findings.iter().collect();
        let reason = why.first().map_or("NotEnforced", |finding| match finding.reason {
            Reason::UnresolvedRef => "UnresolvedRef",
            Reason::Conflicted => "Conflicted",
            _ => "NotEnforced",
        });
        let why = if why.is_empty() { "nothing refers to it".to_owned() } else { texts(why) };
        return no(reason, format!("agents are given nothing of it: {why}"));
    }
    if agents.is_empty() {
        return no("NoAgents", "no agent is connected: is the agents' DaemonSet running?".to_owned());
    }
    let refusals: BTreeSet<String> = (agents.iter())
        .flat_map(|agent| agent.rejected.iter().filter(|(service, _)| standing.services.contains(service)))
        .map(|(_, why)| why.clone())
        .collect();
    if !refusals.is_empty() {
        return no("Invalid", format!("agents cannot use it: {}", refusals.into_iter().collect::<Vec<_>>().join("; ")));
    }
    if lacking.is_empty() {
        return ("Programmed", "True", "Programmed", format!("in force on {0} of {0} agents", agents.len()));
    }
    let named = lacking.iter().take(NAMED).map(|agent| agent.node.as_str()).collect::<Vec<_>>().join(", ");
    let more = lacking.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let have = agents.len() - lacking.len();
    no("Pending", format!("in force on {have} of {} agents; not yet on {named}{more}", agents.len()))
}

/// Findings as one message.
fn texts(findings: Vec<&Finding>) -> String {
    let text = |finding: &&Finding| match finding.field.as_str() {
        "" => finding.message.clone(),
        field => format!("{field}: {}", finding.message),
    };
    findings.iter().map(text).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]
mod tests;
