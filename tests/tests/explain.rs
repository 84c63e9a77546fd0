//! `switchyard explain`: what it says must be what happens.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use http::Request;
use serde_json::{Value, json};
use switchyard_tests::backend::Backend;
use switchyard_tests::client::{self, empty};
use switchyard_tests::manifests::{Manifests, canary, circuit, retry, rule};
use switchyard_tests::process::{Switchyard, example, output};
use switchyard_tests::{binary, wait_for};

fn explain(args: &[&str]) -> (i32, String) {
    explain_in(&example("canary"), args)
}

fn explain_in(folder: &Path, args: &[&str]) -> (i32, String) {
    let done = output("switchyard", &[&["explain", "--manifests", folder.to_str().unwrap()], args].concat());
    let said = [done.stdout, done.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (done.status.code().unwrap(), said)
}

fn as_json(args: &[&str]) -> Value {
    let (status, said) = explain(&[args, &["--output", "json"]].concat());
    assert_eq!(status, 0, "{said}");
    serde_json::from_str(&said).unwrap()
}

#[test]
fn the_rule_that_matches_and_where_it_leads() {
    let json = as_json(&["-H", "x-version: v2", "http://my-service.shop/cart"]);
    assert_eq!(json["service"], "shop/my-service");
    assert_eq!(json["rule"], "shop/canary-deployment");
    let destinations: Vec<_> = json["destinations"].as_array().unwrap().iter().collect();
    let weights: Vec<_> =
        destinations.iter().map(|d| (d["version"].as_str().unwrap(), d["weight"].as_u64().unwrap())).collect();
    assert_eq!(weights, [("v2", 20), ("v1", 80)]);
    assert!(destinations[0].to_string().contains("127.0.0.1:9002"), "its instances: {}", destinations[0]);
}

#[test]
fn a_rule_that_does_not_match_and_why() {
    let json = as_json(&["-H", "x-version: v1", "http://my-service.shop/cart"]);
    assert_eq!(json["rule"], Value::Null);
    let considered = &json["considered"][0];
    assert_eq!((&considered["rule"], &considered["matched"]), (&"shop/canary-deployment".into(), &false.into()));
    let why = considered["why"].as_str().unwrap();
    assert!(why.contains("x-version"), "{why}");
    let (status, said) = explain(&["http://my-service.shop/cart"]);
    assert_eq!(status, 0);
    assert!(said.contains("canary-deployment") && said.contains("x-version"), "{said}");
}

#[test]
fn a_host_that_names_no_service_is_said_to() {
    let (status, said) = explain(&["http://nobody.shop/"]);
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("nobody"), "{said}");
}

fn with_v1(rules: &str) -> Manifests {
    let manifests = Manifests::of(&[("v1", SocketAddr::from(([127, 0, 0, 1], 9001)))]);
    manifests.write("rules.yaml", rules);
    manifests
}

const ANY: &str = "  destinations: [{service: my-service}]\n";

#[test]
fn when_a_request_is_sent_to_another_instance_as_well_is_said() {
    let manifests = with_v1("");
    manifests.write("retry.yaml", &retry("  hedge: {after: 150ms}\n"));
    let said = |more: &[&str]| explain_in(manifests.path(), &[more, &["http://my-service.shop/"]].concat()).1;
    let line = "up to 3 retries, Exponential; with no answer after 150 ms another instance is asked as well";
    assert!(said(&[]).contains(line), "{}", said(&[]));
    let post = said(&["-X", "POST"]);
    assert!(post.contains("not with this method") && !post.contains("150 ms"), "{post}");
}

#[test]
fn the_host_is_a_header_field_as_in_traffic() {
    let manifests = with_v1(&rule(
        "by-host",
        &format!("  matches: [{{headers: [{{name: host, value: my-service.shop}}]}}]\n{ANY}"),
    ));
    let matched = |args: &[&str]| explain_in(manifests.path(), args).1.contains("yes shop/by-host");
    assert!(matched(&["http://my-service.shop/"]) && matched(&["my-service.shop:80/x"]));
    assert!(matched(&["-H", "Host: my-service.shop", "http://127.0.0.1:15001/"]));
    assert!(!matched(&["http://my-service.shop.svc/"]));
}

#[test]
fn what_would_be_answered_503_is_not_routed() {
    let manifests = with_v1(&canary(20, 80));
    let asked =
        |args: &[&str]| explain_in(manifests.path(), &[args, &["-H", "x-version: v2", "my-service.shop"]].concat());
    assert!(asked(&[]).1.contains("version v1: weight 80, 100% of requests"), "{}", asked(&[]).1);

    let fail = format!("{}  whenUnavailable: Fail\n", canary(20, 80).trim_end().to_owned() + "\n");
    manifests.write("rules.yaml", &fail);
    let (status, said) = asked(&[]);
    let detail =
        "20% of requests would be answered 503 no-instances: shop/my-service has no ready instance of version v2";
    assert!(status == 0 && said.contains(detail), "{said}");
    let json: Value = serde_json::from_str(&asked(&["--output", "json"]).1).unwrap();
    assert_eq!(json["refused"]["percent"], 20.0);
    let percents = |json: &Value| {
        json["destinations"].as_array().unwrap().iter().map(|d| d["percent"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(percents(&json), [0.0, 80.0]);

    // What has instances and no weight takes nothing over.
    manifests.write("rules.yaml", &canary(1, 0));
    assert_eq!(asked(&[]).0, 1, "{}", asked(&[]).1);
    manifests.write("rules.yaml", &fail.replace("version: v1", "version: v3"));
    let (status, said) = asked(&[]);
    assert!(status == 1 && said.contains("\nwould be answered 503 no-instances: "), "{said}");
    manifests.write("rules.yaml", &canary(20, 80).replace("version: v1", "version: v3"));
    let (status, said) = asked(&[]);
    let detail = "would be answered 503 no-instances: no destination of shop/canary-deployment has a ready instance";
    assert!(status == 1 && said.contains(detail), "{said}");
}

/// Rule, entry, whether it matched, and why, of each entry that was considered.
fn considered(folder: &Path, args: &[&str]) -> Vec<(String, Option<u64>, bool, String)> {
    let (status, said) = explain_in(folder, &[args, &["--output", "json", "my-service.shop"]].concat());
    assert_eq!(status, 0, "{said}");
    // Notes may follow it.
    let json: Value = serde_json::Deserializer::from_str(&said).into_iter().next().unwrap().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let all = json["considered"].as_array().unwrap().iter();
    all.map(|c| (text(&c["rule"]), c["entry"].as_u64(), c["matched"].as_bool().unwrap(), text(&c["why"]))).collect()
}

fn seen(considered: &[(String, Option<u64>, bool, String)]) -> Vec<(&str, Option<u64>, bool, &str)> {
    considered.iter().map(|(rule, entry, matched, why)| (rule.as_str(), *entry, *matched, why.as_str())).collect()
}

#[test]
fn each_condition_that_fails_is_named() {
    let asks = "  matches:
  - cookies: [{name: cohort, value: b}]
  - grpc: {service: shop.Cart, method: AddItem}
  - {path: {type: Exact, value: /}, source: {namespace: web}}
  - {path: {type: Exact, value: /}, method: GET, source: {serviceAccount: front, labels: {app: web}}}
";
    let manifests = with_v1(&rule("asks", &format!("{asks}{ANY}")));
    let pod = "
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: other, labels: {app: api}}
spec: {serviceAccountName: front, containers: []}
";
    manifests.write("pod.yaml", pod);
    assert_eq!(
        seen(&considered(manifests.path(), &[])),
        [
            (
                "shop/asks",
                Some(3),
                false,
                "who calls is not known, and it is for callers of service account front, label app = web"
            ),
            ("shop/asks", Some(1), false, "it is not a gRPC call of shop.Cart/AddItem"),
            ("shop/asks", Some(2), false, "who calls is not known, and it is for callers of namespace web"),
            ("shop/asks", Some(0), false, "cookie cohort is not b"),
        ]
    );
    assert_eq!(
        seen(&considered(manifests.path(), &["--from", "other/p", "-H", "Cookie: a=1; cohort=b"])),
        [
            ("shop/asks", Some(3), false, "the caller's label app is not web"),
            ("shop/asks", Some(1), false, "it is not a gRPC call of shop.Cart/AddItem"),
            ("shop/asks", Some(2), false, "the caller is not of namespace web"),
            ("shop/asks", Some(0), true, "cookie cohort = b"),
        ]
    );
    assert_eq!(
        considered(manifests.path(), &["--from", "web"])[2].3,
        "path /, a caller of namespace web",
        "any caller of a namespace"
    );
    let (status, said) = explain_in(manifests.path(), &["--from", "web/nobody", "my-service.shop"]);
    assert!(status == 2 && said.contains("--from web/nobody: there is no such Pod"), "{said}");
}

#[test]
fn a_rule_of_a_consumer_is_for_its_own_callers_and_what_is_left_out_is_named() {
    let matches = "  matches: [{source: {namespace: other}}, {path: {value: /}}]\n";
    let to_shop = "  destinations: [{service: my-service, namespace: shop}]\n";
    let consumer = rule("of-a-consumer", &format!("  serviceNamespace: shop\n{matches}{to_shop}"));
    let manifests = with_v1(&consumer.replacen("namespace: shop}", "namespace: web}", 1));
    for (from, matched, why) in
        [("web", true, "a caller of namespace web"), ("shop", false, "the caller is not of namespace web")]
    {
        assert_eq!(
            seen(&considered(manifests.path(), &["--from", from])),
            [("web/of-a-consumer", Some(1), matched, why)]
        );
    }
    let (_, said) = explain_in(manifests.path(), &["http://my-service.shop/"]);
    let left_out = "web/of-a-consumer matches[0] is left out: no caller is of namespace other and of web: a rule for a Service of \
                    another namespace is for callers of its own";
    assert!(said.contains(left_out), "{said}");
}

#[test]
fn what_no_rule_is_asked_about_is_refused_as_in_traffic() {
    let (status, said) = explain(&["-X", "CONNECT", "http://my-service.shop/"]);
    assert!(status == 1 && said.contains("501 not-supported"), "{said}");
    let (status, said) = explain(&["-H", "transfer-encoding: gzip", "http://my-service.shop/"]);
    assert!(status == 1 && said.contains("501 not-supported"), "{said}");
    let (_, said) = explain(&["--output", "json", "http://nobody.shop/"]);
    let json: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (&json["service"], &json["rule"], &json["refused"]["reason"]),
        (&Value::Null, &Value::Null, &"no-route".into())
    );
    assert_eq!((&json["considered"], &json["destinations"]), (&json!([]), &json!([])), "always there");
}

#[test]
fn the_default_service_takes_what_names_none() {
    assert_eq!(explain(&["http://nobody.shop/"]).0, 1);
    let (status, said) = explain(&["--default-service", "shop/my-service", "http://nobody.shop/"]);
    assert!(status == 0 && said.contains("service  shop/my-service"), "{said}");
    let (status, said) = explain(&["--default-service", "shop/nosuch", "http://nobody.shop/"]);
    assert!(status == 1 && said.contains("shop/nosuch: there is no such Service"), "{said}");
}

#[test]
fn a_reader_that_has_gone_is_no_error_and_a_full_disk_is_one() {
    let explain = || {
        let mut command = Command::new(binary("switchyard"));
        command.arg("explain").arg("--manifests").arg(example("canary")).arg("my-service.shop");
        command.stderr(Stdio::piped());
        command
    };
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let done = explain().stdout(writer).output().unwrap();
    assert_eq!((done.status.code(), String::from_utf8_lossy(&done.stderr).as_ref()), (Some(0), ""));
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let done = explain().stdout(full).output().unwrap();
    assert_eq!(done.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&done.stderr).starts_with("error: standard output: "));
}

#[test]
fn what_a_rule_does_besides_and_what_it_answers_itself_is_said_with_its_share() {
    let split = "  destinations:
  - {service: my-service, version: v1, weight: 60}
  - {service: my-service, weight: 40, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-arm, value: b}]}}]}
  stickiness: {\"on\": {header: x-user}}
  filters:
  - {type: RequestMirror, requestMirror: {service: my-service, percent: \"10%\"}}
  - {type: Fault, fault: {delay: {duration: 2s, percent: \"5%\"}, abort: {status: 503, percent: \"20%\"}}}
";
    let redirect = "  matches: [{path: {value: /old}}]
  filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}]
";
    let manifests = with_v1(&[rule("split", split), rule("redirect", redirect)].join("---\n"));
    let asked = |args: &[&str]| {
        let (status, said) = explain_in(manifests.path(), &[args, &["--output", "json"]].concat());
        assert_eq!(status, 0, "{said}");
        serde_json::from_str::<Value>(&said).unwrap()
    };
    let json = asked(&["http://my-service.shop/"]);
    let percents = |json: &Value| {
        let destinations = json["destinations"].as_array().unwrap().iter();
        destinations.map(|to| to["percent"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(percents(&json), [48.0, 32.0], "of what is not aborted");
    assert_eq!(json["filters"][0], "Fault: 5% held up for 2s, 20% answered 503");
    assert_eq!(json["filters"][1], "RequestMirror: 10% to shop/my-service");
    assert_eq!(json["destinations"][1]["filters"][0], "RequestHeaderModifier: set x-arm: b");
    let first = |json: &Value| json["answers"][0].clone();
    assert_eq!((first(&json)["status"].as_u64(), first(&json)["percent"].as_f64()), (Some(503), Some(20.0)));
    assert_eq!(first(&json)["reason"], "fault");
    assert_eq!(json["stickiness"], serde_json::json!({"by": "header x-user", "known": false}));
    // Each user goes to one of them alone.
    let users = ["a", "b", "c", "d", "e", "f", "g", "h"].map(|user| {
        let json = asked(&["-H", &format!("x-user: {user}"), "http://my-service.shop/"]);
        assert_eq!(json["stickiness"]["known"], true);
        percents(&json)
    });
    assert!(users.iter().all(|shares| *shares == [80.0, 0.0] || *shares == [0.0, 80.0]), "{users:?}");

    let json = asked(&["http://my-service.shop/old/x?y=1"]);
    assert_eq!((first(&json)["status"].as_u64(), first(&json)["percent"].as_f64()), (Some(302), Some(100.0)));
    assert_eq!(first(&json)["detail"], "Location: http://my-service.shop/new/x?y=1");
    assert_eq!(json["refused"], Value::Null);
    let (status, said) = explain_in(manifests.path(), &["http://my-service.shop/old/"]);
    assert_eq!(status, 0, "it is answered as its rule says");
    assert!(said.contains("would be answered 302 redirect: Location: http://my-service.shop/new/"), "{said}");
    let (_, said) = explain_in(manifests.path(), &["http://my-service.shop/"]);
    assert!(said.contains("20% of requests would be answered 503 fault"), "{said}");
    assert!(said.contains("sticks   by header x-user"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_runs_gives_the_same_answer_and_tells_of_its_circuits() {
    let (v1, v2) = (Backend::start("v1").await, Backend::start("v2").await);
    let manifests = Manifests::canary(&[("v1", v1.address), ("v2", v2.address)], 20, 80);
    manifests.write("circuit.yaml", &circuit("  failureThreshold: 1\n"));
    let timed = rule(
        "timed",
        "  matches: [{path: {value: /timed}}]\n  destinations: [{service: my-service, version: v2}]\n  timeouts: {request: 5s, \
         backendRequest: 2s}\n  retryPolicy: timed\n",
    );
    manifests.write("timed.yaml", &timed);
    let policy = "apiVersion: switchyard.dev/v1alpha1\nkind: RetryPolicy\nmetadata: {name: timed, namespace: shop}\nspec: {perTryTimeout: \
                  1s, timeout: 3s}\n";
    manifests.write("retry.yaml", policy);
    let switchyard = Switchyard::run(manifests.path()).await;
    let agent = switchyard.admin.to_string();
    let both = |request: &[&str]| {
        let request = [request, &["--output", "json"]].concat();
        let offline = explain_in(manifests.path(), &request);
        let done = output("switchyard", &[&["explain", "--agent", &agent], &request[..]].concat());
        let live = (done.status.code().unwrap(), String::from_utf8(done.stdout).unwrap());
        (offline, live)
    };
    for request in [
        &["-H", "x-version: v2", "http://my-service.shop/cart?a=b"][..],
        &["-X", "POST", "http://my-service.shop/"],
        &["--from", "web", "http://my-service.shop/"],
        &["http://nobody.shop/"],
        &["http://my-service.shop/timed"],
    ] {
        let (offline, live) = both(request);
        assert_eq!(live, offline, "{request:?}");
    }
    let ((_, said), _) = both(&["http://my-service.shop/timed"]);
    let json: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(json["timeouts"], json!({"requestMs": 5000, "backendRequestMs": 2000}));
    let retry = &json["destinations"][0]["retry"];
    assert_eq!((&retry["perTryTimeoutMs"], &retry["timeoutMs"]), (&json!(1000), &json!(3000)));

    v2.fail();
    wait_for("the circuit opens", async || {
        let ask = Request::get("/").header("host", "my-service.shop").header("x-version", "v2").body(empty()).unwrap();
        client::ask(switchyard.http, ask).await.unwrap();
        switchyard.circuit(v2.address).await.as_deref() == Some("open")
    })
    .await;
    let (_, (_, live)) = both(&["-H", "x-version: v2", "http://my-service.shop/"]);
    let live: Value = serde_json::from_str(&live).unwrap();
    assert_eq!(live["destinations"][0]["instances"][0]["circuit"], "open", "{live}");
    assert_eq!(
        (&live["refused"]["reason"], &live["refused"]["percent"]),
        (&json!("circuit-open"), &json!(20.0)),
        "{live}"
    );

    let wrong =
        output("switchyard", &["explain", "--agent", &agent, "--from", "web/nobody", "http://my-service.shop/"]);
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(wrong.status.code() == Some(2) && said.contains("web/nobody"), "{said}");
}
