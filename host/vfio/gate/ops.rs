// SPDX-License-Identifier: GPL-2.0-only

//! The gate's operations of an open device, in place of its driver's.
//!
//! What uses a device: a fault of a mapping of a BAR ([`super::bars`]); a write to a region that
//! is not config space; a capability of config space that the device itself interprets; a
//! doorbell or a buffer of the device that is handed to somebody else (`VFIO_DEVICE_IOEVENTFD`,
//! DMA-BUF), after which the gate does not see its use any more. Reads program no device.
//!
//! All functions are called by the VFIO core, in system calls on the device's descriptor, which
//! keeps the device open and this module here; they may sleep.
//!
//! Source: `include/linux/vfio.h`, `include/linux/vfio_pci_core.h` (regions),
//! `drivers/vfio/vfio_main.c`.

use kernel::{
    bindings::loff_t,
    ffi::{
        c_char,
        c_int,
        c_long,
        c_uint,
        c_ulong,
        c_void, //
    },
    page::PAGE_SIZE,
    prelude::*, //
};

use crate::{
    bindings,
    wrap::user, //
};

use super::{
    bytes::Bytes,
    device::GatedDevice,
    device_of,
    faults,
    regions::{
        command_byte,
        config_offset,
        BARS,
        BAR_SIZE, //
    },
    GatedOps, //
};

/// `VFIO_DEVICE_IOEVENTFD`, which bindgen cannot evaluate.
const IOEVENTFD: c_uint = kernel::ioctl::_IO(bindings::VFIO_TYPE as u32, bindings::VFIO_BASE + 16);

/// Puts the gate's functions into a copy of a driver's operations. Errors: `ENODEV` without what
/// every driver of PCI devices has.
pub(super) fn replace(ops: &mut bindings::vfio_device_ops) -> Result {
    ops.read.ok_or(ENODEV)?;
    ops.read = Some(read);
    ops.write.ok_or(ENODEV)?;
    ops.write = Some(write);
    ops.close_device.ok_or(ENODEV)?;
    ops.close_device = Some(close_device);
    if ops.ioctl.is_some() {
        ops.ioctl = Some(ioctl);
    }
    if ops.mmap.is_some() {
        ops.mmap = Some(mmap);
    }
    if ops.device_feature.is_some() {
        ops.device_feature = Some(device_feature);
    }
    Ok(())
}

/// The driver's own operations of an open device.
///
/// # Safety
///
/// `vdev` is an open device whose operations are a [`GatedOps`].
unsafe fn original<'a>(vdev: *mut bindings::vfio_device) -> &'a bindings::vfio_device_ops {
    // SAFETY: By this function's requirement; the driver's operations outlive its devices.
    unsafe { &*(*(*vdev).ops.cast::<GatedOps>()).original }
}

/// `vfio_device_ops::read` of a gated device.
extern "C" fn read(
    vdev: *mut bindings::vfio_device,
    buffer: *mut c_char,
    count: usize,
    position: *mut loff_t,
) -> isize {
    // SAFETY: The core passes a valid position, and an open device whose operations are a
    // `GatedOps`, or else nobody would have called here.
    let (offset, original) = unsafe { (*position as u64, original(vdev).read) };
    let Some(original) = original else {
        return EINVAL.to_errno() as isize;
    };
    // SAFETY: The core's own call, handed on.
    let done = unsafe { original(vdev, buffer, count, position) };
    let index = config_offset(offset).and_then(|at| {
        let read = usize::try_from(done).ok()?;
        command_byte(at, read)
    });
    let Some(device) = device_of(vdev) else {
        return done;
    };
    device.look();
    if let Some(index) = index {
        let at = (buffer as usize).wrapping_add(index);
        if let Err(e) = show_command(&device, at) {
            return e.to_errno() as isize;
        }
    }
    done
}

/// The register was read to the user address `at`, where the guest is to find what it wrote.
fn show_command(device: &GatedDevice, at: usize) -> Result {
    let mut byte = [0];
    user::read(at, &mut byte)?;
    let [byte] = byte;
    let shown = device.command_read(byte);
    match shown == byte {
        true => Ok(()),
        false => user::write(at, &[shown]),
    }
}

/// `vfio_device_ops::write` of a gated device.
extern "C" fn write(
    vdev: *mut bindings::vfio_device,
    buffer: *const c_char,
    count: usize,
    position: *mut loff_t,
) -> isize {
    // SAFETY: As the core promises to `vfio_device_ops::write`: the position is valid, and the
    // device is open; its operations are a `GatedOps`, or else nobody would have called here.
    let (offset, original) = unsafe { (*position as u64, original(vdev).write) };
    let Some(original) = original else {
        return EINVAL.to_errno() as isize;
    };
    // SAFETY: The core's own call, handed on, with `buffer` being user memory that the driver
    // checks itself.
    let forward = |buffer, count| unsafe { original(vdev, buffer, count, position) };
    let Some(device) = device_of(vdev) else {
        return EIO.to_errno() as isize;
    };
    let Some(at) = config_offset(offset) else {
        if let Err(e) = device.touch() {
            return e.to_errno() as isize;
        }
        let written = forward(buffer, count);
        device.look();
        return written;
    };
    if let Some(command) = command_byte(at, count) {
        return Bytes::copy(buffer as usize, count, command)
            .and_then(|mut bytes| {
                device.write_command(&mut bytes, |bytes| {
                    let (address, len) = bytes.place();
                    forward(address as *const c_char, len)
                })
            })
            .and_then(|written| match count > PAGE_SIZE && written > 0 {
                // The driver says so of what reaches beyond config space.
                true => Err(EFAULT),
                false => Ok(written),
            })
            .unwrap_or_else(|e| e.to_errno() as isize);
    }
    if device.is_own_capability(at) {
        if let Err(e) = device.touch() {
            return e.to_errno() as isize;
        }
    }
    let sizes = sizes_bar(at, buffer as usize, count);
    let written = forward(buffer, count);
    if sizes && written > 0 {
        device.bar_sized();
    }
    device.look();
    written
}

/// Whether an access of `count` bytes at `offset` of config space writes all ones to a BAR.
fn sizes_bar(offset: u64, buffer: usize, count: usize) -> bool {
    let mut bytes = [0; BAR_SIZE as usize];
    let aligned = offset % BAR_SIZE == 0 && count == bytes.len();
    aligned
        && BARS.contains(&offset)
        && user::read(buffer, &mut bytes).is_ok()
        && bytes == [0xff; 4]
}

/// `vfio_device_ops::close_device` of a gated device, in its last close.
///
/// What the driver frees here, others must not use any more: the mapping threads, which may be
/// about to change the device's register. `unregister_device` comes too late for that.
extern "C" fn close_device(vdev: *mut bindings::vfio_device) {
    if let Some(device) = device_of(vdev) {
        device.closed();
    }
    // SAFETY: The core calls this for an open device; its operations are a `GatedOps`, or else
    // nobody would have called here.
    if let Some(original) = unsafe { original(vdev).close_device } {
        // SAFETY: The core's own call, handed on.
        unsafe { original(vdev) };
    }
}

/// `vfio_device_ops::ioctl` of a gated device.
extern "C" fn ioctl(vdev: *mut bindings::vfio_device, cmd: c_uint, arg: c_ulong) -> c_long {
    // SAFETY: The core calls this for an open device; its operations are a `GatedOps`, or else
    // nobody would have called here.
    let Some(original) = (unsafe { original(vdev).ioctl }) else {
        return ENOTTY.to_errno() as c_long;
    };
    let Some(device) = device_of(vdev) else {
        return EIO.to_errno() as c_long;
    };
    if cmd == IOEVENTFD {
        if let Err(e) = untrap(&device) {
            return e.to_errno() as c_long;
        }
    }
    // SAFETY: The core's own call, handed on.
    let result = unsafe { original(vdev, cmd, arg) };
    // A reset wakes the device.
    device.look();
    result
}

/// `vfio_device_ops::device_feature` of a gated device.
extern "C" fn device_feature(
    vdev: *mut bindings::vfio_device,
    flags: u32,
    arg: *mut c_void,
    size: usize,
) -> c_int {
    // SAFETY: The core calls this for an open device; its operations are a `GatedOps`, or else
    // nobody would have called here.
    let Some(original) = (unsafe { original(vdev).device_feature }) else {
        return ENOTTY.to_errno();
    };
    let Some(device) = device_of(vdev) else {
        return EIO.to_errno();
    };
    if flags & bindings::VFIO_DEVICE_FEATURE_MASK == bindings::VFIO_DEVICE_FEATURE_DMA_BUF {
        if let Err(e) = untrap(&device) {
            return e.to_errno();
        }
    }
    // SAFETY: The core's own call, handed on.
    let result = unsafe { original(vdev, flags, arg, size) };
    // So does the end of its low-power state.
    device.look();
    result
}

/// The device is going to be used where the gate does not see it. Errors: `EINTR`.
fn untrap(device: &GatedDevice) -> Result {
    // First: who asks while this waits is to wait itself.
    device.untrap();
    device.touch()
}

/// `vfio_device_ops::mmap` of a gated device. The mmap lock is held for writing.
extern "C" fn mmap(vdev: *mut bindings::vfio_device, vma: *mut bindings::vm_area_struct) -> c_int {
    // SAFETY: The core calls this for an open device; its operations are a `GatedOps`, or else
    // nobody would have called here.
    let Some(original) = (unsafe { original(vdev).mmap }) else {
        return EINVAL.to_errno();
    };
    // SAFETY: The core's own call, handed on.
    let result = unsafe { original(vdev, vma) };
    if let (0, Some(device)) = (result, device_of(vdev)) {
        // SAFETY: The core calls this as `vma` is being mapped.
        let wrapped = device.insert_page(true, |bars| unsafe { faults::wrap(bars, vma) });
        if wrapped != Some(true) {
            device.untrap();
        }
    }
    result
}
