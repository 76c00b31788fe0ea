// SPDX-License-Identifier: GPL-2.0-only

//! Where things are in the file of a device's descriptor, and in its config space.
//!
//! Source: `include/linux/vfio_pci_core.h`, `include/uapi/linux/pci_regs.h`.

use kernel::bindings::loff_t;

use crate::bindings;

/// `VFIO_PCI_OFFSET_SHIFT`: a file offset is a region's index and an offset in it.
pub(super) const REGION_SHIFT: u32 = 40;
/// Where the bus-master bit is in config space: the low byte of `PCI_COMMAND`.
const COMMAND: u64 = bindings::PCI_COMMAND as u64;
/// Its file offset.
pub(super) const COMMAND_OFFSET: loff_t =
    ((bindings::VFIO_PCI_CONFIG_REGION_INDEX as loff_t) << REGION_SHIFT) | COMMAND as loff_t;
/// BARs 0 to 5 in config space.
pub(super) const BARS: core::ops::Range<u64> =
    bindings::PCI_BASE_ADDRESS_0 as u64..bindings::PCI_BASE_ADDRESS_5 as u64 + BAR_SIZE;
/// Bytes in a BAR's register.
pub(super) const BAR_SIZE: u64 = 4;

// The logic restates the header.
const _: () = assert!(crate::logic::command::MASTER as u32 == bindings::PCI_COMMAND_MASTER);

/// Where an access of `count` bytes at a file offset is in config space, if it is there.
pub(super) fn config_offset(offset: u64) -> Option<u64> {
    let config = u64::from(bindings::VFIO_PCI_CONFIG_REGION_INDEX);
    (offset >> REGION_SHIFT == config).then_some(offset & ((1 << REGION_SHIFT) - 1))
}

/// Which byte of an access of `count` bytes at `offset` of config space is the low one of
/// `PCI_COMMAND`, if any.
pub(super) fn command_byte(offset: u64, count: usize) -> Option<usize> {
    let index = usize::try_from(COMMAND.checked_sub(offset)?).ok()?;
    (index < count).then_some(index)
}
