//! What an API server and a webhook are asked directly, where kubectl would show too little of the answer or take too long.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::Cluster;

/// How many are asked at once.
const AT_ONCE: usize = 4;

impl Cluster {
    /// What the API server says to the creation of an object, by its own schemas alone; nothing is created. An unknown field is
    /// refused, as kubectl asks for.
    ///
    /// # Panics
    /// When there is no answer.
    pub fn try_create(&self, object: &Value) -> Value {
        let plural = match object["kind"].as_str().unwrap() {
            "RouteRule" => "routerules",
            "CircuitPolicy" => "circuitpolicies",
            "RetryPolicy" => "retrypolicies",
            kind => panic!("no kind of ours: {kind}"),
        };
        let namespace = object["metadata"]["namespace"].as_str().unwrap();
        let path = format!("/apis/switchyard.dev/v1alpha1/namespaces/{namespace}/{plural}");
        post(&format!("https://{}{path}?dryRun=All&fieldValidation=Strict", self.address), object)
    }

    /// The objects of YAML as JSON, by kubectl's reading: whatever their shape.
    ///
    /// # Panics
    /// When kubectl cannot read it.
    pub fn as_json(&self, yaml: &std::path::Path) -> Vec<Value> {
        let args = ["create", "--dry-run=client", "--validate=false", "-o", "json", "-f", yaml.to_str().unwrap()];
        let json = self.kubectl(&args);
        serde_json::Deserializer::from_str(&json).into_iter().map(Result::unwrap).collect()
    }
}

/// A webhook's answer about an object that is created.
///
/// # Panics
/// When there is none.
pub fn review(webhook: SocketAddr, object: &Value) -> Value {
    let request = json!({"uid": "1", "kind": {"kind": object["kind"]}, "operation": "CREATE", "object": object});
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request});
    post(&format!("https://{webhook}/validate"), &review)["response"].take()
}

/// Does the work for each item, some at once; the results in the items' order.
///
/// # Panics
/// When the work does.
pub fn at_once<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let part = items.len().div_ceil(AT_ONCE).max(1);
    std::thread::scope(|scope| {
        let work = &work;
        let parts: Vec<_> =
            items.chunks(part).map(|part| scope.spawn(move || part.iter().map(work).collect::<Vec<R>>())).collect();
        parts.into_iter().flat_map(|part| part.join().unwrap()).collect()
    })
}

/// The harness knows whom it asks, so nobody's certificate is looked at.
fn post(url: &str, body: &Value) -> Value {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--insecure", "--max-time", "60", "--data-binary", "@-", url]);
    curl.args(["--header", "Content-Type: application/json", "--header", "Authorization: Bearer secret"]);
    let mut asking = curl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    asking.stdin.take().unwrap().write_all(body.to_string().as_bytes()).unwrap();
    let answer = asking.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&answer.stderr);
    assert!(answer.status.success(), "{url}: {error}");
    serde_json::from_slice(&answer.stdout).unwrap()
}
