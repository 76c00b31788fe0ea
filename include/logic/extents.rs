// SPDX-License-Identifier: GPL-2.0-only

//! One block of deferred guest RAM, cut into extents by state.

use super::{
    range::{
        Align,
        Range, //
    },
    state::{
        ExtentState,
        Progress,
        Totals,
        Want, //
    },
    vec::{
        NoMemory,
        Vector, //
    },
};

/// From `start` to the start of the next extent, or to the end of the block: 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    start: u64,
    state: ExtentState,
}

/// The extents of one block.
///
/// # Invariants
///
/// - The starts rise strictly, and the first is the start of `range`; all lie inside `range`.
/// - Neighbours are in different states, but for [`ExtentState::Mapping`]: those extents are never
///   merged, so that the ends of every chunk that is out are ends of extents and bringing it back
///   needs no cut.
#[derive(Debug)]
pub(super) struct Extents {
    range: Range,
    list: Vector<Extent>,
}

impl Extents {
    /// A block that is all in `state`.
    pub(super) fn new(range: Range, state: ExtentState) -> Result<Self, NoMemory> {
        let mut list = Vector::new();
        list.try_push(Extent {
            start: range.start(),
            state,
        })?;
        Ok(Self { range, list })
    }

    /// The whole block.
    pub(super) fn range(&self) -> Range {
        self.range
    }

    /// The number of extents.
    pub(super) fn count(&self) -> usize {
        self.list.len()
    }

    /// The extents in rising order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Range, ExtentState)> + '_ {
        self.iter_from(0)
    }

    /// The parts of the extents that lie inside `within`, in rising order.
    pub(super) fn iter_in(&self, within: Range) -> impl Iterator<Item = (Range, ExtentState)> + '_ {
        // The extent before that index may reach into `within`.
        let first = self.index_at(within.start());
        self.iter_from(first.saturating_sub(1))
            .skip_while(move |(range, _)| range.end() <= within.start())
            .map_while(move |(range, state)| Some((range.intersect(within)?, state)))
    }

    /// How far the part inside `within` is from what is wanted.
    pub(super) fn status(&self, want: Want, within: Range) -> Progress {
        self.iter_in(within)
            .map(|(_, state)| want.status(state))
            .max()
            .unwrap_or(Progress::Done)
    }

    /// The lowest run of bytes inside `within` that can be taken and crosses no boundary of `max`.
    pub(super) fn find(&self, want: Want, within: Range, max: Align) -> Option<Range> {
        let mut wanted = self
            .iter_in(within)
            .skip_while(|(_, state)| !want.takes(*state))
            .take_while(|(_, state)| want.takes(*state));
        let (mut run, _) = wanted.next()?;
        let limit = max.next_boundary(run.start());
        for (range, _) in wanted {
            if run.end() >= limit {
                break;
            }
            run = run.hull(range);
        }
        Range::new(run.start(), run.end().min(limit))
    }

    /// All that is missing around `run` without a gap, as far as `max` allows.
    pub(super) fn around(&self, run: Range, max: Align) -> Range {
        let start = max.down(run.start()).max(self.range.start());
        let end = max.next_boundary(run.start()).min(self.range.end());
        let mut whole = run;
        let Some(window) = Range::new(start, end) else {
            return run;
        };
        // Each run inside the window, until one covers `run`.
        let mut found: Option<Range> = None;
        for (range, state) in self.iter_in(window) {
            found = match found {
                _ if !state.is_missing() => None,
                None => Some(range),
                Some(left) => Some(left.hull(range)),
            };
            if let Some(run) = found.filter(|found| found.overlaps(run)) {
                whole = run;
            } else if range.start() >= run.end() {
                break;
            }
        }
        whole
    }

    /// Makes room for the two cuts that an [`Extents::update`] can need.
    pub(super) fn reserve_cuts(&mut self) -> Result<(), NoMemory> {
        self.list.try_reserve(2)
    }

    /// Changes the states inside `within`, cutting extents at its ends where that matters.
    ///
    /// Returns the number of bytes whose state changed.  It cannot fail after
    /// [`Extents::reserve_cuts`].
    pub(super) fn update(
        &mut self,
        within: Range,
        totals: &mut Totals,
        next: impl Fn(ExtentState) -> ExtentState,
    ) -> Result<u64, NoMemory> {
        self.cut(within.start(), &next)?;
        self.cut(within.end(), &next)?;
        Ok(self.settle(within, totals, next))
    }

    /// Changes the states of the extents that lie wholly inside `within`: never allocates.
    ///
    /// Returns the number of bytes whose state changed.
    pub(super) fn settle(
        &mut self,
        within: Range,
        totals: &mut Totals,
        next: impl Fn(ExtentState) -> ExtentState,
    ) -> u64 {
        let first = self.index_at(within.start());
        let mut end = first;
        let mut changed: u64 = 0;
        while let Some((range, state)) = self.get(end) {
            if range.end() > within.end() {
                break;
            }
            let new = next(state);
            if new != state {
                totals.sub(state, range.len());
                totals.add(new, range.len());
                changed = changed.saturating_add(range.len());
                if let Some(extent) = self.list.get_mut(end) {
                    extent.state = new;
                }
            }
            end = end.saturating_add(1);
        }
        if changed != 0 {
            self.merge(first.saturating_sub(1), end);
        }
        changed
    }

    /// Makes `at` the start of an extent if it is inside one whose state is going to change.
    fn cut(&mut self, at: u64, next: impl Fn(ExtentState) -> ExtentState) -> Result<(), NoMemory> {
        let index = self.index_at(at);
        match index.checked_sub(1).and_then(|i| self.get(i)) {
            Some((range, state)) if range.is_cut_by(at) && next(state) != state => {
                self.list.try_insert(index, Extent { start: at, state })
            }
            _ => Ok(()),
        }
    }

    /// Merges equal neighbours among the extents `first..=last`.
    fn merge(&mut self, first: usize, last: usize) {
        let mut kept = first;
        for i in first.saturating_add(1)..=last {
            let (Some(&left), Some(&right)) = (self.list.get(kept), self.list.get(i)) else {
                break;
            };
            if left.state == right.state && !matches!(left.state, ExtentState::Mapping(_)) {
                continue;
            }
            kept = kept.saturating_add(1);
            if let Some(slot) = self.list.get_mut(kept) {
                *slot = right;
            }
        }
        let end = last.saturating_add(1);
        self.list.remove_range(kept.saturating_add(1), end);
    }

    /// The index of the first extent that starts at `addr` or above.
    fn index_at(&self, addr: u64) -> usize {
        self.list.partition_point(|extent| extent.start < addr)
    }

    fn get(&self, index: usize) -> Option<(Range, ExtentState)> {
        let extent = self.list.get(index)?;
        let end = match self.list.get(index.checked_add(1)?) {
            Some(next) => next.start,
            None => self.range.end(),
        };
        Some((Range::new(extent.start, end)?, extent.state))
    }

    fn iter_from(&self, first: usize) -> impl Iterator<Item = (Range, ExtentState)> + '_ {
        (first..self.list.len()).map_while(|i| self.get(i))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::size_of;

    #[test]
    fn an_extent_is_small() {
        assert_eq!(size_of::<Extent>(), 16);
    }
}
