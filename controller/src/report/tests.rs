use switchyard_crds::route_rule::DestinationStatus;

use super::*;
use crate::source::Observed;

const NOW: &str = "2026-01-01T00:00:00Z";
const LATER: &str = "2026-01-02T00:00:00Z";

fn key() -> ObjectKey {
    ObjectKey { kind: Kind::RouteRule, namespace: "shop".into(), name: "canary".into() }
}

fn service(name: &str) -> ServiceKey {
    ServiceKey { namespace: "shop".into(), name: name.into() }
}

/// Generation 3, in order, published with revision 7.
fn standing() -> Standing {
    Standing {
        observed: Observed { generation: 3, uid: "u".into(), status: Value::Null },
        generation: Some(3),
        services: [service("a")].into(),
        is_compiled: true,
        findings: Vec::new(),
        destinations: vec![DestinationStatus {
            service: "a".into(),
            version: Some("v2".into()),
            weight: 20,
            instances: 3,
        }],
    }
}

/// Version `x` of the routes of Service a, published at that revision.
fn published(version: &str, since: u64) -> Arc<Routes> {
    Arc::new([(service("a"), (version.to_owned(), since))].into())
}

/// An agent of this controller, which has published the generation with revision 7.
fn agent(node: &str, revision: u64) -> AgentView {
    AgentView { node: node.into(), published: published("x", 7), revision, rejected: Vec::new() }
}

fn status(key: &ObjectKey, standing: &Standing, agents: &[AgentView], circuits: &[CircuitStatus], now: &str) -> Value {
    let in_force = InForce { published: published("x", 7), agents: agents.to_vec() };
    super::status(key, standing, &in_force, Traffic { circuits, ..Traffic::default() }, now)
}

#[test]
fn an_agent_of_another_controller_counts_by_what_it_has_and_not_by_that_ones_revision() {
    let other = |version: &str, since, revision| AgentView {
        node: format!("{version}-{since}-{revision}"),
        published: published(version, since),
        revision,
        rejected: Vec::new(),
    };
    let agents = [other("x", 2, 2), other("x", 3, 2), other("old", 1, 9)];
    let now = status(&key(), &standing(), &agents, &[], NOW);
    assert_eq!(now["agents"], json!({"programmed": 1, "total": 3}));
    assert_eq!(condition(&now, "Programmed").2, "in force on 1 of 3 agents; not yet on x-3-2, old-1-9");
}

fn condition(status: &Value, kind: &str) -> (String, String, String) {
    let conditions = status["conditions"].as_array().unwrap();
    let condition = conditions.iter().find(|condition| condition["type"] == kind).unwrap();
    assert!(REASONS.contains(&condition["reason"].as_str().unwrap()), "{condition}");
    assert_eq!(condition["observedGeneration"], 3);
    let text = |field: &str| condition[field].as_str().unwrap().to_owned();
    (text("status"), text("reason"), text("message"))
}

fn short(status: &Value, kind: &str) -> (String, String) {
    let (status, reason, _) = condition(status, kind);
    (status, reason)
}

fn is(word: &str, reason: &str) -> (String, String) {
    (word.to_owned(), reason.to_owned())
}

#[test]
fn programmed_counts_those_that_have_this_generation_in_force() {
    let agents = [agent("one", 7), agent("two", 6), agent("three", 9), agent("four", 0)];
    let now = status(&key(), &standing(), &agents, &[], NOW);
    assert_eq!(now["agents"], json!({"programmed": 2, "total": 4}));
    let (word, reason, message) = condition(&now, "Programmed");
    assert_eq!((word.as_str(), reason.as_str()), ("False", "Pending"));
    assert_eq!(message, "in force on 2 of 4 agents; not yet on two, four");
    assert_eq!(short(&now, "Ready"), is("False", "Pending"));

    let now = status(&key(), &standing(), &agents[..1], &[], NOW);
    assert_eq!(short(&now, "Programmed"), is("True", "Programmed"));
    assert_eq!(short(&now, "Ready"), is("True", "Ready"));
    assert_eq!(now["observedGeneration"], 3);

    let now = status(&key(), &standing(), &[], &[], NOW);
    assert_eq!(short(&now, "Programmed"), is("False", "NoAgents"));
}

#[test]
fn an_agent_that_turns_it_down_does_not_have_it() {
    let mut refuses = agent("one", 9);
    refuses.rejected = vec![(service("a"), "bad regex".into())];
    let mut other = agent("two", 9);
    other.rejected = vec![(service("b"), "none of ours".into())];
    let now = status(&key(), &standing(), &[refuses, other], &[], NOW);
    assert_eq!(now["agents"], json!({"programmed": 1, "total": 2}));
    assert_eq!(condition(&now, "Programmed").2, "agents cannot use it: bad regex");
}

#[test]
fn a_refused_generation_is_not_programmed_and_the_one_before_is_named() {
    let mut standing = standing();
    standing.generation = Some(2);
    standing.findings = vec![Finding::error(Reason::Invalid, "spec.matches[0].path.value", "is no regular expression")];
    let now = status(&key(), &standing, &[agent("one", 9)], &[], NOW);
    let (word, reason, message) = condition(&now, "Accepted");
    assert_eq!((word.as_str(), reason.as_str()), ("False", "Invalid"));
    assert_eq!(message, "spec.matches[0].path.value: is no regular expression; generation 2 stays in force");
    assert_eq!(now["agents"]["programmed"], 0);
    assert_eq!(short(&now, "Ready"), is("False", "Invalid"));
}

#[test]
fn what_is_missing_or_wanted_twice_is_said() {
    let warning = |reason| Finding::warning(reason, "spec.service", "why");
    let mut unresolved = standing();
    unresolved.findings = vec![warning(Reason::UnresolvedRef)];
    let now = status(&key(), &unresolved, &[agent("one", 9)], &[], NOW);
    assert_eq!(short(&now, "ResolvedRefs"), is("False", "UnresolvedRef"));
    assert_eq!(short(&now, "Ready"), is("False", "UnresolvedRef"));

    let mut empty = standing();
    empty.destinations[0].instances = 0;
    let now = status(&key(), &empty, &[agent("one", 9)], &[], NOW);
    assert_eq!(condition(&now, "ResolvedRefs").2, "a has no ready instance of version v2");

    let mut conflicted = standing();
    conflicted.findings = vec![warning(Reason::Conflicted)];
    let now = status(&key(), &conflicted, &[agent("one", 9)], &[], NOW);
    assert_eq!(short(&now, "Conflicted"), is("True", "Conflicted"));
    assert_eq!(short(&now, "Programmed"), is("True", "Programmed"));
    assert_eq!(short(&now, "Ready"), is("False", "Conflicted"));
}

#[test]
fn a_status_that_says_the_same_is_not_written_again() {
    let agents = [agent("one", 9)];
    let mut standing = standing();
    let first = status(&key(), &standing, &agents, &[], NOW);
    standing.observed.status = first.clone();
    assert_eq!(status(&key(), &standing, &agents, &[], LATER), first);
    // Only the words that have changed get a new time.
    let changed = status(&key(), &standing, &[], &[], LATER);
    let times = |status: &Value| -> Vec<String> {
        let of = |c: &Value| c["lastTransitionTime"].as_str().unwrap().to_owned();
        status["conditions"].as_array().unwrap().iter().map(of).collect()
    };
    assert_eq!(times(&changed), [NOW, NOW, NOW, LATER, LATER]);
}
