// SPDX-License-Identifier: GPL-2.0-only

//! A descriptor chain: one request of the driver, with the room for its answer.

use super::{
    memory::{
        Fault,
        Memory, //
    },
    range::Range,
    ring_error::RingError,
};

/// The most descriptors of a chain.
///
/// Our driver uses two, the standard one uses one.  Few enough for a chain to be on the stack: a
/// function that handles one has it there up to three times.
pub(crate) const MAX_SEGMENTS: usize = 16;

/// One descriptor chain, checked; it goes back through [`super::vring::Ring::push`].
///
/// The addresses are the guest's word: it takes a [`Memory`] to find out whether RAM is there.
///
/// # Invariants
///
/// `readable <= used <= MAX_SEGMENTS`.
#[derive(Debug)]
#[must_use = "a chain that is not pushed is lost to the driver"]
pub(crate) struct Chain {
    head: u16,
    readable: usize,
    used: usize,
    segments: [Range; MAX_SEGMENTS],
}

impl Chain {
    /// The chain that starts at descriptor `head`, still without segments.
    pub(super) fn new(head: u16) -> Self {
        Self {
            head,
            readable: 0,
            used: 0,
            segments: [Range::ALL; MAX_SEGMENTS],
        }
    }

    /// Adds the next descriptor.
    pub(super) fn add(&mut self, segment: Range, writable: bool) -> Result<(), RingError> {
        if !writable && self.readable != self.used {
            return Err(RingError::ReadableAfterWritable);
        }
        *self.segments.get_mut(self.used).ok_or(RingError::TooLong)? = segment;
        self.used = self.used.saturating_add(1);
        if !writable {
            self.readable = self.used;
        }
        Ok(())
    }

    /// The index of its first descriptor, which is its name in the used ring.
    pub(crate) fn head(&self) -> u16 {
        self.head
    }

    /// Where the driver's request is.
    pub(crate) fn readable(&self) -> &[Range] {
        self.segments.get(..self.readable).unwrap_or_default()
    }

    /// Where the answer goes.
    pub(crate) fn writable(&self) -> &[Range] {
        self.segments
            .get(self.readable..self.used)
            .unwrap_or_default()
    }

    /// Gathers the whole request at the beginning of `buf` and returns that part of it.
    ///
    /// `None` if it is longer than `buf`.
    pub(crate) fn read_all<'b>(
        &self,
        memory: &impl Memory,
        buf: &'b mut [u8],
    ) -> Result<Option<&'b [u8]>, Fault> {
        let mut filled: usize = 0;
        for segment in self.readable() {
            let end = usize::try_from(segment.len())
                .ok()
                .and_then(|len| filled.checked_add(len));
            let Some(part) = end.and_then(|end| buf.get_mut(filled..end)) else {
                return Ok(None);
            };
            memory.read(segment.start(), part)?;
            filled = filled.saturating_add(part.len());
        }
        Ok(buf.get(..filled))
    }

    /// Scatters `reply` over the writable segments and returns its length, for the used ring.
    ///
    /// Writes nothing and returns 0 if there is not enough room.
    pub(crate) fn write_reply(&self, memory: &impl Memory, reply: &[u8]) -> Result<u32, Fault> {
        let room = self.writable().iter().map(|segment| segment.len());
        let room = room.fold(0, u64::saturating_add);
        let (Ok(len), true) = (u32::try_from(reply.len()), reply.len() as u64 <= room) else {
            return Ok(0);
        };
        let mut rest = reply;
        for segment in self.writable() {
            let count = usize::try_from(segment.len()).map_or(rest.len(), |n| n.min(rest.len()));
            let Some((part, after)) = rest.split_at_checked(count) else {
                break;
            };
            if part.is_empty() {
                break;
            }
            memory.write(segment.start(), part)?;
            rest = after;
        }
        Ok(len)
    }
}
