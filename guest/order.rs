// SPDX-License-Identifier: GPL-2.0-only

//! The drivers of PCI devices wait for balloons that are on their way.
//!
//! A driver that masters the bus before the balloon is committed makes the host map all memory
//! first. So that nobody has to rely on the order in which an initramfs loads modules, the bus is
//! listened to: its notifiers are called just before a driver's probe(), by the task that binds.
//!
//! Nothing that a balloon needs may wait here. Its own device is bound to `virtio-pci` before its
//! probe() begins, and that driver never waits, so that there can be another one behind each. The
//! wait has a time limit and can be killed; what then happens is what happened without it: the
//! host's gate holds the device back.
//!
//! Locks: the waiting task holds those of its device and, for reading, the semaphore of the bus's
//! notifiers. A balloon's probe() takes neither.
//!
//! C header: [`include/linux/device/bus.h`](srctree/include/linux/device/bus.h)

use crate::{
    bindings,
    knobs, //
};
use kernel::{
    device,
    error::to_result,
    prelude::*,
    str::CStr,
    sync::atomic::{
        Atomic,
        Full,
        Relaxed, //
    },
    time::{
        msecs_to_jiffies,
        Instant,
        Monotonic, //
    },
    types::Opaque, //
};

/// How many balloons are on their way.
static COMING: Atomic<i32> = Atomic::new(0);

/// Somebody has waited in vain for those that are coming: no use for the next device to try, or a
/// host that does not answer would cost the time limit for each of them.
static LATE: Atomic<bool> = Atomic::new(false);

/// Drivers that had to wait, and those of them that went on without a balloon.
static WAITS: Atomic<u64> = Atomic::new(0);
static TIMEOUTS: Atomic<u64> = Atomic::new(0);

/// How many drivers had to wait so far.
pub(crate) fn waits() -> u64 {
    WAITS.load(Relaxed)
}

/// How many of them went on without a balloon.
pub(crate) fn timeouts() -> u64 {
    TIMEOUTS.load(Relaxed)
}

/// A balloon that is on its way: while this lives, the drivers of PCI devices wait.
pub(crate) struct Coming(());

impl Coming {
    /// Any context.
    pub(crate) fn new() -> Self {
        if COMING.fetch_add(1, Full) == 0 {
            LATE.store(false, Relaxed);
        }
        Self(())
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        if COMING.fetch_sub(1, Full) == 1 {
            // SAFETY: Has no preconditions.
            unsafe { bindings::wake_binders() }
        }
    }
}

/// Waits until no balloon is on its way, for the driver that is about to be bound to `device`.
///
/// May sleep.
fn wait(device: &device::Device) {
    let limit = knobs::bind_wait();
    if COMING.load(Relaxed) == 0 || limit == 0 || LATE.load(Relaxed) {
        return;
    }
    WAITS.fetch_add(1, Relaxed);
    let begin = Instant::<Monotonic>::now();
    // SAFETY: The counter is static; the notifiers of a bus are called in process context.
    let left = unsafe { bindings::wait_until_zero(COMING.as_ptr(), msecs_to_jiffies(limit)) };
    let waited = begin.elapsed().as_millis();
    match left {
        1.. => dev_info!(device, "waited {} ms for the balloon\n", waited),
        0 => {
            LATE.store(true, Relaxed);
            TIMEOUTS.fetch_add(1, Relaxed);
            dev_warn!(device, "no balloon after {} ms, going on\n", waited);
        }
        // Killed: the task will not get far.
        _ => {}
    }
}

/// A notifier of the PCI bus, registered until it is dropped, which waits for callbacks that are
/// running.
///
/// # Invariants
///
/// `block` is on the chain of the PCI bus, and its function is `Self::notify`.
#[pin_data(PinnedDrop)]
pub(crate) struct Notifier {
    #[pin]
    block: Opaque<bindings::notifier_block>,
}

// SAFETY: The chain has locks of its own.
unsafe impl Send for Notifier {}
// SAFETY: It has no methods.
unsafe impl Sync for Notifier {}

impl Notifier {
    /// Registers a notifier. May sleep.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        // INVARIANT: The function that the invariant names is set, and failure leaves no value.
        try_pin_init!(Self {
            block <- Opaque::try_ffi_init(|slot: *mut bindings::notifier_block| {
                // SAFETY: `slot` is memory for a notifier_block, pinned from here on and freed only
                // after `drop` has unregistered it. The bus is there from boot on.
                to_result(unsafe {
                    slot.write(bindings::notifier_block {
                        notifier_call: Some(Self::notify),
                        next: core::ptr::null_mut(),
                        priority: 0,
                    });
                    bindings::bus_register_notifier(&raw const bindings::pci_bus_type, slot)
                })
            }),
        })
    }

    /// # Safety
    ///
    /// Called by the chain of the PCI bus alone, with a device of the bus as `data`.
    unsafe extern "C" fn notify(
        _block: *mut bindings::notifier_block,
        event: c_ulong,
        data: *mut c_void,
    ) -> c_int {
        const BIND: c_ulong = bindings::bus_notifier_event_BUS_NOTIFY_BIND_DRIVER as c_ulong;
        let raw = data.cast::<bindings::device>();
        // SAFETY: The device is locked and its driver set while this event is announced; a driver
        // has a name for as long as it is registered.
        if event == BIND && unsafe { CStr::from_char_ptr((*(*raw).driver).name) } != c"virtio-pci" {
            // SAFETY: Whoever binds a driver to the device holds a reference to it.
            wait(unsafe { device::Device::from_raw(raw) });
        }
        bindings::NOTIFY_DONE as c_int
    }
}

#[pinned_drop]
impl PinnedDrop for Notifier {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: On the chain by the invariants. It waits for callbacks in its semaphore.
        unsafe {
            bindings::bus_unregister_notifier(&raw const bindings::pci_bus_type, self.block.get());
        }
    }
}
