// SPDX-License-Identifier: GPL-2.0-only

//! Where a guest's RAM is in its VMM: guest-physical address to user address.
//!
//! The balloon names guest-physical addresses; what there is to learn from are the VMM's
//! `VFIO_IOMMU_MAP_DMA` calls, which name IOVAs.  The two are the same where a device has no
//! virtual IOMMU, and while that translates nothing.  Where it does, the VMM maps whatever the
//! guest's driver has asked for at whatever IOVA: the balloon must not take that for RAM at this
//! address.  A call does not say which it is, but
//!
//! - a VMM maps all of a guest's RAM flat before the guest can have anything translated, so *the
//!   first address of a byte of RAM is its guest-physical one*, and what a virtual IOMMU maps
//!   later is RAM that is known under another address;
//! - RAM has one guest-physical address, and an address one byte of RAM: a map that says otherwise
//!   of what is known is not flat;
//! - RAM is large: what is small and not known is nothing to learn from.
//!
//! What is known stays so for as long as the VM lives, in the IOMMU or not: an unmap may be that of
//! a virtual IOMMU that begins to translate.  So it says what an address *means*, not that the VMM
//! still has memory there: for that, ask the containers.

use super::{
    range::Range,
    range_map::Ranged,
    vec::{
        NoMemory,
        Vector, //
    },
};

/// A range of IOVAs and the user address of its first byte.
///
/// # Invariants
///
/// The user addresses do not pass the end of the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UserRange {
    range: Range,
    vaddr: u64,
}

impl UserRange {
    /// `None` if the user addresses pass the end of the address space.
    pub(crate) fn new(range: Range, vaddr: u64) -> Option<Self> {
        Range::from_len(vaddr, range.len())?;
        Some(Self { range, vaddr })
    }

    /// The user address of the first byte.
    pub(crate) fn vaddr(&self) -> u64 {
        self.vaddr
    }

    /// What of it lies inside `within`.
    pub(crate) fn part(&self, within: Range) -> Option<Self> {
        let range = self.range.intersect(within)?;
        let vaddr = self.translate(range.start())?;
        Some(Self { range, vaddr })
    }

    /// The user address of `iova`, if that is inside.
    pub(crate) fn translate(&self, iova: u64) -> Option<u64> {
        if !self.range.contains(iova) {
            return None;
        }
        self.vaddr
            .checked_add(iova.checked_sub(self.range.start())?)
    }

    /// The user address of `iova` and how many bytes lie behind it, if that is inside.
    pub(crate) fn rest(&self, iova: u64) -> Option<(u64, u64)> {
        let vaddr = self.translate(iova)?;
        Some((vaddr, self.range.end().checked_sub(iova)?))
    }

    /// Whether they say the same of all addresses.
    fn agrees(&self, other: &Self) -> bool {
        self.range.start().wrapping_sub(self.vaddr) == other.range.start().wrapping_sub(other.vaddr)
    }

    /// Whether they share an IOVA or a user address.
    fn meets(&self, other: &Self) -> bool {
        let vaddrs = |user: &Self| Range::from_len(user.vaddr, user.range.len());
        let shared = match (vaddrs(self), vaddrs(other)) {
            (Some(one), Some(two)) => one.overlaps(two),
            // Not by the invariant.
            _ => true,
        };
        shared || self.range.overlaps(other.range)
    }
}

impl Ranged for UserRange {
    fn range(&self) -> Range {
        self.range
    }
}

/// What a map says, compared with what is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All of it is known, and so.
    Known,
    /// Some of it is not known, and the rest is so.
    New,
    /// Some of it is known otherwise: it is not flat.
    Differs,
}

/// The guest's RAM as it is known: the fewest ranges.
#[derive(Debug)]
pub(crate) struct MemoryMap(Vector<UserRange>);

impl MemoryMap {
    /// The most ranges.  VMMs have a few, and what is adjacent is one; who has more maps no guest.
    pub(crate) const MOST: usize = 1024;
    /// The least that is learned, in bytes.  A virtual IOMMU's maps are pages, mostly; no ring and
    /// no block of a balloon is in RAM that a VMM maps in smaller pieces.
    pub(crate) const LEAST: u64 = 64 << 10;

    /// An empty map, without an allocation.
    pub(crate) const fn new() -> Self {
        Self(Vector::new())
    }

    /// What a map of `user` says; takes time with the number of ranges.
    pub(crate) fn judge(&self, user: &UserRange) -> Verdict {
        let mut known: u64 = 0;
        for entry in self.0.iter().filter(|entry| entry.meets(user)) {
            if !entry.agrees(user) {
                return Verdict::Differs;
            }
            let shared = entry.range.intersect(user.range).map_or(0, Range::len);
            known = known.saturating_add(shared);
        }
        match known == user.range.len() {
            true => Verdict::Known,
            false => Verdict::New,
        }
    }

    /// Whether all of its user addresses are known to be RAM, at whatever address.
    pub(crate) fn has(&self, user: &UserRange) -> bool {
        let vaddrs = |user: &UserRange| Range::from_len(user.vaddr, user.range.len());
        let inside = |entry: &UserRange| Some(vaddrs(entry)?.covers(vaddrs(user)?));
        self.0.iter().any(|entry| inside(entry) == Some(true))
    }

    /// Learns from a map of RAM; true if it is flat, and all of it known from now on.
    pub(crate) fn learn(&mut self, user: UserRange) -> Result<bool, NoMemory> {
        match self.judge(&user) {
            Verdict::Known => Ok(true),
            Verdict::Differs => Ok(false),
            Verdict::New if user.range.len() < Self::LEAST => Ok(false),
            Verdict::New => self.add(user),
        }
    }

    /// Adds what [`MemoryMap::judge`] says is new, of whatever size; false if there is too much.
    pub(crate) fn add(&mut self, user: UserRange) -> Result<bool, NoMemory> {
        // What it overlaps agrees with it.  What only touches it may not.
        let (start, end) = (user.range.start(), user.range.end());
        let mut first = self.0.partition_point(|entry| entry.range.end() < start);
        let mut last = self.0.partition_point(|entry| entry.range.start() <= end);
        let other = |entry: &&UserRange| !entry.agrees(&user);
        let below = self.0.get(first).filter(|entry| entry.range.end() == start);
        if below.filter(other).is_some() {
            first = first.saturating_add(1);
        }
        let above = last.checked_sub(1).and_then(|index| self.0.get(index));
        let above = above.filter(|entry| entry.range.start() == end);
        if above.filter(other).is_some() {
            last = last.saturating_sub(1);
        }
        let old = self.0.get(first..last).unwrap_or_default();
        let range = old.iter().fold(user.range, |hull, e| hull.hull(e.range));
        let lowest = old.first().filter(|e| e.range.start() < start);
        let merged = UserRange {
            range,
            vaddr: lowest.map_or(user.vaddr, |entry| entry.vaddr),
        };
        if old.is_empty() {
            if self.0.len() >= Self::MOST {
                return Ok(false);
            }
            self.0.try_insert(first, merged)?;
        } else if let Some(entry) = self.0.get_mut(first) {
            *entry = merged;
            self.0.remove_range(first.saturating_add(1), last);
        }
        Ok(true)
    }

    /// The VMM says that RAM is at another user address now, whatever was known before: true if
    /// that is known from now on.
    pub(crate) fn replace(&mut self, user: UserRange) -> Result<bool, NoMemory> {
        self.forget(user.range);
        // What was at these user addresses is elsewhere, or it will be.
        let vaddrs = |user: &UserRange| Range::from_len(user.vaddr, user.range.len());
        while let Some(part) = self.0.iter().find_map(|entry| {
            let shared = vaddrs(entry)?.intersect(vaddrs(&user)?)?;
            let offset = shared.start().checked_sub(entry.vaddr)?;
            Range::from_len(entry.range.start().checked_add(offset)?, shared.len())
        }) {
            self.forget(part);
        }
        self.add(user)
    }

    /// Forgets all of `range`; without memory for what a cut leaves, somewhat more.
    pub(crate) fn forget(&mut self, range: Range) {
        let mut index = self.0.partition_point(|e| e.range.end() <= range.start());
        while let Some(entry) = self.0.get(index).copied() {
            if !entry.range.overlaps(range) {
                break;
            }
            let rest = |start, end| entry.part(Range::new(start, end)?);
            let left = rest(entry.range.start(), range.start());
            let right = rest(range.end(), entry.range.end());
            self.0.remove(index);
            for part in [left, right].into_iter().flatten() {
                if self.0.try_insert(index, part).is_ok() {
                    index = index.saturating_add(1);
                }
            }
        }
    }

    /// The user address of `gpa`, and how many of the `len` bytes from there lie behind it
    /// without a gap; never 0, but fewer than `len` where a range ends: ask again from there.
    pub(crate) fn translate(&self, gpa: u64, len: u64) -> Option<(u64, u64)> {
        let index = self.0.partition_point(|entry| entry.range.end() <= gpa);
        let part = self.0.get(index)?.part(Range::clamped(gpa, len)?)?;
        part.range
            .contains(gpa)
            .then_some((part.vaddr, part.range.len()))
    }

    /// All ranges in rising order.
    pub(crate) fn entries(&self) -> &[UserRange] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::vec::injection;

    const KIB: u64 = 1 << 10;

    fn r(start: u64, end: u64) -> Range {
        Range::new(start, end).unwrap()
    }

    /// `size` KiB at `iova` KiB, from the user address `vaddr` KiB on.
    fn user(iova: u64, size: u64, vaddr: u64) -> UserRange {
        UserRange::new(r(iova * KIB, (iova + size) * KIB), vaddr * KIB).unwrap()
    }

    fn map(users: &[UserRange]) -> MemoryMap {
        let mut map = MemoryMap::new();
        for &user in users {
            assert_eq!(map.learn(user), Ok(true));
        }
        map
    }

    /// 1 MiB at 0 and 1 MiB at 4 MiB, which are one piece of the VMM's memory.
    fn flat() -> MemoryMap {
        map(&[user(0, 1024, 8192), user(4096, 1024, 9216)])
    }

    #[test]
    fn translate() {
        let map = flat();
        assert_eq!(map.translate(0, 8), Some((8192 * KIB, 8)));
        assert_eq!(map.translate(1024 * KIB - 4, 8), Some((9216 * KIB - 4, 4)));
        assert_eq!(map.translate(1024 * KIB, 8), None);
        assert_eq!(map.translate(4095 * KIB, 1024 * KIB), None);
        assert_eq!(map.translate(4096 * KIB, 0), None);
        assert_eq!(
            map.translate(4097 * KIB, u64::MAX),
            Some((9217 * KIB, 1023 * KIB))
        );
        assert_eq!(map.translate(u64::MAX, 1), None);
    }

    #[test]
    fn the_first_address_counts() {
        let mut map = flat();
        for (what, other) in [
            ("other memory at a known address", user(512, 64, 1 << 20)),
            ("the same, from before", user(960, 128, 1 << 20)),
            ("known memory at another address", user(8192, 64, 8192)),
            ("the same in part", user(8192, 2048, 10239)),
            ("known memory at a known address", user(0, 64, 9216)),
            ("all of it, with the hole", user(0, 5120, 8192)),
        ] {
            assert_eq!(map.judge(&other), Verdict::Differs, "{what}");
            assert_eq!(map.has(&other), what.starts_with("known"), "{what}");
            assert_eq!(map.learn(other), Ok(false), "{what}");
        }
        assert_eq!(map.entries(), flat().entries());
    }

    #[test]
    fn what_is_known_is_known_in_any_pieces() {
        let mut map = flat();
        assert_eq!(map.judge(&user(0, 1024, 8192)), Verdict::Known);
        assert_eq!(map.judge(&user(1020, 4, 9212)), Verdict::Known);
        assert_eq!(map.judge(&user(4096, 1, 9216)), Verdict::Known);
        assert_eq!(map.judge(&user(4096, 1025, 9216)), Verdict::New);
        assert_eq!(map.learn(user(2, 1, 8194)), Ok(true));
        assert_eq!(map.entries(), flat().entries());
    }

    #[test]
    fn neighbours_are_one() {
        let mut map = map(&[user(0, 64, 1000), user(128, 64, 1128)]);
        assert_eq!(map.learn(user(64, 64, 1064)), Ok(true));
        assert_eq!(map.entries(), [user(0, 192, 1000)]);
        // Beside it, of other memory.
        assert_eq!(map.learn(user(192, 64, 5000)), Ok(true));
        assert_eq!(map.learn(user(256, 64, 1256)), Ok(true));
        assert_eq!(map.entries().len(), 3);
        // Between two of other memory.
        assert_eq!(map.learn(user(320, 64, 9000)), Ok(true));
        assert_eq!(map.learn(user(448, 64, 9500)), Ok(true));
        assert_eq!(map.learn(user(384, 64, 7000)), Ok(true));
        let starts = map.entries().iter().map(|e| e.range().start() / KIB);
        let starts: std::vec::Vec<_> = starts.collect();
        assert_eq!(starts, [0, 192, 256, 320, 384, 448]);
        // More than is known, on both sides.
        let mut map = self::map(&[user(100, 64, 1100)]);
        assert_eq!(map.learn(user(64, 256, 1064)), Ok(true));
        assert_eq!(map.entries(), [user(64, 256, 1064)]);
    }

    #[test]
    fn what_is_small_or_too_much_is_not_learned() {
        let mut map = MemoryMap::new();
        assert_eq!(map.learn(user(0, 63, 0)), Ok(false));
        for i in 0..MemoryMap::MOST as u64 {
            assert_eq!(map.learn(user(i * 128, 64, i * 128)), Ok(i < 1024));
        }
        let last = MemoryMap::MOST as u64 * 128;
        assert_eq!(map.learn(user(last, 64, last)), Ok(false));
        assert_eq!(map.learn(user(64, 64, 64)), Ok(true));
        assert_eq!(map.entries().len(), MemoryMap::MOST - 1);
    }

    #[test]
    fn forget() {
        let mut map = flat();
        map.forget(r(512 * KIB, 4100 * KIB));
        let left = [user(0, 512, 8192), user(4100, 1020, 9220)];
        assert_eq!(map.entries(), left);
        map.forget(r(600 * KIB, 700 * KIB));
        assert_eq!(map.entries(), left);
        map.forget(r(100 * KIB, 101 * KIB));
        assert_eq!(
            map.entries(),
            [user(0, 100, 8192), user(101, 411, 8293), left[1]]
        );
        assert_eq!(map.learn(user(4096, 4, 1 << 20)), Ok(false));
        map.forget(Range::ALL);
        assert!(map.entries().is_empty());
        assert_eq!(map.learn(user(4096, 64, 1 << 20)), Ok(true));
    }

    #[test]
    fn replace() {
        // Two that change places.
        let mut map = flat();
        assert_eq!(map.replace(user(0, 1024, 9216)), Ok(true));
        assert_eq!(map.entries(), [user(0, 1024, 9216)]);
        assert_eq!(map.replace(user(4096, 1024, 8192)), Ok(true));
        let swapped = [user(0, 1024, 9216), user(4096, 1024, 8192)];
        assert_eq!(map.entries(), swapped);
        assert_eq!(map.replace(swapped[0]), Ok(true));
        assert_eq!(map.entries(), swapped);
        // A part of one goes where its end was.
        let part = user(4096, 64, 9152);
        assert_eq!(map.replace(part), Ok(true));
        assert_eq!(map.entries(), [swapped[0], part, user(4160, 896, 8256)]);
    }

    #[test]
    fn without_memory_nothing_is_learned() {
        let mut map = flat();
        injection::fail_after(0);
        assert_eq!(map.learn(user(8192, 64, 1 << 20)), Err(NoMemory));
        assert_eq!(map.entries(), flat().entries());
        injection::fail_after(0);
        assert_eq!(map.learn(user(1024, 64, 9216)), Ok(false));
        assert_eq!(map.learn(user(5120, 64, 10240)), Ok(true));
        assert!(injection::disarm());
        injection::fail_after(0);
        map.forget(r(4097 * KIB, 4098 * KIB));
        assert!(map.entries().len() <= 3);
        assert_eq!(map.translate(4097 * KIB, 1), None);
        injection::disarm();
    }

    #[test]
    fn rest() {
        let user = user(4, 4, 100);
        assert_eq!(user.rest(5 * KIB), Some((101 * KIB, 3 * KIB)));
        assert_eq!(user.rest(8 * KIB), None);
        assert!(UserRange::new(r(0, 2), u64::MAX - 1).is_none());
    }
}
