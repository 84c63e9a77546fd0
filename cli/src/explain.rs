//! `switchyard explain`: which rule a request meets and why the others do not match; where it then goes. It asks the same compiler
//! and the same matcher that carry traffic.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use switchyard_agent::explain::{Explanation, Question, explain};
use switchyard_agent::resources::Resources;
use switchyard_agent::runtime::Runtime;
use switchyard_agent::table::Table;
use switchyard_controller::compile;
use switchyard_controller::snapshot::Snapshot;
use switchyard_crds::Severity;

/// The flags of `switchyard explain`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  switchyard explain --manifests examples/canary http://my-service.shop/
  switchyard explain --manifests examples/canary -H 'x-version: v2' -X POST http://my-service.shop/cart?beta=1

Exit status: 0 when the request would be routed, 1 when it would be refused, 2 when that could not be told.")]
pub(crate) struct Explain {
    /// The request's URL; its host names the Service.
    #[arg(value_name = "URL")]
    url: String,
    /// The folder of manifests.
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// A header field of the request.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The request's method.
    #[arg(short = 'X', long = "request", value_name = "METHOD", default_value = "GET")]
    method: String,
    /// How the answer is written.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Explains one request.
pub(crate) fn run(args: &Explain) -> Result<ExitCode> {
    let url = if args.url.contains("://") { args.url.clone() } else { format!("http://{}", args.url) };
    let uri: Uri = url.parse().with_context(|| format!("{url:?} is not a URL"))?;
    let method =
        Method::from_bytes(args.method.as_bytes()).with_context(|| format!("{:?} is no method", args.method))?;
    let mut headers = HeaderMap::new();
    for field in &args.headers {
        let (name, value) =
            field.split_once(':').with_context(|| format!("-H {field:?}: write it as 'name: value'"))?;
        let name: HeaderName = name.trim().parse().with_context(|| format!("{name:?} is no header field's name"))?;
        let value: HeaderValue =
            value.trim().parse().with_context(|| format!("{value:?} is no header field's value"))?;
        headers.append(name, value);
    }
    let host = match headers.get(http::header::HOST).map(HeaderValue::to_str) {
        Some(host) => host.context("the Host field is odd")?.to_owned(),
        None => uri.authority().map(ToString::to_string).unwrap_or_default(),
    };
    let (table, runtime) = table(args)?;
    let question = Question { host: &host, method: &method, path: uri.path(), query: uri.query(), headers: &headers };
    match explain(&table, &question, runtime.millis(switchyard_agent::clock::now())) {
        Ok(explanation) if args.output == Output::Json => {
            println!("{}", serde_json::to_string_pretty(&explanation)?);
            Ok(ExitCode::SUCCESS)
        }
        Ok(explanation) => {
            print!("{}", text(&explanation));
            Ok(ExitCode::SUCCESS)
        }
        Err(refusal) => {
            let (reason, status) = (refusal.reason.word(), refusal.status().as_u16());
            match args.output {
                Output::Json => {
                    let refused =
                        serde_json::json!({"refused": {"reason": reason, "status": status, "detail": refusal.detail}});
                    println!("{}", serde_json::to_string_pretty(&refused)?);
                }
                Output::Text => println!("refused: {status} {reason}: {}", refusal.detail),
            }
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The table that an agent would have of these manifests.
fn table(args: &Explain) -> Result<(Table, Runtime)> {
    let loaded = switchyard_controller::load(std::slice::from_ref(&args.manifests))
        .with_context(|| format!("cannot read {}", args.manifests.display()))?;
    let errors: Vec<_> = loaded.findings.iter().filter(|f| f.severity == Severity::Error).collect();
    if !errors.is_empty() {
        eprintln!(
            "note: {} errors in these manifests; what is refused is left out. `switchyard check` tells.",
            errors.len()
        );
    }
    let mut resources = Resources::default();
    let mut snapshot = Snapshot::default();
    for service in loaded.world.services().into_iter().filter(|key| loaded.world.service(key).is_some()) {
        let compiled = compile::service(&loaded.world, &service);
        snapshot.set(&service, compiled.routes, compiled.instances);
    }
    for (_, resource) in snapshot.resources() {
        resources.put(resource.clone());
    }
    let runtime = Runtime::new(1);
    let table = Table::build(&resources, &Table::default(), &runtime, None);
    if table.services().next().is_none() {
        bail!("there is no Service in {}", args.manifests.display());
    }
    Ok((table, runtime))
}

/// For people: aligned, and no more than is asked.
fn text(explanation: &Explanation) -> String {
    let mut lines = vec![format!("service  {} port {}", explanation.service, explanation.port)];
    match &explanation.rule {
        Some(rule) => lines.push(format!("rule     {rule}")),
        None => lines.push("rule     none matches: all ready instances take part".to_owned()),
    }
    if !explanation.considered.is_empty() {
        lines.push(String::new());
        let mut widest = 0;
        let named: Vec<(String, &str, bool)> = explanation
            .considered
            .iter()
            .map(|c| {
                let name = c.entry.map_or_else(|| c.rule.clone(), |entry| format!("{} matches[{entry}]", c.rule));
                widest = widest.max(name.len());
                (name, c.why.as_str(), c.matched)
            })
            .collect();
        for (name, why, matched) in named {
            lines.push(format!("  {} {name:widest$}  {why}", if matched { "yes" } else { "no " }));
        }
    }
    lines.push(String::new());
    for place in &explanation.destinations {
        let version = place.version.as_ref().map(|v| format!(" version {v}")).unwrap_or_default();
        lines.push(
            format!("to {}{version}: weight {}, {:.4}% of requests", place.service, place.weight, place.percent)
                .replace(".0000%", "%"),
        );
        for instance in &place.instances {
            let notes: BTreeMap<&str, Option<&str>> = BTreeMap::from([
                ("circuit", instance.circuit),
                ("pod", instance.name.as_deref()),
                ("version", instance.version.as_deref()),
            ]);
            let notes: Vec<String> =
                notes.into_iter().filter_map(|(name, value)| Some(format!("{name} {}", value?))).collect();
            lines.push(format!("  {}  {}", instance.address, notes.join(", ")).trim_end().to_owned());
        }
        if place.instances.is_empty() {
            lines.push("  no ready instance".to_owned());
        }
        if let Some(circuit) = &place.circuit {
            lines.push(format!("  circuit policy {circuit}"));
        }
        if let Some(retry) = &place.retry {
            let may =
                if retry.method_may_repeat { "" } else { ", only for connections that fail: not with this method" };
            lines.push(format!(
                "  retry policy {}: up to {} retries, {}{may}",
                retry.policy, retry.max_retries, retry.strategy
            ));
        }
    }
    let limits = [("request", explanation.timeouts.request_ms), ("each try", explanation.timeouts.backend_request_ms)];
    for (name, limit) in limits {
        if let Some(limit) = limit {
            lines.push(format!("timeout for {name}: {limit} ms"));
        }
    }
    lines.join("\n") + "\n"
}
