// SPDX-License-Identifier: GPL-2.0-only

//! NUMA nodes, and how much memory they have.
//!
//! C header: [`include/linux/mmzone.h`](srctree/include/linux/mmzone.h),
//! [`include/linux/nodemask.h`](srctree/include/linux/nodemask.h)

use crate::bindings;
use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};

/// A node that has memory, or had it when it was looked up: its data stays in any case.
///
/// # Invariants
///
/// It is a number that the kernel has given to a node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Node(c_int);

impl Node {
    /// The nodes that have memory.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        // SAFETY: Any number from -1 on is good; where there is no next one, the answer is
        // MAX_NUMNODES.
        let next = |node: &c_int| Some(unsafe { bindings::next_memory_node(*node) });
        core::iter::successors(next(&-1), next)
            .take_while(|node| *node < bindings::MAX_NUMNODES as c_int)
            // INVARIANT: The kernel has just named it.
            .map(Self)
    }

    /// How many numbers there are for nodes.
    pub(crate) fn numbers() -> usize {
        // SAFETY: Has no preconditions.
        unsafe { bindings::node_numbers() as usize }
    }

    /// # Safety
    ///
    /// `node` must be a number that the kernel has given to a node.
    pub(crate) unsafe fn from_raw(node: c_int) -> Self {
        // INVARIANT: As the caller promises.
        Self(node)
    }

    /// The kernel's number for it.
    pub(crate) fn id(self) -> c_int {
        self.0
    }

    /// The same as an index of a table with [`Node::numbers`] rows.
    pub(crate) fn index(self) -> usize {
        usize::try_from(self.0).unwrap_or(0)
    }

    /// How many pages it has, free or not.
    pub(crate) fn present(self) -> u64 {
        // SAFETY: By the invariant there is such a node.
        unsafe { bindings::node_present_pages(self.0) as u64 }
    }

    /// Of `bytes`, those that fall to this node if `present` is the number of pages of all.
    pub(crate) fn share(self, bytes: u64, present: u64) -> u64 {
        let pages = bytes / PAGE_SIZE as u64;
        let share = pages.saturating_mul(self.present()).checked_div(present);
        share.unwrap_or(0).saturating_mul(PAGE_SIZE as u64)
    }

    /// How many pages are free beyond the high watermarks, less than none if there are fewer.
    pub(crate) fn margin(self) -> i64 {
        // SAFETY: By the invariant there is such a node.
        unsafe { bindings::node_spare(self.0, 0) as i64 }
    }

    /// How many bytes are free beyond the high watermarks, in zones that end above `lowest`.
    pub(crate) fn spare(self, lowest: u64) -> u64 {
        // SAFETY: By the invariant there is such a node.
        let pages = unsafe { bindings::node_spare(self.0, lowest) };
        let pages = u64::try_from(pages).unwrap_or(0);
        pages.saturating_mul(PAGE_SIZE as u64)
    }

    /// Counts so many pages of it as memory that the kernel can reclaim; fewer if negative.
    pub(crate) fn count_reclaimable(self, pages: i64) {
        // SAFETY: By the invariant there is such a node.
        unsafe {
            bindings::mod_node_page_state(
                bindings::node_data_of(self.0),
                bindings::node_stat_item_NR_KERNEL_MISC_RECLAIMABLE,
                pages as c_long,
            );
        }
    }

    /// The end of the node's memory that an allocation with the flags `gfp` can use.
    pub(crate) fn end(self, gfp: bindings::gfp_t) -> u64 {
        // SAFETY: By the invariant there is such a node.
        unsafe { bindings::node_end(self.0, gfp) }
    }
}
