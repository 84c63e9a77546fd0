//! `switchyard circuits`: which circuits of a cluster are not closed, which instances some nodes see fail, and which policies are held by
//! hand; and holding them. All of it goes through
//! the API server, with the user's own rights: a hold is `spec.override` of the policy with annotations beside it, which needs the verb
//! `override`, is in the API server's audit log, and ends by itself at the agents.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Client, CustomResourceExt as _};
use serde_json::{Value, json};
use switchyard_crds::hold::{BY, UNTIL, WHY};
use switchyard_crds::{CircuitPolicy, values};

use crate::cluster::{Cluster, Scope};
use crate::output;
use crate::status::{Output, full_name, list, table};

/// Whose the fields of a hold are. Not kubectl's: tools that apply from Git take those back.
const MANAGER: &str = "switchyard-cli";

/// How often the cluster is asked with `--watch`.
const AGAIN: Duration = Duration::from_secs(1);

/// The flags of `switchyard circuits`.
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  kubectl switchyard circuits -n shop
  kubectl switchyard circuits -A --watch
  kubectl switchyard circuits hold open my-service -n shop --for 10m --why 'the database is being moved'
  kubectl switchyard circuits release my-service -n shop

Shown are circuits that are open or half-open, instances that some nodes see fail (Failing, Unreachable), and policies whose circuits \
are held. Exit status: 0 when there is none, 1 when there \
are, 2 when that could not be told.

From a folder, as with `switchyard run`, there is no API server: set spec.override in the policy's file instead."
)]
pub(crate) struct Circuits {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    scope: Scope,
    /// Go on, and say what changes.
    #[arg(short, long)]
    watch: bool,
    /// How the answer is written.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Hold the circuits of a policy open or closed, whatever the traffic says, for a while.
    Hold(Hold),
    /// Let the traffic decide again.
    Release(Release),
}

#[derive(Args, Debug)]
struct Hold {
    /// Open: nothing passes. Closed: everything does.
    state: HeldState,
    /// The CircuitPolicy.
    name: String,
    /// Its namespace; without it, the one that kubectl uses.
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// For how long, as in 10m or 1h30m; then agents let go by themselves.
    #[arg(long = "for", value_name = "DURATION", value_parser = some_time)]
    duration: values::Duration,
    /// Why, for whoever wonders: one line.
    #[arg(long, value_name = "TEXT", value_parser = one_line)]
    why: String,
}

#[derive(Args, Debug)]
struct Release {
    /// The CircuitPolicy.
    name: String,
    /// Its namespace; without it, the one that kubectl uses.
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum HeldState {
    Open,
    Closed,
}

/// A duration in which something can happen.
fn some_time(text: &str) -> Result<values::Duration, String> {
    let duration: values::Duration = text.parse().map_err(|error: values::ValueError| error.to_string())?;
    if duration.as_millis() > 0 { Ok(duration) } else { Err("write for how long, as in 10m".to_owned()) }
}

/// Some words that fit into a table.
fn one_line(text: &str) -> Result<String, String> {
    let is_line = !text.trim().is_empty() && !text.chars().any(char::is_control);
    if is_line { Ok(text.to_owned()) } else { Err("write one line, as in 'the database is being moved'".to_owned()) }
}

/// Says which circuits are not closed, or holds some.
pub(crate) fn circuits(args: &Circuits) -> Result<ExitCode> {
    let cluster = Cluster::connect()?;
    match &args.action {
        None if args.watch => watch(&cluster, args),
        None => {
            let rows = rows(&cluster, &args.scope)?;
            output::answer(&text(&rows, args.output)?)?;
            Ok(if rows.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Some(Action::Hold(hold)) => hold_by_hand(&cluster, hold),
        Some(Action::Release(release)) => let_go(&cluster, release),
    }
}

/// Until nobody reads any more, or the user ends it.
fn watch(cluster: &Cluster, args: &Circuits) -> Result<ExitCode> {
    let mut before = String::new();
    loop {
        let now = text(&rows(cluster, &args.scope)?, args.output)?;
        if now != before {
            let space = if before.is_empty() || args.output == Output::Json { "" } else { "\n" };
            let mut out = std::io::stdout().lock();
            if write!(out, "{space}{now}").and_then(|()| out.flush()).is_err() {
                return Ok(ExitCode::SUCCESS);
            }
            before = now;
        }
        // Made inside: a sleep needs the runtime that it waits in.
        cluster.wait(async { tokio::time::sleep(AGAIN).await });
    }
}

/// Circuits that are not closed, instances that some nodes see fail, and policies that are held.
fn rows(cluster: &Cluster, scope: &Scope) -> Result<Vec<Value>> {
    let mut rows = Vec::new();
    for namespace in cluster.namespaces(scope)? {
        for policy in list(cluster, &namespace, &CircuitPolicy::api_resource())? {
            rows.extend(held(&policy, Timestamp::now()));
            for circuit in policy.data["status"]["circuits"].as_array().into_iter().flatten() {
                let mut circuit = circuit.clone();
                circuit["policy"] = Value::from(full_name(&policy));
                rows.push(circuit);
            }
            for instance in policy.data["status"]["instances"].as_array().into_iter().flatten() {
                rows.push(seen(&policy, instance));
            }
        }
    }
    Ok(rows)
}

/// An instance that some nodes see fail.
fn seen(policy: &DynamicObject, instance: &Value) -> Value {
    let mut row = instance.clone();
    let is_unreachable = instance["unreachable"].as_u64() > Some(0) && instance["unreachable"] == instance["failing"];
    row["state"] = Value::from(if is_unreachable { "Unreachable" } else { "Failing" });
    row["policy"] = Value::from(full_name(policy));
    row
}

/// How a policy is held, if it is.
fn held(policy: &DynamicObject, now: Timestamp) -> Option<Value> {
    let state = match policy.data["spec"]["override"].as_str()? {
        "ForceOpen" => "HeldOpen",
        "ForceClosed" => "HeldClosed",
        _ => return None,
    };
    let note = |name: &str| policy.metadata.annotations.as_ref()?.get(name).cloned();
    let until = note(UNTIL);
    let is_over = until.as_ref().and_then(|until| until.parse::<Timestamp>().ok()).is_some_and(|until| until <= now);
    let targets = policy.data["spec"]["targetRefs"].as_array().cloned().unwrap_or_default();
    let target = |target: &Value| match (target["name"].as_str().unwrap_or_default(), target["version"].as_str()) {
        (name, Some(version)) => format!("{name} {version}"),
        (name, None) => name.to_owned(),
    };
    let namespace = policy.metadata.namespace.clone().unwrap_or_default();
    let names = targets.iter().map(target).collect::<Vec<_>>().join(", ");
    Some(json!({
        "destination": format!("{namespace}/{names}"),
        "state": if is_over { "HoldOver" } else { state },
        "policy": full_name(policy),
        "until": until,
        "by": note(BY),
        "why": note(WHY),
    }))
}

fn text(rows: &[Value], output: Output) -> Result<String> {
    let row = |row: &Value| {
        let text = |field: &str| row[field].as_str().unwrap_or_default().to_owned();
        let nodes = match (row["nodes"].as_u64(), row["failing"].as_u64()) {
            (Some(nodes), Some(failing)) => format!("{failing}/{nodes}"),
            (nodes, _) => nodes.map(|nodes| nodes.to_string()).unwrap_or_default(),
        };
        let reason = match row["reason"].as_str().or_else(|| row["message"].as_str()) {
            Some(reason) => reason.to_owned(),
            None => in_words(&text("until"), &text("by"), &text("why")),
        };
        [text("destination"), text("instance"), text("state"), text("since"), nodes, text("policy"), reason]
    };
    Ok(match output {
        Output::Json => serde_json::to_string_pretty(rows)? + "\n",
        Output::Text if rows.is_empty() => "every circuit is closed\n".to_owned(),
        Output::Text => {
            let head = ["DESTINATION", "INSTANCE", "STATE", "SINCE", "NODES", "POLICY", "REASON"];
            table(&head, rows.iter().map(row).collect())
        }
    })
}

/// `until 12:00 by ada: a drill`, of which any may be unknown.
fn in_words(until: &str, by: &str, why: &str) -> String {
    let until = if until.is_empty() { "until released".to_owned() } else { format!("until {until}") };
    let by = if by.is_empty() { String::new() } else { format!(" by {by}") };
    let why = if why.is_empty() { String::new() } else { format!(": {why}") };
    format!("{until}{by}{why}")
}

fn hold_by_hand(cluster: &Cluster, hold: &Hold) -> Result<ExitCode> {
    let until = Timestamp::now()
        .checked_add(SignedDuration::try_from(hold.duration.to_std())?)
        .context("--for: that is beyond all calendars")?;
    let until = until.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let by = cluster.wait(user(&cluster.client)).unwrap_or_default();
    let (word, state) = match hold.state {
        HeldState::Open => ("ForceOpen", "open"),
        HeldState::Closed => ("ForceClosed", "closed"),
    };
    let annotations = json!({UNTIL: until, BY: by, WHY: hold.why});
    let change = json!({"metadata": {"annotations": annotations}, "spec": {"override": word}});
    let policy = patch(cluster, hold.namespace.as_deref(), &hold.name, &change)?;
    let said = format!("circuits of {} are held {state} {}", full_name(&policy), in_words(&until, &by, &hold.why));
    event(cluster, &policy, "Held", &said);
    output::answer(&format!("{said}\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn let_go(cluster: &Cluster, release: &Release) -> Result<ExitCode> {
    let by = cluster.wait(user(&cluster.client)).unwrap_or_default();
    let annotations = json!({UNTIL: null, BY: null, WHY: null});
    let change = json!({"metadata": {"annotations": annotations}, "spec": {"override": "None"}});
    let policy = patch(cluster, release.namespace.as_deref(), &release.name, &change)?;
    let by = if by.is_empty() { String::new() } else { format!(" by {by}") };
    let said = format!("circuits of {} are released{by}: the traffic decides", full_name(&policy));
    event(cluster, &policy, "Released", &said);
    output::answer(&format!("{said}\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn patch(cluster: &Cluster, namespace: Option<&str>, name: &str, change: &Value) -> Result<DynamicObject> {
    let namespace = namespace.unwrap_or_else(|| cluster.default_namespace());
    let api: Api<DynamicObject> =
        Api::namespaced_with(cluster.client.clone(), namespace, &CircuitPolicy::api_resource());
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let patched = cluster.wait(async { api.patch(name, &params, &Patch::Merge(change)).await });
    patched.with_context(|| format!("CircuitPolicy {namespace}/{name}"))
}

/// Whom the API server takes the user for.
async fn user(client: &Client) -> Option<String> {
    let api: Api<SelfSubjectReview> = Api::all(client.clone());
    let review = api.create(&PostParams::default(), &SelfSubjectReview::default()).await.ok()?;
    review.status?.user_info?.username
}

/// For whoever looks at the policy. Who may not write events has held it all the same.
fn event(cluster: &Cluster, policy: &DynamicObject, reason: &str, message: &str) {
    let namespace = policy.metadata.namespace.clone().unwrap_or_default();
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let event = json!({
        "metadata": {"generateName": "switchyard-", "namespace": namespace},
        "involvedObject": {
            "apiVersion": CircuitPolicy::api_resource().api_version, "kind": "CircuitPolicy", "namespace": namespace,
            "name": policy.metadata.name, "uid": policy.metadata.uid, "resourceVersion": policy.metadata.resource_version,
        },
        "reason": reason, "message": message, "type": "Normal", "count": 1,
        "source": {"component": MANAGER}, "firstTimestamp": now, "lastTimestamp": now,
    });
    let Ok(event) = serde_json::from_value::<Event>(event) else { return };
    let api: Api<Event> = Api::namespaced(cluster.client.clone(), &namespace);
    if let Err(error) = cluster.wait(async { api.create(&PostParams::default(), &event).await }) {
        switchyard_controller::console::say(format_args!("note: no event was written: {error}"));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn policy(hold: &str, annotations: &Value) -> DynamicObject {
        let policy = json!({
            "apiVersion": "switchyard.dev/v1alpha1", "kind": "CircuitPolicy",
            "metadata": {"name": "c", "namespace": "shop", "annotations": annotations},
            "spec": {"targetRefs": [{"name": "a"}, {"name": "b", "version": "v2"}], "override": hold},
        });
        serde_json::from_value(policy).unwrap()
    }

    #[test]
    fn a_policy_that_is_held_is_shown_with_whom_until_when_and_why() {
        let annotations = json!({UNTIL: "2026-11-24T12:00:00Z", BY: "ada", WHY: "a drill"});
        let policy = policy("ForceOpen", &annotations);
        let at = |time: &str| text(&[held(&policy, time.parse().unwrap()).unwrap()], Output::Text).unwrap();
        let row = |state: &str| {
            format!("shop/a, b v2            {state}                shop/c  until 2026-11-24T12:00:00Z by ada: a drill")
        };
        let line = |text: String| text.lines().nth(1).unwrap().to_owned();
        assert_eq!(line(at("2026-11-24T11:59:59Z")), row("HeldOpen"));
        assert_eq!(line(at("2026-11-24T12:00:00Z")), row("HoldOver"));
    }

    #[test]
    fn an_instance_that_some_nodes_see_fail_is_shown_with_how_many_and_where_to_look() {
        let line = |failing: u32, unreachable: u32| {
            let instance = json!({"destination": "shop/a", "instance": "10.0.0.1:80", "nodes": 12, "failing": failing,
                "unreachable": unreachable, "message": "look there"});
            let shown = text(&[seen(&policy("None", &json!({})), &instance)], Output::Text).unwrap();
            shown.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(line(3, 3), "shop/a 10.0.0.1:80 Unreachable 3/12 shop/c look there");
        assert_eq!(line(3, 2), "shop/a 10.0.0.1:80 Failing 3/12 shop/c look there");
        assert_eq!(line(12, 0), "shop/a 10.0.0.1:80 Failing 12/12 shop/c look there");
    }

    #[test]
    fn who_is_not_held_is_not_shown_and_a_hold_without_end_says_so() {
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(held(&policy("None", &json!({UNTIL: "2026-11-24T12:00:00Z"})), now), None);
        let shown = text(&[held(&policy("ForceClosed", &json!({})), now).unwrap()], Output::Text).unwrap();
        assert!(shown.contains("HeldClosed") && shown.contains("until released"), "{shown}");
    }
}
