// SPDX-License-Identifier: GPL-2.0-only

//! The bus-master gate: no device masters the bus while memory outside the
//! balloon is unmapped (contract I4).
//!
//! vfio-pci clears bus mastering when a device is opened, and user space can set
//! it only through the device's config space. An open device therefore gets a
//! copy of its operations that look at `PCI_COMMAND`. A guest that sets the bit while memory is
//! missing reads it as set, and the device gets it once the memory is mapped. Only who uses the
//! device before that waits. A device that cannot have such operations does not open.
//!
//! | file | what |
//! | --- | --- |
//! | `ops.rs` | the operations that replace a driver's |
//! | `faults.rs` | faults of mapped BARs |
//! | `device.rs` | one device: what its register means, who waits |
//! | `bars.rs` | the pages of its BARs in page tables |
//! | `register.rs` | the register itself |
//! | `bytes.rs` | a copy of what is written to it |
//! | `regions.rs`, `tables.rs` | where things are in a device's file; tables of functions |
//!
//! Lock order: `GATES` is a leaf; it is not held while the gate waits.
//!
//! Source: `include/linux/vfio.h`, `drivers/vfio/vfio_main.c`.

mod bars;
mod bytes;
mod device;
mod faults;
mod ops;
mod regions;
mod register;
mod tables;

use core::ptr::{
    addr_of_mut,
    NonNull, //
};

use kernel::{
    ffi::c_int,
    prelude::*,
    sync::{
        global_lock,
        Arc, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
};

use crate::{
    bindings,
    vfio::container::Container,
    wrap::pci::PciDevice, //
};

use bars::Bars;
use device::GatedDevice;
use register::Register;
use tables::bytes_of;

/// A driver's operations with the gate's functions, and the originals.
///
/// They are shared by all devices of the driver and live until this module goes:
/// the VFIO core may still look at them when a device has just been closed.
#[repr(C)]
struct GatedOps {
    // First: a pointer to the operations is a pointer to the whole.
    ops: bindings::vfio_device_ops,
    original: *const bindings::vfio_device_ops,
}

/// An open device.
struct Gate {
    vdev: NonNull<bindings::vfio_device>,
    /// What its descriptors map: the same for all, and for no other device.
    mapping: *const bindings::address_space,
    device: Arc<GatedDevice>,
}

/// A device whose opening is going to fail.
struct Refused {
    vdev: NonNull<bindings::vfio_device>,
    original: *const bindings::vfio_device_ops,
    /// The driver's operations but for `open_device`.
    ops: bindings::vfio_device_ops,
}

struct Gates {
    open: KVec<Gate>,
    drivers: KVec<KBox<GatedOps>>,
    refused: Option<Refused>,
}

// SAFETY: The pointers are to objects that may be used from any thread.
unsafe impl Send for Gates {}

global_lock! {
    // SAFETY: Initialised in `Registration::new`, before any device can be opened through us.
    unsafe(uninit) static GATES: Mutex<Gates> = Gates {
        open: KVec::new(),
        drivers: KVec::new(),
        refused: None,
    };
}

extern "C" fn refuse_open(_vdev: *mut bindings::vfio_device) -> c_int {
    ENOMEM.to_errno()
}

/// Makes the gate usable, and frees what it has collected on drop.
pub(crate) struct Registration(());

impl Registration {
    /// # Safety
    ///
    /// Called once, at module initialisation, before a device can be opened.
    pub(crate) unsafe fn new() -> Self {
        // SAFETY: Both are called once, by this function's own requirement.
        unsafe {
            GATES.init();
            faults::init();
        }
        Self(())
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // Devices hold a reference to this module, so there are none.
        faults::exit();
        // A static is never dropped, so what emptied vectors keep goes here, too.
        let drivers = {
            let mut gates = GATES.lock();
            gates.open = KVec::new();
            core::mem::take(&mut gates.drivers)
        };
        if !drivers.is_empty() {
            // A device that is being unbound may have had a pointer to them looked up
            // just before it was closed: the core uses that without a lock, and
            // without sleeping between the look-up and the use.
            // SAFETY: Process context, no locks held.
            unsafe { bindings::synchronize_rcu_tasks() };
        }
    }
}

/// Puts the gate in front of a device that is being opened.
///
/// A device that is not a PCI device opens only once everything is mapped. If that,
/// or memory for the gate, is not to be had, the opening fails.
///
/// # Safety
///
/// `vdev` is in its first open: nobody has a descriptor of it yet.
pub(crate) unsafe fn install(container: Arc<Container>, vdev: *mut bindings::vfio_device) {
    let Some(vdev) = NonNull::new(vdev) else {
        return;
    };
    // SAFETY: `vdev` is valid in its first open.
    let pci = unsafe { PciDevice::get((*vdev.as_ptr()).dev) };
    let result = match pci {
        // SAFETY: `vdev` is in its first open, by this function's requirement.
        Some(pci) => unsafe { try_install(&container, vdev, pci) },
        None => container.open_ungated(),
    };
    if let Err(e) = result {
        pr_err!("a device cannot be opened behind the bus-master gate: {e:?}\n");
        // SAFETY: `vdev` is in its first open, by this function's requirement.
        unsafe { refuse(vdev) };
    }
}

/// # Safety
///
/// `vdev` is in its first open: nobody has a descriptor of it yet.
unsafe fn try_install(
    container: &Arc<Container>,
    vdev: NonNull<bindings::vfio_device>,
    pci: PciDevice,
) -> Result {
    // SAFETY: A registered device has operations and an inode, whose mapping never changes.
    let (original, mapping) = unsafe {
        let inode = (*vdev.as_ptr()).inode;
        (
            (*vdev.as_ptr()).ops.cast_mut(),
            (*inode).i_mapping.cast_const(),
        )
    };
    let original = NonNull::new(original).ok_or(ENODEV)?;
    // SAFETY: The gate's `close_device`, or `remove` if it was not opened after all, calls `closed`
    // before the driver closes the device; its operations have what `ops_for` demands.
    let device = unsafe {
        let register = Register::new(pci, vdev, original);
        GatedDevice::new(register, Bars::new(vdev)?, container.clone())?
    };
    let mut gates = GATES.lock();
    // SAFETY: The operations are those of a registered device.
    let ops = unsafe { gates.ops_for(original.as_ptr())? };
    let gate = Gate {
        vdev,
        mapping,
        device,
    };
    gates.open.push(gate, GFP_KERNEL)?;
    // SAFETY: Nobody calls the operations of a device in its first open but the
    // opener itself; others may read the pointer, and both values are valid.
    unsafe { set_ops(vdev, ops) };
    Ok(())
}

/// Makes the opening of a device fail.
///
/// # Safety
///
/// `vdev` is in its first open: nobody has a descriptor of it yet.
unsafe fn refuse(vdev: NonNull<bindings::vfio_device>) {
    loop {
        let mut gates = GATES.lock();
        if gates.refused.is_none() {
            // SAFETY: A registered device has operations, which are plain data.
            let (original, mut ops) = unsafe {
                let original = (*vdev.as_ptr()).ops;
                (original, original.read())
            };
            // Others look at the rest of them meanwhile, without a lock.
            ops.open_device = Some(refuse_open);
            let refused = gates.refused.insert(Refused {
                vdev,
                original,
                ops,
            });
            // SAFETY: As in `try_install`, nobody but the opener calls them. They stay where they
            // are until `remove` has put the originals back.
            unsafe { set_ops(vdev, &refused.ops) };
            return;
        }
        drop(gates);
        // Another opening is failing at this moment, which waits for nothing.
        fsleep(Delta::from_millis(1));
    }
}

/// # Safety
///
/// `vdev` is valid, and nobody but its opener calls its operations.
unsafe fn set_ops(vdev: NonNull<bindings::vfio_device>, ops: *const bindings::vfio_device_ops) {
    // SAFETY: `vdev` is valid by this function's requirement.
    unsafe { addr_of_mut!((*vdev.as_ptr()).ops).write_volatile(ops) };
}

/// Takes the gate away from a device that is being closed, or could not be opened.
///
/// # Safety
///
/// `vdev` is in its last close: no descriptor is left.
pub(crate) unsafe fn remove(vdev: *mut bindings::vfio_device) {
    let device = {
        let mut gates = GATES.lock();
        if let Some(refused) = gates.refused.take_if(|r| r.vdev.as_ptr() == vdev) {
            // SAFETY: `vdev` is valid, and nobody has a descriptor of it.
            unsafe { set_ops(refused.vdev, refused.original) };
            return;
        }
        let index = gates.open.iter().position(|g| g.vdev.as_ptr() == vdev);
        let Some(gate) = index.and_then(|i| gates.open.remove(i).ok()) else {
            return;
        };
        // SAFETY: `vdev` is valid; `install` has put a `GatedOps` there.
        unsafe {
            let gated = (*vdev).ops.cast::<GatedOps>();
            set_ops(gate.vdev, (*gated).original);
        }
        gate.device
    };
    device.closed();
}

impl Gates {
    /// The gated copy of `original`.
    ///
    /// # Safety
    ///
    /// `original` points to the operations of a registered device.
    unsafe fn ops_for(
        &mut self,
        original: *const bindings::vfio_device_ops,
    ) -> Result<*const bindings::vfio_device_ops> {
        // SAFETY: Valid by this function's requirement; the structure is plain data.
        let mut ops = unsafe { original.read() };
        ops::replace(&mut ops)?;
        // A module may be gone and another have its address: compare all of it.
        let known = self.drivers.iter().find(|known| {
            core::ptr::eq(known.original, original) && bytes_of(&known.ops) == bytes_of(&ops)
        });
        if let Some(known) = known {
            return Ok(&known.ops);
        }
        let gated = KBox::new(GatedOps { ops, original }, GFP_KERNEL)?;
        let pointer: *const bindings::vfio_device_ops = &gated.ops;
        self.drivers.push(gated, GFP_KERNEL)?;
        Ok(pointer)
    }
}

/// The gate of an open device.
fn device_of(vdev: *mut bindings::vfio_device) -> Option<Arc<GatedDevice>> {
    let gates = GATES.lock();
    let gate = gates.open.iter().find(|g| g.vdev.as_ptr() == vdev)?;
    Some(gate.device.clone())
}

/// The gate of the open device whose descriptors map `mapping`.
fn device_of_mapping(mapping: *const bindings::address_space) -> Option<Arc<GatedDevice>> {
    let gates = GATES.lock();
    let gate = gates
        .open
        .iter()
        .find(|g| core::ptr::eq(g.mapping, mapping))?;
    Some(gate.device.clone())
}
