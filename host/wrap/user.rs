// SPDX-License-Identifier: GPL-2.0-only

//! The VMM's address space: what may be deferred, and how type1 is called in it.
//!
//! Everything here works on `current->mm`, which must not be NULL: callers are
//! ioctls of the VMM and its vhost tasks. All of it may sleep and takes the
//! mmap lock for a short time.

use kernel::{
    current,
    ffi::c_ulong,
    mm::virt::flags,
    page::PAGE_SIZE,
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};

use crate::{
    bindings,
    logic::range::Range,
    wrap::gup::can_pin, //
};

/// A page of user memory in which to hand type1 its arguments: type1 reads them
/// with `copy_from_user()` only. Unmapped on drop.
///
/// What a VMM could do by scribbling on it, it could do by calling type1 itself.
///
/// # Invariants
///
/// `addr` is a page that `vm_mmap` made in the mm that is current now.
pub(crate) struct UserPage {
    addr: usize,
}

impl UserPage {
    /// Maps a fresh page. Errors: `ENOMEM`, `EINTR` and the like of `vm_mmap()`.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: An anonymous mapping at any address, in the current mm.
        let addr = unsafe {
            bindings::vm_mmap(
                core::ptr::null_mut(),
                0,
                PAGE_SIZE as c_ulong,
                (bindings::PROT_READ | bindings::PROT_WRITE) as c_ulong,
                (bindings::MAP_PRIVATE | bindings::MAP_ANONYMOUS) as c_ulong,
                0,
            )
        };
        let addr = kernel::error::from_err_ptr(addr as *mut u8)? as usize;
        // INVARIANT: Just made.
        Ok(Self { addr })
    }

    /// The page's address, as type1 takes it.
    pub(crate) fn addr(&self) -> usize {
        self.addr
    }

    /// Copies `bytes` to the beginning of the page.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result {
        write(self.addr, bytes)
    }

    /// Fills `bytes` from the beginning of the page.
    pub(crate) fn read(&self, bytes: &mut [u8]) -> Result {
        read(self.addr, bytes)
    }
}

impl Drop for UserPage {
    fn drop(&mut self) {
        // SAFETY: By the invariant; a failure leaves a page to the end of the process.
        unsafe { bindings::vm_munmap(self.addr, PAGE_SIZE) };
    }
}

/// Reads the user memory at `addr`; `EFAULT` if it is not readable.
pub(crate) fn read(addr: usize, bytes: &mut [u8]) -> Result {
    UserSlice::new(UserPtr::from_addr(addr), bytes.len())
        .reader()
        .read_slice(bytes)
}

/// Writes the user memory at `addr`; `EFAULT` if it is not writable.
pub(crate) fn write(addr: usize, bytes: &[u8]) -> Result {
    UserSlice::new(UserPtr::from_addr(addr), bytes.len())
        .writer()
        .write_slice(bytes)
}

/// Whether all of `vaddrs` is plain memory that can be read and written: no
/// device's BAR, nothing without pages of its own, no hole, and no file whose pages
/// type1 could not pin, as those of a disk's file system (one page of each is tried).
pub(crate) fn is_plain_ram(vaddrs: Range) -> bool {
    let mut at = vaddrs.start();
    let mut tried = core::ptr::null_mut();
    while at < vaddrs.end() {
        let Some((end, file)) = plain_area(at) else {
            return false;
        };
        if !file.is_null() && file != tried {
            if !can_pin(at) {
                return false;
            }
            tried = file;
        }
        at = end;
    }
    true
}

/// The end of the area of plain memory at `addr`, and its file or NULL, which is only to be
/// compared.
fn plain_area(addr: u64) -> Option<(u64, *mut bindings::file)> {
    const SPECIAL: bindings::vm_flags_t = flags::IO | flags::PFNMAP | flags::MIXEDMAP;
    const NEEDED: bindings::vm_flags_t = flags::READ | flags::WRITE;

    let task = current!();
    let guard = task.mm()?.mmap_read_lock();
    let vma = guard.vma_lookup(usize::try_from(addr).ok()?)?;
    if vma.flags() & SPECIAL != 0 || vma.flags() & NEEDED != NEEDED {
        return None;
    }
    // SAFETY: The area is valid while the mmap lock is held.
    let file = unsafe { (*vma.as_ptr()).vm_file };
    Some((vma.end() as u64, file))
}

/// Whether the caller may lock `bytes` more, now or later, as type1 checks it
/// when it pins (`vfio_lock_acct()`, `mm_lock_acct()`).
pub(crate) fn may_lock(bytes: u64) -> bool {
    // SAFETY: Asks about the current task.
    if unsafe { bindings::capable(bindings::CAP_IPC_LOCK as i32) } {
        return true;
    }
    let task = current!();
    let Some(mm) = task.mm() else {
        return false;
    };
    // SAFETY: `mm` is valid; the other only looks at the current task.
    let (locked, limit) = unsafe {
        (
            bindings::total_locked(mm.as_raw()),
            bindings::memlock_limit(),
        )
    };
    (locked as u64).saturating_add(bytes / PAGE_SIZE as u64) <= limit as u64
}
