// SPDX-License-Identifier: GPL-2.0-only

//! Generated bindings of what the kernel crate does not bind, and its own.

#![allow(
    clippy::all,
    dead_code,
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    non_snake_case,
    improper_ctypes,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    unused_imports
)]

pub(crate) use kernel::bindings::*;

mod generated {
    include!("bindings_generated.rs");
}
pub(crate) use generated::*;
