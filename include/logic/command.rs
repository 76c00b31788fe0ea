// SPDX-License-Identifier: GPL-2.0-only

//! What the bus-master gate knows of a device's `PCI_COMMAND`, and what a write of it means.
//!
//! A device masters the bus ([`Master::On`]) only while all memory outside the balloon is mapped.
//! A guest that sets the bit before has *asked*: it reads the bit as set, the device has it clear,
//! and gets it when the memory is mapped.  Nobody waits for that before the guest touches the
//! device.
//!
//! # Firmware and systems
//!
//! Some firmware (OVMF) sets the bit of every device, drives few, and leaves the bit set when it
//! hands over.  For what it has asked and never touched, no memory is mapped, and it is forgotten
//! when the operating system shows itself: then the system's driver has to ask.  A system shows
//! itself as it sizes the BARs of a device, by one of two signs:
//!
//! - it writes all ones to a BAR after the bit was set ([`Command::sizes_bar`]): firmware sizes
//!   first and enables then;
//! - it turns decoding off, and on again without having read the register in between
//!   ([`Command::restores`]): it puts back what it read before, while firmware reads the register
//!   before each write.
//!
//! What is put back after the BARs were sized is no new request.
//!
//! Firmware does all of its DMA below 4 GiB.  So a VM may be started with less needed in its
//! firmware phase ([`Phase::Firmware`] with [`Need::Low`]): a device that firmware touches then
//! masters the bus [`Master::Early`], and loses the bit when the phase ends.

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

/// Who runs in the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Firmware, or a system that has not shown itself; what a device needs meanwhile.
    Firmware(Need),
    /// An operating system.
    System,
}

impl Phase {
    /// What a device needs that is about to master the bus.
    pub(crate) const fn need(self) -> Need {
        match self {
            Self::Firmware(need) => need,
            Self::System => Need::All,
        }
    }

    const fn is_firmware(self) -> bool {
        matches!(self, Self::Firmware(_))
    }
}

/// Whether the device may master the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Master {
    /// Nobody has asked for it.
    Off,
    /// The guest reads the bit as set, and the device has it clear.
    Asked {
        need: Need,
        /// The guest has used the device since.
        touched: bool,
    },
    /// It does, with [`Need::Low`] mapped.
    Early,
    /// It does, with [`Need::All`] mapped.
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

/// What a write of the register asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    /// Nothing: it may be made as it is.
    Pass,
    /// Nothing, but it must be made without the bit.
    Mask,
    /// To master the bus, for which so much has to be mapped.
    Ask(Need),
}

/// What the device no longer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// Its request, for which the bit was clear.
    Request,
    /// The right to master the bus: the bit has to go.
    Mastership,
}

/// What a finished write of the register means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The bit is set and must not be: take it away.
    pub(crate) clear: bool,
    /// What the device no longer has.
    pub(crate) lost: Option<Lost>,
    /// The operating system has shown itself: the firmware phase is over.
    pub(crate) system: bool,
}

/// `PCI_COMMAND` of a device that vfio-pci has just opened, with the bus-master bit clear.
#[derive(Debug)]
pub(crate) struct Command {
    master: Master,
    decode: Decode,
    /// The bit was asked for since the device was opened.
    asked_once: bool,
    /// A system has shown itself while decoding was off: the write that turns it on puts back what
    /// the system read before, unless it reads the register in between.
    restoring: bool,
}

impl Command {
    /// A device in its first open.
    pub(crate) const fn new() -> Self {
        Self {
            master: Master::Off,
            decode: Decode::Off,
            asked_once: false,
            restoring: false,
        }
    }

    /// Whether writing `byte` puts back what was read before decoding was turned off.
    fn restores(&self, byte: u8) -> bool {
        self.decode == Decode::Suspended && byte & DECODE != 0
    }

    /// What a write of `byte` asks for.
    ///
    /// After [`Intent::Ask`] the write is made with the bit and [`Command::admit`], or without the
    /// bit and [`Command::ask`].
    pub(crate) fn intent(&self, byte: u8, phase: Phase) -> Intent {
        if byte & MASTER == 0 || self.master == Master::On {
            return Intent::Pass;
        }
        let restores = self.restores(byte) && phase.is_firmware();
        if restores || self.restoring && byte & DECODE != 0 {
            return Intent::Mask;
        }
        match (self.master, phase) {
            (Master::Early, Phase::Firmware(_)) => Intent::Pass,
            _ => Intent::Ask(phase.need()),
        }
    }

    /// The device masters the bus from now on: so much is mapped, and stays so.
    pub(crate) fn admit(&mut self, need: Need) {
        self.asked_once = true;
        self.master = match need {
            Need::Low => Master::Early,
            Need::All => Master::On,
        };
    }

    /// The guest has asked, and the bit was kept from the device.
    pub(crate) fn ask(&mut self, need: Need) {
        self.asked_once = true;
        let touched = matches!(self.master, Master::Asked { touched: true, .. });
        self.master = Master::Asked { need, touched };
    }

    /// Whether the guest has asked and not been answered.
    pub(crate) fn is_asked(&self) -> bool {
        matches!(self.master, Master::Asked { .. })
    }

    /// The guest uses the device.
    pub(crate) fn touch(&mut self) {
        if let Master::Asked { touched, .. } = &mut self.master {
            *touched = true;
        }
    }

    /// What the guest asked for is mapped; false if it no longer asks.
    #[must_use]
    pub(crate) fn grant(&mut self, need: Need) -> bool {
        let asked = self.is_asked();
        if asked {
            self.admit(need);
        }
        asked
    }

    /// The low byte of the register as the guest is to read it, from what the hardware gave.
    pub(crate) fn shown(&self, byte: u8) -> u8 {
        match self.is_asked() {
            true => byte | MASTER,
            false => byte,
        }
    }

    /// The low byte of the register was written, or that failed in some way.
    ///
    /// - `byte`: what the guest wrote, whether or not the bit was kept from the device,
    /// - `done`: the write was carried out,
    /// - `hardware`: the register as it is now,
    /// - `awake`: the device was in D0 before the write and after. In D3, what is written is undone
    ///   when it comes back to D0,
    /// - `phase`: as for the call of [`Command::intent`].
    pub(crate) fn written(
        &mut self,
        byte: u8,
        done: bool,
        hardware: u16,
        awake: bool,
        phase: Phase,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        if done {
            outcome.system = phase.is_firmware() && self.restores(byte);
            self.restoring &= byte & DECODE == 0;
            self.decode = match (byte & DECODE != 0, self.decode) {
                (true, _) => Decode::On,
                (false, Decode::On | Decode::Suspended) => Decode::Suspended,
                (false, Decode::Off) => Decode::Off,
            };
            if byte & MASTER == 0 && self.is_asked() {
                outcome.lost = self.withdraw();
            }
        }
        if hardware == ABSENT {
            return outcome;
        }
        let set = hardware & u16::from(MASTER) != 0;
        if outcome.system && self.master == Master::Early || !set && awake && self.masters() {
            outcome.lost = self.withdraw();
        }
        // Also should the bit be there without having been seen to be written.
        outcome.clear = set && !self.masters();
        outcome
    }

    /// The low byte of the register was read.
    pub(crate) fn read(&mut self) {
        if self.decode == Decode::Suspended {
            self.decode = Decode::Off;
        }
        self.restoring = false;
    }

    /// All ones are written to a BAR.  Whether that shows a system, which ends the firmware phase.
    pub(crate) fn sizes_bar(&self, phase: Phase) -> bool {
        phase.is_firmware() && self.asked_once
    }

    /// A system has shown itself: what firmware asked for in vain does not hold any more, nor what
    /// it was given too little for.
    pub(crate) fn forget(&mut self) -> Option<Lost> {
        let forgotten = matches!(
            self.master,
            Master::Early | Master::Asked { touched: false, .. }
        );
        self.restoring = self.decode == Decode::Suspended;
        if !forgotten {
            self.need_all();
            return None;
        }
        self.withdraw()
    }

    /// The driver of another device has started, which firmware has none for.  The driver of this
    /// device may find the bit set and ask for nothing: so it goes on being asked for.
    ///
    /// Returns whether the device has to lose the bit meanwhile.
    pub(crate) fn hand_over(&mut self) -> bool {
        let early = self.master == Master::Early;
        if early {
            self.ask(Need::All);
        }
        self.need_all();
        early
    }

    fn need_all(&mut self) {
        if let Master::Asked { need, .. } = &mut self.master {
            *need = Need::All;
        }
    }

    /// The device may no longer master the bus, nor has it asked to.
    pub(crate) fn withdraw(&mut self) -> Option<Lost> {
        match core::mem::replace(&mut self.master, Master::Off) {
            Master::Off => None,
            Master::Asked { .. } => Some(Lost::Request),
            Master::Early | Master::On => Some(Lost::Mastership),
        }
    }

    /// Whether the device may master the bus, for whatever was mapped.
    pub(crate) fn masters(&self) -> bool {
        matches!(self.master, Master::Early | Master::On)
    }
}
