//! The command `switchyard-agent`.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use switchyard_agent::run::{Options, start};
use switchyard_agent::subscribe::Controller;

/// Measured on the path of a request: a fifth fewer instructions than with the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Routes, breaks circuits and retries on the traffic that passes through it, as a controller says.
///
/// It starts from the last good configuration when no controller answers, and goes on when the controller is gone.
#[derive(Parser, Debug)]
#[command(
    name = "switchyard-agent",
    version,
    after_help = "Example:
  switchyard-controller --manifests ./manifests &
  switchyard-agent --controller http://127.0.0.1:15010
  curl -H 'Host: my-service.shop' http://127.0.0.1:15001/"
)]
struct Args {
    /// The controller's address; several, with commas, where there are several controllers and no name for all of them.
    #[arg(long, value_name = "ADDR", default_value = "http://127.0.0.1:15010", value_delimiter = ',')]
    controller: Vec<String>,
    /// The certificate of the authority that the controller's is of (PEM); with https.
    #[arg(long, value_name = "FILE", requires = "token")]
    ca: Option<PathBuf>,
    /// The token that the agent shows the controller; a cluster mounts it. Read anew for each stream.
    #[arg(long, value_name = "FILE", requires = "ca")]
    token: Option<PathBuf>,
    /// Where requests come in.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15001", value_parser = address)]
    http: SocketAddr,
    /// Where /healthz, /readyz, /metrics, /config and /circuits are.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15020", value_parser = address)]
    admin: SocketAddr,
    /// Threads for traffic; 0 is one per core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    workers: usize,
    /// Folder for what survives a restart.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/switchyard")]
    state: PathBuf,
    /// This agent's name, as the controller shows it.
    #[arg(long, value_name = "NAME", env = "NODE_NAME", default_value = "local")]
    node: String,
    /// The Service that takes requests whose Host names none, as namespace/name.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    default_service: Option<switchyard_agent::table::ServiceKey>,
    /// Take in the connections of this node's pods to Services that are opted in. Needs Linux, nft, ip and CAP_NET_ADMIN; --http is
    /// not listened on then.
    #[arg(long)]
    intercept: bool,
    /// With --intercept: instances see this node's address instead of the calling pod's.
    #[arg(long, requires = "intercept")]
    node_address: bool,
    /// With --intercept: give connections back when there was no controller for so long, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    cut_off: u64,
    /// Remove what an agent that is gone has left in the kernel, and end.
    #[arg(long)]
    uninstall: bool,
    /// What the agent may have in memory, in MiB; by default three quarters of its control group's limit, or a quarter of the machine. Near
    /// it, replies that their callers do not take are broken off, and then requests are refused.
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(64..1 << 30))]
    memory_limit: Option<u64>,
    /// How long requests under way may take to finish on SIGTERM, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    switchyard_agent::log::to_stderr();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody to listen is no reason to panic.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// An address as a flag gives it, or what it must look like.
fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        let port = text.rsplit(':').next().and_then(|port| port.parse::<u16>().ok()).unwrap_or(15001);
        format!("write an IP address and a port, such as 127.0.0.1:{port}")
    })
}

fn run(args: Args) -> anyhow::Result<()> {
    use anyhow::Context;
    if args.uninstall {
        return switchyard_agent::intercept::uninstall().map_err(anyhow::Error::msg);
    }
    let addresses = args.controller.iter().map(|address| {
        let url = if address.contains("://") { address.clone() } else { format!("http://{address}") };
        let url = url.parse::<tonic::transport::Uri>().ok();
        let spoken = |uri: &tonic::transport::Uri| matches!(uri.scheme_str(), Some("http" | "https"));
        url.filter(|uri| spoken(uri) && uri.port_u16().is_some()).with_context(|| {
            format!("--controller {address:?}: write a host and a port, such as 10.0.0.7:15010, with or without http:// or https://")
        })
    });
    let addresses = addresses.collect::<anyhow::Result<Vec<tonic::transport::Uri>>>()?;
    let is_tls = |uri: &tonic::transport::Uri| uri.scheme_str() == Some("https");
    let controller = match (args.ca, args.token) {
        (Some(ca), Some(token)) if addresses.iter().all(is_tls) => Controller::Cluster { addresses, ca, token },
        (Some(_), _) => anyhow::bail!("--ca and --token go with https:// addresses: {}", args.controller.join(",")),
        _ if addresses.iter().any(is_tls) => anyhow::bail!("an https:// address needs --ca and --token"),
        _ => Controller::Addresses(addresses),
    };
    let running = start(Options {
        http: args.http,
        intercept: args.intercept.then(|| switchyard_agent::intercept::Options {
            node_address: args.node_address,
            cut_off: Duration::from_secs(args.cut_off),
        }),
        admin: args.admin,
        workers: args.workers,
        controller,
        node: args.node,
        state: Some(args.state),
        default_service: args.default_service,
        memory: args.memory_limit.map(|mebibytes| mebibytes << 20),
        drain: Duration::from_secs(args.drain),
    })?;
    // Nor to stop.
    let _ = writeln!(std::io::stdout(), "listening http={} admin={}", running.http, running.admin);
    switchyard_agent::signal::wait()?;
    running.shutdown();
    Ok(())
}
