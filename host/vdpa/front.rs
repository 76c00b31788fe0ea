// SPDX-License-Identifier: GPL-2.0-only

//! What the back end sees of the device: registers and interrupts.
//!
//! Lock order: `registers` and `callbacks` are never held together; see
//! `mod.rs` for the rest. Nothing here sleeps.

use kernel::{
    fmt, new_spinlock,
    prelude::*,
    str::{
        BStr,
        CString, //
    },
    sync::{
        lock::spinlock::SpinLockGuard,
        Arc,
        SpinLock, //
    },
};

use super::{
    callback::Callback,
    registers::{
        Registers,
        Snapshot, //
    },
    spec::{
        CONFIG_NEEDS_RESET,
        PAGE_BYTES,
        QUEUES, //
    },
};
use crate::wrap::ratelimit::Ratelimit;

struct Callbacks {
    config: Callback,
    queues: [Callback; QUEUES],
}

/// The registers and interrupts of one device.
#[pin_data]
pub(crate) struct Front {
    name: CString,
    /// Of what the driver can have logged.
    #[pin]
    warnings: Ratelimit,
    #[pin]
    registers: SpinLock<Registers>,
    /// Held while they are called, so that none is called once it was replaced. (vhost lets go
    /// of a queue's old eventfd a moment before it has us replace the callback: `Known limits`.)
    #[pin]
    callbacks: SpinLock<Callbacks>,
}

impl Front {
    /// A device of that name, just created. May sleep.
    pub(super) fn new(name: &CStr) -> Result<Arc<Self>> {
        let name = CString::try_from(name)?;
        Arc::pin_init(
            pin_init!(Self {
                name,
                warnings <- Ratelimit::new(),
                registers <- new_spinlock!(Registers::new()),
                callbacks <- new_spinlock!(Callbacks {
                    config: Callback::NONE,
                    queues: [Callback::NONE; QUEUES],
                }),
            }),
            GFP_KERNEL,
        )
    }

    /// Logs what the driver has done to itself, within the device's limit.
    pub(crate) fn warn(&self, text: fmt::Arguments<'_>) {
        if self.warnings.allows() {
            pr_warn!("{}: {text}\n", BStr::from_bytes(self.name.to_bytes()));
        }
    }

    /// The locked registers.
    pub(super) fn registers(&self) -> SpinLockGuard<'_, Registers> {
        self.registers.lock()
    }

    /// A queue, if it may be served now.
    pub(crate) fn snapshot(&self, queue: usize) -> Option<Snapshot> {
        self.registers().snapshot(queue)
    }

    /// Whether `snapshot` still holds. It goes on to hold until a
    /// [`quiesce`](super::Backend::quiesce) that is yet to come returns.
    pub(crate) fn is_current(&self, snapshot: &Snapshot) -> bool {
        self.registers().is_current(snapshot)
    }

    /// The chains of `queue` up to `next` were answered.
    pub(crate) fn advance(&self, queue: usize, next: u16, snapshot: &Snapshot) {
        self.registers().advance(queue, next, snapshot);
    }

    /// The queue of `snapshot` is broken: the driver must reset the device.
    /// Returns whether this is news.
    pub(crate) fn fail(&self, snapshot: &Snapshot) -> bool {
        let news = self.registers().fail(snapshot);
        if news {
            self.config_interrupt();
        }
        news
    }

    /// The device has started and cannot serve its driver, which must reset it.
    pub(super) fn start_broken(&self) {
        self.registers().start_broken();
        self.config_interrupt();
    }

    /// Tells the driver that `queue` has answers for it.
    pub(crate) fn interrupt(&self, queue: usize) {
        if let Some(callback) = self.callbacks.lock().queues.get(queue) {
            callback.call();
        }
    }

    /// Tells the driver to look at configuration and status.
    fn config_interrupt(&self) {
        self.callbacks.lock().config.call();
    }

    /// The virtio reset: all that the driver set is forgotten. The
    /// configuration interrupt stays, as in the vDPA simulators.
    pub(super) fn reset(&self) {
        self.registers().reset();
        self.callbacks.lock().queues = [Callback::NONE; QUEUES];
    }

    /// Nobody has the device open: there is nobody to interrupt either.
    pub(super) fn unbind(&self) {
        self.registers().unbind();
        self.callbacks.lock().config = Callback::NONE;
    }

    /// Replaces the interrupt of `queue`; the old one is not called any more.
    pub(super) fn set_callback(&self, queue: usize, callback: Callback) {
        if let Some(old) = self.callbacks.lock().queues.get_mut(queue) {
            *old = callback;
        }
    }

    /// Replaces the configuration interrupt; the old one is not called any more.
    pub(super) fn set_config_callback(&self, callback: Callback) {
        self.callbacks.lock().config = callback;
    }

    /// Opens a session for the process that owns the device now.
    pub(crate) fn session(self: &Arc<Self>) -> Session {
        Session {
            number: self.registers().session(),
            front: self.clone(),
        }
    }
}

/// The configuration of a device for as long as one process owns it. It may be
/// kept for longer, and does nothing then.
pub(crate) struct Session {
    front: Arc<Front>,
    number: u64,
}

impl Session {
    /// Says that memory below `bytes` is not worth giving up, before the driver
    /// starts. Any context that may take a spinlock.
    pub(crate) fn set_lowest(&self, bytes: u64) {
        let mib = u32::try_from(bytes >> 20).unwrap_or(u32::MAX);
        self.front.registers().set_lowest(self.number, mib);
    }

    /// Lowers the balloon's target to `bytes`, and tells a running driver.
    ///
    /// Until the next reset it can only fall: of two calls that overtake each
    /// other the lower one wins. Ignored unless a driver that speaks the
    /// protocol is there. Any context that may take a spinlock.
    pub(crate) fn set_target(&self, bytes: u64) {
        // Up to the value that means something else.
        let pages = u32::try_from(bytes / PAGE_BYTES).unwrap_or(u32::MAX);
        let pages = pages.min(CONFIG_NEEDS_RESET - 1);
        if self.front.registers().lower_target(self.number, pages) {
            self.front.config_interrupt();
        }
    }
}
