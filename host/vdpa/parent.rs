// SPDX-License-Identifier: GPL-2.0-only

//! What a vDPA device is made of: the core's part, and ours.
//!
//! The module may not be unloaded while a process has the device open: removing
//! the device would wait for that process. vDPA has no call for "opened", but
//! `vhost-vdpa` resets the device when it is opened and calls `unbind_mm` when it
//! is closed, so the first reset takes a reference to the module and `unbind_mm`
//! gives it back. (With `virtio_vdpa` on top, which takes an administrator who
//! overrides the driver by hand, the reference stays until the next close.)

use kernel::{
    new_spinlock,
    prelude::*,
    sync::{
        Arc,
        SpinLock, //
    },
};

use super::{
    Backend,
    Front, //
};
use crate::bindings;

/// A reference to this module.
struct ModuleRef(());

impl ModuleRef {
    /// Fails with `ENODEV` when the module is being unloaded.
    fn get() -> Result<Self> {
        // SAFETY: This module exists while its code runs.
        if unsafe { bindings::try_module_get(crate::compat::THIS.as_ptr()) } {
            Ok(Self(()))
        } else {
            Err(ENODEV)
        }
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: Gives back what `get` took. The caller's code does not vanish
        // on return: unloading first removes the devices, and that waits for the
        // bus driver, which is what called us.
        unsafe { bindings::module_put(crate::compat::THIS.as_ptr()) };
    }
}

/// The Rust side of a device; what the calls of the bus driver work on.
#[pin_data]
pub(super) struct Inner<B> {
    pub(super) front: Arc<Front>,
    pub(super) backend: Arc<B>,
    /// There while a process has the device open.
    #[pin]
    opened: SpinLock<Option<ModuleRef>>,
}

impl<B: Backend> Inner<B> {
    pub(super) fn new(name: &CStr) -> Result<Arc<Self>> {
        let front = Front::new(name)?;
        let backend = B::new(front.clone())?;
        Arc::pin_init(
            pin_init!(Self {
                front,
                backend,
                opened <- new_spinlock!(None),
            }),
            GFP_KERNEL,
        )
    }

    /// A process has the device open, maybe for long.
    pub(super) fn opened(&self) -> Result {
        let mut opened = self.opened.lock();
        if opened.is_none() {
            *opened = Some(ModuleRef::get()?);
        }
        Ok(())
    }

    /// No process has the device open.
    pub(super) fn closed(&self) {
        *self.opened.lock() = None;
    }
}

/// What `__vdpa_alloc_device()` allocates.
#[repr(C)]
pub(super) struct Parent<B> {
    /// First, because the vDPA core frees the allocation by its address.
    pub(super) vdpa: bindings::vdpa_device,
    pub(super) inner: Option<Arc<Inner<B>>>,
}

impl<B> Parent<B> {
    /// What belongs to the device that a bus driver passes.
    ///
    /// # Safety
    ///
    /// `vdpa` must be a registered device of [`VdpaDevice<B>`](super::device::VdpaDevice), and stay so for `'a`.
    pub(super) unsafe fn inner<'a>(vdpa: *const bindings::vdpa_device) -> Option<&'a Inner<B>> {
        // SAFETY: By the safety requirement `vdpa` is the first field of a
        // `Parent<B>`; `inner` does not change after `VdpaDevice::new`.
        unsafe { (*vdpa.cast::<Self>()).inner.as_deref() }
    }

    /// Drops what `VdpaDevice::new` put into the allocation.
    ///
    /// # Safety
    ///
    /// As for `inner`, and only from the `free` operation, which comes once and last.
    pub(super) unsafe fn free(vdpa: *mut bindings::vdpa_device) {
        // SAFETY: By the safety requirement nobody uses the field any more.
        unsafe { core::ptr::drop_in_place(&raw mut (*vdpa.cast::<Self>()).inner) };
    }
}
