//! The chart against a real API server: it takes every object, and the admission policies hold.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::process::Output;

use serde_json::Value;
use switchyard_tests::cluster::Cluster;
use switchyard_tests::process::output;
use switchyard_tests::wait_for;

const ALL_ON: [&str; 2] = ["--values", "charts/switchyard/ci/all-on.yaml"];

/// Kinds of others that the chart uses where it is told to.
const FOREIGN: [(&str, &str, &str); 3] = [
    ("cert-manager.io", "Certificate", "certificates"),
    ("cert-manager.io", "Issuer", "issuers"),
    ("monitoring.coreos.com", "ServiceMonitor", "servicemonitors"),
];

/// A kind of somebody else, whose objects may be anything.
fn foreign((group, kind, plural): (&str, &str, &str)) -> String {
    format!(
        "apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {{name: {plural}.{group}}}
spec:
  group: {group}
  scope: Namespaced
  names: {{kind: {kind}, plural: {plural}}}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {{openAPIV3Schema: {{type: object, x-kubernetes-preserve-unknown-fields: true}}}}
---
"
    )
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Applies YAML as somebody; whether it was taken, and what was said.
fn apply_as(cluster: &Cluster, who: &str, yaml: &str, more: &[&str]) -> (bool, String) {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), yaml).unwrap();
    let args = ["apply", "--server-side", "--force-conflicts", "--as", who, "-f", file.path().to_str().unwrap()];
    let output = cluster.try_kubectl(&[&args[..], more].concat());
    (output.status.success(), said(&output))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_takes_every_object_of_the_chart() {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.apply(&FOREIGN.map(foreign).concat());
    for (_, _, plural) in FOREIGN {
        wait_for("the kinds of others are served", async || {
            cluster.try_kubectl(&["get", plural, "-A"]).status.success()
        })
        .await;
    }
    for values in [&[][..], &ALL_ON] {
        let lint = cluster.helm(&["lint", "--strict"], values);
        assert!(lint.status.success(), "{}", said(&lint));
        let (taken, said) = apply_as(
            &cluster,
            "admin",
            &cluster.rendered(&[], values),
            &["--as-group=system:masters", "--dry-run=server"],
        );
        assert!(taken, "{said}");
        assert!(said.contains("daemonset.apps/switchyard-agent") && !said.contains("Warning"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_binaries_know_the_arguments_that_the_chart_gives_them() {
    let Some(cluster) = Cluster::start().await else { return };
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    let templates = ["templates/controller/deployment.yaml", "templates/agent/daemonset.yaml"];
    std::fs::write(file.path(), cluster.rendered(&templates, &[])).unwrap();
    let mut known = Vec::new();
    for object in cluster.as_json(file.path()) {
        for container in
            object.pointer("/spec/template/spec/containers").and_then(Value::as_array).into_iter().flatten()
        {
            let texts = |field: &str| -> Vec<String> { serde_json::from_value(container[field].clone()).unwrap() };
            let args = texts("args");
            // Arguments are read in their order, so it comes to this one only if it knows the others.
            let args = args.iter().map(String::as_str).chain(["--help"]).collect::<Vec<_>>();
            let binary = texts("command").remove(0);
            let done = output(&binary, &args);
            assert!(done.status.success(), "{binary} {args:?}: {}", said(&done));
            known.push(binary);
        }
    }
    known.sort();
    assert_eq!(known, ["switchyard-agent", "switchyard-controller"]);
}

/// Lets somebody do in `shop` what roles of the chart let.
fn bind(cluster: &Cluster, who: &str, roles: &[&str]) {
    for role in roles {
        let name = format!("{who}-{role}");
        let (role, who) = (format!("--clusterrole={role}"), format!("--user={who}"));
        cluster.kubectl(&["create", "rolebinding", "-n", "shop", &name, &role, &who]);
    }
}

fn circuit(hold: &str, more: &str) -> String {
    let head = "apiVersion: switchyard.dev/v1alpha1\nkind: CircuitPolicy\nmetadata: {name: c, namespace: shop}\n";
    format!("{head}spec: {{targetRefs: [{{name: a}}], override: {hold}{more}}}\n")
}

/// The same, held open until this hour of a day.
fn until(hour: &str) -> String {
    let annotations = format!("{{annotations: {{switchyard.dev/hold-until: \"2126-11-24T{hour}:00:00Z\"}}, name: c");
    circuit("ForceOpen", "").replace("{name: c", &annotations)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn circuits_are_held_by_hand_only_by_who_may_override() {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.apply(&cluster.rendered(&["templates/roles.yaml", "templates/admission/override.yaml"], &[]));
    bind(&cluster, "editor", &["switchyard-edit"]);
    bind(&cluster, "oncall", &["switchyard-edit", "switchyard-override"]);

    let mut refusal = String::new();
    wait_for("the policy is in force", async || {
        let (taken, said) = apply_as(&cluster, "editor", &circuit("ForceOpen", ""), &["--dry-run=server"]);
        refusal = said;
        !taken && refusal.contains("switchyard-override")
    })
    .await;
    assert!(
        refusal.contains("spec.override: ForceOpen") && refusal.contains("editor needs the verb override"),
        "{refusal}"
    );
    let (taken, said) = apply_as(&cluster, "editor", &circuit("None", ""), &[]);
    assert!(taken, "what holds nothing needs no leave: {said}");

    for (who, policy, is_taken, why) in [
        ("oncall", circuit("ForceOpen", ""), true, "who may"),
        ("editor", circuit("ForceOpen", ", failureThreshold: 9"), true, "anything else of a policy that is held"),
        ("editor", circuit("ForceClosed", ""), false, "holding it the other way"),
        ("editor", circuit("ForceOpen", "").replace("{name: a}", "{name: b}"), false, "holding others"),
        ("editor", circuit("ForceOpen", ", scope: Destination"), false, "holding more"),
        ("editor", until("12"), false, "giving it an end"),
        ("oncall", until("12"), true, "who may"),
        ("editor", until("23"), false, "and another end"),
        ("editor", circuit("ForceOpen", "").replace("{name: c", "{annotations: {\"a\": b}, name: c"), false, "or none"),
        ("editor", circuit("None", ""), true, "letting go"),
        ("editor", circuit("ForceOpen", ""), false, "and holding again"),
    ] {
        let (taken, said) = apply_as(&cluster, who, &policy, &[]);
        assert_eq!(taken, is_taken, "{who}, {why}: {said}");
    }
}

fn retry(name: &str, spec: &str) -> String {
    let head = "apiVersion: switchyard.dev/v1alpha1\nkind: RetryPolicy\n";
    format!("{head}metadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_retry_policy_passes_the_ceilings_of_the_platform() {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.apply(&retry("older", "maxRetries: 9"));
    cluster.apply(&cluster.rendered(&["templates/roles.yaml", "templates/admission/ceilings.yaml"], &[]));
    bind(&cluster, "editor", &["switchyard-edit"]);
    wait_for("the policy is in force", async || {
        !apply_as(&cluster, "editor", &retry("new", "maxRetries: 6"), &["--dry-run=server"]).0
    })
    .await;
    for (spec, field) in [
        ("maxRetries: 6", "spec.maxRetries: 6 is above 5"),
        ("budget: {ratio: '50.1%'}", "spec.budget.ratio: 50.1% is above 50%"),
        ("budget: {minPerSecond: 101}", "spec.budget.minPerSecond: 101 is above 100"),
        ("maxBodyBytes: 1025Ki", "spec.maxBodyBytes: 1025Ki is above 1Mi"),
    ] {
        let (taken, said) = apply_as(&cluster, "editor", &retry("new", spec), &[]);
        assert!(!taken && said.contains(field), "{spec}: {said}");
    }
    for spec in ["", "maxRetries: 5, budget: {ratio: '50%', minPerSecond: 100}, maxBodyBytes: 1024Ki"] {
        let (taken, said) = apply_as(&cluster, "editor", &retry("new", spec), &[]);
        assert!(taken, "{spec}: {said}");
    }
    // What was there before may be labelled and deleted; changed, it is measured.
    cluster.kubectl(&["label", "retrypolicy", "-n", "shop", "older", "team=a"]);
    let patch =
        ["patch", "retrypolicy", "-n", "shop", "older", "--type=merge", "-p", "{\"spec\": {\"jitter\": \"5%\"}}"];
    assert!(!cluster.try_kubectl(&patch).status.success());
    cluster.kubectl(&["delete", "retrypolicy", "-n", "shop", "older"]);
}
