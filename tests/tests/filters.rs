//! Filters: what each does to a real request on its way to a real instance, and to the reply on its way back, on HTTP/1.1 and on HTTP/2.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use switchyard_tests::backend::{Backend, Seen};
use switchyard_tests::chance::binomial_bound;
use switchyard_tests::client::{Body, Connection, Reply, empty, full, get_request, request};
use switchyard_tests::grpc::{self, EchoBackend, word};
use switchyard_tests::load::ask_times;
use switchyard_tests::manifests::{HOST, Manifests, retry, rule, service};
use switchyard_tests::process::Switchyard;
use switchyard_tests::raw::Wire;
use switchyard_tests::wait_for;

/// An instance behind an agent with some rules, and a caller. All speak HTTP/1.1, or all HTTP/2.
struct Setup {
    instance: Backend,
    /// An instance of the Service `shadow`.
    shadow: Backend,
    manifests: Manifests,
    switchyard: Switchyard,
    caller: Connection,
}

impl Setup {
    async fn new(http2: bool, rules: &str) -> Self {
        let (instance, shadow) = (Backend::start("v1").await, Backend::start("shadow").await);
        let protocol = if http2 { "kubernetes.io/h2c" } else { "http" };
        let manifests = Manifests::default();
        manifests.write("service.yaml", &service("my-service", protocol, &[("v1", instance.address)]));
        manifests.write("shadow.yaml", &service("shadow", protocol, &[("shadow", shadow.address)]));
        manifests.write("rules.yaml", rules);
        let switchyard = Switchyard::run_with(manifests.path(), &["--workers", "1"]).await;
        let caller = if http2 {
            Connection::http2(switchyard.http).await.unwrap()
        } else {
            Connection::http1(switchyard.http).await.unwrap()
        };
        Self { instance, shadow, manifests, switchyard, caller }
    }

    async fn ask(&mut self, request: Request<Body>) -> Reply {
        self.caller.ask(request).await.unwrap()
    }

    /// The one request that the instance saw.
    fn seen(&self) -> Seen {
        let [seen] = &self.instance.seen()[..] else { panic!("{:?}", self.instance.seen()) };
        seen.clone()
    }
}

fn with(mut request: Request<Body>, fields: &[(&'static str, &str)]) -> Request<Body> {
    for (name, value) in fields {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    request
}

/// Path and host of a target, which on HTTP/2 has both.
fn target(seen: &Seen) -> (String, String) {
    let uri: http::Uri = seen.target.parse().unwrap();
    let host = uri.authority().map(ToString::to_string);
    let field = || seen.headers["host"].to_str().unwrap().to_owned();
    (uri.path_and_query().unwrap().to_string(), host.unwrap_or_else(field))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn header_fields_are_set_added_and_removed_on_both_ways_by_rule_and_by_destination() {
    let rules = rule(
        "modifies",
        "  destinations:
  - service: my-service
    filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-arm, value: of-destination}]}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x-reply, value: of-destination}]}}
  filters:
  - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: new}], add: [{name: x-add, value: more}], remove: [X-Gone]}}
  - {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x-reply, value: of-rule}], remove: [X-Version]}}
",
    );
    for http2 in [false, true] {
        let mut setup = Setup::new(http2, &rules).await;
        let fields =
            [("x-set", "old"), ("x-set", "older"), ("x-add", "one"), ("x-gone", "1"), ("x-request-id", "mine")];
        let reply = setup.ask(with(get_request(HOST, "/"), &fields)).await;
        let seen = setup.seen();
        let values =
            |name: &str| seen.headers.get_all(name).iter().map(|v| v.to_str().unwrap().to_owned()).collect::<Vec<_>>();
        assert_eq!(values("x-set"), ["new"], "HTTP/2: {http2}");
        assert_eq!(values("x-add"), ["one", "more"]);
        assert_eq!(
            (values("x-gone").len(), values("x-arm"), values("x-request-id")),
            (0, vec!["of-destination".into()], vec!["mine".into()])
        );
        assert_eq!(reply.version(), "", "the instance's field is gone");
        let replied: Vec<_> = reply.headers.get_all("x-reply").iter().collect();
        assert_eq!(replied, ["of-destination", "of-rule"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_sees_the_rewritten_host_and_path_in_every_try() {
    let rules = rule(
        "rewrites",
        "  matches: [{path: {value: /old/}}]
  destinations: [{service: my-service}]
  filters:
  - {type: URLRewrite, urlRewrite: {hostname: other.example.org, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}
",
    ) + "---\n"
        + &retry("");
    for http2 in [false, true] {
        let mut setup = Setup::new(http2, &rules).await;
        setup.instance.fail_next(1);
        let reply = setup.ask(get_request(HOST, "/old/x/?q=/old")).await;
        assert_eq!(reply.status, 200);
        let seen = setup.instance.seen();
        assert_eq!(seen.len(), 2, "the first try failed");
        for seen in seen {
            assert_eq!(target(&seen), ("/new/x/?q=/old".into(), "other.example.org".into()), "HTTP/2: {http2}");
        }
        setup.ask(get_request(HOST, "/older")).await;
        let last = setup.instance.seen().pop().unwrap();
        assert_eq!(target(&last), ("/older".into(), HOST.into()), "it is no request of the rule");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_and_a_fixed_reply_need_no_destination_and_no_instance() {
    let redirect = rule(
        "moved",
        "  matches: [{path: {value: /old}}]
  filters:
  - type: RequestRedirect
    requestRedirect: {scheme: https, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}, statusCode: 308}
  - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: strict-transport-security, value: max-age=1}]}}
",
    );
    let closed = rule(
        "closed",
        "  matches: [{path: {value: /closed}}]
  filters: [{type: DirectResponse, directResponse: {status: 410, headers: [{name: x-a, value: b}], body: \"gone\\n\"}}]
",
    );
    for http2 in [false, true] {
        let mut setup = Setup::new(http2, &[redirect.as_str(), &closed].join("---\n")).await;
        let reply = setup.ask(get_request("my-service.shop:8080", "/old/x?y=1")).await;
        assert_eq!((reply.status.as_u16(), reply.header("location")), (308, "https://my-service.shop/new/x?y=1"));
        assert_eq!((reply.reason(), reply.header("strict-transport-security")), ("redirect", "max-age=1"));
        let reply = setup.ask(get_request(HOST, "/closed/now")).await;
        assert_eq!((reply.status.as_u16(), reply.text().as_str(), reply.header("x-a")), (410, "gone\n", "b"));
        assert_eq!((reply.reason(), reply.header("content-type")), ("direct-response", "text/plain; charset=utf-8"));
        let reply = setup.ask(request(Method::HEAD, HOST, "/closed", empty())).await;
        assert_eq!((reply.status.as_u16(), reply.body.len(), reply.header("content-length")), (410, 0, "5"));
        // Nothing of a body need be read to answer.
        let reply = setup.ask(request(Method::POST, HOST, "/closed", full("x".repeat(1000)))).await;
        assert_eq!(reply.status, 410);
        assert_eq!(setup.instance.asked(), 0);
        let counted =
            async |labels: &[(&str, &str)]| setup.switchyard.metric("switchyard_requests_total", labels).await;
        assert_eq!(counted(&[("rule", "shop/moved"), ("destination", ""), ("class", "3xx")]).await, 1.0);
        assert_eq!(counted(&[("rule", "shop/closed"), ("class", "4xx")]).await, 3.0);
        let answered = setup.switchyard.metric("switchyard_refusals_total", &[("reason", "direct-response")]).await;
        assert_eq!(answered, 3.0);
    }
}

const TIMES: u64 = 1000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_requests_a_fault_aborts_and_holds_up_the_shares_that_it_says() {
    let rules = rule(
        "faulty",
        "  matches: [{path: {value: /abort}}]
  destinations: [{service: my-service}]
  filters: [{type: Fault, fault: {abort: {status: 418, percent: \"20%\"}}}]
",
    ) + "---\n"
        // What is held up is over its time; nothing else takes that long.
        + &rule(
            "slow",
            "  matches: [{path: {value: /delay}}]
  destinations: [{service: my-service}]
  timeouts: {request: 3s}
  filters: [{type: Fault, fault: {delay: {duration: 1h, percent: \"30%\"}}}]
",
        );
    let setup = Setup::new(false, &rules).await;
    let tally = ask_times(setup.switchyard.http, 8, TIMES as usize, || get_request(HOST, "/abort")).await;
    let of = |status: u16| tally.statuses.get(&status).copied().unwrap_or_default();
    assert!(tally.errors.is_empty() && of(200) + of(418) == TIMES, "{tally:?}");
    assert!(binomial_bound(TIMES, 0.2, 0.999_999).contains(&of(418)), "{tally:?}");
    assert_eq!(setup.instance.asked(), of(200), "what is aborted reaches nobody");

    let tally = ask_times(setup.switchyard.http, 100, TIMES as usize, || get_request(HOST, "/delay")).await;
    let of = |status: u16| tally.statuses.get(&status).copied().unwrap_or_default();
    assert!(tally.errors.is_empty() && of(200) + of(504) == TIMES, "{tally:?}");
    assert!(binomial_bound(TIMES, 0.3, 0.999_999).contains(&of(504)), "{tally:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aborted_grpc_call_gets_a_grpc_status_and_others_are_none_the_wiser() {
    let instance = EchoBackend::start("v1").await;
    let manifests = Manifests::default();
    manifests.write("service.yaml", &service("my-service", "grpc", &[("v1", instance.address)]));
    let rules = rule(
        "faulty",
        "  matches: [{headers: [{name: x-fault, value: yes}]}]
  filters: [{type: Fault, fault: {delay: {duration: 10ms}, abort: {status: 503}}}]
"
        .replace("yes", "\"yes\"")
        .as_str(),
    );
    manifests.write("rules.yaml", &rules);
    let switchyard = Switchyard::run(manifests.path()).await;
    let mut client = grpc::client(switchyard.http).await;
    let mut faulty = tonic::Request::new(word("hello"));
    faulty.metadata_mut().insert("x-fault", "yes".parse().unwrap());
    let status = client.once(faulty).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (tonic::Code::Unavailable, "fault"));
    assert_eq!(client.once(word("hello")).await.unwrap().into_inner().text, "hello");
    assert_eq!(instance.calls(), 1);
}

fn mirror(more: &str) -> String {
    rule(
        "mirrors",
        &format!(
            "  destinations:
  - service: my-service
    filters:
    - {{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-arm, value: b}}]}}}}
  filters:
  - {{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-a, value: b}}]}}}}
  - {{type: URLRewrite, urlRewrite: {{path: {{type: ReplacePrefixMatch, replacePrefixMatch: /new}}}}}}
  - {{type: RequestMirror, requestMirror: {{service: shadow, version: shadow{more}}}}}
"
        ),
    )
}

/// How many copies have ended so.
async fn copies(setup: &Setup, outcome: &str) -> f64 {
    setup
        .switchyard
        .metric("switchyard_mirrored_requests_total", &[("rule", "shop/mirrors"), ("outcome", outcome)])
        .await
}

async fn copies_are(setup: &Setup, outcome: &str, count: f64) {
    wait_for(&format!("{count} copies are {outcome}"), async || copies(setup, outcome).await == count).await;
}

/// A body that comes in pieces, of a length that nobody is told.
fn in_pieces(pieces: usize, of: usize) -> Body {
    let piece = move |_| Ok(Frame::data(Bytes::from("x".repeat(of))));
    StreamBody::new(tokio_stream::iter((0..pieces).map(piece))).boxed_unsync()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_what_the_instance_gets_after_the_filters_and_its_reply_is_nobodys() {
    for http2 in [false, true] {
        let mut setup = Setup::new(http2, &(mirror("") + "---\n" + &retry(""))).await;
        setup.shadow.fail();
        setup.instance.fail_next(1);
        let reply = setup.ask(with(get_request(HOST, "/x?y"), &[("x-request-id", "one")])).await;
        assert_eq!(
            (reply.status.as_u16(), reply.version()),
            (200, "v1"),
            "a retry is not copied, nor does the copy matter"
        );
        for (path, body) in [("/whole", full("hello")), ("/pieces", in_pieces(3, 2)), ("/most", in_pieces(8, 8192))] {
            let reply = setup.ask(with(request(Method::PUT, HOST, path, body), &[("x-request-id", "more")])).await;
            assert_eq!(reply.status, 200);
        }
        copies_are(&setup, "answered", 4.0).await;
        let mut seen = setup.shadow.seen();
        seen.sort_by_key(|seen| target(seen).0);
        let got: Vec<_> = seen.iter().map(|seen| (seen.method.as_str(), target(seen).0, seen.body.len())).collect();
        let expected =
            [("PUT", "/new/most", 65536), ("PUT", "/new/pieces", 6), ("PUT", "/new/whole", 5), ("GET", "/new/x?y", 0)];
        assert_eq!(got, expected.map(|(method, path, length)| (method, path.to_owned(), length)), "HTTP/2: {http2}");
        for copy in &seen {
            assert_eq!(target(copy).1, HOST, "Host is the caller's");
            assert_eq!((&copy.headers["x-a"], copy.headers.get("x-arm")), (&"b".parse().unwrap(), None));
            assert!(!copy.headers.contains_key("x-switchyard-attempt"));
        }
        assert_eq!(seen[3].headers["x-request-id"], "one");
        assert_eq!(setup.instance.asked(), 5);
        let requests = setup.switchyard.metric("switchyard_requests_total", &[]).await;
        assert_eq!(requests, 4.0, "copies are counted by themselves");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_too_long_or_breaks_off_is_not_copied_and_counted() {
    for http2 in [false, true] {
        let mut setup = Setup::new(http2, &mirror("")).await;
        let reply = setup.ask(request(Method::POST, HOST, "/", in_pieces(9, 8192))).await;
        assert_eq!((reply.status.as_u16(), setup.seen().body.len()), (200, 9 * 8192), "the request itself is whole");
        copies_are(&setup, "body", 1.0).await;
        let mut broken = Wire::connect(setup.switchyard.http).await;
        broken.send(format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 10\r\n\r\nbegin")).await;
        broken.end().await;
        broken.rest().await;
        copies_are(&setup, "body", 2.0).await;
        assert_eq!(setup.shadow.asked(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_that_never_answers_delays_nobody_and_holds_no_more_than_its_bound() {
    const MOST: u64 = 256;
    let setup = Setup::new(false, &mirror("")).await;
    setup.shadow.delay(Duration::from_secs(3600));
    let tally = ask_times(setup.switchyard.http, 8, 400, || get_request(HOST, "/")).await;
    tally.all_good();
    assert_eq!(tally.good(), 400);
    wait_for("the mirror is asked", async || setup.shadow.asked() > 0).await;
    wait_for("further copies are left out", async || copies(&setup, "too-many").await > 0.0).await;
    assert_eq!(copies(&setup, "answered").await, 0.0);
    assert!(setup.shadow.asked() as f64 + copies(&setup, "too-many").await <= 400.0);
    // What is given up after its time makes room.
    wait_for("copies are given up", async || copies(&setup, "failed").await >= MOST as f64).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_that_is_not_there_fails_nobody_and_its_share_is_kept() {
    let mut setup = Setup::new(false, &mirror(", percent: \"0%\"")).await;
    assert_eq!(setup.ask(get_request(HOST, "/")).await.status, 200);
    setup.manifests.write("rules.yaml", &mirror(""));
    wait_for("all are copied", async || {
        setup.switchyard.config().await.to_string().contains("RequestMirror: 100% to shop/shadow version shadow")
    })
    .await;
    assert_eq!(setup.shadow.asked(), 0, "nothing was copied at 0%");
    setup.shadow.kill();
    assert_eq!(setup.ask(get_request(HOST, "/")).await.status, 200);
    copies_are(&setup, "failed", 1.0).await;
    setup.manifests.write("shadow.yaml", &service("shadow", "http", &[]));
    wait_for("the mirror has no instance", async || {
        let config = setup.switchyard.config().await;
        let shadow = config["services"].as_array().unwrap().iter().find(|s| s["service"] == "shop/shadow").unwrap();
        shadow["default"][0]["instances"][0].as_array().unwrap().is_empty()
    })
    .await;
    assert_eq!(setup.ask(get_request(HOST, "/")).await.status, 200);
    copies_are(&setup, "no-instance", 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preflight_is_answered_and_what_follows_says_who_may_read_it() {
    let rules = rule(
        "shared",
        "  destinations: [{service: my-service, version: v1}]
  whenUnavailable: Fail
  filters:
  - type: CORS
    cors:
      allowOrigins: [\"https://*.example.org\"]
      allowMethods: [PUT, DELETE]
      allowHeaders: [x-a]
      exposeHeaders: [x-version]
      allowCredentials: true
      maxAge: 10m
",
    );
    let origin = "https://web.example.org";
    let preflight = |origin: &str| {
        let fields =
            [("origin", origin), ("access-control-request-method", "PUT"), ("access-control-request-headers", "x-a")];
        with(request(Method::OPTIONS, HOST, "/x", empty()), &fields)
    };
    for http2 in [false, true] {
        let mut setup = Setup::new(http2, &rules).await;
        let reply = setup.ask(preflight(origin)).await;
        assert_eq!((reply.status.as_u16(), reply.reason(), reply.body.len()), (204, "cors-preflight", 0));
        for (name, value) in [
            ("access-control-allow-origin", origin),
            ("access-control-allow-methods", "PUT, DELETE"),
            ("access-control-allow-headers", "x-a"),
            ("access-control-allow-credentials", "true"),
            ("access-control-max-age", "600"),
            ("vary", "origin"),
        ] {
            assert_eq!(reply.header(name), value, "{name}");
        }
        let reply = setup.ask(preflight("https://evil.org")).await;
        assert_eq!((reply.status.as_u16(), reply.header("access-control-allow-origin")), (204, ""));
        assert_eq!(setup.instance.asked(), 0, "no instance hears of preflights");

        for (from, may) in [(origin, origin), ("https://evil.org", "")] {
            let reply = setup.ask(with(request(Method::PUT, HOST, "/x", empty()), &[("origin", from)])).await;
            assert_eq!((reply.status.as_u16(), reply.header("access-control-allow-origin")), (200, may));
            assert_eq!(reply.header("access-control-expose-headers"), if may.is_empty() { "" } else { "x-version" });
            assert_eq!(reply.header("vary"), "origin");
        }
        let plain = setup.ask(request(Method::OPTIONS, HOST, "/x", empty())).await;
        assert_eq!(
            (plain.status.as_u16(), plain.version()),
            (200, "v1"),
            "an OPTIONS that is no preflight is the instance's"
        );

        // A page can read why it failed, too.
        setup.manifests.write("rules.yaml", &rules.replace("version: v1", "version: v9"));
        wait_for("no instance is left", async || {
            setup.switchyard.config().await.to_string().contains("\"version\":\"v9\"")
        })
        .await;
        let reply = setup.ask(with(get_request(HOST, "/x"), &[("origin", origin)])).await;
        assert_eq!((reply.status.as_u16(), reply.reason()), (503, "no-instances"));
        assert_eq!(reply.header("access-control-allow-origin"), origin);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_held_up_counts_and_a_caller_that_leaves_meanwhile_reaches_nobody() {
    let rules = rule(
        "slow",
        "  destinations: [{service: my-service}]
  filters: [{type: Fault, fault: {delay: {duration: 1h}}}]
",
    );
    let mut setup = Setup::new(true, &rules).await;
    // As long as its caller waits, and no longer.
    let reply = setup.ask(with(get_request(HOST, "/"), &[("x-request-timeout", "50ms")])).await;
    assert_eq!((reply.status.as_u16(), reply.reason()), (504, "upstream-timeout"));
    let gone = tokio::time::timeout(Duration::from_millis(50), setup.caller.send(get_request(HOST, "/"))).await;
    assert!(gone.is_err(), "nobody answers for an hour");
    let cancelled = [("rule", "shop/slow"), ("class", "cancelled")];
    wait_for("it is counted as its caller's", async || {
        setup.switchyard.metric("switchyard_requests_total", &cancelled).await == 1.0
    })
    .await;
    assert_eq!(setup.instance.asked(), 0);
}
