// SPDX-License-Identifier: GPL-2.0-only

//! Things that each occupy a range of addresses, sorted and without overlap.
//!
//! A VMM may have tens of thousands of maps and make and undo them one at a time, so neither
//! may cost time with their number.  They lie in sorted *runs* of at most [`RUN`], and these in
//! an array: finding is two binary searches, and a change moves the items of one run and, once
//! in dozens of changes, the array of runs.

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

/// The most items of a run, 1 KiB of maps that type1 has made: of these, 65,535 are two thousand
/// runs at best and eight thousand at worst, 24 bytes each.
const RUN: usize = 32;

/// Where an item is: the index of its run, and its own in there.  Behind the last item, the
/// number of runs and 0.
type Place = (usize, usize);

/// Sorted items.
///
/// # Invariants
///
/// - The ranges rise, and no two overlap.
/// - No run is empty or has more than [`RUN`] items; two neighbours have more than half of that
///   together.
/// - Where there is more than one run, each has room for [`RUN`] items.
#[derive(Debug)]
pub(crate) struct RangeMap<T> {
    runs: Vector<Vector<T>>,
    len: usize,
}

impl<T: Ranged> RangeMap<T> {
    /// An empty map, without an allocation.
    pub(crate) const fn new() -> Self {
        Self {
            runs: Vector::new(),
            len: 0,
        }
    }

    /// Adds `item`.
    pub(crate) fn insert(&mut self, item: T) -> Result<(), InsertError> {
        let range = item.range();
        let place = self.seek(|other| other.range().end() <= range.start());
        let next = self.get(place);
        if next.is_some_and(|next| next.range().overlaps(range)) {
            return Err(InsertError::Overlap);
        }
        // What comes last goes behind the last item of the last run.
        let (mut run, mut index) = match place.0.checked_sub(1) {
            Some(last) if place.0 == self.runs.len() => (last, self.run(last).len()),
            _ => place,
        };
        if self.runs.is_empty() {
            self.runs.try_push(Vector::new())?;
        } else if self.run(run).len() >= RUN {
            // Maps are mostly made in rising order: that leaves full runs behind.
            let at = if index == RUN { RUN } else { RUN / 2 };
            self.split(run, at)?;
            if index >= at {
                (run, index) = (run.saturating_add(1), index.saturating_sub(at));
            }
        }
        let Some(items) = self.runs.get_mut(run) else {
            return Err(InsertError::Invalid);
        };
        if let Err(e) = items.try_insert(index, item) {
            if items.is_empty() {
                self.runs.remove(run);
            }
            return Err(e.into());
        }
        self.len = self.len.saturating_add(1);
        Ok(())
    }

    /// Drops what lies wholly inside `range`.  Never allocates.
    pub(crate) fn remove(&mut self, range: Range) {
        let (first, end) = self.covered_places(range);
        if first >= end {
            return;
        }
        self.len = self.len.saturating_sub(self.count(first, end));
        let behind = first.0.saturating_add(1);
        if first.0 == end.0 {
            self.cut(first.0, first.1, end.1);
        } else {
            self.cut(first.0, first.1, RUN);
            self.cut(end.0, 0, end.1);
            self.runs.remove_range(behind, end.0);
        }
        // INVARIANT: Only these have fewer items or other neighbours than before.
        self.join(behind);
        self.join(first.0);
        if let Some(before) = first.0.checked_sub(1) {
            self.join(before);
        }
    }

    /// The number of items.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether something shares a byte with `range`.
    pub(crate) fn overlaps(&self, range: Range) -> bool {
        self.overlapping(range).next().is_some()
    }

    /// What shares a byte with `range`, in rising order.
    pub(crate) fn overlapping(&self, range: Range) -> impl Iterator<Item = &T> {
        let (first, end) = self.overlapping_places(range);
        self.between(first, end)
    }

    /// What shares a byte with `range`, in rising order; the ranges must stay as they are.
    pub(crate) fn overlapping_mut(&mut self, range: Range) -> impl Iterator<Item = &mut T> {
        let (first, end) = self.overlapping_places(range);
        let runs = self.runs.get_mut(first.0..).unwrap_or_default();
        let numbered = runs.iter_mut().zip(first.0..=end.0);
        numbered.flat_map(move |(items, run)| {
            let (from, to) = part(run, items.len(), first, end);
            items.get_mut(from..to).unwrap_or_default()
        })
    }

    /// What lies wholly inside `range`, in rising order.
    pub(crate) fn covered(&self, range: Range) -> impl Iterator<Item = &T> {
        let (first, end) = self.covered_places(range);
        self.between(first, end)
    }

    /// Whether an end of `range` falls strictly inside an item.
    pub(crate) fn bisects(&self, range: Range) -> bool {
        let cut = |addr| {
            self.at(addr)
                .is_some_and(|item| item.range().is_cut_by(addr))
        };
        cut(range.start()) || cut(range.end())
    }

    /// What is at `addr`.
    pub(crate) fn at(&self, addr: u64) -> Option<&T> {
        let place = self.seek(|item| item.range().end() <= addr);
        self.get(place).filter(|item| item.range().contains(addr))
    }

    /// All of it, in rising order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.runs.iter().flat_map(|items| items.iter())
    }

    /// The place of the first item for which `before` is false: it is true up to there.
    fn seek(&self, before: impl Fn(&T) -> bool) -> Place {
        let run = self
            .runs
            .partition_point(|items| items.last().is_some_and(&before));
        (run, self.run(run).partition_point(before))
    }

    fn get(&self, (run, index): Place) -> Option<&T> {
        self.runs.get(run)?.get(index)
    }

    /// The items of a run; none behind the last run.
    fn run(&self, run: usize) -> &[T] {
        self.runs.get(run).map(|items| &**items).unwrap_or_default()
    }

    /// The items from one place up to another.
    fn between(&self, first: Place, end: Place) -> impl Iterator<Item = &T> {
        let runs = self.runs.get(first.0..).unwrap_or_default();
        let numbered = runs.iter().zip(first.0..=end.0);
        numbered.flat_map(move |(items, run)| {
            let (from, to) = part(run, items.len(), first, end);
            items.get(from..to).unwrap_or_default()
        })
    }

    /// How many items there are between two places.
    fn count(&self, first: Place, end: Place) -> usize {
        let runs = self.runs.get(first.0..).unwrap_or_default();
        let numbered = runs.iter().zip(first.0..=end.0);
        let counts = numbered.map(|(items, run)| {
            let (from, to) = part(run, items.len(), first, end);
            to.saturating_sub(from)
        });
        counts.fold(0, usize::saturating_add)
    }

    /// Where what shares a byte with `range` begins and ends.
    fn overlapping_places(&self, range: Range) -> (Place, Place) {
        (
            self.seek(|item| item.range().end() <= range.start()),
            self.seek(|item| item.range().start() < range.end()),
        )
    }

    /// Where what lies wholly inside `range` begins and ends.
    fn covered_places(&self, range: Range) -> (Place, Place) {
        let first = self.seek(|item| item.range().start() < range.start());
        let end = self.seek(|item| item.range().end() <= range.end());
        // A range strictly inside one item has `end < first`.
        (first, end.max(first))
    }

    /// Makes the items of a full run from `at` on a run of their own.
    fn split(&mut self, run: usize, at: usize) -> Result<(), NoMemory> {
        let mut upper = Vector::new();
        upper.try_reserve(RUN)?;
        self.runs.try_reserve(1)?;
        if let Some(items) = self.runs.get_mut(run) {
            // INVARIANT: A run that has been full has room for as many again.
            items.move_tail(at, &mut upper)?;
        }
        // With nothing in it, the caller puts something there: that cannot fail any more.
        self.runs.try_insert(run.saturating_add(1), upper)
    }

    /// Drops items `first..end` of a run.
    fn cut(&mut self, run: usize, first: usize, end: usize) {
        if let Some(items) = self.runs.get_mut(run) {
            items.remove_range(first, end);
        }
    }

    /// Drops a run that is empty; makes it one with the next if both together are small.
    fn join(&mut self, run: usize) {
        let next = run.saturating_add(1);
        let Some(lower) = self.runs.get(run).map(|items| items.len()) else {
            return;
        };
        if lower == 0 {
            self.runs.remove(run);
            return;
        }
        let upper = self.run(next).len();
        if upper == 0 || lower.saturating_add(upper) > RUN / 2 {
            return;
        }
        if let Some(mut items) = self.runs.remove(next) {
            if let Some(lower) = self.runs.get_mut(run) {
                // There is room, by the invariant.
                let _ = items.move_tail(0, lower);
            }
        }
    }
}

/// The indices of the items of a run between two places.
fn part(run: usize, len: usize, first: Place, end: Place) -> (usize, usize) {
    let from = if run == first.0 { first.1 } else { 0 };
    let to = if run == end.0 { end.1 } else { len };
    (from, to)
}

#[cfg(test)]
impl<T: Ranged> RangeMap<T> {
    /// Panics if an invariant does not hold.
    fn check(&self) {
        let items: std::vec::Vec<_> = self.iter().map(|item| item.range()).collect();
        assert!(items
            .windows(2)
            .all(|pair| pair[0].end() <= pair[1].start()));
        assert_eq!(self.len, items.len());
        for run in self.runs.iter() {
            assert!((1..=RUN).contains(&run.len()));
        }
        for pair in self.runs.windows(2) {
            assert!(pair[0].len() + pair[1].len() > RUN / 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::vec::injection;
    use crate::rng::{
        steps,
        Rng, //
    };
    use std::collections::BTreeMap;
    use std::vec::Vec;

    #[derive(Debug, PartialEq, Eq)]
    struct Item(Range);

    impl Ranged for Item {
        fn range(&self) -> Range {
            self.0
        }
    }

    fn r(start: u64, end: u64) -> Range {
        Range::new(start, end).unwrap()
    }

    fn ranges<'a>(items: impl Iterator<Item = &'a Item>) -> Vec<Range> {
        items.map(|item| item.0).collect()
    }

    /// Far more than there are in a run, by their starts.
    struct Pair {
        map: RangeMap<Item>,
        model: BTreeMap<u64, u64>,
    }

    const SPACE: u64 = 8192;

    impl Pair {
        fn matching(&self, keep: impl Fn(Range) -> bool) -> Vec<Range> {
            let all = self.model.iter().map(|(&start, &end)| r(start, end));
            all.filter(|range| keep(*range)).collect()
        }

        fn insert(&mut self, range: Range) {
            let overlaps = !self.matching(|other| other.overlaps(range)).is_empty();
            let result = self.map.insert(Item(range));
            match result {
                Ok(()) => assert_eq!(self.model.insert(range.start(), range.end()), None),
                Err(e) => assert_eq!(e == InsertError::Overlap, overlaps),
            }
        }

        fn remove(&mut self, range: Range) {
            injection::fail_after(0);
            self.map.remove(range);
            assert!(injection::disarm(), "a removal has allocated");
            self.model
                .retain(|&start, &mut end| !range.covers(r(start, end)));
        }

        fn look(&mut self, range: Range) {
            let overlapping = self.matching(|other| other.overlaps(range));
            assert_eq!(ranges(self.map.overlapping(range)), overlapping);
            assert_eq!(self.map.overlaps(range), !overlapping.is_empty());
            let changed: Vec<Range> = self.map.overlapping_mut(range).map(|i| i.0).collect();
            assert_eq!(changed, overlapping);
            let covered = self.matching(|other| range.covers(other));
            assert_eq!(ranges(self.map.covered(range)), covered);
            let cut = |other: Range| other.is_cut_by(range.start()) || other.is_cut_by(range.end());
            assert_eq!(self.map.bisects(range), !self.matching(cut).is_empty());
            let at = self.matching(|other| other.contains(range.start()));
            assert_eq!(
                self.map.at(range.start()).map(|item| item.0),
                at.first().copied()
            );
        }
    }

    #[test]
    fn random_operations_match_the_model() {
        let mut rng = Rng::new("range map");
        let mut pair = Pair {
            map: RangeMap::new(),
            model: BTreeMap::new(),
        };
        let mut most = 0;
        // It grows, and shrinks, and grows again.
        for step in 0..steps(60_000) {
            let grows = step / 6_000 % 2 == 0;
            let start = rng.below(SPACE);
            let short = r(start, start + 1 + rng.below(3));
            match rng.below(16) {
                0..=9 if grows => pair.insert(short),
                0..=9 => pair.remove(r(short.start(), short.end() + rng.below(40))),
                10 if rng.one_in(16) => {
                    injection::fail_after(rng.below(2) as u32);
                    pair.insert(short);
                    injection::disarm();
                }
                11 if rng.one_in(64) => pair.remove(r(start, start + 1 + rng.below(SPACE))),
                _ => pair.look(r(start, start + 1 + rng.below(200))),
            }
            if step % 64 == 0 {
                pair.map.check();
                assert_eq!(ranges(pair.map.iter()), pair.matching(|_| true));
            }
            most = most.max(pair.map.len());
        }
        assert!(most > 4 * RUN, "{most}");
        pair.remove(Range::ALL);
        pair.map.check();
        assert_eq!(pair.map.len(), 0);
    }

    #[test]
    fn rising_insertions_leave_full_runs() {
        let mut map = RangeMap::new();
        for i in 0..10 * RUN as u64 {
            map.insert(Item(r(i, i + 1))).unwrap();
        }
        assert_eq!(map.runs.len(), 10);
        // One of each hundred stays: they are not left in runs of their own.
        for i in 0..10 * RUN as u64 {
            if i % 100 != 0 {
                map.remove(r(i, i + 1));
            }
        }
        map.check();
        assert_eq!(map.runs.len(), 1);
    }
}
