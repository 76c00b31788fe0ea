// SPDX-License-Identifier: GPL-2.0-only

//! The messages between the balloon driver and the balloon device.
//!
//! `include/uapi/linux/virtio_balloon_deferred.h` is the source of truth: each module asserts at
//! build time that the constants here are those that bindgen finds there.  All fields are little
//! endian.

use super::{
    le::{
        take_u32,
        take_u64, //
    },
    range::{
        Align,
        Range, //
    },
};

/// `VIRTIO_BALLOON_F_DEFERRED`: the feature bit's number.
pub(crate) const FEATURE_BIT: u32 = 23;
/// `VIRTIO_BALLOON_DEFERRED_GRANULE`: what the ends of every range are multiples of.
pub(crate) const GRANULE: Align = Align::of_shift(21);
/// `VIRTIO_BALLOON_DEFERRED_MAX_RANGES`: how many ranges one message holds.
pub(crate) const MAX_RANGES: usize = 255;

/// `VIRTIO_BALLOON_DEFERRED_INFLATE`.
pub(crate) const TYPE_INFLATE: u32 = 1;
/// `VIRTIO_BALLOON_DEFERRED_COMMIT`.
pub(crate) const TYPE_COMMIT: u32 = 2;
/// `VIRTIO_BALLOON_DEFERRED_DEFLATE`.
pub(crate) const TYPE_DEFLATE: u32 = 3;
/// `VIRTIO_BALLOON_DEFERRED_URGENT`.
pub(crate) const FLAG_URGENT: u32 = 1;
/// `VIRTIO_BALLOON_DEFERRED_OK`.
pub(crate) const STATUS_OK: u32 = 0;
/// `VIRTIO_BALLOON_DEFERRED_INVALID`.
pub(crate) const STATUS_INVALID: u32 = 1;
/// `VIRTIO_BALLOON_DEFERRED_NOMAP`.
pub(crate) const STATUS_NOMAP: u32 = 2;

/// The size of `struct virtio_balloon_deferred_hdr` in bytes.
pub(crate) const HEADER_LEN: usize = 16;
/// The size of `struct virtio_balloon_deferred_range` in bytes.
pub(crate) const RANGE_LEN: usize = 16;
/// The size of `struct virtio_balloon_deferred_reply` in bytes.
pub(crate) const REPLY_LEN: usize = 8;
/// The longest request in bytes: one page.
pub(crate) const MAX_REQUEST_LEN: usize = HEADER_LEN + MAX_RANGES * RANGE_LEN;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The driver gave up the ranges.
    Inflate,
    /// No more will be inflated: map all the rest.  Without ranges.
    Commit,
    /// The driver wants the ranges back.
    Deflate {
        /// The guest is short of memory.
        urgent: bool,
    },
}

/// The queue that a request came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queue {
    /// Virtqueue 0: [`Kind::Inflate`] and [`Kind::Commit`].
    Inflate,
    /// Virtqueue 1: [`Kind::Deflate`].
    Deflate,
}

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// It is not as long as its header says, or it has none.
    Length,
    /// The type is unknown, or not for this queue.
    Type,
    /// An unknown flag, or one that is not for this type.
    Flags,
    /// More than [`MAX_RANGES`] ranges, or any with a commit; more done than was asked for.
    Count,
    /// The reserved field is not 0.
    Reserved,
    /// A range is empty, not aligned to [`GRANULE`], or passes the end of the address space.
    Range,
    /// The reply's status is unknown.
    Status,
}

/// A checked request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    /// What it asks for.
    pub(crate) kind: Kind,
    /// With what.
    pub(crate) ranges: Ranges<'a>,
}

/// The checked ranges of a request, in the order of the message; they may overlap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ranges<'a>(&'a [u8]);

impl Ranges<'_> {
    /// How many are left.
    pub(crate) fn len(&self) -> usize {
        self.0.len() / RANGE_LEN
    }
}

impl Iterator for Ranges<'_> {
    type Item = Range;

    fn next(&mut self) -> Option<Range> {
        let (start, rest) = take_u64(self.0)?;
        let (len, rest) = take_u64(rest)?;
        self.0 = rest;
        Range::from_len(start, len).filter(|range| range.is_aligned(GRANULE))
    }
}

/// Checks and takes apart a request.
pub(crate) fn decode(queue: Queue, bytes: &[u8]) -> Result<Request<'_>, Malformed> {
    let (ty, rest) = take_u32(bytes).ok_or(Malformed::Length)?;
    let (flags, rest) = take_u32(rest).ok_or(Malformed::Length)?;
    let (count, rest) = take_u32(rest).ok_or(Malformed::Length)?;
    let (reserved, rest) = take_u32(rest).ok_or(Malformed::Length)?;
    let (kind, max) = match (queue, ty) {
        (Queue::Inflate, TYPE_INFLATE) => (Kind::Inflate, MAX_RANGES),
        (Queue::Inflate, TYPE_COMMIT) => (Kind::Commit, 0),
        (Queue::Deflate, TYPE_DEFLATE) => {
            let urgent = flags & FLAG_URGENT != 0;
            (Kind::Deflate { urgent }, MAX_RANGES)
        }
        _ => return Err(Malformed::Type),
    };
    if flags != kind.flags() {
        return Err(Malformed::Flags);
    }
    let count = usize::try_from(count).map_err(|_| Malformed::Count)?;
    if count > max {
        return Err(Malformed::Count);
    }
    if reserved != 0 {
        return Err(Malformed::Reserved);
    }
    if Some(rest.len()) != count.checked_mul(RANGE_LEN) {
        return Err(Malformed::Length);
    }
    let ranges = Ranges(rest);
    if ranges.count() != count {
        return Err(Malformed::Range);
    }
    Ok(Request { kind, ranges })
}

/// Writes a request to the beginning of `out` and returns its part of it.
///
/// `None` if the ranges are more than [`MAX_RANGES`], come with a commit, are not aligned to
/// [`GRANULE`], or do not fit; [`MAX_REQUEST_LEN`] bytes are always enough.
pub(crate) fn encode<'a>(kind: Kind, ranges: &[Range], out: &'a mut [u8]) -> Option<&'a [u8]> {
    let max = if kind == Kind::Commit { 0 } else { MAX_RANGES };
    if ranges.len() > max || !ranges.iter().all(|range| range.is_aligned(GRANULE)) {
        return None;
    }
    let count = u32::try_from(ranges.len()).ok()?;
    let len = HEADER_LEN.checked_add(ranges.len().checked_mul(RANGE_LEN)?)?;
    let out = out.get_mut(..len)?;
    let (header, body) = out.split_at_mut_checked(HEADER_LEN)?;
    put_u32s(header, &[kind.ty(), kind.flags(), count, 0]);
    for (record, range) in body.chunks_exact_mut(RANGE_LEN).zip(ranges) {
        put_u64s(record, &[range.start(), range.len()]);
    }
    Some(out)
}

impl Kind {
    const fn ty(self) -> u32 {
        match self {
            Self::Inflate => TYPE_INFLATE,
            Self::Commit => TYPE_COMMIT,
            Self::Deflate { .. } => TYPE_DEFLATE,
        }
    }

    const fn flags(self) -> u32 {
        match self {
            Self::Deflate { urgent: true } => FLAG_URGENT,
            _ => 0,
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// All of it was carried out.
    Ok,
    /// It was malformed.
    Invalid,
    /// The host could not map a range.
    NoMap,
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// How it ended.
    pub(crate) status: Status,
    /// How many of its ranges, counted from the first, were carried out.
    pub(crate) done: u32,
}

impl Reply {
    /// The bytes of the reply.
    pub(crate) fn encode(self) -> [u8; REPLY_LEN] {
        let status = match self.status {
            Status::Ok => STATUS_OK,
            Status::Invalid => STATUS_INVALID,
            Status::NoMap => STATUS_NOMAP,
        };
        let mut out = [0; REPLY_LEN];
        put_u32s(&mut out, &[status, self.done]);
        out
    }

    /// Checks and takes apart the reply to a request with `count` ranges.
    pub(crate) fn decode(bytes: &[u8], count: u32) -> Result<Self, Malformed> {
        let (status, rest) = take_u32(bytes).ok_or(Malformed::Length)?;
        let (done, rest) = take_u32(rest).ok_or(Malformed::Length)?;
        if !rest.is_empty() {
            return Err(Malformed::Length);
        }
        let status = match status {
            STATUS_OK if done != count => return Err(Malformed::Count),
            STATUS_OK => Status::Ok,
            STATUS_INVALID => Status::Invalid,
            STATUS_NOMAP => Status::NoMap,
            _ => return Err(Malformed::Status),
        };
        if done > count {
            return Err(Malformed::Count);
        }
        Ok(Self { status, done })
    }
}

fn put_u32s(out: &mut [u8], values: &[u32]) {
    for (field, value) in out.chunks_exact_mut(4).zip(values) {
        field.copy_from_slice(&value.to_le_bytes());
    }
}

fn put_u64s(out: &mut [u8], values: &[u64]) {
    for (field, value) in out.chunks_exact_mut(8).zip(values) {
        field.copy_from_slice(&value.to_le_bytes());
    }
}
