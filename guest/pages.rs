// SPDX-License-Identifier: GPL-2.0-only

//! The memory in the balloon: 2 MiB blocks from the page allocator.
//!
//! Nobody may touch a page in here: the host has not backed it yet, and would have to.
//!
//! Lock order: `PAUSE`, one for all balloons, then those of the page allocator.
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
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        global_lock,
        GlobalGuard, //
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

/// Blocks to take or give between two chances for others to run.
const BATCH: u32 = 64;

global_lock! {
    // SAFETY: Initialised in `init`, before any balloon is filled.
    unsafe(uninit) static PAUSE: Mutex<()> = ();
}

/// Makes this file usable.
///
/// # Safety
///
/// Called once, at module initialisation, before any other function here.
pub(crate) unsafe fn init() {
    // SAFETY: As this function's.
    unsafe { PAUSE.init() };
}

/// While this lives, the page allocator does not zero what it hands out (`init_on_alloc`).
///
/// Zeroing a block would make the host back and zero it first, which is all that the balloon is
/// there to avoid. This holds for the whole kernel, so it must not take long: other users of the
/// allocator who do not ask for zeroes get what others have left behind meanwhile. Those who cannot
/// have that forbid it (`skip_zeroing`).
///
/// Large pages of processes are among them: the kernel zeroes these itself if the allocator has
/// not, but it asks for that a moment later (`user_alloc_needs_zeroing()`), and zeroing may have
/// resumed in between. No other user's memory may be seen that way, so this is for the time before
/// there are any: with a process of anybody but root nothing is paused.
///
/// There is nothing to gain with `init_on_free` and `page_poison`: with these the kernel has
/// written all of its memory at boot, so that the host has backed it by now.
struct ZeroingPaused {
    /// One balloon at a time: who disables it is who enables it.
    _guard: GlobalGuard<PAUSE>,
}

impl ZeroingPaused {
    /// `None`: nothing is zeroed, or it must be. May sleep.
    fn new() -> Option<Self> {
        let guard = PAUSE.lock();
        // SAFETY: The key lives as long as the kernel.
        if unsafe { bindings::static_key_count(Self::key()) } <= 0 {
            return None;
        }
        // SAFETY: Has no preconditions.
        if unsafe { bindings::users_but_root() } {
            pr_info!("not only root has processes: what is taken is zeroed, which takes longer\n");
            return None;
        }
        // SAFETY: As above, and the key is not read-only after boot: mm/mm_init.c defines it with
        // DEFINE_STATIC_KEY_MAYBE(). By the lock it is enabled still, as far as we are concerned.
        unsafe { bindings::static_key_disable(Self::key()) };
        Some(Self { _guard: guard })
    }

    fn key() -> *mut bindings::static_key {
        // SAFETY: This takes an address and reads nothing.
        unsafe { &raw mut bindings::init_on_alloc.key }
    }
}

impl Drop for ZeroingPaused {
    fn drop(&mut self) {
        // SAFETY: As in `new`.
        unsafe { bindings::static_key_enable(Self::key()) }
    }
}

/// A block that is allocated and in no balloon; dropping it frees it.
///
/// # Invariants
///
/// It is the first page of [`GRANULE`] bytes, aligned to as many, that the page allocator has given
/// to us in one piece.
struct Block(*mut bindings::page);

impl Block {
    /// Takes a block of `node`. Does not sleep.
    fn new(node: c_int) -> Option<Self> {
        // SAFETY: The node has memory; the flags ask for nothing that this context forbids.
        let page = unsafe { bindings::alloc_pages_node_noprof(node, GFP, ORDER) };
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

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: By the invariants it is ours to free, with this order.
        unsafe { bindings::__free_pages(self.0, ORDER) }
    }
}

/// The blocks in the balloon, as ranges of guest-physical addresses.
///
/// Dropping it gives all of them back to the page allocator, so the device must have been reset.
///
/// # Invariants
///
/// The set is made of whole blocks, each of them forgotten as a [`Block`] and accounted as ballooned.
pub(crate) struct Blocks(RangeSet);

impl Blocks {
    /// None.
    pub(crate) const fn new() -> Self {
        Self(RangeSet::new())
    }

    /// What is in the balloon, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    /// The same as few ranges, in rising order.
    pub(crate) fn ranges(&self) -> &[Range] {
        self.0.ranges()
    }

    /// The lowest `bytes` bytes of it.
    pub(crate) fn lowest(&self, bytes: u64) -> impl Iterator<Item = Range> + '_ {
        self.0.lowest(bytes)
    }

    /// Takes free memory from `lowest` up until there are `target` bytes, or as much as possible
    /// while `reserve` bytes stay available.
    ///
    /// From all nodes alike, so that each keeps its part of the rest. May sleep.
    ///
    /// With `skip_zeroing` the allocator does not zero what it hands out meanwhile, but for those
    /// who ask for it; see [`ZeroingPaused`] for when it does.
    pub(crate) fn take(&mut self, target: u64, lowest: u64, reserve: u64, skip_zeroing: bool) {
        // Kept until the end, so as not to get them again.
        let mut rejected = KVec::new();
        let _paused = skip_zeroing.then(ZeroingPaused::new).flatten();
        loop {
            // Anew each time: others allocate as well.
            let unused = (rejected.len() as u64).saturating_mul(GRANULE.bytes());
            let mut spare = available().saturating_add(unused).saturating_sub(reserve);
            let before = spare;
            for node in nodes() {
                for _ in 0..BATCH {
                    let left = target.saturating_sub(self.bytes());
                    if left.min(spare) < GRANULE.bytes()
                        || !self.take_one(node, lowest, &mut rejected)
                    {
                        break;
                    }
                    spare = spare.saturating_sub(GRANULE.bytes());
                }
                relax();
            }
            if spare == before {
                return;
            }
        }
    }

    /// Takes a block of `node`, or rejects it; false when there are no more worth having.
    fn take_one(&mut self, node: c_int, lowest: u64, rejected: &mut KVec<Block>) -> bool {
        let Some(block) = Block::new(node) else {
            return false;
        };
        let Some(range) = block.range() else {
            return false;
        };
        if range.start() < lowest {
            // The allocator turns to a lower zone when a higher one is down to its watermark. If
            // all of that zone is too low, so is all that is left.
            return block.zone_end() > lowest && rejected.push(block, GFP_KERNEL).is_ok();
        }
        if self.0.insert(range).is_err() {
            return false;
        }
        block.account(true);
        // INVARIANT: It is accounted, and nobody else will free it.
        core::mem::forget(block);
        true
    }

    /// Gives `range`, which must be in the balloon, back to the page allocator. May sleep.
    ///
    /// Fails with `EINVAL` for any other range, and never with `ENOMEM` for one that begins where
    /// one of [`Blocks::ranges`] does.
    pub(crate) fn release(&mut self, range: Range) -> Result {
        if !self.0.covers(range) || !range.is_aligned(GRANULE) {
            return Err(EINVAL);
        }
        self.0.remove(range).map_err(|_| ENOMEM)?;
        // SAFETY: Whole blocks of ours, by the invariant, and no longer in the set.
        unsafe { free(range) };
        Ok(())
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        for range in self.0.ranges() {
            // SAFETY: Whole blocks of ours, by the invariant, and nobody uses the set any more.
            unsafe { free(*range) };
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

/// What can be allocated without swapping, in bytes.
fn available() -> u64 {
    // SAFETY: Has no preconditions.
    let pages = unsafe { bindings::si_mem_available() };
    // Negative when the watermarks are not met.
    let pages = u64::try_from(pages).unwrap_or(0);
    pages.saturating_mul(PAGE_SIZE as u64)
}

/// The nodes that have memory.
fn nodes() -> impl Iterator<Item = c_int> {
    // SAFETY: Any number from -1 on is good; where there is no next one, the answer is MAX_NUMNODES.
    let next = |node: &c_int| Some(unsafe { bindings::next_memory_node(*node) });
    core::iter::successors(next(&-1), next)
        .take_while(|node| *node < bindings::MAX_NUMNODES as c_int)
}

/// Lets others run.
fn relax() {
    // SAFETY: Every caller is in process context and holds no spin lock.
    unsafe { bindings::cond_resched() };
}
