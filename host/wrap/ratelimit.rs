// SPDX-License-Identifier: GPL-2.0-only

//! Messages that a guest can cause as often as it likes.
//!
//! Each VM and each balloon device has a limit of its own: a guest that floods the
//! log can suppress messages about itself, and no others.
//!
//! C header: `include/linux/ratelimit.h`.

use kernel::{
    prelude::*,
    types::Opaque, //
};

use crate::bindings;

/// How the kernel calls us when it says how many messages were suppressed.
const NAME: &CStr = c"vfio_iommu_deferred";

/// Lets the kernel's usual number of messages pass: ten in five seconds.
#[pin_data]
pub(crate) struct Ratelimit {
    #[pin]
    state: Opaque<bindings::ratelimit_state>,
}

// SAFETY: The state has a lock of its own.
unsafe impl Send for Ratelimit {}
// SAFETY: `___ratelimit()`, all that is done with a shared one, takes the state's own lock.
unsafe impl Sync for Ratelimit {}

impl Ratelimit {
    /// A limit of which nothing is used up.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is memory for a state, pinned from here on.
            state <- Opaque::ffi_init(|slot| unsafe { bindings::ratelimit_default_init(slot) }),
        })
    }

    /// Whether a message may be logged now. Any context.
    pub(crate) fn allows(&self) -> bool {
        // SAFETY: Initialised by `new`, which is the only constructor; the name is static.
        unsafe { bindings::___ratelimit(self.state.get(), NAME.as_char_ptr()) != 0 }
    }
}
