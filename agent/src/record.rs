//! What is remembered of a request: an [`Exchange`] is made first, and records once, in `Drop`, however the request ends.

use std::rc::Rc;
use std::time::Instant;

use crate::admit::limits::Bound;
use crate::clock;
use crate::refusal::Reason;
use crate::table::At;
use crate::worker::{Caller, Held, TableRef, Worker};

/// Counters.
pub mod metrics;

/// One request from its first byte to its last. What it learns on the way is what metrics show.
#[derive(Debug)]
pub struct Exchange {
    worker: Rc<Worker>,
    caller: Rc<Caller>,
    table: TableRef,
    /// When it began.
    pub start: Instant,
    service: Option<usize>,
    at: Option<At>,
    /// The rule that no instance could be found for, and the destination that was drawn.
    turned_away: Option<(Option<u32>, Option<usize>)>,
    status: u16,
    refused: Option<Reason>,
}

impl Exchange {
    /// A request begins, under this table.
    pub fn begin(worker: &Rc<Worker>, caller: Rc<Caller>, table: &TableRef, start: Instant) -> Self {
        worker.requests_under_way(1);
        caller.begin();
        Self {
            worker: Rc::clone(worker),
            caller,
            table: Rc::clone(table),
            start,
            service: None,
            at: None,
            turned_away: None,
            status: 0,
            refused: None,
        }
    }

    /// The Service is known.
    pub fn identified(&mut self, service: usize) {
        self.service = Some(service);
    }

    /// It goes there; a later try may go elsewhere, and the last one counts.
    pub fn chosen(&mut self, at: At) {
        self.at = Some(at);
    }

    /// No instance could be found for it, by this rule and in this destination.
    pub fn turned_away(&mut self, rule: Option<u32>, destination: Option<usize>) {
        self.turned_away = Some((rule, destination));
    }

    /// The status that the caller sees, or for gRPC the HTTP status that stands for it.
    pub fn status(&mut self, status: u16) {
        self.status = status;
    }

    /// The caller was given a part of the reply.
    pub fn hold(&self) -> Held {
        self.caller.hold(self.worker.look())
    }

    /// Too much is under way for it.
    pub fn overloaded(&mut self, bound: Bound) {
        if let Some(service) = self.service {
            self.table.at(service).runtime.retries.overloaded(self.worker.index, bound);
        }
    }

    /// The agent answers itself.
    pub fn refused(&mut self, reason: Reason) {
        self.refused = Some(reason);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let worker = self.worker.index;
        let now = clock::now();
        self.caller.end(now);
        self.worker.requests_under_way(-1);
        if let Some(reason) = self.refused {
            match self.service {
                Some(service) => self.table.at(service).runtime.retries.refuse(worker, reason),
                None => self.worker.shared.unrouted.refuse(worker, reason),
            }
        }
        let series = match (self.at, self.service, self.turned_away) {
            (Some(at), _, _) => self.table.series(at),
            (None, Some(service), Some((rule, destination))) => {
                let service = self.table.at(service);
                let rule = service.rule(rule);
                let drawn = destination.and_then(|d| rule.destinations.get(d)).map(|d| &d.series);
                drawn.unwrap_or_else(|| rule.undrawn(service, &self.worker.shared.runtime))
            }
            _ => return,
        };
        series.count(worker, self.status, now.saturating_duration_since(self.start));
    }
}
