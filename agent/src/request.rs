//! The path of a request, top to bottom: prepare, identify, match, choose, admit, forward, classify, retry?, relay.
//!
//! Keeps true:
//! - One table for the whole life of a request.
//! - Every request is recorded once ([`Exchange`]), and every try is told to its circuits once (`Permit`), however it ends.
//! - Whatever goes wrong leaves by `?` as a [`Refusal`] and becomes a reply in one place.

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{CONNECTION, HOST};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use crate::body::{ReplyBody, RequestBody};
use crate::choose::{self, Tried};
use crate::classify::{self, Verdict};
use crate::forward::{self, Connection, Failure};
use crate::interim::{self, Interim};
use crate::matching::{self, View};
use crate::message::{self, Facts};
use crate::record::Exchange;
use crate::refusal::{Reason, Refusal};
use crate::reply::Relay;
use crate::retry::replay::Replayable;
use crate::retry::{self, Next, Tries};
use crate::table::{At, Outcome, RetrySettings, Rule};
use crate::worker::{Caller, TableRef, Worker};
use crate::{clock, tunnel};

/// Says, on every request that may be retried, which try it is; an agent that sees it does not retry by itself.
pub const ATTEMPT: HeaderName = HeaderName::from_static("x-switchyard-attempt");

/// Answers one request.
///
/// # Errors
/// Never: what goes wrong is a reply too.
pub async fn handle(
    worker: Rc<Worker>,
    caller: Rc<Caller>,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, Infallible> {
    let table = worker.table();
    let mut exchange = Exchange::begin(&worker, Rc::clone(&caller), &table, clock::now());
    let (mut parts, body) = request.into_parts();
    let facts = match message::prepare(&mut parts) {
        Ok(facts) => facts,
        Err(refusal) => {
            exchange.refused(refusal.reason);
            return Ok(if parts.version < Version::HTTP_2 { refusal.reply_and_close() } else { refusal.reply(false) });
        }
    };
    let on_upgrade = parts.extensions.remove::<OnUpgrade>();
    let (version, ending) = (parts.version, worker.is_ending());
    let served = serve(&worker, &table, &mut exchange, parts, body, facts, &caller).await;
    caller.interim.settle();
    match served {
        Ok(mut reply) => {
            exchange.status(reply.head.status.as_u16());
            let switching = reply.head.status == StatusCode::SWITCHING_PROTOCOLS;
            message::prepare_reply(&mut reply.head.headers, switching);
            if ending && !switching && version < Version::HTTP_2 {
                reply.head.headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            if switching {
                return Ok(tunnel::open(&worker, caller, on_upgrade, reply.head, exchange));
            }
            reply.relay.ends(exchange);
            Ok(Response::from_parts(reply.head, ReplyBody::Relay(reply.relay)))
        }
        Err(refusal) => {
            let last = caller.original.is_some() && refusal.reason == Reason::NoRoute || ending;
            let reply =
                if last && version < Version::HTTP_2 { refusal.reply_and_close() } else { refusal.reply(facts.grpc) };
            exchange.refused(refusal.reason);
            exchange.status(refusal.status().as_u16());
            Ok(reply)
        }
    }
}

/// An instance's reply: its head, and the rest as it comes.
struct Reply {
    head: http::response::Parts,
    relay: Box<Relay>,
}

/// Finds the rule, and tries until there is a reply that stands.
async fn serve(
    worker: &Rc<Worker>,
    table: &TableRef,
    exchange: &mut Exchange,
    parts: Parts,
    body: Incoming,
    facts: Facts,
    caller: &Caller,
) -> Result<Reply, Refusal> {
    let (service_at, port) = identify(table, caller, &parts)?;
    exchange.identified(service_at);
    let service = table.at(service_at);
    let Some(service_port) = service.ports.get(port) else {
        return Err(Refusal::new(Reason::NoInstances, format!("{} has no port", service.label)));
    };
    let view = View {
        method: &parts.method,
        path: parts.uri.path(),
        query: parts.uri.query(),
        headers: &parts.headers,
        port: service_port.number,
    };
    let rule_at = matching::first(service, &view).map(|entry| entry.rule);
    let rule = service.rule(rule_at);

    let mut call = Call::new(parts, body, facts, exchange.start, rule, caller);
    let (mut tried, mut tries) = (Tried::default(), Tries::default());
    let mut last: Option<Failed> = None;
    loop {
        let place = (service_at, rule_at, port);
        let chosen = choose::instance(worker, table, place, &tried, clock::now());
        let (at, permit) = match (chosen, last.take()) {
            (Ok(chosen), last) => {
                last.into_iter().for_each(Failed::let_go);
                chosen
            }
            // Nobody left to ask: what the last one said stands.
            (Err(_), Some(failed)) => {
                service.runtime.retries.count(worker.index, failed.outcome.word(), "no-instance");
                return failed.stands();
            }
            (Err(refusal), None) => return Err(refusal),
        };
        exchange.chosen(at);
        let policy = table.destination(at).retry.as_deref().filter(|p| p.max_retries > 0 && !facts.upgrade);
        if tries.retries == 0
            && let Some(policy) = policy
        {
            policy.budget.deposit(worker.index, worker.millis(exchange.start));
        }
        call.under(policy);
        let (outcome, reply) = attempt(table, &mut call, at, permit, policy, tries.retries).await;
        let Some(policy) = policy else { return Failed { outcome, reply }.stands() };

        let counters = &service.runtime.retries;
        if let Some(reason) = tries.reason.take() {
            let word = if policy.retry_on.hold(outcome) { "failure" } else { "success" };
            counters.count(worker.index, reason, word);
        }
        let now = clock::now();
        let asks = retry::Request {
            method: &call.parts.method,
            already_retried: call.facts.already_retried,
            replayable: call.replayable(),
            deadline: call.deadline,
        };
        let asked = reply.as_ref().and_then(|r| retry::retry_after(&r.head.headers));
        let time = (now, worker.millis(now));
        let next = worker.with_rng(|rng| retry::after(policy, &mut tries, asks, outcome, asked, time, rng));
        match next {
            Next::Again { after } => {
                tries.reason = Some(outcome.word());
                last = Some(Failed { outcome, reply });
                if policy.avoid_previous_instances {
                    tried.places.push(at);
                }
                tried.destination = Some(at.destination).filter(|_| !policy.rechoose_destination);
                tokio::time::sleep(after).await;
            }
            Next::Stop(why) => {
                if let Some(word) = why.word() {
                    counters.count(worker.index, outcome.word(), word);
                }
                return Failed { outcome, reply }.stands();
            }
        }
    }
}

/// Whom the request is for: as its connection says, where that was taken in on its way; else as its Host does.
fn identify(table: &TableRef, caller: &Caller, parts: &Parts) -> Result<(usize, usize), Refusal> {
    match caller.original {
        None => table.identify(parts.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default()),
        Some(address) => table
            .addresses
            .service(address)
            .ok_or_else(|| Refusal::new(Reason::NoRoute, format!("no Service has the address {address} any more"))),
    }
}

/// One try at one instance, and what its head says.
async fn attempt(
    table: &TableRef,
    call: &mut Call<'_>,
    at: At,
    mut permit: crate::admit::Permit,
    policy: Option<&RetrySettings>,
    retries: u32,
) -> (Outcome, Option<Reply>) {
    let again = call.outlives_a_stale_connection();
    let last = !again && policy.is_none_or(|p| retries >= p.max_retries);
    let deadline = call.try_deadline(policy);
    let version = call.parts.version;
    let (upgrade, expects) = (call.facts.upgrade, call.facts.expects_continue);
    let sent = {
        // Pinned where it is: it is large, and would be copied whenever it is passed on.
        let mut sending = std::pin::pin!(async {
            let mut kept = Connection::Kept;
            loop {
                let request = call.request(policy.is_some(), retries, last);
                let expects = expects && !request.body().is_end_stream();
                let request = interim::listen(request, call.interim.as_ref(), expects);
                match forward::send(call.caller, table.instance(at), request, version, upgrade, kept).await {
                    Err(Failure::Stale) if again && matches!(kept, Connection::Kept) => kept = Connection::New,
                    Err(Failure::Stale) => return Err(Outcome::Reset),
                    Err(Failure::Of(outcome)) => return Err(outcome),
                    Ok(sent) => return Ok(sent),
                }
            }
        });
        match deadline {
            Some(deadline) => {
                tokio::time::timeout_at(deadline.into(), sending.as_mut()).await.unwrap_or(Err(Outcome::Timeout))
            }
            None => sending.await,
        }
    };
    let (response, lease) = match sent {
        Ok(sent) => sent,
        Err(outcome) => {
            let outcome = if call.body.failed() { Outcome::CallersFault } else { outcome };
            permit.close(outcome);
            return (outcome, None);
        }
    };
    permit.answered();
    let verdict = classify::at_head(call.facts.grpc, &response);
    let (head, body) = response.into_parts();
    let status = head.status.as_u16();
    let mut relay = Box::new(Relay::new(body, status, verdict == Verdict::Open, lease, permit));
    if let Some(deadline) = deadline {
        relay.until(deadline);
    }
    let outcome = match verdict {
        Verdict::Open => Outcome::Reply { status, grpc: None },
        Verdict::Known(outcome) => {
            // A good reply may still be cut; only a probe, which others wait for, is judged by its head.
            if status >= 400 || relay.is_probe() || call.facts.grpc {
                relay.judge(outcome);
            }
            outcome
        }
    };
    (outcome, Some(Reply { head, relay }))
}

/// A try that may be followed by another.
struct Failed {
    outcome: Outcome,
    reply: Option<Reply>,
}

impl Failed {
    /// It is not followed: its reply is the answer, or that there is none.
    fn stands(self) -> Result<Reply, Refusal> {
        self.reply.ok_or_else(|| match self.outcome {
            Outcome::Timeout => Refusal::new(Reason::UpstreamTimeout, "the instance took longer than it may"),
            Outcome::CallersFault => Refusal::new(Reason::BadRequest, "the request's body cannot be read to its end"),
            Outcome::ConnectFailure => Refusal::new(Reason::UpstreamConnect, "the instance could not be reached"),
            _ => Refusal::new(Reason::UpstreamReset, "the instance broke off before it answered"),
        })
    }

    /// Another try follows. What is left of the reply is read, if it is short, so that its connection serves again.
    fn let_go(self) {
        if let Some(reply) = self.reply
            && !reply.relay.is_end_stream()
        {
            tokio::task::spawn_local(drain(reply.relay));
        }
    }
}

/// Reads a reply that nobody wants: up to so many bytes, and for so long.
async fn drain(mut relay: Box<Relay>) {
    const MOST: usize = 64 * 1024;
    let reading = async {
        let mut left = MOST;
        while let Some(Ok(frame)) = std::future::poll_fn(|cx| relay.poll_frame(cx)).await {
            match left.checked_sub(frame.data_ref().map_or(0, bytes::Bytes::len)) {
                Some(less) => left = less,
                None => return,
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), reading).await;
}

/// The request as its tries need it.
struct Call<'a> {
    caller: &'a Caller,
    parts: Parts,
    body: Source,
    facts: Facts,
    start: Instant,
    /// It must be answered by then: by the rule, the policy and the caller, whichever is first.
    deadline: Option<Instant>,
    try_timeout: Option<Duration>,
    /// Where interim replies go, if the caller takes them.
    interim: Option<Arc<Interim>>,
}

/// Where a try's body comes from.
enum Source {
    Empty,
    Once(Option<Incoming>, Rc<Cell<bool>>),
    Many(Replayable),
}

impl Source {
    /// Whether the caller broke off, or what it sent cannot be read.
    fn failed(&self) -> bool {
        match self {
            Self::Empty => false,
            Self::Once(_, failed) => failed.get(),
            Self::Many(body) => body.failed(),
        }
    }
}

impl<'a> Call<'a> {
    fn new(parts: Parts, body: Incoming, facts: Facts, start: Instant, rule: &Rule, caller: &'a Caller) -> Self {
        let callers = facts.has_deadline.then(|| retry::callers_timeout(&parts.headers)).flatten();
        let limits = [rule.request_timeout, callers];
        let deadline = limits.into_iter().flatten().min().and_then(|limit| start.checked_add(limit));
        let body = if body.is_end_stream() { Source::Empty } else { Source::Once(Some(body), Rc::default()) };
        let interim = (parts.version == Version::HTTP_11).then(|| Arc::clone(&caller.interim));
        Self { caller, parts, body, facts, start, deadline, try_timeout: rule.try_timeout, interim }
    }

    /// The policy that holds for the next try: its time for all tries counts, and what it may need again is kept.
    fn under(&mut self, policy: Option<&RetrySettings>) {
        let Some(policy) = policy else { return };
        let limit = policy.timeout.and_then(|limit| self.start.checked_add(limit));
        self.deadline = [self.deadline, limit].into_iter().flatten().min();
        if let Source::Once(body, _) = &mut self.body
            && !self.facts.already_retried
            && let Some(body) = body.take()
        {
            self.body = Source::Many(Replayable::new(body, policy.max_body_bytes));
        }
    }

    fn replayable(&self) -> bool {
        match &self.body {
            Source::Empty => true,
            Source::Once(..) => false,
            Source::Many(body) => body.can_be_sent_again(),
        }
    }

    /// When the next try must be over.
    fn try_deadline(&self, policy: Option<&RetrySettings>) -> Option<Instant> {
        let timeout = policy.and_then(|p| p.per_try_timeout).or(self.try_timeout);
        let per_try = timeout.and_then(|limit| clock::now().checked_add(limit));
        [self.deadline, per_try].into_iter().flatten().min()
    }

    /// The request of the next try. The head is moved into the last one, and copied before. `counted`: it says which try it is.
    fn request(&mut self, counted: bool, retries: u32, last: bool) -> Request<RequestBody> {
        let body = match &mut self.body {
            Source::Empty => RequestBody::Empty,
            Source::Once(body, failed) => match body.take() {
                Some(body) => RequestBody::Stream(body, Rc::clone(failed)),
                None => RequestBody::Empty,
            },
            Source::Many(body) => RequestBody::Replay(body.next_try()),
        };
        if counted && !self.facts.already_retried {
            // Before the copy is made, which has no room for more.
            self.parts.headers.insert(ATTEMPT, attempt_number(retries + 1));
        }
        let mut request = Request::new(body);
        *request.method_mut() = self.parts.method.clone();
        *request.uri_mut() = self.parts.uri.clone();
        *request.headers_mut() =
            if last { std::mem::take(&mut self.parts.headers) } else { self.parts.headers.clone() };
        request
    }

    /// Whether it may be sent once more on a new connection when a kept one broke off before any reply: nothing in its body, and an
    /// idempotent method (RFC 9110 section 9.2.2). The instance most likely closed an idle connection.
    fn outlives_a_stale_connection(&self) -> bool {
        matches!(self.body, Source::Empty) && self.parts.method.is_idempotent()
    }
}

/// The number as a field's value, without an allocation.
fn attempt_number(number: u32) -> HeaderValue {
    const NUMBERS: [&str; 12] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"];
    match NUMBERS.get(number as usize) {
        Some(text) => HeaderValue::from_static(text),
        None => HeaderValue::from(number),
    }
}
