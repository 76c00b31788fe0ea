// SPDX-License-Identifier: GPL-2.0-only

//! Things that each occupy a range of addresses, sorted and without overlap.

use super::{
    range::Range,
    vec::{
        NoMemory,
        Vector, //
    },
};

/// Something that occupies a range of addresses, the same one for as long as it is in a map.
pub(crate) trait Ranged {
    /// The range.
    fn range(&self) -> Range;
}

/// Why something was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InsertError {
    /// A byte of it is in the map already (`EEXIST` of type1).
    Overlap,
    /// Its user addresses pass the end of the address space (`EINVAL`).
    Invalid,
    /// There was no memory (`ENOMEM`).
    NoMemory,
}

impl From<NoMemory> for InsertError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

/// A sorted array; finding is a binary search.
///
/// # Invariants
///
/// The ranges rise, and no two overlap.
#[derive(Debug)]
pub(crate) struct RangeMap<T>(Vector<T>);

impl<T: Ranged> RangeMap<T> {
    /// An empty map, without an allocation.
    pub(crate) const fn new() -> Self {
        Self(Vector::new())
    }

    /// Adds `item`.
    pub(crate) fn insert(&mut self, item: T) -> Result<(), InsertError> {
        let (first, end) = self.overlapping_indices(item.range());
        if first < end {
            return Err(InsertError::Overlap);
        }
        Ok(self.0.try_insert(first, item)?)
    }

    /// Drops what lies wholly inside `range`.
    pub(crate) fn remove(&mut self, range: Range) {
        let (first, end) = self.covered_indices(range);
        self.0.remove_range(first, end);
    }

    /// What shares a byte with `range`, in rising order.
    pub(crate) fn overlapping(&self, range: Range) -> &[T] {
        let (first, end) = self.overlapping_indices(range);
        self.0.get(first..end).unwrap_or_default()
    }

    /// What shares a byte with `range`, in rising order; the ranges must stay as they are.
    pub(crate) fn overlapping_mut(&mut self, range: Range) -> &mut [T] {
        let (first, end) = self.overlapping_indices(range);
        self.0.get_mut(first..end).unwrap_or_default()
    }

    /// What lies wholly inside `range`, in rising order.
    pub(crate) fn covered(&self, range: Range) -> &[T] {
        let (first, end) = self.covered_indices(range);
        self.0.get(first..end).unwrap_or_default()
    }

    /// Whether an end of `range` falls strictly inside an item.
    pub(crate) fn bisects(&self, range: Range) -> bool {
        let cut =
            |item: &T| item.range().is_cut_by(range.start()) || item.range().is_cut_by(range.end());
        self.overlapping(range).iter().any(cut)
    }

    /// What is at `addr`.
    pub(crate) fn at(&self, addr: u64) -> Option<&T> {
        let index = self.0.partition_point(|item| item.range().end() <= addr);
        self.0.get(index).filter(|item| item.range().contains(addr))
    }

    /// All of it, in rising order.
    pub(crate) fn all(&self) -> &[T] {
        &self.0
    }

    /// `first..end` of what shares a byte with `range`.
    fn overlapping_indices(&self, range: Range) -> (usize, usize) {
        (
            self.0
                .partition_point(|item| item.range().end() <= range.start()),
            self.0
                .partition_point(|item| item.range().start() < range.end()),
        )
    }

    /// `first..end` of what lies wholly inside `range`.
    fn covered_indices(&self, range: Range) -> (usize, usize) {
        let first = self
            .0
            .partition_point(|item| item.range().start() < range.start());
        let end = self
            .0
            .partition_point(|item| item.range().end() <= range.end());
        // A range strictly inside one item has `end < first`.
        (first, end.max(first))
    }
}
