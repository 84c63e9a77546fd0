use expect_test::{Expect, expect};
use serde_json::{Value, json};

use crate::shape::{Custom, parse};
use crate::{CircuitPolicy, RetryPolicy, RouteRule};

fn check<K: Custom>(spec: Value, expected: Expect) {
    let (object, findings) = parse::<K>(&json!({"metadata": {"name": "x"}, "spec": spec}));
    assert!(object.is_some(), "these are of the right shape");
    let lines = findings.iter().map(|f| format!("{:?} {:?} {}: {}\n", f.severity, f.reason, f.field, f.message));
    expected.assert_eq(&lines.collect::<String>());
}

fn rule(mut more: Value) -> Value {
    let fields = more.as_object_mut().map(std::mem::take).unwrap_or_default();
    let mut spec = json!({"service": "a", "destinations": [{"service": "a"}]});
    fields.into_iter().for_each(|(name, value)| spec[name] = value);
    spec
}

fn circuit(mut more: Value) -> Value {
    more["targetRefs"] = json!([{"name": "a"}]);
    more
}

#[test]
fn a_rule_that_sends_requests_nowhere_is_refused() {
    let expected = "Error Invalid spec.destinations: no request could go anywhere: give a destination with a weight above 0, or \
                    a filter of type RequestRedirect or DirectResponse\n";
    for destinations in [json!([]), json!([{"service": "a", "weight": 0}, {"service": "b", "weight": 0}])] {
        let (_, findings) = parse::<RouteRule>(
            &json!({"metadata": {"name": "x"}, "spec": rule(json!({"destinations": destinations}))}),
        );
        let lines: Vec<String> =
            findings.iter().map(|f| format!("{:?} {:?} {}: {}\n", f.severity, f.reason, f.field, f.message)).collect();
        assert_eq!(lines.concat(), expected);
    }
}

#[test]
fn matches_that_cannot_be_are_refused() {
    check::<RouteRule>(
        rule(json!({"matches": [
            {"path": {"value": "api"}},
            {"path": {"type": "Exact", "value": "/api?x=1"}},
            {"path": {"type": "RegularExpression", "value": "/api/[0-9"}},
            {"headers": [{"type": "Present", "name": "a", "value": "x"}, {"name": "b"}]},
            {"headers": [{"name": "X-Version", "value": "v1"}, {"name": "x-version", "value": "v2"}]},
            {"queryParams": [{"name": "q", "value": "1"}, {"name": "Q", "value": "2"}, {"type": "Absent", "name": "q"}]},
            {"headers": [{"type": "RegularExpression", "name": "a", "value": "(\\w{100}){100}"}]},
        ]})),
        expect![[r#"
            Error Invalid spec.matches[0].path.value: a path begins with `/`
            Error Invalid spec.matches[1].path.value: a path has no `?`, `#`, space or control character in it; queryParams match the query
            Error Invalid spec.matches[2].path.value: the regular expression does not compile: unclosed character class
            Error Invalid spec.matches[3].headers[0]: a value is given, except for Present and Absent, which have none
            Error Invalid spec.matches[3].headers[1]: a value is given, except for Present and Absent, which have none
            Error Invalid spec.matches[4].headers[1]: the header "x-version" is asked for twice, with "v1" and "v2": no request has both; for either, write two matches
            Error Invalid spec.matches[5].queryParams[2]: the query parameter "q" is asked for as Absent and as Exact: no request has both
            Error Invalid spec.matches[6].headers[0].value: the regular expression takes more than 1024 KiB when compiled; make it simpler
        "#]],
    );
}

#[test]
fn times_that_contradict_one_another_are_refused() {
    check::<RouteRule>(
        rule(json!({"timeouts": {"request": "1s", "backendRequest": "2s"}})),
        expect![[r#"
            Error Invalid spec.timeouts.backendRequest: 2s for one try is longer than 1s for the whole request (timeouts.request)
        "#]],
    );
    check::<RouteRule>(rule(json!({"timeouts": {"request": "0s", "backendRequest": "2s"}})), expect![[""]]);
    check::<RetryPolicy>(
        json!({"perTryTimeout": "5s", "timeout": "1s", "initialDelay": "1m", "budget": {"window": "2m"}, "maxBodyBytes": "1Gi"}),
        expect![[r#"
            Error Invalid spec.initialDelay: 1m is longer than spec.maxDelay, which is 30s
            Error Invalid spec.perTryTimeout: 5s for one try is longer than 1s for all together (spec.timeout)
            Warning Suspicious spec.timeout: no retry ever begins: the wait before the first is at least 54s (spec.initialDelay, less spec.jitter), and all is over after 1s
            Error Invalid spec.budget.window: 2m is longer than 1m
            Error Invalid spec.maxBodyBytes: 1Gi is above 16Mi
        "#]],
    );
    check::<RetryPolicy>(
        json!({"timeout": "0s"}),
        expect![[r#"
            Error Invalid spec.timeout: 0s leaves no time for any try; leave the field out for no limit
        "#]],
    );
    check::<CircuitPolicy>(
        circuit(
            json!({"window": "500ms", "timeout": "15m", "backoff": {"maxTimeout": "11m"}, "errorRateThreshold": "0%"}),
        ),
        expect![[r#"
            Error Invalid spec.window: 500ms is shorter than 1s
            Error Invalid spec.backoff.maxTimeout: 11m is shorter than spec.timeout, which is 15m: an open time only grows
            Warning Suspicious spec.errorRateThreshold: 0% opens the circuit whatever happens
        "#]],
    );
    check::<CircuitPolicy>(circuit(json!({"timeout": "1h"})), expect![""]);
    check::<CircuitPolicy>(
        circuit(json!({"healthCheck": {"tcp": {}, "interval": "2s", "timeout": "3s"}})),
        expect![[r#"
            Error Invalid spec.healthCheck.timeout: 3s for a check is longer than 2s between two (healthCheck.interval)
            Warning NotEnforced spec.healthCheck: is accepted, but this build does not act on it yet
        "#]],
    );
    check::<CircuitPolicy>(
        circuit(json!({"healthCheck": {"tcp": {}, "interval": "500ms"}})),
        expect![[r#"
            Warning NotEnforced spec.healthCheck: is accepted, but this build does not act on it yet
        "#]],
    );
    check::<CircuitPolicy>(
        circuit(json!({"timeout": "0s", "backoff": {"maxTimeout": "25h"}})),
        expect![[r#"
            Error Invalid spec.timeout: 0s is shorter than 1ms
            Error Invalid spec.backoff.maxTimeout: 25h is longer than 24h
        "#]],
    );
}

#[test]
fn of_what_excludes_one_another_exactly_one_is_given() {
    check::<RouteRule>(
        rule(json!({
            "stickiness": {"on": {"header": "x-user", "sourceIP": {}}},
            "filters": [
                {"type": "Fault", "requestMirror": {"service": "b"}},
                {"type": "RequestRedirect", "requestRedirect": {"statusCode": 305}},
                {"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplaceFullPath", "replacePrefixMatch": "/x"}}},
                {"type": "Fault", "fault": {}},
            ],
        })),
        expect![[r#"
            Error Invalid spec.filters[0]: the field that `type` names is given, and no other
            Error Invalid spec.filters[1].requestRedirect.statusCode: a redirect's status is 301, 302, 303, 307 or 308
            Error Invalid spec.filters[2].urlRewrite.path: the field that `type` names is given, and no other
            Error Invalid spec.filters[3].fault: a delay, an abort or both are given
            Error Invalid spec.stickiness.on: exactly one of header, cookie and sourceIP is given
            Warning NotEnforced spec.filters[0]: is accepted, but this build does not act on it yet
            Warning NotEnforced spec.filters[1]: is accepted, but this build does not act on it yet
            Warning NotEnforced spec.filters[2]: is accepted, but this build does not act on it yet
            Warning NotEnforced spec.filters[3]: is accepted, but this build does not act on it yet
            Warning NotEnforced spec.stickiness: is accepted, but this build does not act on it yet
        "#]],
    );
}

#[test]
fn a_policy_for_the_same_target_twice_or_that_falls_back_to_itself_is_refused() {
    check::<CircuitPolicy>(
        json!({
            "targetRefs": [{"name": "a"}, {"name": "a", "version": "v1"}, {"kind": "Service", "name": "a"}, {"name": "b", "group": "apps"}],
            "fallback": {"destination": {"service": "a", "version": "v1"}},
        }),
        expect![[r#"
            Error Invalid spec.targetRefs[2]: the same target as spec.targetRefs[0]
            Error Invalid spec.targetRefs[3].group: only Services can be targets; their group is empty
            Warning Suspicious spec.fallback: with maxEjectionPercent 50% one of two or more instances always stays in, and callers get its replies: for a fallback when all fail, say "100%", or scope: Destination
            Error Invalid spec.fallback.destination: the policy's own target stands in for itself: when its circuit is open, so is the fallback's
        "#]],
    );
}

#[test]
fn what_takes_nobody_out_or_everybody_at_once_is_said_and_so_is_a_fallback_that_waits_for_all() {
    check::<CircuitPolicy>(
        circuit(json!({"maxEjectionPercent": "0%", "slowCalls": {"duration": "0s", "rateThreshold": "0%"}})),
        expect![[r#"
            Warning Suspicious spec.maxEjectionPercent: 0% lets no circuit open
            Warning Suspicious spec.slowCalls.duration: 0s makes every reply slow
            Warning Suspicious spec.slowCalls.rateThreshold: 0% opens the circuit with the first slow reply
        "#]],
    );
    let fallback = json!({"response": {"status": 200}});
    check::<CircuitPolicy>(
        circuit(json!({"fallback": fallback})),
        expect![[r#"
        Warning Suspicious spec.fallback: with maxEjectionPercent 50% one of two or more instances always stays in, and callers get its replies: for a fallback when all fail, say "100%", or scope: Destination
    "#]],
    );
    for all_out in [json!({"scope": "Destination"}), json!({"maxEjectionPercent": "100%"})] {
        let mut spec = circuit(all_out);
        spec["fallback"] = fallback.clone();
        check::<CircuitPolicy>(spec, expect![[""]]);
    }
}

#[test]
fn labels_that_no_object_can_have_are_refused() {
    check::<RouteRule>(
        rule(
            json!({"destinations": [{"service": "a", "subset": {"-x": "a", "ok": "", "app.kubernetes.io/name": "fine"}}]}),
        ),
        expect![[r#"
            Error Invalid spec.destinations[0].subset[-x]: "-x" is not a label's key: its name has 1 to 63 letters, digits, `-`, `_` and `.`
        "#]],
    );
}

#[test]
fn what_is_not_acted_on_yet_is_said() {
    check::<RouteRule>(
        rule(
            json!({"serviceNamespace": "b", "matches": [{"cookies": [{"name": "a", "value": "b"}], "grpc": {}}, {"method": "GET"}]}),
        ),
        expect![[r#"
            Warning NotEnforced spec.serviceNamespace: rules for another namespace's Service are not in force yet: this rule is left out
            Warning NotEnforced spec.matches[0].cookies: is not looked at yet: this match entry is left out until it is enforced
            Warning NotEnforced spec.matches[0].grpc: is not looked at yet: this match entry is left out until it is enforced
        "#]],
    );
    check::<CircuitPolicy>(
        circuit(json!({
            "slowCalls": {"duration": "2s", "rateThreshold": "80%"}, "healthCheck": {"tcp": {}}, "limits": {},
            "override": "ForceOpen", "maxEjectionPercent": "100%",
        })),
        expect![[r#"
            Warning NotEnforced spec.healthCheck: is accepted, but this build does not act on it yet
        "#]],
    );
    check::<CircuitPolicy>(circuit(json!({})), expect![[""]]);
    check::<RouteRule>(rule(json!({"serviceNamespace": "default"})), expect![[""]]);
    check::<RetryPolicy>(
        json!({"hedge": {"after": "100ms"}, "methods": ["GET", "POST"]}),
        expect![[r#"
            Warning Suspicious spec.methods[1]: a POST that is sent twice may act twice; retry it only where instances expect that
            Warning NotEnforced spec.hedge: is accepted, but this build does not act on it yet
        "#]],
    );
}

#[test]
fn what_no_request_can_be_is_said() {
    check::<RouteRule>(
        rule(json!({"matches": [
            {"headers": [{"name": "a", "value": " v"}, {"name": "b", "value": "v\t"}]},
            {"headers": [{"type": "Prefix", "name": "a", "value": " v"}, {"type": "Prefix", "name": "b", "value": "v "}]},
            {"path": {"value": "/a\u{7}"}},
            {"path": {"value": "/a"}, "method": "CONNECT"},
        ]})),
        expect![[r#"
            Error Invalid spec.matches[0].headers[0].value: a header field's value has no white space at either end, so no request would match
            Error Invalid spec.matches[0].headers[1].value: a header field's value has no white space at either end, so no request would match
            Error Invalid spec.matches[1].headers[0].value: a header field's value has no white space at either end, so no request would match
            Error Invalid spec.matches[2].path.value: a path has no `?`, `#`, space or control character in it; queryParams match the query
            Warning Suspicious spec.matches[3].method: no request has it: CONNECT is answered 501 before any rule is asked
        "#]],
    );
}

#[test]
fn a_policy_under_which_no_retry_begins_is_likely_a_mistake() {
    check::<RetryPolicy>(
        json!({"timeout": "900ms"}),
        expect![[r#"
        Warning Suspicious spec.timeout: no retry ever begins: the wait before the first is at least 900ms (spec.initialDelay, less spec.jitter), and all is over after 900ms
    "#]],
    );
    check::<RetryPolicy>(
        json!({"timeout": "1s", "strategy": "DecorrelatedJitter"}),
        expect![[r#"
        Warning Suspicious spec.timeout: no retry ever begins: the wait before the first is at least 1s (spec.initialDelay, less spec.jitter), and all is over after 1s
    "#]],
    );
    check::<RetryPolicy>(
        json!({"budget": {"ratio": "0%", "minPerSecond": 0}}),
        expect![[r#"
        Warning Suspicious spec.budget: no retry ever begins: the ratio is 0% and minPerSecond is 0; maxRetries: 0 says so
    "#]],
    );
    check::<RetryPolicy>(json!({"timeout": "901ms", "budget": {"ratio": "0%"}}), expect![[""]]);
    check::<RetryPolicy>(
        json!({"maxRetries": 0, "timeout": "1ms", "budget": {"ratio": "0%", "minPerSecond": 0}}),
        expect![[""]],
    );
}
