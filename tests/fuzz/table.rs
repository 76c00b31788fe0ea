// SPDX-License-Identifier: GPL-2.0-only

//! Fuzzing the ballooned table: the input chooses operations, their ranges and which allocations
//! fail; after each one the table is compared with the model of the unit tests.

#![no_main]

#[allow(dead_code, reason = "not every target needs all")]
mod input;
#[allow(dead_code, reason = "the two modules use different parts")]
#[path = "../../include/logic/mod.rs"]
mod logic;
#[path = "../unit/table_model.rs"]
mod table_model;

/// The source of all decisions of the model's operations.
mod rng {
    pub(crate) type Rng = crate::input::Input<'static>;
}

fn run(mut input: input::Input<'static>) {
    logic::vec::injection::disarm();
    let mut pair = table_model::Pair::new();
    while !input.is_empty() {
        pair.step(&mut input);
    }
}
