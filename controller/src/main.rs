//! The controller as a process of its own.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use switchyard_controller::console;
use switchyard_controller::run::{Controller, Options, Source};
use switchyard_controller::serve::admin;
use switchyard_controller::serve::door::Door;
use switchyard_controller::source::directory::last_good::state_folder;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::TcpListenerStream;
use tracing_subscriber::EnvFilter;

/// The controller of a cluster.
mod cluster;

/// Gives back what a hundred agents that come at once have needed for a moment.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Compiles RouteRules, CircuitPolicies and RetryPolicies for the agents, and tells them of every change.
///
/// The objects are a cluster's (--kubernetes), or those of a folder (--manifests): RouteRule, CircuitPolicy, RetryPolicy, Service,
/// EndpointSlice, Pod and Namespace, as YAML or JSON, in as many files and folders as you like. The folder is watched: a saved file
/// is in force at once; a broken one is reported, and what held before goes on.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
#[command(group = clap::ArgGroup::new("source").required(true))]
struct Arguments {
    /// The folder of manifests
    #[arg(long, value_name = "DIR", group = "source")]
    manifests: Option<PathBuf>,
    /// A cluster instead: the one this runs in, or the current one of KUBECONFIG
    #[arg(long, group = "source")]
    kubernetes: bool,
    /// Where agents connect: gRPC, with TLS and tokens in a cluster; without either from a folder, so keep it on loopback
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15010", value_parser = console::address)]
    listen: SocketAddr,
    /// Where /healthz, /readyz, /metrics and /config are served; keep it on loopback
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15011", value_parser = console::address)]
    admin: SocketAddr,
    /// Keeps here what is in force, so that a restart beside a broken file changes nothing [default: one folder per manifests
    /// folder, under the user's state home]
    #[arg(long, value_name = "DIR", conflicts_with = "kubernetes")]
    state: Option<PathBuf>,
    #[command(flatten)]
    cluster: cluster::Cluster,
}

const EXAMPLES: &str = "\
Examples:
  switchyard-controller --manifests examples/canary
  switchyard-agent --controller http://127.0.0.1:15010
      the agent that carries the traffic, in another terminal

  switchyard-controller --kubernetes
      against the cluster that kubectl uses; the Helm chart runs it so

  switchyard check examples/canary
      what is wrong with the manifests, without starting anything

The environment variable SWITCHYARD_LOG sets what is logged, such as debug or switchyard_controller=debug.";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("SWITCHYARD_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let colour = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour);
    // That a line cannot be written would be said on the same standard error, and nobody to listen is no reason to panic.
    lines.log_internal_errors(false).init();
    match serve(arguments, colour) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::say(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn serve(arguments: Arguments, colour: bool) -> anyhow::Result<()> {
    let Arguments { manifests, listen, admin, state, cluster, .. } = arguments;
    let listener = bind(listen, "agents; choose another address with --listen").await?;
    let admin_listener = bind(admin, "the admin pages; choose another address with --admin").await?;
    let (agents, pages) = (listener.local_addr()?, admin_listener.local_addr()?);
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    let on_report = Box::new(move |report| console::tell(&report, colour));
    let Some(manifests) = manifests else {
        return cluster::run(cluster, listener, admin_listener, on_report, shutdown).await;
    };
    console::say(format_args!("listening agents={agents} admin={pages}"));
    let state = state.or_else(|| state_folder(&manifests));
    if state.is_none() {
        tracing::warn!(
            "no --state, and no home to choose one in: a restart beside a broken file loses what held before"
        );
    }
    let source = Source::Directory { manifests, state };
    let controller = Controller::new(Options { source, door: Door::Open, on_report });
    let pages = axum::serve(admin_listener, admin::router(controller.handle()));
    tokio::select! {
        result = controller.run(TcpListenerStream::new(listener), shutdown) => result,
        result = async { pages.await } => result.context("the admin pages have failed"),
    }
}

async fn bind(address: SocketAddr, whose: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} for {whose}"))
}
