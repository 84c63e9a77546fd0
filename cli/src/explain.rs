//! `switchyard explain`: which rule a request meets and why the others do not match; where it then goes. It asks the same compiler
//! and the same matcher that carry traffic.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use http::header::{HOST, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use switchyard_agent::explain::{Asked, Considered, Explanation, Question, explain};
use switchyard_agent::message;
use switchyard_agent::resources::Resources;
use switchyard_agent::runtime::Runtime;
use switchyard_agent::table::{self, Table, Workload};
use switchyard_controller::object::ServiceKey;
use switchyard_controller::snapshot::Snapshot;
use switchyard_controller::world::World;
use switchyard_controller::{Loaded, compile, console};
use switchyard_crds::Severity;
use switchyard_crds::validate::entry_left_out;

use crate::check::count;
use crate::cluster::{Cluster, Scope};
use crate::output;

/// What the nodes of a cluster see of circuits.
mod seen;

/// The flags of `switchyard explain`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  switchyard explain --manifests examples/canary http://my-service.shop/
  switchyard explain --manifests examples/canary -H 'x-version: v2' \\
    -X POST 'http://my-service.shop/cart?beta=1'
  switchyard explain --manifests rules --from web/frontend-0 http://my-service.shop/
  switchyard explain --agent 127.0.0.1:15020 http://my-service.shop/
  kubectl switchyard explain -n shop -H 'x-version: v2' http://my-service.shop/

Exit status: 0 when the request would be routed, or answered as its rule says, 1 when it would be refused, 2 when that could \
not be told.")]
pub(crate) struct Explain {
    /// The request's URL; its host names the Service.
    #[arg(value_name = "URL")]
    url: String,
    /// The folder of manifests; without it, the cluster that kubectl uses.
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// An agent that runs, by its admin address, such as 127.0.0.1:15020: what it has in force, and its circuits as they are
    #[arg(long, value_name = "ADDR", conflicts_with_all = ["manifests", "namespace", "all_namespaces", "default_service"])]
    agent: Option<String>,
    #[command(flatten)]
    scope: Scope,
    /// A header field of the request.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The request's method.
    #[arg(short = 'X', long = "request", value_name = "METHOD", default_value = "GET")]
    method: String,
    /// Who sends the request: a Pod, or any caller of a namespace (without labels). Not given: nobody that is known.
    #[arg(long, value_name = "NAMESPACE[/POD]")]
    from: Option<String>,
    /// The Service that takes requests whose Host names none, as for `run`.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    default_service: Option<table::ServiceKey>,
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
    let mut request = request(args)?;
    let explanation = match &args.agent {
        Some(agent) => ask(agent, &request, args.from.clone())?,
        None => {
            let offline = Offline::of(args)?;
            message::prepare(&mut request).map_or_else(Explanation::from, |_| offline.explain(&request))
        }
    };
    let is_routed = explanation.refused.as_ref().is_none_or(|refused| refused.percent < 100.0);
    output::answer(&match args.output {
        Output::Json => serde_json::to_string_pretty(&explanation)? + "\n",
        Output::Text => text(&explanation),
    })?;
    Ok(if is_routed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Asks an agent that runs.
fn ask(agent: &str, request: &Parts, from: Option<String>) -> Result<Explanation> {
    let field = |(name, value): (&HeaderName, &HeaderValue)| {
        let value = value.to_str().with_context(|| format!("-H {name}: an agent can be asked about ASCII only"))?;
        anyhow::Ok((name.to_string(), value.to_owned()))
    };
    let headers = request.headers.iter().map(field).collect::<Result<_>>()?;
    let asked = Asked { method: request.method.to_string(), target: request.uri.to_string(), headers, from };
    let post = http::Request::post(format!("http://{agent}/explain"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(serde_json::to_vec(&asked)?)))
        .with_context(|| format!("--agent {agent}: not an address, such as 127.0.0.1:15020"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (status, body) = runtime.block_on(async {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let reply = client.request(post).await.with_context(|| format!("--agent {agent}: no agent answers there"))?;
        anyhow::Ok((reply.status(), reply.into_body().collect().await?.to_bytes()))
    })?;
    if !status.is_success() {
        bail!("--agent {agent}: {status}: {}", String::from_utf8_lossy(&body).trim_end());
    }
    serde_json::from_slice(&body)
        .with_context(|| format!("--agent {agent}: what answers there is no agent of this version"))
}

/// The request as curl would send it: the URL's authority is its Host, unless a header field says otherwise.
fn request(args: &Explain) -> Result<Parts> {
    let url = if args.url.contains("://") { args.url.clone() } else { format!("http://{}", args.url) };
    let uri: Uri = url.parse().with_context(|| format!("{url:?} is not a URL"))?;
    if let Some(scheme) = uri.scheme_str().filter(|scheme| !["http", "https"].contains(scheme)) {
        bail!("{url:?}: {scheme} is not spoken here, only http is");
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        bail!("{url:?}: there is no user in a request's target; send an Authorization field with -H");
    }
    let method =
        Method::from_bytes(args.method.as_bytes()).with_context(|| format!("{:?} is no method", args.method))?;
    let path = match uri.path_and_query().map_or("/", |path| path.as_str()) {
        query if query.starts_with('?') => format!("/{query}"),
        path => path.to_owned(),
    };
    let mut request = http::Request::builder().method(method).uri(path);
    let mut has_host = false;
    for field in &args.headers {
        let (name, value) =
            field.split_once(':').with_context(|| format!("-H {field:?}: write it as 'name: value'"))?;
        let name: HeaderName = name.trim().parse().with_context(|| format!("{name:?} is no header field's name"))?;
        let value: HeaderValue =
            value.trim().parse().with_context(|| format!("{value:?} is no header field's value"))?;
        has_host |= name == HOST;
        request = request.header(name, value);
    }
    if let Some(authority) = uri.authority().filter(|_| !has_host) {
        let host = authority.as_str();
        request = request.header(HOST, host.strip_suffix(":80").unwrap_or(host));
    }
    Ok(request.body(()).with_context(|| format!("{url:?} is not a URL that can be asked for"))?.into_parts().0)
}

/// Who sends the request, as an agent would know it.
fn caller(world: &World, from: &str, place: &str) -> Result<Workload> {
    let Some((namespace, name)) = from.split_once('/') else {
        return Ok(Workload { namespace: from.to_owned(), ..Workload::default() });
    };
    let pod = world.pod(namespace, name).with_context(|| format!("--from {from}: there is no such Pod in {place}"))?;
    Ok(Workload {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        service_account: pod.service_account.clone(),
        labels: pod.labels.clone(),
        addresses: pod.addresses.clone(),
    })
}

/// What an agent would have of some manifests, and what it would not.
struct Offline {
    world: World,
    table: Table,
    runtime: Runtime,
    caller: Option<Workload>,
    /// Where all of it is from, if not from a folder.
    cluster: Option<Cluster>,
}

impl Offline {
    fn of(args: &Explain) -> Result<Self> {
        let (world, findings, place, cluster) = match &args.manifests {
            Some(folder) => {
                let Loaded { world, findings, .. } = switchyard_controller::load(std::slice::from_ref(folder))?;
                (world, findings, folder.display().to_string(), None)
            }
            None => {
                let cluster = Cluster::connect()?;
                let namespaces = cluster.namespaces(&args.scope)?;
                let place = format!("namespace {}", namespaces.iter().cloned().collect::<Vec<_>>().join(", "));
                (cluster.world(&namespaces)?, Vec::new(), place, Some(cluster))
            }
        };
        let errors = findings.iter().filter(|f| f.severity == Severity::Error).count();
        if errors > 0 {
            console::say(format_args!(
                "note: {} in these manifests; what is refused is left out. `switchyard check` tells.",
                count(errors, "error")
            ));
        }
        let mut resources = Resources::default();
        let mut snapshot = Snapshot::default();
        for service in world.services().into_iter().filter(|key| world.service(key).is_some()) {
            let compiled = compile::service(&world, &service);
            snapshot.set(&service, compiled.routes, compiled.instances);
        }
        for (_, resource) in snapshot.resources() {
            resources.put(resource.clone());
        }
        let runtime = Runtime::new(1);
        let default_service = args.default_service.as_ref();
        let table = Table::build(&resources, &Table::default(), &runtime, default_service);
        if table.services().next().is_none() {
            bail!("there is no Service in {place}");
        }
        if let Some(missing) = default_service.filter(|key| table.service(key).is_none()) {
            console::say(format_args!("note: --default-service {missing}: there is no such Service"));
        }
        let caller = args.from.as_deref().map(|from| caller(&world, from, &place)).transpose()?;
        Ok(Self { world, table, runtime, caller, cluster })
    }

    fn explain(&self, request: &Parts) -> Explanation {
        let question = Question {
            method: &request.method,
            path: request.uri.path(),
            query: request.uri.query(),
            headers: &request.headers,
            caller: self.caller.as_ref(),
        };
        let now = self.runtime.millis(switchyard_agent::clock::now());
        let mut explanation = explain(&self.table, &question, now);
        self.cluster.iter().for_each(|cluster| seen::tell(cluster, &mut explanation));
        explanation.service.iter().for_each(|service| self.tell_left_out(service));
        explanation
    }

    /// Tells of the entries of rules that agents do not get: no part of the answer, which is the same as an agent's.
    fn tell_left_out(&self, service: &str) {
        let (namespace, name) = service.split_once('/').unwrap_or_default();
        let service = ServiceKey { namespace: namespace.to_owned(), name: name.to_owned() };
        for rule in self.world.rules_of(&service) {
            let own = |name: &Option<String>| name.clone().unwrap_or_default();
            let name = format!("{}/{}", own(&rule.metadata.namespace), own(&rule.metadata.name));
            for (position, entry) in rule.spec.matches.iter().enumerate() {
                if let Some(why) = entry_left_out(rule, entry) {
                    console::say(format_args!("note: {name} matches[{position}] is left out: {why}"));
                }
            }
        }
    }
}

/// For people: aligned, and no more than is asked.
fn text(explanation: &Explanation) -> String {
    // A request that no rule was asked about.
    let is_asked = explanation.rule.is_some() || !explanation.destinations.is_empty();
    let Some((service, port)) = explanation.service.as_ref().zip(explanation.port).filter(|_| is_asked) else {
        let refused = explanation.refused.iter();
        return refused.map(|r| format!("refused: {} {}: {}\n", r.status, r.reason, r.detail)).collect();
    };
    let mut lines = vec![format!("service  {service} port {port}")];
    match &explanation.rule {
        Some(rule) => lines.push(format!("rule     {rule}")),
        None => lines.push("rule     none matches: all ready instances take part".to_owned()),
    }
    lines.extend(considered(&explanation.considered));
    if !explanation.filters.is_empty() || explanation.stickiness.is_some() {
        lines.push(String::new());
    }
    lines.extend(explanation.filters.iter().map(|filter| format!("filter   {filter}")));
    if let Some(stickiness) = &explanation.stickiness {
        let known = if stickiness.known {
            "this request's user stays"
        } else {
            "this request does not have it, so it is drawn"
        };
        lines.push(format!("sticks   by {}: {known}", stickiness.by));
    }
    lines.push(String::new());
    for place in &explanation.destinations {
        let version = place.version.as_ref().map(|v| format!(" version {v}")).unwrap_or_default();
        let share = match place.is_fallback {
            true => "only while another's circuit is open".to_owned(),
            false => format!("weight {}, {} of requests", place.weight, percent(place.percent)),
        };
        lines.push(format!("to {}{version}: {share}", place.service));
        for instance in &place.instances {
            let seen = instance.seen.as_ref().map(|seen| {
                let nodes = count(usize::try_from(seen.nodes).unwrap_or(usize::MAX), "node");
                format!("{} on {nodes} ({})", instance.circuit.as_deref().unwrap_or_default(), seen.reason)
            });
            let notes: BTreeMap<&str, Option<&str>> = BTreeMap::from([
                ("circuit", seen.as_deref().or(instance.circuit.as_deref())),
                ("kept in", instance.kept_in.then_some("as too many others are out")),
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
        lines.extend(place.filters.iter().map(|filter| format!("  filter {filter}")));
        if let Some(circuit) = &place.circuit {
            let held = place.instances.iter().find_map(|instance| instance.held.as_ref());
            let held = held.map(|held| format!(", {held}")).unwrap_or_default();
            lines.push(format!("  circuit policy {circuit}{held}"));
            if let Some(instead) = place.when_open.as_ref().filter(|_| !place.is_fallback) {
                lines.push(format!("  while it is open: {instead}"));
            }
            lines.extend(place.adaptive.iter().map(|limit| format!("  limits.adaptive: {limit}")));
        }
        if let Some(retry) = &place.retry {
            let may =
                if retry.method_may_repeat { "" } else { ", only for connections that fail: not with this method" };
            let limit =
                |name: &str, limit: Option<u64>| limit.map_or_else(String::new, |ms| format!(", {name} {ms} ms"));
            let limits = limit("each try", retry.per_try_timeout_ms) + &limit("all together", retry.timeout_ms);
            let hedge = retry.hedge_after_ms.filter(|_| retry.method_may_repeat);
            let hedge =
                hedge.map(|after| format!("; with no answer after {after} ms another instance is asked as well"));
            lines.push(format!(
                "  retry policy {}: up to {} retries, {}{limits}{may}{}",
                retry.policy,
                retry.max_retries,
                retry.strategy,
                hedge.unwrap_or_default()
            ));
        }
    }
    let limits = [("request", explanation.timeouts.request_ms), ("each try", explanation.timeouts.backend_request_ms)];
    for (name, limit) in limits {
        if let Some(limit) = limit {
            lines.push(format!("timeout for {name}: {limit} ms"));
        }
    }
    for refused in explanation.answers.iter().chain(&explanation.refused) {
        let share = match refused.percent {
            100.0 => String::new(),
            share => format!("{} of requests ", percent(share)),
        };
        let (status, reason, detail) = (refused.status, &refused.reason, &refused.detail);
        lines.extend([String::new(), format!("{share}would be answered {status} {reason}: {detail}")]);
    }
    lines.join("\n") + "\n"
}

/// Rules that are shown of those asked before the one that holds, and of those behind it that hold too.
const SHOWN: usize = 20;

/// The rules that were asked, up to the one that holds, and those behind it that would hold too.
fn considered(all: &[Considered]) -> Vec<String> {
    let asked = all.iter().position(|c| c.matched).map_or(all.len(), |at| at + 1);
    let (asked, later) = all.split_at(asked);
    let (before, decides) = asked.split_at(asked.len() - usize::from(asked.last().is_some_and(|c| c.matched)));
    let also: Vec<&Considered> = later.iter().filter(|c| c.holds).collect();
    let shown = before.iter().take(SHOWN).chain(decides).chain(also.iter().take(SHOWN).copied());
    let name = |c: &Considered| c.entry.map_or_else(|| c.rule.clone(), |entry| format!("{} matches[{entry}]", c.rule));
    let widest = shown.clone().map(|c| name(c).len()).max().unwrap_or_default();
    let line = |c: &Considered| format!("  {} {:widest$}  {}", if c.matched { "yes" } else { "no " }, name(c), c.why);
    let more = |count: usize, what: &str| (count > 0).then(|| format!("  ... {count} {what}"));
    let mut lines = Vec::new();
    if !all.is_empty() {
        lines.push(String::new());
    }
    lines.extend(before.iter().take(SHOWN).map(line));
    lines.extend(more(before.len().saturating_sub(SHOWN), "more that come first do not match (--output json has all)"));
    lines.extend(decides.iter().map(line));
    lines.extend(also.iter().take(SHOWN).map(|c| line(c)));
    lines.extend(more(later.len() - also.len().min(SHOWN), "more come later in the order"));
    lines
}

fn percent(share: f64) -> String {
    format!("{share:.4}%").replace(".0000%", "%")
}
