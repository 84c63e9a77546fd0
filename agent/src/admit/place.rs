//! The place of a probe among those that may be under way.
//!
//! Keeps true: no request keeps others waiting without end that would find the instance well, neither by a body that its caller does not
//! send nor by a reply that takes its time. What comes of the request counts all the same, if it is the first to tell.

use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::time::Duration;

use super::breaker::Ticket;
use crate::body::Coming;
use crate::table::At;
use crate::worker::TableRef;

/// So long the caller of a probe may take for its body; after that its place is given on.
const CALLERS_TIME: Duration = Duration::from_secs(3);

/// A place, held until it is given on: after [`CALLERS_TIME`] where the caller still owes a part of the body, else after the time for which
/// the circuit is open, if that is longer.
#[derive(Debug)]
pub(super) struct Place {
    held: Cell<bool>,
    coming: OnceCell<Rc<Cell<Coming>>>,
}

impl Place {
    /// The place of the probe with this ticket, which is sent there.
    pub(super) fn of(table: &TableRef, at: At, ticket: Ticket) -> Rc<Self> {
        let place = Rc::new(Self { held: Cell::new(true), coming: OnceCell::new() });
        let open_for = table.instance(at).circuit.as_ref().map_or(0, |circuit| circuit.settings.breaker.timeout_ms);
        // Whoever has the place has the table.
        let (probe, table) = (Rc::downgrade(&place), Rc::downgrade(table));
        tokio::task::spawn_local(async move {
            tokio::time::sleep(CALLERS_TIME).await;
            let Some(waits) = probe.upgrade().map(|place| place.waits_for_the_caller()) else { return };
            if !waits {
                tokio::time::sleep(Duration::from_millis(open_for).saturating_sub(CALLERS_TIME)).await;
            }
            if let (Some(place), Some(table)) = (probe.upgrade(), table.upgrade())
                && let Some(circuit) = &table.instance(at).circuit
                && place.held.replace(false)
            {
                circuit.breaker.give_place_on(ticket);
            }
        });
        place
    }

    /// The probe has a body, which comes so.
    pub(super) fn with_body(&self, coming: &Rc<Cell<Coming>>) {
        // A try has one body.
        let _ = self.coming.set(Rc::clone(coming));
    }

    /// Whether it was not given on.
    pub(super) fn is_held(&self) -> bool {
        self.held.get()
    }

    fn waits_for_the_caller(&self) -> bool {
        self.coming.get().is_some_and(|coming| matches!(coming.get(), Coming::Awaited | Coming::Failed))
    }
}
