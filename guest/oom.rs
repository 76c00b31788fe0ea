// SPDX-License-Identifier: GPL-2.0-only

//! A word before the OOM killer's.
//!
//! `out_of_memory()` calls the notifiers in the context of whichever task could not get memory, and
//! goes on without a victim if one of them freed some. It may sleep there, but must not allocate:
//! `oom_lock` is held, and so may be any lock that somebody holds while allocating. Lock order:
//! `oom_lock`, the chain's semaphore, the locks of [`Relief::relieve`].
//!
//! C header: [`include/linux/oom.h`](srctree/include/linux/oom.h)

use crate::bindings;
use kernel::{
    error::to_result,
    prelude::*,
    sync::Arc,
    types::Opaque, //
};

/// Something that can free memory when there is none.
pub(crate) trait Relief: Send + Sync + 'static {
    /// Frees what it can and returns how many pages that was.
    ///
    /// Process context; may sleep, must neither allocate nor take a lock under which others do.
    fn relieve(&self) -> usize;
}

/// An OOM notifier, registered until it is dropped, which waits for callbacks that are running.
///
/// # Invariants
///
/// `block` is on the chain, its function is `Self::notify`, and it lives in no other struct.
#[pin_data(PinnedDrop)]
pub(crate) struct Notifier<T: Relief> {
    #[pin]
    block: Opaque<bindings::notifier_block>,
    relief: Arc<T>,
}

// SAFETY: The chain has locks of its own, and `T` is `Send` and `Sync`.
unsafe impl<T: Relief> Send for Notifier<T> {}
// SAFETY: The kernel calls a shared one in any thread, which `T` is `Sync` for; it has no methods.
unsafe impl<T: Relief> Sync for Notifier<T> {}

impl<T: Relief> Notifier<T> {
    /// The priority of the stock balloon driver, before those of last resort.
    const PRIORITY: c_int = 80;

    /// Registers a notifier. May sleep.
    pub(crate) fn new(relief: Arc<T>) -> impl PinInit<Self, Error> {
        // INVARIANT: The function that the invariant names is set, and failure leaves no value.
        try_pin_init!(Self {
            // Before `block`: notify() reads it.
            relief,
            block <- Opaque::try_ffi_init(|slot: *mut bindings::notifier_block| {
                // SAFETY: `slot` is memory for a notifier_block, pinned from here on and freed only
                // after `drop` has unregistered it.
                to_result(unsafe {
                    slot.write(bindings::notifier_block {
                        notifier_call: Some(Self::notify),
                        next: core::ptr::null_mut(),
                        priority: Self::PRIORITY,
                    });
                    bindings::register_oom_notifier(slot)
                })
            }),
        })
    }

    /// # Safety
    ///
    /// Called by `out_of_memory()` alone, with the `block` of a live `Notifier<T>` and a pointer to
    /// the number of pages that were freed.
    unsafe extern "C" fn notify(
        block: *mut bindings::notifier_block,
        _unused: c_ulong,
        freed: *mut c_void,
    ) -> c_int {
        // SAFETY: By the invariants `block` is within a `Notifier<T>`, which `drop` keeps until the
        // chain has let go of it.
        let this =
            unsafe { &*kernel::container_of!(Opaque::cast_from(block).cast_mut(), Self, block) };
        let pages = this.relief.relieve() as c_ulong;
        // SAFETY: It is the caller's counter, an unsigned long on its stack.
        unsafe {
            let freed = freed.cast::<c_ulong>();
            *freed = (*freed).saturating_add(pages);
        }
        bindings::NOTIFY_OK as c_int
    }
}

#[pinned_drop]
impl<T: Relief> PinnedDrop for Notifier<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: On the chain by the invariants. It waits for callbacks in its semaphore.
        unsafe { bindings::unregister_oom_notifier(self.block.get()) };
    }
}
