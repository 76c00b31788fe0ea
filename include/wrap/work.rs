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
use core::ptr::NonNull;
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

/// A work queue with a thread of its own for when there is no memory to make one.
///
/// # Invariants
///
/// It is a work queue, and ours to destroy.
struct Queue(NonNull<bindings::workqueue_struct>);

// SAFETY: Work may be queued, and the queue destroyed, in any thread.
unsafe impl Send for Queue {}
// SAFETY: The queue's own locks order concurrent calls.
unsafe impl Sync for Queue {}

impl Queue {
    /// May sleep.
    fn new(name: &'static CStr) -> Result<Self> {
        let flags = bindings::wq_flags_WQ_UNBOUND | bindings::wq_flags_WQ_MEM_RECLAIM;
        // SAFETY: The format takes one string, which is copied. There is one item.
        let queue = unsafe {
            bindings::alloc_workqueue_noprof(c"%s".as_char_ptr(), flags, 1, name.as_char_ptr())
        };
        // INVARIANT: Just made.
        NonNull::new(queue).map(Self).ok_or(ENOMEM)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: Ours by the invariant; it goes after the work that is queued on it.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) }
    }
}

/// Runs a [`Job`] whenever it is kicked, also when memory has run out.
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
    // After `drop` has disabled `work`.
    queue: Queue,
}

// SAFETY: A work item may be queued and disabled in any thread, and `T` is `Send` and `Sync`.
unsafe impl<T: Job> Send for Worker<T> {}
// SAFETY: The work queue's locks order concurrent calls, and `T` is `Send` and `Sync`.
unsafe impl<T: Job> Sync for Worker<T> {}

impl<T: Job> Worker<T> {
    /// A worker that can be kicked at once; its thread has the given name. May sleep.
    pub(crate) fn new(name: &'static CStr, job: Arc<T>) -> Result<impl PinInit<Self>> {
        let queue = Queue::new(name)?;
        // INVARIANT: The initialiser sets the function that the invariant names.
        Ok(pin_init!(Self {
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
            queue,
        }))
    }

    /// What it runs.
    pub(crate) fn job(&self) -> &T {
        &self.job
    }

    /// Runs the job as soon as possible, once more if it is running now. Any context.
    pub(crate) fn kick(&self) {
        // SAFETY: `work` is initialised by the invariant, and the queue goes after it.
        unsafe {
            bindings::mod_delayed_work_on(Self::ANY_CPU, self.queue.0.as_ptr(), self.work.get(), 0);
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
            // SAFETY: `work` is initialised by the invariant, and the queue goes after it.
            unsafe {
                bindings::queue_delayed_work_on(
                    Self::ANY_CPU,
                    this.queue.0.as_ptr(),
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
