// SPDX-License-Identifier: GPL-2.0-only

//! A VMM that writes the registers in any order, with a thread that serves the queues.

use super::registers::{
    Registers,
    Snapshot, //
};
use super::spec::*;
use crate::rng::{
    steps,
    Rng, //
};

const SIZE: u16 = 128;
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;

/// A device that serves its queues.
fn running() -> Registers {
    let mut registers = Registers::new();
    registers.bind();
    assert!(registers.set_features(FEATURES));
    for index in 0..QUEUES as u16 {
        registers.set_queue(index, |queue| queue.size = SIZE);
        registers.set_ready(index, true);
    }
    registers.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    let status = registers.status() | DRIVER_OK;
    assert_eq!(registers.set_status(status), Some(FEATURES));
    assert!(registers.snapshot(INFLATE).is_none(), "it has not started");
    registers.start();
    registers
}

#[test]
fn what_was_answered_is_not_answered_again() {
    let stops: [(fn(&mut Registers), fn(&mut Registers)); 2] = [
        (|r| r.suspend(true), |r| r.suspend(false)),
        (|r| r.set_ready(0, false), |r| r.set_ready(0, true)),
    ];
    for (stop, resume) in stops {
        let mut registers = running();
        let snapshot = registers.snapshot(INFLATE).unwrap();
        stop(&mut registers);
        assert!(!registers.is_current(&snapshot));
        assert!(registers.snapshot(INFLATE).is_none());
        registers.advance(INFLATE, 3, &snapshot);
        resume(&mut registers);
        assert!(!registers.is_current(&snapshot));
        assert_eq!(registers.snapshot(INFLATE).unwrap().queue.next, 3);
    }
}

#[test]
fn what_was_answered_counts_for_nothing_after_a_reset_or_where_the_vmm_went_on() {
    let mut registers = running();
    let snapshot = registers.snapshot(INFLATE).unwrap();
    registers.reset();
    registers.advance(INFLATE, 3, &snapshot);
    assert_eq!(registers.next(0), 0);

    let mut registers = running();
    let snapshot = registers.snapshot(INFLATE).unwrap();
    registers.set_queue(0, |queue| queue.next = 100);
    registers.advance(INFLATE, 3, &snapshot);
    assert_eq!(registers.next(0), 100);
}

#[test]
fn the_target_only_falls_and_only_for_the_session_that_it_is_of() {
    let mut registers = running();
    let session = registers.session();
    let pages =
        |registers: &Registers| u32::from_le_bytes(*registers.config().first_chunk().unwrap());
    assert!(registers.lower_target(session, 512));
    assert!(!registers.lower_target(session, 513));
    assert!(!registers.lower_target(session.wrapping_sub(1), 0));
    assert_eq!(pages(&registers), 512);
    registers.unbind();
    assert!(!registers.lower_target(session, 0));
    assert_eq!(pages(&registers), 512);
    registers.reset();
    assert_eq!(pages(&registers), 0);
    // A driver that is not ours must not inflate.
    assert!(!registers.lower_target(registers.session(), 512));
    assert_eq!(pages(&registers), 0);
}

#[test]
fn no_order_of_writes_serves_a_queue_too_early_or_for_too_long() {
    let mut rng = Rng::new("registers");
    let mut registers = Registers::new();
    // What the thread has in its hands, and whether something has outdated it since.
    let mut held: Option<(Snapshot, bool)> = None;
    let (mut bound, mut suspended, mut served) = (false, false, 0);
    for _ in 0..steps(1_000_000) {
        let index = rng.below(QUEUES as u64 + 1) as u16;
        let (was, features) = (registers.status(), registers.features());
        let mut outdated = true;
        match rng.below(14) {
            0 if rng.one_in(8) => {
                registers.reset();
                suspended = false;
                assert_eq!((registers.status(), registers.features()), (0, 0));
            }
            1 => {
                suspended = rng.one_in(3);
                registers.suspend(suspended);
            }
            2 => registers.set_ready(index, !rng.one_in(4)),
            3 if rng.one_in(16) => registers.start_broken(),
            4 if rng.one_in(16) => {
                let current = held.is_some_and(|(_, outdated)| !outdated);
                let failed = held.is_some_and(|(snapshot, _)| registers.fail(&snapshot));
                assert_eq!(failed, current);
                outdated = failed;
            }
            other => {
                outdated = false;
                match other {
                    5 if rng.one_in(4) => {
                        bound = !bound;
                        match bound {
                            true => registers.bind(),
                            false => registers.unbind(),
                        }
                        // The core resets a device that nobody has.
                        registers.reset();
                        (suspended, outdated) = (false, true);
                    }
                    6 => {
                        let done = registers.set_features(rng.next());
                        assert_eq!(done, was & FEATURES_OK == 0);
                        assert_eq!(registers.features() & !FEATURES, 0);
                        assert!(done || registers.features() == features);
                    }
                    7 => {
                        // What a driver may write, or anything.
                        let all = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
                        let status = if rng.one_in(4) { rng.next() as u8 } else { all };
                        if let Some(features) = registers.set_status(status) {
                            assert!(bound && was & (DRIVER_OK | NEEDS_RESET) == 0);
                            assert_eq!(features, registers.features());
                            assert_eq!(registers.status() & DRIVER_OK, 0);
                            registers.start();
                        }
                        assert_eq!(was & NEEDS_RESET & !registers.status(), 0);
                    }
                    8 => {
                        let bytes = rng.next().to_le_bytes();
                        let before = registers.config();
                        let length = rng.below(9) as usize;
                        registers.set_config(rng.below(32) as usize, &bytes[..length]);
                        let after = registers.config();
                        assert_eq!((&before[..4], &before[8..]), (&after[..4], &after[8..]));
                    }
                    9 => registers.set_queue(index, |queue| queue.size = rng.next() as u16),
                    _ => {}
                }
            }
        }
        if let Some((snapshot, was_outdated)) = &mut held {
            *was_outdated |= outdated;
            assert_eq!(registers.is_current(snapshot), !*was_outdated);
        }
        let snapshot = registers.snapshot(usize::from(index));
        let status = registers.status();
        let may =
            status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK && !suspended && registers.ready(index);
        assert_eq!(snapshot.is_some(), may);
        if let Some(snapshot) = snapshot {
            assert_eq!(snapshot.deferred, registers.features() & F_DEFERRED != 0);
            held = Some((snapshot, false));
            served += 1;
        }
    }
    assert!(
        served > steps(1_000_000) / 100,
        "queues were served {served} times"
    );
}
