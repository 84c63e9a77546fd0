//! Retries: what they hide, what they must not do, and their bounds. Their timing is tested in virtual time beside the code.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use http::Method;
use switchyard_tests::backend::Backend;
use switchyard_tests::client::{self, Reply, empty, full, get_request, request};
use switchyard_tests::grpc::{self, EchoBackend, word};
use switchyard_tests::load::{Load, ask_times};
use switchyard_tests::manifests::{HOST, Manifests, circuit, retry, service};
use switchyard_tests::process::Switchyard;
use switchyard_tests::raw::{RawServer, Wire};
use tonic::Code;

fn plain() -> http::Request<client::Body> {
    get_request(HOST, "/")
}

fn post() -> http::Request<client::Body> {
    request(Method::POST, HOST, "/order", full("one"))
}

async fn ask(switchyard: &Switchyard, request: http::Request<client::Body>) -> Reply {
    client::ask(switchyard.http, request).await.unwrap()
}

async fn with_policy(rest: &str, instances: &[&Backend]) -> (Manifests, Switchyard) {
    let addresses: Vec<_> = instances.iter().map(|instance| ("v1", instance.address)).collect();
    let manifests = Manifests::of(&addresses);
    manifests.write("retry.yaml", &retry(rest));
    let switchyard = Switchyard::run(manifests.path()).await;
    (manifests, switchyard)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_is_retried_and_every_try_says_its_number() {
    let instance = Backend::start("v1").await;
    let (_manifests, switchyard) = with_policy("", &[&instance]).await;
    instance.fail_next(2);
    assert_eq!(ask(&switchyard, plain()).await.status, 200);
    let attempts: Vec<_> =
        instance.seen().iter().map(|seen| seen.headers["x-switchyard-attempt"].to_str().unwrap().to_owned()).collect();
    assert_eq!(attempts, ["1", "2", "3"]);
    let labels = [("service", "shop/my-service"), ("reason", "server-error"), ("outcome", "success")];
    assert_eq!(switchyard.metric("switchyard_retries_total", &labels).await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_are_never_more_retries_than_allowed_and_the_last_answer_stands() {
    let instance = Backend::start("v1").await;
    let (manifests, switchyard) = with_policy("", &[&instance]).await;
    instance.fail();
    let reply = ask(&switchyard, plain()).await;
    assert_eq!((reply.status.as_u16(), instance.asked()), (500, 4), "one try and maxRetries more");
    assert_eq!(reply.version(), "v1", "it is the instance's own answer");
    // An agent on the way that retries already says so.
    let mut tried = plain();
    tried.headers_mut().insert("x-switchyard-attempt", "1".parse().unwrap());
    ask(&switchyard, tried).await;
    assert_eq!(instance.asked(), 5, "the bound of a call holds end to end");
    manifests.write("retry.yaml", &retry("  maxRetries: 0\n"));
    switchyard_tests::wait_for("retrying is off", async || {
        let asked = instance.asked();
        ask(&switchyard, plain()).await;
        instance.asked() == asked + 1
    })
    .await;
}

/// With nothing but the defaults: no circuit, a second before the first retry, a budget of a fifth.
async fn a_kill_is_not_noticed(http2: bool) {
    let (stays, mut goes) = (Backend::start("v1").await, Backend::start("v1").await);
    let instances = [("v1", stays.address), ("v1", goes.address)];
    let manifests = if http2 { Manifests::of_http2(&instances) } else { Manifests::of(&instances) };
    manifests.write("retry.yaml", &retry("  initialDelay: 1s\n"));
    let switchyard = Switchyard::run(manifests.path()).await;
    let load = Load::start(switchyard.http, 16, plain);
    load.goes_on_for(200).await;
    goes.kill();
    load.goes_on_for(1000).await;
    goes.revive().await;
    load.goes_on_for(100).await;
    load.stop().await.all_good();

    // And as fast as it goes.
    let killed = async {
        let asked = goes.asked();
        switchyard_tests::wait_for("it is asked", async || goes.asked() > asked + 100).await;
        goes.kill();
    };
    let (tally, ()) = tokio::join!(ask_times(switchyard.http, 32, 5000, plain), killed);
    tally.all_good();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_is_killed_under_load_is_not_noticed() {
    a_kill_is_not_noticed(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_of_http2_that_is_killed_under_load_is_not_noticed() {
    a_kill_is_not_noticed(true).await;
}

/// An instance that answers the first request on a connection and closes at the second, and what reached it.
fn closes_at_the_second() -> (RawServer, std::sync::Arc<std::sync::Mutex<Vec<String>>>) {
    let seen = std::sync::Arc::<std::sync::Mutex<Vec<String>>>::default();
    let noted = std::sync::Arc::clone(&seen);
    let server = RawServer::start(move |mut wire| {
        let noted = std::sync::Arc::clone(&noted);
        async move {
            for answered in [true, false] {
                let head = wire.reply().await;
                if head.is_empty() {
                    return;
                }
                let number = switchyard_tests::raw::field(&head, "x-switchyard-attempt").unwrap_or("-");
                let method = head.split(' ').next().unwrap();
                noted.lock().unwrap().push(format!("{method} {number}"));
                if answered {
                    wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                }
            }
        }
    });
    (server, seen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_had_been_closed_is_retried_as_the_policy_says_and_at_once() {
    let (instance, seen) = closes_at_the_second();
    let manifests = Manifests::of(&[("v1", instance.address)]);
    let one_worker = ["--workers", "1"];
    // A wait that the test would notice, if there were one.
    manifests
        .write("retry.yaml", &retry("  initialDelay: 300s\n  maxDelay: 300s\n  methods: [GET]\n  maxRetries: 1\n"));
    let switchyard = Switchyard::run_with(manifests.path(), &one_worker).await;
    let asked = async |method: Method, attempt: Option<&str>| {
        ask(&switchyard, plain()).await;
        seen.lock().unwrap().clear();
        let mut again = request(method, HOST, "/", empty());
        if let Some(attempt) = attempt {
            again.headers_mut().insert("x-switchyard-attempt", attempt.parse().unwrap());
        }
        let status = ask(&switchyard, again).await.status.as_u16();
        (status, seen.lock().unwrap().join(", "))
    };
    assert_eq!(asked(Method::GET, None).await, (200, "GET 1, GET 2".to_owned()));
    let labels = [("reason", "reset"), ("outcome", "success")];
    assert_eq!(switchyard.metric("switchyard_retries_total", &labels).await, 1.0);
    // What the try before left behind is used up first.
    ask(&switchyard, plain()).await;
    assert_eq!(asked(Method::DELETE, None).await, (502, "DELETE 1".to_owned()));
    assert_eq!(asked(Method::GET, Some("1")).await, (502, "GET 1".to_owned()));
    manifests.write("retry.yaml", &retry("  maxRetries: 0\n").replace("name: retry,", "name: none,"));
    switchyard_tests::wait_for("the other policy is in force", async || {
        switchyard.config().await.to_string().contains("shop/none")
    })
    .await;
    assert_eq!(asked(Method::GET, None).await, (502, "GET -".to_owned()));
    manifests.remove("retry.yaml");
    switchyard_tests::wait_for("no policy is in force", async || {
        !switchyard.config().await.to_string().contains("shop/none")
    })
    .await;
    assert_eq!(asked(Method::DELETE, None).await, (200, "DELETE -, DELETE -".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_for_a_version_holds_for_its_instances_also_where_no_rule_names_one() {
    let (v1, v2) = (Backend::start("v1").await, Backend::start("v2").await);
    let manifests = Manifests::of(&[("v1", v1.address), ("v2", v2.address)]);
    let policy = retry("  budget: {ratio: \"100%\", minPerSecond: 1000}\n");
    manifests.write("retry.yaml", &policy.replace("name: my-service}", "name: my-service, version: v2}"));
    let switchyard = Switchyard::run(manifests.path()).await;
    v2.fail();
    ask_times(switchyard.http, 4, 200, plain).await.all_good();
    assert!(v2.asked() > 0 && v1.seen().iter().any(|seen| !seen.headers.contains_key("x-switchyard-attempt")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_may_choose_another_destination_when_the_drawn_one_is_out() {
    let (v1, v2) = (Backend::start("v1").await, Backend::start("v2").await);
    let manifests = Manifests::of(&[("v1", v1.address), ("v2", v2.address)]);
    let split = "  destinations:\n  - {service: my-service, version: v2}\n  - {service: my-service, version: v1}\n";
    manifests.write("rule.yaml", &switchyard_tests::manifests::rule("split", split));
    manifests.write("circuit.yaml", &circuit("  timeout: 10m\n"));
    let switchyard = Switchyard::run(manifests.path()).await;
    v2.fail();
    let load = Load::start(switchyard.http, 2, plain);
    switchyard.circuit_is(v2.address, "open").await;
    load.stop().await;
    let tally = ask_times(switchyard.http, 2, 100, plain).await;
    assert!(tally.statuses.contains_key(&503), "an open circuit moves no share by itself: {tally:?}");
    let labels = [("rule", "shop/split"), ("version", "v2"), ("class", "5xx")];
    let counted = switchyard.metric("switchyard_requests_total", &labels).await;
    assert!(counted >= tally.statuses[&503] as f64, "{counted} are counted: {tally:?}");

    manifests.write("retry.yaml", &retry("  rechooseDestination: true\n"));
    switchyard_tests::wait_for("the policy is in force", async || {
        switchyard.config().await.to_string().contains("shop/retry")
    })
    .await;
    let tally = ask_times(switchyard.http, 2, 100, plain).await;
    tally.all_good();
    assert_eq!(tally.of("v1"), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_that_an_instance_may_have_seen_is_never_sent_twice() {
    let instance = Backend::start("v1").await;
    let (_manifests, switchyard) = with_policy("", &[&instance]).await;
    instance.fail();
    assert_eq!(ask(&switchyard, post()).await.status, 500);
    assert_eq!(instance.asked(), 1);
    let labels = [("reason", "server-error"), ("outcome", "method")];
    assert_eq!(switchyard.metric("switchyard_retries_total", &labels).await, 1.0, "why there was none is counted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_whose_connection_breaks_after_it_was_sent_is_never_sent_twice() {
    let count = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = std::sync::Arc::clone(&count);
    let breaks_off = RawServer::start(move |mut wire| {
        let counted = std::sync::Arc::clone(&counted);
        async move {
            if wire.reply().await.starts_with("POST") {
                counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
            wire.reset();
        }
    });
    let manifests = Manifests::of(&[("v1", breaks_off.address)]);
    manifests.write("retry.yaml", &retry(""));
    let switchyard = Switchyard::run(manifests.path()).await;
    let reply = ask(&switchyard, post()).await;
    assert_eq!((reply.status.as_u16(), reply.reason()), (502, "upstream-reset"));
    assert_eq!(count.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn posts_under_load_while_instances_come_and_go_arrive_once_each_at_most() {
    let (stays, mut goes) = (Backend::start("v1").await, Backend::start("v1").await);
    let (_manifests, switchyard) = with_policy("  budget: {ratio: \"100%\"}\n", &[&stays, &goes]).await;
    let load = Load::start(switchyard.http, 4, post);
    for _ in 0..3 {
        load.goes_on_for(50).await;
        goes.kill();
        load.goes_on_for(50).await;
        goes.revive().await;
    }
    let tally = load.stop().await;
    let answered: u64 = tally.statuses.values().sum();
    let arrived = stays.asked() + goes.asked();
    assert!(tally.errors.is_empty(), "{:?}", tally.errors);
    assert!(arrived <= answered, "{arrived} POSTs arrived, and only {answered} were sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_that_never_reached_an_instance_goes_to_another() {
    let (stays, mut goes) = (Backend::start("v1").await, Backend::start("v1").await);
    let (_manifests, switchyard) = with_policy("  budget: {ratio: \"100%\"}\n", &[&stays, &goes]).await;
    goes.kill();
    let tally = ask_times(switchyard.http, 4, 100, post).await;
    tally.all_good();
    assert_eq!(stays.asked(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_that_is_not_accepted_is_tried_again() {
    let tries = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counted = std::sync::Arc::clone(&tries);
    let server = RawServer::start(move |mut wire| {
        let tried = counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        async move {
            wire.until("\r\n\r\n").await;
            if tried == 0 {
                wire.send("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
                return;
            }
            wire.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
            let said = wire.exactly(3).await;
            wire.send(said.to_uppercase()).await;
        }
    });
    let manifests = Manifests::of(&[("v1", server.address)]);
    manifests.write("retry.yaml", &retry(""));
    let switchyard = Switchyard::run(manifests.path()).await;
    let mut wire = Wire::connect(switchyard.http).await;
    wire.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")).await;
    let head = wire.until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head:?}");
    wire.send("abc").await;
    assert_eq!(wire.exactly(3).await, "ABC");
    assert_eq!(tries.load(std::sync::atomic::Ordering::Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_is_sent_again_as_it_was_if_it_is_short_enough_to_keep() {
    let instance = Backend::start("v1").await;
    let (_manifests, switchyard) = with_policy("  maxBodyBytes: 64Ki\n", &[&instance]).await;
    for (length, tries) in [(1, 2), (64 * 1024, 2), (64 * 1024 + 1, 1), (1 << 20, 1)] {
        let body: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
        let asked = instance.asked();
        instance.fail_next(1);
        let reply = ask(&switchyard, request(Method::PUT, HOST, "/", full(body.clone()))).await;
        instance.fail_next(0);
        assert_eq!(instance.asked() - asked, tries, "{length} bytes");
        assert_eq!(reply.status.as_u16(), if tries == 2 { 200 } else { 500 });
        assert!(reply.body == body, "{length} bytes came back as others");
        let seen = instance.seen();
        assert!(
            seen.iter().rev().take(tries as usize).all(|seen| seen.body == body),
            "each try had all of {length} bytes"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_never_add_more_than_the_budget() {
    let instance = Backend::start("v1").await;
    let policy = "  initialDelay: 1ms\n  budget: {ratio: \"20%\", minPerSecond: 0, window: 60s}\n";
    let (_manifests, switchyard) = with_policy(policy, &[&instance]).await;
    instance.fail();
    let tally = ask_times(switchyard.http, 8, 1000, plain).await;
    assert_eq!(tally.statuses.get(&500), Some(&1000));
    let retries = instance.asked() - 1000;
    assert!((150..=200).contains(&retries), "{retries} retries for 1000 requests");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_that_would_end_after_the_deadline_is_not_made() {
    let instance = Backend::start("v1").await;
    let (manifests, switchyard) = with_policy("  initialDelay: 5s\n", &[&instance]).await;
    instance.fail();
    let mut hurried = plain();
    hurried.headers_mut().insert("x-request-timeout", "2s".parse().unwrap());
    assert_eq!(ask(&switchyard, hurried).await.status, 500);
    assert_eq!(instance.asked(), 1, "the caller's own deadline holds");
    let bounded = retry("  initialDelay: 5s\n  timeout: 2s\n").replace("name: retry,", "name: bounded,");
    manifests.write("retry.yaml", &bounded);
    switchyard_tests::wait_for("the other policy is in force", async || {
        switchyard.config().await.to_string().contains("bounded")
    })
    .await;
    assert_eq!(ask(&switchyard, plain()).await.status, 500);
    assert_eq!(instance.asked(), 2, "the policy's own timeout holds");
    assert_eq!(switchyard.metric("switchyard_retries_total", &[("outcome", "deadline")]).await, 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_try_says_how_much_time_is_left_for_it() {
    let instance = Backend::start("v1").await;
    let (manifests, switchyard) = with_policy("  initialDelay: 50ms\n  jitter: \"0%\"\n", &[&instance]).await;
    let said = |field: &str| -> Vec<f64> {
        let seen = instance.seen();
        let number = |text: &str| text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).parse::<f64>().unwrap();
        seen.iter().filter_map(|seen| seen.headers.get(field)).map(|value| number(value.to_str().unwrap())).collect()
    };
    ask(&switchyard, plain()).await;
    assert_eq!(said("x-request-timeout"), [0.0; 0], "nobody waits for so long and no longer");

    instance.fail_next(1);
    let mut hurried = plain();
    hurried.headers_mut().insert("x-request-timeout", "30s".parse().unwrap());
    assert_eq!(ask(&switchyard, hurried).await.status, 200);
    let left = said("x-request-timeout");
    assert!(left.len() == 2 && left[0] <= 30_000.0 && left[1] <= left[0] - 50.0, "{left:?}");

    let mut call = post();
    call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    call.headers_mut().insert("grpc-timeout", "30S".parse().unwrap());
    ask(&switchyard, call).await;
    let (micros, millis) = (said("grpc-timeout"), said("x-request-timeout"));
    assert!(micros.len() == 1 && micros[0] < 30e6 && micros[0] > 1e6, "{micros:?}");
    assert_eq!(millis.len(), 2, "a call of gRPC has a field of its own for it");

    // What the policy and the rule give is said as well.
    manifests.write(
        "retry.yaml",
        &retry("  perTryTimeout: 20s\n  timeout: 40s\n").replace("name: retry,", "name: bounded,"),
    );
    switchyard_tests::wait_for("the other policy is in force", async || {
        switchyard.config().await.to_string().contains("bounded")
    })
    .await;
    ask(&switchyard, plain()).await;
    let left = said("x-request-timeout")[2];
    assert!(left > 1000.0 && left <= 20_000.0, "{left}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_that_no_circuit_will_let_pass_is_not_waited_for() {
    let instance = Backend::start("v1").await;
    // A wait that the test would notice, if there were one.
    let (manifests, switchyard) = with_policy("  initialDelay: 300s\n  maxDelay: 300s\n", &[&instance]).await;
    manifests.write("circuit.yaml", &circuit("  failureThreshold: 1\n  timeout: 10m\n"));
    switchyard_tests::wait_for("the circuit is there", async || switchyard.circuit(instance.address).await.is_some())
        .await;
    instance.fail();
    assert_eq!(ask(&switchyard, plain()).await.status, 500);
    assert_eq!(switchyard.metric("switchyard_retries_total", &[("outcome", "circuit-open")]).await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_with_less_time_left_than_the_instance_takes_is_not_made() {
    let instance = Backend::start("v1").await;
    let (_manifests, switchyard) = with_policy("", &[&instance]).await;
    // It fails late, and all workers get to know that.
    instance.fail();
    instance.delay(std::time::Duration::from_millis(700));
    let hurried = || {
        let mut request = plain();
        request.headers_mut().insert("x-request-timeout", "1300ms".parse().unwrap());
        request
    };
    let tally = ask_times(switchyard.http, 4, 4, hurried).await;
    assert_eq!(tally.statuses.get(&500), Some(&4));
    assert_eq!(instance.asked(), 4);
    assert_eq!(switchyard.metric("switchyard_retries_total", &[("outcome", "latency")]).await, 4.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_try_that_takes_too_long_is_a_timeout_and_is_retried() {
    let (slow, quick) = (Backend::start("slow").await, Backend::start("quick").await);
    let (_manifests, switchyard) = with_policy("  perTryTimeout: 200ms\n", &[&slow, &quick]).await;
    slow.delay(std::time::Duration::from_secs(3600));
    let tally = ask_times(switchyard.http, 4, 20, plain).await;
    tally.all_good();
    assert_eq!(tally.of("quick"), 20);
    assert!(slow.asked() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_with_no_policy_is_tried_once() {
    let instance = Backend::start("v1").await;
    let manifests = Manifests::of(&[("v1", instance.address)]);
    let switchyard = Switchyard::run(manifests.path()).await;
    instance.fail();
    assert_eq!(ask(&switchyard, request(Method::GET, HOST, "/", empty())).await.status, 500);
    assert_eq!(instance.asked(), 1);
    assert!(!instance.seen()[0].headers.contains_key("x-switchyard-attempt"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_call_that_is_answered_unavailable_is_retried() {
    let (bad, good) = (EchoBackend::start("bad").await, EchoBackend::start("good").await);
    let manifests = Manifests::default();
    manifests.write("service.yaml", &service("my-service", "grpc", &[("v1", bad.address), ("v1", good.address)]));
    manifests.write("retry.yaml", &retry("  retryOn: [UNAVAILABLE]\n  methods: [POST]\n  budget: {ratio: \"100%\"}\n"));
    let switchyard = Switchyard::run(manifests.path()).await;
    bad.ends_with(Code::Unavailable);
    let mut client = grpc::client(switchyard.http).await;
    for _ in 0..20 {
        assert_eq!(client.once(word("again")).await.unwrap().into_inner().text, "again");
    }
    assert!(bad.calls() > 0, "it was asked, and the other one answered");
    bad.ends_with(Code::InvalidArgument);
    good.ends_with(Code::InvalidArgument);
    let calls = bad.calls() + good.calls();
    assert_eq!(client.once(word("no")).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(bad.calls() + good.calls(), calls + 1, "what is not listed is not retried");
}
