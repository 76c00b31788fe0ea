// SPDX-License-Identifier: GPL-2.0-only

//! type1's answer to `VFIO_IOMMU_GET_INFO`, as it is laid out in memory.

use crate::logic::range::Range;
use crate::type1::info::Info;

const ROOM: usize = 4096;
const CAP_IOVA_RANGE: u16 = 1;
const CAP_DMA_AVAIL: u16 = 3;

/// The answer of a kernel whose IOMMU has pages of 4 KiB, and these ranges, as a kernel gives it
/// that has `room` bytes for it.
fn answer(ranges: &[(u64, u64)], available: u32, room: usize) -> Vec<u8> {
    let cap = |id: u16, next: usize, data: &[u8]| {
        let mut bytes = id.to_ne_bytes().to_vec();
        bytes.extend(1u16.to_ne_bytes());
        bytes.extend((next as u32).to_ne_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    };
    let mut data = (ranges.len() as u32).to_ne_bytes().to_vec();
    data.extend([0; 4]);
    for (start, last) in ranges {
        data.extend(start.to_ne_bytes());
        data.extend(last.to_ne_bytes());
    }
    let last = cap(CAP_DMA_AVAIL, 0, &available.to_ne_bytes());
    let first = cap(CAP_IOVA_RANGE, 24 + 8 + data.len(), &data);
    let caps = [first, last].concat();
    let fits = 24 + caps.len() <= room;
    let mut bytes = ((24 + caps.len()) as u32).to_ne_bytes().to_vec();
    bytes.extend(3u32.to_ne_bytes());
    bytes.extend(0xffff_f000u64.to_ne_bytes());
    bytes.extend(if fits { 24u32 } else { 0 }.to_ne_bytes());
    bytes.extend([0; 4]);
    if fits {
        bytes.extend(caps);
    }
    bytes.resize(room, 0);
    bytes
}

fn range(start: u64, len: u64) -> Range {
    Range::from_len(start, len).unwrap()
}

#[test]
fn an_answer_is_understood() {
    let bytes = answer(&[(0, 0xfedf_ffff), (0xfef0_0000, u64::MAX >> 16)], 77, ROOM);
    let info = Info::parse(&bytes).unwrap().unwrap();
    assert_eq!((info.page, info.available), (4096, 77));
    assert!(info.allows(range(0, 0xfee0_0000), 0x1000));
    assert!(info.allows(range(0x1_0000_0000, 1 << 40), 0));
    assert!(!info.allows(range(0xfee0_0000, 0x1000), 0));
    assert!(!info.allows(range(0xfed0_0000, 0x30_0000), 0));
    assert!(!info.allows(range(0x1000, 0x800), 0));
    assert!(!info.allows(range(0x1000, 0x1000), 0x800));
}

#[test]
fn one_that_did_not_fit_says_nothing() {
    let ranges: Vec<_> = (0..300).map(|i| (i << 20, (i << 20) + 0xffff)).collect();
    assert!(Info::parse(&answer(&ranges, 77, ROOM)).unwrap().is_none());
    let info = Info::parse(&answer(&ranges, 77, 2 * ROOM))
        .unwrap()
        .unwrap();
    assert!(info.allows(range(299 << 20, 0x1_0000), 0));
    assert!(!info.allows(range(0, 0x1_0001), 0));
}

#[test]
fn what_is_cut_off_anywhere_is_no_panic() {
    let bytes = answer(&[(0, 0xffff), (0x2_0000, 0xffff_ffff)], 1, ROOM);
    for len in 0..100 {
        let _ = Info::parse(&bytes[..len]).unwrap();
    }
}
