//! More than a service can take: a limit that follows its latency, and an instance that takes no connection.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::Response;
use switchyard_tests::backend::{Backend, Server};
use switchyard_tests::client::{Connection, empty, get_request};
use switchyard_tests::manifests::{HOST, Manifests, circuit, rule};
use switchyard_tests::process::{self, Switchyard};
use switchyard_tests::{client, wait_for};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;

/// How many callers there are.
const CALLERS: u64 = 24;

/// A server that works on so many requests at a time, and how many are with it.
async fn server(places: usize, takes: Duration) -> (Server, Arc<AtomicU64>) {
    let (places, with_it) = (Arc::new(Semaphore::new(places)), Arc::<AtomicU64>::default());
    let counted = Arc::clone(&with_it);
    let server = Server::start(move |_| {
        let (places, counted) = (Arc::clone(&places), Arc::clone(&counted));
        Box::pin(async move {
            counted.fetch_add(1, Relaxed);
            let place = places.acquire().await.unwrap();
            tokio::time::sleep(takes).await;
            drop(place);
            counted.fetch_sub(1, Relaxed);
            Ok(Response::new(empty()))
        })
    });
    (server.await, with_it)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_gets_too_much_keeps_a_short_queue_and_the_rest_is_answered_at_once() {
    let (server, with_it) = server(2, Duration::from_millis(20)).await;
    let manifests = Manifests::of(&[("v1", server.address)]);
    manifests.write("circuit.yaml", &circuit("  limits: {adaptive: {minRequests: 1}}\n"));
    let switchyard = Switchyard::run(manifests.path()).await;
    let limit = async || switchyard.metric("switchyard_concurrency_limit", &[("service", "shop/my-service")]).await;
    assert_eq!(limit().await, 1.0);
    let (stop, good, strange) =
        (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    let callers = (0..CALLERS).map(|_| {
        let (stop, good, strange, http) = (Arc::clone(&stop), Arc::clone(&good), Arc::clone(&strange), switchyard.http);
        tokio::spawn(async move {
            let mut connection = Connection::http1(http).await.unwrap();
            while !stop.load(Relaxed) {
                let reply = connection.ask(get_request(HOST, "/")).await.unwrap();
                match (reply.status.as_u16(), reply.reason()) {
                    (200, "") => good.fetch_add(1, Relaxed),
                    (503, "overloaded") if reply.text().contains("limits.adaptive") => {
                        // The pace of a caller that was turned away.
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        continue;
                    }
                    _ => strange.fetch_add(1, Relaxed),
                };
            }
        })
    });
    let callers: Vec<_> = callers.collect();
    wait_for("the limit grows to what the service can do", async || limit().await >= 2.0).await;
    let before = good.load(Relaxed);
    let mut longest = 0;
    wait_for("many are served", async || {
        longest = longest.max(with_it.load(Relaxed));
        good.load(Relaxed) > before + 300
    })
    .await;
    assert!(
        longest < CALLERS / 2,
        "{longest} of {CALLERS} callers were with a service that works on two requests at a time"
    );
    let refused = [("service", "shop/my-service"), ("bound", "limits.adaptive")];
    assert!(switchyard.metric("switchyard_overloads_total", &refused).await > 0.0);
    let manifests = manifests.path().to_str().unwrap();
    let (url, admin) = (format!("http://{HOST}/"), switchyard.admin.to_string());
    for from in [["--manifests", manifests], ["--agent", &admin]] {
        let said = process::output("switchyard", &["explain", from[0], from[1], &url]);
        let said = String::from_utf8(said.stdout).unwrap();
        assert!(said.contains("limits.adaptive: up to ") && said.contains(", of 1 to 1024; now "), "{said}");
    }
    stop.store(true, Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(strange.load(Relaxed), 0, "neither served nor turned away");
    for _ in 0..20 {
        assert_eq!(client::get(switchyard.http, HOST, "/").await.unwrap().status, 200);
    }
    assert_eq!(switchyard.circuit(server.address).await.as_deref(), Some("closed"), "no instance is to blame");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_wait_for_a_connection_are_bounded_and_others_pass() {
    // Its queue of connections that are not accepted yet has room for one, which is taken: it answers no further connection.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let full = listener.local_addr().unwrap();
    let _queued = TcpStream::connect(full).await.unwrap();
    let well = Backend::start("v2").await;
    let manifests = Manifests::of(&[("v1", full), ("v2", well.address)]);
    manifests.write(
        "circuit.yaml",
        &circuit("  failureThreshold: 1000\n  minimumRequests: 1000\n  limits: {maxPendingRequests: 1}\n")
            .replace("my-service}", "my-service, version: v1}"),
    );
    let to = |version: &str| {
        let path = format!("  matches:\n  - path: {{type: PathPrefix, value: /{version}}}\n");
        rule(version, &format!("{path}  destinations: [{{service: my-service, version: {version}}}]\n"))
    };
    manifests.write("rules.yaml", &format!("{}---\n{}", to("v1"), to("v2")));
    let switchyard = Switchyard::run(manifests.path()).await;
    let pending = async || {
        let labels = [("service", "shop/my-service"), ("target", "v1"), ("of", "pending")];
        switchyard.metric("switchyard_in_use", &labels).await
    };
    let http = switchyard.http;
    let waits = tokio::spawn(async move {
        // Until it is given up; then another one waits.
        loop {
            client::get(http, HOST, "/v1").await.unwrap();
        }
    });
    wait_for("one waits", async || pending().await == 1.0).await;
    wait_for("another is turned away", async || {
        let reply = client::get(http, HOST, "/v1").await.unwrap();
        assert!(pending().await <= 1.0);
        assert_eq!(client::get(http, HOST, "/v2").await.unwrap().status, 200, "what is not for it passes");
        reply.status == 503 && reply.reason() == "overloaded" && reply.text().contains("limits.maxPendingRequests")
    })
    .await;
    let refused = [("service", "shop/my-service"), ("bound", "limits.maxPendingRequests")];
    assert!(switchyard.metric("switchyard_overloads_total", &refused).await >= 1.0);
    waits.abort();
    wait_for("none waits", async || pending().await == 0.0).await;
}
