//! Circuits and budgets as they are written down: what must be known after a restart, in times that mean something then.
//!
//! The agent's clock begins anew with each start, and the wall clock may be moved at any time. So a file says when it was written by
//! the wall clock, and how much time was left, or had gone by, at that moment.
//!
//! Keeps true, wherever the wall clock is when the file is read (`no_clock_makes_time_left_longer_or_events_newer`):
//! - no more time is left than when it was written, and never less than none;
//! - what a window held becomes older and never newer; of a file that is from the future, windows take nothing.

use prost::Message;

/// All that is remembered.
#[derive(Clone, PartialEq, Message)]
pub struct Remembered {
    /// When it was written, in milliseconds since 1970.
    #[prost(int64, tag = "1")]
    pub written_unix_ms: i64,
    /// Circuits that are not closed.
    #[prost(message, repeated, tag = "2")]
    pub circuits: Vec<Circuit>,
    /// Accounts that something was drawn from.
    #[prost(message, repeated, tag = "3")]
    pub accounts: Vec<Account>,
}

/// A circuit that is not closed.
#[derive(Clone, PartialEq, Message)]
pub struct Circuit {
    /// Its Service's namespace.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// Its Service's name.
    #[prost(string, tag = "2")]
    pub service: String,
    /// What it stands for: an address or a version.
    #[prost(string, tag = "3")]
    pub target: String,
    /// The length of its policy's window. With another one a circuit begins anew.
    #[prost(uint64, tag = "4")]
    pub window_ms: u64,
    /// How long until probes begin; half-open, they had begun.
    #[prost(uint64, tag = "5")]
    pub left_ms: u64,
    /// How often it opened in a row, less one.
    #[prost(uint32, tag = "6")]
    pub openings: u32,
    /// Why it changed last.
    #[prost(string, tag = "7")]
    pub reason: String,
    /// When, in milliseconds since 1970.
    #[prost(int64, tag = "8")]
    pub since_unix_ms: i64,
    /// Health checks take it out.
    #[prost(bool, tag = "9")]
    pub unhealthy: bool,
    /// And the traffic had opened it before.
    #[prost(bool, tag = "10")]
    pub opened: bool,
}

/// What retries of a Service have drawn.
#[derive(Clone, PartialEq, Message)]
pub struct Account {
    /// Its namespace.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// Its name.
    #[prost(string, tag = "2")]
    pub service: String,
    /// The length of its windows.
    #[prost(uint64, tag = "6")]
    pub window_ms: u64,
    /// Requests, by how old they are at most.
    #[prost(message, repeated, tag = "7")]
    pub requests: Vec<Counted>,
    /// Retries, by how old they are at least.
    #[prost(message, repeated, tag = "8")]
    pub retries: Vec<Counted>,
}

/// So many, so long ago.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Counted {
    /// How long ago.
    #[prost(uint64, tag = "1")]
    pub age_ms: u64,
    /// How many.
    #[prost(uint64, tag = "2")]
    pub count: u64,
}

impl Remembered {
    /// The same as it is now, by the wall clock.
    pub fn aged(mut self, unix_ms: i64) -> Self {
        let since = unix_ms.saturating_sub(self.written_unix_ms);
        let gone = u64::try_from(since).unwrap_or(0);
        for circuit in &mut self.circuits {
            circuit.left_ms = circuit.left_ms.saturating_sub(gone);
        }
        if since < 0 {
            self.accounts.clear();
        }
        self.accounts = self.accounts.into_iter().map(|account| account.older(gone)).collect();
        self.written_unix_ms = unix_ms;
        self
    }
}

impl Account {
    /// The same so many milliseconds later.
    pub fn older(mut self, milliseconds: u64) -> Self {
        for counted in self.requests.iter_mut().chain(&mut self.retries) {
            counted.age_ms = counted.age_ms.saturating_add(milliseconds);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_clock_makes_time_left_longer_or_events_newer(written: i64, now: i64, left_ms: u64, age_ms: u64) {
            let counted = vec![Counted { age_ms, count: 1 }];
            let account = Account { requests: counted.clone(), retries: counted, ..Account::default() };
            let circuits = vec![Circuit { left_ms, ..Circuit::default() }];
            let before = Remembered { written_unix_ms: written, circuits, accounts: vec![account] };
            let after = before.aged(now);
            prop_assert!(after.circuits[0].left_ms <= left_ms);
            if let Some(gone) = now.checked_sub(written) {
                let gone = u64::try_from(gone).unwrap_or(0);
                prop_assert_eq!(after.circuits[0].left_ms, left_ms.saturating_sub(gone));
            }
            prop_assert_eq!(after.accounts.is_empty(), now < written);
            for account in after.accounts {
                prop_assert!(account.requests[0].age_ms >= age_ms && account.retries[0].age_ms >= age_ms);
            }
        }
    }
}
