//! Chance that can be had again: SplitMix64.

use std::time::SystemTime;

/// The seed that is asked for, or one that nobody knows before. A gate, where CI is set, must fail for what the change did,
/// and not for the hour: there the seed is always the same.
#[expect(clippy::disallowed_methods, reason = "whoever runs the tests says whether they are a gate")]
pub(crate) fn first_seed(name: &str, of_the_gate: u64) -> u64 {
    let clock = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let is_gate = std::env::var_os("CI").is_some();
    variable(name).unwrap_or_else(|| if is_gate { of_the_gate } else { clock() })
}

/// A number from the environment.
#[expect(clippy::disallowed_methods, reason = "how long and from where, as whoever runs the test wants it")]
pub(crate) fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number less than `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(crate) fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}
