// SPDX-License-Identifier: GPL-2.0-only

//! Work in a kernel thread, now or later, that can be stopped.
//!
//! The kernel crate's work items own a reference to their object and cannot be cancelled; a driver
//! must be able to say that its work is not running.
//!
//! No locks are taken here. [`Worker::stop`] waits for [`Job::run`], so the caller must not hold a
//! lock that the job takes.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use crate::bindings;
use kernel::{
    prelude::*,
    sync::{
        static_lock_class,
        Arc, //
    },
    time::{
        msecs_to_jiffies,
        Msecs, //
    },
    types::Opaque, //
};

/// What a [`Worker`] does.
pub(crate) trait Job: Send + Sync + 'static {
    /// Does it once; `Some(n)` asks for another run in `n` milliseconds.
    ///
    /// Process context, never twice at a time for one worker; may sleep.
    fn run(&self) -> Option<Msecs>;
}

/// Runs a [`Job`] on the kernel's unbound work queue whenever it is kicked.
///
/// Dropping it stops it for good. That must not happen in the job itself.
///
/// # Invariants
///
/// `work` is initialised, its function is `Self::run`, and it lives in no other struct.
#[pin_data(PinnedDrop)]
pub(crate) struct Worker<T: Job> {
    #[pin]
    work: Opaque<bindings::delayed_work>,
    job: Arc<T>,
}

// SAFETY: A work item may be queued and disabled in any thread, and `T` is `Send` and `Sync`.
unsafe impl<T: Job> Send for Worker<T> {}
// SAFETY: As above; the work queue's locks order concurrent calls.
unsafe impl<T: Job> Sync for Worker<T> {}

impl<T: Job> Worker<T> {
    /// A worker that can be kicked at once.
    pub(crate) fn new(job: Arc<T>) -> impl PinInit<Self> {
        // INVARIANT: The initialiser sets the function that the invariant names.
        pin_init!(Self {
            work <- Opaque::ffi_init(|slot: *mut bindings::delayed_work| {
                // SAFETY: `slot` is memory for a delayed_work, pinned from here on and freed only
                // after `drop` has disabled it; names and keys are static. This is what
                // INIT_DELAYED_WORK() does.
                unsafe {
                    bindings::init_work_with_key(
                        &raw mut (*slot).work,
                        Some(Self::run),
                        false,
                        c"Worker".as_char_ptr(),
                        static_lock_class!().as_ptr(),
                    );
                    bindings::timer_init_key(
                        &raw mut (*slot).timer,
                        Some(bindings::delayed_work_timer_fn),
                        bindings::TIMER_IRQSAFE,
                        c"Worker".as_char_ptr(),
                        static_lock_class!().as_ptr(),
                    );
                }
            }),
            job,
        })
    }

    /// What it runs.
    pub(crate) fn job(&self) -> &T {
        &self.job
    }

    /// Runs the job as soon as possible, once more if it is running now. Any context.
    pub(crate) fn kick(&self) {
        // SAFETY: `work` is initialised by the invariant. The queue exists from boot on.
        unsafe {
            bindings::mod_delayed_work_on(
                Self::ANY_CPU,
                bindings::system_dfl_wq,
                self.work.get(),
                0,
            );
        }
    }

    /// Forgets what is due and waits for the job. It runs again only if it is kicked again.
    ///
    /// May sleep.
    pub(crate) fn stop(&self) {
        // SAFETY: `work` is initialised by the invariant.
        unsafe { bindings::cancel_delayed_work_sync(self.work.get()) };
    }

    const ANY_CPU: c_int = bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int;

    /// # Safety
    ///
    /// Called by the work queue alone, with the `work` of a live `Worker<T>`.
    unsafe extern "C" fn run(work: *mut bindings::work_struct) {
        // SAFETY: `work` is within a delayed_work, which is within a `Worker<T>` by the
        // invariants; `drop` waits for us before that goes.
        let this = unsafe {
            let delayed = kernel::container_of!(work, bindings::delayed_work, work);
            &*kernel::container_of!(Opaque::cast_from(delayed).cast_mut(), Self, work)
        };
        if let Some(delay) = this.job.run() {
            // Unlike `kick`, this leaves a run that is due earlier alone.
            // SAFETY: As in `kick`.
            unsafe {
                bindings::queue_delayed_work_on(
                    Self::ANY_CPU,
                    bindings::system_dfl_wq,
                    this.work.get(),
                    msecs_to_jiffies(delay),
                );
            }
        }
    }
}

#[pinned_drop]
impl<T: Job> PinnedDrop for Worker<T> {
    fn drop(self: Pin<&mut Self>) {
        // Unlike `stop`, this lets nobody queue it again.
        // SAFETY: `work` is initialised by the invariant.
        unsafe { bindings::disable_delayed_work_sync(self.work.get()) };
    }
}
