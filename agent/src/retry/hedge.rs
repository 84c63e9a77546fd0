//! Hedging: while a try is slow, others are made beside it, and the first good answer is the one.
//!
//! Keeps true:
//! - The losers are dropped, and with them what they hold: their permits are given back as those of callers that leave.
//! - A try that fails ends nothing while others are under way. When all have failed, the last one counts as any failure does.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

/// When other tries are made beside one, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hedge {
    /// After so long with no answer to the one before.
    pub after: Duration,
    /// At most so many.
    pub max: u32,
}

/// Runs a try, and each time that the hedge's wait is over another one, if there is one to be had. Returns the first that stands, or the
/// last one. What ends before and does not stand is passed over. `sleep` is how it waits.
pub async fn race<T, F: Future<Output = T>, S: Future<Output = ()>>(
    first: F,
    hedge: Hedge,
    sleep: impl Fn(Duration) -> S,
    mut another: impl FnMut() -> Option<F>,
    stands: impl Fn(&T) -> bool,
    mut pass_over: impl FnMut(T),
) -> T {
    let mut tries = FuturesUnordered::new();
    tries.push(first);
    let mut left = hedge.max;
    let mut wait = std::pin::pin!(sleep(hedge.after));
    loop {
        tokio::select! {
            biased;
            Some(ended) = tries.next() => {
                if stands(&ended) || tries.is_empty() {
                    return ended;
                }
                pass_over(ended);
            }
            () = wait.as_mut(), if left > 0 => match another() {
                Some(next) => {
                    tries.push(next);
                    left -= 1;
                    wait.set(sleep(hedge.after));
                }
                None => left = 0,
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use std::cell::{Cell, RefCell};
    use std::task::{Context, Poll, Waker};

    use proptest::prelude::*;

    use super::*;

    /// Virtual time: it passes when nothing else can happen.
    #[derive(Default)]
    struct Clock {
        now: Cell<Duration>,
        waiting: RefCell<Vec<(Duration, Waker)>>,
    }

    impl Clock {
        async fn sleep(&self, length: Duration) {
            let until = self.now.get() + length;
            std::future::poll_fn(|cx| {
                if self.now.get() >= until {
                    return Poll::Ready(());
                }
                self.waiting.borrow_mut().push((until, cx.waker().clone()));
                Poll::Pending
            })
            .await;
        }

        fn run<T>(&self, future: impl Future<Output = T>) -> T {
            let mut future = std::pin::pin!(future);
            loop {
                if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    return value;
                }
                let waiting = self.waiting.take();
                self.now.set(
                    waiting.iter().map(|(until, _)| *until).filter(|until| *until > self.now.get()).min().unwrap(),
                );
                waiting.into_iter().for_each(|(_, waker)| waker.wake());
            }
        }
    }

    /// Tries that end after so many milliseconds, well or not: which one is returned, when, how many were made, which were passed over.
    pub(in crate::retry) fn raced(tries: &[(u64, bool)], after: u64, max: u32) -> (usize, u64, usize, Vec<usize>) {
        let (clock, made, mut passed) = (Clock::default(), Cell::new(0), Vec::new());
        let clock = &clock;
        let next = || {
            let number = made.get();
            let (takes, good) = *tries.get(number)?;
            made.set(number + 1);
            Some(async move {
                clock.sleep(Duration::from_millis(takes)).await;
                (number, good)
            })
        };
        let hedge = Hedge { after: Duration::from_millis(after), max };
        let (first, sleep) = (next().unwrap(), |length| clock.sleep(length));
        let (number, _) =
            clock.run(race(first, hedge, sleep, next, |(_, good)| *good, |(number, _)| passed.push(number)));
        (number, clock.now.get().as_millis() as u64, made.get(), passed)
    }

    #[test]
    fn the_first_good_answer_wins_and_a_failure_waits_for_those_under_way() {
        assert_eq!(raced(&[(50, true), (0, true)], 100, 1), (0, 50, 1, vec![]), "a quick answer needs no other");
        assert_eq!(raced(&[(500, true), (50, true)], 100, 1), (1, 150, 2, vec![]));
        assert_eq!(raced(&[(300, true), (50, false)], 100, 1), (0, 300, 2, vec![1]));
        assert_eq!(raced(&[(120, false), (50, false)], 100, 1), (1, 150, 2, vec![0]), "the last of those that fail");
        assert_eq!(
            raced(&[(50, false), (0, true)], 100, 1),
            (0, 50, 1, vec![]),
            "it failed by itself: that is for retries"
        );
        assert_eq!(raced(&[(900, true), (900, true), (10, true)], 100, 1).2, 2, "no more than may be");
        assert_eq!(raced(&[(900, true), (900, true), (10, true)], 100, 2), (2, 210, 3, vec![]));
    }

    proptest! {
        #[test]
        fn nobody_waits_longer_than_without_a_hedge_for_a_good_answer(
            tries in prop::collection::vec((0u64..1000, any::<bool>()), 1..6), after in 1u64..500, max in 0u32..4,
        ) {
            let (number, took, made, passed) = raced(&tries, after, max);
            prop_assert!(made <= 1 + max as usize && !passed.contains(&number));
            prop_assert!(passed.iter().all(|passed| !tries[*passed].1));
            let ends = |number: usize| number as u64 * after + tries[number].0;
            prop_assert_eq!(took, ends(number));
            if tries[number].1 {
                let sooner = (0..made).find(|other| tries[*other].1 && ends(*other) < took);
                prop_assert_eq!(sooner, None);
            } else {
                prop_assert!((0..made).all(|other| !tries[other].1 && ends(other) <= took));
            }
        }
    }
}
