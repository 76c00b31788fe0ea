// SPDX-License-Identifier: GPL-2.0-only

//! Safe wrappers of what a virtio driver with two queues needs, no more.
//!
//! [`Registration`] puts a [`Driver`] on the virtio bus. The driver is started with a [`Transport`],
//! which is a device whose queues are set up, and when that is dropped the device has been reset.
//!
//! C header: [`include/linux/virtio.h`](srctree/include/linux/virtio.h),
//! [`include/linux/virtio_config.h`](srctree/include/linux/virtio_config.h)

mod device;
mod driver;
mod transport;

pub(crate) use device::Device;
pub(crate) use driver::{
    Driver,
    Reason,
    Registration, //
};
pub(crate) use transport::{
    millis_since,
    Transport, //
};
