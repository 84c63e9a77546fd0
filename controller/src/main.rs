//! The controller as a process of its own.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use switchyard_controller::console;
use switchyard_controller::run::{Controller, Options};
use switchyard_controller::serve::admin;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::TcpListenerStream;
use tracing_subscriber::EnvFilter;

/// Compiles RouteRules, CircuitPolicies and RetryPolicies for the agents, and tells them of every change.
///
/// The manifests are what a cluster takes: RouteRule, CircuitPolicy, RetryPolicy, Service, EndpointSlice, Pod and
/// Namespace, as YAML or JSON, in as many files and folders as you like. The folder is watched: a saved file is in force at
/// once; a broken one is reported, and what held before goes on.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    /// The folder of manifests
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// Where agents connect (gRPC, no TLS: keep it on loopback or on a network of your own)
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15010")]
    listen: SocketAddr,
    /// Where /healthz, /readyz, /metrics and /config are served
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15011")]
    admin: SocketAddr,
    /// Keeps here what is in force, so that a restart beside a broken file changes nothing
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  switchyard-controller --manifests examples/canary
  switchyard-agent --controller http://127.0.0.1:15010
      the agent that carries the traffic, in another terminal

  switchyard check examples/canary
      what is wrong with the manifests, without starting anything

The environment variable SWITCHYARD_LOG sets what is logged, such as debug or switchyard_controller=debug.";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("SWITCHYARD_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let colour = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour).init();
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
    let Arguments { manifests, listen, admin, state } = arguments;
    let bind = async |address: SocketAddr, whose: &str| {
        TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} for {whose}"))
    };
    let listener = bind(listen, "agents; choose another address with --listen").await?;
    let admin_listener = bind(admin, "the admin pages; choose another address with --admin").await?;
    console::say(format_args!("listening agents={} admin={}", listener.local_addr()?, admin_listener.local_addr()?));
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;

    let options = Options { manifests, state, on_report: Box::new(move |report| console::tell(&report, colour)) };
    let controller = Controller::new(options);
    let pages = axum::serve(admin_listener, admin::router(controller.handle()));
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    tokio::select! {
        result = controller.run(TcpListenerStream::new(listener), shutdown) => result,
        result = async { pages.await } => result.context("the admin pages have failed"),
    }
}
