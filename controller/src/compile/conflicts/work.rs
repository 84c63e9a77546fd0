//! How much may be looked at. A count of steps and not a time, so that the same rules always have the same answer.

use std::cell::Cell;

/// Steps that the analysis of one Service may take; a step is some tens of nanoseconds. What 10,000 rules of the usual shapes take is a
/// fraction of it.
pub(super) const STEPS_PER_SERVICE: u64 = 6_000_000;

/// What is left.
pub(super) struct Work {
    left: Cell<u64>,
}

impl Work {
    /// So many steps.
    pub(super) fn new(steps: u64) -> Self {
        Self { left: Cell::new(steps) }
    }

    /// Takes some.
    pub(super) fn spend(&self, steps: u64) {
        self.left.set(self.left.get().saturating_sub(steps));
    }

    /// How many are left.
    pub(super) fn left(&self) -> u64 {
        self.left.get()
    }

    /// Whether none are.
    pub(super) fn is_used_up(&self) -> bool {
        self.left() == 0
    }
}
