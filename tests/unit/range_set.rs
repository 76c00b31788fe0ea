// SPDX-License-Identifier: GPL-2.0-only

//! The range set against a bitmap.

use crate::logic::range::Range;
use crate::logic::range_set::RangeSet;
use crate::logic::vec::injection;
use crate::rng::{
    steps,
    Rng, //
};

#[test]
fn random_operations_match_a_bitmap() {
    let mut rng = Rng::new("range_set");
    let mut set = RangeSet::new();
    let mut bitmap = 0u64;
    for _ in 0..steps(1_000_000) {
        let start = rng.below(64);
        let longest = if rng.one_in(8) { 64 } else { 8 };
        let len = 1 + rng.below(longest.min(64 - start));
        let range = Range::from_len(start, len).unwrap();
        let bits = (u64::MAX >> (64 - len)) << start;
        let armed = rng.one_in(4);
        if armed {
            injection::fail_after(0);
        }
        let (result, changed, after) = if rng.one_in(2) {
            (set.insert(range), bits & !bitmap, bitmap | bits)
        } else {
            (set.remove(range), bits & bitmap, bitmap & !bits)
        };
        let failed = armed && !injection::disarm();
        assert_eq!(result.is_err(), failed);
        if let Ok(bytes) = result {
            assert_eq!(bytes, u64::from(changed.count_ones()));
            bitmap = after;
        }
        let mut seen = 0;
        let mut last = None;
        for range in set.ranges() {
            assert!(last.is_none_or(|end| end < range.start()), "not merged");
            last = Some(range.end());
            seen |= (u64::MAX >> (64 - range.len())) << range.start();
        }
        assert_eq!(seen, bitmap);
        assert_eq!(set.bytes(), u64::from(bitmap.count_ones()));
        assert_eq!(set.covers(range), bits & bitmap == bits);
    }
}
