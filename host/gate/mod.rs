// SPDX-License-Identifier: GPL-2.0-only

//! The bus-master gate: no device masters the bus while memory outside the
//! balloon is unmapped (contract I4).
//!
//! vfio-pci clears bus mastering when a device is opened, and user space can set
//! it only through the device's config space. An open device therefore gets a
//! copy of its operations whose `write` looks for the bit first.
//!
//! Lock order: `GATES` is a leaf; it is not held while the gate waits.
//!
//! Source: `include/linux/vfio.h`, `include/linux/vfio_pci_core.h` (regions),
//! `drivers/vfio/vfio_main.c`.

use core::ptr::{
    addr_of_mut,
    NonNull, //
};

use kernel::{
    bindings::loff_t,
    ffi::c_char,
    prelude::*,
    sync::{
        global_lock,
        Arc, //
    },
};

use crate::{
    bindings,
    container::Container,
    user, //
};

/// `VFIO_PCI_OFFSET_SHIFT`: a file offset is a region's index and an offset in it.
const REGION_SHIFT: u32 = 40;
/// Where the bus-master bit is in config space: the low byte of `PCI_COMMAND`.
const COMMAND: u64 = bindings::PCI_COMMAND as u64;
const MASTER: u8 = bindings::PCI_COMMAND_MASTER as u8;

/// A driver's operations with the gate's `write`, and the originals.
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
    container: Arc<Container>,
    /// It has been let through.
    open: bool,
}

struct Gates {
    devices: KVec<Gate>,
    drivers: KVec<KBox<GatedOps>>,
}

// SAFETY: The pointers are to objects that may be used from any thread.
unsafe impl Send for Gates {}

global_lock! {
    // SAFETY: Initialised in `init`, before any device can be opened through us.
    unsafe(uninit) static GATES: Mutex<Gates> = Gates {
        devices: KVec::new(),
        drivers: KVec::new(),
    };
}

/// Makes the gate usable, and frees what it has collected on drop.
pub(crate) struct Registration(());

impl Registration {
    /// # Safety
    ///
    /// Called once, at module initialisation, before a device can be opened.
    pub(crate) unsafe fn new() -> Self {
        // SAFETY: As this function's.
        unsafe { GATES.init() };
        Self(())
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // Devices hold a reference to this module, so there are none.
        GATES.lock().drivers = KVec::new();
    }
}

/// Puts the gate in front of a device that is being opened.
///
/// A device that cannot have one (not PCI, no memory) opens only once everything
/// is mapped; should that fail, the log says that DMA will be lost.
///
/// # Safety
///
/// `vdev` is in its first open: nobody has a descriptor of it yet.
pub(crate) unsafe fn install(container: Arc<Container>, vdev: *mut bindings::vfio_device) {
    // SAFETY: As this function's.
    let result = unsafe { try_install(&container, vdev) };
    if let Err(e) = result.or_else(|_| container.open_ungated()) {
        pr_err!(
            "a device without a bus-master gate was opened, and memory is not mapped ({e:?})\n"
        );
    }
}

/// # Safety
///
/// As [`install`].
unsafe fn try_install(container: &Arc<Container>, vdev: *mut bindings::vfio_device) -> Result {
    let vdev = NonNull::new(vdev).ok_or(EINVAL)?;
    // SAFETY: `vdev` is valid, and so is its device.
    let (is_pci, original) = unsafe {
        (
            bindings::dev_is_pci((*vdev.as_ptr()).dev),
            (*vdev.as_ptr()).ops,
        )
    };
    if !is_pci {
        return Err(ENODEV);
    }
    let mut gates = GATES.lock();
    // SAFETY: A registered device has operations.
    let ops = unsafe { gates.ops_for(original)? };
    gates.devices.push(
        Gate {
            vdev,
            container: container.clone(),
            open: false,
        },
        GFP_KERNEL,
    )?;
    // SAFETY: Nobody calls the operations of a device in its first open but the
    // opener itself; others may read the pointer, and both values are valid.
    unsafe { addr_of_mut!((*vdev.as_ptr()).ops).write_volatile(ops) };
    Ok(())
}

/// Takes the gate away from a device that is being closed.
///
/// # Safety
///
/// `vdev` is in its last close: no descriptor is left.
pub(crate) unsafe fn remove(vdev: *mut bindings::vfio_device) {
    let gate = {
        let mut gates = GATES.lock();
        let index = gates.devices.iter().position(|g| g.vdev.as_ptr() == vdev);
        let Some(gate) = index.and_then(|i| gates.devices.remove(i).ok()) else {
            return;
        };
        // SAFETY: `vdev` is valid; `install` has put a `GatedOps` there.
        unsafe {
            let gated = (*vdev).ops.cast::<GatedOps>();
            addr_of_mut!((*vdev).ops).write_volatile((*gated).original);
        }
        gate
    };
    if gate.open {
        gate.container.close_gate();
    }
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
        // SAFETY: As this function's; the structure is plain data.
        let mut ops = unsafe { original.read() };
        ops.write.ok_or(ENODEV)?;
        ops.write = Some(write);

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

    fn device(&mut self, vdev: *mut bindings::vfio_device) -> Option<&mut Gate> {
        self.devices.iter_mut().find(|g| g.vdev.as_ptr() == vdev)
    }
}

fn bytes_of(ops: &bindings::vfio_device_ops) -> &[u8] {
    // SAFETY: The structure consists of pointers only, so all its bytes are initialised.
    unsafe {
        core::slice::from_raw_parts(
            core::ptr::from_ref(ops).cast(),
            size_of::<bindings::vfio_device_ops>(),
        )
    }
}

/// `vfio_device_ops::write` of a gated device.
///
/// Context: a `write()` on the device's descriptor, may sleep.
extern "C" fn write(
    vdev: *mut bindings::vfio_device,
    buffer: *const c_char,
    count: usize,
    position: *mut loff_t,
) -> isize {
    // SAFETY: The core passes a valid position, and an open device whose
    // operations are a `GatedOps`, or else nobody would have called here.
    let (offset, original) = unsafe {
        let gated = (*vdev).ops.cast::<GatedOps>();
        (*position as u64, (*(*gated).original).write)
    };
    let Some(original) = original else {
        return EINVAL.to_errno() as isize;
    };
    let command = command_written(buffer, count, offset);
    if let Some(Err(e)) = command.map(|byte| pass(vdev, byte? & MASTER != 0)) {
        return e.to_errno() as isize;
    }
    // SAFETY: The core's own call, handed on.
    let written = unsafe { original(vdev, buffer, count, position) };
    if let Some(Ok(byte)) = command {
        if written > 0 && byte & MASTER == 0 {
            leave(vdev);
        }
    }
    written
}

/// What the write puts into the low byte of `PCI_COMMAND`, if it touches it.
fn command_written(buffer: *const c_char, count: usize, offset: u64) -> Option<Result<u8>> {
    if offset >> REGION_SHIFT != u64::from(bindings::VFIO_PCI_CONFIG_REGION_INDEX) {
        return None;
    }
    let start = offset & ((1 << REGION_SHIFT) - 1);
    let index = COMMAND.checked_sub(start).filter(|i| *i < count as u64)?;
    let mut byte = [0];
    let at = (buffer as usize).wrapping_add(index as usize);
    Some(user::read(at, &mut byte).map(|()| byte[0]))
}

/// Opens the gate for the device if the bit is to be set and it is still closed.
fn pass(vdev: *mut bindings::vfio_device, master: bool) -> Result {
    if !master {
        return Ok(());
    }
    let container = match GATES.lock().device(vdev) {
        Some(gate) if !gate.open => gate.container.clone(),
        _ => return Ok(()),
    };
    container.open_gate()?;
    let late = match GATES.lock().device(vdev) {
        Some(gate) => core::mem::replace(&mut gate.open, true),
        None => true,
    };
    if late {
        // Another thread of the VMM wrote the same: count the device once.
        container.close_gate();
    }
    Ok(())
}

/// The bit was cleared.
fn leave(vdev: *mut bindings::vfio_device) {
    let container = match GATES.lock().device(vdev) {
        Some(gate) if gate.open => {
            gate.open = false;
            gate.container.clone()
        }
        _ => return,
    };
    container.close_gate();
}
