//! The agent as a whole: one thread per worker for the traffic, so that nothing but traffic runs where traffic runs; one for what is
//! remembered over a restart, which waits for the disk; one for health checks, whose times nothing else is to lengthen; and one for everything else (the controller's stream, the admin endpoints).

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use tokio::runtime::LocalOptions;
use tokio::sync::watch;

use crate::admin::{self, Admin};
use crate::check::{self, Checks};
use crate::intercept::{self, Interception, Place, Pulse};
use crate::listen;
use crate::memory::{self, Limit};
use crate::record::metrics::Retries;
use crate::resources::Resources;
use crate::runtime::Runtime;
use crate::state::StateFile;
use crate::state::writer::Writer;
use crate::subscribe::{Controller, Link, Subscription};
use crate::table::{ServiceKey, Table};
use crate::transitions::Transitions;
use crate::worker::{Shared, Worker};

/// How often it is looked for circuits that were held by hand until now.
const HELD: Duration = Duration::from_secs(1);

/// How an agent is run.
#[derive(Debug)]
pub struct Options {
    /// Where requests come in, unless connections are intercepted. Port 0: any that is free.
    pub http: SocketAddr,
    /// Connections of this node's pods are taken in; this needs a state folder.
    pub intercept: Option<intercept::Options>,
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
    /// What the process may have in memory, in bytes; none: as `memory::default_limit` says.
    pub memory: Option<u64>,
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
    writer: Option<JoinHandle<Writer>>,
    keeper: Option<intercept::Handle>,
}

/// Starts an agent. What it saved last is in force before this returns.
///
/// # Errors
/// An address cannot be listened on, or the state folder not be used.
pub fn start(options: Options) -> Result<Running> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let workers = if options.workers == 0 { cores } else { options.workers };
    let (place, listeners) = listeners(&options, workers)?;
    let http = listeners[0][0].local_addr()?;
    let admin_listener = admin_listener(&options)?;
    let admin = admin_listener.local_addr()?;
    // A controller in this process is never away, and what it sent in an earlier life is no better than nothing.
    let in_memory = matches!(options.controller, Controller::Memory(_));
    let state = options
        .state
        .as_deref()
        .filter(|_| !in_memory)
        .map(|folder| StateFile::new(folder).with_context(|| format!("cannot use {} for state", folder.display())))
        .transpose()?;

    let runtime = Runtime::new(workers);
    let shared = Arc::new(Shared {
        table: Arc::new(ArcSwap::from_pointee(Table::default())),
        transitions: Transitions::default(),
        checks: Checks::default(),
        swapped: tokio::sync::Notify::new(),
        unrouted: Retries::new(workers),
        unknown: runtime.series("", "", "", ""),
        runtime,
        interception: options.intercept.map(|intercept| Interception {
            node_address: intercept.node_address,
            pulse: Pulse::new(workers),
            taking: false.into(),
        }),
        memory: options.memory.or_else(memory::default_limit).map(|bytes| Limit { bytes, workers: workers as u64 }),
        broken_off: 0.into(),
    });
    // Before any table is built, which finds its circuits as they were.
    let writer = options.state.as_deref().map(|folder| {
        let writer = Writer::new(folder, Arc::clone(&shared));
        writer.with_context(|| format!("cannot use {} for state", folder.display()))
    });
    let writer = writer.transpose()?;
    let link = Arc::new(Link::default());
    let (events, told) = std::sync::mpsc::channel();
    let keeper = match (options.intercept, options.state.as_deref()) {
        (Some(intercept), Some(state)) => {
            let (shared, link) = (Arc::clone(&shared), Arc::clone(&link));
            let channel = (events.clone(), told);
            Some(intercept::start(intercept, place, state, shared, link, channel).context("cannot intercept")?)
        }
        (Some(_), None) => anyhow::bail!("interception needs a state folder"),
        (None, _) => None,
    };
    let subscription = Subscription {
        shared: Arc::clone(&shared),
        link: Arc::clone(&link),
        resources: state.as_ref().map(StateFile::load).unwrap_or_default(),
        state,
        default_service: options.default_service,
        node: options.node,
        keeper: keeper.as_ref().map(|_| events),
    };
    if has_any(&subscription.resources) {
        tracing::info!(revision = subscription.resources.revision, "the last good configuration is in force");
        subscription.swap();
    }

    let (stop, stopped) = watch::channel(false);
    let mut threads = Vec::with_capacity(workers);
    for (index, listeners) in listeners.into_iter().enumerate() {
        let (shared, stopped, drain) = (Arc::clone(&shared), stopped.clone(), options.drain);
        let thread = std::thread::Builder::new().name(format!("worker-{index}"));
        threads.push(thread.spawn(move || work(index, shared, listeners, stopped, drain))?);
    }
    let writer = writer.map(|mut writer| {
        let stopped = stopped.clone();
        std::thread::Builder::new().name("state".to_owned()).spawn(move || {
            block_on(writer.run(stopped));
            writer
        })
    });
    let writer = writer.transpose()?;
    let (checked, stop_checks) = (Arc::clone(&shared), stopped.clone());
    let checks = std::thread::Builder::new().name("checks".to_owned());
    threads.push(checks.spawn(move || block_on(check::run(checked, stop_checks)))?);
    let (controller, mut stopped) = (options.controller, stopped);
    let control = std::thread::Builder::new().name("control".to_owned()).spawn(move || {
        let held = Arc::clone(&shared);
        let control = async move {
            let serving = async {
                let listener = tokio::net::TcpListener::from_std(admin_listener)?;
                axum::serve(listener, admin::router(Admin { shared, link })).await
            };
            let letting_go = async {
                loop {
                    tokio::time::sleep(HELD).await;
                    if held.transitions.any_held() {
                        held.tell_held();
                    }
                }
            };
            tokio::select! {
                () = letting_go => {}
                () = subscription.run(controller) => {}
                served = serving => if let Err(error) = served {
                    tracing::error!(%error, "the admin endpoints are gone");
                },
                _ = stopped.wait_for(|stop| *stop) => {}
            }
        };
        block_on(control);
    })?;
    Ok(Running { http, admin, stop, workers: threads, control: Some(control), writer, keeper })
}

/// A list of listeners for each worker, and where connections are sent to that are taken in.
fn listeners(options: &Options, workers: usize) -> Result<(Place, Vec<Vec<TcpListener>>)> {
    if options.intercept.is_some() {
        return listen::redirected::bind(workers, intercept::has_ipv6())
            .context("cannot listen for connections that are taken in");
    }
    let listeners = listen::bind(options.http, workers)
        .with_context(|| format!("cannot listen on {} for requests", options.http))?;
    let place = Place { port: options.http.port(), ipv6: false };
    Ok((place, listeners.into_iter().map(|listener| vec![listener]).collect()))
}

/// With interception, an agent that takes over shares the port with the one that it takes over from.
fn admin_listener(options: &Options) -> Result<TcpListener> {
    let listener =
        if options.intercept.is_some() { listen::bind_shared(options.admin) } else { TcpListener::bind(options.admin) };
    let listener = listener.with_context(|| format!("cannot listen on {} for the admin endpoints", options.admin))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn has_any(resources: &Resources) -> bool {
    resources.all().next().is_some()
}

fn work(
    index: usize,
    shared: Arc<Shared>,
    listeners: Vec<TcpListener>,
    stopped: watch::Receiver<bool>,
    drain: Duration,
) {
    block_on(async move {
        let worker = Worker::new(index, shared);
        if let Err(error) = listen::run(worker, listeners, stopped, drain).await {
            tracing::error!(worker = index, %error, "a worker has ended");
        }
    });
}

/// Runs a future, and what it spawns, on this thread.
fn block_on(future: impl Future<Output = ()>) {
    match tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
        Ok(runtime) => runtime.block_on(future),
        Err(error) => tracing::error!(%error, "cannot start a thread's runtime"),
    }
}

impl Running {
    /// Finishes what is under way, takes nothing new, and returns when all threads have ended.
    ///
    /// Connections that are taken in are given back first, and what that was done with is removed last.
    pub fn shutdown(mut self) {
        if let Some(keeper) = &self.keeper {
            keeper.give_back();
        }
        // An error means that all threads have ended already.
        let _ = self.stop.send(true);
        for thread in self.workers.drain(..).chain(self.control.take()) {
            if thread.join().is_err() {
                tracing::error!("a thread has panicked");
            }
        }
        // Circuits may have changed while the last requests came to their ends.
        if let Some(Ok(mut writer)) = self.writer.take().map(JoinHandle::join) {
            writer.finish();
        }
        if let Some(keeper) = self.keeper.take() {
            keeper.remove();
        }
    }
}
