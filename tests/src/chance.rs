//! How far chance may go: exact binomial bounds, so that a test of a split asserts what the mathematics allows and no more.

use std::ops::RangeInclusive;

/// The smallest range around the middle that the number of hits falls into with at least this probability, if each of
/// `tries` hits with the probability `share`.
pub fn binomial_bound(tries: u64, share: f64, probability: f64) -> RangeInclusive<u64> {
    let tail = (1.0 - probability) / 2.0;
    let odds = (share / (1.0 - share)).ln();
    // The logarithm of the probability of k hits, from that of k - 1: nothing underflows.
    let mut ln = tries as f64 * (1.0 - share).ln();
    let mut below = 0.0;
    let mut low = None;
    for hits in 0..=tries {
        below += ln.exp();
        if low.is_none() && below > tail {
            low = Some(hits);
        }
        if below >= 1.0 - tail {
            return low.unwrap_or(hits)..=hits;
        }
        ln += ((tries - hits) as f64).ln() - ((hits + 1) as f64).ln() + odds;
    }
    low.unwrap_or(0)..=tries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fair_coin_thrown_ten_times_has_the_bounds_of_the_tables() {
        // P(X <= 1) = 11/1024, P(X <= 2) = 56/1024.
        assert_eq!(binomial_bound(10, 0.5, 0.95), 2..=8);
        assert_eq!(binomial_bound(10, 0.5, 0.8), 3..=7);
    }

    #[test]
    fn for_many_tries_it_is_close_to_the_normal_distribution() {
        // 3.29 standard deviations of 40 each are 131.6; the exact sums, made with logarithms of factorials, are these.
        assert_eq!(binomial_bound(10_000, 0.2, 0.999), 1869..=2133);
    }
}
