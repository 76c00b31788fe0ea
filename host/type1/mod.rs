// SPDX-License-Identifier: GPL-2.0-only

//! The driver that this one stands in front of: `vfio_iommu_type1`.
//!
//! Its operations are private to its module. They are found by name, checked,
//! and kept alive by a reference to that module, in whatever order the two were
//! loaded, busy or idle, and also when type1 is built in.
//!
//! Source: `drivers/vfio/vfio.h`, `drivers/vfio/vfio_iommu_type1.c`.

pub(crate) mod info;
pub(crate) mod iommu;
pub(crate) mod uapi;

use core::ptr::NonNull;

use kernel::{
    error::to_result,
    ffi::{
        c_int,
        c_long,
        c_uint,
        c_ulong,
        c_void, //
    },
    prelude::*,
    sync::Arc, //
};

use crate::bindings;

/// Where they are, as a module and built in.
const SYMBOLS: [&CStr; 2] = [
    c"vfio_iommu_type1:vfio_iommu_driver_ops_type1",
    c"vfio_iommu_driver_ops_type1",
];

/// type1's operations.
///
/// # Invariants
///
/// `ops` points to type1's operations, all of which are set, and a reference to
/// their module is held.
pub(crate) struct Type1 {
    ops: NonNull<bindings::vfio_iommu_driver_ops>,
}

// SAFETY: The operations are constant and may be called from any thread.
unsafe impl Send for Type1 {}
// SAFETY: The operations are constant, and type1 orders concurrent calls itself.
unsafe impl Sync for Type1 {}

impl Type1 {
    /// Finds type1, loading it if need be.
    ///
    /// Errors: `ENODEV` when there is no type1, `EOPNOTSUPP` when what was found
    /// is not the type1 that this module was built for; both are logged.
    /// Context: module initialisation, may sleep.
    pub(crate) fn acquire() -> Result<Self> {
        // SAFETY: A format without arguments; waiting is fine in `insmod`.
        // Whether it worked shows in what is found below.
        unsafe { bindings::__request_module(true, c"vfio_iommu_type1".as_char_ptr()) };

        let ops = Self::find().inspect_err(|e| {
            pr_err!("vfio_iommu_type1 not found ({e:?}): load it, and check CONFIG_KALLSYMS_ALL and CONFIG_KPROBES\n");
        })?;
        Self::get(ops)
    }

    fn find() -> Result<NonNull<bindings::vfio_iommu_driver_ops>> {
        for symbol in SYMBOLS {
            let mut addr: c_ulong = 0;
            // SAFETY: `symbol` is a C string and `addr` valid for writes.
            let ret = unsafe { bindings::deferred_find_data(symbol.as_char_ptr(), &mut addr) };
            if ret == 0 {
                return NonNull::new(addr as *mut bindings::vfio_iommu_driver_ops).ok_or(ENODEV);
            }
        }
        Err(ENODEV)
    }

    /// Checks what was found, and keeps it.
    fn get(ops: NonNull<bindings::vfio_iommu_driver_ops>) -> Result<Self> {
        // SAFETY: A data symbol of that name was found an instant ago, so as many bytes as the
        // operations have can be read there. Should its module be unloaded right now, `insmod`
        // of this module loses a race that only the administrator who runs both can cause.
        to_result(unsafe { bindings::deferred_check_type1(ops.as_ptr()) })?;
        // SAFETY: The operations can be read, see above; it was checked that `owner` is in its place.
        let owner = unsafe { (*ops.as_ptr()).owner };
        // SAFETY: `owner` is type1's module or NULL (built in).
        if !unsafe { bindings::try_module_get(owner) } {
            return Err(ENODEV);
        }
        // INVARIANT: All operations were checked, and the reference was just taken.
        Ok(Self { ops })
    }

    fn ops(&self) -> &bindings::vfio_iommu_driver_ops {
        // SAFETY: Valid and constant while the module reference is held.
        unsafe { self.ops.as_ref() }
    }

    /// `VFIO_CHECK_EXTENSION` without a container.
    pub(crate) fn check_extension(&self, arg: c_ulong) -> c_long {
        let Some(ioctl) = self.ops().ioctl else {
            return 0;
        };
        // SAFETY: The VFIO core itself asks with a NULL container.
        unsafe { ioctl(core::ptr::null_mut(), CHECK_EXTENSION, arg) }
    }

    /// Opens one of type1's containers; `arg` is what `VFIO_SET_IOMMU` got.
    pub(crate) fn open(this: &Arc<Self>, arg: c_ulong) -> Result<Inner> {
        let open = this.ops().open.ok_or(ENODEV)?;
        // SAFETY: Any `arg` may be given.
        let data = kernel::error::from_err_ptr(unsafe { open(arg) })?;
        Ok(Inner {
            type1: this.clone(),
            data: NonNull::new(data).ok_or(ENOMEM)?,
        })
    }
}

impl Drop for Type1 {
    fn drop(&mut self) {
        let owner = self.ops().owner;
        // SAFETY: Taken in `get`.
        unsafe { bindings::module_put(owner) };
    }
}

/// `VFIO_CHECK_EXTENSION` and its sisters, which bindgen cannot evaluate.
pub(crate) const CHECK_EXTENSION: c_uint = vfio_io(1);
/// `VFIO_IOMMU_GET_INFO`.
pub(crate) const GET_INFO: c_uint = vfio_io(12);
/// `VFIO_IOMMU_MAP_DMA`.
pub(crate) const MAP_DMA: c_uint = vfio_io(13);
/// `VFIO_IOMMU_UNMAP_DMA`.
pub(crate) const UNMAP_DMA: c_uint = vfio_io(14);
/// `VFIO_IOMMU_DIRTY_PAGES`.
pub(crate) const DIRTY_PAGES: c_uint = vfio_io(17);

const fn vfio_io(nr: u32) -> c_uint {
    kernel::ioctl::_IO(bindings::VFIO_TYPE as u32, bindings::VFIO_BASE + nr)
}

/// A container of type1, closed on drop.
///
/// # Invariants
///
/// `data` came from type1's `open`.
pub(crate) struct Inner {
    type1: Arc<Type1>,
    data: NonNull<c_void>,
}

// SAFETY: A container of type1 belongs to no thread.
unsafe impl Send for Inner {}
// SAFETY: type1 locks its containers itself.
unsafe impl Sync for Inner {}

impl Inner {
    /// Any ioctl of the container. `arg` points into the caller's user space.
    ///
    /// Context: process context of the VMM, may sleep.
    pub(crate) fn ioctl(&self, cmd: c_uint, arg: c_ulong) -> c_long {
        let Some(ioctl) = self.type1.ops().ioctl else {
            return ENOTTY.to_errno() as c_long;
        };
        // SAFETY: `data` is an open container; type1 checks what `arg` points to.
        unsafe { ioctl(self.data.as_ptr(), cmd, arg) }
    }

    /// # Safety
    ///
    /// `group` is valid, and the VFIO core's rules for the call are kept.
    pub(crate) unsafe fn attach_group(
        &self,
        group: *mut bindings::iommu_group,
        kind: bindings::vfio_group_type,
    ) -> Result {
        let attach = self.type1.ops().attach_group.ok_or(ENODEV)?;
        // SAFETY: `data` is an open container by the invariant; `group` is valid, and the core's
        // rules are kept, by this function's requirement.
        to_result(unsafe { attach(self.data.as_ptr(), group, kind) })
    }

    /// # Safety
    ///
    /// `group` was attached.
    pub(crate) unsafe fn detach_group(&self, group: *mut bindings::iommu_group) {
        if let Some(detach) = self.type1.ops().detach_group {
            // SAFETY: `data` is an open container by the invariant; `group` was attached to it, by
            // this function's requirement.
            unsafe { detach(self.data.as_ptr(), group) }
        }
    }

    /// # Safety
    ///
    /// As `vfio_iommu_driver_ops::pin_pages`.
    pub(crate) unsafe fn pin_pages(
        &self,
        group: *mut bindings::iommu_group,
        iova: u64,
        npage: c_int,
        prot: c_int,
        pages: *mut *mut bindings::page,
    ) -> c_int {
        let Some(pin) = self.type1.ops().pin_pages else {
            return ENOTTY.to_errno();
        };
        // SAFETY: `data` is an open container by the invariant; the arguments are the core's, by
        // this function's requirement.
        unsafe { pin(self.data.as_ptr(), group, iova, npage, prot, pages) }
    }

    /// # Safety
    ///
    /// As `vfio_iommu_driver_ops::unpin_pages`.
    pub(crate) unsafe fn unpin_pages(&self, iova: u64, npage: c_int) {
        if let Some(unpin) = self.type1.ops().unpin_pages {
            // SAFETY: `data` is an open container by the invariant; the arguments are the core's,
            // by this function's requirement.
            unsafe { unpin(self.data.as_ptr(), iova, npage) }
        }
    }

    /// # Safety
    ///
    /// `vdev` is a VFIO device in its first open.
    pub(crate) unsafe fn register_device(&self, vdev: *mut bindings::vfio_device) {
        if let Some(register) = self.type1.ops().register_device {
            // SAFETY: `data` is an open container by the invariant; `vdev` is in its first open, by
            // this function's requirement.
            unsafe { register(self.data.as_ptr(), vdev) }
        }
    }

    /// # Safety
    ///
    /// `vdev` was registered.
    pub(crate) unsafe fn unregister_device(&self, vdev: *mut bindings::vfio_device) {
        if let Some(unregister) = self.type1.ops().unregister_device {
            // SAFETY: `data` is an open container by the invariant; `vdev` was registered, by this
            // function's requirement.
            unsafe { unregister(self.data.as_ptr(), vdev) }
        }
    }

    /// # Safety
    ///
    /// `data` is valid for `count` bytes, read or written as `write` says.
    pub(crate) unsafe fn dma_rw(
        &self,
        iova: u64,
        data: *mut c_void,
        count: usize,
        write: bool,
    ) -> c_int {
        let Some(dma_rw) = self.type1.ops().dma_rw else {
            return ENOTTY.to_errno();
        };
        // SAFETY: `data` is an open container by the invariant; the buffer is valid for `count`
        // bytes, by this function's requirement.
        unsafe { dma_rw(self.data.as_ptr(), iova, data, count, write) }
    }

    /// # Safety
    ///
    /// `group` is valid or NULL.
    pub(crate) unsafe fn group_iommu_domain(
        &self,
        group: *mut bindings::iommu_group,
    ) -> *mut bindings::iommu_domain {
        match self.type1.ops().group_iommu_domain {
            // SAFETY: `data` is an open container by the invariant; `group` is valid or NULL, by
            // this function's requirement.
            Some(domain) => unsafe { domain(self.data.as_ptr(), group) },
            None => ENODEV.to_ptr(),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(release) = self.type1.ops().release {
            // SAFETY: Opened in `open`, and nobody has it any more.
            unsafe { release(self.data.as_ptr()) }
        }
    }
}
