//! The agent as a whole: one thread per worker for the traffic, one more for everything else (the controller's stream, the
//! admin endpoints, the state file), so that nothing but traffic runs where traffic runs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::admin::{self, Admin};
use crate::listen;
use crate::record::metrics::Retries;
use crate::resources::Resources;
use crate::runtime::Runtime;
use crate::state::StateFile;
use crate::subscribe::{Controller, Link, Subscription};
use crate::table::{ServiceKey, Table};
use crate::transitions::Transitions;
use crate::worker::{Shared, Worker};

/// How an agent is run.
#[derive(Debug)]
pub struct Options {
    /// Where requests come in. Port 0: any that is free.
    pub http: SocketAddr,
    /// Where the admin endpoints are. Port 0: any that is free.
    pub admin: SocketAddr,
    /// Threads for traffic; 0: one per core.
    pub workers: usize,
    /// Where the configuration comes from.
    pub controller: Controller,
    /// This agent's name.
    pub node: String,
    /// The folder for what survives a restart; none: nothing does.
    pub state: Option<PathBuf>,
    /// The Service for requests whose Host names none.
    pub default_service: Option<ServiceKey>,
    /// How long requests under way may take to finish on shutdown.
    pub drain: Duration,
}

/// An agent that runs.
#[derive(Debug)]
pub struct Running {
    /// Where requests come in.
    pub http: SocketAddr,
    /// Where the admin endpoints are.
    pub admin: SocketAddr,
    stop: watch::Sender<bool>,
    workers: Vec<JoinHandle<()>>,
    control: Option<JoinHandle<()>>,
}

/// Starts an agent. What it saved last is in force before this returns.
///
/// # Errors
/// An address cannot be listened on, or the state folder not be used.
pub fn start(options: Options) -> Result<Running> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let workers = if options.workers == 0 { cores } else { options.workers };
    let listeners = listen::bind(options.http, workers)
        .with_context(|| format!("cannot listen on {} for requests", options.http))?;
    let http = listeners[0].local_addr()?;
    let admin_listener = std::net::TcpListener::bind(options.admin)
        .with_context(|| format!("cannot listen on {} for the admin endpoints", options.admin))?;
    admin_listener.set_nonblocking(true)?;
    let admin = admin_listener.local_addr()?;
    let state = options
        .state
        .as_deref()
        .map(|folder| StateFile::new(folder).with_context(|| format!("cannot use {} for state", folder.display())))
        .transpose()?;

    let shared = Arc::new(Shared {
        table: Arc::new(ArcSwap::from_pointee(Table::default())),
        runtime: Runtime::new(workers),
        transitions: Transitions::default(),
        unrouted: Retries::new(workers),
    });
    let link = Arc::new(Link::default());
    let subscription = Subscription {
        shared: Arc::clone(&shared),
        link: Arc::clone(&link),
        resources: state.as_ref().map(StateFile::load).unwrap_or_default(),
        state,
        default_service: options.default_service,
        node: options.node,
    };
    if has_any(&subscription.resources) {
        tracing::info!(revision = subscription.resources.revision, "the last good configuration is in force");
        subscription.swap();
    }

    let (stop, stopped) = watch::channel(false);
    let mut threads = Vec::with_capacity(workers);
    for (index, listener) in listeners.into_iter().enumerate() {
        let (shared, stopped, drain) = (Arc::clone(&shared), stopped.clone(), options.drain);
        let thread = std::thread::Builder::new().name(format!("worker-{index}"));
        threads.push(thread.spawn(move || work(index, shared, listener, stopped, drain))?);
    }
    let (controller, mut stopped) = (options.controller, stopped);
    let control = std::thread::Builder::new().name("control".to_owned()).spawn(move || {
        let control = async move {
            let serving = async {
                let listener = tokio::net::TcpListener::from_std(admin_listener)?;
                axum::serve(listener, admin::router(Admin { shared, link })).await
            };
            tokio::select! {
                () = subscription.run(controller) => {}
                served = serving => if let Err(error) = served {
                    tracing::error!(%error, "the admin endpoints are gone");
                },
                _ = stopped.wait_for(|stop| *stop) => {}
            }
        };
        block_on(control);
    })?;
    Ok(Running { http, admin, stop, workers: threads, control: Some(control) })
}

fn has_any(resources: &Resources) -> bool {
    resources.all().next().is_some()
}

fn work(
    index: usize,
    shared: Arc<Shared>,
    listener: std::net::TcpListener,
    stopped: watch::Receiver<bool>,
    drain: Duration,
) {
    block_on(async move {
        let worker = Worker::new(index, shared);
        if let Err(error) = listen::run(worker, listener, stopped, drain).await {
            tracing::error!(worker = index, %error, "a worker has ended");
        }
    });
}

/// Runs a future, and what it spawns, on this thread.
fn block_on(future: impl Future<Output = ()>) {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => LocalSet::new().block_on(&runtime, future),
        Err(error) => tracing::error!(%error, "cannot start a thread's runtime"),
    }
}

impl Running {
    /// Finishes what is under way, takes nothing new, and returns when all threads have ended.
    pub fn shutdown(mut self) {
        // An error means that all threads have ended already.
        let _ = self.stop.send(true);
        for thread in self.workers.drain(..).chain(self.control.take()) {
            if thread.join().is_err() {
                tracing::error!("a thread has panicked");
            }
        }
    }
}
