// SPDX-License-Identifier: GPL-2.0-only

//! What type1 says of itself: the answer to `VFIO_IOMMU_GET_INFO`, parsed.
//!
//! Source: `include/uapi/linux/vfio.h`.

use crate::{
    logic::{
        range::Range,
        vec::{
            NoMemory,
            Vector, //
        },
    },
    type1::uapi::{
        get_u32,
        get_u64, //
    },
};

const FLAG_CAPS: u32 = 1 << 1;
const CAP_IOVA_RANGE: u16 = 1;
const CAP_DMA_AVAIL: u16 = 3;
/// `struct vfio_iommu_type1_info`: argsz, flags, iova_pgsizes, cap_offset, pad.
const INFO_SIZE: usize = 24;

/// What a mapping has to fit, see `vfio_dma_do_map()`.
pub(crate) struct Info {
    /// Size of the IOMMU's smallest page, in bytes.
    pub(crate) page: u64,
    /// How many more mappings the container takes.
    pub(crate) available: u32,
    /// Where IOVAs may be; empty: anywhere.
    ranges: Vector<Range>,
}

impl Info {
    /// The request for `room` bytes of answer.
    pub(crate) fn request(room: u32) -> [u8; INFO_SIZE] {
        let mut bytes = [0; INFO_SIZE];
        for (to, from) in bytes.iter_mut().zip(room.to_ne_bytes()) {
            *to = from;
        }
        bytes
    }

    /// Parses an answer. `None` if it makes no sense, as when it did not fit.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Self>, NoMemory> {
        let mut info = Self {
            page: 0,
            available: 0,
            ranges: Vector::new(),
        };
        let (Some(flags), Some(sizes)) = (get_u32(bytes, 4), get_u64(bytes, 8)) else {
            return Ok(None);
        };
        info.page = 1u64.checked_shl(sizes.trailing_zeros()).unwrap_or(0);
        if info.page == 0 || flags & FLAG_CAPS == 0 {
            return Ok(None);
        }
        let mut next = get_u32(bytes, 16).unwrap_or(0) as usize;
        if next == 0 {
            // There are some, but they did not fit.
            return Ok(None);
        }
        // The chain only goes forward; anything else ends it.
        let mut last = 0;
        while next > last {
            let Some(id) = get_u32(bytes, next) else {
                return Ok(None);
            };
            let Some(data) = next.checked_add(8) else {
                return Ok(None);
            };
            match id as u16 {
                CAP_IOVA_RANGE => {
                    if !info.add_ranges(bytes, data)? {
                        return Ok(None);
                    }
                }
                CAP_DMA_AVAIL => info.available = get_u32(bytes, data).unwrap_or(0),
                _ => {}
            }
            last = next;
            next = get_u32(bytes, next.saturating_add(4)).unwrap_or(0) as usize;
        }
        Ok(Some(info))
    }

    fn add_ranges(&mut self, bytes: &[u8], data: usize) -> Result<bool, NoMemory> {
        let count = get_u32(bytes, data).unwrap_or(0);
        // nr_iovas, reserved, then pairs of first and last byte.
        let mut at = data.saturating_add(8);
        for _ in 0..count {
            let (Some(start), Some(last)) =
                (get_u64(bytes, at), get_u64(bytes, at.saturating_add(8)))
            else {
                return Ok(false);
            };
            if let Some(range) = Range::new(start, last.saturating_add(1)) {
                self.ranges.try_push(range)?;
            }
            at = at.saturating_add(16);
        }
        Ok(true)
    }

    /// Whether type1 would take a mapping there, by what it says of itself.
    pub(crate) fn allows(&self, iova: Range, vaddr: u64) -> bool {
        let aligned = (iova.start() | iova.end() | vaddr) & self.page.wrapping_sub(1) == 0;
        let mut ranges = self.ranges.iter();
        aligned && (self.ranges.is_empty() || ranges.any(|r| r.covers(iova)))
    }
}
