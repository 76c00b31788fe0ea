// SPDX-License-Identifier: GPL-2.0-only

//! A word before the system suspends, hibernates, or resumes from an image.
//!
//! Drivers are asked to suspend only after memory was taken for the image, and in a kernel that has
//! just booted to read one, after all of it was read. Both need memory when nobody reclaims any:
//! what does so is frozen, and an image that does not fit is lost. These notifiers are called
//! before that, in the context of whoever wants to suspend.
//!
//! C header: [`include/linux/suspend.h`](srctree/include/linux/suspend.h)

use crate::bindings;
use kernel::{
    error::to_result,
    prelude::*,
    sync::Arc,
    types::Opaque, //
};

/// Something that has to be done before the system sleeps.
pub(crate) trait Sleeper: Send + Sync + 'static {
    /// The system is about to sleep, or to become one that slept. Process context; may sleep.
    fn prepare(&self);
}

/// A notifier of the power management, registered until it is dropped, which waits for callbacks
/// that are running.
///
/// # Invariants
///
/// `block` is on the chain, its function is `Self::notify`, and it lives in no other struct.
#[pin_data(PinnedDrop)]
pub(crate) struct Notifier<T: Sleeper> {
    #[pin]
    block: Opaque<bindings::notifier_block>,
    sleeper: Arc<T>,
}

// SAFETY: The chain has locks of its own, and `T` is `Send` and `Sync`.
unsafe impl<T: Sleeper> Send for Notifier<T> {}
// SAFETY: It has no methods.
unsafe impl<T: Sleeper> Sync for Notifier<T> {}

impl<T: Sleeper> Notifier<T> {
    /// Registers a notifier. May sleep.
    pub(crate) fn new(sleeper: Arc<T>) -> impl PinInit<Self, Error> {
        // INVARIANT: The function that the invariant names is set, and failure leaves no value.
        try_pin_init!(Self {
            // Before `block`: notify() reads it.
            sleeper,
            block <- Opaque::try_ffi_init(|slot: *mut bindings::notifier_block| {
                // SAFETY: `slot` is memory for a notifier_block, pinned from here on and freed only
                // after `drop` has unregistered it.
                to_result(unsafe {
                    slot.write(bindings::notifier_block {
                        notifier_call: Some(Self::notify),
                        next: core::ptr::null_mut(),
                        priority: 0,
                    });
                    bindings::register_pm_notifier(slot)
                })
            }),
        })
    }

    /// # Safety
    ///
    /// Called by the chain of power management alone, with the `block` of a live `Notifier<T>`.
    unsafe extern "C" fn notify(
        block: *mut bindings::notifier_block,
        event: c_ulong,
        _unused: *mut c_void,
    ) -> c_int {
        // SAFETY: By the invariants `block` is within a `Notifier<T>`, which `drop` keeps until the
        // chain has let go of it.
        let this =
            unsafe { &*kernel::container_of!(Opaque::cast_from(block).cast_mut(), Self, block) };
        if let Ok(
            bindings::PM_HIBERNATION_PREPARE
            | bindings::PM_SUSPEND_PREPARE
            | bindings::PM_RESTORE_PREPARE,
        ) = u32::try_from(event)
        {
            this.sleeper.prepare();
        }
        // Not an error in any case: what could not be given back may not be missed.
        bindings::NOTIFY_OK as c_int
    }
}

#[pinned_drop]
impl<T: Sleeper> PinnedDrop for Notifier<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: On the chain by the invariants. It waits for callbacks in its semaphore.
        unsafe { bindings::unregister_pm_notifier(self.block.get()) };
    }
}
