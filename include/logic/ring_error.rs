// SPDX-License-Identifier: GPL-2.0-only

//! What may be wrong with a virtqueue that the driver has written.

use super::memory::Fault;

/// What a driver did that no driver may: the device needs a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RingError {
    /// A part of the ring is not in RAM.
    Fault,
    /// The available index went back, or promises more chains than there are descriptors.
    AvailIndex,
    /// An index of a descriptor is not below the queue size.
    DescIndex,
    /// An indirect descriptor, which was not offered.
    Indirect,
    /// A descriptor of no bytes, or one that passes the end of the address space.
    Segment,
    /// A device-readable descriptor behind a device-writable one.
    ReadableAfterWritable,
    /// More than [`super::chain::MAX_SEGMENTS`] descriptors, or a loop.
    TooLong,
}

impl From<Fault> for RingError {
    fn from(_: Fault) -> Self {
        Self::Fault
    }
}
