//! A call through five agents, each of which may retry three times, with applications between them and the last one failing: how many
//! requests reach it, by what the applications pass on. Each multiplying what the one before sends, it would be 1,024.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use http::{HeaderMap, Method, Request, Response};
use switchyard_tests::backend::Server;
use switchyard_tests::client::{self, empty, full, get_request};
use switchyard_tests::load::ask_times;
use switchyard_tests::manifests::{Manifests, retry, service};
use switchyard_tests::process::Switchyard;

const HOPS: usize = 5;

/// What an application between two agents passes on of what it got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PassesOn {
    /// All fields of the request.
    Requests,
    /// What belongs to tracing.
    Tracing,
    /// Nothing of the request, and all fields of the reply.
    Replies,
    Nothing,
}

impl PassesOn {
    fn of_request(self, theirs: &HeaderMap) -> HeaderMap {
        let passes = |name: &str| match self {
            Self::Requests => !["host", "content-length"].contains(&name),
            Self::Tracing => ["traceparent", "tracestate", "baggage"].contains(&name),
            Self::Replies | Self::Nothing => false,
        };
        theirs.iter().filter(|(name, _)| passes(name.as_str())).map(|(n, v)| (n.clone(), v.clone())).collect()
    }

    fn of_reply(self, theirs: HeaderMap) -> HeaderMap {
        let own = |name: &str| self == Self::Replies && !["content-length", "date"].contains(&name);
        theirs.into_iter().filter_map(|(name, value)| Some((name?, value))).filter(|(n, _)| own(n.as_str())).collect()
    }
}

fn host(hop: usize) -> String {
    format!("hop-{hop}.shop")
}

/// Five agents, an application behind each; the last one fails, and counts.
struct Chain {
    agents: Vec<Switchyard>,
    applications: Vec<Server>,
    at_the_end: Arc<AtomicU64>,
    _manifests: Manifests,
}

impl Chain {
    async fn start(passes_on: PassesOn) -> Self {
        let (next, at_the_end) = (Arc::new(OnceLock::<Vec<SocketAddr>>::new()), Arc::new(AtomicU64::new(0)));
        let manifests = Manifests::default();
        let (mut applications, mut agents) = (Vec::new(), Vec::new());
        for hop in 1..=HOPS {
            let (next, at_the_end) = (Arc::clone(&next), Arc::clone(&at_the_end));
            let answer = move |request: Request<hyper::body::Incoming>| -> switchyard_tests::backend::Answer {
                let (next, at_the_end) = (Arc::clone(&next), Arc::clone(&at_the_end));
                Box::pin(async move {
                    if hop == HOPS {
                        at_the_end.fetch_add(1, Relaxed);
                        return Ok(Response::builder().status(500).body(full("no")).unwrap());
                    }
                    let mut own = client::request(Method::GET, &host(hop + 1), "/", empty());
                    own.headers_mut().extend(passes_on.of_request(request.headers()));
                    let reply = client::ask(next.get().unwrap()[hop], own).await.unwrap();
                    let mut answer = Response::new(full("as it came"));
                    *answer.status_mut() = reply.status;
                    *answer.headers_mut() = passes_on.of_reply(reply.headers);
                    Ok(answer)
                })
            };
            let application = Server::start(answer).await;
            let name = format!("hop-{hop}");
            manifests.write(&format!("{name}.yaml"), &service(&name, "http", &[("v1", application.address)]));
            let policy = retry("  initialDelay: 1ms\n").replace("my-service", &name);
            manifests
                .write(&format!("retry-{hop}.yaml"), &policy.replace("name: retry,", &format!("name: retry-{hop},")));
            applications.push(application);
        }
        for _ in 0..HOPS {
            agents.push(Switchyard::run_with(manifests.path(), &["--workers", "1"]).await);
        }
        next.set(agents.iter().map(|agent| agent.http).collect()).unwrap();
        Self { agents, applications, at_the_end, _manifests: manifests }
    }

    /// Calls so many times; how many requests reached the end.
    async fn call(&self, times: usize) -> u64 {
        let before = self.at_the_end.load(Relaxed);
        let tally = ask_times(self.agents[0].http, 4.min(times), times, || get_request("hop-1.shop", "/")).await;
        assert_eq!((tally.statuses.get(&500), tally.errors.len()), (Some(&(times as u64)), 0), "{tally:?}");
        assert_eq!(self.applications.len(), HOPS);
        self.at_the_end.load(Relaxed) - before
    }
}

/// What the budgets let through: each agent sends what it gets, and of retries a fifth of that and ten a second at most; of the ten seconds
/// before, and of those since it `began`.
fn bound(calls: u64, began: Instant) -> u64 {
    let whatever = 100 + 10 * began.elapsed().as_secs();
    (0..HOPS).fold(calls, |requests, _| requests + (3 * requests).min(requests / 5 + whatever))
}

async fn one_call(passes_on: PassesOn) -> (Chain, u64) {
    let chain = Chain::start(passes_on).await;
    let requests = chain.call(1).await;
    println!("applications that pass on {passes_on:?}: one call, {requests} requests at the end, of 1024");
    (chain, requests)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_applications_that_pass_fields_on_the_first_agent_alone_retries() {
    let (chain, requests) = one_call(PassesOn::Requests).await;
    assert_eq!(requests, 4);
    for agent in &chain.agents[1..] {
        let refused = agent.metric("switchyard_retries_total", &[("outcome", "already-retried")]).await;
        assert_eq!(refused, 4.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_applications_that_trace_the_first_agent_alone_retries() {
    let (_chain, requests) = one_call(PassesOn::Tracing).await;
    assert_eq!(requests, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_applications_that_pass_replies_on_the_last_agent_alone_retries() {
    let (chain, requests) = one_call(PassesOn::Replies).await;
    assert_eq!(requests, 4);
    for agent in &chain.agents[..HOPS - 1] {
        assert_eq!(agent.metric("switchyard_retries_total", &[("outcome", "retried-below")]).await, 1.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_applications_that_pass_nothing_on_budgets_bound_what_comes_of_it() {
    let began = Instant::now();
    let (chain, requests) = one_call(PassesOn::Nothing).await;
    let most = bound(1, began);
    assert!(requests <= most, "{requests} of {most}");
    drop(chain);
    let chain = Chain::start(PassesOn::Nothing).await;
    let (calls, began) = (200, Instant::now());
    let requests = chain.call(calls).await;
    let most = bound(calls as u64, began);
    println!(
        "{calls} calls at once: {requests} requests at the end, a factor of {:.1}; the budgets allow {most}, without them it were {}",
        requests as f64 / calls as f64,
        calls << (2 * HOPS),
    );
    assert!(requests <= most, "{requests} of {most}");
}
