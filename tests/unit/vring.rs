// SPDX-License-Identifier: GPL-2.0-only

//! The virtqueue against a driver that behaves and against one that does not.

use crate::logic::chain::{
    Chain,
    MAX_SEGMENTS, //
};
use crate::logic::memory::{
    Fault,
    Memory, //
};
use crate::logic::vring::{
    Layout,
    Ring,
    RingError,
    MAX_SIZE, //
};
use crate::rng::{
    steps,
    Rng, //
};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Guest RAM at a base that shows when an offset is taken for an address.
const BASE: u64 = 0x1_0000_0000;
const LEN: u64 = 0x8000;
const DESC: u64 = BASE;
const AVAIL: u64 = BASE + 0x4000;
const USED: u64 = BASE + 0x5000;
const DATA: u64 = BASE + 0x7800;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Read(u64),
    Write(u64),
    Rmb,
    Wmb,
    Mb,
}

/// Guest RAM that records every access, and in which the guest can act at any moment.
struct Ram {
    bytes: RefCell<Vec<u8>>,
    log: RefCell<Vec<Event>>,
    /// Called at every event, before it takes effect.
    guest: Option<Box<dyn Fn(&Ram, Event)>>,
}

impl Ram {
    fn new() -> Self {
        Self {
            bytes: RefCell::new(vec![0; LEN as usize]),
            log: RefCell::new(Vec::new()),
            guest: None,
        }
    }

    fn event(&self, event: Event) {
        if let Some(guest) = &self.guest {
            guest(self, event);
        }
        self.log.borrow_mut().push(event);
    }

    fn span(gpa: u64, len: usize) -> Result<std::ops::Range<usize>, Fault> {
        let start = gpa.checked_sub(BASE).ok_or(Fault)?;
        let end = start.checked_add(len as u64).ok_or(Fault)?;
        if end > LEN {
            return Err(Fault);
        }
        Ok(start as usize..end as usize)
    }

    /// What the guest does is not recorded.
    fn poke(&self, gpa: u64, data: &[u8]) {
        self.bytes.borrow_mut()[Self::span(gpa, data.len()).unwrap()].copy_from_slice(data);
    }

    fn poke16(&self, gpa: u64, value: u16) {
        self.poke(gpa, &value.to_le_bytes());
    }

    fn peek<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let span = Self::span(gpa, N).unwrap();
        self.bytes.borrow()[span].try_into().unwrap()
    }

    fn desc(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut raw = addr.to_le_bytes().to_vec();
        raw.extend(len.to_le_bytes());
        raw.extend(flags.to_le_bytes());
        raw.extend(next.to_le_bytes());
        self.poke(DESC + 16 * u64::from(index), &raw);
    }

    /// Makes `heads` available, the first at the free-running index `from`.
    fn offer(&self, size: u16, from: u16, heads: &[u16]) {
        let mut index = from;
        for head in heads {
            self.poke16(AVAIL + 4 + 2 * u64::from(index % size), *head);
            index = index.wrapping_add(1);
        }
        self.poke16(AVAIL + 2, index);
    }

    fn log(&self) -> Vec<Event> {
        self.log.take()
    }
}

impl Memory for Ram {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), Fault> {
        self.event(Event::Read(gpa));
        buf.copy_from_slice(&self.bytes.borrow()[Self::span(gpa, buf.len())?]);
        Ok(())
    }

    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), Fault> {
        self.event(Event::Write(gpa));
        self.bytes.borrow_mut()[Self::span(gpa, data.len())?].copy_from_slice(data);
        Ok(())
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
        self.event(Event::Rmb);
    }

    fn wmb(&self) {
        self.event(Event::Wmb);
    }

    fn mb(&self) {
        self.event(Event::Mb);
    }
}

fn ring(size: u16, index: u16) -> Ring {
    Ring::new(Layout::new(size, DESC, AVAIL, USED).unwrap(), index)
}

fn pop_error(ram: &Ram, size: u16) -> RingError {
    let mut ring = ring(size, 0);
    let error = ring.pop(ram).unwrap_err();
    // It stands where it stood.
    assert_eq!(ring.in_flight(), 0);
    assert_eq!(ring.pop(ram).unwrap_err(), error);
    error
}

#[test]
fn layouts() {
    let end = 0u64.wrapping_sub(16);
    for (size, desc, avail, used, ok) in [
        (1, 0, 0, 0, true),
        (MAX_SIZE, DESC, AVAIL, USED, true),
        (0, 0, 0, 0, false),
        (3, 0, 0, 0, false),
        (2048, 0, 0, 0, false),
        (32768, 0, 0, 0, false),
        (4, 8, 0, 0, false),
        (4, 0, 1, 0, false),
        (4, 0, 0, 2, false),
        // Half-open ranges leave the last byte of the address space out.
        (1, end, 0, 0, false),
        (1, end - 16, 0, 0, true),
        (2, end - 16, 0, 0, false),
        (4, 0, end, 0, true),
        (8, 0, end, 0, false),
        (1, 0, 0, end, true),
        (2, 0, 0, end, false),
    ] {
        let layout = Layout::new(size, desc, avail, used);
        assert_eq!(
            layout.is_some(),
            ok,
            "{size} {desc:#x} {avail:#x} {used:#x}"
        );
    }
}

#[test]
fn a_request_and_its_answer_in_order() {
    let ram = Ram::new();
    ram.desc(2, DATA, 3, NEXT, 0);
    ram.desc(0, DATA + 16, 2, NEXT, 3);
    ram.desc(3, DATA + 32, 1, NEXT | WRITE, 1);
    ram.desc(1, DATA + 48, 9, WRITE, 77);
    ram.poke(DATA, b"abc");
    ram.poke(DATA + 16, b"de");
    // The indices wrap round.
    ram.poke16(AVAIL + 2, u16::MAX);
    let mut ring = ring(4, u16::MAX);
    assert!(ring.pop(&ram).unwrap().is_none());
    ram.offer(4, u16::MAX, &[2]);
    ram.log();

    let chain = ring.pop(&ram).unwrap().unwrap();
    let desc = |i: u64| Event::Read(DESC + 16 * i);
    assert_eq!(
        ram.log(),
        [
            Event::Read(AVAIL + 2),
            Event::Rmb,
            Event::Read(AVAIL + 4 + 2 * 3),
            desc(2),
            desc(0),
            desc(3),
            desc(1),
        ]
    );
    assert_eq!((chain.head(), ring.in_flight()), (2, 1));
    assert_eq!((chain.readable().len(), chain.writable().len()), (2, 2));
    assert_eq!(chain.read_all(&ram, &mut [0; 5]), Ok(Some(&b"abcde"[..])));
    assert_eq!(chain.read_all(&ram, &mut [0; 4]), Ok(None));
    assert_eq!(chain.write_reply(&ram, b"0123456789a"), Ok(0));
    assert_eq!(ram.peek::<1>(DATA + 32), [0]);
    assert_eq!(chain.write_reply(&ram, b"wxyz"), Ok(4));
    assert_eq!(ram.peek::<1>(DATA + 32), *b"w");
    assert_eq!(ram.peek::<4>(DATA + 48), *b"xyz\0");
    ram.log();

    ring.push(&ram, chain, 4).unwrap();
    assert_eq!(
        ram.log(),
        [
            Event::Write(USED + 4 + 8 * 3),
            Event::Wmb,
            Event::Write(USED + 2),
        ]
    );
    assert_eq!(ram.peek::<8>(USED + 4 + 8 * 3), [2, 0, 0, 0, 4, 0, 0, 0]);
    assert_eq!(ram.peek::<2>(USED + 2), [0, 0]);
    assert_eq!((ring.next_used(), ring.in_flight()), (0, 0));
    assert!(ring.pop(&ram).unwrap().is_none());
}

#[test]
fn interrupts_and_kicks() {
    let mut ram = Ram::new();
    let ring = ring(4, 0);
    assert_eq!(ring.wants_interrupt(&ram), Ok(true));
    assert_eq!(ram.log(), [Event::Mb, Event::Read(AVAIL)]);
    ram.poke16(AVAIL, 1);
    assert_eq!(ring.wants_interrupt(&ram), Ok(false));
    ring.disable_kicks(&ram).unwrap();
    assert_eq!(ram.peek::<2>(USED), [1, 0]);
    ram.log();
    assert_eq!(ring.enable_kicks(&ram), Ok(false));
    assert_eq!(ram.peek::<2>(USED), [0, 0]);
    assert_eq!(
        ram.log(),
        [Event::Write(USED), Event::Mb, Event::Read(AVAIL + 2)]
    );
    // The driver looks at the flag just before it is cleared, and so does not kick.
    ram.guest = Some(Box::new(|ram, event| {
        if event == Event::Write(USED) {
            ram.offer(4, 0, &[1]);
        }
    }));
    assert_eq!(ring.enable_kicks(&ram), Ok(true));
}

#[test]
fn every_ring_error() {
    let fresh = || {
        let ram = Ram::new();
        ram.offer(4, 0, &[0]);
        ram
    };

    let ram = fresh();
    ram.desc(0, DATA, 0, 0, 0);
    assert_eq!(pop_error(&ram, 4), RingError::Segment);
    ram.desc(0, u64::MAX - 7, 8, 0, 0);
    assert_eq!(pop_error(&ram, 4), RingError::Segment);
    ram.desc(0, DATA, 8, INDIRECT, 0);
    assert_eq!(pop_error(&ram, 4), RingError::Indirect);
    ram.desc(0, DATA, 8, NEXT, 4);
    assert_eq!(pop_error(&ram, 4), RingError::DescIndex);
    ram.desc(0, DATA, 8, NEXT | WRITE, 1);
    ram.desc(1, DATA, 8, 0, 0);
    assert_eq!(pop_error(&ram, 4), RingError::ReadableAfterWritable);
    ram.desc(1, DATA, 8, NEXT | WRITE, 0);
    assert_eq!(pop_error(&ram, 4), RingError::TooLong);
    ram.offer(4, 0, &[4]);
    assert_eq!(pop_error(&ram, 4), RingError::DescIndex);
    for index in [5, 6, 0x8000, u16::MAX] {
        ram.poke16(AVAIL + 2, index);
        assert_eq!(pop_error(&ram, 4), RingError::AvailIndex);
    }
    for part in 0..3 {
        let at = |i| [DESC, AVAIL, USED][i] + if part == i { LEN } else { 0 };
        let mut ring = Ring::new(Layout::new(4, at(0), at(1), at(2)).unwrap(), 0);
        let ram = fresh();
        ram.desc(0, DATA, 8, 0, 0);
        match ring.pop(&ram) {
            Ok(chain) => assert_eq!(ring.push(&ram, chain.unwrap(), 0), Err(Fault)),
            Err(error) => assert_eq!(error, RingError::Fault),
        }
    }
}

#[test]
fn the_longest_chain() {
    let ram = Ram::new();
    ram.offer(MAX_SIZE, 0, &[0]);
    let last = MAX_SEGMENTS as u16 - 1;
    for i in 0..last {
        ram.desc(i, DATA, 1, NEXT, i + 1);
    }
    ram.desc(last, DATA, 1, 0, 0);
    let chain = ring(MAX_SIZE, 0).pop(&ram).unwrap().unwrap();
    assert_eq!(chain.readable().len(), MAX_SEGMENTS);
    ram.desc(last, DATA, 1, NEXT, last + 1);
    ram.desc(last + 1, DATA, 1, 0, 0);
    assert_eq!(pop_error(&ram, MAX_SIZE), RingError::TooLong);
}

#[test]
fn the_available_index_never_passes_what_is_in_flight() {
    let ram = Ram::new();
    ram.desc(0, DATA, 1, 0, 0);
    ram.offer(4, 0, &[0, 0, 0]);
    let mut ring = ring(4, 0);
    let chains: Vec<Chain> = (0..3).map(|_| ring.pop(&ram).unwrap().unwrap()).collect();
    assert_eq!(ring.in_flight(), 3);
    ram.poke16(AVAIL + 2, 5);
    assert_eq!(ring.pop(&ram).unwrap_err(), RingError::AvailIndex);
    ram.poke16(AVAIL + 2, 2);
    assert_eq!(ring.pop(&ram).unwrap_err(), RingError::AvailIndex);
    ram.poke16(AVAIL + 2, 4);
    for chain in chains {
        ring.push(&ram, chain, 0).unwrap();
    }
    assert!(ring.pop(&ram).unwrap().is_some());
}

/// A driver that keeps to the rules, with many chains in flight and out of order.
#[test]
fn a_random_driver_gets_its_answers() {
    let mut rng = Rng::new("vring");
    let size = 16u16;
    let ram = Ram::new();
    let mut ring = ring(size, 0);
    let mut free: Vec<u16> = (0..size).collect();
    let mut waiting: VecDeque<(Vec<u16>, usize)> = VecDeque::new();
    let mut popped: Vec<(Chain, Vec<u16>)> = Vec::new();
    let (mut offered, mut seen) = (0u16, 0u16);
    for _ in 0..steps(300_000) {
        match rng.below(3) {
            0 if !free.is_empty() => {
                let mut descs = Vec::new();
                while !free.is_empty() && (descs.is_empty() || rng.one_in(2)) {
                    descs.push(free.swap_remove(rng.below(free.len() as u64) as usize));
                }
                let readable = rng.below(descs.len() as u64 + 1) as usize;
                for (i, &desc) in descs.iter().enumerate() {
                    let next = descs.get(i + 1);
                    let flags = if next.is_some() { NEXT } else { 0 }
                        | if i < readable { 0 } else { WRITE };
                    let next = next.copied().unwrap_or_else(|| rng.next() as u16);
                    ram.desc(desc, DATA + u64::from(desc) * 8, 8, flags, next);
                    ram.poke(DATA + u64::from(desc) * 8, &[desc as u8; 8]);
                }
                ram.offer(size, offered, &descs[..1]);
                offered = offered.wrapping_add(1);
                waiting.push_back((descs, readable));
            }
            1 => match ring.pop(&ram).unwrap() {
                None => assert!(waiting.is_empty()),
                Some(chain) => {
                    let (descs, readable) = waiting.pop_front().unwrap();
                    assert_eq!(chain.head(), descs[0]);
                    assert_eq!(chain.readable().len(), readable);
                    assert_eq!(chain.writable().len(), descs.len() - readable);
                    let mut buf = [0; 128];
                    let request = chain.read_all(&ram, &mut buf).unwrap().unwrap();
                    let expected = descs[..readable].iter().flat_map(|&d| [d as u8; 8]);
                    assert!(request.iter().copied().eq(expected));
                    popped.push((chain, descs));
                }
            },
            2 if !popped.is_empty() => {
                let (chain, descs) = popped.swap_remove(rng.below(popped.len() as u64) as usize);
                let written = chain.write_reply(&ram, b"ok").unwrap();
                assert_eq!(written, if chain.writable().is_empty() { 0 } else { 2 });
                ring.push(&ram, chain, written).unwrap();
                let entry: [u8; 8] = ram.peek(USED + 4 + 8 * u64::from(seen % size));
                assert_eq!(entry[..4], u32::from(descs[0]).to_le_bytes());
                assert_eq!(entry[4..], written.to_le_bytes());
                seen = seen.wrapping_add(1);
                assert_eq!(ram.peek::<2>(USED + 2), seen.to_le_bytes());
                free.extend(descs);
            }
            _ => (),
        }
        assert_eq!(usize::from(ring.in_flight()), popped.len());
        ram.log();
    }
}

/// A driver that writes anything anywhere, while the device looks.
#[test]
fn a_hostile_driver_gets_nowhere() {
    let rng = Rc::new(RefCell::new(Rng::new("hostile")));
    let size = 8u16;
    let scribble = |ram: &Ram, rng: &mut Rng| match rng.below(4) {
        0 => {
            let used = u16::from_le_bytes(ram.peek(USED + 2));
            ram.poke16(AVAIL + 2, used.wrapping_add(rng.below(12) as u16));
        }
        1 => ram.poke16(AVAIL + 4 + 2 * rng.below(8), rng.below(9) as u16),
        2 => {
            let flags = [0, NEXT, NEXT, NEXT | WRITE, WRITE, INDIRECT][rng.below(6) as usize];
            let addr = [DATA, DATA, DATA, u64::MAX - 4, 0][rng.below(5) as usize];
            let len = [1, 8, 64, 64, 0, u32::MAX][rng.below(6) as usize];
            ram.desc(rng.below(8) as u16, addr, len, flags, rng.below(9) as u16);
        }
        _ => ram.poke16(BASE + 2 * rng.below(LEN / 2), rng.next() as u16),
    };
    let mut ram = Ram::new();
    let spy = rng.clone();
    ram.guest = Some(Box::new(move |ram, _| {
        scribble(ram, &mut spy.borrow_mut());
    }));
    let (mut good, mut bad) = (0u64, 0u64);
    let mut device = ring(size, 0);
    let mut chains: Vec<Chain> = Vec::new();
    for _ in 0..steps(1_000_000) {
        let events = match device.pop(&ram) {
            Ok(Some(chain)) => {
                good += 1;
                assert!(chain.head() < size);
                assert!(chain.readable().len() + chain.writable().len() <= size.into());
                chains.push(chain);
                ram.log()
            }
            Ok(None) => ram.log(),
            Err(_) => {
                bad += 1;
                let events = ram.log();
                if rng.borrow_mut().one_in(8) {
                    chains.clear();
                    device = ring(size, u16::from_le_bytes(ram.peek(USED + 2)));
                }
                events
            }
        };
        // The index, the barrier, the entry, and no more descriptors than there are.
        assert!(events.len() <= 3 + usize::from(size));
        assert!(device.in_flight() <= size);
        if !chains.is_empty() && rng.borrow_mut().one_in(2) {
            let chain = chains.swap_remove(0);
            let mut buf = [0; 256];
            if let Ok(Some(bytes)) = chain.read_all(&ram, &mut buf) {
                assert!(bytes.len() <= 256);
            }
            let room: u64 = chain.writable().iter().map(|r| r.len()).sum();
            if let Ok(written) = chain.write_reply(&ram, b"01234567") {
                assert_eq!(written, if room < 8 { 0 } else { 8 });
            }
            let written = ram.log();
            let inside = |gpa: &u64| chain.writable().iter().any(|r| r.contains(*gpa));
            assert!(written
                .iter()
                .all(|e| !matches!(e, Event::Write(gpa) if !inside(gpa))));
            device.push(&ram, chain, 8).unwrap();
            ram.log();
        }
    }
    // Both must have been met for the test to mean anything.
    let enough = steps(1_000_000) / 100;
    assert!(
        good >= enough && bad >= enough,
        "{good} chains, {bad} errors"
    );
    println!("{good} chains, {bad} errors");
}
