// SPDX-License-Identifier: GPL-2.0-only

//! The wire protocol: known bytes, every refusal, and random messages.

use crate::logic::protocol::*;
use crate::logic::range::Range;
use crate::rng::{
    steps,
    Rng, //
};

const MIB2: u64 = 2 << 20;
const KINDS: [(Queue, Kind); 4] = [
    (Queue::Inflate, Kind::Inflate),
    (Queue::Inflate, Kind::Commit),
    (Queue::Deflate, Kind::Deflate { urgent: false }),
    (Queue::Deflate, Kind::Deflate { urgent: true }),
];

fn range(start: u64, len: u64) -> Range {
    Range::from_len(start * MIB2, len * MIB2).unwrap()
}

/// A request of raw fields.
fn raw(header: [u32; 4], ranges: &[(u64, u64)]) -> Vec<u8> {
    let fields = ranges.iter().flat_map(|&(start, len)| [start, len]);
    let mut bytes: Vec<u8> = header.into_iter().flat_map(u32::to_le_bytes).collect();
    bytes.extend(fields.flat_map(u64::to_le_bytes));
    bytes
}

fn refusal(queue: Queue, header: [u32; 4], ranges: &[(u64, u64)]) -> Option<Malformed> {
    decode(queue, &raw(header, ranges)).err()
}

#[test]
fn known_bytes() {
    let mut page = [0xff; MAX_REQUEST_LEN];
    let kind = Kind::Deflate { urgent: true };
    let bytes = encode(kind, &[range(2048, 3)], &mut page).unwrap();
    assert_eq!(
        bytes,
        [
            3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, //
            0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0x60, 0, 0, 0, 0, 0,
        ]
    );
    let reply = Reply {
        status: Status::NoMap,
        done: 0x102,
    };
    assert_eq!(reply.encode(), [2, 0, 0, 0, 2, 1, 0, 0]);
    assert_eq!(MAX_REQUEST_LEN, 4096);
}

#[test]
fn every_refusal() {
    use Malformed::*;
    let (i, d) = (Queue::Inflate, Queue::Deflate);
    let one = [(MIB2, MIB2)];
    assert_eq!(refusal(i, [1, 0, 1, 0], &one), None);
    assert_eq!(refusal(i, [1, 0, 0, 0], &[]), None);
    for (queue, ty) in [
        (i, 0),
        (i, 3),
        (i, 4),
        (d, 0),
        (d, 1),
        (d, 2),
        (d, u32::MAX),
    ] {
        assert_eq!(refusal(queue, [ty, 0, 0, 0], &[]), Some(Type));
    }
    for (queue, ty, flags) in [(i, 1, 1), (i, 2, 1), (d, 3, 2), (d, 3, 3), (d, 3, 1 << 31)] {
        assert_eq!(refusal(queue, [ty, flags, 0, 0], &[]), Some(Flags));
    }
    assert_eq!(refusal(i, [2, 0, 1, 0], &one), Some(Count));
    assert_eq!(refusal(i, [1, 0, 256, 0], &[(0, MIB2); 256]), Some(Count));
    assert_eq!(refusal(i, [1, 0, u32::MAX, 0], &one), Some(Count));
    assert_eq!(refusal(i, [1, 0, 1, 1], &one), Some(Reserved));
    assert_eq!(refusal(i, [1, 0, 2, 0], &one), Some(Length));
    assert_eq!(refusal(i, [1, 0, 0, 0], &one), Some(Length));
    for bad in [
        (0, 0),
        (4096, MIB2),
        (MIB2, MIB2 + 4096),
        (MIB2, MIB2 / 2),
        (0u64.wrapping_sub(MIB2), MIB2),
        (0u64.wrapping_sub(MIB2), 2 * MIB2),
        (u64::MAX, u64::MAX),
    ] {
        assert_eq!(refusal(i, [1, 0, 2, 0], &[one[0], bad]), Some(Range));
        assert_eq!(refusal(d, [3, 1, 2, 0], &[bad, one[0]]), Some(Range));
    }
    let whole = raw([1, 0, 1, 0], &one);
    for len in 0..whole.len() {
        assert_eq!(decode(i, &whole[..len]).err(), Some(Length));
    }
}

#[test]
fn encode_checks_its_arguments() {
    let mut page = [0; MAX_REQUEST_LEN];
    let full = [range(1, 1); MAX_RANGES];
    assert_eq!(
        encode(Kind::Inflate, &full, &mut page).map(<[u8]>::len),
        Some(4096)
    );
    assert!(encode(Kind::Inflate, &full, &mut page[1..]).is_none());
    assert!(encode(Kind::Inflate, &[range(1, 1); 256], &mut [0; 8192]).is_none());
    assert!(encode(Kind::Commit, &full[..1], &mut page).is_none());
    let odd = crate::logic::range::Range::new(MIB2, 2 * MIB2 - 1).unwrap();
    assert!(encode(Kind::Inflate, &[odd], &mut page).is_none());
}

#[test]
fn replies() {
    for status in [Status::Ok, Status::Invalid, Status::NoMap] {
        for done in [0, 1, 254, 255] {
            let reply = Reply { status, done };
            assert_eq!(Reply::decode(&reply.encode(), done), Ok(reply));
            let more = Reply::decode(&reply.encode(), done + 1);
            match status {
                Status::Ok => assert_eq!(more, Err(Malformed::Count)),
                _ => assert_eq!(more, Ok(reply)),
            }
            if done > 0 {
                let fewer = Reply::decode(&reply.encode(), done - 1);
                assert_eq!(fewer, Err(Malformed::Count));
            }
        }
    }
    assert_eq!(
        Reply::decode(&[3, 0, 0, 0, 0, 0, 0, 0], 0),
        Err(Malformed::Status)
    );
    assert_eq!(Reply::decode(&[0; 7], 0), Err(Malformed::Length));
    assert_eq!(Reply::decode(&[0; 9], 0), Err(Malformed::Length));
}

#[test]
fn random_messages_survive_the_wire() {
    let mut rng = Rng::new("protocol");
    let mut page = [0; MAX_REQUEST_LEN];
    for _ in 0..steps(300_000) {
        let (queue, kind) = KINDS[rng.below(4) as usize];
        let max = if kind == Kind::Commit { 1 } else { 256 };
        let ranges: Vec<_> = (0..rng.below(max))
            .map(|_| range(rng.below(1 << 40), 1 + rng.below(1 << 20)))
            .collect();
        let bytes = encode(kind, &ranges, &mut page).unwrap();
        let request = decode(queue, bytes).unwrap();
        assert_eq!(request.kind, kind);
        assert_eq!(request.ranges.len(), ranges.len());
        assert!(request.ranges.eq(ranges.iter().copied()));
        // Whatever a flipped bit makes of it, what is accepted keeps to the rules.
        let mut bad = bytes.to_vec();
        let bit = rng.below(8 * bad.len() as u64) as usize;
        bad[bit / 8] ^= 1 << (bit % 8);
        if let Ok(request) = decode(queue, &bad) {
            assert_eq!(request.ranges.count(), ranges.len());
            assert!({ request.ranges }.all(|r| r.is_aligned(GRANULE)));
        }
    }
}
