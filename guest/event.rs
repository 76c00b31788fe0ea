// SPDX-License-Identifier: GPL-2.0-only

//! Events that are counted, and can be waited for with a time limit.
//!
//! Who waits looks at the count, then at whatever the event is about, and if there is nothing, waits
//! for the count to change. So no event is missed, however many wait, and old ones wake nobody.
//!
//! C header: [`include/linux/wait.h`](srctree/include/linux/wait.h)

use crate::bindings;
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full, //
        },
        static_lock_class, //
    },
    time::{
        msecs_to_jiffies,
        Msecs, //
    },
    types::Opaque, //
};

/// A kind of event.
#[pin_data]
pub(crate) struct Event {
    count: Atomic<u64>,
    #[pin]
    queue: Opaque<bindings::wait_queue_head>,
}

// SAFETY: A wait queue may be used in any thread.
unsafe impl Send for Event {}
// SAFETY: The lock of the wait queue orders concurrent calls.
unsafe impl Sync for Event {}

impl Event {
    /// One that has not happened yet.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            count: Atomic::new(0),
            queue <- Opaque::ffi_init(|slot| {
                // SAFETY: `slot` is memory for a wait queue, pinned from here on; name and key are
                // static.
                unsafe {
                    bindings::__init_waitqueue_head(
                        slot,
                        c"Event".as_char_ptr(),
                        static_lock_class!().as_ptr(),
                    );
                }
            }),
        })
    }

    /// How often it has happened so far. Any context.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Acquire)
    }

    /// It happens: wakes all who wait. Any context.
    pub(crate) fn signal(&self) {
        self.count.fetch_add(1, Full);
        // SAFETY: Initialised by `new`, which is the only constructor. 0: all of them.
        unsafe {
            bindings::__wake_up(
                self.queue.get(),
                bindings::TASK_NORMAL,
                0,
                core::ptr::null_mut(),
            );
        }
    }

    /// Sleeps until it has happened more often than `count` times, `limit` milliseconds at most.
    ///
    /// Process context, uninterruptible.
    pub(crate) fn wait(&self, count: u64, limit: Msecs) {
        // SAFETY: Initialised by `new`; the counter lives as long as the queue.
        unsafe {
            bindings::wait_while(
                self.queue.get(),
                self.count.as_ptr(),
                count,
                msecs_to_jiffies(limit),
            );
        }
    }
}
