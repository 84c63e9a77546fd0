//! The command `switchyard`; kubectl finds it as `kubectl-switchyard`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use switchyard_controller::console;

/// Measured on the path of a request: a fifth fewer instructions than with the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Offline validation.
mod check;
/// Which circuits are open, and holding them by hand.
mod circuits;
/// The cluster that kubectl uses.
mod cluster;
/// A tour.
mod demo;
/// Why a request goes where it goes.
mod explain;
/// What a command writes.
mod output;
/// Controller and agent in one process.
mod run;
/// A small service to try things with.
mod sample;
/// How things stand in a cluster.
mod status;

/// Routing, circuit breaking and retries as three small resources.
///
/// Start with `switchyard demo`, which shows a canary, a circuit and retries at work within a minute; then `switchyard run`
/// with manifests of your own. Installed as `kubectl-switchyard`, it is `kubectl switchyard status` and so on.
#[derive(Parser, Debug)]
#[command(name = "switchyard", version, propagate_version = true)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run controller and agent in one process on a folder of manifests, with no cluster.
    Run(run::Run),
    /// Watch a canary, a circuit breaker and retries at work, with sample services and a load.
    Demo(demo::Demo),
    /// Say what is wrong with manifests, without running anything.
    Check(check::Check),
    /// Say which rule a request would meet, why the others do not match, and where it would go.
    Explain(explain::Explain),
    /// Say whether rules and policies are in force on every agent of a cluster, and why not.
    Status(status::Status),
    /// Say which circuits of a cluster are open, since when and why; hold them by hand.
    Circuits(circuits::Circuits),
    /// Run a small HTTP service to try things with.
    Sample(sample::Sample),
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Run(run) => run::run(&run),
        Command::Demo(demo) => demo::run(&demo),
        Command::Check(check) => check::run(&check),
        Command::Explain(explain) => explain::run(&explain),
        Command::Status(args) => status::status(&args),
        Command::Circuits(args) => circuits::circuits(&args),
        Command::Sample(sample) => sample::run(&sample),
    };
    done.unwrap_or_else(|error| {
        console::say(format_args!("error: {}", in_words(&error)));
        // 2 is "could not look" of `check` and `explain`, and as good as any for the others.
        ExitCode::from(2)
    })
}

/// An error with its causes. What an API server says is in words already, and is said once.
fn in_words(error: &anyhow::Error) -> String {
    let mut words = Vec::new();
    for cause in error.chain() {
        if let Some(kube::Error::Api(status)) = cause.downcast_ref() {
            words.push(status.message.clone());
            break;
        }
        words.push(cause.to_string());
    }
    words.join(": ")
}
