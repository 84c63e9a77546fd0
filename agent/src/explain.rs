//! Why a request goes where it goes: the same matcher and the same table as the proxy, asked in words.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::header::HOST;
use http::{HeaderMap, Method};
use serde::{Deserialize, Serialize};
use switchyard_proto::v1::Protocol;

use crate::admit::{self, Standing};
use crate::filters::fault::Fault;
use crate::filters::response::Response;
use crate::matching::{Entry, View};
use crate::message;
use crate::refusal::{Reason, Refusal};
use crate::retry::backoff::Strategy;
use crate::table::{Circuit, Destination, Filters, Instance, RetrySettings, Rule, Service, Table, Workload};
use crate::transitions::shown;

/// Everything about one request.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// `namespace/name` of the Service; none: the request is for nobody, or is none that can be passed on.
    pub service: Option<String>,
    /// The port that the request is for.
    pub port: Option<u16>,
    /// The rule that decides; none: the default, which is all ready instances.
    pub rule: Option<String>,
    /// Every match entry, in the order in which they are asked, up to the one that holds and beyond.
    pub considered: Vec<Considered>,
    /// What the rule does besides, in the order in which it is done.
    pub filters: Vec<String>,
    /// What the agent answers itself because the rule says so, each with its share of the requests.
    pub answers: Vec<Refused>,
    /// What keeps a user in one of the destinations, if anything.
    pub stickiness: Option<Sticks>,
    /// Where the request goes.
    pub destinations: Vec<Where>,
    /// Limits of time in force, in milliseconds.
    pub timeouts: Timeouts,
    /// What the agent answers itself because nobody can; none: all requests like this one are passed on, or answered as the rule says.
    pub refused: Option<Refused>,
}

/// What keeps a user in one destination.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sticks {
    /// What tells users apart.
    pub by: String,
    /// Whether this request says whose it is. If so, all of this user's go to the same destination; if not, each is drawn.
    pub known: bool,
}

/// A reply that the agent makes itself.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refused {
    /// The share of the requests that get it, in percent.
    pub percent: f64,
    /// Its status.
    pub status: u16,
    /// The word in `x-switchyard-reason`.
    pub reason: Cow<'static, str>,
    /// The line in its body.
    pub detail: String,
}

impl Refused {
    /// A refusal of this share of the requests.
    pub fn new(refusal: Refusal, percent: f64) -> Self {
        let (status, reason) = (refusal.status().as_u16(), refusal.reason.word());
        Self { percent, status, reason: reason.into(), detail: refusal.detail }
    }
}

/// One entry of the ordered list.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Considered {
    /// `namespace/name` of the RouteRule.
    pub rule: String,
    /// Which of its `matches`, from 0; none: it has no matches and holds for every request.
    pub entry: Option<u32>,
    /// Whether it decides.
    pub matched: bool,
    /// Whether it would, if no other came first.
    pub holds: bool,
    /// What it asks for, or what does not hold.
    pub why: String,
}

/// One destination as it is in force.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Where {
    /// `namespace/name` of the Service.
    pub service: String,
    /// Its version, if the rule names one.
    pub version: Option<String>,
    /// The weight as given.
    pub weight: u32,
    /// The share of the requests that is passed on to it, in percent.
    pub percent: f64,
    /// Its ready instances.
    pub instances: Vec<InstanceState>,
    /// It is drawn by nobody: another destination's requests go there while its circuit is open.
    pub is_fallback: bool,
    /// The circuit policy in force, if any.
    pub circuit: Option<String>,
    /// What happens to requests while no circuit of it lets them pass.
    pub when_open: Option<String>,
    /// How many requests may be under way to it now, where that is found out by how long they take.
    #[serde(default)]
    pub adaptive: Option<String>,
    /// The retry policy in force, if any.
    pub retry: Option<Retry>,
    /// What is done to requests that go there, and to their replies.
    pub filters: Vec<String>,
}

/// One instance.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceState {
    /// Where it listens.
    pub address: String,
    /// Its Pod, if it has one.
    pub name: Option<String>,
    /// Its version, if it has one.
    pub version: Option<String>,
    /// `closed`, `open`, `half-open`; none: no policy.
    pub circuit: Option<Cow<'static, str>>,
    /// Of a whole cluster: how many nodes see the circuit so, and why the first of them does; none: it is closed, or one agent was asked.
    pub seen: Option<Seen>,
    /// How the circuit is held by hand.
    pub held: Option<String>,
    /// It is asked only because too many others are out.
    pub kept_in: bool,
    /// Whether it can be asked now.
    pub available: bool,
}

/// How the nodes of a cluster see a circuit that is not closed everywhere.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    /// Nodes that see it so.
    pub nodes: u64,
    /// Why it opened.
    pub reason: String,
}

/// A retry policy in force.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// `namespace/name` of the policy.
    pub policy: String,
    /// Retries after the first try.
    pub max_retries: u32,
    /// How the wait grows.
    pub strategy: Cow<'static, str>,
    /// Whether this request's method may be sent twice.
    pub method_may_repeat: bool,
    /// The policy's limit for each try, in milliseconds.
    pub per_try_timeout_ms: Option<u64>,
    /// The policy's limit for all tries together, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// With no answer after so many milliseconds another instance is asked as well.
    pub hedge_after_ms: Option<u64>,
}

/// Limits of time, in milliseconds.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// For the whole request.
    pub request_ms: Option<u64>,
    /// For each try.
    pub backend_request_ms: Option<u64>,
}

impl From<Refusal> for Explanation {
    /// Of a request that gets no farther than that.
    fn from(refusal: Refusal) -> Self {
        Self { refused: Some(Refused::new(refusal, 100.0)), ..Self::default() }
    }
}

/// A request to explain, as it is put to an agent that runs.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Asked {
    /// Its method.
    pub method: String,
    /// Its target: a path, and perhaps a query.
    pub target: String,
    /// Its header fields, Host among them.
    pub headers: Vec<(String, String)>,
    /// Who sends it: `NAMESPACE/POD`, or any caller of a `NAMESPACE`.
    #[serde(default)]
    pub from: Option<String>,
}

impl Asked {
    /// What this table makes of it. `now` is the time as circuits count it.
    ///
    /// # Errors
    /// It is no request, or from nobody that the agent knows.
    pub fn answer(&self, table: &Table, now: admit::window::Millis) -> Result<Explanation, String> {
        let mut request = http::Request::builder().method(self.method.as_str()).uri(&self.target);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let mut request = request.body(()).map_err(|error| error.to_string())?.into_parts().0;
        let caller = match self.from.as_deref().map(|from| (from, from.split_once('/'))) {
            None => None,
            Some((namespace, None)) => {
                Some(Arc::new(Workload { namespace: namespace.to_owned(), ..Workload::default() }))
            }
            Some((from, Some((namespace, name)))) => {
                let mut known = table.addresses.workloads();
                let found = known.find(|workload| workload.namespace == namespace && workload.name == name);
                Some(Arc::clone(found.ok_or_else(|| format!("this agent knows no Pod {from}"))?))
            }
        };
        let explained = message::prepare(&mut request).map(|_| {
            let question = Question {
                method: &request.method,
                path: request.uri.path(),
                query: request.uri.query(),
                headers: &request.headers,
                caller: caller.as_deref(),
            };
            explain(table, &question, now)
        });
        Ok(explained.unwrap_or_else(Explanation::from))
    }
}

/// A request to explain, after [`crate::message::prepare`].
#[derive(Debug)]
pub struct Question<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path, without the query.
    pub path: &'a str,
    /// The query.
    pub query: Option<&'a str>,
    /// The header fields, Host among them.
    pub headers: &'a HeaderMap,
    /// Who sends it, where that is known.
    pub caller: Option<&'a Workload>,
}

/// Explains what would become of a request. `now` is the time as circuits count it.
pub fn explain(table: &Table, question: &Question<'_>, now: admit::window::Millis) -> Explanation {
    let host = question.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let (service, port) = match table.identify(host) {
        Ok((service, port)) => (table.at(service), port),
        Err(refusal) => return refusal.into(),
    };
    let label = Some(service.label.to_string());
    let Some(number) = service.ports.get(port).map(|port| port.number) else {
        let refusal = Refusal::new(Reason::NoInstances, format!("{} has no port", service.label));
        return Explanation { service: label, ..refusal.into() };
    };
    if service.ports.get(port).is_some_and(|port| port.protocol == Protocol::Tcp) {
        let detail = format!("port {number} of {} is not HTTP (appProtocol, or its name)", service.label);
        return Explanation { service: label, port: Some(number), ..Refusal::new(Reason::NotSupported, detail).into() };
    }
    let view = View {
        method: question.method,
        path: question.path,
        query: question.query,
        headers: question.headers,
        port: number,
        grpc: message::is_grpc(question.headers),
        caller: question.caller,
    };
    let mut decided: Option<&Entry> = None;
    let mut considered = Vec::new();
    for entry in &service.entries {
        let held = entry.holds(&view);
        let holds = held.is_ok();
        let matched = holds && decided.is_none();
        let why = match held {
            Err(mismatch) => mismatch.to_string(),
            Ok(()) if matched => entry.to_string(),
            Ok(()) => "it matches too, and comes later in the order".to_owned(),
        };
        if matched {
            decided = Some(entry);
        }
        considered.push(Considered {
            rule: service.rule(Some(entry.rule)).name.to_string(),
            entry: u32::try_from(entry.position).ok(),
            matched,
            holds,
            why,
        });
    }
    let rule = service.rule(decided.map(|entry| entry.rule));
    let filters = rule.filters.as_deref();
    let answers = filters.map_or_else(Vec::new, |filters| answers(filters, question, decided));
    let rest = 100.0 - answers.iter().map(|answer| answer.percent).sum::<f64>();
    let shares = rule.shares.get(port).cloned().unwrap_or_default();
    let key = rule.stickiness.as_ref().map(|stickiness| stickiness.key(question.headers, None));
    let arm = rule.stickiness.as_ref().and_then(|stickiness| {
        stickiness.arm(key.flatten()?, &rule.destinations, |position| shares.width(position) > 0)
    });
    let share = |position: usize| match arm {
        Some(arm) => {
            if arm == position {
                rest
            } else {
                0.0
            }
        }
        None => percent(shares.width(position), shares.total) * rest / 100.0,
    };
    let is_served = |d: &Destination| d.ports.get(port).is_some_and(|p| !p.ready.is_empty());
    let destinations = rule.destinations.iter().enumerate();
    let passed_on = |(position, d): (usize, &Destination)| if is_served(d) { share(position) } else { 0.0 };
    let unserved = destinations.clone().filter(|(_, d)| !is_served(d)).map(|(i, d)| (share(i), d));
    let is_out = |d: &Destination| {
        let ready = d.ports.get(port).map_or(&[][..], |p| &p.ready);
        let out = |i: &Arc<Instance>| admit::standing(i, now) == Standing::Out;
        !ready.is_empty() && d.fallback.is_none() && ready.iter().all(out)
    };
    let out = destinations.clone().filter(|(_, d)| is_out(d)).map(|(i, _)| share(i)).sum::<f64>();
    let refused = match rest > 0.0 {
        true => refused(service, rule, (shares.total, rest), unserved).or_else(|| barred(rule, out)),
        false => None,
    };
    Explanation {
        service: label,
        port: Some(number),
        rule: decided.map(|_| rule.name.to_string()),
        considered,
        filters: filters.map_or_else(Vec::new, Filters::words),
        answers,
        stickiness: rule.stickiness.as_ref().map(|s| Sticks { by: s.to_string(), known: key.flatten().is_some() }),
        refused,
        destinations: destinations
            .map(|(i, d)| place(rule, d, port, passed_on((i, d)), question.method, now))
            .collect(),
        timeouts: Timeouts {
            request_ms: rule.request_timeout.map(millis),
            backend_request_ms: rule.try_timeout.map(millis),
        },
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What is answered because the rule says so.
fn answers(filters: &Filters, question: &Question<'_>, matched: Option<&Entry>) -> Vec<Refused> {
    if let Some(preflight) = filters.cors.as_ref().and_then(|c| c.preflight(question.method, question.headers)) {
        return vec![Refused::new(preflight, 100.0)];
    }
    let aborted = filters.fault.as_ref().and_then(Fault::aborts);
    let aborted = aborted.map(|(refusal, share)| Refused::new(refusal, share.percent()));
    let rest = 100.0 - aborted.as_ref().map_or(0.0, |aborted| aborted.percent);
    let target = question.query.map_or_else(|| question.path.to_owned(), |query| format!("{}?{query}", question.path));
    let redirect = filters.redirect.as_ref().zip(target.parse().ok());
    let segments = matched.map_or(0, Entry::prefix_segments);
    let redirected = redirect.map(|(redirect, uri)| redirect.reply(question.headers, &uri, segments));
    let answered = redirected.or_else(|| filters.response.as_ref().map(Response::reply));
    let answered = answered.map(|answer| Refused::new(answer, rest));
    aborted.into_iter().chain(answered).filter(|answer| answer.percent > 0.0).collect()
}

/// A part of all that can be drawn, in percent.
fn percent(part: u64, total: u64) -> f64 {
    if total == 0 { 0.0 } else { part as f64 * 100.0 / total as f64 }
}

/// What is answered 503 because nobody is ready: the rest that no filter answers where nothing can be drawn, else the shares of destinations with no
/// instance, where the rule lets nobody take them over.
fn refused<'d>(
    service: &Service,
    rule: &Rule,
    (total, rest): (u64, f64),
    unserved: impl Iterator<Item = (f64, &'d Destination)>,
) -> Option<Refused> {
    let no_instances = |detail, percent| Some(Refused::new(Refusal::new(Reason::NoInstances, detail), percent));
    if total == 0 {
        return match rule.name.is_empty() {
            true => no_instances(format!("{} has no ready instance", service.label), rest),
            false => no_instances(format!("no destination of {} has a ready instance", rule.name), rest),
        };
    }
    let drawn: Vec<_> = unserved.filter(|(share, _)| *share > 0.0).collect();
    let said = drawn.iter().map(|(_, destination)| match &*destination.version {
        "" => format!("{} has no ready instance", destination.service),
        version => format!("{} has no ready instance of version {version}", destination.service),
    });
    let detail = said.collect::<Vec<_>>().join("; ");
    let part = drawn.iter().map(|(share, _)| share).sum();
    if drawn.is_empty() { None } else { no_instances(detail, part) }
}

/// What is not passed on because every circuit of a destination is open.
fn barred(rule: &Rule, percent: f64) -> Option<Refused> {
    let detail = match rule.name.is_empty() {
        true => "all circuits are open".to_owned(),
        false => format!("all circuits of a destination of {} are open", rule.name),
    };
    (percent > 0.0).then(|| Refused::new(Refusal::new(Reason::CircuitOpen, detail), percent))
}

fn place(
    rule: &Rule,
    destination: &Destination,
    port: usize,
    percent: f64,
    method: &Method,
    now: admit::window::Millis,
) -> Where {
    let instances = destination.ports.get(port).map_or(&[][..], |p| &p.ready);
    let circuit = instances.iter().find_map(|i| i.circuit.as_ref());
    let given = |text: &str| Some(text.to_owned()).filter(|t| !t.is_empty());
    Where {
        service: destination.service.to_string(),
        version: given(&destination.version),
        weight: destination.weight,
        percent,
        is_fallback: destination.is_fallback,
        circuit: circuit.map(|c| c.settings.name.to_string()),
        when_open: circuit.map(|_| when_open(rule, destination, instances)),
        adaptive: circuit.and_then(adaptive),
        retry: instances
            .iter()
            .find_map(|i| i.retry.as_deref())
            .or(destination.retry.as_deref())
            .map(|policy| retry(policy, method)),
        filters: destination.filters.as_deref().map_or_else(Vec::new, Filters::words),
        instances: instances
            .iter()
            .map(|instance| InstanceState {
                address: instance.address.to_string(),
                name: given(&instance.name),
                version: given(&instance.version),
                circuit: instance.circuit.as_ref().map(|c| shown(c.breaker.state(), c.held(now)).into()),
                seen: None,
                held: instance
                    .circuit
                    .as_ref()
                    .filter(|c| c.held(now).is_some())
                    .and_then(|c| c.settings.hold.as_ref().map(ToString::to_string)),
                kept_in: instance.circuit.as_ref().is_some_and(|c| c.held(now).is_none() && c.breaker.is_kept_in()),
                available: admit::standing(instance, now) != Standing::Out,
            })
            .collect(),
    }
}

/// How many requests may be under way to the policy's target, where that adapts.
fn adaptive(circuit: &Circuit) -> Option<String> {
    let (limits, in_use) = (circuit.settings.limits?, circuit.in_use.as_ref()?);
    let (settings, adaptive) = (limits.adaptive?, in_use.adaptive(limits)?);
    let latency = match adaptive.baseline() {
        Some(baseline) => format!("replies take {:.1} ms without load", baseline.as_secs_f64() * 1000.0),
        None => "the latency without load is not known yet".to_owned(),
    };
    let (limit, count) = (adaptive.limit().min(limits.requests), in_use.counts().requests);
    let (least, most) = (settings.least.min(limits.requests), limits.requests);
    Some(format!("up to {limit} requests under way at a time, of {least} to {most}; now {count}; {latency}"))
}

/// What happens to requests while no circuit of a destination lets them pass.
fn when_open(rule: &Rule, destination: &Destination, instances: &[Arc<Instance>]) -> String {
    if let Some(fallback) = destination.fallback.and_then(|at| rule.destinations.get(at)) {
        return match &*fallback.version {
            "" => format!("to {}", fallback.service),
            version => format!("to {} version {version}", fallback.service),
        };
    }
    let reply = instances.iter().filter_map(|i| i.circuit.as_ref()).find_map(|c| c.settings.reply.as_ref());
    match reply {
        Some(reply) => format!("answered {} as the policy says", reply.status().as_u16()),
        None => format!("answered 503 {}", Reason::CircuitOpen.word()),
    }
}

fn retry(policy: &RetrySettings, method: &Method) -> Retry {
    Retry {
        policy: policy.name.to_string(),
        max_retries: policy.max_retries,
        strategy: match policy.backoff.strategy {
            Strategy::Fixed => "Fixed",
            Strategy::Linear => "Linear",
            Strategy::Exponential => "Exponential",
            Strategy::Fibonacci => "Fibonacci",
            Strategy::DecorrelatedJitter => "DecorrelatedJitter",
        }
        .into(),
        method_may_repeat: policy.methods.contains(method),
        per_try_timeout_ms: policy.per_try_timeout.map(millis),
        timeout_ms: policy.timeout.map(millis),
        hedge_after_ms: policy.hedge.map(|hedge| millis(hedge.after)),
    }
}
