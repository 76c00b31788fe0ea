// SPDX-License-Identifier: GPL-2.0-only

//! Pages of a device's BARs in page tables: taking them away, and ones in their place.
//!
//! Lock order: [`GatedDevice`]'s `barrier`, which is held for all of this → the locks of page
//! tables.
//!
//! Source: `drivers/vfio/pci/vfio_pci_core.c`, `mm/memory.c`.
//!
//! [`GatedDevice`]: super::device::GatedDevice

use core::ptr::NonNull;

use kernel::{
    page::{
        Page,
        PAGE_SIZE, //
    },
    prelude::*, //
};

use crate::{
    bindings,
    wrap::{
        fault::Fault,
        ksym, //
    },
};

use super::regions::REGION_SHIFT;

/// The operations of vfio-pci's mappings, as a module and built in.
const SYMBOLS: [&CStr; 2] = [c"vfio_pci_core:vfio_pci_mmap_ops", c"vfio_pci_mmap_ops"];

/// The page tables' entries of a device's BARs.
pub(super) struct Bars {
    /// `None` once the device is closed.
    vdev: Option<NonNull<bindings::vfio_device>>,
    /// All ones; in page tables until the next zap, if `ones_shown`.
    ones: Page,
    ones_shown: bool,
    /// vfio-pci's operations of mappings; null if they were not found.
    vm_ops: *const bindings::vm_operations_struct,
}

// SAFETY: The device may be used from any thread while it is open.
unsafe impl Send for Bars {}

impl Bars {
    /// Of a device that is being opened. Errors: `ENOMEM`.
    ///
    /// # Safety
    ///
    /// `vdev` is valid until [`Bars::close`].
    pub(super) unsafe fn new(vdev: NonNull<bindings::vfio_device>) -> Result<Self> {
        let ones = Page::alloc_page(GFP_KERNEL)?;
        let bytes = [0xff; 64];
        for offset in (0..PAGE_SIZE).step_by(bytes.len()) {
            // SAFETY: `bytes` is valid for reads, and nobody else has the page.
            unsafe { ones.write_raw(bytes.as_ptr(), offset, bytes.len())? };
        }
        let address = SYMBOLS.iter().find_map(|symbol| ksym::find_data(symbol));
        Ok(Self {
            vdev: Some(vdev),
            ones,
            ones_shown: false,
            vm_ops: address.unwrap_or(0) as *const _,
        })
    }

    /// The device is closed: no mapping of it is left.
    pub(super) fn close(&mut self) {
        self.vdev = None;
    }

    /// Takes all pages of all BARs out of all page tables: the next access faults.
    pub(super) fn zap(&self) {
        let Some(vdev) = self.vdev else {
            return;
        };
        let start = u64::from(bindings::VFIO_PCI_BAR0_REGION_INDEX) << REGION_SHIFT;
        let end = u64::from(bindings::VFIO_PCI_ROM_REGION_INDEX) << REGION_SHIFT;
        // SAFETY: The device is open, and so has its inode; any range may be zapped. Pages of
        // devices belong to no page cache, and private ones there are none: mappings are shared.
        unsafe {
            let inode = (*vdev.as_ptr()).inode;
            bindings::unmap_mapping_range(
                (*inode).i_mapping,
                start as i64,
                (end - start) as i64,
                1,
            );
        }
    }

    /// The operations of vfio-pci's mappings; null if they were not found.
    pub(super) fn vm_ops(&self) -> *const bindings::vm_operations_struct {
        self.vm_ops
    }

    /// Answers a fault with the page of ones.
    pub(super) fn show_ones(&mut self, fault: &Fault) -> bindings::vm_fault_t {
        self.ones_shown = true;
        fault.insert(&self.ones)
    }

    /// As [`Bars::zap`], if the page of ones is in page tables.
    pub(super) fn zap_ones(&mut self) {
        if core::mem::take(&mut self.ones_shown) {
            self.zap();
        }
    }
}
