//! Maps with a quick hash, for what every request looks up. What is in such a map comes from config; callers only look things up, and
//! cannot make much meet.
//!
//! Some are by the [`hash`] of a value alone: what is found is asked again whether it holds, so that two values of one hash cost time
//! and nothing else.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash as _, Hasher};

/// A map from what comes from config.
pub(crate) type Map<K, V> = HashMap<K, V, BuildHasherDefault<Quick>>;

/// The hash of a value.
pub(super) fn hash(value: &[u8]) -> u64 {
    let mut quick = Quick::default();
    value.hash(&mut quick);
    quick.finish()
}

/// Multiplies eight bytes at a time, and folds the product.
#[derive(Default)]
pub(crate) struct Quick(u64);

impl Quick {
    fn mix(&mut self, word: u64) {
        // The fraction of the golden ratio: odd, and of no pattern.
        let product = u128::from(self.0 ^ word) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }
}

impl Hasher for Quick {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.mix(u64::from_le_bytes(*word)));
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            self.mix(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.mix(number);
    }

    fn write_usize(&mut self, number: usize) {
        // A length, in front of what is of it: never 0, which would make it one with the begin.
        self.mix(number as u64 + 1);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_alike_is_spread() {
        let texts = |of: &str| (0..4096).map(|i| format!("/{of}-{i}/x")).collect::<Vec<_>>();
        for texts in [texts("a"), texts("service"), texts("service-with-a-long-name")] {
            // A map uses the lowest bits for the place, and the highest to tell apart what is there.
            let (mut low, mut high) = (vec![0; 4096], vec![0; 128]);
            for text in texts {
                let hash = hash(text.as_bytes());
                low[(hash & 4095) as usize] += 1;
                high[(hash >> 57) as usize] += 1;
            }
            assert!(low.iter().all(|count| *count < 12), "{:?}", low.iter().max());
            assert!(high.iter().all(|count| (8..80).contains(count)), "{high:?}");
        }
    }
}
