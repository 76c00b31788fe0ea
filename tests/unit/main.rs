// SPDX-License-Identifier: GPL-2.0-only

//! Unit tests of the logic that both modules share, and of parts of the host's module;
//! `run.sh` builds and runs them.

#[allow(dead_code, reason = "the two modules use different parts")]
#[path = "../../include/logic/mod.rs"]
mod logic;

#[allow(dead_code, reason = "the module uses more of it")]
mod type1;
mod vdpa;
use vdpa::bindings;

#[cfg(test)]
mod budget;
#[cfg(test)]
mod command;
#[cfg(test)]
mod protocol;
#[cfg(test)]
mod range_set;
#[cfg(test)]
mod rng;
#[cfg(test)]
mod table;
#[cfg(test)]
mod table_model;
#[cfg(test)]
mod table_size;
#[cfg(test)]
mod vring;
