// SPDX-License-Identifier: GPL-2.0-only

//! The states that a byte of deferred guest RAM goes through, and the sums over them.
//!
//! ```text
//!                 take                complete(ok)
//!   Unmapped(p) --------> Mapping(p) --------------> Mapped
//!        ^  ^      abort    |     |
//!        |  +---------------+     | complete(failed)
//!        |                        v
//!        +--------------------- Failed(p)
//!                 retry
//! ```
//!
//! Inflating turns the place `p` of what is not mapped into [`Place::Balloon`], and a reset of the
//! balloon turns it back into [`Place::Outside`].

use super::sum::less;

/// Which side of the balloon a byte is on, as far as the guest has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The guest may use it, and so may a device.
    Outside,
    /// The guest has given it up until the host acknowledges its deflation.
    Balloon,
}

/// What is known about a byte of deferred guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExtentState {
    /// Not in the IOMMU: *deferred* outside the balloon, *ballooned* inside it.
    Unmapped(Place),
    /// A [`super::table::Chunk`] that covers it is out, being mapped.
    Mapping(Place),
    /// In the IOMMU.  It stays there, so it no longer matters where the balloon is.
    Mapped,
    /// The last try to map it failed; nobody tries again before a retry.
    Failed(Place),
}

impl ExtentState {
    /// Every state there is.
    pub(crate) const ALL: [Self; 7] = [
        Self::Unmapped(Place::Outside),
        Self::Unmapped(Place::Balloon),
        Self::Mapping(Place::Outside),
        Self::Mapping(Place::Balloon),
        Self::Mapped,
        Self::Failed(Place::Outside),
        Self::Failed(Place::Balloon),
    ];

    /// Whether the byte is going to be mapped without anybody asking again.
    pub(crate) const fn is_pending(self) -> bool {
        matches!(self, Self::Unmapped(_) | Self::Mapping(_))
    }

    /// After the guest gave the byte up.  Only an outside failure is forgotten: of one inside, the
    /// guest has been told, and it asks again by deflating.
    pub(super) const fn inflated(self) -> Self {
        match self {
            Self::Unmapped(_) | Self::Failed(Place::Outside) => Self::Unmapped(Place::Balloon),
            Self::Mapping(_) => Self::Mapping(Place::Balloon),
            Self::Mapped | Self::Failed(Place::Balloon) => self,
        }
    }

    /// After the device was reset: nothing is in the balloon.
    pub(super) const fn outside(self) -> Self {
        match self {
            Self::Unmapped(_) => Self::Unmapped(Place::Outside),
            Self::Mapping(_) => Self::Mapping(Place::Outside),
            Self::Failed(_) => Self::Failed(Place::Outside),
            Self::Mapped => Self::Mapped,
        }
    }

    /// After a chunk that covers the byte was taken for mapping.
    pub(super) const fn taken(self) -> Self {
        match self {
            Self::Unmapped(place) | Self::Failed(place) => Self::Mapping(place),
            _ => self,
        }
    }

    /// Whether the byte is neither in the IOMMU nor on its way there.
    pub(super) const fn is_missing(self) -> bool {
        matches!(self, Self::Unmapped(_) | Self::Failed(_))
    }

    /// After the chunk came back mapped, or could not be mapped.
    pub(super) const fn completed(self, ok: bool) -> Self {
        match self {
            Self::Mapping(_) if ok => Self::Mapped,
            Self::Mapping(place) => Self::Failed(place),
            _ => self,
        }
    }

    /// After the chunk came back untried.
    pub(super) const fn aborted(self) -> Self {
        match self {
            Self::Mapping(place) => Self::Unmapped(place),
            _ => self,
        }
    }

    /// After a failure was forgiven.
    pub(super) const fn retried(self) -> Self {
        match self {
            Self::Failed(place) => Self::Unmapped(place),
            _ => self,
        }
    }
}

/// Which bytes somebody wants to have mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// Those outside the balloon: a commit, the bus-master gate.
    Outside,
    /// Those in the balloon as well: a deflation, pre-mapping, a guest that is not ours.
    All,
}

impl Want {
    /// Whether bytes at `place` are wanted.
    pub(crate) const fn includes(self, place: Place) -> bool {
        matches!((self, place), (Self::All, _) | (_, Place::Outside))
    }

    /// Whether bytes in `state` are there to be taken.
    pub(super) const fn takes(self, state: ExtentState) -> bool {
        matches!(state, ExtentState::Unmapped(place) if self.includes(place))
    }

    /// How far a range of bytes in `state` is from what is wanted.
    pub(super) const fn status(self, state: ExtentState) -> Progress {
        match state {
            ExtentState::Unmapped(place) | ExtentState::Mapping(place) if self.includes(place) => {
                Progress::Pending
            }
            ExtentState::Failed(place) if self.includes(place) => Progress::Failed,
            _ => Progress::Done,
        }
    }
}

/// What a waiter has to know, ordered: of two ranges together, the greater one holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Progress {
    /// All that is wanted is mapped.
    Done,
    /// Nothing more will be mapped without a retry, and something wanted is missing.
    Failed,
    /// Something wanted is being mapped, or has yet to be taken.
    Pending,
}

/// Bytes by state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Unmapped outside the balloon.
    pub(crate) deferred: u64,
    /// Unmapped in the balloon.
    pub(crate) ballooned: u64,
    /// Being mapped, outside the balloon.
    pub(crate) mapping_outside: u64,
    /// Being mapped, in the balloon.
    pub(crate) mapping_balloon: u64,
    /// Mapped.
    pub(crate) mapped: u64,
    /// Failed, outside the balloon.
    pub(crate) failed_outside: u64,
    /// Failed, in the balloon.
    pub(crate) failed_balloon: u64,
}

impl Totals {
    /// Of nothing.
    pub(super) const NONE: Self = Self {
        deferred: 0,
        ballooned: 0,
        mapping_outside: 0,
        mapping_balloon: 0,
        mapped: 0,
        failed_outside: 0,
        failed_balloon: 0,
    };

    /// The bytes in `state`.
    pub(crate) fn of(&self, state: ExtentState) -> u64 {
        match state {
            ExtentState::Unmapped(Place::Outside) => self.deferred,
            ExtentState::Unmapped(Place::Balloon) => self.ballooned,
            ExtentState::Mapping(Place::Outside) => self.mapping_outside,
            ExtentState::Mapping(Place::Balloon) => self.mapping_balloon,
            ExtentState::Mapped => self.mapped,
            ExtentState::Failed(Place::Outside) => self.failed_outside,
            ExtentState::Failed(Place::Balloon) => self.failed_balloon,
        }
    }

    /// The bytes that are not mapped.
    pub(crate) fn unmapped(&self) -> u64 {
        let sums = [
            self.deferred,
            self.ballooned,
            self.mapping_outside,
            self.mapping_balloon,
            self.failed_outside,
            self.failed_balloon,
        ];
        sums.into_iter().fold(0, u64::saturating_add)
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.unmapped().saturating_add(self.mapped)
    }

    /// The status of everything that was summed up.
    pub(crate) fn status(&self, want: Want) -> Progress {
        let (mut pending, mut failed) = (
            self.deferred | self.mapping_outside,
            self.failed_outside, //
        );
        if want == Want::All {
            pending |= self.ballooned | self.mapping_balloon;
            failed |= self.failed_balloon;
        }
        if pending != 0 {
            Progress::Pending
        } else if failed != 0 {
            Progress::Failed
        } else {
            Progress::Done
        }
    }

    /// Counts `bytes` more in `state`.
    pub(super) fn add(&mut self, state: ExtentState, bytes: u64) {
        // Sums over disjoint ranges stay below 2^64: saturating only means that this cannot panic.
        let slot = self.slot(state);
        *slot = slot.saturating_add(bytes);
    }

    /// Counts `bytes` fewer in `state`.
    pub(super) fn sub(&mut self, state: ExtentState, bytes: u64) {
        let slot = self.slot(state);
        *slot = less(*slot, bytes);
    }

    /// Counts all of `other` out.
    pub(super) fn remove(&mut self, other: &Self) {
        for state in ExtentState::ALL {
            self.sub(state, other.of(state));
        }
    }

    fn slot(&mut self, state: ExtentState) -> &mut u64 {
        match state {
            ExtentState::Unmapped(Place::Outside) => &mut self.deferred,
            ExtentState::Unmapped(Place::Balloon) => &mut self.ballooned,
            ExtentState::Mapping(Place::Outside) => &mut self.mapping_outside,
            ExtentState::Mapping(Place::Balloon) => &mut self.mapping_balloon,
            ExtentState::Mapped => &mut self.mapped,
            ExtentState::Failed(Place::Outside) => &mut self.failed_outside,
            ExtentState::Failed(Place::Balloon) => &mut self.failed_balloon,
        }
    }
}
