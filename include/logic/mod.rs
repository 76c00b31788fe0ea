// SPDX-License-Identifier: GPL-2.0-only

//! The logic of both modules: no `unsafe`, no bindings, no way to panic.
//!
//! Each module compiles these files with `#[path = "../include/logic/mod.rs"] mod logic;`, and
//! `tests/unit` compiles them with `rustc --test`.  Nothing here locks or sleeps; only [`vec`]
//! allocates.  The callers hold the locks that the `&mut self` methods need.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    warn(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

pub(crate) mod budget;
pub(crate) mod chain;
pub(crate) mod command;
pub(crate) mod config_space;
pub(crate) mod eager;
mod extents;
mod le;
pub(crate) mod memory;
pub(crate) mod memory_map;
pub(crate) mod pace;
pub(crate) mod protocol;
pub(crate) mod range;
pub(crate) mod range_map;
pub(crate) mod range_set;
pub(crate) mod ring_error;
pub(crate) mod state;
pub(crate) mod sum;
pub(crate) mod table;
pub(crate) mod vec;
pub(crate) mod vring;
