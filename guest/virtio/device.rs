// SPDX-License-Identifier: GPL-2.0-only

//! A virtio device, as the driver that is bound to it sees it.

use crate::{
    bindings,
    kobject::Parent, //
};
use kernel::{
    device,
    prelude::*,
    types::Opaque, //
};

/// A virtio device that a driver of ours is bound to.
///
/// # Invariants
///
/// A reference to one exists only within the callbacks that the virtio core makes to the driver.
#[repr(transparent)]
pub(crate) struct Device(Opaque<bindings::virtio_device>);

impl Device {
    /// # Safety
    ///
    /// `vdev` must be bound to a driver of ours for all of `'a`.
    pub(super) unsafe fn from_raw<'a>(vdev: *mut bindings::virtio_device) -> &'a Self {
        // SAFETY: The layout is the same, and the caller vouches for the lifetime.
        unsafe { &*vdev.cast() }
    }

    pub(super) fn as_raw(&self) -> *mut bindings::virtio_device {
        self.0.get()
    }

    /// Whether feature `bit` was negotiated.
    pub(crate) fn has_feature(&self, bit: u32) -> bool {
        // SAFETY: By the invariants the device is bound; its features are fixed since then.
        unsafe { bindings::__virtio_test_bit(self.as_raw(), bit) }
    }

    /// Whether the transport can read the device's configuration.
    pub(super) fn has_config(&self) -> bool {
        // SAFETY: A device has its operations from before it is registered until it is freed.
        unsafe { (*(*self.as_raw()).config).get.is_some() }
    }

    /// The device's directory in sysfs.
    pub(crate) fn kobject(&self) -> Result<Parent<'_>> {
        // SAFETY: A bound device stays in sysfs, so for as long as `self` is borrowed.
        unsafe { Parent::from_raw(&raw mut (*self.as_raw()).dev.kobj) }
    }
}

impl AsRef<device::Device> for Device {
    fn as_ref(&self) -> &device::Device {
        // SAFETY: `dev` is initialised and refcounted, and a bound device is not freed.
        unsafe { device::Device::from_raw(&raw mut (*self.as_raw()).dev) }
    }
}
