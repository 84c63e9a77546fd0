//! The demo's load: a steady number of requests a second through the proxy, as a caller would send them, and what the
//! caller saw.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::header::HOST;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::manifests::NAMESPACE;
use super::samples::{COUNT, Instance, SERVICE};

/// Requests a second: enough to see a share of 5 % within seconds, little enough for any machine.
pub(crate) const PER_SECOND: u32 = 200;

/// Requests under way at a time. Above, the load leaves requests out, so that a stuck proxy is not buried.
const MOST_UNDER_WAY: usize = 100;

/// A request that takes longer is an error.
const PATIENCE: Duration = Duration::from_secs(5);

/// The largest reply that is read: the samples' own are a hundred bytes.
const MOST_BYTES: usize = 16 * 1024 * 1024;

/// What callers saw, counted from the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Requests that ended.
    pub(crate) ended: u64,
    /// Those that ended in an error.
    pub(crate) errors: u64,
    /// Those that were answered well, but not at the first try.
    pub(crate) rescued: u64,
    /// Good answers of each instance.
    pub(crate) answered: [u64; COUNT],
}

impl Tally {
    /// What came since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let mut answered = self.answered;
        answered.iter_mut().zip(earlier.answered).for_each(|(now, then)| *now -= then);
        Self {
            ended: self.ended - earlier.ended,
            errors: self.errors - earlier.errors,
            rescued: self.rescued - earlier.rescued,
            answered,
        }
    }
}

/// The load; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Load {
    tally: Arc<Mutex<Tally>>,
    first_error: Arc<Mutex<Option<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Load {
    /// Starts it on the current runtime.
    pub(crate) fn start(proxy: SocketAddr, instances: &[Instance; COUNT]) -> Self {
        let (tally, first_error) = (Arc::<Mutex<Tally>>::default(), Arc::<Mutex<Option<String>>>::default());
        let addresses = instances.each_ref().map(|instance| instance.address.to_string());
        let task = tokio::spawn(send_all(proxy, addresses, Arc::clone(&tally), Arc::clone(&first_error)));
        Self { tally, first_error, task }
    }

    /// What callers saw so far.
    pub(crate) fn tally(&self) -> Tally {
        *lock(&self.tally)
    }

    /// The first error that a caller saw.
    pub(crate) fn first_error(&self) -> Option<String> {
        lock(&self.first_error).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn send_all(
    proxy: SocketAddr,
    addresses: [String; COUNT],
    tally: Arc<Mutex<Tally>>,
    first_error: Arc<Mutex<Option<String>>>,
) {
    let (caller, addresses) = (Caller::default(), Arc::new(addresses));
    let under_way = Arc::new(Semaphore::new(MOST_UNDER_WAY));
    let mut ticks = interval(Duration::from_secs(1) / PER_SECOND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let Ok(permit) = Arc::clone(&under_way).try_acquire_owned() else { continue };
        let (caller, addresses) = (caller.clone(), Arc::clone(&addresses));
        let (tally, first_error) = (Arc::clone(&tally), Arc::clone(&first_error));
        tokio::spawn(async move {
            let ended = caller.ask_service(proxy).await;
            let mut tally = lock(&tally);
            tally.ended += 1;
            match ended {
                Ok(answer) => {
                    tally.rescued += u64::from(answer.attempt > 1);
                    if let Some(index) = addresses.iter().position(|address| *address == answer.instance) {
                        tally.answered[index] += 1;
                    }
                }
                Err(error) => {
                    tally.errors += 1;
                    lock(&first_error).get_or_insert_with(|| format!("{error:#}"));
                }
            }
            drop(permit);
        });
    }
}

/// What a sample says of a request.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct Answer {
    /// Which one it is.
    instance: String,
    /// Which try of the request it saw.
    attempt: u32,
}

/// An HTTP client, for the proxy and for the admin port.
#[derive(Clone, Debug)]
pub(crate) struct Caller(Client<HttpConnector, Empty<Bytes>>);

impl Default for Caller {
    fn default() -> Self {
        Self(Client::builder(TokioExecutor::new()).build_http())
    }
}

impl Caller {
    /// The JSON that a GET of this gives.
    ///
    /// # Errors
    /// If there is no reply in time, or no good one, or it is not JSON.
    pub(crate) async fn get(&self, address: SocketAddr, path: &str) -> anyhow::Result<serde_json::Value> {
        let request = Request::get(format!("http://{address}{path}")).body(Empty::new())?;
        Ok(serde_json::from_slice(&self.read(request).await?)?)
    }

    /// Asks the samples through the proxy.
    ///
    /// # Errors
    /// If there is no reply in time, or no good one, or it is not a sample's.
    pub(crate) async fn ask_service(&self, proxy: SocketAddr) -> anyhow::Result<Answer> {
        let request = Request::get(format!("http://{proxy}/")).header(HOST, format!("{SERVICE}.{NAMESPACE}"));
        Ok(serde_json::from_slice(&self.read(request.body(Empty::new())?).await?)?)
    }

    async fn read(&self, request: Request<Empty<Bytes>>) -> anyhow::Result<Bytes> {
        timeout(PATIENCE, async { body(self.0.request(request).await?).await }).await.context("no answer in time")?
    }
}

async fn body(reply: Response<Incoming>) -> anyhow::Result<Bytes> {
    let status = reply.status();
    let read = Limited::new(reply.into_body(), MOST_BYTES).collect().await;
    let bytes = read.map_err(|error| anyhow::anyhow!("the reply broke off: {error}"))?.to_bytes();
    if !status.is_success() {
        bail!("{status}: {}", String::from_utf8_lossy(&bytes).trim_end());
    }
    Ok(bytes)
}
