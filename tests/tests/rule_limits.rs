//! What a rule says of time and of retries: its own limits, and a retry policy by name in place of the Service's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use switchyard_tests::backend::Backend;
use switchyard_tests::client;
use switchyard_tests::manifests::{HOST, Manifests, retry, rule};
use switchyard_tests::process::Switchyard;

const AN_HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rules_limit_is_for_the_whole_request_and_its_other_one_for_each_try() {
    let (slow, quick) = (Backend::start("slow").await, Backend::start("quick").await);
    slow.delay(AN_HOUR);
    let manifests = Manifests::of(&[("slow", slow.address), ("quick", quick.address)]);
    let to = |path: &str, name: &str, rest: &str| {
        rule(
            name,
            &format!(
                "  matches: [{{path: {{value: {path}}}}}]\n  destinations: [{{service: my-service, version: slow}}]\n{rest}"
            ),
        )
    };
    let rules = [
        to("/whole", "whole", "  timeouts: {request: 100ms}\n"),
        to("/each", "each", "  timeouts: {request: 10m, backendRequest: 100ms}\n  retryPolicy: again\n"),
        to("/none", "none", "  timeouts: {request: 0s, backendRequest: 100ms}\n"),
    ];
    let again = retry("  maxRetries: 2\n").replace("name: retry,", "name: again,");
    // Attached to nothing: the rule names it.
    let again = again.replace("  targetRefs: [{kind: Service, name: my-service}]\n", "");
    manifests.write("rules.yaml", &[rules.join("---\n"), again].join("---\n"));
    let switchyard = Switchyard::run(manifests.path()).await;
    for (path, tries) in [("/whole", 1), ("/each", 3), ("/none", 1)] {
        let before = slow.asked();
        let reply = client::get(switchyard.http, HOST, path).await.unwrap();
        assert_eq!((reply.status.as_u16(), reply.reason()), (504, "upstream-timeout"), "{path}");
        assert_eq!(slow.asked() - before, tries, "{path}");
    }
    assert_eq!(quick.asked(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_policy_by_name_holds_for_its_rule_and_the_services_own_for_the_rest() {
    let instance = Backend::start("v1").await;
    let manifests = Manifests::of(&[("v1", instance.address)]);
    let named = retry("  maxRetries: 3\n").replace("name: retry,", "name: patient,");
    let named = named.replace("  targetRefs: [{kind: Service, name: my-service}]\n", "");
    let rule = rule(
        "patient",
        "  matches: [{path: {value: /patient}}]\n  destinations: [{service: my-service}]\n  retryPolicy: patient\n",
    );
    manifests.write("policies.yaml", &[retry("  maxRetries: 1\n"), named, rule].join("---\n"));
    let switchyard = Switchyard::run(manifests.path()).await;
    instance.fail();
    for (path, tries) in [("/patient", 4), ("/", 2)] {
        let before = instance.asked();
        assert_eq!(client::get(switchyard.http, HOST, path).await.unwrap().status, 500);
        assert_eq!(instance.asked() - before, tries, "{path}");
    }
}
