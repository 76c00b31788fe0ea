// SPDX-License-Identifier: GPL-2.0-only

//! The clock.
//!
//! C header: `include/linux/timekeeping.h`.

/// `CLOCK_MONOTONIC`, in nanoseconds. Any context.
pub(crate) fn now() -> i64 {
    // SAFETY: May be called from any context.
    unsafe { crate::bindings::ktime_get() }
}
