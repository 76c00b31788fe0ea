// SPDX-License-Identifier: GPL-2.0-only

//! A vDPA device: a safe wrapper of `struct vdpa_device`.
//!
//! C header: `include/linux/vdpa.h`; source: `drivers/vdpa/vdpa.c`.

use core::ptr::NonNull;

use kernel::{
    error::{
        from_err_ptr,
        to_result, //
    },
    prelude::*, //
};

use super::{
    ops::ConfigOps,
    parent::{
        Inner,
        Parent, //
    },
    spec::QUEUES,
    Backend, //
};
use crate::bindings;

/// The bus driver that may bind our devices. Without an override every driver
/// of the vDPA bus matches, and `virtio_vdpa`, which gives the device to the
/// host's own balloon driver, might come first.
const BUS_DRIVER: &CStr = c"vhost_vdpa";

/// A device that is not registered yet.
///
/// # Invariants
///
/// The pointer owns a reference to a device that `new` made.
pub(super) struct VdpaDevice<B: Backend>(NonNull<Parent<B>>);

impl<B: Backend> VdpaDevice<B> {
    /// Makes the device `name` of the management device `mgmt`. May sleep.
    ///
    /// # Safety
    ///
    /// `mgmt` must be registered, and outlive the device or remove it when it goes.
    pub(super) unsafe fn new(name: &CStr, mgmt: *mut bindings::vdpa_mgmt_dev) -> Result<Self> {
        let inner = Inner::new(name)?;
        // SAFETY: `mgmt` is valid by the safety requirement and its device does
        // not change; the operations are static, and `use_va` is allowed since
        // they have `set_map`; `name` is copied.
        let raw = from_err_ptr(unsafe {
            bindings::__vdpa_alloc_device(
                (*mgmt).device,
                ConfigOps::<B>::table(),
                core::ptr::null(),
                1,
                1,
                size_of::<Parent<B>>(),
                name.as_char_ptr(),
                true,
            )
        })?;
        let parent = NonNull::new(raw.cast::<Parent<B>>()).ok_or(ENOMEM)?;
        // SAFETY: The allocation is that big and not shared yet; `inner` holds
        // nothing that a write would have to drop.
        unsafe {
            (&raw mut (*parent.as_ptr()).inner).write(Some(inner));
            (*raw).mdev = mgmt;
            (*raw).vmap.dma_dev = &raw mut (*raw).dev;
        }
        // INVARIANT: The allocation came with the first reference.
        let device = Self(parent);
        // SAFETY: The device is initialised; the name is copied.
        to_result(unsafe {
            bindings::__device_set_driver_override(
                &raw mut (*raw).dev,
                BUS_DRIVER.as_char_ptr(),
                BUS_DRIVER.to_bytes().len(),
            )
        })?;
        Ok(device)
    }

    /// Puts the device on the vDPA bus, which owns it from then on.
    ///
    /// Errors: `EEXIST` if there is one of that name.
    ///
    /// Context: the `dev_add` operation, which has `vdpa_dev_lock`. May sleep.
    pub(super) fn register(self) -> Result {
        let raw = self.0.as_ptr().cast::<bindings::vdpa_device>();
        // SAFETY: By the type invariant it is a device; its `mdev` was set in `new`.
        to_result(unsafe { bindings::_vdpa_register_device(raw, QUEUES as u32) })?;
        // `_vdpa_unregister_device()` gives the reference back.
        core::mem::forget(self);
        Ok(())
    }
}

impl<B: Backend> Drop for VdpaDevice<B> {
    fn drop(&mut self) {
        // SAFETY: Gives back the reference of the type invariant.
        unsafe { bindings::put_device(&raw mut (*self.0.as_ptr()).vdpa.dev) };
    }
}
