// SPDX-License-Identifier: GPL-2.0-only

//! `PCI_COMMAND` of an open device, changed by its driver.
//!
//! vfio-pci saves and puts back the register while it has a device's BARs enabled for a moment
//! (`vfio_pci_memory_lock_and_enable()`), under its `memory_lock`. A bit that is set or cleared past
//! the driver inside that time is lost, or comes back. So the bus-master bit is changed by the
//! driver's own `write`, which takes that lock, and then read back from the hardware.
//!
//! Source: `drivers/vfio/pci/vfio_pci_core.c`, `drivers/vfio/pci/vfio_pci_config.c`.

use core::ptr::NonNull;

use kernel::{
    bindings::loff_t,
    current,
    prelude::*, //
};

use crate::{
    bindings,
    logic::command::MASTER,
    wrap::{
        pci::PciDevice,
        user::UserPage, //
    },
};

use super::regions::COMMAND_OFFSET;

/// How often a change is tried that does not stay: `pci_intx()` changes another bit of the
/// register at any moment, by reading and writing all of it.
const TRIES: usize = 4;

/// What a device reads as that does not answer.
const ABSENT: u16 = 0xffff;

/// The register of one open device.
///
/// # Invariants
///
/// `vdev` is an open device of the driver whose operations are `original`, which has `read` and
/// `write`; so until [`super::device::GatedDevice::closed`] has returned.
pub(super) struct Register {
    pci: PciDevice,
    vdev: NonNull<bindings::vfio_device>,
    original: NonNull<bindings::vfio_device_ops>,
}

// SAFETY: The driver's operations may be called from any thread, and they are constant.
unsafe impl Send for Register {}
// SAFETY: The driver orders concurrent calls of its operations itself.
unsafe impl Sync for Register {}

impl Register {
    /// # Safety
    ///
    /// The type's invariants hold, and its users keep to [`super::device::GatedDevice::closed`].
    pub(super) unsafe fn new(
        pci: PciDevice,
        vdev: NonNull<bindings::vfio_device>,
        original: NonNull<bindings::vfio_device_ops>,
    ) -> Self {
        // INVARIANT: By the safety requirement.
        Self {
            pci,
            vdev,
            original,
        }
    }

    /// The PCI device.
    pub(super) fn pci(&self) -> &PciDevice {
        &self.pci
    }

    /// Whether the hardware has the bus-master bit; `None` if the device does not answer.
    fn has_master(&self) -> Option<bool> {
        let command = self.pci.command();
        (command != ABSENT).then_some(command & u16::from(MASTER) != 0)
    }

    /// Sets or clears the bus-master bit, and makes sure that the hardware has it so.
    ///
    /// `EIO` if it has not, or if the driver refuses; so may be a device in D3.
    /// Context: a claim of the device is held, so that it is open. May sleep.
    pub(super) fn set_master(&self, on: bool) -> Result {
        if current!().mm().is_none() {
            return self.set_without_user(on);
        }
        let page = UserPage::new();
        for _ in 0..TRIES {
            if self.has_master().is_none_or(|has| has == on) {
                return Ok(());
            }
            match &page {
                Ok(page) => self.write_by_driver(page, on)?,
                Err(_) => return self.set_without_user(on),
            }
        }
        // A VMM that scribbles on the page, say: past the driver, then.
        self.set_without_user(on)
    }

    /// As [`Register::set_master`] where there is no user memory to hand the driver: a process
    /// that has ended. What is put back by others meanwhile is taken away once more.
    fn set_without_user(&self, on: bool) -> Result {
        for _ in 0..TRIES {
            match self.has_master() {
                Some(true) if !on => self.pci.clear_master(),
                Some(false) if on => return Err(EIO),
                _ => return Ok(()),
            }
        }
        match self.has_master() {
            Some(has) if has != on => Err(EIO),
            _ => Ok(()),
        }
    }

    /// Reads the register's low byte by the driver and writes it back with the bit changed.
    fn write_by_driver(&self, page: &UserPage, on: bool) -> Result {
        // SAFETY: By the invariant the operations are there while the device is open.
        let (read, write) = unsafe {
            let ops = self.original.as_ref();
            (ops.read.ok_or(EIO)?, ops.write.ok_or(EIO)?)
        };
        let mut position: loff_t = COMMAND_OFFSET;
        // SAFETY: By the invariant `vdev` is open; the page is user memory of the current mm; the
        // position is valid for writes.
        let count = unsafe { read(self.vdev.as_ptr(), page.addr() as *mut _, 1, &mut position) };
        if count != 1 {
            return Err(EIO);
        }
        let mut byte = [0];
        page.read(&mut byte)?;
        let [byte] = byte;
        page.write(&[match on {
            true => byte | MASTER,
            false => byte & !MASTER,
        }])?;
        position = COMMAND_OFFSET;
        // SAFETY: The device is open by the invariant; the page is user memory of the current mm;
        // the position is valid for writes.
        let count = unsafe {
            write(
                self.vdev.as_ptr(),
                page.addr() as *const _,
                1,
                &mut position,
            )
        };
        match count {
            1 => Ok(()),
            _ => Err(EIO),
        }
    }
}
