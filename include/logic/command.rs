// SPDX-License-Identifier: GPL-2.0-only

//! What the bus-master gate knows of a device's `PCI_COMMAND`, and what a write of it needs.
//!
//! By default a device masters the bus ([`Master::On`]) only while all memory outside the balloon
//! is mapped.
//!
//! # Firmware
//!
//! A VM may be started with the *firmware phase*: until its operating system shows itself, a write
//! that sets the bit needs only the memory below 4 GiB, where firmware does all of its DMA; the
//! device then masters the bus [`Master::Early`].  Firmware may leave the bit set when it hands
//! over (OVMF does, for every device), and a driver that finds it set writes nothing.  So the bit
//! is taken away when the system enumerates the device: to size its BARs, a system reads the
//! register, turns decoding off, and writes back what it has read.  What tells that from firmware,
//! which turns decoding on and off as well, is that nothing reads the register in between
//! ([`Command::restores`]).  From then on, for all devices of the VM, the phase is over.

/// `PCI_COMMAND_IO` and `PCI_COMMAND_MEMORY`: the device decodes its BARs.
const DECODE: u8 = 0x3;
/// `PCI_COMMAND_MASTER`.
pub(crate) const MASTER: u8 = 0x4;
/// What a device reads as that does not answer.
const ABSENT: u16 = 0xffff;

/// How much has to be mapped before a device may master the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Memory below 4 GiB outside the balloon.
    Low,
    /// All memory outside the balloon.
    All,
}

/// Whether the device may master the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Master {
    /// It may not: the gate is closed.
    Off,
    /// Firmware set the bit, with [`Need::Low`] mapped.
    Early,
    /// With [`Need::All`] mapped.
    On,
}

/// Whether the device decodes its BARs, by what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decode {
    Off,
    On,
    /// Off after on, and the register was not read since.
    Suspended,
}

/// What a finished write of the register means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The bit is set and must not be: take it away.
    pub(crate) clear: bool,
    /// The device no longer masters the bus for which that was mapped.
    pub(crate) left: Option<Need>,
    /// The operating system has shown itself: the firmware phase is over.
    pub(crate) system: bool,
}

/// `PCI_COMMAND` of a device that vfio-pci has just opened, with the bus-master bit clear.
#[derive(Debug)]
pub(crate) struct Command {
    master: Master,
    decode: Decode,
}

impl Command {
    /// A device in its first open.
    pub(crate) const fn new() -> Self {
        Self {
            master: Master::Off,
            decode: Decode::Off,
        }
    }

    /// Whether writing `byte` puts back what was read before decoding was turned off.
    fn restores(&self, byte: u8) -> bool {
        self.decode == Decode::Suspended && byte & DECODE != 0
    }

    /// What has to be mapped, and be passed to [`Command::admit`], before `byte` may be written.
    ///
    /// `firmware`: the VM is in its firmware phase.
    pub(crate) fn need(&self, byte: u8, firmware: bool) -> Option<Need> {
        if byte & MASTER == 0 {
            return None;
        }
        match (self.master, firmware) {
            (Master::On, _) | (Master::Early, true) => None,
            // Nobody asks for it: `written` takes it away again.
            (Master::Off, true) if self.restores(byte) => None,
            (Master::Off, true) => Some(Need::Low),
            (_, false) => Some(Need::All),
        }
    }

    /// That is mapped now, and stays so. Returns what the device was let through for before.
    pub(crate) fn admit(&mut self, need: Need) -> Option<Need> {
        let before = self.withdraw();
        self.master = match need {
            Need::Low => Master::Early,
            Need::All => Master::On,
        };
        before
    }

    /// The low byte of the register was written, or that failed in some way.
    ///
    /// - `done`: the write was carried out,
    /// - `hardware`: the register as it is now,
    /// - `awake`: the device was in D0 before the write. In D3, what is written is undone when it
    ///   comes back to D0,
    /// - `firmware`: as for the call of [`Command::need`].
    pub(crate) fn written(
        &mut self,
        byte: u8,
        done: bool,
        hardware: u16,
        awake: bool,
        firmware: bool,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        if done {
            outcome.system = firmware && self.restores(byte);
            self.decode = match (byte & DECODE != 0, self.decode) {
                (true, _) => Decode::On,
                (false, Decode::On | Decode::Suspended) => Decode::Suspended,
                (false, Decode::Off) => Decode::Off,
            };
        }
        if hardware == ABSENT {
            return outcome;
        }
        let set = hardware & u16::from(MASTER) != 0;
        if outcome.system && self.master == Master::Early || !set && awake {
            outcome.left = self.withdraw();
        }
        // Also should the bit be there without having been seen to be written.
        outcome.clear = set && self.master == Master::Off;
        outcome
    }

    /// The low byte of the register was read.
    pub(crate) fn read(&mut self) {
        if self.decode == Decode::Suspended {
            self.decode = Decode::Off;
        }
    }

    /// The device may no longer master the bus.  Returns what it was let through for.
    pub(crate) fn withdraw(&mut self) -> Option<Need> {
        match core::mem::replace(&mut self.master, Master::Off) {
            Master::Off => None,
            Master::Early => Some(Need::Low),
            Master::On => Some(Need::All),
        }
    }

    /// Whether the device may master the bus, for whatever was mapped.
    pub(crate) fn masters(&self) -> bool {
        self.master != Master::Off
    }

    /// As [`Command::withdraw`], if the device was let through for memory below 4 GiB only.
    pub(crate) fn withdraw_early(&mut self) -> Option<Need> {
        match self.master {
            Master::Early => self.withdraw(),
            _ => None,
        }
    }
}
