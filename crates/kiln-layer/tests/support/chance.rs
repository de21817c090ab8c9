//! Chance that can be had again, and how much of it.

/// SplitMix64.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number less than `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// The seed and the number of rounds: always the same few, or as `KILN_FUZZ_SEED` and `KILN_FUZZ_ROUNDS` say.
#[expect(clippy::disallowed_methods, reason = "how long and from where, as whoever runs the test wants it")]
pub fn rounds(usual: u64) -> (u64, u64) {
    let variable = |name| std::env::var(name).ok().map(|value| value.parse().expect("a number"));
    (variable("KILN_FUZZ_SEED").unwrap_or(1), variable("KILN_FUZZ_ROUNDS").unwrap_or(usual))
}
