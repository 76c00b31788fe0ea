// SPDX-License-Identifier: GPL-2.0-only

//! An interrupt to the driver: a safe wrapper of `struct vdpa_callback`.
//!
//! C header: `include/linux/vdpa.h`; source: `drivers/vhost/vdpa.c`, where the
//! functions signal the eventfd that the VMM gave.

use kernel::ffi::c_void;

use crate::bindings;

/// What to call for one interrupt, if anything.
///
/// # Invariants
///
/// A function may be called with the pointer beside it, in atomic context too.
pub(super) struct Callback(
    Option<(
        unsafe extern "C" fn(*mut c_void) -> bindings::irqreturn_t,
        *mut c_void,
    )>,
);

// SAFETY: vDPA callbacks may be called from any thread.
unsafe impl Send for Callback {}

impl Callback {
    /// Nobody listens.
    pub(super) const NONE: Self = Self(None);

    /// What a vDPA bus driver set. Its `trigger` is an optional short cut.
    ///
    /// # Safety
    ///
    /// Its function must be safe to call with its `private`, in atomic context
    /// too, for as long as this object lives.
    pub(super) unsafe fn new(raw: &bindings::vdpa_callback) -> Self {
        // INVARIANT: By the safety requirement.
        Self(raw.callback.map(|function| (function, raw.private)))
    }

    /// Raises the interrupt. Any context.
    pub(super) fn call(&self) {
        if let Some((function, private)) = self.0 {
            // SAFETY: By the type invariant. The result is for real interrupts.
            unsafe { function(private) };
        }
    }
}
