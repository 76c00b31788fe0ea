// SPDX-License-Identifier: GPL-2.0-only

//! The gate's view of `PCI_COMMAND` against what firmware and systems were seen to do with it, and
//! against random accesses.

use crate::logic::command::{
    Command,
    Need,
    MASTER, //
};
use crate::rng::{
    steps,
    Rng, //
};

/// A device, its gate, and a guest.
struct Device {
    command: Command,
    register: u16,
    firmware: bool,
    /// What was mapped, each time that the gate let the device through.
    admitted: Vec<Need>,
}

impl Device {
    fn new(firmware: bool) -> Self {
        Self {
            command: Command::new(),
            register: 0,
            firmware,
            admitted: Vec::new(),
        }
    }

    fn read(&mut self) -> u16 {
        self.command.read();
        self.register
    }

    fn write(&mut self, value: u16) {
        let byte = value as u8;
        let need = self.command.need(byte, self.firmware);
        if let Some(need) = need {
            self.command.admit(need);
            self.admitted.push(need);
        }
        self.register = value;
        let outcome = self
            .command
            .written(byte, true, self.register, true, self.firmware);
        if outcome.clear {
            self.register &= !u16::from(MASTER);
        }
        if outcome.system {
            self.firmware = false;
        }
    }

    fn masters(&self) -> bool {
        self.register & u16::from(MASTER) != 0
    }

    /// Reads and writes as in `trace`: "r", or a value to write.
    fn replay(&mut self, trace: &str) {
        for word in trace.split_whitespace() {
            match word {
                "r" => {
                    self.read();
                }
                value => self.write(u16::from_str_radix(value, 16).unwrap()),
            }
        }
    }

    /// `pci_set_master()` of Linux: writes nothing if the bit is set.
    fn set_master(&mut self) {
        let command = self.read();
        if command & u16::from(MASTER) == 0 {
            self.write(command | u16::from(MASTER));
        }
    }

    /// What Linux does when it finds the device: tries to turn INTx off, and sizes the BARs.
    fn enumerate(&mut self) {
        let command = self.read();
        self.write(command ^ 0x400);
        self.read();
        self.write(command);
        let command = self.read();
        if command & 3 != 0 {
            self.write(command & !3);
            self.write(command);
        }
        self.read();
    }
}

/// OVMF 2025.02 and a disk that it boots from, from reset to the hand-over.
const OVMF: &str = "r r r 0 r r r r 0 r r 0 r 27 r 0 r 0 r 3 r 3 r 0 r r 7 r r 7 r r 7 r 7 r";
/// SeaBIOS and a disk that it boots from; the same of iPXE, from a network card's option ROM.
const SEABIOS: &str = "r 103 r r 107 r";
/// SeaBIOS and a device that it has no driver for, or does not boot from, option ROM or not.
const SEABIOS_PRESENT: &str = "r 103 r";

#[test]
fn strict_maps_all_for_firmware() {
    for trace in [OVMF, SEABIOS] {
        let mut device = Device::new(false);
        device.replay(trace);
        assert!(device.masters());
        assert!(device.admitted.iter().all(|need| *need == Need::All));
    }
}

#[test]
fn firmware_passes_and_the_system_has_to_ask_again() {
    for trace in [OVMF, SEABIOS, SEABIOS_PRESENT] {
        let mut device = Device::new(true);
        device.replay(trace);
        assert_eq!(device.masters(), trace != SEABIOS_PRESENT);
        assert!(device.firmware, "firmware was taken for a system: {trace}");
        assert!(device.admitted.iter().all(|need| *need == Need::Low));

        device.enumerate();
        assert!(!device.masters());
        assert!(!device.firmware);
        device.admitted.clear();
        device.set_master();
        assert!(device.masters());
        assert_eq!(device.admitted, [Need::All]);
    }
}

/// A system that clears the bit as well while it sizes BARs, and restores all of it.
#[test]
fn what_is_restored_is_not_asked_for() {
    let mut device = Device::new(true);
    device.replay(OVMF);
    device.replay("r 0 7");
    assert!(!device.masters());
    assert!(!device.firmware);
    device.admitted.clear();
    device.set_master();
    assert_eq!(device.admitted, [Need::All]);
}

/// The limit of it: whoever never sizes a BAR goes on with what firmware left.
#[test]
fn negative_control_a_system_that_does_not_enumerate_is_taken_for_firmware() {
    let mut device = Device::new(true);
    device.replay(OVMF);
    device.admitted.clear();
    device.set_master();
    assert!(device.masters());
    assert_eq!(device.admitted, []);
}

#[test]
fn a_write_in_d3_does_not_close_the_gate() {
    let mut command = Command::new();
    command.admit(Need::All);
    // The device has the bit again when it comes back.
    assert_eq!(command.written(0x03, true, 0x0003, false, false).left, None);
    assert_eq!(command.need(0x07, false), None);
    let outcome = command.written(0x03, true, 0x0003, true, false);
    assert_eq!(outcome.left, Some(Need::All));
    assert_eq!(command.need(0x07, false), Some(Need::All));
}

#[test]
fn a_bit_that_nobody_was_let_through_for_is_cleared() {
    let mut command = Command::new();
    assert!(command.written(0x03, true, 0x0007, true, false).clear);
    // A device that does not answer says nothing.
    assert!(!command.written(0x03, true, 0xffff, true, false).clear);
    command.admit(Need::All);
    assert_eq!(command.written(0x03, true, 0xffff, true, false).left, None);
}

#[test]
fn a_failed_write_changes_nothing_but_what_the_register_shows() {
    let mut command = Command::new();
    command.admit(Need::All);
    let outcome = command.written(0x07, false, 0x0000, true, false);
    assert_eq!(outcome.left, Some(Need::All));
}

/// Whatever is read and written: the device masters the bus for all only after all was mapped,
/// and early only in the firmware phase, which never comes back.
#[test]
fn random_accesses() {
    let mut rng = Rng::new("command");
    for _ in 0..steps(100_000) {
        let strict = rng.one_in(2);
        let mut device = Device::new(!strict);
        let mut mapped = None;
        for _ in 0..rng.below(40) {
            if rng.one_in(3) {
                device.read();
                continue;
            }
            let before = device.admitted.len();
            let in_phase = device.firmware;
            device.write(rng.below(8) as u16);
            if device.admitted.len() > before {
                mapped = device.admitted.last().copied();
            }
            assert!(in_phase || !device.firmware);
            if device.masters() {
                let need = mapped.expect("it masters the bus and nothing was mapped");
                assert!(need == Need::All || device.firmware);
            } else {
                mapped = None;
            }
        }
    }
}
