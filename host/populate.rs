// SPDX-License-Identifier: GPL-2.0-only

//! Faulting guest memory in before type1 pins it.
//!
//! type1 allocates, clears, pins and maps under one mutex per container. Of these,
//! allocating and clearing take nearly all the time, and need no lock of type1: done
//! here, by several threads at once, they leave type1 little to do.
//!
//! Nothing is written: pages are pinned as if for a device's writes and let go at
//! once, which makes the kernel provide them as it would for type1, by the policy
//! (NUMA, cpuset, memory cgroup, THP, hugetlb) that holds for the VMM's memory.
//!
//! Source: `Documentation/core-api/pin_user_pages.rst`, `mm/gup.c`. No locks are
//! held; the mmap lock is taken for reading.

use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};

use crate::{
    bindings,
    logic::range::{
        Align,
        Range, //
    }, //
};

/// Between two looks at whether to go on: the pages of one PMD.
const BATCH: Align = Align::of_shift(21);
const BATCH_PAGES: usize = BATCH.bytes() as usize / PAGE_SIZE;

/// How it ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Populated {
    /// As far as it can be: what is still missing, type1 will say why.
    Done,
    /// The caller did not want to go on.
    Interrupted,
}

/// Provides pages for the user addresses `vaddrs` of `current->mm`, in rising order.
///
/// `go_on` is asked before each 2 MiB. Errors: `ENOMEM` without memory for 4 KiB.
/// Context: a thread of the VM's process, may sleep; comes back soon after a fatal
/// signal.
pub(crate) fn populate(vaddrs: Range, mut go_on: impl FnMut() -> bool) -> Result<Populated> {
    let mut pages = KVec::from_elem(Page(core::ptr::null_mut()), BATCH_PAGES, GFP_KERNEL)?;
    let mut at = vaddrs.start();
    while at < vaddrs.end() {
        if !go_on() {
            return Ok(Populated::Interrupted);
        }
        let end = BATCH.next_boundary(at).min(vaddrs.end());
        let wanted = ((end - at) as usize).div_ceil(PAGE_SIZE).min(pages.len());
        let Some(count) = touch(at, pages.get_mut(..wanted).ok_or(EINVAL)?) else {
            // A hole, a file that ends, no memory, a signal.
            return Ok(Populated::Done);
        };
        at = at.saturating_add((count * PAGE_SIZE) as u64);
    }
    Ok(Populated::Done)
}

/// `struct page *`.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Page(*mut bindings::page);

/// Makes pages from `addr` on present and writable, at most as many as `pages` has
/// room for; returns how many, at least one, or `None` on failure.
fn touch(addr: u64, pages: &mut [Page]) -> Option<usize> {
    let flags = bindings::FOLL_WRITE | bindings::FOLL_LONGTERM;
    let list = pages.as_mut_ptr().cast::<*mut bindings::page>();
    // SAFETY: `list` has room for `pages.len()` pointers, at most BATCH_PAGES; any
    // address of the current mm may be asked for.
    let count =
        unsafe { bindings::pin_user_pages_fast(addr as usize, pages.len() as i32, flags, list) };
    let count = usize::try_from(count).ok().filter(|count| *count > 0)?;
    // SAFETY: The first `count` pages were pinned by the call above.
    unsafe { bindings::unpin_user_pages(list, count) };
    Some(count)
}
