//! What a rule does to a request besides sending it somewhere, and to its reply.
//!
//! The steps come in one order, whatever the order in which a rule lists its filters; on the way back it is reversed:
//!
//! 1. CORS: a preflight is answered here;
//! 2. Fault: the delay first, then the abort;
//! 3. RequestRedirect or DirectResponse: the rule's own answer;
//! 4. RequestHeaderModifier and URLRewrite: what instances see, in every try;
//! 5. the destination's RequestHeaderModifier: what its instances see;
//! 6. RequestMirror: a rule's copies have the rule's changes, a destination's the destination's too.
//!
//! Keeps true:
//! - A rule without filters costs a request nothing: all that can be is parsed when the table is built.
//! - Rules are matched by what the caller sent; nothing here changes which rule holds.
//! - A rule's changes to a reply are made to every reply to its requests, also to one that the agent makes itself.
//! - No filter touches Host (but for URLRewrite), the length of a message or what is for one connection only: what leaves is still one
//!   request, or one reply.

use std::time::{Duration, Instant};

use http::request::Parts;
use http::{HeaderMap, HeaderValue};

use crate::clock;
use crate::refusal::{Reason, Refusal};
use crate::retry::hints::RETRIED;
use crate::table::Filters;
use crate::worker::Worker;

/// Cross-origin requests.
pub mod cors;
/// Delays and errors on purpose.
pub mod fault;
/// Header fields.
pub mod headers;
/// Copies.
pub mod mirror;
/// Paths.
pub mod path;
/// Redirects.
pub mod redirect;
/// Fixed replies.
pub mod response;
/// Another host or path for instances.
pub mod rewrite;

/// How a request came to its rule.
#[derive(Clone, Copy, Debug)]
pub struct Matched {
    /// Segments of the path that the match asked for as a prefix.
    pub segments: usize,
    /// When the request must be answered.
    pub deadline: Option<Instant>,
}

/// Takes a request through its rule's filters, up to what its instances see.
///
/// # Errors
/// The agent answers itself.
pub async fn on_request<'t>(
    worker: &Worker,
    filters: &'t Filters,
    parts: &mut Parts,
    matched: Matched,
    on_reply: &mut OnReply<'t>,
) -> Result<(), Refusal> {
    if let Some(cors) = &filters.cors {
        cors.preflight(&parts.method, &parts.headers).map_or(Ok(()), Err)?;
    }
    on_reply.by_rule(filters, &parts.headers);
    if let Some(fault) = &filters.fault {
        let drawn = worker.with_rng(|rng| fault.draw(rng));
        if let Some(delay) = drawn.delay {
            // Rare: kept out of every request's own future.
            Box::pin(held_up(delay, matched.deadline)).await?;
        }
        drawn.abort.map_or(Ok(()), |status| Err(fault::abort(status)))?;
    }
    if let Some(redirect) = &filters.redirect {
        return Err(redirect.reply(&parts.headers, &parts.uri, matched.segments));
    }
    if let Some(response) = &filters.response {
        return Err(response.reply());
    }
    if let Some(rewrite) = &filters.rewrite {
        rewrite.apply(parts, matched.segments)?;
    }
    filters.change_request(&mut parts.headers);
    Ok(())
}

/// Waits as a fault says, as a slow instance would make its caller wait: no longer than it may.
async fn held_up(delay: Duration, deadline: Option<Instant>) -> Result<(), Refusal> {
    let until = clock::now().checked_add(delay);
    let over = deadline.filter(|deadline| until.is_none_or(|until| until >= *deadline));
    if let Some(until) = over.or(until) {
        tokio::time::sleep_until(until.into()).await;
    }
    match over {
        None => Ok(()),
        Some(_) => {
            let detail = "the rule's fault held it up for longer than it may take";
            Err(Refusal::new(Reason::UpstreamTimeout, detail))
        }
    }
}

impl Filters {
    /// Changes the request's header fields.
    pub fn change_request(&self, headers: &mut HeaderMap) {
        if let Some(modifier) = &self.request_headers {
            modifier.apply(headers);
        }
    }
}

/// What is still to be done to the reply of a request, whoever makes it.
#[derive(Debug, Default)]
pub struct OnReply<'t> {
    rule: Option<&'t Filters>,
    destination: Option<&'t Filters>,
    /// Under CORS: whether the request's origin may read it.
    cors: Option<(&'t cors::Cors, Option<HeaderValue>)>,
    /// A cookie that keeps the caller where it is.
    pub cookie: Option<HeaderValue>,
    /// Why it is not to be asked for again by somebody nearer to the caller: it was retried here as often as may be.
    pub retried: Option<&'static str>,
}

impl<'t> OnReply<'t> {
    fn by_rule(&mut self, filters: &'t Filters, headers: &HeaderMap) {
        self.rule = Some(filters);
        self.cors = filters.cors.as_ref().map(|cors| (cors, cors.origin(headers)));
    }

    /// The request goes to that destination; a later try may go to another, and the last one counts.
    pub fn by_destination(&mut self, filters: Option<&'t Filters>) {
        self.destination = filters;
    }

    /// Does it.
    pub fn apply(self, headers: &mut HeaderMap) {
        let filters = self.destination.into_iter().chain(self.rule);
        for modifier in filters.filter_map(|filters| filters.response_headers.as_ref()) {
            modifier.apply(headers);
        }
        if let Some((cors, origin)) = self.cors {
            cors.apply(origin, headers);
        }
        if let Some(why) = self.retried {
            headers.insert(RETRIED, HeaderValue::from_static(why));
        }
        if let Some(cookie) = self.cookie {
            headers.append(http::header::SET_COOKIE, cookie);
        }
    }
}
