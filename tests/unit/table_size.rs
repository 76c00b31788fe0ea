// SPDX-License-Identifier: GPL-2.0-only

//! The ballooned table at the size of a real machine: how many extents and chunks there are.

use crate::logic::protocol::GRANULE;
use crate::logic::range::{
    Align,
    Range, //
};
use crate::logic::state::Want;
use crate::logic::table::{
    Table,
    Take, //
};
use crate::rng::Rng;
use std::time::Instant;

const GIB: u64 = 1 << 30;
/// Above 4 GiB of a guest with 350 GiB of RAM, 2 GiB of it low, as QEMU's q35 lays it out.
const HIGH: u64 = 348;
const CHUNK: Align = Align::of_shift(30);
/// What an extent takes, by the table's documentation.
const EXTENT_BYTES: usize = 16;

fn table() -> (Table, Range) {
    let range = Range::from_len(4 * GIB, HIGH * GIB).unwrap();
    let mut table = Table::new();
    table.insert(range, 1 << 40).unwrap();
    (table, range)
}

/// Maps all that is wanted and returns the number of chunks.
fn map_all(table: &mut Table, want: Want, all: Range) -> u64 {
    let (mut chunks, mut within) = (0, Some(all));
    while let Some(rest) = within {
        let Some(chunk) = table.take(want, rest, CHUNK, Take::Wanted).unwrap() else {
            break;
        };
        within = Range::new(chunk.range().end(), all.end());
        table.complete(chunk, true);
        chunks += 1;
    }
    chunks
}

fn inflate(table: &mut Table, start: u64, len: u64) {
    let range = Range::from_len(start, len).unwrap();
    assert_eq!(table.inflate(range), Ok(len));
}

#[test]
fn an_ordinary_guest_takes_little() {
    let (mut table, all) = table();
    // The kernel, its initramfs and what boots from it, in pieces; the rest is in the balloon.
    for i in 0..100 {
        let start = all.start() + i * 3 * GIB;
        inflate(&mut table, start + 6 * GRANULE.bytes(), 2 * GIB);
    }
    assert_eq!(table.extent_count(), 200 + 1);
    assert!(table.extent_count() * EXTENT_BYTES <= 64 << 10);
    map_all(&mut table, Want::Outside, all);
    assert_eq!(table.totals().ballooned, 200 * GIB);
    map_all(&mut table, Want::All, all);
    assert_eq!(table.extent_count(), 1);
}

#[test]
fn the_worst_guest_stays_within_the_bound() {
    let (mut table, all) = table();
    let granules = all.len() / GRANULE.bytes();
    let mut starts: Vec<u64> = (0..granules)
        .step_by(2)
        .map(|i| all.start() + i * GRANULE.bytes())
        .collect();
    let mut rng = Rng::new("table_size");
    for i in (1..starts.len()).rev() {
        starts.swap(i, rng.below(i as u64 + 1) as usize);
    }
    let begin = Instant::now();
    for &start in &starts {
        inflate(&mut table, start, GRANULE.bytes());
    }
    println!("{} inflations in {:?}", starts.len(), begin.elapsed());
    assert_eq!(table.extent_count() as u64, granules);
    assert!(table.extent_count() * EXTENT_BYTES <= 3 << 20);

    let begin = Instant::now();
    assert_eq!(map_all(&mut table, Want::Outside, all), granules / 2);
    println!("{} small chunks in {:?}", granules / 2, begin.elapsed());
    assert_eq!(table.extent_count() as u64, granules);
    map_all(&mut table, Want::All, all);
    assert_eq!(table.extent_count(), 1);
}

#[test]
fn chunks_span_the_balloon_when_all_is_wanted() {
    let (mut table, all) = table();
    for i in (0..all.len() / GRANULE.bytes()).step_by(2) {
        let start = all.start() + i * GRANULE.bytes();
        inflate(&mut table, start, GRANULE.bytes());
    }
    // As few as if nothing were in the balloon: type1 allows 65,535.
    assert_eq!(map_all(&mut table, Want::All, all), HIGH);
}
