use expect_test::{Expect, expect};
use serde_json::{Value, json};

use super::*;
use crate::{CircuitPolicy, RetryPolicy, RouteRule};

fn object(kind: &str, spec: Value) -> Value {
    json!({"apiVersion": "switchyard.dev/v1alpha1", "kind": kind, "metadata": {"name": "x", "namespace": "shop"}, "spec": spec})
}

fn lines(findings: &[Finding]) -> String {
    findings.iter().map(|f| format!("{:?} {}: {}\n", f.severity, f.field, f.message)).collect()
}

fn check<K: Custom>(kind: &str, spec: Value, expected: Expect) {
    let (_, findings) = parse::<K>(&object(kind, spec));
    expected.assert_eq(&lines(&findings));
}

#[test]
fn the_canary_of_the_mission_is_right() {
    let spec = json!({
        "service": "my-service",
        "matches": [{"headers": [{"name": "x-version", "value": "v2"}]}],
        "destinations": [
            {"service": "my-service", "version": "v2", "weight": 20},
            {"service": "my-service", "version": "v1", "weight": 80},
        ],
    });
    let (rule, findings) = parse::<RouteRule>(&object("RouteRule", spec));
    assert_eq!(lines(&findings), "");
    assert_eq!(rule.unwrap().spec.destinations[1].weight, 80);
}

#[test]
fn every_default_stands_where_nothing_is_given() {
    let (policy, findings) = parse::<CircuitPolicy>(&object("CircuitPolicy", json!({"targetRefs": [{"name": "a"}]})));
    assert_eq!(lines(&findings), "");
    let spec = policy.unwrap().spec;
    assert_eq!((spec.failure_threshold, spec.success_threshold, spec.timeout.as_millis()), (5, 2, 60_000));
    let (policy, findings) = parse::<RetryPolicy>(&object("RetryPolicy", json!({})));
    assert_eq!(lines(&findings), "");
    let spec = policy.unwrap().spec;
    assert_eq!((spec.max_retries, spec.initial_delay.as_millis(), spec.jitter.ppm()), (3, 1000, 100_000));
}

#[test]
fn numbers_out_of_bounds_and_of_the_wrong_type_are_named_with_their_place() {
    check::<RouteRule>(
        "RouteRule",
        json!({
            "service": "my-service", "port": "80", "priority": 1.5,
            "destinations": [{"service": "a", "weight": -1}, {"service": "a", "weight": 1_000_001}, {"service": "a", "weight": "x"}],
        }),
        expect![[r#"
            Error spec.destinations[0].weight: -1 is below 0
            Error spec.destinations[1].weight: 1000001 is above 1000000
            Error spec.destinations[2].weight: is text, must be a whole number
            Error spec.port: is text, must be a whole number; write it without quotes
            Error spec.priority: is a number with a fraction, must be a whole number
        "#]],
    );
}

#[test]
fn a_misspelt_field_is_an_error_that_names_the_right_one() {
    check::<RouteRule>(
        "RouteRule",
        json!({"service": "a", "destination": [], "destinations": [{"service": "a", "wieght": 1, "colour": "red"}], "timeouts": {"total": "1s"}}),
        expect![[r#"
            Error spec.destination: no such field; did you mean `destinations`?
            Error spec.destinations[0].colour: no such field; there are filters, namespace, port, service, subset, version, weight
            Error spec.destinations[0].wieght: no such field; did you mean `weight`?
            Error spec.timeouts.total: no such field; there are backendRequest, request
        "#]],
    );
}

#[test]
fn what_is_missing_is_described() {
    check::<RouteRule>(
        "RouteRule",
        json!({"destinations": [{"version": "v1"}], "matches": [{"headers": [{"value": "x"}]}], "filters": [{}]}),
        expect![[r#"
            Error spec.destinations[0].service: is missing: the Service whose instances take the requests
            Error spec.filters[0].type: is missing: which change
            Error spec.matches[0].headers[0].name: is missing: its name
            Error spec.service: is missing: the Service whose requests this rule routes
        "#]],
    );
    let (_, findings) = parse::<RouteRule>(&json!({"kind": "RouteRule"}));
    expect![[r#"
        Error metadata: is missing: the object's name and what else Kubernetes keeps of it
        Error spec: is missing: one rule for the requests to one Service
    "#]]
    .assert_eq(&lines(&findings));
}

#[test]
fn texts_that_are_none_of_those_taken_say_which_are() {
    check::<CircuitPolicy>(
        "CircuitPolicy",
        json!({
            "targetRefs": [{"name": "My_Service", "kind": "Deployment"}], "scope": "instance", "window": "10", "timeout": 60,
            "errorRateThreshold": 0.5, "maxEjectionPercent": "150%", "failures": ["ServerErr", 503, "302", ""],
        }),
        expect![[r#"
            Error spec.errorRateThreshold: is a number with a fraction, must be a percentage from 0% to 100% as text, such as "50%" or "0.5%"
            Error spec.failures[0]: "ServerErr" is not one of ServerError, ConnectFailure, Timeout, Reset, RefusedStream, a status from 400 to 599, or a gRPC status by its name, such as UNAVAILABLE; did you mean `ServerError`?
            Error spec.failures[1]: is a number, must be one of ServerError, ConnectFailure, Timeout, Reset, RefusedStream, a status from 400 to 599, or a gRPC status by its name, such as UNAVAILABLE; write it in quotes
            Error spec.failures[2]: "302" is not one of ServerError, ConnectFailure, Timeout, Reset, RefusedStream, a status from 400 to 599, or a gRPC status by its name, such as UNAVAILABLE
            Error spec.failures[3]: "" is not one of ServerError, ConnectFailure, Timeout, Reset, RefusedStream, a status from 400 to 599, or a gRPC status by its name, such as UNAVAILABLE
            Error spec.maxEjectionPercent: "150%" is not a percentage from 0% to 100% as text, such as "50%" or "0.5%"
            Error spec.scope: "instance" is none of Instance, Destination; did you mean `Instance`?
            Error spec.targetRefs[0].kind: "Deployment" is none of Service
            Error spec.targetRefs[0].name: "My_Service" is not a name of lower-case letters, digits and `-`, that begins and ends with a letter or digit
            Error spec.timeout: is a number, must be a duration, such as 250ms, 10s or 1h30m
            Error spec.window: "10" is not a duration, such as 250ms, 10s or 1h30m
        "#]],
    );
}

#[test]
fn null_is_as_good_as_absent_but_not_in_a_list() {
    let (policy, findings) = parse::<RetryPolicy>(&object("RetryPolicy", json!({"maxRetries": null, "budget": null})));
    assert_eq!((lines(&findings), policy.map(|p| p.spec.max_retries)), (String::new(), Some(3)));
    check::<RetryPolicy>(
        "RetryPolicy",
        json!({"methods": [null, "get"]}),
        expect![[r#"
            Error spec.methods[0]: is empty, must be text
            Error spec.methods[1]: "get" is not a method in upper case, such as GET
        "#]],
    );
}

#[test]
fn counts_and_labels_are_bounded() {
    let matches: Vec<Value> = (0..65).map(|i| json!({"path": {"value": format!("/{i}")}})).collect();
    let labels: Map<String, Value> = (0..17).map(|i| (format!("l{i}"), json!("x"))).collect();
    check::<RouteRule>(
        "RouteRule",
        json!({"service": "a", "matches": matches, "destinations": [{"service": "a", "subset": labels}]}),
        expect![[r#"
            Error spec.destinations[0].subset: has 17 entries, at most 16 are taken
            Error spec.matches: has 65 entries, at most 64 are taken
        "#]],
    );
}

#[test]
fn the_findings_of_one_object_have_an_end() {
    let destinations: Vec<Value> = (0..1000).map(|_| json!({"service": 1})).collect();
    let (_, findings) = parse::<RouteRule>(&object("RouteRule", json!({"service": "a", "destinations": destinations})));
    assert_eq!(findings.len(), MAX_FINDINGS);
}

#[test]
fn whole_numbers_are_taken_however_they_are_written() {
    let spec =
        json!({"service": "a", "port": 80.0, "priority": 1e2, "destinations": [{"service": "a", "weight": 8.0}]});
    let (rule, findings) = parse::<RouteRule>(&object("RouteRule", spec));
    assert_eq!(lines(&findings), "");
    let spec = rule.unwrap().spec;
    assert_eq!((spec.port, spec.priority, spec.destinations[0].weight), (Some(80), 100, 8));
    check::<RouteRule>(
        "RouteRule",
        json!({"service": "a", "port": 1e20, "priority": -1e20, "destinations": [{"service": "a", "weight": 0.5}]}),
        expect![[r#"
            Error spec.destinations[0].weight: is a number with a fraction, must be a whole number
            Error spec.port: 100000000000000000000 is above 65535
            Error spec.priority: -100000000000000000000 is below -1000000
        "#]],
    );
}

#[test]
fn a_text_for_a_mapping_is_shown_in_its_right_form() {
    check::<RouteRule>(
        "RouteRule",
        json!({"service": "a", "matches": [{"path": "/api", "headers": ["x"]}, {"path": "a: {b"}], "destinations": ["a"], "timeouts": "1s"}),
        expect![[r#"
            Error spec.destinations[0]: is text, must be a mapping; write it as {service: a}
            Error spec.matches[0].headers[0]: is text, must be a mapping; write it as {name: x}
            Error spec.matches[0].path: is text, must be a mapping; write it as {type: PathPrefix, value: /api}
            Error spec.matches[1].path: is text, must be a mapping; write it as {type: PathPrefix, value: ...}
            Error spec.timeouts: is text, must be a mapping
        "#]],
    );
    check::<RetryPolicy>(
        "RetryPolicy",
        json!({"targetRefs": ["a"]}),
        expect![[r#"
        Error spec.targetRefs[0]: is text, must be a mapping; write it as {name: a}
    "#]],
    );
}

#[test]
fn labels_of_an_object_are_spelt_as_the_api_server_asks() {
    let mut rule = object("RouteRule", json!({"service": "a", "destinations": [{"service": "a"}]}));
    rule["metadata"]["labels"] = json!({"a b": "x", "ok": "not ok", "example.org/team": "shop", "empty": ""});
    rule["metadata"]["annotations"] = json!({"Example.org/Note": "any text at all", "/": ""});
    expect![[r#"
        Error metadata.labels[a b]: "a b" is not a label's key: its name has 1 to 63 letters, digits, `-`, `_` and `.`
        Error metadata.labels[ok]: "not ok" is not a label's value: up to 63 letters, digits, `-`, `_` and `.`, with a letter or digit at both ends
        Error metadata.annotations[/]: "/" is not an annotation's key; it is spelt as a label's is
    "#]].assert_eq(&lines(&parse::<RouteRule>(&rule).1));
}
