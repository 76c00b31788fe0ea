// SPDX-License-Identifier: GPL-2.0-only

//! Ranges of addresses: guest-physical ones, IOVAs and user addresses.
//!
//! One type serves all three.  Which IOVAs are guest-physical addresses has to be known, see
//! [`super::memory_map`].

/// A power of two, in bytes.
///
/// # Invariants
///
/// The shift is below 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Align(u32);

impl Align {
    /// `1 << shift` bytes; a shift above 63 counts as 63.
    pub(crate) const fn of_shift(shift: u32) -> Self {
        Self(if shift < 64 { shift } else { 63 })
    }

    /// The greatest power of two that is at most `bytes`, and 1 for 0.
    pub(crate) const fn at_most(bytes: u64) -> Self {
        match bytes.checked_ilog2() {
            Some(shift) => Self(shift),
            None => Self(0),
        }
    }

    /// The power of two itself, in bytes.
    pub(crate) const fn bytes(self) -> u64 {
        1 << self.0
    }

    /// `addr` rounded down.
    pub(crate) const fn down(self, addr: u64) -> u64 {
        (addr >> self.0) << self.0
    }

    /// The first multiple above `addr`; past the last multiple, the end of the address space.
    pub(crate) const fn next_boundary(self, addr: u64) -> u64 {
        self.down(addr).saturating_add(self.bytes())
    }

    /// Whether `value` is a multiple.
    pub(crate) const fn divides(self, value: u64) -> bool {
        self.down(value) == value
    }
}

/// A range of addresses in bytes: half-open and never empty.
///
/// The very last byte of the 64-bit address space cannot be part of a range.
///
/// # Invariants
///
/// `start < end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    start: u64,
    end: u64,
}

impl Range {
    /// All addresses (but for the last byte).
    pub(crate) const ALL: Self = Self {
        start: 0,
        end: u64::MAX,
    };

    /// `start..end`, or `None` if that is empty.
    pub(crate) const fn new(start: u64, end: u64) -> Option<Self> {
        if start < end {
            Some(Self { start, end })
        } else {
            None
        }
    }

    /// `len` bytes from `start`, or `None` if that is empty or passes the end of the address space.
    pub(crate) const fn from_len(start: u64, len: u64) -> Option<Self> {
        match start.checked_add(len) {
            Some(end) => Self::new(start, end),
            None => None,
        }
    }

    /// Like [`Range::from_len`], but cut off at the end of the address space.
    ///
    /// For requests about whatever lies there: QEMU unmaps "everything" as two halves, and
    /// `1 << 63` bytes from `1 << 63` end beyond [`u64::MAX`].
    pub(crate) const fn clamped(start: u64, len: u64) -> Option<Self> {
        Self::new(start, start.saturating_add(len))
    }

    /// The first byte.
    pub(crate) const fn start(self) -> u64 {
        self.start
    }

    /// The byte after the last one.
    pub(crate) const fn end(self) -> u64 {
        self.end
    }

    /// The length in bytes, never 0.
    pub(crate) const fn len(self) -> u64 {
        // `start < end`, so this is exact.
        self.end.wrapping_sub(self.start)
    }

    /// Whether `addr` lies inside.
    pub(crate) const fn contains(self, addr: u64) -> bool {
        self.start <= addr && addr < self.end
    }

    /// Whether `addr` lies inside and is not the first byte: a cut there leaves two pieces.
    pub(crate) const fn is_cut_by(self, addr: u64) -> bool {
        self.start < addr && addr < self.end
    }

    /// Whether all of `other` lies inside.
    pub(crate) const fn covers(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Whether there is a byte in both.
    pub(crate) const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// The bytes in both.
    pub(crate) fn intersect(self, other: Self) -> Option<Self> {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// The smallest range around both.
    pub(crate) fn hull(self, other: Self) -> Self {
        // INVARIANT: The start can only fall and the end can only rise.
        Self {
            start: self.start.min(other.start),
            end: self.end.max(other.end),
        }
    }

    /// How many pieces there are when it is cut at each multiple of `align`; at least 1.
    pub(crate) const fn windows(self, align: Align) -> u64 {
        // `start <= end - 1`, and the shift of their difference leaves room for the one more.
        let (first, last) = (self.start >> align.0, self.end.wrapping_sub(1) >> align.0);
        last.wrapping_sub(first).saturating_add(1)
    }

    /// Whether both ends are aligned.
    pub(crate) const fn is_aligned(self, align: Align) -> bool {
        align.divides(self.start) && align.divides(self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn r(start: u64, end: u64) -> Range {
        Range::new(start, end).unwrap()
    }

    #[test]
    fn align() {
        let a = Align::of_shift(21);
        assert_eq!(a.bytes(), 0x20_0000);
        assert_eq!(Align::at_most(0x20_0000), a);
        assert_eq!(Align::at_most(0x3f_ffff), a);
        assert_eq!(Align::at_most(0).bytes(), 1);
        assert_eq!(Align::at_most(u64::MAX).bytes(), 1 << 63);
        assert_eq!(Align::of_shift(64).bytes(), 1 << 63);
        assert_eq!(a.down(0x3f_ffff), 0x20_0000);
        assert_eq!(a.next_boundary(0x20_0000), 0x40_0000);
        assert_eq!(a.next_boundary(u64::MAX), u64::MAX);
        assert!(a.divides(0) && a.divides(0x40_0000) && !a.divides(0x1000));
    }

    #[test]
    fn construction() {
        assert_eq!(Range::new(1, 1), None);
        assert_eq!(Range::new(2, 1), None);
        assert_eq!(Range::from_len(1, 0), None);
        assert_eq!(Range::from_len(u64::MAX, 1), None);
        assert_eq!(Range::from_len(1 << 63, 1 << 63), None);
        assert_eq!(Range::from_len(4, 4), Some(r(4, 8)));
        assert_eq!(Range::clamped(1 << 63, 1 << 63), Some(r(1 << 63, u64::MAX)));
        assert_eq!(Range::clamped(u64::MAX, 1), None);
        assert_eq!(Range::ALL.len(), u64::MAX);
    }

    #[test]
    fn relations() {
        let a = r(10, 20);
        assert!(a.contains(10) && a.contains(19) && !a.contains(20) && !a.contains(9));
        assert!(!a.is_cut_by(10) && a.is_cut_by(11) && !a.is_cut_by(20));
        assert!(a.covers(a) && a.covers(r(11, 19)) && !a.covers(r(9, 11)));
        assert!(a.overlaps(r(19, 30)) && !a.overlaps(r(20, 30)) && !a.overlaps(r(0, 10)));
        assert_eq!(a.intersect(r(15, 30)), Some(r(15, 20)));
        assert_eq!(a.intersect(r(20, 30)), None);
        assert_eq!(a.hull(r(30, 40)), r(10, 40));
    }

    #[test]
    fn windows() {
        let a = Align::of_shift(4);
        assert_eq!(r(16, 32).windows(a), 1);
        assert_eq!(r(31, 33).windows(a), 2);
        assert_eq!(r(0, 1).windows(a), 1);
        assert_eq!(r(15, 65).windows(a), 5);
        assert_eq!(Range::ALL.windows(Align::of_shift(63)), 2);
        assert_eq!(Range::ALL.windows(Align::of_shift(0)), u64::MAX);
    }

    #[test]
    fn alignment_of_ranges() {
        let a = Align::of_shift(4);
        assert!(r(16, 48).is_aligned(a) && !r(16, 47).is_aligned(a));
    }
}
