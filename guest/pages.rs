// SPDX-License-Identifier: GPL-2.0-only

//! The memory in the balloon: 2 MiB blocks from the page allocator.
//!
//! Nobody may touch a page in here: the host has not backed it yet, and would have to.
//!
//! C header: [`include/linux/gfp.h`](srctree/include/linux/gfp.h),
//! [`include/linux/mm.h`](srctree/include/linux/mm.h)

use crate::{
    bindings,
    logic::{
        protocol::GRANULE,
        range::{
            Align,
            Range, //
        },
        range_set::RangeSet, //
    },
    node::Node,
    zeroing, //
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// The allocation order of a block: [`GRANULE`] bytes.
const ORDER: c_uint = (GRANULE.bytes() / PAGE_SIZE as u64).trailing_zeros();
const _: () = assert!((PAGE_SIZE as u64) << ORDER == GRANULE.bytes());

/// From this node alone, from what is free, without waking anybody up to free more.
///
/// Not `__GFP_MOVABLE`: the blocks are not. Claiming a whole page block at a time, they do not
/// fragment memory either.
const GFP: bindings::gfp_t = 1 << bindings::___GFP_THISNODE_BIT
    | 1 << bindings::___GFP_NOMEMALLOC_BIT
    | 1 << bindings::___GFP_NORETRY_BIT
    | bindings::__GFP_HIGHMEM
    | bindings::__GFP_NOWARN;

/// Blocks to take between two chances for others to run.
const BATCH: u32 = 64;

/// Bytes in all balloons of this kernel.
static HELD: Atomic<u64> = Atomic::new(0);

/// A block that is allocated and in no balloon; dropping it frees it.
///
/// # Invariants
///
/// It is the first page of [`GRANULE`] bytes, aligned to as many, that the page allocator has given
/// to us in one piece.
struct Block(*mut bindings::page);

// SAFETY: Any thread may free a page, and account for it.
unsafe impl Send for Block {}

impl Block {
    /// Takes a block of `node`. Does not sleep.
    fn new(node: Node) -> Option<Self> {
        // SAFETY: The node has memory; the flags ask for nothing that this context forbids.
        let page = unsafe { bindings::alloc_block(node.id(), GFP, ORDER) };
        // INVARIANT: The page allocator aligns blocks to their size. Not then_some(): it would make
        // a block of nothing, and free it.
        (!page.is_null()).then(|| Self(page))
    }

    fn range(&self) -> Option<Range> {
        // SAFETY: By the invariants this is a page.
        Range::from_len(unsafe { bindings::page_to_phys(self.0) }, GRANULE.bytes())
    }

    /// The address at which the block's zone ends.
    fn zone_end(&self) -> u64 {
        // SAFETY: By the invariants this is a page, so that it has a zone.
        unsafe { bindings::page_zone_end(self.0) }
    }

    /// Shows the block as ballooned, or as ordinary again, in statistics and to crash dumps.
    ///
    /// A dump that read a page in the balloon would make the host back it, so makedumpfile must see
    /// each of them as offline, as in the balloon of the stock driver.
    fn account(&self, ballooned: bool) {
        const COUNT: u32 = 1 << ORDER;
        let change = if ballooned {
            COUNT as c_long
        } else {
            -(COUNT as c_long)
        };
        // SAFETY: By the invariants there are this many pages, next to each other in the memory map
        // and in one node, and they are ours.
        unsafe {
            bindings::set_pages_offline(self.0, COUNT, ballooned);
            bindings::mod_node_page_state(
                bindings::page_pgdat(self.0),
                bindings::node_stat_item_NR_BALLOON_PAGES,
                change,
            );
        }
    }
}

/// Counts bytes of a node as reclaimable, or no longer: who wants them gets them from the balloon,
/// and `MemAvailable` is what programs decide by whether memory is short.
fn count_reclaimable(node: Node, bytes: u64, ballooned: bool) {
    let pages = (bytes / PAGE_SIZE as u64) as i64;
    if ballooned {
        HELD.fetch_add(bytes, Relaxed);
        node.count_reclaimable(pages);
    } else {
        HELD.fetch_sub(bytes, Relaxed);
        node.count_reclaimable(-pages);
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: By the invariants it is ours to free, with this order.
        unsafe { bindings::__free_pages(self.0, ORDER) }
    }
}

/// Which memory somebody is short of.
#[derive(Clone, Copy)]
pub(crate) struct Need {
    /// It must be of this node, if any is named.
    pub(crate) node: Option<Node>,
    /// It must lie below this address.
    pub(crate) below: u64,
}

impl Need {
    /// Any memory will do.
    pub(crate) const ANY: Self = Self {
        node: None,
        below: u64::MAX,
    };
}

/// What a balloon holds of one node.
struct Part {
    node: Node,
    set: RangeSet,
    /// What nobody wants of what the allocator gave, kept so as not to get it again.
    rejected: KVec<Block>,
}

impl Part {
    fn start(&self) -> Option<u64> {
        self.set.ranges().first().map(|range| range.start())
    }

    /// How many bytes more can be taken so that each zone stays above its high watermark, where
    /// reclaim rests, and `share` bytes of the node available.
    fn room(&self, lowest: u64, share: u64) -> u64 {
        let unused = (self.rejected.len() as u64).saturating_mul(GRANULE.bytes());
        let rest = self.node.spare(0).saturating_add(unused);
        rest.saturating_sub(share).min(self.node.spare(lowest))
    }

    /// Takes a block, or rejects it; false when there are no more worth having.
    fn take_one(&mut self, lowest: u64) -> bool {
        let Some(block) = Block::new(self.node) else {
            return false;
        };
        let Some(range) = block.range() else {
            return false;
        };
        if range.start() < lowest {
            // The allocator turns to a lower zone when a higher one is down to its watermark. If
            // all of that zone is too low, so is all that is left.
            return block.zone_end() > lowest && self.rejected.push(block, GFP_KERNEL).is_ok();
        }
        if self.set.insert(range).is_err() {
            return false;
        }
        block.account(true);
        // INVARIANT: It is accounted, and nobody else will free it.
        core::mem::forget(block);
        true
    }
}

/// The blocks in the balloon, as ranges of guest-physical addresses, node by node.
///
/// Dropping it gives all of them back to the page allocator, so the device must have been reset.
///
/// # Invariants
///
/// The sets are made of whole blocks, each of them forgotten as a [`Block`] and accounted as
/// ballooned, in the set of its node. They count as reclaimable but while `take` runs.
pub(crate) struct Blocks(KVec<Part>);

impl Blocks {
    /// None.
    pub(crate) const fn new() -> Self {
        Self(KVec::new())
    }

    /// What is in the balloon, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.iter().map(|part| part.set.bytes()).sum()
    }

    /// The same as few ranges: those of a node rise, and do not touch.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = Range> + '_ {
        self.0
            .iter()
            .flat_map(|part| part.set.ranges().iter().copied())
    }

    /// Of each node, how many bytes are in the balloon, and where they begin.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (Node, u64, Option<u64>)> + '_ {
        self.0
            .iter()
            .map(|part| (part.node, part.set.bytes(), part.start()))
    }

    /// The node with the kernel's number `id`, if memory of it is in the balloon.
    pub(crate) fn node(&self, id: c_int) -> Option<Node> {
        let part = self.0.iter().find(|part| part.node.id() == id)?;
        part.start().map(|_| part.node)
    }

    /// The node with the lowest memory in the balloon.
    pub(crate) fn lowest_node(&self) -> Option<Node> {
        let parts = self.0.iter().filter(|part| part.start().is_some());
        parts.min_by_key(|part| part.start()).map(|part| part.node)
    }

    /// Of the nodes with memory in the balloon, that which is shortest of memory.
    pub(crate) fn shortest_node(&self) -> Option<Node> {
        let parts = self.0.iter().filter(|part| part.start().is_some());
        parts
            .min_by_key(|part| part.node.margin())
            .map(|part| part.node)
    }

    /// The lowest `bytes` bytes of it on `node`; none if they are not below `below`.
    pub(crate) fn lowest(
        &self,
        node: Node,
        bytes: u64,
        below: u64,
    ) -> impl Iterator<Item = Range> + '_ {
        let part = self.0.iter().find(|part| part.node == node);
        part.filter(|part| part.start().is_some_and(|start| start < below))
            .into_iter()
            .flat_map(move |part| part.set.lowest(bytes))
    }

    /// Takes free memory from `lowest` up until there are `target` bytes, or as much as possible
    /// while `reserve` bytes stay available.
    ///
    /// From all nodes alike: each keeps its part of the reserve, and in each zone as much free
    /// memory as reclaim would see to, so that drivers that come next find local memory. May sleep.
    ///
    /// Takes nothing, or no more, where the allocator zeroes what it hands out; see [`zeroing`] for
    /// what `skip_zeroing` does about that. A page that is zeroed is one that the host has to
    /// provide and map before anybody goes on, one after the other, while all the host's threads
    /// do the same for memory that is not in a balloon.
    pub(crate) fn take(&mut self, target: u64, lowest: u64, reserve: u64, skip_zeroing: bool) {
        let Some(paused) = zeroing::pause(skip_zeroing) else {
            return;
        };
        for node in Node::all() {
            let part = Part {
                node,
                set: RangeSet::new(),
                rejected: KVec::new(),
            };
            if self.0.push(part, GFP_KERNEL).is_err() {
                return;
            }
        }
        let present = Node::all().map(Node::present).sum();
        // Anew each time: others allocate as well, and start processes.
        while paused.may_go_on() && self.take_round(target, lowest, reserve, present) {}
        for part in &mut self.0 {
            part.rejected = KVec::new();
            // Not before: what is available is asked for in each round.
            count_reclaimable(part.node, part.set.bytes(), true);
        }
    }

    /// Takes a few blocks of each node; false if there were none to take.
    fn take_round(&mut self, target: u64, lowest: u64, reserve: u64, present: u64) -> bool {
        let rejected: usize = self.0.iter().map(|part| part.rejected.len()).sum();
        let unused = (rejected as u64).saturating_mul(GRANULE.bytes());
        let mut left = target.saturating_sub(self.bytes());
        let mut spare = available().saturating_add(unused).saturating_sub(reserve);
        let before = spare;
        for part in &mut self.0 {
            let share = part.node.share(reserve, present);
            let mut room = part.room(lowest, share);
            for _ in 0..BATCH {
                let held = part.set.bytes();
                if left.min(spare).min(room) < GRANULE.bytes() || !part.take_one(lowest) {
                    break;
                }
                left = left.saturating_sub(part.set.bytes().saturating_sub(held));
                spare = spare.saturating_sub(GRANULE.bytes());
                room = room.saturating_sub(GRANULE.bytes());
            }
            relax();
        }
        spare != before
    }

    /// Gives `range`, which must be in the balloon, back to the page allocator. May sleep.
    ///
    /// Fails with `EINVAL` for any other range, and never with `ENOMEM` for one that begins where
    /// one of [`Blocks::ranges`] does.
    pub(crate) fn release(&mut self, range: Range) -> Result {
        let part = self.0.iter_mut().find(|part| part.set.covers(range));
        let part = part.filter(|_| range.is_aligned(GRANULE)).ok_or(EINVAL)?;
        part.set.remove(range).map_err(|_| ENOMEM)?;
        count_reclaimable(part.node, range.len(), false);
        // SAFETY: Whole blocks of ours, by the invariant, and no longer in the set.
        unsafe { free(range) };
        Ok(())
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        for part in &self.0 {
            for range in part.set.ranges() {
                // SAFETY: Whole blocks of ours, by the invariant, and nobody uses the sets any more.
                unsafe { free(*range) };
            }
            count_reclaimable(part.node, part.set.bytes(), false);
        }
    }
}

/// Frees the blocks of `range`.
///
/// # Safety
///
/// They must fulfil the invariant of [`Blocks`] and be freed by nobody else.
unsafe fn free(range: Range) {
    let mut start = range.start();
    while start < range.end() {
        // INVARIANT: As the caller promises.
        // SAFETY: The page allocator gave us this page, so it has a `struct page`.
        let block = Block(unsafe { bindings::phys_to_page(start) });
        block.account(false);
        drop(block);
        start = GRANULE.next_boundary(start);
        if Align::of_shift(27).divides(start) {
            relax();
        }
    }
}

/// What can be allocated without swapping, in bytes, balloons apart, which count as reclaimable.
fn available() -> u64 {
    // SAFETY: Has no preconditions.
    let pages = unsafe { bindings::si_mem_available() };
    // Negative when the watermarks are not met.
    let pages = u64::try_from(pages).unwrap_or(0);
    let bytes = pages.saturating_mul(PAGE_SIZE as u64);
    bytes.saturating_sub(HELD.load(Relaxed))
}

/// Lets others run.
fn relax() {
    // SAFETY: Every caller is in process context and holds no spin lock.
    unsafe { bindings::cond_resched() };
}
