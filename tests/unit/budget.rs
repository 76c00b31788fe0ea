// SPDX-License-Identifier: GPL-2.0-only

//! 4 TiB in one container, and guests that do their worst: type1's budget of mappings holds.

use crate::logic::budget::Budget;
use crate::logic::protocol::GRANULE;
use crate::logic::range::{
    Align,
    Range, //
};
use crate::logic::state::{
    Progress,
    Want, //
};
use crate::logic::table::{
    Chunk,
    Table,
    Take, //
};
use crate::rng::{
    steps,
    Rng, //
};

const TIB: u64 = 1 << 40;
const CHUNK: Align = Align::of_shift(30);
/// What a VMM maps beside its RAM.
const OTHERS: u64 = 128;
/// Chunks that are out at a time.
const THREADS: usize = 64;

/// The optimiser makes the tests fast enough for all of it; without, and when `UNIT_STEPS` asks
/// for less, it is a sixteenth of the memory and of the limit.
fn scaled(n: u64) -> u64 {
    match steps(u64::MAX) {
        u64::MAX => n,
        _ => n / 16,
    }
}

fn size() -> u64 {
    scaled(4 * TIB)
}

fn granules() -> u64 {
    size() / GRANULE.bytes()
}

/// type1's `dma_entry_limit`.
fn limit() -> u64 {
    scaled(65_535)
}

/// A container, as the host's mapper treats it.
struct Container {
    table: Table,
    budget: Budget,
    all: Range,
    out: Vec<Chunk>,
    /// Mappings that type1 has.
    mappings: u64,
    take: fn(Budget, u64) -> Take,
}

impl Container {
    fn new() -> Self {
        let all = Range::from_len(TIB, size()).unwrap();
        let budget = Budget::new(limit() - OTHERS, 0);
        assert!(budget.allows(all.windows(CHUNK)));
        let mut table = Table::new();
        table.insert(all, 1 << 46).unwrap();
        Self {
            table,
            budget,
            all,
            out: Vec::new(),
            mappings: 0,
            take: Budget::take,
        }
    }

    fn granule(&self, index: u64) -> Range {
        let start = self.all.start() + index % granules() * GRANULE.bytes();
        Range::from_len(start, GRANULE.bytes()).unwrap()
    }

    fn inflate(&mut self, range: Range) {
        self.table.inflate(range).unwrap();
    }

    fn finish(&mut self, index: usize, ok: bool) {
        let chunk = self.out.swap_remove(index);
        self.mappings += u64::from(ok);
        self.table.complete(chunk, ok);
    }

    /// Takes a piece for whoever wants `range`; false if there is none.
    fn take(&mut self, want: Want, range: Range) -> bool {
        let extent = (self.take)(self.budget, self.table.pieces());
        let chunk = self.table.take(want, range, CHUNK, extent).unwrap();
        self.out.extend(chunk);
        if self.out.len() == THREADS {
            self.finish(0, true);
        }
        !self.out.is_empty()
    }

    /// Does all that is wanted of `range`.
    fn serve(&mut self, want: Want, range: Range) {
        self.table.retry(range).unwrap();
        while self.table.status(want, range) != Progress::Done {
            assert!(self.take(want, range));
            while !self.out.is_empty() {
                self.finish(0, true);
            }
        }
    }

    /// All of it gets mapped, and the budget has held.
    fn end(mut self, what: &str) {
        self.serve(Want::All, self.all);
        assert_eq!(self.table.totals().mapped, size());
        assert_eq!(self.table.extent_count(), 1);
        assert_eq!(self.mappings, self.table.pieces());
        println!("{what}: {} mappings", self.mappings);
        assert!(
            self.mappings + OTHERS <= limit(),
            "{what}: {} mappings",
            self.mappings
        );
    }

    fn deflate_all(mut self, what: &str, order: impl Iterator<Item = u64>) {
        self.inflate(self.all);
        for index in order {
            let range = self.granule(index);
            self.serve(Want::All, range);
        }
        self.end(what);
    }
}

/// The granules in an order that keeps them as far apart as can be.
fn bit_reversed() -> impl Iterator<Item = u64> {
    let bits = granules().ilog2();
    (0..granules()).map(move |i| i.reverse_bits() >> (u64::BITS - bits))
}

#[test]
fn deflating_in_any_order_stays_within_the_budget() {
    Container::new().deflate_all("upwards", 0..granules());
    Container::new().deflate_all("downwards", (0..granules()).rev());
    Container::new().deflate_all("even, then odd", (0..granules()).step_by(2));
    Container::new().deflate_all("every third", (0..granules()).step_by(3));
    Container::new().deflate_all("bit reversed", bit_reversed());
    // An odd factor makes it a permutation.
    let mut rng = Rng::new("budget");
    let factor = rng.next() | 1;
    let spread = (0..granules()).map(|i| i.wrapping_mul(factor) % granules());
    Container::new().deflate_all("at random", spread);
}

#[test]
fn one_in_each_run_that_is_left_is_the_worst() {
    // As many pieces as are taken as they are wanted, evenly, and then one granule of each run
    // that is left between them: what the bound is made of.
    let quarter = (limit() - OTHERS) / 4;
    let step = granules() / quarter;
    let pieces = (0..quarter).map(|i| i * step);
    Container::new().deflate_all("worst", pieces.chain((0..granules()).map(|i| i + 1)));
}

#[test]
fn holes_in_the_balloon_stay_within_the_budget() {
    let mut container = Container::new();
    for index in (0..granules() / 4).step_by(2) {
        let range = container.granule(index);
        container.inflate(range);
    }
    container.serve(Want::Outside, container.all);
    container.end("a balloon with a hole in every other granule");
}

#[test]
fn anything_at_random_stays_within_the_budget() {
    let mut rng = Rng::new("budget");
    let mut container = Container::new();
    for _ in 0..scaled(200_000) {
        let index = rng.next();
        let mut range = container.granule(index);
        if rng.one_in(8) {
            let other = container.granule(index.wrapping_add(rng.below(1024)));
            range = range.hull(other);
        }
        match rng.below(16) {
            0..=3 => container.inflate(range),
            4 => {
                container.take(Want::Outside, range);
            }
            // Of what failed, a part is wanted: what failed around it comes along.
            5 => {
                container.table.retry(range).unwrap();
                container.take(Want::All, range);
            }
            6..=12 => {
                container.take(Want::All, range);
            }
            13 if !container.out.is_empty() => {
                let index = rng.below(container.out.len() as u64) as usize;
                container.finish(index, false);
            }
            14 if !container.out.is_empty() => {
                let index = rng.below(container.out.len() as u64) as usize;
                let chunk = container.out.swap_remove(index);
                container.table.abort(chunk);
            }
            15 if rng.one_in(10_000) => container.table.reset(),
            _ => {
                if !container.out.is_empty() {
                    container.finish(0, true);
                }
            }
        }
    }
    while !container.out.is_empty() {
        container.finish(0, true);
    }
    container.end("at random");
}

#[test]
fn without_it_the_same_guest_breaks_the_budget() {
    let mut container = Container::new();
    container.take = |_, _| Take::Wanted;
    container.inflate(container.all);
    for index in (0..granules()).step_by(16) {
        let range = container.granule(index);
        container.serve(Want::All, range);
    }
    assert!(container.mappings + OTHERS > limit());
}
