//! Which rule takes a request, by what only traffic shows: who calls, how a path is spelt, what a call of gRPC is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use http::{Method, Request};
use switchyard_tests::backend::Backend;
use switchyard_tests::client::{Body, Connection, empty, get_request, request};
use switchyard_tests::manifests::{HOST, Manifests, rule};
use switchyard_tests::process::Switchyard;
use switchyard_tests::wait_for;

const TO_V2: &str = "  destinations: [{service: my-service, version: v2}]\n";

/// Instances of v1 and v2; what no rule says goes to v1.
async fn start(rules: &str) -> (Manifests, Switchyard, [Backend; 2]) {
    let (v1, v2) = (Backend::start("v1").await, Backend::start("v2").await);
    let manifests = Manifests::of(&[("v1", v1.address), ("v2", v2.address)]);
    let rest = rule("rest", "  priority: -1\n  destinations: [{service: my-service, version: v1}]\n");
    manifests.write("rules.yaml", &format!("{rest}---\n{rules}"));
    let switchyard = Switchyard::run(manifests.path()).await;
    (manifests, switchyard, [v1, v2])
}

async fn version(switchyard: &Switchyard, request: Request<Body>) -> String {
    let mut connection = Connection::http1(switchyard.http).await.unwrap();
    connection.ask(request).await.unwrap().version().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_spelling_of_a_path_passes_a_rule_by() {
    let rules = rule("admin", &format!("  matches: [{{path: {{value: /admin}}}}]\n{TO_V2}"));
    let (_manifests, switchyard, [v1, v2]) = start(&rules).await;
    for path in ["/admin", "/%61dmin", "/x/../admin", "/x/%2e%2E/admin/y", "//admin", "/./admin/", "/x\\..\\admin"] {
        assert_eq!(version(&switchyard, get_request(HOST, path)).await, "v2", "{path}");
    }
    assert!(v2.seen().iter().all(|seen| seen.target.starts_with("/admin")), "and instances see what was matched");
    for path in ["/administrator", "/x/admin", "/admin%2Fx", "/%2561dmin"] {
        assert_eq!(version(&switchyard, get_request(HOST, path)).await, "v1", "{path}");
    }
    assert_eq!(v1.seen()[2].target, "/admin%2Fx", "an encoded slash stays one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cookies_and_calls_of_grpc_decide() {
    let matches = "  matches: [{cookies: [{name: cohort, value: b}]}, {grpc: {service: shop.Cart}}]\n";
    let (_manifests, switchyard, _instances) = start(&rule("asks", &format!("{matches}{TO_V2}"))).await;
    for (cookies, wanted) in [
        (vec!["cohort=b"], "v2"),
        (vec!["a=1; cohort=b; c=2"], "v2"),
        (vec!["a=1", "cohort=b"], "v2"),
        (vec!["cohort=a; cohort=b"], "v1"),
        (vec!["xcohort=b; Cohort=b"], "v1"),
        (vec![], "v1"),
    ] {
        let mut asked = get_request(HOST, "/");
        for cookie in &cookies {
            asked.headers_mut().append("cookie", cookie.parse().unwrap());
        }
        assert_eq!(version(&switchyard, asked).await, wanted, "{cookies:?}");
    }
    for (path, kind, wanted) in [
        ("/shop.Cart/AddItem", "application/grpc", "v2"),
        ("/shop.Cart/AddItem", "application/grpc+proto", "v2"),
        ("/shop.Cart/AddItem", "application/json", "v1"),
        ("/shop.Order/AddItem", "application/grpc", "v1"),
    ] {
        let mut asked = request(Method::POST, HOST, path, empty());
        asked.headers_mut().insert("content-type", kind.parse().unwrap());
        assert_eq!(version(&switchyard, asked).await, wanted, "{path} of {kind}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_is_known_by_its_pod_and_a_consumers_rule_is_for_its_own() {
    let by_label = rule("by-label", &format!("  matches: [{{source: {{labels: {{app: front}}}}}}]\n{TO_V2}"));
    let (manifests, switchyard, _instances) = start(&by_label).await;
    let ask = async || version(&switchyard, get_request(HOST, "/")).await;
    assert_eq!(ask().await, "v1", "nobody knows who calls");

    let pod = |namespace: &str, app: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: {namespace}, labels: {{app: {app}}}}}\n\
             spec: {{containers: [], nodeName: somewhere}}\nstatus: {{podIPs: [{{ip: 127.0.0.1}}]}}\n"
        )
    };
    manifests.write("pod.yaml", &pod("web", "front"));
    wait_for("the caller is a pod that the rule is for", async || ask().await == "v2").await;
    manifests.write("pod.yaml", &pod("web", "back"));
    wait_for("it has another label", async || ask().await == "v1").await;

    let to_v2 = "  serviceNamespace: shop\n  destinations: [{service: my-service, namespace: shop, version: v2}]\n";
    let consumers = rule("of-a-consumer", to_v2).replace("namespace: shop}", "namespace: web}");
    manifests.write("consumer.yaml", &consumers.replacen("namespace: web, version", "namespace: shop, version", 1));
    wait_for("the consumer's rule takes its own caller", async || ask().await == "v2").await;
    manifests.write("pod.yaml", &pod("other", "back"));
    wait_for("and nobody else's", async || ask().await == "v1").await;
}
