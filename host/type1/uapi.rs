// SPDX-License-Identifier: GPL-2.0-only

//! VFIO's structures as bytes: native-endian fields at fixed offsets.
//!
//! Source: `include/uapi/linux/vfio.h`.

use crate::logic::range::Range;

/// The `u32` at `offset`, if it lies inside.
pub(crate) fn get_u32(bytes: &[u8], offset: usize) -> Option<u32> {
    let field = bytes.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_ne_bytes(field.try_into().ok()?))
}

/// The `u64` at `offset`, if it lies inside.
pub(crate) fn get_u64(bytes: &[u8], offset: usize) -> Option<u64> {
    let field = bytes.get(offset..offset.checked_add(8)?)?;
    Some(u64::from_ne_bytes(field.try_into().ok()?))
}

fn put(bytes: &mut [u8], offset: usize, field: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(offset).zip(field) {
        *to = *from;
    }
}

/// `struct vfio_iommu_type1_dma_map`.
pub(crate) struct DmaMap {
    pub(crate) argsz: u32,
    pub(crate) flags: u32,
    pub(crate) vaddr: u64,
    pub(crate) iova: u64,
    pub(crate) size: u64,
}

impl DmaMap {
    /// Its size in bytes.
    pub(crate) const SIZE: usize = 32;
    /// The device may read and write, and nothing else is asked for.
    pub(crate) const READ_WRITE: u32 = 3;
    /// Gives a new address to a mapping whose address was invalidated.
    pub(crate) const VADDR: u32 = 1 << 2;

    /// From what user space passed.
    pub(crate) fn parse(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        Some(Self {
            argsz: get_u32(bytes, 0)?,
            flags: get_u32(bytes, 4)?,
            vaddr: get_u64(bytes, 8)?,
            iova: get_u64(bytes, 16)?,
            size: get_u64(bytes, 24)?,
        })
    }

    /// Whether type1 would look further than at its form.
    pub(crate) fn is_wellformed(&self) -> bool {
        let known = self.flags & !Self::READ_WRITE == 0 && self.flags != 0;
        self.argsz as usize >= Self::SIZE && known
    }

    /// As type1 reads it.
    pub(crate) fn bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        put(&mut bytes, 0, &self.argsz.to_ne_bytes());
        put(&mut bytes, 4, &self.flags.to_ne_bytes());
        put(&mut bytes, 8, &self.vaddr.to_ne_bytes());
        put(&mut bytes, 16, &self.iova.to_ne_bytes());
        put(&mut bytes, 24, &self.size.to_ne_bytes());
        bytes
    }
}

/// The head of `struct vfio_iommu_type1_dirty_bitmap` and of its `..._get`.
pub(crate) struct DirtyPages {
    flags: u32,
    iova: u64,
    size: u64,
}

impl DirtyPages {
    /// Its size in bytes.
    pub(crate) const SIZE: usize = 24;
    const GET_BITMAP: u32 = 1 << 2;

    /// From what user space passed.
    pub(crate) fn parse(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        Some(Self {
            flags: get_u32(bytes, 4)?,
            iova: get_u64(bytes, 8)?,
            size: get_u64(bytes, 16)?,
        })
    }

    /// Whose bitmap is asked for, if one is.
    pub(crate) fn range(&self) -> Option<Range> {
        let get = self.flags == Self::GET_BITMAP;
        Range::from_len(self.iova, self.size).filter(|_| get)
    }
}

/// `struct vfio_iommu_type1_dma_unmap`, without a bitmap.
pub(crate) struct DmaUnmap {
    pub(crate) flags: u32,
    pub(crate) iova: u64,
    pub(crate) size: u64,
}

impl DmaUnmap {
    /// Its size in bytes.
    pub(crate) const SIZE: usize = 24;
    /// Where `size` is in it.
    pub(crate) const SIZE_OFFSET: usize = 16;
    /// Wants the dirty bitmap of what goes.
    pub(crate) const GET_DIRTY_BITMAP: u32 = 1 << 0;
    /// All there is; IOVA and size are 0.
    pub(crate) const ALL: u32 = 1 << 1;
    /// Only invalidates the user addresses.
    pub(crate) const VADDR: u32 = 1 << 2;

    /// From what user space passed.
    pub(crate) fn parse(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        Some(Self {
            flags: get_u32(bytes, 4)?,
            iova: get_u64(bytes, 8)?,
            size: get_u64(bytes, 16)?,
        })
    }

    /// As type1 reads it: all of `range`.
    pub(crate) fn bytes(range: Range, flags: u32) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        put(&mut bytes, 0, &(Self::SIZE as u32).to_ne_bytes());
        put(&mut bytes, 4, &flags.to_ne_bytes());
        put(&mut bytes, 8, &range.start().to_ne_bytes());
        put(&mut bytes, Self::SIZE_OFFSET, &range.len().to_ne_bytes());
        bytes
    }

    /// What is to be unmapped; `None` if type1 says that it makes no sense.
    pub(crate) fn range(&self) -> Option<Range> {
        if self.flags & Self::ALL != 0 {
            return (self.iova | self.size == 0).then_some(Range::ALL);
        }
        // The last byte has to have an address, but the one behind it need not.
        self.iova.checked_add(self.size.checked_sub(1)?)?;
        Range::clamped(self.iova, self.size)
    }
}
