// SPDX-License-Identifier: GPL-2.0-only

//! Pages of user memory, made present as if for a device's writes.
//!
//! Source: `Documentation/core-api/pin_user_pages.rst`, `mm/gup.c`.

use crate::bindings;

/// Whether the page at the user address `addr` can be pinned; provides it.
///
/// Context: a thread of the VM's process, no locks held; may sleep.
pub(crate) fn can_pin(addr: u64) -> bool {
    touch(addr, &mut [Page::NONE]).is_some()
}

/// `struct page *`.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Page(*mut bindings::page);

impl Page {
    /// None yet.
    pub(crate) const NONE: Self = Self(core::ptr::null_mut());
}

/// Makes pages from `addr` on present and writable, at most as many as `pages` has
/// room for; returns how many, at least one, or `None` on failure.
pub(crate) fn touch(addr: u64, pages: &mut [Page]) -> Option<usize> {
    let flags = bindings::FOLL_WRITE | bindings::FOLL_LONGTERM;
    let list = pages.as_mut_ptr().cast::<*mut bindings::page>();
    // SAFETY: `list` has room for `pages.len()` pointers; any
    // address of the current mm may be asked for.
    let count =
        unsafe { bindings::pin_user_pages_fast(addr as usize, pages.len() as i32, flags, list) };
    let count = usize::try_from(count).ok().filter(|count| *count > 0)?;
    // SAFETY: The first `count` pages were pinned by the call above.
    unsafe { bindings::unpin_user_pages(list, count) };
    Some(count)
}
