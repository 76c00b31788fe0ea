// SPDX-License-Identifier: GPL-2.0-only

//! Fuzzing the virtqueue, its chains and the map of guest memory: the guest's memory holds
//! something else at every read, which the input decides.
//!
//! Each call of the device side is compared with what virtio demands for just the bytes that the
//! call has read, and its accesses with where it may make them.

#![no_main]

#[allow(dead_code, reason = "not every target needs all")]
mod input;
#[allow(dead_code, reason = "the two modules use different parts")]
#[path = "../../include/logic/mod.rs"]
mod logic;

use input::Input;
use logic::chain::{
    Chain,
    MAX_SEGMENTS, //
};
use logic::memory::{
    Fault,
    Memory, //
};
use logic::memory_map::{
    MemoryMap,
    UserRange,
    Verdict, //
};
use logic::range::Range;
use logic::vring::{
    Layout,
    Ring,
    RingError,
    MAX_SIZE, //
};
use std::cell::RefCell;
use std::collections::VecDeque;

/// Guest RAM: slots that lie side by side for the guest, in the opposite order for the VMM.
const BASE: u64 = 1 << 32;
const VMM: u64 = 1 << 40;
const SLOT: u64 = 0x1000;
const SLOTS: u64 = 8;

#[derive(Debug, PartialEq, Eq)]
enum Event {
    /// What a read got; nothing of a read that faulted.
    Read(u64, Result<Vec<u8>, Fault>),
    Write(u64, usize, Result<(), Fault>),
    Barrier,
}

struct Guest<'a> {
    input: RefCell<Input<'a>>,
    map: MemoryMap,
    present: [bool; SLOTS as usize],
    log: RefCell<Vec<Event>>,
}

impl Guest<'_> {
    /// Whether there is RAM, by the map, which has to agree with the slots.
    fn reach(&self, gpa: u64, len: usize) -> Result<(), Fault> {
        let (mut at, mut left) = (gpa, len as u64);
        while left > 0 {
            let slot = at.wrapping_sub(BASE) / SLOT;
            let offset = at.wrapping_sub(BASE) % SLOT;
            let there = self.present.get(slot as usize) == Some(&true);
            let expected = there.then(|| {
                let vaddr = VMM + (SLOTS - 1 - slot) * SLOT + offset;
                (vaddr, left.min(SLOT - offset))
            });
            assert_eq!(self.map.translate(at, left), expected);
            let Some((_, count)) = expected else {
                return Err(Fault);
            };
            at += count;
            left -= count;
        }
        Ok(())
    }

    fn plug(&mut self, slot: u64, present: bool) {
        let range = Range::from_len(BASE + slot * SLOT, SLOT).unwrap();
        if present {
            let user = UserRange::new(range, VMM + (SLOTS - 1 - slot) * SLOT).unwrap();
            let known = self.map.judge(&user) == Verdict::Known;
            assert_eq!(known, self.present[slot as usize]);
            assert_eq!(self.map.add(user), Ok(true));
        } else {
            self.map.forget(range);
        }
        self.present[slot as usize] = present;
    }
}

impl Memory for Guest<'_> {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), Fault> {
        let result = self.reach(gpa, buf.len());
        if result.is_ok() {
            // Of long reads, the first bytes are as good as all.
            let count = buf.len().min(16);
            buf[..count].fill_with(|| self.input.borrow_mut().u8());
        }
        let seen = result.map(|()| buf.to_vec());
        self.log.borrow_mut().push(Event::Read(gpa, seen));
        result
    }

    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), Fault> {
        let result = self.reach(gpa, data.len());
        let event = Event::Write(gpa, data.len(), result);
        self.log.borrow_mut().push(event);
        result
    }

    fn read_u16(&self, gpa: u64) -> Result<u16, Fault> {
        assert_eq!(gpa % 2, 0);
        let mut raw = [0; 2];
        self.read(gpa, &mut raw)?;
        Ok(u16::from_le_bytes(raw))
    }

    fn write_u16(&self, gpa: u64, value: u16) -> Result<(), Fault> {
        assert_eq!(gpa % 2, 0);
        self.write(gpa, &value.to_le_bytes())
    }

    fn rmb(&self) {
        self.log.borrow_mut().push(Event::Barrier);
    }

    fn wmb(&self) {
        self.rmb();
    }

    fn mb(&self) {
        self.rmb();
    }
}

/// A chain as it must come out: its head, and the segments with whether they are writable.
type Expected = (u16, Vec<(u64, u64, bool)>);

/// The device under test and what is known of it.
struct Device {
    ring: Ring,
    size: u16,
    desc: u64,
    avail: u64,
    used: u64,
    next_avail: u16,
    next_used: u16,
    chains: Vec<Chain>,
}

/// The events of one call, to be compared one after the other.
struct Log(VecDeque<Event>);

impl Log {
    /// The next event must be a read of `len` bytes there.
    fn read(&mut self, at: u64, len: usize) -> Result<Vec<u8>, RingError> {
        match self.0.pop_front() {
            Some(Event::Read(gpa, seen)) => {
                assert_eq!(gpa, at);
                let seen = seen.map_err(|_| RingError::Fault)?;
                assert_eq!(seen.len(), len);
                Ok(seen)
            }
            other => panic!("{other:?} instead of a read at {at:#x}"),
        }
    }

    fn read_u16(&mut self, at: u64) -> Result<u16, RingError> {
        Ok(u16::from_le_bytes(self.read(at, 2)?.try_into().unwrap()))
    }

    fn write(&mut self, at: u64, len: usize) -> Result<(), Fault> {
        match self.0.pop_front() {
            Some(Event::Write(gpa, count, result)) => {
                assert_eq!((gpa, count), (at, len));
                result
            }
            other => panic!("{other:?} instead of a write at {at:#x}"),
        }
    }

    fn barrier(&mut self) {
        assert_eq!(self.0.pop_front(), Some(Event::Barrier));
    }
}

impl Device {
    /// How many chains wait, from the reads that `pending` makes.
    fn pending(&self, log: &mut Log) -> Result<u16, RingError> {
        let index = log.read_u16(self.avail + 2)?;
        let held = index.wrapping_sub(self.next_used);
        let out = self.next_avail.wrapping_sub(self.next_used);
        if held < out || held > self.size {
            return Err(RingError::AvailIndex);
        }
        Ok(held - out)
    }

    /// What `pop` has to return for what it read.
    fn expect_pop(&self, log: &mut Log) -> Result<Option<Expected>, RingError> {
        if self.pending(log)? == 0 {
            return Ok(None);
        }
        log.barrier();
        let slot = u64::from(self.next_avail % self.size);
        let head = log.read_u16(self.avail + 4 + 2 * slot)?;
        let mut segments = Vec::new();
        let mut index = head;
        for _ in 0..self.size {
            if index >= self.size {
                return Err(RingError::DescIndex);
            }
            let raw = log.read(self.desc + 16 * u64::from(index), 16)?;
            let addr = u64::from_le_bytes(raw[..8].try_into().unwrap());
            let len = u32::from_le_bytes(raw[8..12].try_into().unwrap()).into();
            let flags = u16::from_le_bytes(raw[12..14].try_into().unwrap());
            if flags & 4 != 0 {
                return Err(RingError::Indirect);
            }
            if len == 0 || addr.checked_add(len).is_none() {
                return Err(RingError::Segment);
            }
            let writable = flags & 2 != 0;
            if !writable && segments.last().is_some_and(|&(_, _, before)| before) {
                return Err(RingError::ReadableAfterWritable);
            }
            if segments.len() == MAX_SEGMENTS {
                return Err(RingError::TooLong);
            }
            segments.push((addr, len, writable));
            if flags & 1 == 0 {
                return Ok(Some((head, segments)));
            }
            index = u16::from_le_bytes(raw[14..].try_into().unwrap());
        }
        Err(RingError::TooLong)
    }

    fn pop(&mut self, guest: &Guest<'_>) {
        let popped = self.ring.pop(guest);
        let mut log = Log(guest.log.take().into());
        let expected = self.expect_pop(&mut log);
        assert!(log.0.is_empty(), "accesses too many: {:?}", log.0);
        match (popped, expected) {
            (Err(error), Err(expected)) => assert_eq!(error, expected),
            (Ok(None), Ok(None)) => (),
            (Ok(Some(chain)), Ok(Some((head, segments)))) => {
                self.next_avail = self.next_avail.wrapping_add(1);
                assert_eq!(chain.head(), head);
                let readable = chain.readable().iter().map(|r| (*r, false));
                let writable = chain.writable().iter().map(|r| (*r, true));
                let seen = readable.chain(writable);
                assert!(seen.map(|(r, w)| (r.start(), r.len(), w)).eq(segments));
                self.chains.push(chain);
            }
            (popped, expected) => panic!("{popped:?} instead of {expected:?}"),
        }
    }

    /// Answers a chain and gives it back.
    fn push(&mut self, guest: &Guest<'_>, which: usize, room: usize, answer: usize) {
        let chain = self.chains.swap_remove(which % self.chains.len());
        let mut buf = vec![0; room];
        let total: u64 = chain.readable().iter().map(|r| r.len()).sum();
        match chain.read_all(guest, &mut buf) {
            Ok(Some(bytes)) => assert_eq!(bytes.len() as u64, total),
            Ok(None) => assert!(total > room as u64),
            Err(Fault) => (),
        }
        let mut at = chain.readable().iter();
        for event in guest.log.take() {
            let Event::Read(gpa, seen) = event else {
                panic!("{event:?} while a request is read");
            };
            let segment = at.next().unwrap();
            assert_eq!(gpa, segment.start());
            assert!(seen.map_or(true, |seen| seen.len() as u64 == segment.len()));
        }
        let reply = vec![1; answer];
        let space: u64 = chain.writable().iter().map(|r| r.len()).sum();
        let written = chain.write_reply(guest, &reply);
        let mut left = if space < answer as u64 { 0 } else { answer };
        if let Ok(written) = written {
            assert_eq!(written as usize, left);
        }
        let mut at = chain.writable().iter();
        for event in guest.log.take() {
            let segment = at.next().unwrap();
            let count = left.min(segment.len() as usize);
            let ok = Log([event].into()).write(segment.start(), count).is_ok();
            assert!(ok || written.is_err());
            left -= count;
        }
        assert!(left == 0 || written.is_err());

        let pushed = self.ring.push(guest, chain, answer as u32);
        let mut log = Log(guest.log.take().into());
        let slot = u64::from(self.next_used % self.size);
        let mut expected = log.write(self.used + 4 + 8 * slot, 8);
        if expected.is_ok() {
            log.barrier();
            expected = log.write(self.used + 2, 2);
        }
        assert_eq!(pushed, expected);
        assert!(log.0.is_empty());
        if pushed.is_ok() {
            self.next_used = self.next_used.wrapping_add(1);
        }
    }

    fn kicks(&self, guest: &Guest<'_>, what: u64) {
        match what {
            0 => {
                let wanted = self.ring.wants_interrupt(guest);
                let mut log = Log(guest.log.take().into());
                log.barrier();
                let flags = log.read_u16(self.avail);
                assert_eq!(wanted.ok(), flags.ok().map(|f| f & 1 == 0));
            }
            1 => {
                let done = self.ring.disable_kicks(guest);
                assert_eq!(Log(guest.log.take().into()).write(self.used, 2), done);
            }
            _ => {
                let more = self.ring.enable_kicks(guest);
                let mut log = Log(guest.log.take().into());
                let expected = log.write(self.used, 2).map_err(RingError::from);
                let expected = expected.and_then(|()| {
                    log.barrier();
                    Ok(self.pending(&mut log)? != 0)
                });
                assert_eq!(more, expected);
                assert!(log.0.is_empty());
            }
        }
    }
}

/// A guest-physical address: in RAM or beside it, or anywhere.
fn address(input: &mut Input<'_>) -> u64 {
    match input.u8() {
        0xff => input.u64(),
        slot => BASE + u64::from(slot % 10) * SLOT + u64::from(input.u8()) * 16,
    }
}

fn run(mut input: Input<'_>) {
    let size = match input.u8() {
        shift @ 0..=10 => 1 << shift,
        _ => input.u16(),
    };
    let present = input.u8();
    let index = input.u16();
    let (desc, avail, used) = (
        address(&mut input),
        address(&mut input),
        address(&mut input),
    );
    let ends = [
        (desc, 16, 16 * u64::from(size)),
        (avail, 2, 6 + 2 * u64::from(size)),
        (used, 4, 6 + 8 * u64::from(size)),
    ];
    let fits = |(at, align, len): (u64, u64, u64)| at % align == 0 && at.checked_add(len).is_some();
    let allowed = size.is_power_of_two() && size <= MAX_SIZE && ends.into_iter().all(fits);
    let layout = Layout::new(size, desc, avail, used);
    assert_eq!(layout.is_some(), allowed);
    let Some(layout) = layout else {
        return;
    };
    let mut guest = Guest {
        input: RefCell::new(input),
        map: MemoryMap::new(),
        present: [false; SLOTS as usize],
        log: RefCell::default(),
    };
    for slot in 0..SLOTS {
        // Without the fuzzer's doing, all of it is there.
        if present & 1 << slot == 0 {
            guest.plug(slot, true);
        }
    }
    let mut device = Device {
        ring: Ring::new(layout, index),
        size,
        desc,
        avail,
        used,
        next_avail: index,
        next_used: index,
        chains: Vec::new(),
    };
    while !guest.input.get_mut().is_empty() {
        let input = guest.input.get_mut();
        match input.below(16) {
            0..=7 => device.pop(&guest),
            8..=11 if !device.chains.is_empty() => {
                let (which, room, answer) = (input.u8(), input.u16(), input.u8());
                device.push(&guest, which.into(), room.into(), answer.into());
            }
            12 => {
                let what = input.below(3);
                device.kicks(&guest, what);
            }
            13 => {
                let (slot, there) = (input.below(SLOTS), input.one_in(2));
                guest.plug(slot, there);
            }
            14 => {
                device.ring = Ring::new(layout, device.next_used);
                device.next_avail = device.next_used;
                device.chains.clear();
            }
            _ => (),
        }
        assert_eq!(device.ring.next_used(), device.next_used);
        let out = device.next_avail.wrapping_sub(device.next_used);
        assert_eq!(device.ring.in_flight(), out);
        assert!(out <= size);
    }
}
