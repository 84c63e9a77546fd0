//! How long to wait before a retry.
//!
//! A pure function of the policy, the number of the retry, the wait before and a source of randomness. The wait grows by
//! the strategy; the jitter makes it shorter or longer; `max_ms` holds after the jitter too, and the waits near it are
//! spread over what is left below it, so that many clients at the cap do not come back at once.
//! `DecorrelatedJitter` is random in itself: the jitter is not added to it.
//!
//! Held by `a_wait_is_the_strategys_within_the_jitter` and `no_wait_is_longer_than_the_longest`.

use std::time::Duration;

use rand::Rng;

/// How the wait grows. `d` is the first wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// d, d, d, d ...
    Fixed,
    /// d, 2d, 3d, 4d ...
    Linear,
    /// d, d·m, d·m², d·m³ ... with m the multiplier.
    Exponential,
    /// d, d, 2d, 3d, 5d ...
    Fibonacci,
    /// Random between d and three times the wait before.
    DecorrelatedJitter,
}

/// The waits that a policy asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Backoff {
    /// How the wait grows.
    pub strategy: Strategy,
    /// The first wait, in milliseconds.
    pub initial_ms: u64,
    /// No wait is longer than this, in milliseconds.
    pub max_ms: u64,
    /// For [`Strategy::Exponential`], in thousandths: 2000 doubles.
    pub multiplier_milli: u32,
    /// Shorter or longer at random by up to this share, in parts per million.
    pub jitter_ppm: u32,
}

impl Backoff {
    /// The wait before retry number `retry` (1 is the first), when the wait before the one before was `previous` (zero before
    /// the first).
    pub fn delay(&self, retry: u32, previous: Duration, rng: &mut impl Rng) -> Duration {
        let (shortest, longest) = self.range_ms(retry, previous);
        let milliseconds = shortest + (longest - shortest) * rng.random::<f64>();
        Duration::from_secs_f64(milliseconds / 1000.0).min(Duration::from_millis(self.max_ms))
    }

    /// Between which two the wait lies.
    fn range_ms(&self, retry: u32, previous: Duration) -> (f64, f64) {
        let (first, cap) = (self.initial_ms as f64, self.max_ms as f64);
        if self.strategy == Strategy::DecorrelatedJitter {
            let before = (previous.as_secs_f64() * 1000.0).max(first);
            return (first.min(cap), (3.0 * before).min(cap));
        }
        let middle = (first * self.factor(retry)).min(cap);
        let spread = middle * f64::from(self.jitter_ppm.min(1_000_000)) / 1e6;
        (middle - spread, (middle + spread).min(cap))
    }

    /// How many times the first wait it is.
    fn factor(&self, retry: u32) -> f64 {
        let steps = retry.saturating_sub(1);
        match self.strategy {
            Strategy::Fixed | Strategy::DecorrelatedJitter => 1.0,
            Strategy::Linear => f64::from(retry.max(1)),
            Strategy::Exponential => {
                (f64::from(self.multiplier_milli) / 1000.0).powi(i32::try_from(steps).unwrap_or(i32::MAX))
            }
            // Beyond a thousand steps every number is past every cap.
            Strategy::Fibonacci => (0..steps.min(1000)).fold((1.0, 1.0), |(this, next), _| (next, this + next)).0,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use proptest::prelude::{Just, Strategy as _, prop_assert, prop_oneof, proptest};
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    const EVERY: [Strategy; 5] =
        [Strategy::Fixed, Strategy::Linear, Strategy::Exponential, Strategy::Fibonacci, Strategy::DecorrelatedJitter];

    fn backoff(strategy: Strategy) -> Backoff {
        Backoff { strategy, initial_ms: 100, max_ms: 1_000_000, multiplier_milli: 2000, jitter_ppm: 0 }
    }

    /// Waits in milliseconds before the first so many retries.
    fn waits(backoff: Backoff, count: u32, seed: u64) -> Vec<u64> {
        let (mut rng, mut previous) = (SmallRng::seed_from_u64(seed), Duration::ZERO);
        (1..=count)
            .map(|retry| {
                previous = backoff.delay(retry, previous, &mut rng);
                previous.as_millis() as u64
            })
            .collect()
    }

    /// The strategies without jitter and cap, by counting: each wait from those before it.
    fn plain(strategy: Strategy, initial: f64, multiplier: f64, retry: u32) -> f64 {
        let mut waits: Vec<f64> = vec![initial];
        for index in 1..retry as usize {
            waits.push(match strategy {
                Strategy::Fixed => initial,
                Strategy::Linear => waits[index - 1] + initial,
                Strategy::Exponential => waits[index - 1] * multiplier,
                Strategy::Fibonacci if index == 1 => initial,
                Strategy::Fibonacci => waits[index - 1] + waits[index - 2],
                Strategy::DecorrelatedJitter => panic!("has no plain sequence"),
            });
        }
        waits[retry as usize - 1]
    }

    #[test]
    fn without_jitter_the_waits_are_those_of_the_documents() {
        assert_eq!(waits(backoff(Strategy::Fixed), 5, 1), [100, 100, 100, 100, 100]);
        assert_eq!(waits(backoff(Strategy::Linear), 5, 1), [100, 200, 300, 400, 500]);
        assert_eq!(waits(backoff(Strategy::Exponential), 5, 1), [100, 200, 400, 800, 1600]);
        assert_eq!(waits(backoff(Strategy::Fibonacci), 6, 1), [100, 100, 200, 300, 500, 800]);
    }

    fn any_backoff(strategies: &'static [Strategy]) -> impl proptest::strategy::Strategy<Value = Backoff> {
        let strategy = proptest::sample::select(strategies);
        let initial = prop_oneof![Just(0u64), 1..10_000u64];
        let cap = prop_oneof![0..20_000u64, Just(u64::from(u32::MAX))];
        (strategy, initial, cap, 1000..100_000u32, 0..=1_000_000u32).prop_map(
            |(strategy, initial_ms, max_ms, multiplier_milli, jitter_ppm)| Backoff {
                strategy,
                initial_ms,
                max_ms,
                multiplier_milli,
                jitter_ppm,
            },
        )
    }

    proptest! {
        #[test]
        fn a_wait_is_the_strategys_within_the_jitter(
            backoff in any_backoff(&EVERY[..4]), retry in 1..20u32, seed: u64,
        ) {
            let multiplier = f64::from(backoff.multiplier_milli) / 1000.0;
            let plain = plain(backoff.strategy, backoff.initial_ms as f64, multiplier, retry).min(backoff.max_ms as f64);
            let jitter = plain * f64::from(backoff.jitter_ppm) / 1e6;
            let wait = backoff.delay(retry, Duration::ZERO, &mut SmallRng::seed_from_u64(seed)).as_secs_f64() * 1000.0;
            let rounding = 1e-6 * plain + 1e-3;
            prop_assert!(wait >= plain - jitter - rounding, "{wait} is below {plain} - {jitter}");
            prop_assert!(wait <= plain + jitter + rounding, "{wait} is above {plain} + {jitter}");
        }

        #[test]
        fn a_decorrelated_wait_is_between_the_first_and_three_times_the_one_before(
            mut backoff in any_backoff(&EVERY[4..]), previous_ms in 0..100_000u64, seed: u64,
        ) {
            backoff.max_ms = backoff.max_ms.max(backoff.initial_ms);
            let previous = Duration::from_millis(previous_ms);
            let wait = backoff.delay(2, previous, &mut SmallRng::seed_from_u64(seed));
            let first = Duration::from_millis(backoff.initial_ms);
            prop_assert!(wait + Duration::from_micros(1) >= first);
            prop_assert!(wait <= 3 * previous.max(first) + Duration::from_micros(1));
        }

        #[test]
        fn no_wait_is_longer_than_the_longest(backoff in any_backoff(&EVERY), retry in 0..=u32::MAX, seed: u64) {
            let longest = Duration::from_millis(backoff.max_ms);
            let mut rng = SmallRng::seed_from_u64(seed);
            prop_assert!(backoff.delay(retry, longest, &mut rng) <= longest);
        }
    }

    #[test]
    fn waits_at_the_cap_are_spread_below_it() {
        let capped = Backoff { max_ms: 1000, jitter_ppm: 100_000, ..backoff(Strategy::Exponential) };
        let waits: Vec<u64> = (0..100).map(|seed| waits(capped, 9, seed)[8]).collect();
        assert!(waits.iter().all(|wait| (900..=1000).contains(wait)), "{waits:?}");
        assert!(waits.iter().filter(|wait| **wait > 990).count() < 30, "{waits:?}");
    }
}
