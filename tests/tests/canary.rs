//! Which instance a request reaches: the mission's canary, where versions come from, and what decides among rules.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use http::Method;
use switchyard_tests::backend::Backend;
use switchyard_tests::chance::binomial_bound;
use switchyard_tests::client::{self, Connection, empty, get_request, request};
use switchyard_tests::load::ask_times;
use switchyard_tests::manifests::{HOST, Manifests, canary, rule, service, slice, slice_of};
use switchyard_tests::process::Switchyard;
use switchyard_tests::wait_for;

fn canary_request() -> http::Request<client::Body> {
    let mut request = get_request(HOST, "/cart");
    request.headers_mut().insert("x-version", "v2".parse().unwrap());
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_requests_split_twenty_to_eighty() {
    const TIMES: usize = 10_000;
    let (v1, v2) = (Backend::start("v1").await, Backend::start("v2").await);
    let manifests = Manifests::canary(&[("v1", v1.address), ("v2", v2.address)], 20, 80);
    let switchyard = Switchyard::run(manifests.path()).await;
    let bound = binomial_bound(TIMES as u64, 0.2, 0.999);
    // Chance alone leaves the bound once in a thousand times, and twice in a row once in a million.
    let mut counts = Vec::new();
    for _ in 0..2 {
        let tally = ask_times(switchyard.http, 32, TIMES, canary_request).await;
        tally.all_good();
        assert_eq!(tally.of("v1") + tally.of("v2"), TIMES as u64);
        counts.push(tally.of("v2"));
        if bound.contains(&tally.of("v2")) {
            let labels = [("rule", "shop/canary-deployment"), ("version", "v2"), ("class", "2xx")];
            let counted = switchyard.metric("switchyard_requests_total", &labels).await;
            assert_eq!(counted, counts.iter().sum::<u64>() as f64, "what is counted is what was answered");
            return;
        }
    }
    panic!("v2 answered {counts:?} of {TIMES} requests, and chance allows {bound:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_header_every_ready_instance_takes_part() {
    let (v1, v2) = (Backend::start("v1").await, Backend::start("v2").await);
    let mut manifests = service("my-service", "http", &[("v1", v1.address), ("v2", v2.address)]);
    let unready = Backend::start("v3").await;
    manifests += "---\n";
    manifests += &slice_of(
        "my-service",
        "not-ready",
        "version: v3",
        unready.address,
        "conditions: {ready: false, serving: false}",
    );
    let folder = Manifests::default();
    folder.write("service.yaml", &manifests);
    folder.write("canary.yaml", &canary(20, 80));
    let switchyard = Switchyard::run(folder.path()).await;
    let tally = ask_times(switchyard.http, 8, 1000, || get_request(HOST, "/")).await;
    tally.all_good();
    assert!(tally.of("v1") > 0 && tally.of("v2") > 0, "{:?}", tally.versions);
    assert_eq!(unready.asked(), 0, "one that is not ready is not asked");
    let by_rule = switchyard.metric("switchyard_requests_total", &[("rule", "shop/canary-deployment")]).await;
    assert_eq!(by_rule, 0.0, "the rule has nothing to do with them");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_is_the_pods_recommended_label_then_its_plain_one_then_the_slices() {
    let (recommended, plain, of_slice, wrong) = (
        Backend::start("recommended").await,
        Backend::start("plain").await,
        Backend::start("slice").await,
        Backend::start("wrong").await,
    );
    let folder = Manifests::default();
    folder.write("service.yaml", &service("my-service", "http", &[]));
    let pod = |name: &str, labels: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}\nspec: {{containers: []}}\n---\n"
        )
    };
    let behind =
        |name: &str| format!("conditions: {{ready: true}}, targetRef: {{kind: Pod, name: {name}, namespace: shop}}");
    let slices = [
        slice_of("my-service", "a", "version: v1", recommended.address, &behind("pod-a")),
        slice_of("my-service", "b", "version: v1", plain.address, &behind("pod-b")),
        slice("my-service", "c", "version: v2", of_slice.address),
        slice_of("my-service", "d", "version: v2", wrong.address, &behind("pod-d")),
    ];
    let pods = pod("pod-a", "app.kubernetes.io/version: v2, version: v1")
        + &pod("pod-b", "version: v2")
        + &pod("pod-d", "app.kubernetes.io/version: v1, version: v2");
    folder.write("instances.yaml", &(pods + &slices.join("---\n")));
    folder.write("rule.yaml", &rule("all-v2", "  destinations:\n  - {service: my-service, version: v2}\n"));
    let switchyard = Switchyard::run(folder.path()).await;
    let tally = ask_times(switchyard.http, 8, 500, || get_request(HOST, "/")).await;
    tally.all_good();
    let answered: Vec<_> = tally.versions.keys().map(String::as_str).collect();
    assert_eq!(answered, ["plain", "recommended", "slice"]);
}

/// Waits until there is this rule beside the one for the rest, and no other.
async fn only_rule(switchyard: &Switchyard, name: &str) {
    let label = format!("shop/{name}");
    wait_for(&format!("{label} is in force, alone"), async || {
        let config = switchyard.config().await;
        let rules = config["services"][0]["rules"].as_array().unwrap();
        rules.len() == 2 && rules.iter().any(|rule| rule["rule"] == label.as_str())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_kind_of_match_takes_its_requests_and_no_others() {
    let (v1, v2) = (Backend::start("v1").await, Backend::start("v2").await);
    let manifests = Manifests::of(&[("v1", v1.address), ("v2", v2.address)]);
    // Everything goes to v1, and what the match takes goes to v2.
    manifests
        .write("rest.yaml", &rule("rest", "  priority: -1\n  destinations: [{service: my-service, version: v1}]\n"));
    let switchyard = Switchyard::run(manifests.path()).await;
    let table: [(&str, &[&str], &[&str]); 8] = [
        ("path: {type: PathPrefix, value: /api}", &["/api", "/api/", "/api/x?y"], &["/apis", "/", "/x/api", "/API"]),
        ("path: {type: Exact, value: /api}", &["/api", "/api?x=1"], &["/api/", "/api/x"]),
        ("path: {type: RegularExpression, value: '/v[0-9]+/.*'}", &["/v1/x", "/v22/"], &["/v/x", "/a/v1/x", "/v1"]),
        (
            "queryParams: [{name: beta, value: '1'}]",
            &["/?beta=1", "/x?a=b&beta=1"],
            &["/", "/?beta=2", "/?beta", "/?alphabeta=1"],
        ),
        ("queryParams: [{type: Present, name: beta}]", &["/?beta=1", "/?beta"], &["/", "/?alpha=beta"]),
        ("headers: [{type: Absent, name: x-version}]", &["/"], &["/#v2"]),
        ("headers: [{type: Prefix, name: X-Version, value: v}]", &["/#v2", "/#v"], &["/", "/#w"]),
        (
            "headers: [{type: RegularExpression, name: x-version, value: 'v[23]'}]",
            &["/#v2", "/#v3"],
            &["/", "/#v4", "/#v22"],
        ),
    ];
    let mut connection = Connection::http1(switchyard.http).await.unwrap();
    for (number, (matches, taken, left)) in table.into_iter().enumerate() {
        let name = format!("rule-{number}");
        manifests.write(
            "rule.yaml",
            &rule(
                &name,
                &format!("  matches:\n  - {matches}\n  destinations: [{{service: my-service, version: v2}}]\n"),
            ),
        );
        // The rule before it is gone a moment later: a file that lacks something may be half-written.
        only_rule(&switchyard, &name).await;
        for (paths, version) in [(taken, "v2"), (left, "v1")] {
            for path in paths {
                // What follows a `#` is the header's value.
                let (target, header) = path.split_once('#').unwrap_or((path, ""));
                let mut request = get_request(HOST, target);
                if !header.is_empty() {
                    request.headers_mut().insert("x-version", header.parse().unwrap());
                }
                let reply = connection.ask(request).await.unwrap();
                assert_eq!(reply.version(), version, "{matches} and {path}");
            }
        }
    }
    manifests.write(
        "rule.yaml",
        &rule("by-method", "  matches: [{method: POST}]\n  destinations: [{service: my-service, version: v2}]\n"),
    );
    only_rule(&switchyard, "by-method").await;
    for (method, version) in [(Method::POST, "v2"), (Method::GET, "v1")] {
        let reply = connection.ask(request(method, HOST, "/", empty())).await.unwrap();
        assert_eq!(reply.version(), version);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_host_names_the_service_in_all_its_forms() {
    let v1 = Backend::start("v1").await;
    let manifests = Manifests::of(&[("v1", v1.address)]);
    let switchyard = Switchyard::run(manifests.path()).await;
    for host in ["my-service", "my-service.shop", "my-service.shop.svc", "my-service.shop.svc.cluster.local"] {
        for host in [host.to_owned(), format!("{host}:80"), host.to_ascii_uppercase()] {
            let reply = client::get(switchyard.http, &host, "/").await.unwrap();
            assert_eq!((reply.status.as_u16(), reply.version()), (200, "v1"), "{host}");
        }
    }
    let reply = client::get(switchyard.http, "nobody.shop", "/").await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.reason()), (404, "no-route"));
    drop(switchyard);
    let switchyard = Switchyard::run_with(manifests.path(), &["--default-service", "shop/my-service"]).await;
    assert_eq!(client::get(switchyard.http, "nobody.shop", "/").await.unwrap().version(), "v1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_without_instances_gives_its_share_away_or_fails_if_the_rule_says_so() {
    let v1 = Backend::start("v1").await;
    let manifests = Manifests::canary(&[("v1", v1.address)], 20, 80);
    let switchyard = Switchyard::run(manifests.path()).await;
    let tally = ask_times(switchyard.http, 4, 200, canary_request).await;
    tally.all_good();
    assert_eq!(tally.of("v1"), 200);
    let fail = canary(1, 0) + "  whenUnavailable: Fail\n";
    manifests.write("canary.yaml", &fail.replace("\n\n", "\n"));
    switchyard.splits(1, 0).await;
    let reply = client::ask(switchyard.http, canary_request()).await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.reason()), (503, "no-instances"));
}
