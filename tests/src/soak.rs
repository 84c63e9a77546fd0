//! A controller and an agent under load while everything changes each second: instances come, move and go, and so do Services, rules and
//! policies, under new names. What the processes take up is looked at all the while, so that what is never given back shows.
//!
//! No caller may see anything but a good reply: an instance is taken out of the manifests first, and ends when no table has it any more.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::{Method, Request};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::backend::Backend;
use crate::client::{self, Body, Connection, full, get_request, request};
use crate::manifests::{HOST, Manifests, canary, circuit, retry, service};
use crate::process::{Controller, Switchyard, Usage};
use crate::wait_for;

/// How many Services of changing names there are at a time.
const GUESTS: usize = 10;
/// From one change of everything to the next.
const TICK: Duration = Duration::from_secs(1);
/// From one request to the next on each of the callers' connections.
const PACE: Duration = Duration::from_millis(20);

/// What both processes took up at one time, and what callers had seen by then.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Since the beginning.
    pub at: Duration,
    /// The agent.
    pub agent: Usage,
    /// The controller.
    pub controller: Usage,
    /// Good replies.
    pub good: u64,
    /// Everything else.
    pub bad: usize,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, agent, controller, good, bad } = self;
        write!(f, "{:>4} s  agent {agent}  controller {controller}  {good} good, {bad} not", at.as_secs())
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Soak {
    /// One each second.
    pub samples: Vec<Sample>,
    /// What callers saw that they should not have.
    pub bad: Vec<String>,
}

impl Soak {
    /// The middle one of a part of the time, by what is asked of it.
    pub fn median(&self, part: std::ops::Range<f64>, of: impl Fn(&Sample) -> u64) -> u64 {
        let at = |share: f64| (self.samples.len() as f64 * share) as usize;
        let mut values: Vec<u64> = self.samples[at(part.start)..at(part.end)].iter().map(of).collect();
        values.sort_unstable();
        values[values.len() / 2]
    }
}

/// What callers share.
#[derive(Debug, Default)]
struct Seen {
    stop: AtomicBool,
    good: AtomicU64,
    bad: Mutex<Vec<String>>,
    /// Services that can be asked just now.
    guests: Mutex<VecDeque<String>>,
}

impl Seen {
    fn is_bad(&self, what: String) {
        self.bad.lock().unwrap().push(what);
    }

    fn guest(&self, number: usize) -> String {
        let guests = self.guests.lock().unwrap();
        guests.get(number % guests.len().max(1)).cloned().unwrap_or_else(|| HOST.to_owned())
    }
}

/// Goes on for so long, and prints every ten seconds how things are.
pub async fn soak(length: Duration) -> Soak {
    let mut world = World::start().await;
    let seen = Arc::<Seen>::default();
    let callers = callers(world.agent.http, &seen);
    let (began, mut samples) = (Instant::now(), Vec::new());
    let mut tick = tokio::time::interval(TICK);
    while began.elapsed() < length {
        tick.tick().await;
        world.change(&seen).await;
        let (agent, controller) = (world.agent.process.usage(), world.controller.process.usage());
        let (good, bad) = (seen.good.load(Relaxed), seen.bad.lock().unwrap().len());
        samples.push(Sample { at: began.elapsed(), agent, controller, good, bad });
        if samples.len().is_multiple_of(10) {
            println!("{}", samples[samples.len() - 1]);
        }
    }
    seen.stop.store(true, Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    let bad = std::mem::take(&mut *seen.bad.lock().unwrap());
    Soak { samples, bad }
}

/// Everything but the callers.
struct World {
    manifests: Manifests,
    controller: Controller,
    agent: Switchyard,
    _state: TempDir,
    /// The instances of `my-service`, two of each version.
    instances: Vec<Backend>,
    /// Of the Services that come and go, with their numbers.
    guests: VecDeque<(usize, Backend)>,
    /// Out of the manifests; how often the agent was seen without it.
    leaving: Vec<(Backend, u32)>,
    ticks: usize,
}

impl World {
    async fn start() -> Self {
        let mut instances = Vec::new();
        for version in ["v1", "v1", "v2", "v2"] {
            instances.push(Backend::start(version).await);
        }
        let (manifests, state) = (Manifests::default(), tempfile::tempdir().unwrap());
        let h2 = Backend::start("v1").await;
        manifests.write("h2.yaml", &service("h2-service", "kubernetes.io/h2c", &[("v1", h2.address)]));
        manifests.write("retry.yaml", &retry("  maxRetries: 1\n  retryOn: [ConnectFailure]\n"));
        let controller = Controller::start(manifests.path(), "127.0.0.1:0".parse().unwrap()).await;
        let agent = Switchyard::agent(controller.agents, state.path()).await;
        // It is never out of the manifests, and so never leaves.
        let leaving = vec![(h2, 0)];
        let guests = VecDeque::new();
        let world = Self { manifests, controller, agent, _state: state, instances, guests, leaving, ticks: 0 };
        world.write_instances();
        world.agent.ready().await;
        world.is_in_force("h2-service").await;
        world.is_in_force(&world.instances[3].address.to_string()).await;
        world
    }

    fn write_instances(&self) {
        let instances: Vec<_> = self.instances.iter().map(|one| (one.version(), one.address)).collect();
        self.manifests.write("service.yaml", &service("my-service", "http", &instances));
    }

    async fn config(&self) -> String {
        client::get(self.agent.admin, "admin", "/config").await.unwrap().text()
    }

    async fn is_in_force(&self, word: &str) {
        wait_for(&format!("{word} is in force"), async || self.config().await.contains(word)).await;
    }

    /// One of everything.
    async fn change(&mut self, seen: &Seen) {
        self.ticks += 1;
        let tick = self.ticks;
        // An instance moves.
        let place = tick % self.instances.len();
        let new = Backend::start(self.instances[place].version()).await;
        let new_address = new.address.to_string();
        self.leaving.push((std::mem::replace(&mut self.instances[place], new), 0));
        self.write_instances();
        // A rule changes, a policy does, and another is there only now and then.
        self.manifests.write("canary.yaml", &canary(1 + tick as u32 % 99, 99 - tick as u32 % 99));
        let adaptive = if tick.is_multiple_of(2) { "" } else { ", adaptive: {minRequests: 100}" };
        let policy = format!("  timeout: {}s\n  limits: {{maxRequests: 500{adaptive}}}\n", 10 + tick % 7);
        if tick.is_multiple_of(5) {
            self.manifests.remove("circuit.yaml")
        } else {
            self.manifests.write("circuit.yaml", &circuit(&policy))
        }
        // A Service comes with all that belongs to it.
        let guest = Backend::start("v1").await;
        let name = format!("guest-{tick}");
        self.manifests.write(&format!("{name}.yaml"), &of_guest(&name, guest.address));
        self.guests.push_back((tick, guest));
        self.is_in_force(&new_address).await;
        self.is_in_force(&name).await;
        seen.guests.lock().unwrap().push_back(format!("{name}.shop"));
        // One is asked no more, and a tick later it goes.
        if self.guests.len() > GUESTS {
            seen.guests.lock().unwrap().pop_front();
        }
        if self.guests.len() > GUESTS + 2 {
            let (number, guest) = self.guests.pop_front().unwrap();
            self.manifests.remove(&format!("guest-{number}.yaml"));
            self.leaving.push((guest, 0));
        }
        // Those end that are out of the table for a while: what was under way to them is done.
        let config = self.config().await;
        for (instance, without) in &mut self.leaving {
            *without = if config.contains(&instance.address.to_string()) { 0 } else { *without + 1 };
        }
        self.leaving.retain(|(_, without)| *without < 4);
    }
}

fn of_guest(name: &str, instance: SocketAddr) -> String {
    let named = |text: String, old: &str| {
        text.replace("my-service", name).replace(&format!("name: {old},"), &format!("name: {name}-{old},"))
    };
    let policies = [
        named(canary(20, 80), "canary-deployment"),
        named(circuit("  limits: {maxRequests: 50, adaptive: {minRequests: 50}}\n"), "circuit"),
        named(retry("  maxRetries: 1\n"), "retry"),
    ];
    format!("{}---\n{}", service(name, "http", &[("v1", instance)]), policies.join("---\n"))
}

fn callers(http: SocketAddr, seen: &Arc<Seen>) -> Vec<JoinHandle<()>> {
    let caller = |number: usize| {
        let seen = Arc::clone(seen);
        tokio::spawn(async move {
            let mut pace = tokio::time::interval(PACE);
            pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut open = None;
            let mut count = number;
            while !seen.stop.load(Relaxed) {
                pace.tick().await;
                count += 1;
                // Half of them begin a connection with each request.
                if number % 4 >= 2 {
                    open = None;
                }
                let asked = call(http, &mut open, number % 2 == 1, of(count, &seen)).await;
                match asked {
                    Ok((200, _)) => _ = seen.good.fetch_add(1, Relaxed),
                    Ok((status, why)) => seen.is_bad(format!("{status} {why}")),
                    Err(error) => seen.is_bad(error.to_string()),
                }
            }
        })
    };
    (0..16).map(caller).collect()
}

/// Requests of several kinds, one after the other.
fn of(count: usize, seen: &Seen) -> Request<Body> {
    match count % 5 {
        0 => request(Method::POST, HOST, "/", full(vec![b'x'; 10_000])),
        1 => get_request("h2-service.shop", "/"),
        2 => {
            let mut request = get_request(HOST, "/");
            request.headers_mut().insert("x-version", http::HeaderValue::from_static("v2"));
            request
        }
        3 => get_request(&seen.guest(count / 5), "/"),
        _ => get_request(HOST, "/"),
    }
}

/// Status and body.
async fn call(
    http: SocketAddr,
    open: &mut Option<Connection>,
    h2: bool,
    request: Request<Body>,
) -> Result<(u16, String), client::Error> {
    let connection = match open {
        Some(connection) => connection,
        None if h2 => open.insert(Connection::http2(http).await?),
        None => open.insert(Connection::http1(http).await?),
    };
    let what = format!("{} {:?}", request.method(), request.headers());
    let asked = tokio::time::timeout(Duration::from_secs(30), connection.ask(request)).await;
    let asked = asked.unwrap_or_else(|_| Err(format!("no reply in 30 s: {what}").into()));
    if asked.as_ref().map_or(true, |reply| reply.header("connection") == "close") {
        *open = None;
    }
    let reply = asked?;
    let text = if reply.status == 200 { String::new() } else { format!("{what}: {}", reply.text()) };
    Ok((reply.status.as_u16(), text))
}
