//! Stickiness: a user stays in one arm of a split, at every agent, after restarts, and when weights move.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use switchyard_tests::backend::Backend;
use switchyard_tests::chance::binomial_bound;
use switchyard_tests::client::{Connection, Reply, get_request};
use switchyard_tests::manifests::{HOST, Manifests, rule};
use switchyard_tests::process::Switchyard;
use switchyard_tests::raw::Wire;
use tokio::net::TcpSocket;

/// Two versions, a split between them, and what users stick by.
fn split(v2: u32, v1: u32, on: &str) -> String {
    rule(
        "ab",
        &format!(
            "  destinations:\n  - {{service: my-service, version: v2, weight: {v2}}}\n  \
             - {{service: my-service, version: v1, weight: {v1}}}\n  stickiness: {{\"on\": {on}}}\n"
        ),
    )
}

const BY_HEADER: &str = "{header: X-User-Id}";

async fn ask(connection: &mut Connection, fields: &[(&'static str, &str)]) -> Reply {
    let mut request = get_request(HOST, "/");
    for (name, value) in fields {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    let reply = connection.ask(request).await.unwrap();
    assert_eq!(reply.status, 200);
    reply
}

const USERS: usize = 400;

/// The arm of each of many users.
async fn arms(connection: &mut Connection) -> Vec<String> {
    let mut arms = Vec::new();
    for user in 0..USERS {
        arms.push(ask(connection, &[("x-user-id", &format!("user-{user}"))]).await.version().to_owned());
    }
    arms
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_is_in_the_same_arm_at_every_agent_after_a_restart_and_mostly_when_weights_move() {
    // Two instances of each: a user sticks to an arm, and any of its instances may answer.
    let (v1, v2) = (Backend::start("v1").await, Backend::start("v2").await);
    let (other_v1, other_v2) = (Backend::start("v1").await, Backend::start("v2").await);
    let all = [("v1", v1.address), ("v2", v2.address), ("v1", other_v1.address), ("v2", other_v2.address)];
    let manifests = Manifests::of(&all);
    manifests.write("rule.yaml", &split(10, 90, BY_HEADER));
    let one = Switchyard::run(manifests.path()).await;
    // Another node, to which the objects come in another order.
    let elsewhere = Manifests::of(&[all[3], all[2], all[1], all[0]]);
    elsewhere.write("a-rule.yaml", &split(10, 90, BY_HEADER));
    let other = Switchyard::run_with(elsewhere.path(), &["--workers", "1"]).await;

    let before = arms(&mut Connection::http1(one.http).await.unwrap()).await;
    let count = before.iter().filter(|arm| *arm == "v2").count() as u64;
    assert!(binomial_bound(USERS as u64, 0.1, 0.999_999).contains(&count), "{count} of {USERS} are in v2");
    assert_eq!(before, arms(&mut Connection::http2(other.http).await.unwrap()).await, "at another agent");
    for instance in [&v1, &v2, &other_v1, &other_v2] {
        assert!(instance.asked() > 0, "within an arm all instances take part");
    }
    drop(one);
    let one = Switchyard::run(manifests.path()).await;
    let mut connection = Connection::http1(one.http).await.unwrap();
    assert_eq!(before, arms(&mut connection).await, "after a restart");

    manifests.write("rule.yaml", &split(20, 80, BY_HEADER));
    one.splits(20, 80).await;
    let after = arms(&mut connection).await;
    let moved: Vec<_> = before.iter().zip(&after).filter(|(before, after)| before != after).collect();
    assert!(moved.iter().all(|(before, after)| *before == "v1" && *after == "v2"), "all in one direction: {moved:?}");
    assert!(binomial_bound(USERS as u64, 0.1, 0.999_999).contains(&(moved.len() as u64)), "{} moved", moved.len());

    manifests.write("rule.yaml", &split(10, 90, BY_HEADER));
    one.splits(10, 90).await;
    assert_eq!(before, arms(&mut connection).await, "and back again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_no_key_is_drawn() {
    let (v1, v2) = (Backend::start("v1").await, Backend::start("v2").await);
    let manifests = Manifests::of(&[("v1", v1.address), ("v2", v2.address)]);
    manifests.write("rule.yaml", &split(50, 50, BY_HEADER));
    let switchyard = Switchyard::run(manifests.path()).await;
    let mut connection = Connection::http1(switchyard.http).await.unwrap();
    let mut drawn = 0;
    for _ in 0..USERS {
        drawn += u64::from(ask(&mut connection, &[]).await.version() == "v2");
    }
    assert!(binomial_bound(USERS as u64, 0.5, 0.999_999).contains(&drawn), "{drawn}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_arm_that_cannot_serve_gives_its_users_to_others_and_gets_them_back() {
    let [a, b, c] = [Backend::start("a").await, Backend::start("b").await, Backend::start("c").await];
    let three = |more: &str| {
        rule(
            "abc",
            &format!(
                "  destinations:\n  - {{service: my-service, version: a}}\n  - {{service: my-service, version: b}}\n  \
                 - {{service: my-service, version: c}}\n  stickiness: {{\"on\": {BY_HEADER}}}\n{more}"
            ),
        )
    };
    let all = [("a", a.address), ("b", b.address), ("c", c.address)];
    let manifests = Manifests::of(&all);
    manifests.write("rule.yaml", &three(""));
    let switchyard = Switchyard::run(manifests.path()).await;
    let mut connection = Connection::http1(switchyard.http).await.unwrap();
    let before = arms(&mut connection).await;
    assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), 3);

    let instances = async |count: usize| {
        switchyard_tests::wait_for("the instances are known", async || {
            let default = &switchyard.config().await["services"][0]["default"][0]["instances"][0];
            default.as_array().unwrap().len() == count
        })
        .await;
    };
    manifests.write("service.yaml", &switchyard_tests::manifests::service("my-service", "http", &[all[0], all[2]]));
    instances(2).await;
    let without = arms(&mut connection).await;
    let mut taken = BTreeSet::new();
    for (before, without) in before.iter().zip(&without) {
        if before == "b" {
            taken.insert(without);
        } else {
            assert_eq!(before, without, "nobody else moves");
        }
    }
    assert_eq!(taken.len(), 2, "both others take some over");

    // With Fail they wait for their arm.
    manifests.write("rule.yaml", &three("  whenUnavailable: Fail\n"));
    switchyard_tests::wait_for("it fails", async || {
        switchyard.config().await["services"][0]["rules"][0]["whenUnavailable"] == "Fail"
    })
    .await;
    for (user, arm) in before.iter().enumerate().take(50) {
        let mut request = get_request(HOST, "/");
        request.headers_mut().insert("x-user-id", format!("user-{user}").parse().unwrap());
        let reply = connection.ask(request).await.unwrap();
        let expected = if arm == "b" { (503, "no-instances") } else { (200, "") };
        assert_eq!((reply.status.as_u16(), reply.reason()), expected);
    }
    manifests.write("service.yaml", &switchyard_tests::manifests::service("my-service", "http", &all));
    instances(3).await;
    assert_eq!(before, arms(&mut connection).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cookie_is_set_where_it_is_missing_and_then_keeps_its_bearer_where_it_is() {
    let (v1, v2) = (Backend::start("v1").await, Backend::start("v2").await);
    let manifests = Manifests::of(&[("v1", v1.address), ("v2", v2.address)]);
    manifests.write("rule.yaml", &split(50, 50, "{cookie: {name: arm, ttl: 24h}}"));
    let switchyard = Switchyard::run(manifests.path()).await;
    for http2 in [false, true] {
        let mut connection = if http2 {
            Connection::http2(switchyard.http).await.unwrap()
        } else {
            Connection::http1(switchyard.http).await.unwrap()
        };
        let mut arms: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..40 {
            let first = ask(&mut connection, &[("cookie", "other=1")]).await;
            let (pair, attributes) = first.header("set-cookie").split_once("; ").unwrap();
            assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax; Max-Age=86400");
            let value = pair.strip_prefix("arm=").unwrap();
            assert!(value.len() == 32 && value.bytes().all(|b| b.is_ascii_hexdigit()), "{value}");
            for _ in 0..3 {
                let next = ask(&mut connection, &[("cookie", &format!("other=1; {pair}"))]).await;
                assert_eq!((next.version(), next.header("set-cookie")), (first.version(), ""));
            }
            *arms.entry(first.version().to_owned()).or_default() += 1;
        }
        assert_eq!(arms.len(), 2, "{arms:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_is_a_user() {
    let (v1, v2) = (Backend::start("v1").await, Backend::start("v2").await);
    let manifests = Manifests::of(&[("v1", v1.address), ("v2", v2.address)]);
    manifests.write("rule.yaml", &split(50, 50, "{sourceIP: {}}"));
    let switchyard = Switchyard::run(manifests.path()).await;
    let from = async |ip: IpAddr| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(ip, 0)).unwrap();
        let mut wire = Wire::of(socket.connect(switchyard.http).await.unwrap());
        wire.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).await;
        let head = wire.until("\r\n\r\n").await;
        head.lines().find_map(|line| line.strip_prefix("x-version: ")).unwrap().to_owned()
    };
    let mut arms = BTreeSet::new();
    for last in 1..40 {
        let ip = IpAddr::from([127, 0, 0, last]);
        let arm = from(ip).await;
        for _ in 0..3 {
            assert_eq!(arm, from(ip).await, "{ip}");
        }
        arms.insert(arm);
    }
    assert_eq!(arms.len(), 2);
}
