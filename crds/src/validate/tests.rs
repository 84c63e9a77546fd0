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
                    a filter of type RequestRedirect or DirectResponse, or of type Fault with an abort of 100%\n";
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
            Error Invalid spec.matches[4].headers: the header "x-version" is asked for twice, with "v1" and "v2": no request has both; for either, write two matches
            Error Invalid spec.matches[5].queryParams: the query parameter "q" is asked for as Absent and as Exact: no request has both
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
        "#]],
    );
    check::<CircuitPolicy>(circuit(json!({"healthCheck": {"tcp": {}, "interval": "500ms"}})), expect![""]);
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
                {"type": "RequestMirror", "requestMirror": {"service": "b"}, "cors": {"allowOrigins": ["*"]}},
                {"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplaceFullPath", "replacePrefixMatch": "/x"}}},
            ],
        })),
        expect![[r#"
            Error Invalid spec.filters[0]: the field that `type` names is given, and no other
            Error Invalid spec.filters[1]: the field that `type` names is given, and no other
            Error Invalid spec.filters[2].urlRewrite.path: the field that `type` names is given, and no other
            Warning Suspicious spec.stickiness: there are no two destinations that a user could be kept in one of
            Error Invalid spec.stickiness.on: exactly one of header, cookie and sourceIP is given
        "#]],
    );
    check::<RouteRule>(
        rule(json!({"filters": [{"type": "Fault", "fault": {}}]})),
        expect![[r#"
        Error Invalid spec.filters[0].fault: a delay, an abort or both are given
    "#]],
    );
    check::<RouteRule>(
        answer(json!([{"type": "RequestRedirect", "requestRedirect": {"scheme": "https", "statusCode": 305}}])),
        expect![[r#"
            Error Invalid spec.filters[0].requestRedirect.statusCode: a redirect's status is 301, 302, 303, 307 or 308
        "#]],
    );
}

/// A rule that answers by itself.
fn answer(filters: Value) -> Value {
    json!({"service": "a", "filters": filters})
}

#[test]
fn filters_that_do_not_get_along_are_refused() {
    let redirect = json!({"type": "RequestRedirect", "requestRedirect": {"scheme": "https"}});
    let rewrite = json!({"type": "URLRewrite", "urlRewrite": {"hostname": "b.org"}});
    let reply = json!({"type": "DirectResponse", "directResponse": {"status": 200}});
    let mirror = json!({"type": "RequestMirror", "requestMirror": {"service": "b"}});
    check::<RouteRule>(
        answer(json!([redirect, rewrite])),
        expect![[r#"
        Error Invalid spec.filters: RequestRedirect, URLRewrite and DirectResponse exclude one another: what is answered at once is not passed on
    "#]],
    );
    check::<RouteRule>(
        answer(json!([redirect, reply])),
        expect![[r#"
        Error Invalid spec.filters: RequestRedirect, URLRewrite and DirectResponse exclude one another: what is answered at once is not passed on
    "#]],
    );
    check::<RouteRule>(
        answer(json!([reply, reply])),
        expect![[r#"
        Error Invalid spec.filters: but for RequestMirror, a type of filter is given once
    "#]],
    );
    check::<RouteRule>(
        rule(json!({"filters": [redirect]})),
        expect![[r#"
        Error Invalid spec.destinations: no request goes to a destination where a RequestRedirect or a DirectResponse answers them all: take one of the two out
    "#]],
    );
    check::<RouteRule>(rule(json!({"filters": [mirror, rewrite, mirror]})), expect![[""]]);
    check::<RouteRule>(answer(json!([{"type": "Fault", "fault": {"abort": {"status": 503}}}])), expect![[""]]);
    check::<RouteRule>(
        answer(json!([{"type": "Fault", "fault": {"abort": {"status": 503, "percent": "99.9999%"}}}])),
        expect![[r#"
            Error Invalid spec.destinations: no request could go anywhere: give a destination with a weight above 0, or a filter of type RequestRedirect or DirectResponse, or of type Fault with an abort of 100%
        "#]],
    );
    check::<RouteRule>(
        json!({"service": "a", "destinations": [{"service": "a", "filters": [mirror, mirror, rewrite]}]}),
        expect![[r#"
            Error Invalid spec.destinations[0].filters: a destination takes the filters RequestHeaderModifier, ResponseHeaderModifier and RequestMirror; the others are given for the rule
        "#]],
    );
}

#[test]
fn what_says_whose_and_how_long_a_message_is_no_filter_touches() {
    let change = json!({
        "set": [{"name": "Host", "value": "b"}, {"name": "x-a", "value": "b"}],
        "add": [{"name": "Content-Length", "value": "1"}, {"name": "X-A", "value": "c"}],
        "remove": ["transfer-encoding", "x-a", "X-Switchyard-Attempt"],
    });
    check::<RouteRule>(
        rule(json!({"filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": change}]})),
        expect![[r#"
            Error Invalid spec.filters[0].requestHeaderModifier.set[0].name: no filter touches the fields that say whose a message is (Host; urlRewrite.hostname changes that), how long it is, or what is for one connection only, nor those that begin with x-switchyard-
            Error Invalid spec.filters[0].requestHeaderModifier.add[0].name: no filter touches the fields that say whose a message is (Host; urlRewrite.hostname changes that), how long it is, or what is for one connection only, nor those that begin with x-switchyard-
            Error Invalid spec.filters[0].requestHeaderModifier.remove: no filter touches the fields that say whose a message is (Host; urlRewrite.hostname changes that), how long it is, or what is for one connection only, nor those that begin with x-switchyard-
            Error Invalid spec.filters[0].requestHeaderModifier.add[1]: x-a is set, added or removed already: of each field there is one change, and names fold case
            Error Invalid spec.filters[0].requestHeaderModifier.remove[1]: x-a is set, added or removed already: of each field there is one change, and names fold case
        "#]],
    );
    check::<RouteRule>(
        answer(
            json!([{"type": "DirectResponse", "directResponse": {"status": 204, "body": "x", "headers": [{"name": "Connection", "value": "close"}]}}]),
        ),
        expect![[r#"
            Error Invalid spec.filters[0].directResponse.headers[0].name: no filter touches the fields that say whose a message is (Host; urlRewrite.hostname changes that), how long it is, or what is for one connection only, nor those that begin with x-switchyard-
            Error Invalid spec.filters[0].directResponse.body: a reply with status 204, 205 or 304 has no body
        "#]],
    );
    check::<CircuitPolicy>(
        circuit(
            json!({"fallback": {"response": {"status": 304, "body": "x", "headers": [{"name": "TE", "value": "a"}]}}}),
        ),
        expect![[r#"
            Error Invalid spec.fallback.response.headers[0].name: no filter touches the fields that say whose a message is (Host; urlRewrite.hostname changes that), how long it is, or what is for one connection only, nor those that begin with x-switchyard-
            Error Invalid spec.fallback.response.body: a reply with status 204, 205 or 304 has no body
            Warning Suspicious spec.fallback: with maxEjectionPercent 50% one of two or more instances always stays in, and callers get its replies: for a fallback when all fail, say "100%", or scope: Destination
        "#]],
    );
}

#[test]
fn a_prefix_is_replaced_where_there_is_one() {
    let path = json!({"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/x"}});
    let with = |filter: &Value, kinds: &[&str]| {
        let entries: Vec<_> = kinds.iter().map(|kind| json!({"path": {"type": kind, "value": "/a"}})).collect();
        json!({"service": "a", "matches": entries, "destinations": [{"service": "a"}], "filters": [filter]})
    };
    let rewrite = json!({"type": "URLRewrite", "urlRewrite": path});
    check::<RouteRule>(with(&rewrite, &["PathPrefix", "PathPrefix"]), expect![[""]]);
    check::<RouteRule>(with(&rewrite, &[]), expect![[""]]);
    check::<RouteRule>(
        with(&rewrite, &["PathPrefix", "Exact"]),
        expect![[r#"
        Error Invalid spec.filters: ReplacePrefixMatch needs a prefix: every match has a path of type PathPrefix, or none, which is the prefix `/`
    "#]],
    );
    let full =
        json!({"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplaceFullPath", "replaceFullPath": "/x"}}});
    check::<RouteRule>(with(&full, &["Exact", "RegularExpression"]), expect![[""]]);
    let mut redirect = with(&json!({"type": "RequestRedirect", "requestRedirect": path}), &["RegularExpression"]);
    redirect["destinations"] = json!([]);
    check::<RouteRule>(
        redirect,
        expect![[r#"
        Error Invalid spec.filters: ReplacePrefixMatch needs a prefix: every match has a path of type PathPrefix, or none, which is the prefix `/`
    "#]],
    );
}

#[test]
fn what_a_filter_or_stickiness_does_in_vain_is_said() {
    check::<RouteRule>(
        rule(json!({
            "matches": [{"method": "GET"}, {"method": "POST"}],
            "stickiness": {"on": {"cookie": {"name": "arm", "ttl": "0s"}}},
            "filters": [{"type": "CORS", "cors": {
                "allowMethods": ["PUT", "*"], "exposeHeaders": ["*"], "allowCredentials": true,
            }}],
        })),
        expect![[r#"
            Error Invalid spec.filters[0].cors.allowMethods: `*` is all there is: it stands alone
            Warning Suspicious spec.filters[0].cors.allowOrigins: is empty, so no origin may ask
            Warning Suspicious spec.filters[0].cors.exposeHeaders: with allowCredentials browsers take `*` for a field of that name: name the fields
            Warning Suspicious spec.filters[0].cors: browsers ask with OPTIONS first, and no match of the rule takes that: give one that does
            Error Invalid spec.stickiness.on.cookie.ttl: a cookie that lives for 0s is gone at once; leave the field out for the browser's session
            Warning Suspicious spec.stickiness: there are no two destinations that a user could be kept in one of
        "#]],
    );
    check::<RouteRule>(
        answer(json!([{"type": "RequestRedirect", "requestRedirect": {}}])),
        expect![[r#"
        Warning Suspicious spec.filters[0].requestRedirect: it leads to where the request already is: give a scheme, hostname, port or path
    "#]],
    );
}

#[test]
fn a_bare_on_is_explained() {
    let (_, findings) = parse::<RouteRule>(
        &json!({"metadata": {"name": "x"}, "spec": rule(json!({"stickiness": {"true": {"header": "x-user"}}}))}),
    );
    let said: Vec<_> = findings.iter().map(|f| format!("{}: {}", f.field, f.message)).collect();
    assert!(
        said.iter().any(|line| line
            == "spec.stickiness.true: no such field; to YAML a bare `on` is the value true: write \"on\", in quotes"),
        "{said:?}"
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
            Error Invalid spec.targetRefs: spec.targetRefs[2] is the same target as spec.targetRefs[0]
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
            Error Invalid spec.destinations[0].subset: "-x" is not a label's key: its name has 1 to 63 letters, digits, `-`, `_` and `.`
        "#]],
    );
}

#[test]
fn what_policies_may_ask_for_is_taken_and_what_is_likely_a_mistake_is_said() {
    check::<CircuitPolicy>(
        circuit(json!({
            "slowCalls": {"duration": "2s", "rateThreshold": "80%"}, "healthCheck": {"tcp": {}}, "limits": {},
            "override": "ForceOpen", "maxEjectionPercent": "100%",
        })),
        expect![""],
    );
    check::<CircuitPolicy>(circuit(json!({})), expect![[""]]);
    check::<RouteRule>(rule(json!({"serviceNamespace": "default"})), expect![[""]]);
    check::<RetryPolicy>(
        json!({"hedge": {"after": "100ms"}, "methods": ["GET", "POST"]}),
        expect![[r#"
            Warning Suspicious spec.methods[1]: a POST that is sent twice may act twice; retry it only where instances expect that
        "#]],
    );
    check::<RetryPolicy>(
        json!({"hedge": {"after": "100ms", "max": 3}, "maxRetries": 2}),
        expect![[r#"
            Warning Suspicious spec.hedge.max: a try beside another is a retry, and there are at most 2 of those (spec.maxRetries)
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
    let paths = ["/a//b", "/a/./b", "/a/%2e%2E", "/..", r"/a\b", "/%", "/%4", "/%zz", "/a%00"];
    let odd = |value: &str| json!({"path": {"type": "Exact", "value": value}});
    let paths = paths.map(odd);
    let (_, findings) =
        parse::<RouteRule>(&json!({"metadata": {"name": "x"}, "spec": rule(json!({"matches": paths}))}));
    assert_eq!(findings.len(), paths.len(), "{findings:#?}");
    assert!(findings.iter().all(|f| f.is_error() && f.message.contains("no request has such a path")));
    let fine = ["/%61/%2f/a..b/.c/%20/é", "/.../", "/a%2E"].map(odd);
    check::<RouteRule>(rule(json!({"matches": fine})), expect![[""]]);
    check::<RouteRule>(
        rule(json!({"serviceNamespace": "b", "matches": [
            {"source": {"namespace": "default"}}, {"source": {"labels": {"a": "b"}}}, {"source": {"namespace": "c"}},
        ]})),
        expect![[r#"
            Warning Suspicious spec.matches[2].source.namespace: no caller is of namespace c and of default: a rule for a Service of another namespace is for callers of its own
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
