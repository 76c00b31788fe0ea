// SPDX-License-Identifier: GPL-2.0-only

//! Data symbols that are not exported: a safe wrapper of `ksym.c`.

use kernel::{
    ffi::c_ulong,
    prelude::*, //
};

use crate::bindings;

/// The address of a data symbol, `symbol` or `module:symbol`; `None` if there is none.
///
/// Context: process context, may sleep; takes the locks of kprobes.
pub(crate) fn find_data(symbol: &CStr) -> Option<usize> {
    let mut address: c_ulong = 0;
    // SAFETY: `symbol` is a C string, and `address` is valid for writes.
    let ret = unsafe { bindings::deferred_find_data(symbol.as_char_ptr(), &mut address) };
    (ret == 0 && address != 0).then_some(address)
}
