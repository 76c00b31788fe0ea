// SPDX-License-Identifier: GPL-2.0-only

//! The management device: `vdpa dev add name … mgmtdev vfio_iommu_deferred`.
//!
//! C header: `include/linux/vdpa.h`; source: `drivers/vdpa/vdpa.c`, which holds
//! `vdpa_dev_lock` around everything here.

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use kernel::{
    error::{
        from_err_ptr,
        from_result,
        to_result, //
    },
    ffi::{
        c_char,
        c_int, //
    },
    prelude::*,
    types::Opaque, //
};

use super::{
    device::VdpaDevice,
    spec::{
        DEVICE_ID,
        FEATURES,
        QUEUES, //
    },
    Backend, //
};
use crate::bindings;

/// The name of the management device.
const NAME: &CStr = c"vfio_iommu_deferred";

/// A device without a bus, to be the parent of others; unregistered on drop.
///
/// # Invariants
///
/// The pointer is a registered root device.
struct RootDevice(NonNull<bindings::device>);

impl RootDevice {
    fn register(name: &CStr) -> Result<Self> {
        // SAFETY: The name is copied; this module unregisters the device before
        // it goes.
        let raw = from_err_ptr(unsafe {
            bindings::__root_device_register(name.as_char_ptr(), crate::compat::THIS.as_ptr())
        })?;
        // INVARIANT: Just registered.
        NonNull::new(raw).map(Self).ok_or(ENOMEM)
    }
}

impl Drop for RootDevice {
    fn drop(&mut self) {
        // SAFETY: Registered, by the type invariant.
        unsafe { bindings::root_device_unregister(self.0.as_ptr()) };
    }
}

/// What a management device can make: terminated by a zero.
#[repr(transparent)]
struct IdTable([bindings::virtio_device_id; 2]);

// SAFETY: Nobody writes to the table.
unsafe impl Sync for IdTable {}

static ID_TABLE: IdTable = IdTable([
    bindings::virtio_device_id {
        device: DEVICE_ID,
        vendor: 0,
    },
    bindings::virtio_device_id {
        device: 0,
        vendor: 0,
    },
]);

/// The registered management device.
///
/// Dropping it removes its devices, which waits until no process has them open:
/// [`device.rs`](super::device) keeps the module loaded for that long.
///
/// # Invariants
///
/// `raw` is registered.
pub(crate) struct Mgmt<B: Backend> {
    raw: Pin<KBox<Opaque<bindings::vdpa_mgmt_dev>>>,
    /// After `raw`, which points to it: fields drop in this order.
    _root: RootDevice,
    _backend: PhantomData<B>,
}

// SAFETY: The vDPA core serialises what it does with a management device.
unsafe impl<B: Backend> Send for Mgmt<B> {}
// SAFETY: There are no methods on shared references.
unsafe impl<B: Backend> Sync for Mgmt<B> {}

impl<B: Backend> Mgmt<B> {
    const OPS: bindings::vdpa_mgmtdev_ops = bindings::vdpa_mgmtdev_ops {
        dev_add: Some(Self::dev_add),
        dev_del: Some(Self::dev_del),
        dev_set_attr: None,
    };

    /// Registers the management device. May sleep.
    pub(crate) fn new() -> Result<Self> {
        let root = RootDevice::register(NAME)?;
        let raw = KBox::pin(
            Opaque::new(bindings::vdpa_mgmt_dev {
                device: root.0.as_ptr(),
                ops: &Self::OPS,
                // Only ever read.
                id_table: ID_TABLE.0.as_ptr().cast_mut(),
                config_attr_mask: 0,
                list: bindings::list_head::default(),
                supported_features: FEATURES,
                max_supported_vqs: QUEUES as u32,
            }),
            GFP_KERNEL,
        )?;
        // SAFETY: All fields are set, and stay where they are until `drop`.
        to_result(unsafe { bindings::vdpa_mgmtdev_register(raw.get()) })?;
        // INVARIANT: Just registered.
        Ok(Self {
            raw,
            _root: root,
            _backend: PhantomData,
        })
    }

    /// Context: a netlink request. The core has refused attributes: we offer none.
    extern "C" fn dev_add(
        mgmt: *mut bindings::vdpa_mgmt_dev,
        name: *const c_char,
        _config: *const bindings::vdpa_dev_set_config,
    ) -> c_int {
        from_result(|| {
            // SAFETY: The core passes a string.
            let name = unsafe { CStr::from_char_ptr(name) };
            // SAFETY: `mgmt` is registered, and unregistering it calls `dev_del`
            // for all of its devices.
            unsafe { VdpaDevice::<B>::new(name, mgmt) }?.register()?;
            Ok(0)
        })
    }

    /// Waits until no process has the device open, as all vDPA devices do.
    extern "C" fn dev_del(_mgmt: *mut bindings::vdpa_mgmt_dev, vdpa: *mut bindings::vdpa_device) {
        // SAFETY: The core passes a registered device of ours, and has its lock.
        unsafe { bindings::_vdpa_unregister_device(vdpa) };
    }
}

impl<B: Backend> Drop for Mgmt<B> {
    fn drop(&mut self) {
        // SAFETY: Registered, by the type invariant.
        unsafe { bindings::vdpa_mgmtdev_unregister(self.raw.get()) };
    }
}
