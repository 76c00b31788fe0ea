// SPDX-License-Identifier: GPL-2.0-only

//! A set of addresses as the fewest ranges.

use super::{
    range::Range,
    vec::{
        NoMemory,
        Vector, //
    },
};

/// A set of addresses: 16 bytes for each range that neighbours do not touch.
///
/// # Invariants
///
/// - The ranges rise, and no two overlap or touch.
/// - `bytes` is the sum of their lengths.
#[derive(Debug)]
pub(crate) struct RangeSet {
    ranges: Vector<Range>,
    bytes: u64,
}

impl RangeSet {
    /// An empty set, without an allocation.
    pub(crate) const fn new() -> Self {
        Self {
            ranges: Vector::new(),
            bytes: 0,
        }
    }

    /// Adds all of `range` and returns the number of bytes that are new.
    ///
    /// Takes time with the number of ranges above it, none if the additions rise.
    pub(crate) fn insert(&mut self, range: Range) -> Result<u64, NoMemory> {
        // Those that overlap or touch become one with it.
        let first = self.ranges.partition_point(|r| r.end() < range.start());
        let end = self.ranges.partition_point(|r| r.start() <= range.end());
        let old = self.ranges.get(first..end).unwrap_or_default();
        let merged = old.iter().fold(range, |hull, r| hull.hull(*r));
        let before = old.iter().map(|r| r.len()).fold(0, u64::saturating_add);
        match self.ranges.get_mut(first..end).and_then(<[_]>::first_mut) {
            Some(slot) => *slot = merged,
            None => self.ranges.try_insert(first, merged)?,
        }
        self.ranges.remove_range(first.saturating_add(1), end);
        let added = merged.len().saturating_sub(before);
        self.bytes = self.bytes.saturating_add(added);
        Ok(added)
    }

    /// Removes all of `range` and returns the number of bytes that were there.
    ///
    /// It fails only where it would cut one range into two.
    pub(crate) fn remove(&mut self, range: Range) -> Result<u64, NoMemory> {
        let first = self.ranges.partition_point(|r| r.end() <= range.start());
        let end = self.ranges.partition_point(|r| r.start() < range.end());
        let old = self.ranges.get(first..end).unwrap_or_default();
        let (Some(lowest), Some(highest)) = (old.first(), old.last()) else {
            return Ok(0);
        };
        let left = Range::new(lowest.start(), range.start());
        let right = Range::new(range.end(), highest.end());
        let removed = old.iter().filter_map(|r| r.intersect(range));
        let removed = removed.map(Range::len).fold(0, u64::saturating_add);
        if old.len() == 1 && left.is_some() && right.is_some() {
            self.ranges.try_reserve(1)?;
        }
        self.ranges.remove_range(first, end);
        for rest in [right, left].into_iter().flatten() {
            self.ranges.try_insert(first, rest)?;
        }
        self.bytes = self.bytes.saturating_sub(removed);
        Ok(removed)
    }

    /// Whether all of `range` is in the set.
    pub(crate) fn covers(&self, range: Range) -> bool {
        let index = self.ranges.partition_point(|r| r.end() <= range.start());
        self.ranges.get(index).is_some_and(|r| r.covers(range))
    }

    /// The ranges in rising order.
    pub(crate) fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// The lowest `bytes` bytes, in rising order; the last range may be a part of one of the set.
    pub(crate) fn lowest(&self, bytes: u64) -> impl Iterator<Item = Range> + '_ {
        let mut left = bytes;
        self.ranges.iter().map_while(move |range| {
            let part = Range::clamped(range.start(), left)?.intersect(*range)?;
            left = left.saturating_sub(part.len());
            Some(part)
        })
    }

    /// The number of bytes in the set.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Empties the set and keeps its memory.
    pub(crate) fn clear(&mut self) {
        self.ranges.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::vec::injection;

    fn r(start: u64, end: u64) -> Range {
        Range::new(start, end).unwrap()
    }

    fn set(ranges: &[(u64, u64)]) -> RangeSet {
        let mut set = RangeSet::new();
        for &(start, end) in ranges {
            set.insert(r(start, end)).unwrap();
        }
        set
    }

    #[test]
    fn touching_ranges_merge() {
        let mut set = set(&[(30, 40), (10, 20)]);
        assert_eq!(set.ranges(), [r(10, 20), r(30, 40)]);
        injection::fail_after(0);
        assert_eq!(set.insert(r(20, 30)), Ok(10));
        assert!(injection::disarm());
        assert_eq!(set.ranges(), [r(10, 40)]);
        assert_eq!(set.insert(r(15, 25)), Ok(0));
        assert_eq!(
            (set.bytes(), set.covers(r(10, 40)), set.covers(r(9, 11))),
            (30, true, false)
        );
    }

    #[test]
    fn only_a_cut_in_two_allocates() {
        let mut set = set(&[(10, 20), (30, 40)]);
        injection::fail_after(0);
        assert_eq!(set.remove(r(0, 12)), Ok(2));
        assert_eq!(set.remove(r(18, 32)), Ok(4));
        assert_eq!(set.remove(r(20, 30)), Ok(0));
        assert_eq!(set.remove(r(13, 14)), Err(NoMemory));
        assert_eq!(set.ranges(), [r(12, 18), r(32, 40)]);
        assert_eq!(set.remove(r(13, 14)), Ok(1));
        assert_eq!(set.ranges(), [r(12, 13), r(14, 18), r(32, 40)]);
        assert_eq!(set.bytes(), 13);
    }

    #[test]
    fn lowest() {
        let set = set(&[(10, 20), (30, 40)]);
        let lowest = |bytes| set.lowest(bytes).collect::<std::vec::Vec<_>>();
        assert_eq!(lowest(0), []);
        assert_eq!(lowest(4), [r(10, 14)]);
        assert_eq!(lowest(10), [r(10, 20)]);
        assert_eq!(lowest(11), [r(10, 20), r(30, 31)]);
        assert_eq!(lowest(u64::MAX), set.ranges());
    }
}
