//! What is refused, by whom and where: each object of the corpus by an API server with nothing but the schemas, by the webhook and by
//! `switchyard check`, at the same field; and what is valid is taken by all three, and stays when the schemas are upgraded.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use serde_json::{Value, json};
use switchyard_tests::cluster::{Cluster, at_once, review};
use switchyard_tests::corpus::{self, Invalid, path};
use switchyard_tests::process::{Controller, output};

/// What no schema can judge, and why. An API server by itself takes these.
const WEBHOOK_ONLY: [(&str, &str); 3] = [
    ("path-regex-does-not-compile", "CEL has another syntax of regular expressions, so it would refuse good ones"),
    ("header-regex-too-large", "CEL cannot tell how large an expression is when compiled"),
    (
        "request-field-changed-twice",
        "to compare all names of a filter with one another is too dear, by an API server's reckoning",
    ),
];

/// The corpus, each object with its JSON by kubectl's reading.
fn invalid(cluster: &Cluster) -> Vec<(Invalid, Value)> {
    let of =
        |file: &std::path::PathBuf| corpus::invalid(file).into_iter().zip(cluster.as_json(file)).collect::<Vec<_>>();
    let all: Vec<_> = corpus::invalid_files().iter().flat_map(of).collect();
    assert!(all.iter().all(|(case, object)| object["metadata"]["name"] == case.name.as_str()), "one of each, in order");
    all
}

/// The fields that an API server's refusal names; those of a field that it does not know stand only in its message.
fn named(answer: &Value) -> BTreeSet<String> {
    let causes = answer["details"]["causes"].as_array().into_iter().flatten();
    let message = answer["message"].as_str().unwrap_or_default();
    let unknown = message.split("unknown field \"").skip(1).filter_map(|rest| rest.split('"').next());
    causes.filter_map(|cause| cause["field"].as_str()).chain(unknown).map(path).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_alone_refuses_each_invalid_object_at_its_field() {
    let Some(cluster) = Cluster::start().await else { return };
    let invalid = invalid(&cluster);
    let answers = at_once(&invalid, |(_, object)| cluster.try_create(object));
    let mut wrong = Vec::new();
    for ((case, object), answer) in invalid.iter().zip(answers) {
        let refused = answer["kind"] == "Status";
        let webhook_only = WEBHOOK_ONLY.iter().any(|(name, _)| *name == case.name);
        if refused == webhook_only || (refused && !named(&answer).contains(&path(&case.field))) {
            wrong.push(format!("{} {} at {}: {}", object["kind"], case.name, case.field, answer["message"]));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_webhook_refuses_each_invalid_object_at_its_field() {
    let Some(cluster) = Cluster::start().await else { return };
    let controller = Controller::in_cluster(&cluster, "one").await;
    cluster.authority().await;
    let invalid = invalid(&cluster);
    let answers = at_once(&invalid, |(_, object)| review(controller.webhook.unwrap(), object));
    let mut wrong = Vec::new();
    for ((case, object), answer) in invalid.iter().zip(answers) {
        let causes = answer["status"]["details"]["causes"].as_array().cloned().unwrap_or_default();
        if answer["allowed"] != false || !causes.iter().any(|cause| cause["field"] == case.field.as_str()) {
            wrong.push(format!("{} {} at {}: {answer}", object["kind"], case.name, case.field));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn check_refuses_each_invalid_object_at_its_field() {
    let mut wrong = Vec::new();
    for file in corpus::invalid_files() {
        let folder = tempfile::tempdir().unwrap();
        let cases = corpus::invalid(&file);
        for case in &cases {
            std::fs::write(folder.path().join(format!("{}.yaml", case.name)), &case.yaml).unwrap();
        }
        let done = output("switchyard", &["check", "--output", "json", folder.path().to_str().unwrap()]);
        assert_eq!(done.status.code(), Some(1));
        let findings: Vec<Value> = serde_json::from_slice(&done.stdout).unwrap();
        for case in cases {
            let name = format!("{}.yaml", case.name);
            let here = |finding: &&Value| finding["file"].as_str().is_some_and(|file| file.ends_with(&name));
            let of_it: Vec<_> = findings.iter().filter(here).collect();
            if !of_it.iter().any(|finding| finding["severity"] == "error" && finding["field"] == case.field.as_str()) {
                wrong.push(format!("{} at {}: {of_it:?}", case.name, case.field));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

/// The fields that a schema has, lists as `[]` and what a map holds as `[*]`. A destination's filters are a rule's.
fn fields(schema: &Value, at: &str, found: &mut BTreeSet<String>) {
    found.insert(at.to_owned());
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        if at != "spec.destinations[]" || name != "filters" {
            fields(field, &format!("{at}.{name}"), found);
        }
    }
    for (inner, mark) in [("items", "[]"), ("additionalProperties", "[*]")] {
        if let Some(schema) = schema.get(inner) {
            fields(schema, &format!("{at}{mark}"), found);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_field_has_an_invalid_object() {
    let Some(cluster) = Cluster::start().await else { return };
    for file in corpus::invalid_files() {
        let plural = file.file_stem().unwrap().to_str().unwrap();
        let crd = cluster.get("shop", "crd", &format!("{plural}.switchyard.dev"));
        let mut all = BTreeSet::new();
        let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        fields(spec, "spec", &mut all);
        // An entry of a list stands for each of them.
        let general = |field: &str| {
            let parts = field.split('[').enumerate().map(|(at, part)| match part.split_once(']') {
                Some((inside, rest)) if inside.parse::<usize>().is_ok() => format!("[]{rest}"),
                Some((_, rest)) => format!("[*]{rest}"),
                None => format!("{}{part}", if at == 0 { "" } else { "[" }),
            });
            parts.collect::<String>()
        };
        for case in corpus::invalid(&file) {
            all.remove(&general(&case.field));
        }
        all.remove("spec");
        assert_eq!(all, BTreeSet::new(), "{plural}: fields of which the corpus has no invalid object");
    }
}

/// The objects that must be taken.
fn valid(cluster: &Cluster) -> Vec<Value> {
    let objects = corpus::valid_files().into_iter().flat_map(|file| cluster.as_json(&file));
    objects.filter(|object| object["apiVersion"] == "switchyard.dev/v1alpha1").collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_valid_object_is_taken_by_all_three() {
    let Some(cluster) = Cluster::start().await else { return };
    let controller = Controller::in_cluster(&cluster, "one").await;
    cluster.authority().await;
    for object in valid(&cluster) {
        let answer = cluster.try_create(&object);
        assert_eq!(answer["kind"], object["kind"], "{object}: {answer}");
        let answer = review(controller.webhook.unwrap(), &object);
        assert_eq!(answer["allowed"], true, "{object}: {answer}");
        // What the API server has filled in is as good.
        let answer = review(controller.webhook.unwrap(), &cluster.try_create(&object));
        assert_eq!(answer["allowed"], true, "{object}: {answer}");
    }
    for file in corpus::valid_files() {
        let done = output("switchyard", &["check", "--output", "json", file.to_str().unwrap()]);
        let findings: Vec<Value> = serde_json::from_slice(&done.stdout).unwrap();
        let errors: Vec<_> = findings.iter().filter(|finding| finding["severity"] == "error").collect();
        assert!(errors.is_empty(), "{errors:?}");
    }
}

/// Today's schema of a kind as an earlier version might have had it: without one of its fields, and without any rule.
fn older(mut crd: Value, without: &str) -> Value {
    fn without_rules(schema: &mut Value) {
        match schema {
            Value::Object(fields) => {
                fields.remove("x-kubernetes-validations");
                fields.values_mut().for_each(without_rules);
            }
            Value::Array(items) => items.iter_mut().for_each(without_rules),
            _ => {}
        }
    }
    let spec = crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/spec").unwrap();
    without_rules(spec);
    assert!(spec["properties"].as_object_mut().unwrap().remove(without).is_some());
    json!({"apiVersion": crd["apiVersion"], "kind": crd["kind"], "metadata": {"name": crd["metadata"]["name"]}, "spec": crd["spec"]})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stored_survives_an_upgrade_of_the_schemas() {
    let Some(cluster) = Cluster::start().await else { return };
    for (plural, newer) in [("routerules", "stickiness"), ("circuitpolicies", "slowCalls"), ("retrypolicies", "hedge")]
    {
        let crd = cluster.get("shop", "crd", &format!("{plural}.switchyard.dev"));
        cluster.apply(&older(crd, newer).to_string());
        let known = format!("{}.spec.{newer}", plural);
        switchyard_tests::wait_for("the older schema is served", async || {
            !cluster.try_kubectl(&["explain", &known]).status.success()
        })
        .await;
    }
    let objects = valid(&cluster);
    // What today's rules refuse an older schema may have taken.
    let contradicts = "{service: a, destinations: [{service: a}], timeouts: {request: 1s, backendRequest: 2s}}";
    let contradicts = format!(
        "apiVersion: switchyard.dev/v1alpha1\nkind: RouteRule\nmetadata: {{name: contradicts, namespace: shop}}\nspec: {contradicts}\n"
    );
    let list = json!({"apiVersion": "v1", "kind": "List", "items": &objects});
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), format!("{contradicts}---\n{list}")).unwrap();
    let path = file.path().to_str().unwrap();
    cluster.kubectl(&["create", "--validate=ignore", "-f", path]);
    let all = ["get", "routerules,circuitpolicies,retrypolicies", "-n", "shop", "-o", "json"];
    let read = || -> Vec<Value> {
        serde_json::from_str::<Value>(&cluster.kubectl(&all)).unwrap()["items"].as_array().unwrap().clone()
    };
    let before = read();
    assert_eq!(before.len(), objects.len() + 1);
    assert!(before.iter().all(|object| object["spec"]["stickiness"].is_null()), "the older schema does not know it");

    cluster.upgrade_schemas().await;
    assert_eq!(read(), before, "nothing is changed by the upgrade itself");
    // Each can be written again, as controllers and people do, and what is new can be written too.
    cluster.kubectl(&["label", "routerules,circuitpolicies,retrypolicies", "-n", "shop", "--all", "upgraded=yes"]);
    std::fs::write(file.path(), list.to_string()).unwrap();
    cluster.kubectl(&["replace", "--validate=strict", "-f", path]);
    let sticky = |object: &Value| !object["spec"]["stickiness"].is_null();
    assert_eq!(read().iter().filter(|o| sticky(o)).count(), objects.iter().filter(|o| sticky(o)).count());
    // What contradicts itself stays, until somebody touches just that.
    let patch = |spec: &str| {
        cluster.try_kubectl(&["patch", "routerule", "-n", "shop", "contradicts", "--type=merge", "-p", spec])
    };
    assert!(patch("{\"spec\": {\"priority\": 1}}").status.success());
    assert!(!patch("{\"spec\": {\"timeouts\": {\"backendRequest\": \"3s\"}}}").status.success());
    assert!(patch("{\"spec\": {\"timeouts\": {\"backendRequest\": \"1s\"}}}").status.success());
}
