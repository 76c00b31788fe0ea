// SPDX-License-Identifier: GPL-2.0-only

//! The ballooned table against its model, at random.

use crate::rng::{
    steps,
    Rng, //
};
use crate::table_model::Pair;

#[test]
fn random_operations_match_the_model() {
    let mut rng = Rng::new("table");
    let mut pair = Pair::new();
    for _ in 0..steps(3_000_000) {
        pair.step(&mut rng);
    }
}
