// SPDX-License-Identifier: GPL-2.0-only

//! Where a VM's RAM is in its VMM: IOVA to user address, of every `VFIO_IOMMU_MAP_DMA` of plain RAM.
//!
//! The balloon device finds its rings through it.  Deferred or not makes no difference: the VMM
//! can reach its memory without an IOMMU.

use super::{
    range::Range,
    range_map::{
        InsertError,
        RangeMap,
        Ranged, //
    },
};

/// A range of IOVAs and the user address of its first byte.
///
/// # Invariants
///
/// The user addresses do not pass the end of the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UserRange {
    range: Range,
    vaddr: u64,
}

impl UserRange {
    /// `None` if the user addresses pass the end of the address space.
    pub(crate) fn new(range: Range, vaddr: u64) -> Option<Self> {
        Range::from_len(vaddr, range.len())?;
        Some(Self { range, vaddr })
    }

    /// The user address of the first byte.
    pub(crate) fn vaddr(&self) -> u64 {
        self.vaddr
    }

    /// What of it lies inside `within`.
    pub(crate) fn part(&self, within: Range) -> Option<Self> {
        let range = self.range.intersect(within)?;
        let vaddr = self.translate(range.start())?;
        Some(Self { range, vaddr })
    }

    /// The user address of `iova`, if that is inside.
    pub(crate) fn translate(&self, iova: u64) -> Option<u64> {
        if !self.range.contains(iova) {
            return None;
        }
        self.vaddr
            .checked_add(iova.checked_sub(self.range.start())?)
    }
}

impl Ranged for UserRange {
    fn range(&self) -> Range {
        self.range
    }
}

/// The map of one VM: 24 bytes for each call that is in force.
#[derive(Debug)]
pub(crate) struct MemoryMap(RangeMap<UserRange>);

impl MemoryMap {
    /// An empty map, without an allocation.
    pub(crate) const fn new() -> Self {
        Self(RangeMap::new())
    }

    /// Adds `range`, which the VMM mapped from `vaddr`.
    pub(crate) fn insert(&mut self, range: Range, vaddr: u64) -> Result<(), InsertError> {
        let entry = UserRange::new(range, vaddr).ok_or(InsertError::Invalid)?;
        self.0.insert(entry)
    }

    /// Removes the entries whose ranges `keep` does not want.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(Range) -> bool) {
        let mut from = 0;
        while let Some(range) = self.entries().get(from).map(|entry| entry.range()) {
            if keep(range) {
                from = from.saturating_add(1);
            } else {
                self.0.remove(range);
            }
        }
    }

    /// The user address of `iova`, and how many of the `len` bytes from there lie behind it
    /// without a gap; never 0, but fewer than `len` where an entry ends: ask again from there.
    pub(crate) fn translate(&self, iova: u64, len: u64) -> Option<(u64, u64)> {
        let part = self.0.at(iova)?.part(Range::clamped(iova, len)?)?;
        Some((part.vaddr, part.range.len()))
    }

    /// All entries in rising order.
    pub(crate) fn entries(&self) -> &[UserRange] {
        self.0.all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn r(start: u64, end: u64) -> Range {
        Range::new(start, end).unwrap()
    }

    fn map() -> MemoryMap {
        let mut map = MemoryMap::new();
        map.insert(r(0x2000, 0x4000), 0x7000).unwrap();
        map.insert(r(0, 0x2000), 0x1_0000).unwrap();
        map.insert(r(0x5000, 0x6000), 0x9000).unwrap();
        map
    }

    #[test]
    fn translate() {
        let map = map();
        assert_eq!(map.translate(0, 8), Some((0x1_0000, 8)));
        assert_eq!(map.translate(0x1ffc, 8), Some((0x1_1ffc, 4)));
        assert_eq!(map.translate(0x2000, 8), Some((0x7000, 8)));
        assert_eq!(map.translate(0x3fff, u64::MAX), Some((0x8fff, 1)));
        assert_eq!(map.translate(0x4000, 1), None);
        assert_eq!(map.translate(0x5fff, 0), None);
        assert_eq!(map.translate(u64::MAX, 1), None);
    }

    #[test]
    fn insert_is_checked() {
        let mut map = map();
        assert_eq!(map.insert(r(0x3fff, 0x4001), 0), Err(InsertError::Overlap));
        assert_eq!(map.insert(Range::ALL, 0), Err(InsertError::Overlap));
        assert_eq!(
            map.insert(r(0x4000, 0x5000), u64::MAX - 0xffe),
            Err(InsertError::Invalid)
        );
        crate::logic::vec::injection::fail_after(0);
        assert_eq!(map.insert(r(0x4000, 0x5000), 0), Err(InsertError::NoMemory));
        assert_eq!(map.entries().len(), 3);
    }

    #[test]
    fn retain() {
        let mut map = map();
        map.retain(|range| range != r(0x2000, 0x4000));
        assert_eq!(map.translate(0x2000, 1), None);
        assert_eq!(map.entries().len(), 2);
        map.retain(|_| true);
        assert_eq!(map.entries().len(), 2);
        map.retain(|_| false);
        assert!(map.entries().is_empty());
    }
}
