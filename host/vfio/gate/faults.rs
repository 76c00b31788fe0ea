// SPDX-License-Identifier: GPL-2.0-only

//! Mappings of a device's BARs: faults of them, and taking their pages away again.
//!
//! A VMM maps the BARs and gives them to its VM, whose accesses fault pages in. The gate has a
//! copy of vfio-pci's `vm_operations_struct` whose fault handlers wait while the device has asked
//! to master the bus. Pages that are there already are zapped when it asks.
//!
//! type1 brings pages of BARs into the VMM's page tables as well, for DMA between devices, before
//! anybody uses them. It is the only one whose faults are *remote*; they are let through, and
//! zapped again after the `MAP_DMA`.
//!
//! A handler waits without the mmap lock, or whoever wants it for writing would stop the mapping
//! threads. So it gives up the lock and has the fault tried again (`VM_FAULT_RETRY`); a fault for
//! which that is not allowed gets `VM_FAULT_SIGBUS`. If the device has stopped to decode its BARs
//! by the second try, vfio-pci would end the VMM (`VM_FAULT_SIGBUS`); the access is given a page
//! of ones instead, which is what a device reads as that does not decode, until the next write of
//! `PCI_COMMAND`.
//!
//! Lock order: the mmap lock → [`GatedDevice`]'s `barrier` → vfio-pci's `memory_lock`.
//!
//! Source: `drivers/vfio/pci/vfio_pci_core.c`, `mm/memory.c`, `virt/kvm/kvm_main.c`
//! (`hva_to_pfn_remapped()`).
//!
//! [`GatedDevice`]: super::device::GatedDevice

use core::ptr::{
    addr_of_mut,
    NonNull, //
};

use kernel::{
    ffi::c_uint,
    prelude::*,
    sync::{
        global_lock,
        Arc, //
    },
};

use crate::{
    bindings,
    wrap::fault::Fault, //
};

use super::{
    bars::Bars,
    device::GatedDevice,
    device_of_mapping,
    tables::bytes_of, //
};

/// A driver's operations of mappings with the gate's handlers, and the originals.
///
/// They are shared by all mappings and live until this module goes.
#[repr(C)]
struct GatedVmOps {
    // First: a pointer to the operations is a pointer to the whole.
    ops: bindings::vm_operations_struct,
    original: *const bindings::vm_operations_struct,
}

struct Made(KVec<KBox<GatedVmOps>>);

// SAFETY: The pointers are to constant operations.
unsafe impl Send for Made {}

global_lock! {
    // SAFETY: Initialised in `init`, before any device can be mapped through us.
    unsafe(uninit) static MADE: Mutex<Made> = Made(KVec::new());
}

/// Makes the gate's operations of mappings usable.
///
/// # Safety
///
/// Called once, at module initialisation.
pub(super) unsafe fn init() {
    // SAFETY: Called once, by this function's own requirement.
    unsafe { MADE.init() };
}

/// Frees them. No device is open, so that no mapping of one is left.
pub(super) fn exit() {
    MADE.lock().0 = KVec::new();
}

/// Wraps the operations of a mapping that the driver has just made, so that its faults wait at
/// the gate. False if they are not vfio-pci's own: then the gate does not see that the BAR is
/// used.
///
/// # Safety
///
/// `vma` is being mapped: nobody else can use it yet.
pub(super) unsafe fn wrap(bars: &Bars, vma: *mut bindings::vm_area_struct) -> bool {
    // SAFETY: `vma` is valid by this function's requirement.
    let original = unsafe { (*vma).vm_ops };
    if original.is_null() || original != bars.vm_ops() {
        return false;
    }
    // SAFETY: They are vfio-pci's operations, which are constant, and there while it has a
    // device.
    let Ok(ops) = (unsafe { gated(original) }) else {
        return false;
    };
    // SAFETY: `vma` is valid, and nobody else can use it yet.
    unsafe { addr_of_mut!((*vma).vm_ops).write(ops) };
    true
}

/// The gated copy of `original`, made if there is none. Errors: `ENOMEM`, `EINVAL`.
///
/// # Safety
///
/// `original` points to operations of mappings.
unsafe fn gated(
    original: *const bindings::vm_operations_struct,
) -> Result<*const bindings::vm_operations_struct> {
    // SAFETY: Valid by this function's requirement; the structure is plain data.
    let mut ops = unsafe { original.read() };
    ops.fault.ok_or(EINVAL)?;
    ops.fault = Some(fault);
    if ops.huge_fault.is_some() {
        ops.huge_fault = Some(huge_fault);
    }
    let mut made = MADE.lock();
    // vfio-pci may have been unloaded, and loaded again at the same address.
    let known = made.0.iter().find(|known| {
        core::ptr::eq(known.original, original) && bytes_of(&known.ops) == bytes_of(&ops)
    });
    if let Some(known) = known {
        return Ok(&known.ops);
    }
    let gated = KBox::new(GatedVmOps { ops, original }, GFP_KERNEL)?;
    let pointer: *const bindings::vm_operations_struct = &gated.ops;
    made.0.push(gated, GFP_KERNEL)?;
    Ok(pointer)
}

extern "C" fn fault(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
    // SAFETY: The kernel calls this for a fault of a mapping with a `GatedVmOps`.
    unsafe { gated_fault(vmf, 0) }
}

extern "C" fn huge_fault(vmf: *mut bindings::vm_fault, order: c_uint) -> bindings::vm_fault_t {
    // SAFETY: The kernel calls this for a fault of a mapping with a `GatedVmOps`.
    unsafe { gated_fault(vmf, order) }
}

/// A fault for 2^`order` pages of a BAR.
///
/// # Safety
///
/// `vmf` is a fault that is being handled, of a mapping whose operations are a [`GatedVmOps`].
unsafe fn gated_fault(vmf: *mut bindings::vm_fault, order: c_uint) -> bindings::vm_fault_t {
    let Some(valid) = NonNull::new(vmf) else {
        return Fault::SIGBUS;
    };
    // SAFETY: `vmf` is valid and its locks are held, by this function's requirement.
    let fault = unsafe { Fault::new(valid) };
    // SAFETY: The mapping's operations are a `GatedVmOps`, by this function's requirement.
    let original = unsafe { &*(*fault.vm_ops().cast::<GatedVmOps>()).original };
    let handle = || match (order, original.fault, original.huge_fault) {
        // SAFETY: The kernel's own call, handed on.
        (0, Some(handler), _) => unsafe { handler(vmf) },
        // SAFETY: The kernel's own call, handed on.
        (1.., _, Some(handler)) => unsafe { handler(vmf, order) },
        _ => Fault::FALLBACK,
    };
    let Some(device) = device_of_mapping(fault.mapping()) else {
        // It is being closed: nobody but the caller is left who could use it.
        return handle();
    };
    let entered = device.insert_page(fault.is_remote(), |bars| {
        let result = handle();
        if result & Fault::SIGBUS == 0 || !fault.was_tried() {
            return result;
        }
        if order > 0 {
            return Fault::FALLBACK;
        }
        bars.show_ones(&fault)
    });
    match entered {
        Some(result) => result,
        None => wait(fault, device),
    }
}

/// Waits until the device may be used, and has the fault tried again.
fn wait(fault: Fault, device: Arc<GatedDevice>) -> bindings::vm_fault_t {
    let released = match fault.release() {
        Ok(file) => file,
        Err(answer) => return answer,
    };
    // After a fatal signal whoever tries again sees that.
    let _ = device.touch();
    // The file of the mapping, which keeps the device open and this module here, goes last.
    drop(device);
    drop(released);
    Fault::RETRY
}
