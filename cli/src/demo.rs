//! `switchyard demo`: samples, a load, and the very machinery of `switchyard run`, on this machine, for half a minute. It
//! shows a canary, a circuit and retries at work, checks what it shows, and leaves its YAML behind to go on from.

use std::io::{IsTerminal as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use switchyard_controller::console;
use switchyard_controller::run::Report;

use crate::{run, sample};

/// What callers do and see.
mod load;
/// The YAML.
mod manifests;
/// The services.
mod samples;
/// What happens, and what is claimed of it.
mod story;
/// What is shown.
mod view;

use manifests::{Folder, NAMESPACE};
use samples::{COUNT, Instance, SERVICE};
use story::Stage;
use view::View;

/// The demo never takes longer.
const LONGEST: Duration = Duration::from_secs(58);

/// What a shell calls a command that ctrl-c ended.
const INTERRUPTED: u8 = 130;

const NO_SIGNALS: &str = "cannot wait for signals";

/// Shows a canary, a circuit and retries at work, within a minute
///
/// Starts four sample services (two of version v1, two of v2), the proxy and a load of 200 requests a second, all in this
/// process and on loopback ports. Then it moves a canary by editing a file, breaks an instance and mends it, and makes
/// another one unreliable. Ends with a summary, and exits 0 if all happened as it says there.
#[derive(clap::Args, Debug)]
pub(crate) struct Demo {
    /// Where to put the YAML; it stays there
    #[arg(long, value_name = "DIR", default_value = "./switchyard-demo")]
    dir: PathBuf,
    /// Go on running afterwards, for curl, until ctrl-c
    #[arg(long)]
    keep: bool,
}

/// Plays the demo.
///
/// # Errors
/// If it cannot be set up: the folder, the ports, the proxy.
pub(crate) fn run(demo: &Demo) -> anyhow::Result<ExitCode> {
    let instances = samples::start()?;
    let folder = Folder::write(&demo.dir, &instances, 0)?;
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let running = run::start(run::Options {
        manifests: demo.dir.clone(),
        http: any_port,
        admin: any_port,
        workers: 0,
        state: None,
        default_service: None,
        memory: None,
        drain: Duration::from_secs(1),
        on_report: Box::new(tell_findings),
    })?;
    let (proxy, admin) = (running.http_addr(), running.admin_addr());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(async {
        let code = tokio::select! {
            code = play(demo, folder, instances, proxy, admin) => code?,
            stopped = sample::stop() => {
                stopped.context(NO_SIGNALS)?;
                return Ok(ExitCode::from(INTERRUPTED));
            }
        };
        if demo.keep {
            sample::stop().await.context(NO_SIGNALS)?;
        }
        Ok(code)
    });
    running.shutdown();
    code
}

/// What is wrong with the folder is told; that all goes well is seen anyhow.
fn tell_findings(report: Report) {
    if matches!(report, Report::Findings { .. }) {
        console::tell(&report, std::io::stderr().is_terminal());
    }
}

async fn play(
    demo: &Demo,
    folder: Folder,
    instances: [Instance; COUNT],
    proxy: SocketAddr,
    admin: SocketAddr,
) -> anyhow::Result<ExitCode> {
    let mut view = View::new();
    view.say(&format!("YAML in {}, proxy on http://{proxy}, admin on http://{admin}", folder.path().display()));
    for Instance { name, version, address, .. } in &instances {
        view.say(&format!("{name}: {SERVICE} {version} on {address}"));
    }
    let ending = ending(demo, &instances, &folder.rule_file(), proxy, admin);
    let story = async { Stage::set(folder, instances, proxy, admin, view).await?.play().await };
    let unkept = tokio::time::timeout(LONGEST, story).await.context("the demo took longer than a minute")??;
    // A reader that went away is no reason to fail.
    let _ = writeln!(std::io::stdout(), "{ending}");
    if !unkept.is_empty() {
        console::say(format_args!("not everything happened as it should:\n  {}", unkept.join("\n  ")));
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// How to go on.
fn ending(
    demo: &Demo,
    instances: &[Instance],
    rule_file: &std::path::Path,
    proxy: SocketAddr,
    admin: SocketAddr,
) -> String {
    let host = format!("-H 'Host: {SERVICE}.{NAMESPACE}'");
    let rule_file = rule_file.display();
    if demo.keep {
        let broken = instances.last().map_or(proxy, |instance| instance.address);
        return format!(
            "
It goes on running until ctrl-c. In another terminal:
  curl {host} http://{proxy}/
  curl http://{admin}/circuits
  curl -X POST 'http://{broken}/_sample?fail=100%'
Edit {rule_file} and save it."
        );
    }
    let command = std::env::args().next().unwrap_or_else(|| "switchyard".to_owned());
    let samples: String = instances
        .iter()
        .map(|Instance { version, address, .. }| {
            format!("  {command} sample --version {version} --listen {address} &\n")
        })
        .collect();
    format!(
        "
To go on from here:
{samples}  {command} run --manifests {}
and in another terminal:
  curl {host} http://127.0.0.1:15001/
Edit {rule_file} and save it.",
        demo.dir.display()
    )
}
