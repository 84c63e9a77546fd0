//! Tries side by side: whom a hedge asks, and what is counted of it. How they race is in [`crate::retry::hedge`].

use std::cell::RefCell;
use std::rc::Rc;

use super::{Call, Failed, attempt};
use crate::admit::Permit;
use crate::choose::{self, Tried};
use crate::clock;
use crate::forward::Connection;
use crate::record::metrics::Retries;
use crate::retry::hedge::{self, Hedge};
use crate::retry::{self, Tries, Why};
use crate::table::{At, RetrySettings};
use crate::worker::{TableRef, Worker};

/// A try, and others beside it while it is slow, each at an instance of its own. Which one counts, and what came of it; what became of the
/// retries among them is counted.
pub(super) async fn side_by_side(
    worker: &Rc<Worker>,
    table: &TableRef,
    shared: &RefCell<&mut Call<'_>>,
    (policy, hedge): (&RetrySettings, Hedge),
    (at, connection, permit): (At, Connection, Permit),
    tried: &mut Tried,
    tries: &mut Tries,
) -> (At, Failed) {
    let counters = &table.at(at.service).runtime.retries;
    let counted = |reason| Counted { counters, worker: worker.index, reason };
    let one = async |at, connection, permit, number, counted| {
        (attempt(table, shared, (at, connection), permit, Some(policy), number).await, at, counted)
    };
    let first = one(at, connection, permit, tries.retries, counted(tries.reason.take()));
    let mut others = tried.clone();
    others.places.push(at);
    others.destination = Some(at.destination).filter(|_| !policy.rechoose_destination);
    let another = || {
        let now = clock::now();
        let may = {
            let call = shared.borrow();
            let ahead = choose::ahead(worker, table, at, policy.rechoose_destination, now);
            retry::beside(policy, tries, call.asks(call.is_whole()), now, ahead)
        };
        let place = (at.service, at.rule, at.port);
        let chosen = may.map_err(Why::word).and_then(|()| match choose::instance(worker, table, place, &others, now) {
            Ok((at, _)) if others.places.contains(&at) => Err(Some("no-instance")),
            Err(_) => Err(Some("no-instance")),
            Ok(_) if !policy.budget.withdraw(worker.millis(now)) => Err(Why::Budget.word()),
            Ok(chosen) => Ok(chosen),
        });
        match chosen {
            Ok((at, permit)) => {
                tries.retries += 1;
                others.places.push(at);
                if permit.is_kept_in() {
                    counters.panicked(worker.index);
                }
                Some(one(at, Connection::Kept, permit, tries.retries, counted(Some("hedge"))))
            }
            Err(word) => {
                word.into_iter().for_each(|word| counters.count(worker.index, "hedge", word));
                None
            }
        }
    };
    let stands = |(failed, ..): &(Failed, At, Counted<'_>)| !failed.stale && !policy.retry_on.hold(failed.outcome);
    let pass_over = |(failed, _, counted): (Failed, At, Counted<'_>)| {
        counted.ended("failure");
        failed.let_go();
    };
    let ended = hedge::race(first, hedge, tokio::time::sleep, another, stands, pass_over).await;
    let word = if stands(&ended) { "success" } else { "failure" };
    let (failed, at, counted) = ended;
    counted.ended(word);
    if policy.avoid_previous_instances {
        tried.places = others.places;
    }
    (at, failed)
}

/// A retry that is counted when it has ended, or as cancelled.
struct Counted<'a> {
    counters: &'a Retries,
    worker: usize,
    /// What it was for; a first try is for nothing.
    reason: Option<&'static str>,
}

impl Counted<'_> {
    fn ended(mut self, word: &'static str) {
        self.reason.take().into_iter().for_each(|reason| self.counters.count(self.worker, reason, word));
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.reason.take().into_iter().for_each(|reason| self.counters.count(self.worker, reason, "cancelled"));
    }
}
