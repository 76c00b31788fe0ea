// SPDX-License-Identifier: GPL-2.0-only

//! The bus-master gate: no device masters the bus while memory outside the
//! balloon is unmapped (contract I4).
//!
//! vfio-pci clears bus mastering when a device is opened, and user space can set
//! it only through the device's config space. An open device therefore gets a
//! copy of its operations whose `read` and `write` look at `PCI_COMMAND`; see
//! [`device`] for what they do then. A device that cannot have one does not open.
//!
//! Lock order: `GATES` is a leaf; it is not held while the gate waits.
//!
//! Source: `include/linux/vfio.h`, `include/linux/vfio_pci_core.h` (regions),
//! `drivers/vfio/vfio_main.c`.

mod device;

use core::ptr::{
    addr_of_mut,
    NonNull, //
};

use kernel::{
    bindings::loff_t,
    ffi::{
        c_char,
        c_int, //
    },
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
    vm::Vm, //
    wrap::pci::PciDevice,
};

use device::Device;

/// `VFIO_PCI_OFFSET_SHIFT`: a file offset is a region's index and an offset in it.
const REGION_SHIFT: u32 = 40;
/// Where the bus-master bit is in config space: the low byte of `PCI_COMMAND`.
const COMMAND: u64 = bindings::PCI_COMMAND as u64;

// The logic restates the header.
const _: () = assert!(crate::logic::command::MASTER as u32 == bindings::PCI_COMMAND_MASTER);

/// A driver's operations with the gate's `read` and `write`, and the originals.
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
    device: Arc<Device>,
}

/// A device whose opening is going to fail.
struct Refused {
    vdev: NonNull<bindings::vfio_device>,
    original: *const bindings::vfio_device_ops,
}

struct Gates {
    open: KVec<Gate>,
    /// Counts the changes of `open`.
    changes: u64,
    drivers: KVec<KBox<GatedOps>>,
    refused: Option<Refused>,
}

// SAFETY: The pointers are to objects that may be used from any thread.
unsafe impl Send for Gates {}

global_lock! {
    // SAFETY: Initialised in `Registration::new`, before any device can be opened through us.
    unsafe(uninit) static GATES: Mutex<Gates> = Gates {
        open: KVec::new(),
        changes: 0,
        drivers: KVec::new(),
        refused: None,
    };
}

/// Operations of a device that does not open.
struct Refusal(bindings::vfio_device_ops);

// SAFETY: They are constant.
unsafe impl Sync for Refusal {}

static REFUSAL: Refusal = Refusal(bindings::vfio_device_ops {
    open_device: Some(refuse_open),
    // SAFETY: All other fields are pointers: zero is `None` and NULL.
    ..unsafe { core::mem::zeroed() }
});

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
        // SAFETY: As this function's.
        unsafe { GATES.init() };
        Self(())
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // Devices hold a reference to this module, so there are none.
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
    // SAFETY: As this function's.
    let pci = unsafe { PciDevice::get((*vdev.as_ptr()).dev) };
    let result = match pci {
        // SAFETY: As this function's.
        Some(pci) => unsafe { try_install(&container, vdev, pci) },
        None => container.open_ungated(),
    };
    if let Err(e) = result {
        pr_err!("a device cannot be opened behind the bus-master gate: {e:?}\n");
        // SAFETY: As this function's.
        unsafe { refuse(vdev) };
    }
}

/// # Safety
///
/// As [`install`].
unsafe fn try_install(
    container: &Arc<Container>,
    vdev: NonNull<bindings::vfio_device>,
    pci: PciDevice,
) -> Result {
    let device = Device::new(pci, container.clone())?;
    let mut gates = GATES.lock();
    // SAFETY: A registered device has operations.
    let ops = unsafe { gates.ops_for((*vdev.as_ptr()).ops)? };
    gates.open.push(Gate { vdev, device }, GFP_KERNEL)?;
    gates.changes = gates.changes.wrapping_add(1);
    // SAFETY: Nobody calls the operations of a device in its first open but the
    // opener itself; others may read the pointer, and both values are valid.
    unsafe { set_ops(vdev, ops) };
    Ok(())
}

/// Makes the opening of a device fail.
///
/// # Safety
///
/// As [`install`].
unsafe fn refuse(vdev: NonNull<bindings::vfio_device>) {
    loop {
        let mut gates = GATES.lock();
        if gates.refused.is_none() {
            // SAFETY: A registered device has operations.
            let original = unsafe { (*vdev.as_ptr()).ops };
            gates.refused = Some(Refused { vdev, original });
            // SAFETY: As in `try_install`.
            unsafe { set_ops(vdev, &REFUSAL.0) };
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
    // SAFETY: As this function's.
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
            // SAFETY: As this function's.
            unsafe { set_ops(refused.vdev, refused.original) };
            return;
        }
        let index = gates.open.iter().position(|g| g.vdev.as_ptr() == vdev);
        let Some(gate) = index.and_then(|i| gates.open.remove(i).ok()) else {
            return;
        };
        gates.changes = gates.changes.wrapping_add(1);
        // SAFETY: `vdev` is valid; `install` has put a `GatedOps` there.
        unsafe {
            let gated = (*vdev).ops.cast::<GatedOps>();
            set_ops(gate.vdev, (*gated).original);
        }
        gate.device
    };
    device.closed();
}

/// Calls `f` for each open device of the VM, for some more than once.
fn each_of(vm: &Vm, f: impl Fn(&Device)) {
    let mut index = 0;
    let mut changes = GATES.lock().changes;
    loop {
        let gates = GATES.lock();
        if gates.changes != changes {
            // Devices have come or gone: none must be missed.
            changes = gates.changes;
            index = 0;
        }
        let Some(gate) = gates.open.get(index) else {
            return;
        };
        let device = gate.device.clone();
        drop(gates);
        if vm.has_container(device.container().id()) {
            f(&device);
        }
        index += 1;
    }
}

/// Memory of the VM outside the balloon could not be mapped: none of its devices
/// masters the bus any more. May sleep.
pub(crate) fn silence(vm: &Vm) {
    each_of(vm, Device::silence);
}

/// The VM's firmware phase is over: what firmware left mastering the bus may do so
/// no longer. May sleep.
pub(crate) fn end_early(vm: &Vm) {
    each_of(vm, Device::end_early);
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
        ops.read.ok_or(ENODEV)?;
        ops.read = Some(read);
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

/// The driver's own operations of an open device.
///
/// # Safety
///
/// `vdev` is an open device whose operations are a [`GatedOps`].
unsafe fn original<'a>(vdev: *mut bindings::vfio_device) -> &'a bindings::vfio_device_ops {
    // SAFETY: As this function's; the driver's operations outlive its devices.
    unsafe { &*(*(*vdev).ops.cast::<GatedOps>()).original }
}

/// The gate of an open device.
fn device(vdev: *mut bindings::vfio_device) -> Option<Arc<Device>> {
    let gates = GATES.lock();
    let gate = gates.open.iter().find(|g| g.vdev.as_ptr() == vdev)?;
    Some(gate.device.clone())
}

/// Whether the file offset is one in config space.
fn is_config(offset: u64) -> bool {
    offset >> REGION_SHIFT == u64::from(bindings::VFIO_PCI_CONFIG_REGION_INDEX)
}

/// Which byte of an access of `count` bytes at `offset` is the low one of
/// `PCI_COMMAND`, if any.
fn command_byte(offset: u64, count: usize) -> Option<usize> {
    if !is_config(offset) {
        return None;
    }
    let start = offset & ((1 << REGION_SHIFT) - 1);
    let index = usize::try_from(COMMAND.checked_sub(start)?).ok()?;
    (index < count).then_some(index)
}

/// `vfio_device_ops::read` of a gated device.
///
/// Context: a `read()` on the device's descriptor, may sleep.
extern "C" fn read(
    vdev: *mut bindings::vfio_device,
    buffer: *mut c_char,
    count: usize,
    position: *mut loff_t,
) -> isize {
    // SAFETY: The core passes a valid position, and an open device whose
    // operations are a `GatedOps`, or else nobody would have called here.
    let (offset, original) = unsafe { (*position as u64, original(vdev).read) };
    let Some(original) = original else {
        return EINVAL.to_errno() as isize;
    };
    // SAFETY: The core's own call, handed on.
    let count_read = unsafe { original(vdev, buffer, count, position) };
    if count_read > 0 && command_byte(offset, count).is_some() {
        if let Some(device) = device(vdev) {
            device.command_read();
        }
    }
    count_read
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
    // SAFETY: As in `read`.
    let (offset, original) = unsafe { (*position as u64, original(vdev).write) };
    let Some(original) = original else {
        return EINVAL.to_errno() as isize;
    };
    // SAFETY: The core's own call, handed on.
    let forward = || unsafe { original(vdev, buffer, count, position) };
    let Some(index) = command_byte(offset, count) else {
        let written = forward();
        if is_config(offset) {
            if let Some(device) = device(vdev) {
                device.config_written();
            }
        }
        return written;
    };
    let address = (buffer as usize).wrapping_add(index);
    device(vdev)
        .ok_or(EIO)
        .and_then(|device| device.write_command(address, forward))
        .unwrap_or_else(|e| e.to_errno() as isize)
}
