// SPDX-License-Identifier: GPL-2.0-only

//! The VFIO IOMMU driver as the VFIO core sees it.
//!
//! The core asks drivers in the reverse order of their registration, so this one
//! comes before type1 and is given every container that type1 would get.
//!
//! What the core keeps for a container is not a pointer but a number, which is looked up at
//! each call: the core does not keep an ioctl from running while, or after, the container's
//! last group leaves it and [`release`] is called. An ioctl that comes too late finds nothing; one
//! that is under way has a reference, and this module with it.
//!
//! Lock order: `CONTAINERS` is a leaf.
//!
//! Source: `drivers/vfio/vfio.h`, `drivers/vfio/container.c`.

use core::ptr::null_mut;

use kernel::{
    error::{
        from_result,
        to_result, //
    },
    ffi::{
        c_int,
        c_long,
        c_uint,
        c_ulong,
        c_void, //
    },
    prelude::*,
    sync::{
        global_lock,
        Arc, //
    },
};

use crate::{
    bindings,
    compat::THIS,
    logic::range::Range,
    type1::{
        self,
        Type1, //
    },
    vfio::container::Container,
    vfio::gate, //
};

global_lock! {
    // SAFETY: Initialised in `Registration::new`, before the core can call in here.
    unsafe(uninit) static TYPE1: Mutex<Option<Arc<Type1>>> = None;
}

global_lock! {
    // SAFETY: Initialised in `Registration::new`, before the core can call in here.
    unsafe(uninit) static CONTAINERS: Mutex<KVec<Arc<Container>>> = KVec::new();
}

/// The operations, to which the core keeps a pointer.
struct Operations(bindings::vfio_iommu_driver_ops);

// SAFETY: They are constant.
unsafe impl Sync for Operations {}

/// The name of the driver, which the core never writes to.
const NAME: &[u8] = b"vfio-iommu-deferred\0";

static OPERATIONS: Operations = Operations(bindings::vfio_iommu_driver_ops {
    name: NAME.as_ptr().cast_mut(),
    owner: THIS.as_ptr(),
    open: Some(open),
    release: Some(release),
    ioctl: Some(ioctl),
    attach_group: Some(attach_group),
    detach_group: Some(detach_group),
    pin_pages: Some(pin_pages),
    unpin_pages: Some(unpin_pages),
    register_device: Some(register_device),
    unregister_device: Some(unregister_device),
    dma_rw: Some(dma_rw),
    group_iommu_domain: Some(group_iommu_domain),
});

/// Being registered with the VFIO core.
///
/// The core holds a reference to this module for each container, so the drop, at
/// module exit, finds none.
pub(crate) struct Registration(());

impl Registration {
    /// Registers the driver in front of `type1`.
    ///
    /// # Safety
    ///
    /// Called once, at module initialisation.
    pub(crate) unsafe fn new(type1: Type1) -> Result<Self> {
        // SAFETY: Called once, by this function's precondition, and before the registration
        // below nobody else has a use for it.
        unsafe { TYPE1.init() };
        // SAFETY: Called once, by this function's requirement, and before anybody uses it.
        unsafe { CONTAINERS.init() };
        *TYPE1.lock() = Some(Arc::new(type1, GFP_KERNEL)?);
        // SAFETY: The operations are static and match their types.
        let registered = to_result(unsafe { bindings::vfio_register_iommu_driver(&OPERATIONS.0) });
        match registered {
            Ok(()) => Ok(Self(())),
            Err(e) => {
                *TYPE1.lock() = None;
                Err(e)
            }
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: Registered in `new`.
        unsafe { bindings::vfio_unregister_iommu_driver(&OPERATIONS.0) };
        *TYPE1.lock() = None;
        // A static is never dropped: what an emptied vector keeps would be lost.
        *CONTAINERS.lock() = KVec::new();
    }
}

fn type1() -> Result<Arc<Type1>> {
    TYPE1.lock().clone().ok_or(ENODEV)
}

/// What the core keeps for a container: its number, never 0 and never one of another container.
fn data_of(container: &Container) -> *mut c_void {
    // Numbers rise from 0: they do not get to where errors are encoded.
    (container.id().number() as usize).wrapping_add(1) as *mut c_void
}

/// The container that the core means; `EINVAL` if it was released.
fn container(data: *mut c_void) -> Result<Arc<Container>> {
    let containers = CONTAINERS.lock();
    let index = containers.binary_search_by_key(&data, |open| data_of(open));
    let found = index.ok().and_then(|index| containers.get(index));
    found.cloned().ok_or(EINVAL)
}

extern "C" fn open(arg: c_ulong) -> *mut c_void {
    let opened = type1()
        .and_then(|type1| Type1::open(&type1, arg))
        .and_then(|inner| Container::new(inner, arg == bindings::VFIO_TYPE1v2_IOMMU as c_ulong))
        .and_then(|container| {
            let data = data_of(&container);
            let mut containers = CONTAINERS.lock();
            // One that got its number before may come later.
            let index = containers.partition_point(|open| data_of(open) < data);
            containers.push(container, GFP_KERNEL)?;
            if let Some(tail) = containers.get_mut(index..) {
                tail.rotate_right(1);
            }
            Ok(data)
        });
    opened.unwrap_or_else(|e| e.to_ptr())
}

extern "C" fn release(data: *mut c_void) {
    let mut containers = CONTAINERS.lock();
    let index = containers.binary_search_by_key(&data, |open| data_of(open));
    let container = index.ok().and_then(|index| containers.remove(index).ok());
    drop(containers);
    match container {
        Some(container) => container.close(),
        None => kernel::pr_warn_once!("the VFIO core has released a container twice\n"),
    }
}

extern "C" fn ioctl(data: *mut c_void, cmd: c_uint, arg: c_ulong) -> c_long {
    if data.is_null() {
        // The core asks so before there is a container.
        return match cmd {
            type1::CHECK_EXTENSION => type1().map_or(0, |type1| type1.check_extension(arg)),
            _ => ENOTTY.to_errno() as c_long,
        };
    }
    from_result(|| container(data)?.as_arc_borrow().ioctl(cmd, arg))
}

extern "C" fn attach_group(
    data: *mut c_void,
    group: *mut bindings::iommu_group,
    kind: bindings::vfio_group_type,
) -> c_int {
    from_result(|| {
        let container = container(data)?;
        // SAFETY: The core holds the group for the duration of the call.
        let gateable = kind == bindings::vfio_group_type_VFIO_IOMMU && unsafe { all_pci(group) };
        container.attach_group(
            gateable,
            // SAFETY: The core holds the group for the duration of the call, with the locks
            // that it takes for this operation of any driver.
            || unsafe { container.inner().attach_group(group, kind) },
            // SAFETY: The core holds the group for the duration of the call; this is called
            // only when it has been attached.
            || unsafe { container.inner().detach_group(group) },
        )?;
        Ok(0)
    })
}

/// Whether each device of the group is a PCI device.
///
/// # Safety
///
/// `group` is valid.
unsafe fn all_pci(group: *mut bindings::iommu_group) -> bool {
    extern "C" fn check(dev: *mut bindings::device, _: *mut c_void) -> c_int {
        // SAFETY: The group's devices stay while it is walked.
        match unsafe { bindings::dev_is_pci(dev) } {
            true => 0,
            false => ENODEV.to_errno(),
        }
    }
    // SAFETY: `group` is valid by this function's precondition; `check` is given no data and
    // uses none.
    unsafe { bindings::iommu_group_for_each_dev(group, null_mut(), Some(check)) == 0 }
}

extern "C" fn detach_group(data: *mut c_void, group: *mut bindings::iommu_group) {
    if let Ok(container) = container(data) {
        // SAFETY: The core holds the group for the duration of the call, and detaches what it
        // has attached.
        container.detach_group(|| unsafe { container.inner().detach_group(group) });
    }
}

extern "C" fn pin_pages(
    data: *mut c_void,
    group: *mut bindings::iommu_group,
    iova: bindings::dma_addr_t,
    npage: c_int,
    prot: c_int,
    pages: *mut *mut bindings::page,
) -> c_int {
    from_result(|| {
        let container = container(data)?;
        let bytes = u64::try_from(npage)? << kernel::page::PAGE_SHIFT;
        if let Some(range) = Range::clamped(iova, bytes) {
            container.settle(range)?;
        }
        // SAFETY: The core holds the group for the duration of the call, and `pages` has room
        // for `npage` pointers.
        Ok(unsafe { container.inner().pin_pages(group, iova, npage, prot, pages) })
    })
}

extern "C" fn unpin_pages(data: *mut c_void, iova: bindings::dma_addr_t, npage: c_int) {
    if let Ok(container) = container(data) {
        // SAFETY: The device's driver gives back what it has pinned, by the core's contract.
        unsafe { container.inner().unpin_pages(iova, npage) }
    }
}

extern "C" fn register_device(data: *mut c_void, vdev: *mut bindings::vfio_device) {
    if let Ok(container) = container(data) {
        // SAFETY: `vdev` is valid and in its first open: the core calls this with the device
        // set's lock held, before anybody has a descriptor.
        unsafe {
            container.inner().register_device(vdev);
            gate::install(container, vdev);
        }
    }
}

extern "C" fn unregister_device(data: *mut c_void, vdev: *mut bindings::vfio_device) {
    // SAFETY: `vdev` is valid and in its last close: the core calls this with the device
    // set's lock held, when nobody has a descriptor any more.
    unsafe { gate::remove(vdev) };
    if let Ok(container) = container(data) {
        // SAFETY: `vdev` was registered by `register_device`; it is valid, since the core
        // holds its device set's lock in this call.
        unsafe { container.inner().unregister_device(vdev) };
    }
}

extern "C" fn dma_rw(
    data: *mut c_void,
    iova: bindings::dma_addr_t,
    buffer: *mut c_void,
    count: usize,
    write: bool,
) -> c_int {
    from_result(|| {
        let container = container(data)?;
        if let Some(range) = Range::clamped(iova, count as u64) {
            container.settle(range)?;
        }
        // SAFETY: `buffer` is valid for `count` bytes, by the core's contract with the driver
        // of the device.
        Ok(unsafe { container.inner().dma_rw(iova, buffer, count, write) })
    })
}

extern "C" fn group_iommu_domain(
    data: *mut c_void,
    group: *mut bindings::iommu_group,
) -> *mut bindings::iommu_domain {
    if data.is_null() {
        return EINVAL.to_ptr();
    }
    match container(data) {
        // SAFETY: The core holds the group for the duration of the call.
        Ok(container) => unsafe { container.inner().group_iommu_domain(group) },
        Err(e) => e.to_ptr(),
    }
}
