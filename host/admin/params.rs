// SPDX-License-Identifier: GPL-2.0-only

//! The knobs as parameters of the module: what `params.c` calls.

use kernel::prelude::*;

use crate::admin::knobs::{
    Hooks,
    Knobs, //
};

/// Sets a knob as its file would.
///
/// Errors: `EINVAL` if the value is out of the knob's range, `ENOENT` if there is no such knob.
fn set(name: &CStr, value: &CStr) -> Result {
    let knob = Knobs::FILES.iter().find(|knob| knob.name() == name);
    // There is no VM yet that could be let go on.
    let hooks = Hooks { unhold: || {} };
    knob.ok_or(ENOENT)?
        .set(&hooks, value.to_str().map_err(|_| EINVAL)?)
}

/// Sets a knob from a parameter; the answer is 0 or an error number.
///
/// # Safety
///
/// Called by `params.c` alone, while the module's parameters are parsed, before its
/// initialisation: `name` and `value` are strings.
#[no_mangle]
unsafe extern "C" fn deferred_set_knob(name: *const c_char, value: *const c_char) -> c_int {
    // SAFETY: By the caller's promise both are strings, which last as long as the call.
    let (name, value) = unsafe { (CStr::from_char_ptr(name), CStr::from_char_ptr(value)) };
    match set(name, value) {
        Ok(()) => 0,
        Err(error) => error.to_errno(),
    }
}
