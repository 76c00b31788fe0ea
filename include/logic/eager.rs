// SPDX-License-Identifier: GPL-2.0-only

//! Windows of guest RAM that are mapped at once although the rest of it waits.
//!
//! Firmware and boot loaders work in the first MiBs and below the top of low RAM, and some at the
//! top of all RAM.  A VMM does not say how much RAM there will be, so a top is that of each map.

use super::{
    protocol::GRANULE,
    range::Range, //
};

/// Where low RAM ends.
const LOW_END: u64 = 1 << 32;

/// The sizes of the windows, in bytes; 0: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Eager {
    /// From address 0.
    pub(crate) first: u64,
    /// Below the end of each map that ends below 4 GiB.
    pub(crate) low_top: u64,
    /// Below the end of each other map.
    pub(crate) top: u64,
}

impl Eager {
    /// What of the map `block` lies in windows, in whole granules as far as it goes.
    pub(crate) fn windows(&self, block: Range) -> impl Iterator<Item = Range> {
        let top = match block.end() <= LOW_END {
            true => self.low_top,
            false => self.top,
        };
        let first = Range::new(0, round_up(self.first));
        let start = GRANULE.down(block.end().saturating_sub(top));
        let last = Range::new(start, block.end()).filter(|_| top > 0);
        [first, last]
            .into_iter()
            .flatten()
            .filter_map(move |window| window.intersect(block))
    }
}

fn round_up(bytes: u64) -> u64 {
    match GRANULE.divides(bytes) {
        true => bytes,
        false => GRANULE.next_boundary(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn windows(eager: Eager, start: u64, end: u64) -> Vec<(u64, u64)> {
        let block = Range::new(start * MIB, end * MIB).unwrap();
        let windows = eager.windows(block);
        windows.map(|w| (w.start() / MIB, w.end() / MIB)).collect()
    }

    fn eager(first: u64, low_top: u64, top: u64) -> Eager {
        Eager {
            first: first * MIB,
            low_top: low_top * MIB,
            top: top * MIB,
        }
    }

    #[test]
    fn each_window_is_of_its_own_map() {
        let all = eager(16, 64, 32);
        assert_eq!(windows(all, 0, 2048), [(0, 16), (1984, 2048)]);
        assert_eq!(windows(all, 4096, 8192), [(8160, 8192)]);
        assert_eq!(windows(all, 4000, 4096), [(4032, 4096)]);
        assert_eq!(windows(all, 1024, 1025), [(1024, 1025)]);
        assert_eq!(windows(all, 0, 8), [(0, 8), (0, 8)]);
    }

    #[test]
    fn nothing_without_a_size() {
        assert_eq!(windows(eager(0, 0, 0), 0, 8192), []);
        assert_eq!(windows(eager(16, 64, 0), 4096, 8192), []);
        assert_eq!(windows(eager(0, 0, 32), 0, 2048), []);
        assert_eq!(windows(eager(16, 0, 0), 16, 2048), []);
    }

    #[test]
    fn granules_are_whole() {
        assert_eq!(windows(eager(1, 3, 0), 0, 2048), [(0, 2), (2044, 2048)]);
        assert_eq!(
            windows(eager(0, 0, u64::MAX / MIB), 4096, 4099),
            [(4096, 4099)]
        );
    }
}
