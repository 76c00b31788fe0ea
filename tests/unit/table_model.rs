// SPDX-License-Identifier: GPL-2.0-only

//! The ballooned table beside a model that keeps one cell per granule.
//!
//! Whatever `rng` decides is done to both: random numbers here, a fuzzer's input in `tests/fuzz`.

use crate::logic::range::{
    Align,
    Range, //
};
use crate::logic::range_map::{
    InsertError,
    Ranged, //
};
use crate::logic::state::{
    ExtentState,
    Place,
    Progress,
    Want, //
};
use crate::logic::table::{
    Busy,
    Chunk,
    Removed,
    Table,
    Take, //
};
use crate::logic::vec::{
    injection,
    NoMemory, //
};
use crate::rng::Rng;

const DEFERRED: ExtentState = ExtentState::Unmapped(Place::Outside);
const BALLOONED: ExtentState = ExtentState::Unmapped(Place::Balloon);

/// Granules of the modelled address space, and the bytes and the first address of them.
const GRANULES: usize = 40;
const UNIT: u64 = 0x1000;
const BASE: u64 = 1 << 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    /// The number of the block's insertion, and its first granule.
    block: u64,
    first: usize,
    vaddr: u64,
    state: ExtentState,
}

#[derive(Clone)]
struct Model {
    cells: [Option<Cell>; GRANULES],
}

/// Granules `a..b` as a range.
fn granules(a: usize, b: usize) -> Range {
    Range::new(BASE + a as u64 * UNIT, BASE + b as u64 * UNIT).unwrap()
}

/// The inverse of [`granules`]; every end must be one of a granule.
fn indices(range: Range) -> std::ops::Range<usize> {
    let index = |addr: u64| {
        assert_eq!(addr % UNIT, 0);
        ((addr - BASE) / UNIT) as usize
    };
    index(range.start())..index(range.end())
}

fn includes(want: Want, place: Place) -> bool {
    want == Want::All || place == Place::Outside
}

fn wanted(want: Want, state: ExtentState) -> bool {
    matches!(state, ExtentState::Unmapped(place) if includes(want, place))
}

impl Model {
    fn new() -> Self {
        Self {
            cells: [None; GRANULES],
        }
    }

    fn at(&mut self, range: Range) -> impl Iterator<Item = &mut Cell> {
        self.cells[indices(range)].iter_mut().flatten()
    }

    /// Whether granules `i - 1` and `i` are of one block.
    fn joined(&self, i: usize) -> bool {
        let block = |c: Option<Cell>| c.map(|c| c.block);
        i > 0
            && i < GRANULES
            && self.cells[i].is_some()
            && block(self.cells[i - 1]) == block(self.cells[i])
    }

    fn covered(&self, range: Range) -> Vec<usize> {
        let span = indices(range);
        let inside = |cell: &Cell| {
            (0..GRANULES)
                .filter(|&i| self.cells[i].is_some_and(|c| c.block == cell.block))
                .all(|i| span.contains(&i))
        };
        span.clone()
            .filter(|&i| self.cells[i].as_ref().is_some_and(inside))
            .collect()
    }

    fn remove(&mut self, range: Range) -> Result<Removed, Busy> {
        let covered = self.covered(range);
        let mut removed = Removed {
            bytes: 0,
            mapped: 0,
        };
        for &i in &covered {
            match self.cells[i].unwrap().state {
                ExtentState::Mapping(_) => return Err(Busy),
                ExtentState::Mapped => removed.mapped += UNIT,
                _ => (),
            }
            removed.bytes += UNIT;
        }
        for i in covered {
            self.cells[i] = None;
        }
        Ok(removed)
    }

    /// Changes states and returns the bytes that changed.
    fn change(&mut self, range: Range, next: impl Fn(ExtentState) -> ExtentState) -> u64 {
        let mut changed = 0;
        for cell in self.at(range) {
            let new = next(cell.state);
            changed += u64::from(new != cell.state) * UNIT;
            cell.state = new;
        }
        changed
    }

    fn inflate(&mut self, range: Range) -> u64 {
        self.change(range, |state| match state {
            ExtentState::Unmapped(Place::Outside) | ExtentState::Failed(Place::Outside) => {
                BALLOONED
            }
            ExtentState::Mapping(Place::Outside) => ExtentState::Mapping(Place::Balloon),
            other => other,
        })
    }

    fn reset(&mut self) {
        self.change(granules(0, GRANULES), |state| match state {
            ExtentState::Unmapped(_) => DEFERRED,
            ExtentState::Mapping(_) => ExtentState::Mapping(Place::Outside),
            ExtentState::Failed(_) => ExtentState::Failed(Place::Outside),
            ExtentState::Mapped => ExtentState::Mapped,
        });
    }

    fn retry(&mut self, range: Range) -> u64 {
        self.change(range, |state| match state {
            ExtentState::Failed(place) => ExtentState::Unmapped(place),
            other => other,
        })
    }

    /// What `take` has to return.
    fn find(&self, want: Want, within: Range, max: Align) -> Option<Range> {
        let span = indices(within);
        let takes = |i: usize| self.cells[i].is_some_and(|c| wanted(want, c.state));
        let first = span.clone().find(|&i| takes(i))?;
        let mut end = first + 1;
        while end < span.end
            && takes(end)
            && self.joined(end)
            && (BASE + end as u64 * UNIT) % max.bytes() != 0
        {
            end += 1;
        }
        Some(granules(first, end))
    }

    /// What [`Take::Around`] makes of what `find` returned.
    fn around(&self, run: Range, max: Align) -> Range {
        let missing = |i: usize| {
            let cell = self.cells.get(i).copied().flatten();
            cell.is_some_and(|c| !matches!(c.state, ExtentState::Mapping(_) | ExtentState::Mapped))
        };
        let boundary = |i: usize| (BASE + i as u64 * UNIT) % max.bytes() == 0;
        let run = indices(run);
        let (mut start, mut end) = (run.start, run.end);
        while self.joined(start) && missing(start - 1) && !boundary(start) {
            start -= 1;
        }
        while self.joined(end) && missing(end) && !boundary(end) {
            end += 1;
        }
        granules(start, end)
    }

    /// The fewest mappings that the blocks can be.
    fn windows(&self, max: Align) -> u64 {
        let boundary = |i: usize| (BASE + i as u64 * UNIT) % max.bytes() == 0;
        let starts = |&i: &usize| self.cells[i].is_some() && (!self.joined(i) || boundary(i));
        (0..GRANULES).filter(starts).count() as u64
    }

    fn status(&self, want: Want, range: Range) -> Progress {
        let mut status = Progress::Done;
        for cell in self.cells[indices(range)].iter().flatten() {
            match cell.state {
                ExtentState::Unmapped(p) | ExtentState::Mapping(p) if includes(want, p) => {
                    return Progress::Pending
                }
                ExtentState::Failed(p) if includes(want, p) => status = Progress::Failed,
                _ => (),
            }
        }
        status
    }
}

/// Compares everything that can be seen of the table with the model.
fn check(table: &Table, model: &Model) {
    let mut seen = [None; GRANULES];
    let mut last: Option<(Range, ExtentState)> = None;
    let mut extents = 0;
    for (range, state) in table.iter() {
        extents += 1;
        for i in indices(range) {
            assert_eq!(seen[i], None, "{range:?} is there twice");
            seen[i] = Some(state);
        }
        if let Some((before, old)) = last {
            assert!(before.end() <= range.start(), "extents are not sorted");
            let neighbours = before.end() == range.start() && model.joined(indices(range).start);
            let merged = !neighbours || old != state || matches!(state, ExtentState::Mapping(_));
            assert!(merged, "{range:?} is not merged with its neighbour");
        }
        last = Some((range, state));
    }
    let mut bytes = [0; ExtentState::ALL.len()];
    for (i, cell) in model.cells.iter().enumerate() {
        assert_eq!(seen[i], cell.map(|c| c.state), "granule {i}");
        let iova = BASE + i as u64 * UNIT;
        let vaddr = cell.map(|c| c.vaddr + (i - c.first) as u64 * UNIT);
        let found = |iova| table.at(iova).and_then(|user| user.translate(iova));
        assert_eq!(found(iova), vaddr);
        let last = found(iova + UNIT - 1);
        assert_eq!(last, vaddr.map(|v| v + UNIT - 1));
        if let Some(cell) = cell {
            let slot = ExtentState::ALL
                .iter()
                .position(|s| *s == cell.state)
                .unwrap();
            bytes[slot] += UNIT;
        }
    }
    for (state, bytes) in ExtentState::ALL.into_iter().zip(bytes) {
        assert_eq!(table.totals().of(state), bytes, "{state:?}");
    }
    assert_eq!(table.totals().bytes(), bytes.iter().sum::<u64>());
    let all = granules(0, GRANULES);
    for want in [Want::Outside, Want::All] {
        assert_eq!(table.totals().status(want), model.status(want, all));
    }
    assert_eq!(table.extent_count(), extents);
    let starts = (0..GRANULES).filter(|&i| model.cells[i].is_some() && !model.joined(i));
    assert_eq!(table.block_count(), starts.count());
    for shift in [12, 14] {
        let max = Align::of_shift(shift);
        assert_eq!(table.windows(Range::ALL, max), model.windows(max));
    }
}

/// Runs `op` where a random allocation may fail, and tells whether one did.
fn with_injection<T>(rng: &mut Rng, op: impl FnOnce() -> T) -> (T, bool) {
    let armed = rng.one_in(3);
    if armed {
        injection::fail_after(rng.below(3) as u32);
    }
    let result = op();
    (result, armed && !injection::disarm())
}

/// Runs `op`, which must not allocate.
fn without_memory<T>(op: impl FnOnce() -> T) -> T {
    injection::fail_after(0);
    let result = op();
    assert!(injection::disarm(), "an operation allocated that must not");
    result
}

/// The tables side by side, and the chunks that are out.
pub(crate) struct Pair {
    table: Table,
    model: Model,
    out: Vec<Chunk>,
    blocks: u64,
}

impl Pair {
    /// Two empty tables.
    pub(crate) fn new() -> Self {
        Self {
            table: Table::new(),
            model: Model::new(),
            out: Vec::new(),
            blocks: 0,
        }
    }

    /// Does one thing to both and compares all that can be seen of them.
    pub(crate) fn step(&mut self, rng: &mut Rng) {
        self.operate(rng);
        check(&self.table, &self.model);
    }

    fn insert(&mut self, rng: &mut Rng, range: Range) {
        self.blocks += 1;
        let vaddr = (1 << 40) + self.blocks * UNIT * 1024;
        let span = indices(range);
        let overlap = self.model.at(range).next().is_some();
        let (result, failed) = with_injection(rng, || self.table.insert(range, vaddr));
        match result {
            Err(InsertError::Overlap) => assert!(overlap),
            Err(InsertError::NoMemory) => assert!(failed),
            Err(InsertError::Invalid) => panic!("{range:?} at {vaddr:#x} is valid"),
            Ok(()) => {
                assert!(!overlap && !failed);
                for i in span.clone() {
                    self.model.cells[i] = Some(Cell {
                        block: self.blocks,
                        first: span.start,
                        vaddr,
                        state: DEFERRED,
                    });
                }
            }
        }
    }

    fn take(&mut self, rng: &mut Rng, range: Range) {
        let want = [Want::Outside, Want::All][rng.below(2) as usize];
        let max = Align::of_shift(12 + rng.below(6) as u32);
        let extent = [Take::Wanted, Take::Around][rng.below(2) as usize];
        let expected = self.model.find(want, range, max).map(|run| match extent {
            Take::Wanted => run,
            Take::Around => self.model.around(run, max),
        });
        let (result, failed) = with_injection(rng, || self.table.take(want, range, max, extent));
        match result {
            Err(NoMemory) => assert!(failed),
            Ok(None) => assert_eq!(expected, None),
            Ok(Some(chunk)) => {
                assert!(!failed);
                assert_eq!(Some(chunk.range()), expected);
                assert_eq!(
                    Some(chunk.vaddr()),
                    self.table
                        .at(chunk.range().start())
                        .and_then(|user| user.translate(chunk.range().start()))
                );
                self.model.change(chunk.range(), |state| match state {
                    ExtentState::Unmapped(place) => ExtentState::Mapping(place),
                    ExtentState::Failed(place) if extent == Take::Around => {
                        ExtentState::Mapping(place)
                    }
                    other => panic!("{other:?} was taken"),
                });
                self.out.push(chunk);
            }
        }
    }

    fn give_back(&mut self, rng: &mut Rng) {
        if self.out.is_empty() {
            return;
        }
        let chunk = self
            .out
            .swap_remove(rng.below(self.out.len() as u64) as usize);
        let range = chunk.range();
        let what = rng.below(4);
        let pieces = self.table.pieces();
        without_memory(|| match what {
            0 => self.table.abort(chunk),
            _ => self.table.complete(chunk, what != 1),
        });
        assert_eq!(self.table.pieces(), pieces + u64::from(what > 1));
        self.model.change(range, |state| match (state, what) {
            (ExtentState::Mapping(place), 0) => ExtentState::Unmapped(place),
            (ExtentState::Mapping(place), 1) => ExtentState::Failed(place),
            (ExtentState::Mapping(_), _) => ExtentState::Mapped,
            (other, _) => panic!("{other:?} in a chunk that is out"),
        });
    }

    fn operate(&mut self, rng: &mut Rng) {
        let start = rng.below(GRANULES as u64) as usize;
        let longest = if rng.one_in(4) { GRANULES } else { 6 };
        let longest = longest.min(GRANULES - start) as u64;
        let range = granules(start, start + 1 + rng.below(longest) as usize);
        match rng.below(20) {
            0 | 1 => self.insert(rng, range),
            2 => {
                let removed = without_memory(|| self.table.remove(range));
                assert_eq!(removed, self.model.remove(range));
                if self.table.block_count() == 0 {
                    assert_eq!(self.table.pieces(), 0);
                }
            }
            3..=7 => {
                let (result, failed) = with_injection(rng, || self.table.inflate(range));
                assert_eq!(result.is_err(), failed);
                if let Ok(bytes) = result {
                    assert_eq!(bytes, self.model.inflate(range));
                }
            }
            8 if rng.one_in(8) => {
                without_memory(|| self.table.reset());
                self.model.reset();
            }
            8..=12 => self.take(rng, range),
            13..=15 => self.give_back(rng),
            16 => {
                let (result, failed) = with_injection(rng, || self.table.retry(range));
                assert_eq!(result.is_err(), failed);
                if let Ok(bytes) = result {
                    assert_eq!(bytes, self.model.retry(range));
                }
            }
            17 => {
                for want in [Want::Outside, Want::All] {
                    let status = without_memory(|| self.table.status(want, range));
                    assert_eq!(status, self.model.status(want, range));
                }
            }
            18 => {
                let cut = |i: usize| self.model.joined(i);
                let bisected = cut(indices(range).start) || cut(indices(range).end);
                assert_eq!(self.table.bisects(range), bisected);
                let overlap = self.model.at(range).next().is_some();
                assert_eq!(self.table.overlaps(range), overlap);
            }
            _ => {
                let covered: Vec<usize> = self
                    .table
                    .covered(range)
                    .flat_map(|block| indices(block.range()))
                    .collect();
                assert_eq!(covered, self.model.covered(range));
            }
        }
    }
}
