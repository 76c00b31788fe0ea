// SPDX-License-Identifier: GPL-2.0-only

//! The VFIO IOMMU driver as the VFIO core sees it.
//!
//! The core asks drivers in the reverse order of their registration, so this one
//! comes before type1 and is given every container that type1 would get.
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
        Arc,
        ArcBorrow, //
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
        // SAFETY: As this function's.
        unsafe { TYPE1.init() };
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
    }
}

fn type1() -> Result<Arc<Type1>> {
    TYPE1.lock().clone().ok_or(ENODEV)
}

/// The container behind the core's pointer.
///
/// # Safety
///
/// `data` came from [`open`] and was not given to [`release`] yet.
unsafe fn container<'a>(data: *mut c_void) -> ArcBorrow<'a, Container> {
    // SAFETY: As this function's.
    unsafe { ArcBorrow::from_raw(data.cast::<Container>()) }
}

extern "C" fn open(arg: c_ulong) -> *mut c_void {
    let opened = type1()
        .and_then(|type1| Type1::open(&type1, arg))
        .and_then(|inner| Container::new(inner, arg == bindings::VFIO_TYPE1v2_IOMMU as c_ulong));
    match opened {
        Ok(container) => container.into_raw().cast_mut().cast(),
        Err(e) => e.to_ptr(),
    }
}

extern "C" fn release(data: *mut c_void) {
    // SAFETY: The core gives back what `open` returned, once.
    let container = unsafe { Arc::from_raw(data.cast::<Container>()) };
    container.close();
}

extern "C" fn ioctl(data: *mut c_void, cmd: c_uint, arg: c_ulong) -> c_long {
    if data.is_null() {
        // The core asks so before there is a container.
        return match cmd {
            type1::CHECK_EXTENSION => type1().map_or(0, |type1| type1.check_extension(arg)),
            _ => ENOTTY.to_errno() as c_long,
        };
    }
    // SAFETY: `data` is an open container.
    from_result(|| unsafe { container(data) }.ioctl(cmd, arg))
}

extern "C" fn attach_group(
    data: *mut c_void,
    group: *mut bindings::iommu_group,
    kind: bindings::vfio_group_type,
) -> c_int {
    from_result(|| {
        // SAFETY: `data` is an open container.
        let container = unsafe { container(data) };
        // SAFETY: The core holds the group for the duration of the call.
        let gateable = kind == bindings::vfio_group_type_VFIO_IOMMU && unsafe { all_pci(group) };
        container.attach_group(
            gateable,
            // SAFETY: The core's own call, handed on.
            || unsafe { container.inner().attach_group(group, kind) },
            // SAFETY: Called once the group is attached.
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
    // SAFETY: As this function's; `check` uses no data.
    unsafe { bindings::iommu_group_for_each_dev(group, null_mut(), Some(check)) == 0 }
}

extern "C" fn detach_group(data: *mut c_void, group: *mut bindings::iommu_group) {
    // SAFETY: `data` is an open container.
    let container = unsafe { container(data) };
    // SAFETY: The core's own call, handed on.
    container.detach_group(|| unsafe { container.inner().detach_group(group) });
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
        // SAFETY: `data` is an open container.
        let container = unsafe { container(data) };
        let bytes = u64::try_from(npage)? << kernel::page::PAGE_SHIFT;
        if let Some(range) = Range::clamped(iova, bytes) {
            container.settle(range)?;
        }
        // SAFETY: The core's own call, handed on.
        Ok(unsafe { container.inner().pin_pages(group, iova, npage, prot, pages) })
    })
}

extern "C" fn unpin_pages(data: *mut c_void, iova: bindings::dma_addr_t, npage: c_int) {
    // SAFETY: `data` is an open container, and the call is the core's own.
    unsafe { container(data).inner().unpin_pages(iova, npage) }
}

extern "C" fn register_device(data: *mut c_void, vdev: *mut bindings::vfio_device) {
    // SAFETY: `data` is an open container.
    let container = unsafe { container(data) };
    // SAFETY: The core's own call, handed on; the device is in its first open.
    unsafe {
        container.inner().register_device(vdev);
        gate::install(container.into(), vdev);
    }
}

extern "C" fn unregister_device(data: *mut c_void, vdev: *mut bindings::vfio_device) {
    // SAFETY: `data` is an open container; the device is in its last close.
    unsafe {
        gate::remove(vdev);
        container(data).inner().unregister_device(vdev);
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
        // SAFETY: `data` is an open container.
        let container = unsafe { container(data) };
        if let Some(range) = Range::clamped(iova, count as u64) {
            container.settle(range)?;
        }
        // SAFETY: The core's own call, handed on.
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
    // SAFETY: `data` is an open container, and the call is the core's own.
    unsafe { container(data).inner().group_iommu_domain(group) }
}
