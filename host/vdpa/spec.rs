// SPDX-License-Identifier: GPL-2.0-only

//! Numbers of the virtio specification, in the types that the registers have.
//!
//! Source: virtio 1.2, sections 2.1 (status), 5.5 (balloon) and 6 (features);
//! `include/uapi/linux/virtio_{config,balloon,ids}.h` and
//! `include/uapi/linux/virtio_balloon_deferred.h`.

use crate::bindings;

/// The inflate queue.
pub(crate) const INFLATE: usize = 0;
/// The deflate queue.
pub(crate) const DEFLATE: usize = 1;
/// Queues of the device.
pub(crate) const QUEUES: usize = 2;
/// The greatest queue size: QEMU asks for 1024 whatever its user wants, and
/// leaves the guest with a dead device if that is refused.
pub(crate) const QUEUE_SIZE: u16 = 1024;

/// Device status: the driver is ready.
pub(super) const DRIVER_OK: u8 = bindings::VIRTIO_CONFIG_S_DRIVER_OK as u8;
/// Device status: the driver took the features.
pub(super) const FEATURES_OK: u8 = bindings::VIRTIO_CONFIG_S_FEATURES_OK as u8;
/// Device status: the device met an error that only a reset repairs.
pub(super) const NEEDS_RESET: u8 = bindings::VIRTIO_CONFIG_S_NEEDS_RESET as u8;

/// Feature: the messages of `virtio_balloon_deferred.h` instead of PFN arrays.
pub(crate) const F_DEFERRED: u64 = 1 << bindings::VIRTIO_BALLOON_F_DEFERRED;
/// All features on offer. The rings hold guest-physical addresses, as behind a
/// platform's IOMMU; a page in the balloon must not be used before the host
/// was told.
pub(super) const FEATURES: u64 = F_DEFERRED
    | (1 << bindings::VIRTIO_BALLOON_F_MUST_TELL_HOST)
    | (1 << bindings::VIRTIO_F_VERSION_1)
    | (1 << bindings::VIRTIO_F_ACCESS_PLATFORM);

/// What the configuration has in place of a target if the device needs a reset.
pub(super) const CONFIG_NEEDS_RESET: u32 = bindings::VIRTIO_BALLOON_DEFERRED_NEEDS_RESET;

/// Virtio's device id of a balloon.
pub(super) const DEVICE_ID: u32 = bindings::VIRTIO_ID_BALLOON;
/// No vendor, as in the vDPA simulators.
pub(super) const VENDOR_ID: u32 = 0;

/// Size of the configuration, in bytes.
pub(super) const CONFIG_SIZE: usize = size_of::<bindings::virtio_balloon_deferred_config>();
/// Bytes in the pages that the configuration counts (`VIRTIO_BALLOON_PFN_SHIFT`).
pub(crate) const PAGE_BYTES: u64 = 1 << bindings::VIRTIO_BALLOON_PFN_SHIFT;
