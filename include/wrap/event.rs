// SPDX-License-Identifier: GPL-2.0-only

//! Events: what a completion is, with a time limit, which the kernel crate's lacks.
//!
//! C header: [`include/linux/completion.h`](srctree/include/linux/completion.h)

use crate::bindings;
use kernel::{
    prelude::*,
    time::{
        msecs_to_jiffies,
        Msecs, //
    },
    types::Opaque, //
};

/// A counter of signals that one task waits for.
#[pin_data]
pub(crate) struct Event {
    #[pin]
    completion: Opaque<bindings::completion>,
}

// SAFETY: A completion may be waited for and completed from any thread.
unsafe impl Send for Event {}
// SAFETY: As above; its own lock orders concurrent calls.
unsafe impl Sync for Event {}

impl Event {
    /// An event that nobody has signalled.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is memory for a completion, pinned from here on.
            completion <- Opaque::ffi_init(|slot| unsafe { bindings::init_completion(slot) }),
        })
    }

    /// Wakes the waiter, or lets the next one pass. Any context.
    pub(crate) fn signal(&self) {
        // SAFETY: Initialised by `new`, which is the only constructor.
        unsafe { bindings::complete(self.completion.get()) }
    }

    /// Sleeps until the next signal, `limit` milliseconds at most; false if there was none.
    ///
    /// Process context, uninterruptible. A signal that nobody waited for counts, so the caller
    /// must look at what it waits for, and wait again if it has not happened yet.
    pub(crate) fn wait(&self, limit: Msecs) -> bool {
        let jiffies = msecs_to_jiffies(limit);
        // SAFETY: As in `signal`.
        unsafe { bindings::wait_for_completion_timeout(self.completion.get(), jiffies) != 0 }
    }
}
