// SPDX-License-Identifier: GPL-2.0-only

//! The device side of a virtio-balloon as an in-kernel vDPA device.
//!
//! `vhost-vdpa` puts a character device on top of it, which gives an unmodified
//! VMM the balloon. What the device does with the guest's messages is up to a
//! [`Backend`]; this module is the registers, the interrupts and the calls.
//!
//! | file | what |
//! | --- | --- |
//! | `spec.rs` | numbers of the virtio specification, in the types used here |
//! | `registers.rs` | the register file: pure state, no locks, no `unsafe` |
//! | `callback.rs` | an interrupt: safe wrapper of `struct vdpa_callback` |
//! | `front.rs` | registers and interrupts behind their locks: what back ends use |
//! | `device.rs` | safe wrapper of `struct vdpa_device` |
//! | `parent.rs` | what such a device is made of |
//! | `ops.rs` | `struct vdpa_config_ops`, which calls all of the above |
//! | `mgmt.rs` | `vdpa dev add … mgmtdev vfio_iommu_deferred` |
//!
//! Lock order (`->`: is held when the next is taken):
//!
//! ```text
//! vdpa_dev_lock, vhost_dev.mutex -> vdpa_device.cf_lock -> the back end's locks
//!   (but driver_ok and reset are called without cf_lock: they may wait for long)
//!   -> Front.registers                        (leaf)
//!   -> Front.callbacks -> user space's eventfd -> the back end's kick lock
//! ```
//!
//! The last line is why [`Backend::kick`] may take neither of the two locks of
//! [`Front`](front::Front): nothing keeps a VMM from using one eventfd both as
//! a queue's interrupt and as its kick.

use kernel::{
    prelude::*,
    sync::Arc, //
};

mod callback;
mod device;
mod front;
mod mgmt;
mod ops;
mod parent;
mod registers;
pub(crate) mod spec;

pub(crate) use front::{
    Front,
    Session, //
};
pub(crate) use mgmt::Mgmt;
pub(crate) use registers::Snapshot;

/// What serves the queues of one device, whichever process has it open.
///
/// `bind`, `unbind`, `driver_ok`, `quiesce` and `reset` are never called
/// concurrently with each other; `kick` may be called at any time.
pub(crate) trait Backend: Send + Sync + Sized + 'static {
    /// Makes the back end of a new device.
    fn new(front: Arc<Front>) -> Result<Arc<Self>>;

    /// A process makes the device its own.
    ///
    /// Context: an ioctl of that process (`current` is the VMM). May sleep.
    fn bind(&self) -> Result;

    /// The process is gone or has closed the device; also called without a
    /// `bind` before. Nothing may act for that process any more afterwards.
    ///
    /// Context: any process or kernel thread, `current->mm` may be NULL. May sleep.
    fn unbind(&self);

    /// The driver has made buffers available; may come before `driver_ok`.
    ///
    /// Context: atomic, interrupts off, a foreign eventfd's lock held: only
    /// wakes a task, takes no lock but an irq-safe one of its own.
    fn kick(&self);

    /// The driver is ready and took `features`; on an error it is told that
    /// the device needs a reset.
    ///
    /// Context: an ioctl of the VMM. May sleep long, killably.
    fn driver_ok(&self, features: u64) -> Result;

    /// Waits until nothing touches the rings on the strength of an outdated
    /// [`Snapshot`]: all of those taken before are outdated now. What takes long
    /// on behalf of one gives up.
    ///
    /// Context: as `unbind`. May sleep.
    fn quiesce(&self);

    /// The driver is gone: what it gave to the balloon is its own again.
    ///
    /// Context: as `unbind`. May sleep long, killably. The rings are quiet.
    fn reset(&self) -> Result;
}
