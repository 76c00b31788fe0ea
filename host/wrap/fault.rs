// SPDX-License-Identifier: GPL-2.0-only

//! A page fault that a driver's mapping is asked to handle: a safe wrapper of `struct vm_fault`.
//!
//! C header: `include/linux/mm.h`, `include/linux/mm_types.h`.

use core::ptr::NonNull;

use kernel::page::Page;

use crate::bindings;

/// A fault that is being handled.
///
/// # Invariants
///
/// The fault is valid, and the lock by which its mapping stays as it is is held: the mmap lock or
/// the mapping's own, as its flags say.
pub(crate) struct Fault(NonNull<bindings::vm_fault>);

/// The file of a mapping; given back on drop.
pub(crate) struct MappedFile(NonNull<bindings::file>);

impl Fault {
    /// The handler's answer: try again, the lock is not held any more.
    pub(crate) const RETRY: bindings::vm_fault_t = bindings::vm_fault_reason_VM_FAULT_RETRY;
    /// The handler's answer: the access ends with a signal.
    pub(crate) const SIGBUS: bindings::vm_fault_t = bindings::vm_fault_reason_VM_FAULT_SIGBUS;
    /// The handler's answer: not in pages as large.
    pub(crate) const FALLBACK: bindings::vm_fault_t = bindings::vm_fault_reason_VM_FAULT_FALLBACK;

    /// # Safety
    ///
    /// The invariants hold for `vmf` until the handler returns or [`Fault::release`] is called.
    pub(crate) unsafe fn new(vmf: NonNull<bindings::vm_fault>) -> Self {
        // INVARIANT: By the safety requirement.
        Self(vmf)
    }

    fn vma(&self) -> *mut bindings::vm_area_struct {
        // SAFETY: The fault is valid by the invariant, and so is its mapping.
        unsafe { (*self.0.as_ptr()).__bindgen_anon_1.vma }
    }

    fn has(&self, flag: bindings::fault_flag) -> bool {
        // SAFETY: The fault is valid by the invariant.
        unsafe { (*self.0.as_ptr()).flags & flag != 0 }
    }

    /// The operations of the mapping.
    pub(crate) fn vm_ops(&self) -> *const bindings::vm_operations_struct {
        // SAFETY: The mapping is valid by the invariant.
        unsafe { (*self.vma()).vm_ops }
    }

    /// What the mapping maps: tells files apart.
    pub(crate) fn mapping(&self) -> *const bindings::address_space {
        // SAFETY: The mapping is valid by the invariant, and a driver's mapping has a file.
        unsafe { (*(*self.vma()).vm_file).f_mapping }
    }

    /// Whether another than the owner of the memory accesses it, or on its behalf.
    pub(crate) fn is_remote(&self) -> bool {
        self.has(bindings::fault_flag_FAULT_FLAG_REMOTE)
    }

    /// Whether it was tried before.
    pub(crate) fn was_tried(&self) -> bool {
        self.has(bindings::fault_flag_FAULT_FLAG_TRIED)
    }

    /// Enters one page of the kernel's into the page tables at the fault's address; returns the
    /// handler's answer.
    pub(crate) fn insert(&self, page: &Page) -> bindings::vm_fault_t {
        // SAFETY: The fault is valid and locked by the invariant; `page` is a page.
        unsafe { bindings::insert_kernel_page(self.0.as_ptr(), page.as_ptr()) }
    }

    /// Gives up the lock, so that the handler may wait; its answer has to be [`Fault::RETRY`]
    /// then. The file of the mapping stays until the drop of what this returns.
    ///
    /// The answer is an error where the fault does not allow that, or wants nobody to wait.
    pub(crate) fn release(self) -> Result<MappedFile, bindings::vm_fault_t> {
        if !self.has(bindings::fault_flag_FAULT_FLAG_ALLOW_RETRY) {
            return Err(Self::SIGBUS);
        }
        if self.has(bindings::fault_flag_FAULT_FLAG_RETRY_NOWAIT) {
            return Err(Self::RETRY);
        }
        // SAFETY: The mapping is valid by the invariant, and a driver's mapping has a file, of
        // which this takes a reference before the lock goes. Nothing uses the fault after it.
        let file = unsafe {
            let file = bindings::hold_file((*self.vma()).vm_file);
            bindings::release_fault_lock(self.0.as_ptr());
            file
        };
        NonNull::new(file).map(MappedFile).ok_or(Self::RETRY)
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        // SAFETY: The reference was taken in `release`. Should it be the last one, the file goes
        // when the task returns to user mode, and not in here.
        unsafe { bindings::fput(self.0.as_ptr()) };
    }
}
