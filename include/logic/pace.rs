// SPDX-License-Identifier: GPL-2.0-only

//! How fast the balloon shrinks.

use super::protocol::GRANULE;

/// How many bytes the guest deflates next, 0 when there is nothing to do.
///
/// From `held` towards `target`, at most `step` (but at least a granule) at a time, in whole
/// granules.
pub(crate) const fn deflate_step(held: u64, target: u64, step: u64) -> u64 {
    let excess = GRANULE.down(held.saturating_sub(target));
    let step = GRANULE.down(step);
    let step = if step == 0 { GRANULE.bytes() } else { step };
    if excess < step {
        excess
    } else {
        step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB2: u64 = 2 << 20;

    #[test]
    fn steps() {
        assert_eq!(deflate_step(10 * MIB2, 0, 4 * MIB2), 4 * MIB2);
        assert_eq!(deflate_step(10 * MIB2, 8 * MIB2, 4 * MIB2), 2 * MIB2);
        assert_eq!(deflate_step(10 * MIB2, 10 * MIB2, 4 * MIB2), 0);
        assert_eq!(deflate_step(10 * MIB2, 11 * MIB2, 4 * MIB2), 0);
        assert_eq!(deflate_step(10 * MIB2, 0, 0), MIB2);
        assert_eq!(deflate_step(10 * MIB2, 9 * MIB2 + 4096, MIB2), 0);
        assert_eq!(deflate_step(u64::MAX, 0, u64::MAX), u64::MAX - (MIB2 - 1));
    }

    #[test]
    fn every_target_is_reached() {
        let mut held = 1000 * MIB2;
        while held > 3 * MIB2 {
            let step = deflate_step(held, 3 * MIB2, 7 * MIB2 + 1);
            assert!(step > 0);
            held -= step;
        }
        assert_eq!(held, 3 * MIB2);
    }
}
