// SPDX-License-Identifier: GPL-2.0-only

//! The guest's memory as the device side of a virtqueue sees it.

/// Guest memory could not be reached: no RAM there, or the access failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault;

/// Access to guest memory by guest-physical address, while the guest writes to it as well.
///
/// Addresses and lengths come from the guest: an implementation checks all of them.
pub(crate) trait Memory {
    /// Fills `buf` from `gpa` on.
    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), Fault>;

    /// Writes `data` from `gpa` on.
    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), Fault>;

    /// Reads a little-endian field at an even `gpa`, in one access.
    fn read_u16(&self, gpa: u64) -> Result<u16, Fault>;

    /// Writes a little-endian field at an even `gpa`, in one access.
    fn write_u16(&self, gpa: u64, value: u16) -> Result<(), Fault>;

    /// Reads before it are done before reads after it (`virt_rmb()`).
    fn rmb(&self);

    /// Writes before it are seen before writes after it (`virt_wmb()`).
    fn wmb(&self);

    /// Accesses before it are done before accesses after it (`virt_mb()`).
    fn mb(&self);
}
