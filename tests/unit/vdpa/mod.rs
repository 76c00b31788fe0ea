// SPDX-License-Identifier: GPL-2.0-only

//! The vDPA device's registers, which are pure state of the host module.

#[allow(dead_code, reason = "what wraps them is not here")]
#[path = "../../../host/vdpa/registers.rs"]
mod registers;
#[allow(dead_code, reason = "as above")]
#[path = "../../../host/vdpa/spec.rs"]
mod spec;

#[cfg(test)]
mod tests;

/// What the module takes from kernel headers; virtio 1.2, sections 2.1, 5.5.3 and 6.
pub(crate) mod bindings {
    #![allow(non_camel_case_types, reason = "C names")]
    pub(crate) const VIRTIO_CONFIG_S_DRIVER_OK: u32 = 4;
    pub(crate) const VIRTIO_CONFIG_S_FEATURES_OK: u32 = 8;
    pub(crate) const VIRTIO_CONFIG_S_NEEDS_RESET: u32 = 0x40;
    pub(crate) const VIRTIO_BALLOON_F_MUST_TELL_HOST: u32 = 0;
    pub(crate) const VIRTIO_BALLOON_F_DEFERRED: u32 = crate::logic::protocol::FEATURE_BIT;
    pub(crate) const VIRTIO_F_VERSION_1: u32 = 32;
    pub(crate) const VIRTIO_F_ACCESS_PLATFORM: u32 = 33;
    pub(crate) const VIRTIO_BALLOON_DEFERRED_NEEDS_RESET: u32 = u32::MAX;
    pub(crate) const VIRTIO_ID_BALLOON: u32 = 5;
    pub(crate) const VIRTIO_BALLOON_PFN_SHIFT: u32 = 12;
    pub(crate) struct virtio_balloon_deferred_config(#[allow(dead_code)] [u32; 5]);
}
