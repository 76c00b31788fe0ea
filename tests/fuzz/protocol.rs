// SPDX-License-Identifier: GPL-2.0-only

//! Fuzzing the wire protocol: any bytes as a request or a reply, any ranges to be encoded.
//!
//! What is accepted must be what the documentation allows, no more and no less, and must be made
//! of the same bytes when it is encoded again.

#![no_main]

#[allow(dead_code, reason = "not every target needs all")]
mod input;
#[allow(dead_code, reason = "the two modules use different parts")]
#[path = "../../include/logic/mod.rs"]
mod logic;

use input::Input;
use logic::protocol::*;
use logic::range::Range;

const MIB2: u64 = 2 << 20;

/// The little-endian `u32` number `index`.
fn word(bytes: &[u8], index: usize) -> Option<u32> {
    let raw = bytes.get(4 * index..4 * index + 4)?;
    Some(u32::from_le_bytes(raw.try_into().unwrap()))
}

/// The rules for a request, as its documentation has them.
fn is_request(queue: Queue, bytes: &[u8]) -> bool {
    let Some(header) = bytes.get(..16) else {
        return false;
    };
    let field = |index| word(header, index).unwrap();
    let (ty, flags, count) = (field(0), field(1), field(2) as usize);
    let known = match queue {
        Queue::Inflate => (ty == 1 && count <= 255 || ty == 2 && count == 0) && flags == 0,
        Queue::Deflate => ty == 3 && count <= 255 && flags <= 1,
    };
    let allowed = |range: &[u8]| {
        let start = u64::from_le_bytes(range[..8].try_into().unwrap());
        let len = u64::from_le_bytes(range[8..].try_into().unwrap());
        len != 0 && start % MIB2 == 0 && len % MIB2 == 0 && start.checked_add(len).is_some()
    };
    known && field(3) == 0 && bytes.len() == 16 + 16 * count && bytes[16..].chunks(16).all(allowed)
}

fn request(mut input: Input<'_>) {
    let queue = match input.u8() {
        0 => Queue::Inflate,
        _ => Queue::Deflate,
    };
    let bytes = input.rest();
    let Ok(request) = decode(queue, bytes) else {
        assert!(!is_request(queue, bytes));
        return;
    };
    assert!(is_request(queue, bytes));
    assert!(bytes.len() <= MAX_REQUEST_LEN);
    let ranges: Vec<Range> = request.ranges.collect();
    assert_eq!(ranges.len(), request.ranges.len());
    assert!(ranges.iter().all(|r| r.start() < r.end()));
    let mut page = [0xff; MAX_REQUEST_LEN];
    assert_eq!(encode(request.kind, &ranges, &mut page), Some(bytes));
}

fn reply(mut input: Input<'_>) {
    let count = input.u32();
    let bytes = input.rest();
    let allowed = match (bytes.len(), word(bytes, 0), word(bytes, 1)) {
        (8, Some(0), Some(done)) => done == count,
        (8, Some(1 | 2), Some(done)) => done <= count,
        _ => false,
    };
    match Reply::decode(bytes, count) {
        Ok(reply) => {
            assert!(allowed && reply.done <= count);
            assert_eq!(reply.encode(), bytes);
        }
        Err(_) => assert!(!allowed),
    }
}

/// The driver's side: what it encodes is what the device decodes.
fn message(mut input: Input<'_>) {
    let (queue, kind, max) = match input.below(4) {
        0 => (Queue::Inflate, Kind::Inflate, MAX_RANGES),
        1 => (Queue::Inflate, Kind::Commit, 0),
        2 => (Queue::Deflate, Kind::Deflate { urgent: false }, MAX_RANGES),
        _ => (Queue::Deflate, Kind::Deflate { urgent: true }, MAX_RANGES),
    };
    let mut out = vec![0xff; usize::from(input.u16()) % (2 * MAX_REQUEST_LEN)];
    let room = out.len();
    // Many ranges need not be a long input.
    let copies = 1 + usize::from(input.u8());
    let mut ranges = Vec::new();
    while !input.is_empty() && ranges.len() < 2 * MAX_RANGES {
        let shift = input.below(22) as u32;
        let start = u64::from(input.u32()) << shift;
        if let Some(range) = Range::from_len(start, u64::from(input.u32()) << shift) {
            ranges.extend((0..copies).map(|_| range));
        }
    }
    let aligned = |r: &Range| r.start() % MIB2 == 0 && r.end() % MIB2 == 0;
    let allowed =
        ranges.len() <= max && ranges.iter().all(aligned) && 16 + 16 * ranges.len() <= room;
    match encode(kind, &ranges, &mut out) {
        Some(bytes) => {
            assert!(allowed);
            let request = decode(queue, bytes).unwrap();
            assert_eq!(request.kind, kind);
            assert!(request.ranges.eq(ranges));
        }
        None => assert!(!allowed),
    }
}

fn run(mut input: Input<'_>) {
    match input.below(4) {
        0 | 1 => request(input),
        2 => reply(input),
        _ => message(input),
    }
}
