//! The webhook as an API server asks it: what needs other objects comes back as a warning of kubectl, what no schema can judge is
//! refused, and a controller that is away keeps nobody from changing a rule.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::process::{Command, Output};

use switchyard_tests::cluster::Cluster;
use switchyard_tests::process::Controller;
use switchyard_tests::wait_for;

/// The chart's own configuration, with this machine in place of the Service, and with the authority that the controller tells of.
async fn configure(cluster: &Cluster, controller: &Controller) {
    let file = cluster.authority().await;
    let encoded = Command::new("openssl").args(["base64", "-A", "-in"]).arg(file).output().unwrap();
    let authority = String::from_utf8(encoded.stdout).unwrap();
    let port = controller.webhook.unwrap().port();
    let here = format!("    url: https://localhost:{port}/validate\n    caBundle: {authority}");
    let rendered = cluster.rendered(&["templates/admission/webhook.yaml"], &[]);
    let lines = rendered.lines().map(|line| if line.starts_with("    service: {") { here.as_str() } else { line });
    let configured = lines.collect::<Vec<_>>().join("\n");
    assert!(configured.contains("failurePolicy: Ignore") && configured.contains("https://localhost"), "{configured}");
    cluster.apply(&configured);
}

fn apply(cluster: &Cluster, name: &str, spec: &str) -> Output {
    let head = "apiVersion: switchyard.dev/v1alpha1\nkind: RouteRule\n";
    let rule = format!("{head}metadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n");
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), rule).unwrap();
    cluster.try_kubectl(&["apply", "-f", file.path().to_str().unwrap()])
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const BROKEN: &str = "{service: my-service, destinations: [{service: my-service}], \
    matches: [{path: {type: RegularExpression, value: '/(x'}}]}";
const TO_NOBODY: &str = "{service: nobody, destinations: [{service: nobody}]}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_shows_what_the_webhook_says_and_goes_on_without_it() {
    let Some(cluster) = Cluster::start().await else { return };
    let controller = Controller::in_cluster(&cluster, "one").await;
    controller.process.says(0, &["revision 1"]).await;
    cluster.service("my-service", &["v1"]);
    configure(&cluster, &controller).await;

    // An API server takes a moment to ask who it is told to.
    let mut refused = None;
    wait_for("an expression that does not compile is refused", async || {
        let output = apply(&cluster, "broken", BROKEN);
        let is_refused = !output.status.success();
        refused = Some(output).filter(|_| is_refused);
        is_refused
    })
    .await;
    let said = error(&refused.unwrap());
    assert!(said.starts_with("The RouteRule \"broken\" is invalid: spec.matches[0].path.value: "), "{said}");
    assert!(said.contains("does not compile"), "{said}");

    let output = apply(&cluster, "to-nobody", TO_NOBODY);
    let said = error(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("Warning: spec.service:") && said.contains("nobody"), "{said}");
    let output =
        apply(&cluster, "in-order", "{service: my-service, destinations: [{service: my-service, version: v1}]}");
    assert!(output.status.success() && error(&output).is_empty(), "{}", error(&output));

    controller.process.kill();
    let output = apply(&cluster, "broken", BROKEN);
    assert!(output.status.success(), "{}", error(&output));
    // What the schema itself can tell is still told.
    let output = apply(&cluster, "nowhere", "{service: my-service}");
    assert!(!output.status.success() && error(&output).contains("spec.destinations"), "{}", error(&output));
}
