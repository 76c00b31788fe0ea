// SPDX-License-Identifier: GPL-2.0-only

//! Which parts of a device's config space the device itself interprets.
//!
//! vfio-pci hands accesses to vendor-specific capabilities, and to what no capability covers, to
//! the hardware as they are; there may be a window to the device's registers (virtio's
//! `VIRTIO_PCI_CAP_PCI_CFG`).  All other capabilities have nothing to do with what a device is
//! told to do.
//!
//! Source: PCI Local Bus Specification 3.0, appendix H; `drivers/vfio/pci/vfio_pci_config.c`
//! (`pci_cap_length`); `include/uapi/linux/pci_regs.h`.

/// Bytes of config space that this is about; extended config space is not.
pub(crate) const SIZE: usize = 256;
/// Bytes in a dword.
const DWORD: usize = 4;
/// Where the list of capabilities begins, if `STATUS` says that there is one.
const STATUS: usize = 0x06;
const STATUS_CAP_LIST: u8 = 0x10;
const CAPABILITY_LIST: usize = 0x34;
/// The first byte behind the standard header.
const HEADER_END: usize = 0x40;
/// More capabilities than there is room for: the list is a circle.
const MOST: usize = (SIZE - HEADER_END) / DWORD;

const PM: u8 = 0x01;
const AGP: u8 = 0x02;
const VPD: u8 = 0x03;
const SLOT_ID: u8 = 0x04;
const MSI: u8 = 0x05;
const HOT_SWAP: u8 = 0x06;
const PCI_X: u8 = 0x07;
const VENDOR: u8 = 0x09;
const SUBSYSTEM: u8 = 0x0d;
const EXPRESS: u8 = 0x10;
const MSI_X: u8 = 0x11;
const SATA: u8 = 0x12;
const AF: u8 = 0x13;

/// The dwords of config space that the device itself interprets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OwnDwords(u64);

impl OwnDwords {
    /// From a device's config space.  One without a list of capabilities, or with a broken one, has
    /// all behind the header.
    pub(crate) fn new(config: &[u8; SIZE]) -> Self {
        let byte = |at: usize| config.get(at).copied().unwrap_or(0);
        let mut own = Self(0);
        own.mark(HEADER_END, SIZE, true);
        if byte(STATUS) & STATUS_CAP_LIST == 0 {
            return own;
        }
        let mut at = usize::from(byte(CAPABILITY_LIST)) & !3;
        for _ in 0..MOST {
            if at < HEADER_END {
                break;
            }
            let id = byte(at);
            if id != VENDOR {
                let flags = byte(at.saturating_add(2));
                own.mark(at, at.saturating_add(length(id, flags)), false);
            }
            at = usize::from(byte(at.saturating_add(1))) & !3;
        }
        own
    }

    fn mark(&mut self, start: usize, end: usize, own: bool) {
        for dword in start / DWORD..end.min(SIZE).div_ceil(DWORD) {
            let bit = u32::try_from(dword).ok().and_then(|n| 1u64.checked_shl(n));
            match own {
                true => self.0 |= bit.unwrap_or(0),
                false => self.0 &= !bit.unwrap_or(0),
            }
        }
    }

    /// Whether an access at `offset` is for the device itself to interpret.
    pub(crate) fn contain(self, offset: u64) -> bool {
        let dword = usize::try_from(offset).ok().map(|offset| offset / DWORD);
        let dword = dword.and_then(|n| u32::try_from(n).ok());
        let bit = dword.and_then(|n| 1u64.checked_shl(n)).unwrap_or(0);
        self.0 & bit != 0
    }
}

/// Bytes in a capability; of one that is not known, its head.
fn length(id: u8, flags: u8) -> usize {
    match id {
        PM | AGP | VPD | PCI_X | SUBSYSTEM | SATA | AF => 8,
        // Address, data and masks, with an address of 64 or of 32 bits.
        MSI if flags & 0x80 != 0 => 24,
        MSI => 20,
        SLOT_ID | HOT_SWAP => 4,
        EXPRESS => 60,
        MSI_X => 12,
        _ => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device with capabilities (id, at, byte 2).
    fn config(capabilities: &[(u8, u8, u8)]) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        bytes[STATUS] = STATUS_CAP_LIST;
        let mut link = CAPABILITY_LIST;
        for &(id, at, flags) in capabilities {
            bytes[link] = at;
            bytes[usize::from(at)] = id;
            bytes[usize::from(at) + 2] = flags;
            link = usize::from(at) + 1;
        }
        bytes
    }

    #[test]
    fn virtio() {
        // As QEMU lays a virtio device out: MSI-X and five of virtio's own.
        let own = OwnDwords::new(&config(&[
            (MSI_X, 0x98, 0),
            (VENDOR, 0x84, 20),
            (VENDOR, 0x70, 20),
            (VENDOR, 0x60, 16),
            (VENDOR, 0x50, 16),
            (VENDOR, 0x40, 16),
        ]));
        for (offset, expected) in [
            (0x04, false),
            (0x3c, false),
            (0x40, true),
            (0x94, true),
            (0x98, false),
            (0xa3, false),
            (0xa4, true),
            (0xff, true),
            (0x100, false),
            (u64::MAX, false),
        ] {
            assert_eq!(own.contain(offset), expected, "{offset:#x}");
        }
    }

    #[test]
    fn standard_capabilities_are_not() {
        let own = OwnDwords::new(&config(&[
            (PM, 0x40, 0),
            (MSI, 0x50, 0x80),
            (EXPRESS, 0x80, 2),
        ]));
        for offset in [0x44, 0x50, 0x64, 0x80, 0xb8] {
            assert!(!own.contain(offset), "{offset:#x}");
        }
        for offset in [0x48, 0x68, 0xbc] {
            assert!(own.contain(offset), "{offset:#x}");
        }
    }

    #[test]
    fn no_list_and_a_circle() {
        assert!(OwnDwords::new(&[0; SIZE]).contain(0x40));
        assert!(OwnDwords::new(&[0xff; SIZE]).contain(0x40));
        let mut circle = config(&[(PM, 0x40, 0)]);
        circle[0x41] = 0x40;
        let own = OwnDwords::new(&circle);
        assert!(!own.contain(0x40) && own.contain(0x48));
    }
}
