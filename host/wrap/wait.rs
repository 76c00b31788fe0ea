// SPDX-License-Identifier: GPL-2.0-only

//! Waiting for a change of what a mutex protects, killably.
//!
//! `kernel::sync::CondVar` has no killable wait: interruptible waits spin in a
//! vCPU thread, which is full of harmless signals, and uninterruptible ones are
//! reported as hung after two minutes, which mapping a large VM may well take.
//!
//! C header: `include/linux/wait.h`.

use kernel::{
    ffi::c_long,
    prelude::*,
    str::CStr,
    sync::{
        LockClassKey,
        Mutex,
        MutexGuard, //
    },
    types::Opaque, //
};

use crate::bindings;

/// A wait queue to go with a mutex.
#[pin_data]
pub(crate) struct WaitQueue {
    #[pin]
    head: Opaque<bindings::wait_queue_head>,
}

// SAFETY: A wait queue head has its own lock.
unsafe impl Send for WaitQueue {}
// SAFETY: What is done with a shared one takes the head's own lock.
unsafe impl Sync for WaitQueue {}

impl WaitQueue {
    /// Initialises the queue; `name` and `key` are for lockdep.
    pub(crate) fn new(name: &'static CStr, key: Pin<&'static LockClassKey>) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is valid for writes; `name` and `key` are static.
            head <- Opaque::ffi_init(|slot| unsafe {
                bindings::__init_waitqueue_head(slot, name.as_char_ptr(), key.as_ptr())
            }),
        })
    }

    /// Wakes every waiter. Any context.
    pub(crate) fn notify(&self) {
        // SAFETY: The head was initialised by `new`.
        unsafe {
            bindings::__wake_up(
                self.head.get(),
                bindings::TASK_NORMAL,
                0,
                core::ptr::null_mut(),
            )
        };
    }

    /// Waits until `ready` gives something, and returns that.
    ///
    /// `ready` is called with `mutex` held, first at once and then after each
    /// `notify`. Gives `EINTR` after a fatal signal.
    ///
    /// Context: process context, may sleep; takes `mutex`.
    pub(crate) fn wait<T, R>(
        &self,
        mutex: &Mutex<T>,
        ready: impl FnMut(&mut MutexGuard<'_, T>) -> Option<R>,
    ) -> Result<R> {
        self.wait_in(bindings::TASK_KILLABLE_STATE, mutex, ready)
    }

    /// Like [`WaitQueue::wait`], but goes on after a fatal signal as well.
    ///
    /// For what soon comes to an end by itself.
    pub(crate) fn wait_uninterruptible<T, R>(
        &self,
        mutex: &Mutex<T>,
        mut ready: impl FnMut(&mut MutexGuard<'_, T>) -> Option<R>,
    ) -> R {
        loop {
            // Never fails in this state; if it did, waiting again would be right.
            if let Ok(value) = self.wait_in(bindings::TASK_UNINTERRUPTIBLE, mutex, &mut ready) {
                return value;
            }
        }
    }

    fn wait_in<T, R>(
        &self,
        task_state: u32,
        mutex: &Mutex<T>,
        mut ready: impl FnMut(&mut MutexGuard<'_, T>) -> Option<R>,
    ) -> Result<R> {
        let entry = Opaque::<bindings::wait_queue_entry>::uninit();
        // SAFETY: `entry` is valid for writes and lives on this stack frame,
        // which is not left before `remove_wait_queue`; the head is initialised.
        unsafe {
            bindings::init_woken_entry(entry.get());
            bindings::add_wait_queue(self.head.get(), entry.get());
        }
        let result = loop {
            if let Some(value) = ready(&mut mutex.lock()) {
                break Ok(value);
            }
            let killable = task_state == bindings::TASK_KILLABLE_STATE;
            // SAFETY: Only looks at the current task.
            if killable && unsafe { bindings::fatal_signal_pending_current() } {
                break Err(EINTR);
            }
            // A notification between `ready` and here is not lost: it marked the
            // entry as woken, whatever the state of this task was.
            // SAFETY: `entry` is on the queue; no spinlock is held.
            unsafe { bindings::wait_woken(entry.get(), task_state, c_long::MAX) };
        };
        // SAFETY: Added above.
        unsafe { bindings::remove_wait_queue(self.head.get(), entry.get()) };
        result
    }
}

/// Makes a [`WaitQueue`] with a lock class of its own.
macro_rules! new_wait_queue {
    ($name:literal) => {
        $crate::wrap::wait::WaitQueue::new(
            kernel::optional_name!($name),
            kernel::static_lock_class!(),
        )
    };
}
pub(crate) use new_wait_queue;
