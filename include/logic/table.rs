// SPDX-License-Identifier: GPL-2.0-only

//! The ballooned table: which deferred guest RAM of a container is in the balloon, which is mapped.
//!
//! A *block* is one `VFIO_IOMMU_MAP_DMA` call that was deferred; it holds *extents*, the longest
//! runs of bytes in one [`ExtentState`].  Blocks and extents are sorted, so finding one is a binary
//! search; what an operation costs beyond that is linear in the extents of the blocks that it
//! touches.  Adding and removing a block costs no more where there are many ([`super::range_map`]).
//!
//! # Memory
//!
//! An extent takes 16 bytes.  A guest that inflates as a guest does has a few dozen of them.  The
//! worst it can do is to alternate states in every granule of 2 MiB: 16 bytes for 2 MiB of its
//! own RAM, 2.8 MiB for 350 GiB, at most twice that since arrays grow by doubling, and each further
//! cut moves half of it, in tens of microseconds.  All of it is charged to the VM's memory cgroup
//! and given back with the block.
//!
//! # Failure
//!
//! An operation that returns [`NoMemory`] has changed nothing.

use super::{
    extents::Extents,
    memory_map::UserRange,
    range::{
        Align,
        Range, //
    },
    range_map::{
        InsertError,
        RangeMap,
        Ranged, //
    },
    state::{
        ExtentState,
        Place,
        Progress,
        Totals,
        Want, //
    },
    sum::less,
    vec::NoMemory,
};

/// A chunk inside the range is being mapped: wait until it is back, then try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Busy;

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    /// The bytes of the removed blocks: what user space is told for them.
    pub(crate) bytes: u64,
    /// The part of `bytes` that was mapped: what type1 counts for them.
    pub(crate) mapped: u64,
}

/// How much [`Table::take`] takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// A run of what is wanted.
    Wanted,
    /// All that is missing around it, wanted or not, between two multiples of the largest size:
    /// when mappings are getting scarce.  See [`super::budget`].
    Around,
}

/// A piece of guest RAM that its holder is going to map.
///
/// It comes from [`Table::take`] and has to go back through [`Table::complete`] or
/// [`Table::abort`]; until then its block cannot be removed.
#[derive(Debug)]
#[must_use = "a chunk that does not go back keeps its block busy for ever"]
pub(crate) struct Chunk(UserRange);

impl Chunk {
    /// Its IOVAs.
    pub(crate) fn range(&self) -> Range {
        self.0.range()
    }

    /// The VMM's user address of its first byte; the others follow without a gap.
    pub(crate) fn vaddr(&self) -> u64 {
        self.0.vaddr()
    }
}

/// One deferred call.
#[derive(Debug)]
pub(crate) struct Block {
    user: UserRange,
    extents: Extents,
    /// Chunks of it that came back mapped.
    pieces: u64,
}

impl Block {
    /// The VMM's user address of its first byte.
    pub(crate) fn vaddr(&self) -> u64 {
        self.user.vaddr()
    }
}

impl Ranged for Block {
    fn range(&self) -> Range {
        self.user.range()
    }
}

/// The ballooned table of one container.
///
/// # Invariants
///
/// `totals` is the sum over all extents, `pieces` that over all blocks.
#[derive(Debug)]
pub(crate) struct Table {
    blocks: RangeMap<Block>,
    totals: Totals,
    pieces: u64,
}

impl Table {
    /// An empty table, without an allocation.
    pub(crate) const fn new() -> Self {
        Self {
            blocks: RangeMap::new(),
            totals: Totals::NONE,
            pieces: 0,
        }
    }

    /// Adds a block that the VMM mapped from `vaddr`; all of it is deferred, outside the balloon.
    pub(crate) fn insert(&mut self, range: Range, vaddr: u64) -> Result<(), InsertError> {
        let state = ExtentState::Unmapped(Place::Outside);
        self.blocks.insert(Block {
            user: UserRange::new(range, vaddr).ok_or(InsertError::Invalid)?,
            extents: Extents::new(range, state)?,
            pieces: 0,
        })?;
        self.totals.add(state, range.len());
        Ok(())
    }

    /// Removes the blocks that lie wholly inside `range`.
    ///
    /// Changes nothing if a chunk of one of them is out.
    pub(crate) fn remove(&mut self, range: Range) -> Result<Removed, Busy> {
        let mut sums = Totals::NONE;
        let mut pieces: u64 = 0;
        for block in self.blocks.covered(range) {
            pieces = pieces.saturating_add(block.pieces);
            for (part, state) in block.extents.iter() {
                sums.add(state, part.len());
            }
        }
        if sums.mapping_outside | sums.mapping_balloon != 0 {
            return Err(Busy);
        }
        self.blocks.remove(range);
        self.totals.remove(&sums);
        self.pieces = less(self.pieces, pieces);
        Ok(Removed {
            bytes: sums.bytes(),
            mapped: sums.mapped,
        })
    }

    /// Whether a byte of `range` is in the table.
    pub(crate) fn overlaps(&self, range: Range) -> bool {
        self.blocks.overlaps(range)
    }

    /// Whether an end of `range` falls strictly inside a block: `EINVAL` by the rules of
    /// `VFIO_TYPE1v2_IOMMU`, which unmaps whole mappings only.
    pub(crate) fn bisects(&self, range: Range) -> bool {
        self.blocks.bisects(range)
    }

    /// The blocks that lie wholly inside `range`, in rising order.
    pub(crate) fn covered(&self, range: Range) -> impl Iterator<Item = &Block> {
        self.blocks.covered(range)
    }

    /// The guest gave up `range`: what is not mapped of it is now in the balloon.
    ///
    /// Bytes that are in no block are ignored, and saying it twice changes nothing.  Returns the
    /// number of bytes that are newly in the balloon, those of chunks that are out included.
    pub(crate) fn inflate(&mut self, range: Range) -> Result<u64, NoMemory> {
        self.update(range, ExtentState::inflated)
    }

    /// The balloon device was reset: nothing is in the balloon any more.
    pub(crate) fn reset(&mut self) {
        self.settle(Range::ALL, ExtentState::outside);
    }

    /// Takes the lowest wanted piece inside `within` for mapping.
    ///
    /// The piece lies in one block and crosses no multiple of `max`.  It can span deferred and
    /// ballooned extents; each part remembers which it was.  Pieces that are out never overlap.
    /// To walk a fragmented table in linear time, go on with a `within` that starts at the end of
    /// the last piece.
    ///
    /// `extent` says what is taken along: see [`Take`].
    pub(crate) fn take(
        &mut self,
        want: Want,
        within: Range,
        max: Align,
        extent: Take,
    ) -> Result<Option<Chunk>, NoMemory> {
        for block in self.blocks.overlapping_mut(within) {
            let Some(run) = block.extents.find(want, within, max) else {
                continue;
            };
            let range = match extent {
                Take::Wanted => run,
                Take::Around => block.extents.around(run, max),
            };
            block.extents.reserve_cuts()?;
            block
                .extents
                .update(range, &mut self.totals, ExtentState::taken)?;
            let vaddr = block.user.translate(range.start());
            return Ok(vaddr.and_then(|v| UserRange::new(range, v)).map(Chunk));
        }
        Ok(None)
    }

    /// Whether [`Table::take`] would find a piece.
    pub(crate) fn has(&self, want: Want, within: Range) -> bool {
        let blocks = self.blocks.overlapping(within);
        let max = Align::of_shift(63);
        let mut found = blocks.map(|block| block.extents.find(want, within, max));
        found.any(|found| found.is_some())
    }

    /// Brings back a chunk that is in the IOMMU now (`ok`), or that could not be mapped.
    ///
    /// Never allocates.
    pub(crate) fn complete(&mut self, chunk: Chunk, ok: bool) {
        self.settle(chunk.range(), |state| state.completed(ok));
        if ok {
            for block in self.blocks.overlapping_mut(chunk.range()) {
                block.pieces = block.pieces.saturating_add(1);
                self.pieces = self.pieces.saturating_add(1);
            }
        }
    }

    /// Brings back a chunk without a try: its parts are what they were.
    ///
    /// Never allocates.
    pub(crate) fn abort(&mut self, chunk: Chunk) {
        self.settle(chunk.range(), ExtentState::aborted);
    }

    /// Lets what failed inside `range` be taken again.  Returns its bytes.
    pub(crate) fn retry(&mut self, range: Range) -> Result<u64, NoMemory> {
        self.update(range, ExtentState::retried)
    }

    /// How far `range` is from what is wanted; what is in no block counts as done.
    ///
    /// For the whole table, [`Totals::status`] of [`Table::totals`] says the same at once.
    pub(crate) fn status(&self, want: Want, range: Range) -> Progress {
        let blocks = self.blocks.overlapping(range);
        let each = blocks.map(|b| b.extents.status(want, range));
        each.max().unwrap_or(Progress::Done)
    }

    /// The bytes by state.
    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    /// The mappings that the blocks consist of now.
    pub(crate) fn pieces(&self) -> u64 {
        self.pieces
    }

    /// The fewest mappings that the blocks can be made of that lie wholly inside `range`, in
    /// pieces that cross no multiple of `max`; takes time with their number.
    pub(crate) fn windows(&self, range: Range, max: Align) -> u64 {
        let windows = self.covered(range).map(|block| block.range().windows(max));
        windows.fold(0, u64::saturating_add)
    }

    /// The number of blocks.
    pub(crate) fn block_count(&self) -> usize {
        self.blocks.len()
    }

    /// The number of extents; takes time with the number of blocks.
    pub(crate) fn extent_count(&self) -> usize {
        self.blocks.iter().map(|b| b.extents.count()).sum()
    }

    /// The block that has `iova`, and where it is in the VMM.
    pub(crate) fn at(&self, iova: u64) -> Option<UserRange> {
        self.blocks.at(iova).map(|block| block.user)
    }

    /// The block that is all of `range` has another address in the VMM now.
    pub(crate) fn moved(&mut self, range: Range, vaddr: u64) {
        let mut blocks = self.blocks.overlapping_mut(range);
        let block = blocks.find(|block| block.range() == range);
        if let (Some(block), Some(user)) = (block, UserRange::new(range, vaddr)) {
            block.user = user;
        }
    }

    /// All extents in rising order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Range, ExtentState)> + '_ {
        self.blocks.iter().flat_map(|b| b.extents.iter())
    }

    /// Reserves first and changes then, so that running out of memory changes nothing.
    fn update(
        &mut self,
        range: Range,
        next: fn(ExtentState) -> ExtentState,
    ) -> Result<u64, NoMemory> {
        for block in self.blocks.overlapping_mut(range) {
            block.extents.reserve_cuts()?;
        }
        let mut changed: u64 = 0;
        for block in self.blocks.overlapping_mut(range) {
            let bytes = block.extents.update(range, &mut self.totals, next)?;
            changed = changed.saturating_add(bytes);
        }
        Ok(changed)
    }

    /// Changes extents that lie wholly inside `range`.
    fn settle(&mut self, range: Range, next: impl Fn(ExtentState) -> ExtentState) {
        for block in self.blocks.overlapping_mut(range) {
            block.extents.settle(range, &mut self.totals, &next);
        }
    }
}
