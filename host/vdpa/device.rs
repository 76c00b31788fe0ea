// SPDX-License-Identifier: GPL-2.0-only

//! A vDPA device: a safe wrapper of `struct vdpa_device`.
//!
//! C header: `include/linux/vdpa.h`; source: `drivers/vdpa/vdpa.c`.
//!
//! The module may not be unloaded while a process has the device open: removing
//! the device would wait for that process. vDPA has no call for "opened", but
//! `vhost-vdpa` resets the device when it is opened and calls `unbind_mm` when it
//! is closed, so the first reset takes a reference to the module and `unbind_mm`
//! gives it back. (With `virtio_vdpa` on top, which takes an administrator who
//! overrides the driver by hand, the reference stays until the next close.)

use core::ptr::NonNull;

use kernel::{
    error::{
        from_err_ptr,
        to_result, //
    },
    new_spinlock,
    prelude::*,
    sync::{
        Arc,
        SpinLock, //
    },
};

use super::{
    ops::Ops,
    spec::QUEUES,
    Backend,
    Front, //
};
use crate::bindings;

/// The bus driver that may bind our devices. Without an override every driver
/// of the vDPA bus matches, and `virtio_vdpa`, which gives the device to the
/// host's own balloon driver, might come first.
const BUS_DRIVER: &CStr = c"vhost_vdpa";

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
    fn new(name: &CStr) -> Result<Arc<Self>> {
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
    vdpa: bindings::vdpa_device,
    inner: Option<Arc<Inner<B>>>,
}

impl<B> Parent<B> {
    /// What belongs to the device that a bus driver passes.
    ///
    /// # Safety
    ///
    /// `vdpa` must be a registered device of [`Device<B>`], and stay so for `'a`.
    pub(super) unsafe fn inner<'a>(vdpa: *const bindings::vdpa_device) -> Option<&'a Inner<B>> {
        // SAFETY: By the safety requirement `vdpa` is the first field of a
        // `Parent<B>`; `inner` does not change after `Device::new`.
        unsafe { (*vdpa.cast::<Self>()).inner.as_deref() }
    }

    /// Drops what `Device::new` put into the allocation.
    ///
    /// # Safety
    ///
    /// As for `inner`, and only from the `free` operation, which comes once and last.
    pub(super) unsafe fn free(vdpa: *mut bindings::vdpa_device) {
        // SAFETY: By the safety requirement nobody uses the field any more.
        unsafe { core::ptr::drop_in_place(&raw mut (*vdpa.cast::<Self>()).inner) };
    }
}

/// A device that is not registered yet.
///
/// # Invariants
///
/// The pointer owns a reference to a device that `new` made.
pub(super) struct Device<B: Backend>(NonNull<Parent<B>>);

impl<B: Backend> Device<B> {
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
                Ops::<B>::table(),
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

impl<B: Backend> Drop for Device<B> {
    fn drop(&mut self) {
        // SAFETY: Gives back the reference of the type invariant.
        unsafe { bindings::put_device(&raw mut (*self.0.as_ptr()).vdpa.dev) };
    }
}
