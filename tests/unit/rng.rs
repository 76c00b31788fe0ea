// SPDX-License-Identifier: GPL-2.0-only

//! Random numbers for the randomised tests.

use std::env;
use std::time::{
    SystemTime,
    UNIX_EPOCH, //
};

/// SplitMix64, the generator that Steele, Lea and Flood published in 2014.
pub(crate) struct Rng(u64);

impl Rng {
    /// Starts from `UNIT_SEED`, or from the clock, and prints the seed for the case of a failure.
    pub(crate) fn new(test: &str) -> Self {
        let seed = match env::var("UNIT_SEED") {
            Ok(text) => text.parse().expect("UNIT_SEED is a decimal number"),
            Err(_) => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |t| t.as_nanos() as u64),
        };
        println!("{test}: UNIT_SEED={seed}");
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// How many steps a randomised test makes: `UNIT_STEPS`, or `default`.
pub(crate) fn steps(default: u64) -> u64 {
    match env::var("UNIT_STEPS") {
        Ok(text) => text.parse().expect("UNIT_STEPS is a decimal number"),
        Err(_) => default,
    }
}
