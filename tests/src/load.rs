//! Callers that keep asking: so many connections, one request after the other on each, and a tally of what came back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Request;
use tokio::task::JoinHandle;

use crate::client::{Body, Connection, Error};

/// What callers saw.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Replies by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Good replies by the version of the instance.
    pub versions: BTreeMap<String, u64>,
    /// Calls that came to nothing.
    pub errors: Vec<String>,
}

impl Tally {
    /// Good replies.
    pub fn good(&self) -> u64 {
        self.statuses.get(&200).copied().unwrap_or_default()
    }

    /// Good replies of a version.
    pub fn of(&self, version: &str) -> u64 {
        self.versions.get(version).copied().unwrap_or_default()
    }

    /// # Panics
    /// When anything but a good reply was seen, or nothing at all.
    pub fn all_good(&self) {
        assert!(self.errors.is_empty(), "{} calls failed; the first: {}", self.errors.len(), self.errors[0]);
        assert!(self.good() > 0 && self.statuses.len() == 1, "not all replies were good: {:?}", self.statuses);
    }
}

/// Makes requests.
pub type Make = fn() -> Request<Body>;

/// A load that goes on until it is stopped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    callers: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts it, on so many connections.
    pub fn start(address: SocketAddr, connections: usize, make: Make) -> Self {
        let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Tally>>::default());
        let callers = (0..connections).map(|_| {
            let (stop, tally) = (Arc::clone(&stop), Arc::clone(&tally));
            tokio::spawn(async move {
                // Steady, and not all that the machine can do: other tests run beside this one.
                let mut pace = tokio::time::interval(Duration::from_millis(5));
                pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                let mut connection = None;
                while !stop.load(Relaxed) {
                    pace.tick().await;
                    call(address, &mut connection, make, &tally).await;
                }
            })
        });
        let callers = callers.collect();
        Self { stop, tally, callers }
    }

    /// What was seen so far.
    pub fn tally(&self) -> Tally {
        self.tally.lock().unwrap().clone()
    }

    /// Waits until so many more replies have come.
    pub async fn goes_on_for(&self, replies: u64) {
        let count = || self.tally.lock().unwrap().statuses.values().sum::<u64>();
        let before = count();
        crate::wait_for("callers get replies", async || count() >= before + replies).await;
    }

    /// Ends it, when the requests under way are done.
    pub async fn stop(self) -> Tally {
        self.stop.store(true, Relaxed);
        for caller in self.callers {
            caller.await.unwrap();
        }
        self.tally.lock().unwrap().clone()
    }
}

/// Asks so many times, as fast as so many connections go.
pub async fn ask_times(address: SocketAddr, connections: usize, times: usize, make: Make) -> Tally {
    let tally = Arc::<Mutex<Tally>>::default();
    let callers = (0..connections).map(|caller| {
        let tally = Arc::clone(&tally);
        let mine = times / connections + usize::from(caller < times % connections);
        tokio::spawn(async move {
            let mut connection = None;
            for _ in 0..mine {
                call(address, &mut connection, make, &tally).await;
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    tally.lock().unwrap().clone()
}

async fn call(address: SocketAddr, connection: &mut Option<Connection>, make: Make, tally: &Mutex<Tally>) {
    let asked = async {
        let open = match connection.as_mut() {
            Some(open) => open,
            None => connection.insert(Connection::http1(address).await?),
        };
        open.ask(make()).await
    };
    let asked = asked.await;
    if asked.as_ref().map_or(true, |reply| reply.header("connection") == "close") {
        *connection = None;
    }
    let mut tally = tally.lock().unwrap();
    match asked {
        Ok(reply) => {
            *tally.statuses.entry(reply.status.as_u16()).or_default() += 1;
            if reply.status == 200 {
                *tally.versions.entry(reply.version().to_owned()).or_default() += 1;
            }
        }
        Err(error) => tally.errors.push(chain(&error)),
    }
}

fn chain(error: &Error) -> String {
    let (mut text, mut source) = (error.to_string(), error.source());
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
