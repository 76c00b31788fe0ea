// SPDX-License-Identifier: GPL-2.0-only

//! A PCI device that a VMM has open: its `PCI_COMMAND`.
//!
//! C header: `include/linux/pci.h`, source: `drivers/pci/access.c`.

use core::{
    mem::offset_of,
    ptr::NonNull, //
};

use kernel::prelude::*;

use crate::{
    bindings,
    logic::config_space::SIZE, //
};

/// `PCI_D3hot`, whose macro is a cast.
const D3HOT: bindings::pci_power_t = 3;

/// A reference to a PCI device.
///
/// # Invariants
///
/// The device is valid, and one of its references is ours.
pub(crate) struct PciDevice(NonNull<bindings::pci_dev>);

// SAFETY: A PCI device may be used from any thread.
unsafe impl Send for PciDevice {}
// SAFETY: The PCI core orders concurrent accesses to config space; all else is read only.
unsafe impl Sync for PciDevice {}

impl PciDevice {
    /// The PCI device that `dev` is part of, if it is one.
    ///
    /// # Safety
    ///
    /// `dev` is valid.
    pub(crate) unsafe fn get(dev: *mut bindings::device) -> Option<Self> {
        // SAFETY: `dev` is valid, by this function's requirement.
        if !unsafe { bindings::dev_is_pci(dev) } {
            return None;
        }
        // SAFETY: Every device of that bus is embedded in a `pci_dev`.
        let raw = unsafe { dev.byte_sub(offset_of!(bindings::pci_dev, dev)) };
        // INVARIANT: The reference is taken here.
        // SAFETY: The device is valid.
        NonNull::new(unsafe { bindings::pci_dev_get(raw.cast()) }).map(Self)
    }

    /// The register as the hardware has it; all ones if the device does not answer.
    ///
    /// Context: may sleep, while the device is being reset.
    pub(crate) fn command(&self) -> u16 {
        let mut value = u16::MAX;
        // SAFETY: The device is valid, and `value` may be written. It is left alone,
        // or all ones, on failure.
        unsafe {
            bindings::pci_user_read_config_word(
                self.0.as_ptr(),
                bindings::PCI_COMMAND as i32,
                &mut value,
            )
        };
        value
    }

    /// Config space without its extension; ones where the device does not answer.
    ///
    /// Context: may sleep, while the device is being reset.
    pub(crate) fn config(&self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        for (at, byte) in (0..).zip(bytes.iter_mut()) {
            // SAFETY: The device is valid, and `byte` may be written.
            unsafe { bindings::pci_user_read_config_byte(self.0.as_ptr(), at, byte) };
        }
        bytes
    }

    /// Takes the bus-master bit away, past the driver. Where the driver puts back what it has read
    /// of the register before, the bit may be there again.
    ///
    /// Context: any but a reset of the device.
    pub(crate) fn clear_master(&self) {
        // SAFETY: The device is valid.
        unsafe { bindings::pci_clear_master(self.0.as_ptr()) };
    }

    /// Its address, such as `0000:01:00.0`.
    pub(crate) fn name(&self) -> &CStr {
        // SAFETY: The device is valid, and its name, a C string, does not change while it is.
        unsafe { CStr::from_char_ptr(bindings::dev_name(&raw const (*self.0.as_ptr()).dev)) }
    }

    /// Whether the device is in a power state in which it keeps what is written to it.
    pub(crate) fn is_awake(&self) -> bool {
        // SAFETY: The device is valid; the field is an integer that others may write.
        let state = unsafe { (&raw const (*self.0.as_ptr()).current_state).read_volatile() };
        (0..D3HOT).contains(&state)
    }
}

impl Drop for PciDevice {
    fn drop(&mut self) {
        // SAFETY: By the invariant.
        unsafe { bindings::pci_dev_put(self.0.as_ptr()) };
    }
}
