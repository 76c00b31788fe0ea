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
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
};

use crate::{
    logic::range::{
        Align,
        Range, //
    },
    wrap::gup::{
        touch,
        Page, //
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

/// Memory that is to be provided, by one thread or by several at once.
pub(crate) struct Memory {
    vaddrs: Range,
    /// The number of the next batch.
    next: Atomic<u64>,
}

impl Memory {
    /// More than there are batches in an address space.
    const NO_MORE: u64 = 1 << (64 - 12);

    /// The user addresses `vaddrs`; nothing is done yet.
    pub(crate) fn new(vaddrs: Range) -> Self {
        Self {
            vaddrs,
            next: Atomic::new(0),
        }
    }

    /// The batch of a number.
    fn batch(&self, number: u64) -> Option<Range> {
        let first = BATCH.down(self.vaddrs.start());
        let start = first.saturating_add(number.saturating_mul(BATCH.bytes()));
        Range::clamped(start, BATCH.bytes())?.intersect(self.vaddrs)
    }

    /// Whether nobody has begun with some of it.
    pub(crate) fn is_left(&self) -> bool {
        self.batch(self.next.load(Relaxed)).is_some()
    }

    /// Nobody begins with more of it.
    pub(crate) fn stop(&self) {
        self.next.store(Self::NO_MORE, Relaxed);
    }

    /// Provides pages, in rising order, until all is there or others are at the rest.
    ///
    /// `go_on` is asked before each 2 MiB. Errors: `ENOMEM` without memory for 4 KiB.
    /// Context: a thread of the VM's process, may sleep; comes back soon after a fatal
    /// signal.
    pub(crate) fn populate(&self, mut go_on: impl FnMut() -> bool) -> Result<Populated> {
        let mut pages = KVec::from_elem(Page::NONE, BATCH_PAGES, GFP_KERNEL)?;
        loop {
            if !go_on() {
                return Ok(Populated::Interrupted);
            }
            let Some(batch) = self.batch(self.next.fetch_add(1, Relaxed)) else {
                return Ok(Populated::Done);
            };
            if !populate(batch, &mut pages) {
                // A hole, a file that ends, no memory, a signal.
                self.stop();
                return Ok(Populated::Done);
            }
        }
    }
}

/// Provides all pages of a batch; false where that is not possible.
fn populate(batch: Range, pages: &mut [Page]) -> bool {
    let mut at = batch.start();
    while at < batch.end() {
        let wanted = ((batch.end() - at) as usize).div_ceil(PAGE_SIZE);
        let wanted = wanted.min(pages.len());
        let Some(count) = pages.get_mut(..wanted).and_then(|pages| touch(at, pages)) else {
            return false;
        };
        at = at.saturating_add((count * PAGE_SIZE) as u64);
    }
    true
}
