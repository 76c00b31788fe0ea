// SPDX-License-Identifier: GPL-2.0-only

//! The gate's view of `PCI_COMMAND` against what firmware and systems were seen to do with it, and
//! against random accesses.

use crate::logic::command::{
    Command,
    Intent,
    Lost,
    Need,
    Phase,
    MASTER, //
};
use crate::rng::{
    steps,
    Rng, //
};

/// A device, its gate, and a guest.
struct Device {
    command: Command,
    /// As the hardware has it.
    register: u16,
    phase: Phase,
    /// Whether all memory is mapped.
    mapped: bool,
    /// What was mapped, each time that the gate let the device through.
    admitted: Vec<Need>,
}

impl Device {
    fn new(phase: Phase) -> Self {
        Self {
            command: Command::new(),
            register: 0,
            phase,
            mapped: false,
            admitted: Vec::new(),
        }
    }

    fn read(&mut self) -> u16 {
        self.command.read();
        self.register & 0xff00 | u16::from(self.command.shown(self.register as u8))
    }

    fn write(&mut self, value: u16) {
        let byte = value as u8;
        let intent = self.command.intent(byte, self.phase);
        let mut passed = value;
        let mut asked = None;
        match intent {
            Intent::Pass => {}
            Intent::Mask => passed &= !u16::from(MASTER),
            Intent::Ask(_) if self.mapped => {
                self.command.admit(Need::All);
                self.admitted.push(Need::All);
            }
            Intent::Ask(need) => {
                passed &= !u16::from(MASTER);
                asked = Some(need);
            }
        }
        self.register = passed;
        let outcome = self
            .command
            .written(byte, true, self.register, true, self.phase);
        if let Some(need) = asked {
            self.command.ask(need);
        }
        if outcome.clear || outcome.lost == Some(Lost::Mastership) {
            self.register &= !u16::from(MASTER);
        }
        if outcome.system {
            self.system();
        }
    }

    /// A system has shown itself.
    fn system(&mut self) {
        self.phase = Phase::System;
        if self.command.forget() == Some(Lost::Mastership) {
            self.register &= !u16::from(MASTER);
        }
    }

    /// Writes all ones to a BAR.
    fn size_bar(&mut self) {
        if self.command.sizes_bar(self.phase) {
            self.system();
        }
    }

    /// Uses the device; memory that this waits for is mapped.
    fn touch(&mut self) {
        if self.command.is_asked() {
            self.command.touch();
            let need = self.phase.need();
            self.mapped |= need == Need::All;
            assert!(self.command.grant(need));
            self.admitted.push(need);
            self.register |= u16::from(MASTER);
        }
    }

    fn masters(&self) -> bool {
        self.register & u16::from(MASTER) != 0
    }

    /// Accesses as in `trace`: "r" reads the register, "t" touches the device, "b" writes all ones
    /// to a BAR, and the rest are values to write.
    fn replay(&mut self, trace: &str) {
        for word in trace.split_whitespace() {
            match word {
                "r" => {
                    self.read();
                }
                "t" => self.touch(),
                "b" => self.size_bar(),
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
            self.size_bar();
            self.write(command);
        } else {
            self.size_bar();
        }
        self.read();
    }
}

const EARLY: Phase = Phase::Firmware(Need::Low);
const STRICT: Phase = Phase::Firmware(Need::All);

/// OVMF 2025.02 and a disk that it boots from, from reset to the hand-over.
const OVMF: &str = "r r r 0 r r r r 0 r r 0 r 27 r 0 r 0 r 3 r 3 r 0 r r 7 t r r 7 r r 7 r 7 r";
/// The same and a device that is merely there; "b" where BARs are sized.
const OVMF_PRESENT: &str = "r b b 0 r b r 0 r b r 127 100 110 r 103 100 r 107 r";
/// SeaBIOS and a disk that it boots from; the same of iPXE, from a network card's option ROM.
const SEABIOS: &str = "r b 103 r r 107 t r";
/// SeaBIOS and a device that it has no driver for, or does not boot from, option ROM or not.
const SEABIOS_PRESENT: &str = "r b 103 r";

#[test]
fn strict_maps_all_for_firmware_that_drives_a_device() {
    for trace in [OVMF, SEABIOS] {
        let mut device = Device::new(STRICT);
        device.replay(trace);
        assert!(device.masters());
        assert_eq!(device.admitted, [Need::All]);
        // It stays so: all is mapped.
        device.enumerate();
        device.set_master();
        assert!(device.masters());
    }
}

#[test]
fn nothing_is_mapped_for_a_device_that_is_merely_there() {
    for phase in [EARLY, STRICT] {
        for trace in [OVMF_PRESENT, SEABIOS_PRESENT] {
            let mut device = Device::new(phase);
            device.replay(trace);
            assert!(!device.masters());
            let asked = trace == OVMF_PRESENT;
            assert_eq!(device.read() & 4 != 0, asked);
            assert_eq!(
                device.phase, phase,
                "firmware was taken for a system: {trace}"
            );

            device.enumerate();
            assert_eq!(device.phase, Phase::System);
            assert!(!device.masters());
            assert_eq!(device.read() & 4, 0, "what firmware asked is not forgotten");
            // Quirks of the system touch a device before its driver comes.
            device.touch();
            assert_eq!(device.admitted, []);

            device.set_master();
            assert!(!device.masters() && device.read() & 4 != 0);
            device.touch();
            assert!(device.masters());
            assert_eq!(device.admitted, [Need::All]);
        }
    }
}

#[test]
fn firmware_passes_and_the_system_has_to_ask_again() {
    for trace in [OVMF, SEABIOS] {
        let mut device = Device::new(EARLY);
        device.replay(trace);
        assert!(device.masters());
        assert_eq!(
            device.phase, EARLY,
            "firmware was taken for a system: {trace}"
        );
        assert_eq!(device.admitted, [Need::Low]);

        device.enumerate();
        assert!(!device.masters());
        assert_eq!(device.phase, Phase::System);
        device.admitted.clear();
        device.set_master();
        device.touch();
        assert!(device.masters());
        assert_eq!(device.admitted, [Need::All]);
    }
}

/// Either sign of a system suffices.
#[test]
fn signs() {
    // Linux with decoding left on while it sizes; Linux that sizes nothing it can decode.
    for system in ["b", "r 100 r b 107", "100 107"] {
        let mut device = Device::new(EARLY);
        device.replay(OVMF);
        device.replay(system);
        assert!(!device.masters(), "{system}");
        assert_eq!(device.phase, Phase::System, "{system}");
    }
    // Firmware sizes again before it has enabled anything.
    let mut device = Device::new(EARLY);
    device.replay("b r 103 r b r 100 b r 103 r");
    assert_eq!(device.phase, EARLY);
}

/// A system that clears the bit as well while it sizes BARs, and restores all of it.
#[test]
fn what_is_restored_is_not_asked_for() {
    for system in ["r 0 7", "r 0 b 7", "r 4 b 7"] {
        let mut device = Device::new(EARLY);
        device.replay(OVMF);
        device.replay(system);
        assert!(!device.masters());
        assert_eq!(device.phase, Phase::System);
        assert_eq!(device.read() & 4, 0);
        // But the next one is.
        device.replay("7");
        assert_eq!(device.read() & 4, 4);
    }
}

/// The limit of it: whoever never sizes a BAR goes on with what firmware was given.
#[test]
fn negative_control_a_system_that_does_not_enumerate_is_taken_for_firmware() {
    let mut device = Device::new(EARLY);
    device.replay(OVMF);
    device.admitted.clear();
    device.set_master();
    device.touch();
    assert!(device.masters());
    assert_eq!(device.admitted, []);
}

/// The driver of a balloon starts: what is asked for is so still, whoever asked.
#[test]
fn hand_over() {
    for (trace, early) in [(OVMF, true), (OVMF_PRESENT, false)] {
        let mut device = Device::new(EARLY);
        device.replay(trace);
        assert_eq!(device.command.hand_over(), early);
        device.phase = Phase::System;
        device.register &= !4;
        device.admitted.clear();
        // The driver finds the bit set and writes nothing.
        device.set_master();
        assert!(device.command.is_asked() && !device.masters());
        device.touch();
        assert_eq!(device.admitted, [Need::All]);
    }
}

#[test]
fn a_request_ends_with_the_bit() {
    let mut device = Device::new(Phase::System);
    device.replay("7");
    assert!(device.command.is_asked());
    device.replay("3");
    assert!(!device.command.is_asked());
    assert!(!device.command.grant(Need::All));
    assert_eq!(device.read(), 3);
}

#[test]
fn a_write_in_d3_does_not_close_the_gate() {
    let mut command = Command::new();
    command.admit(Need::All);
    let system = Phase::System;
    // The device has the bit again when it comes back.
    assert_eq!(
        command.written(0x03, true, 0x0003, false, system).lost,
        None
    );
    assert_eq!(command.intent(0x07, system), Intent::Pass);
    let outcome = command.written(0x03, true, 0x0003, true, system);
    assert_eq!(outcome.lost, Some(Lost::Mastership));
    assert_eq!(command.intent(0x07, system), Intent::Ask(Need::All));
}

#[test]
fn a_bit_that_nobody_was_let_through_for_is_cleared() {
    let mut command = Command::new();
    let system = Phase::System;
    assert!(command.written(0x03, true, 0x0007, true, system).clear);
    // A device that does not answer says nothing.
    assert!(!command.written(0x03, true, 0xffff, true, system).clear);
    command.ask(Need::All);
    assert!(command.written(0x07, true, 0x0007, true, system).clear);
    command.admit(Need::All);
    assert_eq!(command.written(0x03, true, 0xffff, true, system).lost, None);
}

#[test]
fn a_failed_write_changes_nothing_but_what_the_register_shows() {
    let mut command = Command::new();
    command.admit(Need::All);
    let outcome = command.written(0x07, false, 0x0000, true, Phase::System);
    assert_eq!(outcome.lost, Some(Lost::Mastership));
    command.ask(Need::All);
    assert_eq!(
        command.written(0x03, false, 0, true, Phase::System).lost,
        None
    );
    assert!(command.is_asked());
}

/// Whatever is done: the device masters the bus for all only after all was mapped, and early only
/// in the firmware phase, which never comes back; and it does once it was asked to and touched.
#[test]
fn random_accesses() {
    let mut rng = Rng::new("command");
    for _ in 0..steps(100_000) {
        let phases = [EARLY, STRICT, Phase::System];
        let mut device = Device::new(phases[rng.below(3) as usize]);
        for _ in 0..rng.below(40) {
            let before = device.phase;
            match rng.below(8) {
                0 | 1 => {
                    device.read();
                }
                2 => device.size_bar(),
                3 => {
                    let asked = device.read() & 4 != 0;
                    device.touch();
                    assert_eq!(device.masters(), asked);
                }
                4 if rng.one_in(8) => device.mapped = true,
                _ => device.write(rng.below(8) as u16),
            }
            assert!(device.phase == before || device.phase == Phase::System);
            if device.masters() {
                let need = device.admitted.last().expect("nothing was mapped");
                assert!(*need == Need::All || device.phase == EARLY);
                assert!(device.mapped || *need == Need::Low);
            }
        }
    }
}
