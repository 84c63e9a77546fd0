//! `switchyard status`: what the controller has found out of rules and policies, as it stands in their status at the API server.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use kube::CustomResourceExt as _;
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use serde::Serialize;
use serde_json::Value;
use switchyard_crds::{CircuitPolicy, RetryPolicy, RouteRule};

use crate::cluster::{Cluster, Scope};
use crate::output;

/// The flags of `switchyard status`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  kubectl switchyard status -n shop
  kubectl switchyard status -A --output json

Exit status: 0 when all are ready, 1 when one is not, 2 when that could not be told.")]
pub(crate) struct Status {
    #[command(flatten)]
    scope: Scope,
    /// How the answer is written.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// How one object stands.
#[derive(Serialize)]
struct Line {
    kind: String,
    namespace: String,
    name: String,
    ready: bool,
    /// Agents that have it in force, and agents there are.
    programmed: u64,
    agents: u64,
    reason: String,
    message: String,
    /// What nodes see of its instances, where that is not good.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

/// Instances whose notes are shown of one policy.
const NOTES: usize = 3;

/// Says how rules and policies stand.
pub(crate) fn status(args: &Status) -> Result<ExitCode> {
    let cluster = Cluster::connect()?;
    let lines: Vec<Line> = objects(&cluster, &args.scope)?.iter().map(|(kind, object)| line(kind, object)).collect();
    let text = match args.output {
        Output::Json => serde_json::to_string_pretty(&lines)? + "\n",
        Output::Text if lines.is_empty() => "no rules and no policies here\n".to_owned(),
        Output::Text => {
            let row = |line: &Line| {
                let word = if line.ready { "ready".to_owned() } else { line.reason.clone() };
                let agents = format!("{}/{}", line.programmed, line.agents);
                let message = if line.ready { line.notes.join("; ") } else { line.message.clone() };
                [line.kind.clone(), format!("{}/{}", line.namespace, line.name), word, agents, message]
            };
            table(&["KIND", "NAME", "STATUS", "AGENTS", ""], lines.iter().map(row).collect())
        }
    };
    output::answer(&text)?;
    Ok(if lines.iter().all(|line| line.ready) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All rules and policies that are meant, with their kinds.
fn objects(cluster: &Cluster, scope: &Scope) -> Result<Vec<(String, DynamicObject)>> {
    let mut all = Vec::new();
    for namespace in cluster.namespaces(scope)? {
        for resource in [RouteRule::api_resource(), CircuitPolicy::api_resource(), RetryPolicy::api_resource()] {
            all.extend(list(cluster, &namespace, &resource)?.into_iter().map(|object| (resource.kind.clone(), object)));
        }
    }
    Ok(all)
}

pub(crate) fn list(cluster: &Cluster, namespace: &str, resource: &ApiResource) -> Result<Vec<DynamicObject>> {
    let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), namespace, resource);
    let listed = cluster.wait(async { api.list(&ListParams::default()).await });
    Ok(listed.with_context(|| format!("cannot list {} in namespace {namespace}", resource.plural))?.items)
}

pub(crate) fn full_name(object: &DynamicObject) -> String {
    let own = |name: &Option<String>| name.clone().unwrap_or_default();
    format!("{}/{}", own(&object.metadata.namespace), own(&object.metadata.name))
}

fn line(kind: &str, object: &DynamicObject) -> Line {
    let status = &object.data["status"];
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready");
    // What was found for an earlier generation says nothing of this one.
    let is_current = ready.is_some_and(|ready| ready["observedGeneration"].as_i64() == object.metadata.generation);
    let text = |field: &str| ready.and_then(|ready| ready[field].as_str()).unwrap_or_default().to_owned();
    let (reason, message) = match (ready, is_current) {
        (Some(_), true) => (text("reason"), text("message")),
        (Some(_), false) => ("Pending".to_owned(), "the controller has not looked at the last change yet".to_owned()),
        (None, _) => ("Unknown".to_owned(), "no controller has looked at it: is one running?".to_owned()),
    };
    let count = |field: &str| status["agents"][field].as_u64().unwrap_or_default();
    Line {
        kind: kind.to_owned(),
        namespace: object.metadata.namespace.clone().unwrap_or_default(),
        name: object.metadata.name.clone().unwrap_or_default(),
        ready: is_current && text("status") == "True",
        programmed: count("programmed"),
        agents: count("total"),
        reason,
        message,
        notes: notes(&status["instances"]),
    }
}

/// What nodes see of instances, of each in a few words.
fn notes(instances: &Value) -> Vec<String> {
    let instances = instances.as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |instance: &Value, field: &str| instance[field].as_str().unwrap_or_default().to_owned();
    let note = |instance: &Value| format!("{}: {}", text(instance, "instance"), text(instance, "message"));
    let mut notes: Vec<String> = instances.iter().take(NOTES).map(note).collect();
    if instances.len() > NOTES {
        notes.push(format!("and {} more instances", instances.len() - NOTES));
    }
    notes
}

/// Rows under a head, each column as wide as it must be.
pub(crate) fn table<const N: usize>(head: &[&str; N], rows: Vec<[String; N]>) -> String {
    let head = head.map(str::to_owned);
    let all: Vec<[String; N]> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in &all {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rule(status: &Value) -> DynamicObject {
        let object = json!({
            "apiVersion": "switchyard.dev/v1alpha1", "kind": "RouteRule",
            "metadata": {"name": "r", "namespace": "shop", "generation": 2}, "spec": {}, "status": status,
        });
        serde_json::from_value(object).unwrap_or_else(|error| unreachable!("{error}"))
    }

    #[test]
    fn an_object_is_ready_only_for_the_generation_that_it_was_found_for() {
        let ready = |generation: i64, status: &str| {
            let condition = json!({"type": "Ready", "status": status, "reason": "Why", "message": "so",
                "observedGeneration": generation});
            line("RouteRule", &rule(&json!({"conditions": [condition], "agents": {"programmed": 1, "total": 2}})))
        };
        assert!(ready(2, "True").ready);
        assert_eq!((ready(1, "True").ready, ready(1, "True").reason.as_str()), (false, "Pending"));
        assert_eq!((ready(2, "False").ready, ready(2, "False").reason.as_str()), (false, "Why"));
        assert_eq!((ready(2, "True").programmed, ready(2, "True").agents), (1, 2));
        assert_eq!(line("RouteRule", &rule(&Value::Null)).reason, "Unknown");
    }

    #[test]
    fn what_nodes_see_of_instances_is_noted_of_the_first_few() {
        let instance =
            |number: usize| json!({"instance": format!("10.0.0.{number}:80"), "message": "all 2 nodes see it fail"});
        let of = |count: usize| {
            line("CircuitPolicy", &rule(&json!({"instances": (1..=count).map(instance).collect::<Vec<_>>()}))).notes
        };
        assert_eq!(of(0), Vec::<String>::new());
        assert_eq!(of(1), ["10.0.0.1:80: all 2 nodes see it fail"]);
        assert_eq!((of(5).len(), of(5)[3].as_str()), (4, "and 2 more instances"));
    }

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let rows = vec![["a".to_owned(), "long enough".to_owned()], ["bbbb".to_owned(), String::new()]];
        assert_eq!(table(&["X", "Y"], rows), "X     Y\na     long enough\nbbbb\n");
    }
}
