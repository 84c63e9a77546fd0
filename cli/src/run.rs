//! `switchyard run`: the same controller and the same agent as in a cluster, in one process, over the same stream (in memory),
//! with a folder of manifests as the source.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use switchyard_agent::run as agent;
use switchyard_agent::subscribe;
use switchyard_agent::table::ServiceKey;
use switchyard_controller::console;
use switchyard_controller::run as controller;
use switchyard_controller::serve::door::Door;
use switchyard_controller::source::directory::last_good::state_folder;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::output;

/// Whether the Service of `--default-service` is there.
mod default_service;

/// The flags of `switchyard run`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  switchyard run --manifests examples/canary
  curl -H 'Host: my-service.shop' http://127.0.0.1:15001/
  curl -H 'Host: my-service.shop' -H 'x-version: v2' http://127.0.0.1:15001/

The folder holds the same YAML that a cluster takes: RouteRule, CircuitPolicy, RetryPolicy, Service, EndpointSlice, Pod, \
Namespace. A file that is saved is in force at once; a broken one is reported, and what held before goes on.

Names that the proxy knows: my-service (where one namespace alone has it), my-service.shop, my-service.shop.svc and \
my-service.shop.svc.cluster.local, each with or without a port.

SWITCHYARD_LOG sets what is logged, as in SWITCHYARD_LOG=debug.")]
pub(crate) struct Run {
    /// The folder of manifests.
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// Where requests come in.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15001", value_parser = console::address)]
    http: SocketAddr,
    /// Where /healthz, /readyz, /metrics, /config and /circuits are.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15020", value_parser = console::address)]
    admin: SocketAddr,
    /// Threads for traffic; 0 is one per core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    workers: usize,
    /// Folder for what survives a restart [default: one per manifests folder, under the user's state home].
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The Service that takes requests whose Host names none.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    default_service: Option<ServiceKey>,
    /// What it may have in memory, in MiB; by default three quarters of its control group's limit, or a quarter of the machine. Near it,
    /// replies that their callers do not take are broken off, and then requests are refused.
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(64..1 << 30))]
    memory_limit: Option<u64>,
    /// How long requests under way may take to finish when it is told to end, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain: u64,
}

/// What `start` needs.
pub(crate) struct Options {
    /// The folder of manifests.
    pub(crate) manifests: PathBuf,
    /// Where requests come in; port 0 is any.
    pub(crate) http: SocketAddr,
    /// Where the admin endpoints are; port 0 is any.
    pub(crate) admin: SocketAddr,
    /// Threads for traffic; 0 is one per core.
    pub(crate) workers: usize,
    /// Folder for what survives a restart; none: nothing does.
    pub(crate) state: Option<PathBuf>,
    /// The Service for requests whose Host names none.
    pub(crate) default_service: Option<ServiceKey>,
    /// What the process may have in memory, in bytes.
    pub(crate) memory: Option<u64>,
    /// How long requests under way may take to finish.
    pub(crate) drain: Duration,
    /// Is told of what happens.
    pub(crate) on_report: Box<dyn Fn(controller::Report) + Send + Sync>,
}

/// Controller and agent, running.
#[derive(Debug)]
pub(crate) struct Running {
    agent: agent::Running,
    stop: oneshot::Sender<()>,
    controller: std::thread::JoinHandle<()>,
}

/// Runs until SIGTERM or ctrl-c.
pub(crate) fn run(args: &Run) -> Result<ExitCode> {
    switchyard_agent::log::to_stderr();
    if args.manifests.is_file() {
        anyhow::bail!("--manifests {}: a file, and the folder that it is in is meant", args.manifests.display());
    }
    if !args.manifests.is_dir() {
        anyhow::bail!("--manifests {}: there is no such folder", args.manifests.display());
    }
    let state = args.state.clone().or_else(|| state_folder(&args.manifests));
    let colour = std::io::stderr().is_terminal();
    let running = start(Options {
        manifests: args.manifests.clone(),
        http: args.http,
        admin: args.admin,
        workers: args.workers,
        state,
        default_service: args.default_service.clone(),
        memory: args.memory_limit.map(|mebibytes| mebibytes << 20),
        drain: Duration::from_secs(args.drain),
        on_report: Box::new(move |report| console::tell(&report, colour)),
    })?;
    output::say(format_args!("listening http={} admin={}", running.http_addr(), running.admin_addr()));
    switchyard_agent::signal::wait().context("cannot wait for SIGTERM")?;
    running.shutdown();
    Ok(ExitCode::SUCCESS)
}

/// Starts both. They talk as they do in a cluster, over a stream in memory.
///
/// # Errors
/// An address cannot be listened on, or the state folder not be used.
pub(crate) fn start(options: Options) -> Result<Running> {
    let (connections, incoming) = mpsc::unbounded_channel();
    let agent = agent::start(agent::Options {
        http: options.http,
        intercept: None,
        admin: options.admin,
        workers: options.workers,
        controller: subscribe::Controller::Memory(connections),
        node: "local".to_owned(),
        state: options.state.clone(),
        default_service: options.default_service.clone(),
        memory: options.memory,
        drain: options.drain,
    })?;
    let (stop, stopped) = oneshot::channel::<()>();
    let default_service = options.default_service.map(|service| Arc::new(default_service::Watch::new(service)));
    let (on_report, watch) = (options.on_report, default_service.clone());
    let on_report = Box::new(move |report: controller::Report| {
        let remark = watch.as_ref().and_then(|watch| watch.after(&report));
        on_report(report);
        if let Some(remark) = remark {
            console::say(format_args!("{remark}"));
        }
    });
    let source = controller::Source::Directory { manifests: options.manifests, state: options.state };
    let controlling = controller::Controller::new(controller::Options { source, door: Door::Open, on_report });
    if let Some(watch) = default_service {
        watch.follow(controlling.handle());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let controller = std::thread::Builder::new().name("controller".to_owned()).spawn(move || {
        let incoming = UnboundedReceiverStream::new(incoming).map(Ok::<_, std::io::Error>);
        // A sender that is gone says the same as a message.
        let shutdown = async { drop(stopped.await) };
        if let Err(error) = runtime.block_on(controlling.run(incoming, shutdown)) {
            tracing::error!(error = format!("{error:#}"), "the controller has ended; what is in force goes on");
        }
    })?;
    Ok(Running { agent, stop, controller })
}

impl Running {
    /// Where requests come in.
    pub(crate) fn http_addr(&self) -> SocketAddr {
        self.agent.http
    }

    /// Where the admin endpoints are.
    pub(crate) fn admin_addr(&self) -> SocketAddr {
        self.agent.admin
    }

    /// Finishes what is under way, and ends both.
    pub(crate) fn shutdown(self) {
        self.agent.shutdown();
        // An error means that the controller has ended already.
        let _ = self.stop.send(());
        if self.controller.join().is_err() {
            tracing::error!("the controller's thread has panicked");
        }
    }
}
