//! The path of a request, top to bottom: prepare, identify, match, filter, choose, admit, forward, classify, retry?, relay.
//!
//! Keeps true:
//! - One table for the whole life of a request.
//! - Every request is recorded once ([`Exchange`]), and every try is told to its circuits once (`Permit`), however it ends.
//! - Whatever goes wrong leaves by `?` as a [`Refusal`] and becomes a reply in one place.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{CONNECTION, CONTENT_LENGTH, DATE, HOST};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body;
use hyper::upgrade::OnUpgrade;
use switchyard_proto::v1::Protocol;

use crate::admit::Permit;
use crate::body::{Coming, Incoming, ReplyBody, RequestBody};
use crate::choose::{self, Tried};
use crate::classify::{self, Verdict};
use crate::filters::mirror::{self, Copies};
use crate::filters::{self, Matched, OnReply};
use crate::forward::{self, Connection, Failure};
use crate::interim::{self, ToCaller};
use crate::matching::{self, Entry, View};
use crate::message::{self, Facts};
use crate::record::Exchange;
use crate::record::metrics::Fallback;
use crate::refusal::{Reason, Refusal};
use crate::reply::{Relay, overdue};
use crate::retry::hints::{self, Pushback};
use crate::retry::replay::Replayable;
use crate::retry::{self, Next, Tries};
use crate::table::{At, Filters, Outcome, RetrySettings, Rule, Table};
use crate::worker::{Caller, TableRef, Worker};
use crate::{clock, ids, tunnel};

/// Tries beside one that is slow.
mod beside;

use beside::side_by_side;

/// Answers one request.
///
/// # Errors
/// Never: what goes wrong is a reply too.
pub async fn handle(
    worker: Rc<Worker>,
    caller: Rc<Caller>,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, Infallible> {
    let mut reply = answer(worker, caller, request).await;
    // The library's own clock stands still when the time is set back.
    reply.headers_mut().entry(DATE).or_insert_with(clock::date);
    Ok(reply)
}

async fn answer(worker: Rc<Worker>, caller: Rc<Caller>, request: Request<Incoming>) -> Response<ReplyBody> {
    let (table, known) = table_for(&worker, &caller);
    let mut exchange = Exchange::begin(&worker, Rc::clone(&caller), &table, clock::now());
    let (mut parts, body) = request.into_parts();
    let facts = match message::prepare(&mut parts) {
        Ok(facts) => facts,
        Err(refusal) => {
            exchange.refused(refusal.reason);
            let grpc = message::is_grpc(&parts.headers);
            return if parts.version < Version::HTTP_2 { refusal.reply_and_close(grpc) } else { refusal.reply(grpc) };
        }
    };
    let on_upgrade = parts.extensions.remove::<OnUpgrade>();
    let (version, ending) = (parts.version, worker.is_ending() || !known);
    let is_head = parts.method == Method::HEAD;
    // The library reads what it has of a body that nobody takes, and of one in chunks no more than the first.
    let in_chunks = !body.is_end_stream() && body.size_hint().exact().is_none();
    let mut on_reply = OnReply::default();
    let served = serve(&worker, &table, &mut exchange, parts, body, facts, &caller, &mut on_reply).await;
    caller.interim.settle();
    match served {
        Ok(mut reply) => {
            exchange.status(reply.head.status.as_u16());
            on_reply.apply(&mut reply.head.headers);
            if reply.head.status == StatusCode::SWITCHING_PROTOCOLS {
                let slot = reply.relay.take_slot();
                return tunnel::open(&worker, caller, on_upgrade, reply.head, exchange, slot);
            }
            if version == Version::HTTP_10 {
                reply.relay.ends_with(&caller);
            }
            if caller.line.is_unguarded() || ending && version < Version::HTTP_2 {
                reply.head.headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            reply.relay.ends(exchange);
            Response::from_parts(reply.head, ReplyBody::Relay(reply.relay))
        }
        Err(refusal) => {
            exchange.refused(refusal.reason);
            refusal.bound.into_iter().for_each(|bound| exchange.overloaded(bound));
            exchange.status(refusal.status().as_u16());
            let unread = in_chunks || caller.line.is_amid_body();
            let closes = caller.line.is_unguarded() || (ending || unread) && version < Version::HTTP_2;
            let mut reply = if closes { refusal.reply_and_close(facts.grpc) } else { refusal.reply(facts.grpc) };
            on_reply.apply(reply.headers_mut());
            // On HTTP/2 nobody else sees to it.
            if is_head { without_body(reply) } else { reply }
        }
    }
}

/// The table that a request sees; false when its connection is for an address that no Service has any more: then it goes there, and
/// the reply is the connection's last, for the next one goes the plain way.
fn table_for(worker: &Worker, caller: &Caller) -> (TableRef, bool) {
    let table = worker.table();
    match caller.original.filter(|address| table.addresses.service(*address).is_none()) {
        None => (table, true),
        Some(address) => {
            let only = || Rc::new(Arc::new(Table::of_unknown(address, &worker.shared.runtime)));
            (Rc::clone(caller.unknown.get_or_init(only)), false)
        }
    }
}

/// The reply to a HEAD: its head alone, which says how long the rest would be.
fn without_body(reply: Response<ReplyBody>) -> Response<ReplyBody> {
    let (mut head, body) = reply.into_parts();
    if let Some(length) = body.size_hint().exact().filter(|length| *length > 0) {
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Response::from_parts(head, ReplyBody::empty())
}

/// An instance's reply: its head, and the rest as it comes.
struct Reply {
    head: http::response::Parts,
    relay: Box<Relay>,
}

/// Finds the rule, and tries until there is a reply that stands. What the rule changes about the reply is noted in `on_reply`.
#[expect(clippy::too_many_arguments, reason = "a request, and all that it is looked at with")]
async fn serve<'t>(
    worker: &Rc<Worker>,
    table: &'t TableRef,
    exchange: &mut Exchange,
    mut parts: Parts,
    body: Incoming,
    facts: Facts,
    caller: &Rc<Caller>,
    on_reply: &mut OnReply<'t>,
) -> Result<Reply, Refusal> {
    let (service_at, port) = identify(table, caller, &parts)?;
    exchange.identified(service_at);
    let service = table.at(service_at);
    let Some(service_port) = service.ports.get(port) else {
        return Err(Refusal::new(Reason::NoInstances, format!("{} has no port", service.label)));
    };
    if service_port.protocol == Protocol::Tcp {
        let detail =
            format!("port {} of {} is not HTTP (appProtocol, or its name)", service_port.number, service.label);
        return Err(Refusal::new(Reason::NotSupported, detail));
    }
    let known = || table.addresses.workload(caller.address.ip()).map(Arc::as_ref);
    let view = View {
        method: &parts.method,
        path: parts.uri.path(),
        query: parts.uri.query(),
        headers: &parts.headers,
        port: service_port.number,
        grpc: facts.grpc,
        caller: if service.index.asks_who_calls() { known() } else { None },
    };
    let matched = matching::first(service, &view);
    let rule_at = matched.map(|entry| entry.rule);
    let rule = service.rule(rule_at);

    if worker.has_no_memory() {
        exchange.turned_away(rule_at, None);
        return Err(Refusal::out_of_memory());
    }
    // After the match, which is about what the caller sent; so is the key of who sticks to a destination.
    worker.with_rng(|rng| ids::complete(&mut parts.headers, &facts, rng));
    let (mut tried, mut tries) = (Tried::default(), Tries::default());
    if let Some(stickiness) = &rule.stickiness {
        let user = worker.with_rng(|rng| stickiness.user(&parts.headers, caller.address.ip(), rng));
        (tried.sticks_by, on_reply.cookie) = (user.key, user.set_cookie);
    }
    let mut call = Call::new(parts, body, facts, exchange.start, rule, caller);
    if let Some(filters) = &rule.filters {
        // It may end here, by an answer or because its caller leaves.
        exchange.turned_away(rule_at, None);
        let matched = Matched { segments: matched.map_or(0, Entry::prefix_segments), deadline: call.deadline() };
        filters::on_request(worker, filters, &mut call.parts, matched, on_reply).await?;
    }
    let mut last: Option<Failed> = None;
    let mut connection = Connection::Kept;
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
            (Err(refused), None) => {
                exchange.turned_away(rule_at, refused.destination);
                if refused.refusal.canned.is_some() && !facts.grpc {
                    service.runtime.retries.fell_back(worker.index, Fallback::Response);
                }
                return Err(refused.refusal);
            }
        };
        exchange.chosen(at);
        if permit.is_kept_in() {
            service.runtime.retries.panicked(worker.index);
        }
        let destination = table.destination(at).filters.as_deref();
        on_reply.by_destination(destination);
        if tries.retries == 0 {
            call.copy(worker, (rule.filters.as_deref(), destination), port);
        }
        let policy = table.instance(at).retry.as_deref();
        call.under(policy);
        let retrying = policy.filter(|p| p.max_retries > 0);
        if tries.retries == 0
            && let Some(policy) = retrying
        {
            policy.budget.deposit(worker.index, worker.millis(exchange.start));
        }
        let shared = RefCell::new(&mut call);
        let (at, Failed { outcome, reply, stale }) =
            match retrying.and_then(|policy| Some((policy, policy.hedge.filter(|_| !facts.upgrade)?))) {
                None => (at, attempt(table, &shared, (at, connection), permit, policy, tries.retries).await),
                // Rare and large: kept out of every request's own future.
                Some(hedging) => {
                    let first = (at, connection, permit);
                    let ended =
                        Box::pin(side_by_side(worker, table, &shared, hedging, first, &mut tried, &mut tries)).await;
                    exchange.chosen(ended.0);
                    on_reply.by_destination(table.destination(ended.0).filters.as_deref());
                    ended
                }
            };
        let Some(policy) = retrying else { return Failed { outcome, reply, stale }.stands() };

        let counters = &service.runtime.retries;
        if let Some(reason) = tries.reason.take() {
            let word = if policy.retry_on.hold(outcome) { "failure" } else { "success" };
            counters.count(worker.index, reason, word);
        }
        let now = clock::now();
        let asks = retry::Request { stale, ..call.asks(call.replayable()) };
        let pushback = reply.as_ref().map_or(Pushback::None, |r| hints::pushback(&r.head.headers, facts.grpc));
        let time = (now, worker.millis(now));
        let ahead = || choose::ahead(worker, table, at, policy.rechoose_destination, now);
        let next = worker.with_rng(|rng| retry::after(policy, &mut tries, asks, (outcome, pushback), time, ahead, rng));
        match next {
            Next::Again { after } => {
                tries.reason = Some(outcome.word());
                last = Some(Failed { outcome, reply, stale });
                connection = if stale { Connection::New } else { Connection::Kept };
                if policy.avoid_previous_instances {
                    tried.places.push(at);
                }
                tried.destination = Some(at.destination).filter(|_| !policy.rechoose_destination);
                if !after.is_zero() {
                    let waiting = policy.budget.waiting(worker.millis(now));
                    tokio::time::sleep(after).await;
                    waiting.is_over();
                }
            }
            Next::Stop(why) => {
                if let Some(word) = why.word() {
                    counters.count(worker.index, outcome.word(), word);
                    on_reply.retried = Some(word).filter(|_| why.is_final());
                }
                return Failed { outcome, reply, stale }.stands();
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
            .ok_or_else(|| Refusal::new(Reason::NoRoute, format!("no Service has the address {address}"))),
    }
}

/// One try at one instance, and what its head says. Without a policy it may be sent once more on a new connection, when the kept one had
/// been closed; with one, that is a retry, and not done here.
async fn attempt(
    table: &TableRef,
    shared: &RefCell<&mut Call<'_>>,
    (at, connection): (At, Connection),
    mut permit: Permit,
    policy: Option<&RetrySettings>,
    retries: u32,
) -> Failed {
    let (caller, version, facts, limits, coming, again) = {
        let call = shared.borrow();
        let again = policy.is_none() && call.outlives_a_stale_connection();
        (call.caller, call.parts.version, call.facts, call.limits(policy), call.body.coming(), again)
    };
    let last = !again && (facts.already_retried || policy.is_none_or(|p| retries >= p.max_retries));
    let worker = permit.worker();
    if let Some(coming) = &coming {
        permit.with_body(coming);
    }
    let sent = {
        // Pinned where it is: it is large, and would be copied whenever it is passed on.
        let mut sending = std::pin::pin!(async {
            let mut connection = connection;
            loop {
                let counted = policy.is_some_and(|p| p.max_retries > 0);
                let request = {
                    let call = &mut **shared.borrow_mut();
                    if let Some(deadline) = limits.deadline() {
                        let left = deadline.saturating_duration_since(clock::now());
                        hints::pass_on(&mut call.parts.headers, call.facts.grpc, left);
                    }
                    let mut request = call.request(counted, retries, last);
                    if let Some(filters) = &table.destination(at).filters {
                        filters.change_request(request.headers_mut());
                    }
                    let expects = facts.expects_continue && !request.body().is_end_stream();
                    interim::listen(request, call.interim.as_ref(), expects)
                };
                match forward::send(caller, table.instance(at), request, version, facts.upgrade, connection, worker)
                    .await
                {
                    Err(failure) if failure.stale && again && connection == Connection::Kept => {
                        connection = Connection::New
                    }
                    sent => return sent,
                }
            }
        });
        match limits.deadline() {
            Some(deadline) => match tokio::time::timeout_at(deadline.into(), sending.as_mut()).await {
                // What comes with the last tick of the clock comes too late as well.
                Ok(sent) if clock::now() < deadline => sent,
                _ => Err(overdue(coming.as_deref().map(Cell::get), limits.ours, clock::now()).into()),
            },
            None => sending.await,
        }
    };
    let sent = sent.and_then(|(mut response, lease)| match message::prepare_reply(&mut response) {
        true => Ok((response, lease)),
        // As much as no reply: nobody can say where it ends.
        false => Err(Failure::from(Outcome::Reset)),
    });
    let (response, lease) = match sent {
        Ok(sent) => sent,
        Err(Failure { outcome, stale }) => {
            let failed = coming.is_some_and(|coming| coming.get() == Coming::Failed);
            let outcome = if failed { Outcome::CallersFault } else { outcome };
            // That a kept connection had been closed is no news of the instance where it costs nobody a reply.
            let sent_again =
                stale && !last && policy.is_some_and(|p| p.methods.contains(&shared.borrow().parts.method));
            if !sent_again {
                permit.close(outcome);
            }
            return Failed { outcome, reply: None, stale };
        }
    };
    permit.answered(coming.as_deref().map(Cell::get));
    let verdict = classify::at_head(facts.grpc, &response);
    let (head, body) = response.into_parts();
    let status = head.status.as_u16();
    let mut relay = Box::new(Relay::new(body, status, verdict == Verdict::Open, lease, permit));
    relay.while_coming(coming);
    if let Some(deadline) = limits.deadline() {
        relay.until(deadline, limits.ours);
    }
    let outcome = match verdict {
        Verdict::Open => Outcome::Reply { status, grpc: None },
        Verdict::Known(outcome) => {
            // A good reply may still be cut.
            if status >= 400 || facts.grpc {
                relay.judge(outcome);
            }
            outcome
        }
    };
    Failed { outcome, reply: Some(Reply { head, relay }), stale: false }
}

/// A try that may be followed by another.
struct Failed {
    outcome: Outcome,
    reply: Option<Reply>,
    /// It was sent on a kept connection, which broke off before any reply.
    stale: bool,
}

impl Failed {
    /// It is not followed: its reply is the answer, or that there is none.
    fn stands(self) -> Result<Reply, Refusal> {
        self.reply.ok_or_else(|| match self.outcome {
            Outcome::Timeout | Outcome::CallersLimit => {
                Refusal::new(Reason::UpstreamTimeout, "the instance took longer than it may")
            }
            Outcome::CallersBody => Refusal::new(Reason::RequestTimeout, "the request's body did not come in time"),
            Outcome::CallersFault => Refusal::new(Reason::BadRequest, "the request's body cannot be read to its end"),
            Outcome::Overloaded(bound) => Refusal::overloaded("the destination", bound),
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
    caller: &'a Rc<Caller>,
    parts: Parts,
    body: Source,
    facts: Facts,
    start: Instant,
    /// It must be answered by then, as the caller says ...
    callers: Option<Instant>,
    /// ... and as the rule and the policy say.
    ours: Option<Instant>,
    try_timeout: Option<Duration>,
    /// Where interim replies go, if the caller takes them.
    interim: Option<ToCaller>,
    /// Its copies, where some Service gets one.
    copies: Option<Rc<Copies>>,
}

/// When a try must be over.
#[derive(Clone, Copy)]
struct Limits {
    callers: Option<Instant>,
    /// The rule's and the policy's, for this try as for all.
    ours: Option<Instant>,
}

impl Limits {
    fn deadline(self) -> Option<Instant> {
        earlier(self.callers, self.ours)
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    [one, other].into_iter().flatten().min()
}

/// Where a try's body comes from.
enum Source {
    Empty,
    Once(Option<Incoming>, Rc<Cell<Coming>>),
    Many(Replayable),
}

impl Source {
    /// How it comes from the caller; `None`: there is none.
    fn coming(&self) -> Option<Rc<Cell<Coming>>> {
        match self {
            Self::Empty => None,
            Self::Once(_, coming) => Some(Rc::clone(coming)),
            Self::Many(body) => Some(body.coming()),
        }
    }
}

impl<'a> Call<'a> {
    fn new(parts: Parts, body: Incoming, facts: Facts, start: Instant, rule: &Rule, caller: &'a Rc<Caller>) -> Self {
        let callers = facts.has_deadline.then(|| hints::callers_timeout(&parts.headers)).flatten();
        let [callers, ours] =
            [callers, rule.request_timeout].map(|limit| limit.and_then(|limit| start.checked_add(limit)));
        let interim = ToCaller::of(parts.version, &body, &caller.interim);
        let body = if body.is_end_stream() { Source::Empty } else { Source::Once(Some(body), Rc::default()) };
        body.coming().iter().for_each(|coming| caller.sends(coming));
        let try_timeout = rule.try_timeout;
        Self { caller, parts, body, facts, start, callers, ours, try_timeout, interim, copies: None }
    }

    /// Has it copied, as these filters say, while its first try is sent. An upgrade is a conversation, of which nothing can be copied.
    fn copy(&mut self, worker: &Rc<Worker>, filters: (Option<&Filters>, Option<&Filters>), port: usize) {
        if self.facts.upgrade {
            return;
        }
        self.copies = mirror::copies(worker, self.caller, filters, &self.parts, port);
        if let (Some(copies), Source::Empty) = (&self.copies, &self.body) {
            copies.without_body();
        }
    }

    /// The policy that holds for the next try: its time for all tries counts, and what it may need again is kept.
    fn under(&mut self, policy: Option<&RetrySettings>) {
        let Some(policy) = policy else { return };
        let limit = policy.timeout.and_then(|limit| self.start.checked_add(limit));
        self.ours = earlier(self.ours, limit);
        if policy.max_retries > 0
            && !self.facts.already_retried
            && let Source::Once(body, _) = &mut self.body
            && let Some(body) = body.take()
        {
            let body = Replayable::new(body, policy.max_body_bytes);
            self.caller.sends(&body.coming());
            self.body = Source::Many(body);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        earlier(self.callers, self.ours)
    }

    fn replayable(&self) -> bool {
        match &self.body {
            Source::Empty => true,
            Source::Once(..) => false,
            Source::Many(body) => body.can_be_sent_again(),
        }
    }

    /// Whether all of the body is here, so that two tries can send it at a time.
    fn is_whole(&self) -> bool {
        match &self.body {
            Source::Empty => true,
            Source::Once(..) => false,
            Source::Many(body) => body.is_whole(),
        }
    }

    /// What it allows; `replayable`: its body can be sent again.
    fn asks(&self, replayable: bool) -> retry::Request<'_> {
        let already_retried = self.facts.already_retried;
        let (method, deadline) = (&self.parts.method, self.deadline());
        retry::Request { method, already_retried, replayable, deadline, stale: false }
    }

    /// When the next try must be over.
    fn limits(&self, policy: Option<&RetrySettings>) -> Limits {
        let timeout = policy.and_then(|p| p.per_try_timeout).or(self.try_timeout);
        let per_try = timeout.and_then(|limit| clock::now().checked_add(limit));
        Limits { callers: self.callers, ours: earlier(self.ours, per_try) }
    }

    /// The request of the next try. The head is moved into the last one, and copied before. `counted`: it says which try it is.
    fn request(&mut self, counted: bool, retries: u32, last: bool) -> Request<RequestBody> {
        let body = match &mut self.body {
            Source::Empty => RequestBody::Empty,
            Source::Once(body, coming) => match body.take() {
                Some(body) => RequestBody::Stream(body, Rc::clone(coming)),
                None => RequestBody::Empty,
            },
            Source::Many(body) => RequestBody::Replay(body.next_try()),
        };
        let body = match &self.copies {
            Some(copies) => copies.of(body),
            None => body,
        };
        if counted && !self.facts.already_retried {
            // Before the copy is made, which has no room for more.
            hints::count(&mut self.parts.headers, retries + 1);
        }
        let mut request = Request::new(body);
        *request.method_mut() = self.parts.method.clone();
        *request.uri_mut() = self.parts.uri.clone();
        *request.headers_mut() =
            if last { std::mem::take(&mut self.parts.headers) } else { self.parts.headers.clone() };
        request
    }

    /// Whether it may be sent once more on a new connection when a kept one broke off before any reply: nothing in its body, and an
    /// idempotent method (RFC 9110 section 9.2.2). The instance most likely closed an idle connection. Not where another agent counts the
    /// tries.
    fn outlives_a_stale_connection(&self) -> bool {
        matches!(self.body, Source::Empty) && self.parts.method.is_idempotent() && !self.facts.already_retried
    }
}
