//! How many retries a Service may get, so that they cannot multiply a failure.
//!
//! One budget per Service and node, shared by all workers. Every request deposits, every retry withdraws; a withdrawal is
//! made when the retry is decided, so that those that still wait in back-off count already. Deposits go to the worker's own
//! shard of a [`Window`]; withdrawals are rare, so they share one row of buckets, changed by compare-and-swap.
//!
//! Invariant: in the window that ends at any withdrawal there are at most `ratio` × requests + `min_per_second` × seconds of
//! withdrawals (`no_window_holds_more_retries_than_its_budget`). To hold it without slack although time is cut into
//! buckets, deposits count for a little less than the window and withdrawals for a little more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::admit::window::{BUCKETS, Millis, Window};

/// Buckets of withdrawals: a power of two above those that count.
const SLOTS: usize = 16;

/// How much retries may add to the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Retries as a share of the requests in the window, in parts per million.
    pub ratio_ppm: u32,
    /// And so many per second whatever the traffic.
    pub min_per_second: u32,
    /// Length of the window in milliseconds.
    pub window_ms: u64,
}

/// So long ago, in milliseconds, so many.
pub type Aged = (u64, u64);

/// What the requests to one Service have paid in and its retries have drawn, in windows of one length, as workers share it.
#[derive(Debug)]
pub struct Account {
    window_ms: u64,
    deposits: Window,
    /// Each a bucket's number (upper half) and its withdrawals (lower half).
    withdrawals: [AtomicU64; SLOTS],
}

impl Account {
    /// One that nothing was drawn from yet, for so many workers.
    pub fn new(window_ms: u64, workers: usize) -> Self {
        Self { window_ms, deposits: Window::new(workers), withdrawals: Default::default() }
    }

    /// One that knows of so many requests and retries, by their ages. Later requests and retries of the same window find what these leave.
    pub fn recalled(window_ms: u64, workers: usize, requests: &[Aged], retries: &[Aged], now: Millis) -> Self {
        let mut account = Self::new(window_ms, workers);
        for (age_ms, count) in requests.iter().filter(|(age_ms, _)| *age_ms < window_ms) {
            account.deposits.put(Millis(now.0.saturating_sub(*age_ms)), window_ms, *count);
        }
        for (age_ms, count) in retries.iter().filter(|(age_ms, _)| *age_ms <= window_ms) {
            let number = account.number(Millis(now.0.saturating_sub(*age_ms)));
            let slot = &account.withdrawals[number as usize % SLOTS];
            let (held, before) = unpack(slot.load(Relaxed));
            let before = if held == number { before } else { 0 };
            slot.store(pack(number, before.saturating_add(u32::try_from(*count).unwrap_or(u32::MAX))), Relaxed);
        }
        account
    }

    /// The requests that count now, by how old they are at most.
    pub fn requests(&self, now: Millis) -> Vec<Aged> {
        self.deposits.ages(now, self.window_ms)
    }

    /// The retries that count now, by how old they are at least.
    pub fn retries(&self, now: Millis) -> Vec<Aged> {
        let (newest, width) = (self.number(now), self.width());
        let buckets = self.withdrawals.iter().map(|slot| unpack(slot.load(Relaxed)));
        let ages = buckets.map(|(number, count)| (u64::from(newest.wrapping_sub(number)), u64::from(count)));
        let ages = ages.filter(|(buckets, count)| *buckets <= BUCKETS && *count > 0);
        // A bucket ends a width after its begin, the newest one has not ended yet.
        let age = |buckets: u64| (buckets * width + now.0 % width).saturating_sub(width);
        ages.map(|(buckets, count)| (age(buckets), count)).collect()
    }

    /// A number that changes with each retry that is taken.
    pub fn withdrawn_mark(&self) -> u64 {
        self.withdrawals.iter().map(|slot| slot.load(Relaxed)).fold(0, u64::wrapping_add)
    }

    fn number(&self, at: Millis) -> u32 {
        (at.0 / self.width()) as u32
    }

    /// Rounded up: the buckets that count together are no shorter than the window.
    fn width(&self) -> u64 {
        self.window_ms.div_ceil(BUCKETS).max(1)
    }

    /// Retries that the window which ends with bucket `number` holds, and the bucket before it.
    fn withdrawn(&self, number: u32) -> u64 {
        let buckets = self.withdrawals.iter().map(|slot| unpack(slot.load(Relaxed)));
        buckets
            .filter(|(held, _)| u64::from(number.wrapping_sub(*held)) <= BUCKETS)
            .map(|(_, count)| u64::from(count))
            .sum()
    }
}

/// What a policy lets a Service's account be drawn to. Policies with windows of one length have the account in common: each looks
/// at all retries of the Service, and allows what its own numbers allow.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    account: Arc<Account>,
}

impl Budget {
    /// By these numbers; the account's window is theirs.
    pub fn new(limits: Limits, account: Arc<Account>) -> Self {
        Self { limits, account }
    }

    /// Counts a request (not its retries) of `worker`, which is the calling worker's number.
    pub fn deposit(&self, worker: usize, now: Millis) {
        self.account.deposits.record(worker, now, self.account.window_ms, false, false);
    }

    /// Takes one retry out of the budget; false if there is none left. It is given back only if it is never made ([`Budget::waiting`]).
    pub fn withdraw(&self, now: Millis) -> bool {
        let number = self.account.number(now);
        let slot = &self.account.withdrawals[number as usize % SLOTS];
        loop {
            // Read before the others: if it is unchanged when it is written, nobody withdrew meanwhile.
            let before = slot.load(Relaxed);
            if !self.allows(self.account.withdrawn(number) + 1, now) {
                return false;
            }
            let (held, count) = unpack(before);
            let count = if held == number { count } else { 0 };
            let after = pack(number, count.saturating_add(1));
            if slot.compare_exchange_weak(before, after, Relaxed, Relaxed).is_ok() {
                return true;
            }
        }
    }

    /// A retry that was taken then waits. Where its caller goes away meanwhile it is never made, and is given back.
    pub fn waiting(&self, taken: Millis) -> Waiting<'_> {
        Waiting { account: Some(&self.account), taken }
    }

    fn allows(&self, withdrawals: u64, now: Millis) -> bool {
        let requests = self.account.deposits.counts(now, self.account.window_ms).total;
        let by_ratio = requests.saturating_mul(u64::from(self.limits.ratio_ppm));
        let by_time = u64::from(self.limits.min_per_second).saturating_mul(self.account.window_ms).saturating_mul(1000);
        withdrawals.saturating_mul(1_000_000) <= by_ratio.saturating_add(by_time)
    }
}

/// A retry that was taken and not yet made.
#[derive(Debug)]
pub struct Waiting<'a> {
    account: Option<&'a Account>,
    taken: Millis,
}

impl Waiting<'_> {
    /// It is made now.
    pub fn is_over(mut self) {
        self.account = None;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Some(account) = self.account else { return };
        let number = account.number(self.taken);
        let slot = &account.withdrawals[number as usize % SLOTS];
        // A bucket that is another one's by now counts no more.
        let one_less = |word| {
            let (held, count) = unpack(word);
            (held == number && count > 0).then(|| pack(held, count - 1))
        };
        // An error means that there was nothing to give back.
        let _ = slot.fetch_update(Relaxed, Relaxed, one_less);
    }
}

fn pack(number: u32, count: u32) -> u64 {
    u64::from(number) << 32 | u64::from(count)
}

fn unpack(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::sync::atomic::AtomicU64;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Wait(u64),
        Deposit { worker: usize, count: usize },
        Withdraw { count: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            prop_oneof![0..300u64, 0..15_000u64].prop_map(Step::Wait),
            (0..3usize, 0..50usize).prop_map(|(worker, count)| Step::Deposit { worker, count }),
            (0..20usize).prop_map(|count| Step::Withdraw { count }),
        ]
    }

    fn of(limits: Limits, workers: usize) -> Budget {
        Budget::new(limits, Arc::new(Account::new(limits.window_ms, workers)))
    }

    fn limits() -> impl Strategy<Value = Limits> {
        let window_ms = prop_oneof![Just(1000u64), Just(10_000), Just(60_000)];
        (0..=1_000_000u32, 0..5u32, window_ms).prop_map(|(ratio_ppm, min_per_second, window_ms)| Limits {
            ratio_ppm,
            min_per_second,
            window_ms,
        })
    }

    /// How many of these times lie in the window of so many milliseconds that ends at `now`.
    fn lately(times: &[u64], now: u64, length_ms: u64) -> f64 {
        times.iter().filter(|time| **time + length_ms > now).count() as f64
    }

    proptest! {
        #[test]
        fn no_window_holds_more_retries_than_its_budget(
            limits in limits(), start in 0..1u64 << 43, steps in prop::collection::vec(step(), 1..150),
        ) {
            let (ratio, window) = (f64::from(limits.ratio_ppm) / 1e6, limits.window_ms);
            let floor = f64::from(limits.min_per_second) * window as f64 / 1000.0;
            let (budget, mut now, mut requests, mut retries) = (of(limits, 3), start, vec![], vec![]);
            for step in steps {
                match step {
                    Step::Wait(milliseconds) => now += milliseconds,
                    Step::Deposit { worker, count } => for _ in 0..count {
                        budget.deposit(worker, Millis(now));
                        requests.push(now);
                    },
                    Step::Withdraw { count } => for _ in 0..count {
                        // What surely counts, with a bucket's doubt at both ends, must be granted.
                        let surely = ratio * lately(&requests, now, window * 9 / 10) + floor;
                        let due = lately(&retries, now, window * 11 / 10) + 1.0 <= surely - 1e-6;
                        let granted = budget.withdraw(Millis(now));
                        prop_assert!(granted || !due, "refused although the budget has some left");
                        if granted {
                            retries.push(now);
                            let allowed = ratio * lately(&requests, now, window) + floor;
                            prop_assert!(lately(&retries, now, window) <= allowed + 1e-6);
                        }
                    },
                }
            }
        }
    }

    proptest! {
        #[test]
        fn over_a_restart_no_window_holds_more_retries_than_its_budget(
            limits in limits(), start in 0..1u64 << 40, away in prop_oneof![0..300u64, 0..15_000u64],
            anew in 86_400_000..1u64 << 40, steps in prop::collection::vec(step(), 1..80),
        ) {
            let (ratio, window) = (f64::from(limits.ratio_ppm) / 1e6, limits.window_ms);
            let floor = f64::from(limits.min_per_second) * window as f64 / 1000.0;
            let (mut requests, mut retries) = (vec![], vec![]);
            let mut budget = of(limits, 3);
            // `now` goes on over the restart; the agent's own clock begins anew.
            let (mut now, mut epoch) = (start, 0i64);
            let half = steps.len() / 2;
            for (at, step) in steps.into_iter().enumerate() {
                if at == half {
                    let own = Millis(now);
                    let (known, drawn) = (budget.account.requests(own), budget.account.retries(own));
                    now += away;
                    epoch = i64::try_from(anew).unwrap() - i64::try_from(now).unwrap();
                    let age = |(age_ms, count): &Aged| (age_ms + away, *count);
                    let (known, drawn): (Vec<_>, Vec<_>) = (known.iter().map(age).collect(), drawn.iter().map(age).collect());
                    budget = Budget::new(limits, Arc::new(Account::recalled(limits.window_ms, 3, &known, &drawn, Millis(anew))));
                }
                let own = |now: u64| Millis(now.checked_add_signed(epoch).unwrap());
                match step {
                    Step::Wait(milliseconds) => now += milliseconds,
                    Step::Deposit { worker, count } => for _ in 0..count {
                        budget.deposit(worker, own(now));
                        requests.push(now);
                    },
                    Step::Withdraw { count } => for _ in 0..count {
                        if budget.withdraw(own(now)) {
                            retries.push(now);
                            let allowed = ratio * lately(&requests, now, window) + floor;
                            prop_assert!(lately(&retries, now, window) <= allowed + 1e-6);
                        }
                    },
                }
            }
        }
    }

    #[test]
    fn what_was_drawn_before_a_restart_is_drawn_after_it() {
        let limits = Limits { ratio_ppm: 200_000, min_per_second: 1, window_ms: 10_000 };
        let before = of(limits, 2);
        (0..100).for_each(|_| before.deposit(1, Millis(50_000)));
        assert_eq!((0..100).filter(|_| before.withdraw(Millis(50_500))).count(), 30);
        let (requests, retries) = (before.account.requests(Millis(51_000)), before.account.retries(Millis(51_000)));
        let now = Millis(86_400_000);
        let after = Budget::new(limits, Arc::new(Account::recalled(limits.window_ms, 2, &requests, &retries, now)));
        assert!(!after.withdraw(now), "all of it was drawn");
        (0..5).for_each(|_| after.deposit(0, now));
        assert!(after.withdraw(now), "and what comes since counts beside what came before");
        assert!(!after.withdraw(now));
        assert!(after.withdraw(now.plus(20_000)));
    }

    #[test]
    fn policies_of_one_service_draw_from_one_account() {
        let account = Arc::new(Account::new(10_000, 1));
        let by = |ratio_ppm, min_per_second| {
            Budget::new(Limits { ratio_ppm, min_per_second, window_ms: 10_000 }, Arc::clone(&account))
        };
        let (one, other, tight) = (by(200_000, 0), by(200_000, 0), by(50_000, 0));
        (0..100)
            .for_each(|request| if request % 2 == 0 { one.deposit(0, Millis(5)) } else { other.deposit(0, Millis(5)) });
        assert_eq!((0..100).filter(|_| one.withdraw(Millis(5))).count(), 20, "a fifth of all requests to the Service");
        assert!(!other.withdraw(Millis(5)) && !tight.withdraw(Millis(5)), "and no more by any of them");
    }

    #[test]
    fn a_retry_that_is_never_made_is_given_back() {
        let budget = of(Limits { ratio_ppm: 0, min_per_second: 1, window_ms: 1000 }, 1);
        assert!(budget.withdraw(Millis(5)) && !budget.withdraw(Millis(5)));
        drop(budget.waiting(Millis(5)));
        assert!(budget.withdraw(Millis(6)) && !budget.withdraw(Millis(6)), "one, and not two");
        budget.waiting(Millis(6)).is_over();
        assert!(!budget.withdraw(Millis(7)), "it was made");
        drop(budget.waiting(Millis(5000)));
        assert!(budget.withdraw(Millis(5000)), "of what has passed nothing is left to give back");
        assert!(!budget.withdraw(Millis(5000)));
    }

    #[test]
    fn a_quiet_service_gets_its_floor_and_no_more() {
        let budget = of(Limits { ratio_ppm: 200_000, min_per_second: 10, window_ms: 10_000 }, 1);
        let granted = (0..1000).filter(|_| budget.withdraw(Millis(5))).count();
        assert_eq!(granted, 100);
        assert!(!budget.withdraw(Millis(10_000)));
        assert!(budget.withdraw(Millis(11_000)));
    }

    #[test]
    fn without_a_floor_the_first_retry_needs_its_share_of_requests() {
        let budget = of(Limits { ratio_ppm: 200_000, min_per_second: 0, window_ms: 10_000 }, 2);
        for request in 0..10 {
            assert_eq!(budget.withdraw(Millis(0)), request == 5, "after {request} requests");
            budget.deposit(request % 2, Millis(0));
        }
    }

    #[test]
    fn four_threads_never_withdraw_more_than_the_budget() {
        let budget = of(Limits { ratio_ppm: 500_000, min_per_second: 100, window_ms: 10_000 }, 4);
        for worker in 0..4 {
            (0..1000).for_each(|_| budget.deposit(worker, Millis(0)));
        }
        let granted = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mine = (0..5000).filter(|_| budget.withdraw(Millis(0))).count();
                    granted.fetch_add(mine as u64, Relaxed);
                });
            }
        });
        assert_eq!(granted.load(Relaxed), 4000 / 2 + 1000);
    }
}
