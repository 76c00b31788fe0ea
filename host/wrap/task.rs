// SPDX-License-Identifier: GPL-2.0-only

//! Threads of the VMM's own process: a safe wrapper of `struct vhost_task`.
//!
//! Work that must be charged to a VM (its mm, memory cgroup, cpuset, resource
//! limits and capabilities) runs in such a thread.
//!
//! C header: `include/linux/sched/vhost_task.h`, source: `kernel/vhost_task.c`.

use core::ptr::NonNull;

use kernel::{
    error::from_err_ptr,
    ffi::c_void,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        Arc, //
    },
    time::Jiffies, //
};

use crate::bindings;

/// What a [`Task`] does.
pub(crate) trait Work: Send + Sync + 'static {
    /// Does one bounded piece of work; returns whether there may be more.
    ///
    /// Context: process context of the VMM (`current->mm` is its mm). May
    /// sleep, and must come back soon after a fatal signal.
    fn run(&self) -> bool;

    /// For how long to sleep at most after `run` has returned false; `None`: until the next wake.
    ///
    /// Context: as `run`.
    fn patience(&self) -> Option<Jiffies> {
        None
    }

    /// The process dies, or the thread was killed: `run` is not called again.
    ///
    /// Context: the dying thread, with the vhost task's `exit_mutex` held. May
    /// sleep. Also called at an ordinary exit of the process, but never after
    /// the drop of the [`Task`] has begun.
    fn killed(&self);
}

struct Shared<T> {
    /// Set by `wake`, taken by the thread before each `run`. It lets the thread
    /// decide whether to sleep without a lock, which it could not take in the
    /// `TASK_INTERRUPTIBLE` state in which `kernel/vhost_task.c` calls it.
    pending: Atomic<bool>,
    /// The sleep that `Work::patience` asked for, in jiffies; 0: none. The thread's own.
    patience: Atomic<isize>,
    work: Arc<T>,
}

/// A running thread; dropping it stops the thread and waits for its end.
///
/// # Invariants
///
/// `raw` was started and not yet stopped; its `data` is the pointer of one
/// reference to `shared`, which is given back in `drop`.
pub(crate) struct Task<T: Work> {
    raw: NonNull<bindings::vhost_task>,
    shared: Arc<Shared<T>>,
}

// SAFETY: `vhost_task_wake` and `vhost_task_stop` may be called from any thread.
unsafe impl<T: Work> Send for Task<T> {}
// SAFETY: `wake` is the only operation on a shared reference, and `vhost_task_wake` may be
// called by several threads at once.
unsafe impl<T: Work> Sync for Task<T> {}

impl<T: Work> Task<T> {
    /// Creates and starts a thread of the calling process; it runs once at once.
    ///
    /// Context: an ioctl or similar of the VMM, `current->mm` not NULL. May sleep.
    pub(crate) fn spawn(work: Arc<T>, name: &'static CStr) -> Result<Self> {
        let shared = Arc::new(
            Shared {
                pending: Atomic::new(true),
                patience: Atomic::new(0),
                work,
            },
            GFP_KERNEL,
        )?;
        let data = shared.clone().into_raw();

        // SAFETY: The callbacks match `data`, which stays valid until `drop` has
        // stopped the thread; `name` is static and copied.
        let raw = from_err_ptr(unsafe {
            bindings::vhost_task_create(
                Some(Self::run),
                Some(Self::killed),
                data.cast_mut().cast(),
                name.as_char_ptr(),
            )
        });
        let raw = match raw.map(NonNull::new) {
            Ok(Some(raw)) => raw,
            other => {
                // SAFETY: `data` came from `into_raw` above; no thread has it.
                drop(unsafe { Arc::from_raw(data) });
                return Err(other.err().unwrap_or(ENOMEM));
            }
        };
        // SAFETY: `raw` was just created and is started once.
        unsafe { bindings::vhost_task_start(raw.as_ptr()) };

        // INVARIANT: Started above, stopped only in `drop`.
        Ok(Self { raw, shared })
    }

    /// Makes the thread call [`Work::run`] (again). Any context.
    pub(crate) fn wake(&self) {
        self.shared.pending.xchg(true, Full);
        // SAFETY: By the type invariant the task was not yet stopped.
        unsafe { bindings::vhost_task_wake(self.raw.as_ptr()) };
    }

    extern "C" fn run(data: *mut c_void) -> bool {
        // SAFETY: `data` is the `Shared<T>` of `spawn`; the reference that it
        // stands for is given back only after this thread has ended.
        let shared = unsafe { &*data.cast::<Shared<T>>() };

        // Full ordering pairs with `wake`: what it was told of is visible now.
        if !shared.pending.xchg(false, Full) {
            let patience = shared.patience.load(Relaxed);
            if patience == 0 {
                return false;
            }
            // SAFETY: The caller has set TASK_INTERRUPTIBLE before it looked for
            // a stop, so neither that nor a wake is missed; no lock is held.
            if unsafe { bindings::schedule_timeout(patience) } != 0 {
                return true;
            }
        }
        // SAFETY: Only changes the state of the current thread, which runs.
        unsafe { bindings::set_current_running() };
        be_fair();
        if shared.work.run() {
            shared.pending.store(true, Relaxed);
        } else {
            let patience = shared.work.patience().map_or(0, |jiffies| {
                isize::try_from(jiffies).unwrap_or(isize::MAX).max(1)
            });
            shared.patience.store(patience, Relaxed);
        }
        true
    }

    extern "C" fn killed(data: *mut c_void) {
        // SAFETY: `data` is the `Shared<T>` of `spawn`; `drop` gives back the reference that it
        // stands for only after `vhost_task_stop`, which waits for this function.
        let shared = unsafe { &*data.cast::<Shared<T>>() };
        shared.work.killed();
    }
}

/// Makes the current thread one that shares processors with others.
///
/// It inherits the scheduling policy of whoever has made it. Providing memory takes minutes: at
/// a real-time priority, that would starve all others on its processor, and be in vain: what
/// waits for memory in real time waits for much longer than a share of a processor makes out.
fn be_fair() {
    // SAFETY: `current` is valid, and both fields may be read at any time.
    let (policy, priority) = unsafe {
        let task = bindings::get_current();
        ((*task).policy, (*task).static_prio)
    };
    if policy == bindings::SCHED_FIFO || policy == bindings::SCHED_RR {
        // SAFETY: `current` is valid; the value is that of a nice value, with an offset. May be
        // called from any context in which no scheduler's lock is held.
        unsafe { bindings::sched_set_normal(bindings::get_current(), priority - NICE_0) };
    }
}

/// The static priority of a nice value of 0 (`DEFAULT_PRIO`).
const NICE_0: i32 = 120;

impl<T: Work> Drop for Task<T> {
    fn drop(&mut self) {
        // SAFETY: Not stopped before, by the type invariant. Waits until the
        // thread no longer uses `data`; a killed thread has passed that point
        // before its exit closes files, so it may even drop its own `Task`.
        unsafe { bindings::vhost_task_stop(self.raw.as_ptr()) };
        // SAFETY: Gives back the reference of `spawn`; the thread is gone.
        drop(unsafe { Arc::from_raw(Arc::as_ptr(&self.shared)) });
    }
}
