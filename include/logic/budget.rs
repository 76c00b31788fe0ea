// SPDX-License-Identifier: GPL-2.0-only

//! How many mappings a container's deferred RAM may become.
//!
//! type1 takes a limited number of mappings (`dma_entry_limit`, 65535).  Where pieces of RAM begin
//! and end is for the guest to choose, by where its balloon has holes and by the order in which it
//! deflates.  Of the mappings that a container has room for,
//!
//! - at most a quarter are *windows*: pieces without which it does not go, since none crosses a
//!   multiple of the largest size.  RAM that would need more is not deferred;
//! - once another quarter has been made, pieces are taken with all that is missing
//!   [around](super::table::Take::Around) them.
//!
//! Then no order of requests makes more than three quarters, give or take one for each thread:
//! where `p` pieces are mapped in `w` windows, what is missing lies in at most `p + w` runs, and
//! from there on each piece is one of these runs, whole.  So there are at most
//! `p + (p + w)` pieces, and both `p` and `w` are at most a quarter.  The last quarter is for maps
//! that are not deferred.

use super::table::Take;

/// The mappings that a container has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    room: u64,
}

impl Budget {
    /// None at all.
    pub(crate) const NONE: Self = Self { room: 0 };

    /// `available` more than the `pieces` that deferred RAM has become already.
    pub(crate) const fn new(available: u64, pieces: u64) -> Self {
        Self {
            room: available.saturating_add(pieces),
        }
    }

    /// Whether RAM that lies in so many windows may be deferred.
    pub(crate) const fn allows(self, windows: u64) -> bool {
        windows <= self.room / 4
    }

    /// How the next piece is to be taken when there are so many.
    pub(crate) const fn take(self, pieces: u64) -> Take {
        if pieces < self.room / 4 {
            Take::Wanted
        } else {
            Take::Around
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quarters() {
        let budget = Budget::new(65_535, 0);
        assert!(budget.allows(16_383) && !budget.allows(16_384));
        assert_eq!(budget.take(16_382), Take::Wanted);
        assert_eq!(budget.take(16_383), Take::Around);
        assert_eq!(Budget::new(60_000, 5_535), budget);
    }

    #[test]
    fn nothing_is_allowed_without_room() {
        assert!(!Budget::NONE.allows(1));
        assert_eq!(Budget::NONE.take(0), Take::Around);
        assert_eq!(Budget::new(u64::MAX, u64::MAX).take(0), Take::Wanted);
    }
}
