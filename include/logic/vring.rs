// SPDX-License-Identifier: GPL-2.0-only

//! The device side of a split virtqueue: virtio 1.2, section 2.7.
//!
//! No `VIRTIO_F_INDIRECT_DESC`, no `VIRTIO_F_EVENT_IDX`, no `VIRTIO_F_RING_PACKED`: they are not
//! offered.  Every field that the driver writes is read once for each use, so that what was
//! checked is what is used, whatever the guest writes meanwhile.

use super::{
    chain::Chain,
    le::{
        take_u16,
        take_u32,
        take_u64, //
    },
    memory::{
        Fault,
        Memory, //
    },
    range::{
        Align,
        Range, //
    },
};

pub(crate) use super::ring_error::RingError;

/// The largest queue that is offered.  QEMU's vhost-vDPA asks for 1024 whatever it is told.
pub(crate) const MAX_SIZE: u16 = 1024;

const DESC_LEN: usize = 16;
const DESC_F_NEXT: u16 = 1;
const DESC_F_WRITE: u16 = 2;
const DESC_F_INDIRECT: u16 = 4;
const AVAIL_F_NO_INTERRUPT: u16 = 1;
const USED_F_NO_NOTIFY: u16 = 1;
/// Where `idx` and `ring` are in the available ring and in the used ring.
const IDX: u64 = 2;
const ENTRIES: u64 = 4;
const AVAIL_ENTRY_LEN: u64 = 2;
const USED_ENTRY_LEN: u64 = 8;
/// The field for `VIRTIO_F_EVENT_IDX` at the end of both rings is there even if it is not used.
const EVENT_LEN: u64 = 2;

/// Where a queue is in guest memory, checked.
///
/// # Invariants
///
/// `size` is a power of two up to [`MAX_SIZE`]; the addresses are aligned to 16, 2 and 4 bytes,
/// and no part passes the end of the address space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    size: u16,
    desc: u64,
    avail: u64,
    used: u64,
}

impl Layout {
    /// Checks the queue size and the guest-physical addresses of the three parts.
    pub(crate) fn new(size: u16, desc: u64, avail: u64, used: u64) -> Option<Self> {
        if !size.is_power_of_two() || size > MAX_SIZE {
            return None;
        }
        for (addr, shift, head, entry) in [
            (desc, 4, 0, DESC_LEN as u64),
            (avail, 1, ENTRIES + EVENT_LEN, AVAIL_ENTRY_LEN),
            (used, 2, ENTRIES + EVENT_LEN, USED_ENTRY_LEN),
        ] {
            if !Align::of_shift(shift).divides(addr) {
                return None;
            }
            Range::from_len(addr, entry.checked_mul(size.into())?.checked_add(head)?)?;
        }
        Some(Self {
            size,
            desc,
            avail,
            used,
        })
    }

    /// The address of descriptor `index`.
    fn desc(&self, index: u16) -> Result<u64, RingError> {
        if index >= self.size {
            return Err(RingError::DescIndex);
        }
        // `new` has made sure that no address inside a part wraps.
        let offset = u64::from(index).wrapping_mul(DESC_LEN as u64);
        Ok(self.desc.wrapping_add(offset))
    }

    /// The address of the entry for the free-running `index` in the ring at `base`.
    fn entry(&self, base: u64, index: u16, len: u64) -> u64 {
        let slot = u64::from(index & self.size.wrapping_sub(1));
        base.wrapping_add(ENTRIES)
            .wrapping_add(slot.wrapping_mul(len))
    }
}

/// A running queue.
#[derive(Debug)]
pub(crate) struct Ring {
    layout: Layout,
    /// The free-running index of the next chain to take.
    next_avail: u16,
    /// The free-running index of the next entry to write into the used ring.
    next_used: u16,
}

impl Ring {
    /// A queue that goes on at `index`: 0 after a reset, else the [`Ring::next_used`] of the one
    /// before it.  No chain is in flight.
    pub(crate) fn new(layout: Layout, index: u16) -> Self {
        Self {
            layout,
            next_avail: index,
            next_used: index,
        }
    }

    /// The index from which a successor goes on.
    ///
    /// As long as chains are pushed in the order in which they were popped, it pops those again
    /// that were in flight.
    pub(crate) fn next_used(&self) -> u16 {
        self.next_used
    }

    /// How many chains were popped and not pushed yet.
    pub(crate) fn in_flight(&self) -> u16 {
        self.next_avail.wrapping_sub(self.next_used)
    }

    /// Takes the next chain, if there is one.
    ///
    /// After an error the queue stands where it stood; the device needs a reset.
    pub(crate) fn pop(&mut self, memory: &impl Memory) -> Result<Option<Chain>, RingError> {
        if self.pending(memory)? == 0 {
            return Ok(None);
        }
        // The entry and what it leads to were written before the index that promised it.
        memory.rmb();
        let layout = &self.layout;
        let head = memory.read_u16(layout.entry(layout.avail, self.next_avail, AVAIL_ENTRY_LEN))?;
        let mut chain = Chain::new(head);
        let mut index = head;
        for _ in 0..layout.size {
            let desc = Descriptor::read(memory, layout.desc(index)?)?;
            if desc.flags & DESC_F_INDIRECT != 0 {
                return Err(RingError::Indirect);
            }
            let segment = Range::from_len(desc.addr, desc.len.into()).ok_or(RingError::Segment)?;
            chain.add(segment, desc.flags & DESC_F_WRITE != 0)?;
            if desc.flags & DESC_F_NEXT == 0 {
                self.next_avail = self.next_avail.wrapping_add(1);
                return Ok(Some(chain));
            }
            index = desc.next;
        }
        Err(RingError::TooLong)
    }

    /// Gives `chain` back; `written` bytes of its writable part were written.
    pub(crate) fn push(
        &mut self,
        memory: &impl Memory,
        chain: Chain,
        written: u32,
    ) -> Result<(), Fault> {
        let [a, b, c, d] = u32::from(chain.head()).to_le_bytes();
        let [e, f, g, h] = written.to_le_bytes();
        let used = self.layout.used;
        let entry = self.layout.entry(used, self.next_used, USED_ENTRY_LEN);
        memory.write(entry, &[a, b, c, d, e, f, g, h])?;
        // The driver must see the entry, and the answer, before the index.
        memory.wmb();
        let next = self.next_used.wrapping_add(1);
        memory.write_u16(used.wrapping_add(IDX), next)?;
        self.next_used = next;
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was pushed.
    pub(crate) fn wants_interrupt(&self, memory: &impl Memory) -> Result<bool, Fault> {
        // Against the driver's order: it allows interrupts, then looks at the used index.
        memory.mb();
        let flags = memory.read_u16(self.layout.avail)?;
        Ok(flags & AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Tells the driver that it need not kick, while the queue is being worked off.
    pub(crate) fn disable_kicks(&self, memory: &impl Memory) -> Result<(), Fault> {
        memory.write_u16(self.layout.used, USED_F_NO_NOTIFY)
    }

    /// Tells the driver to kick again, and whether chains came in before it could know: then no
    /// kick will come for them, and the caller goes on popping.
    pub(crate) fn enable_kicks(&self, memory: &impl Memory) -> Result<bool, RingError> {
        memory.write_u16(self.layout.used, 0)?;
        // Against the driver's order: it writes the available index, then looks at the flag.
        memory.mb();
        Ok(self.pending(memory)? != 0)
    }

    /// How many chains wait to be popped.
    fn pending(&self, memory: &impl Memory) -> Result<u16, RingError> {
        let index = memory.read_u16(self.layout.avail.wrapping_add(IDX))?;
        // Each chain that the driver has not got back holds at least one descriptor.
        let held = index.wrapping_sub(self.next_used);
        match held.checked_sub(self.in_flight()) {
            Some(pending) if held <= self.layout.size => Ok(pending),
            _ => Err(RingError::AvailIndex),
        }
    }
}

/// `struct virtq_desc`, read at once.
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn read(memory: &impl Memory, gpa: u64) -> Result<Self, Fault> {
        let mut raw = [0; DESC_LEN];
        memory.read(gpa, &mut raw)?;
        Self::parse(&raw).ok_or(Fault)
    }

    fn parse(raw: &[u8]) -> Option<Self> {
        let (addr, rest) = take_u64(raw)?;
        let (len, rest) = take_u32(rest)?;
        let (flags, rest) = take_u16(rest)?;
        let (next, _) = take_u16(rest)?;
        Some(Self {
            addr,
            len,
            flags,
            next,
        })
    }
}
