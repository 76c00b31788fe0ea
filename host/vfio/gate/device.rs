// SPDX-License-Identifier: GPL-2.0-only

//! One device behind the gate: writes of its `PCI_COMMAND`.
//!
//! They are made one at a time, so that threads of a VMM that write at once do not
//! get a device past the gate. The register itself says what came of each: the bit
//! of a VMM that changed the value after it was looked at is gone when the call
//! comes back. [`logic::command`] decides; what is known of the register is as
//! follows.
//!
//! - A reset (FLR, `VFIO_DEVICE_RESET`, a hot reset) and a suspension of the device
//!   by the host put back what was there before; vfio-pci and the PCI core keep
//!   writes away meanwhile.
//! - Coming back from D3 puts back what was there on the way to D3, whatever was
//!   written in between. So no write in D3 closes the gate.
//!
//! Lock order: a *claim* ([`Device::claim`], killable), then `Container::ops`. The
//! device's `state` is a leaf.
//!
//! Source: `drivers/vfio/pci/vfio_pci_config.c`, `drivers/vfio/pci/vfio_pci_core.c`.
//!
//! [`logic::command`]: crate::logic::command

use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
};

use crate::{
    logic::command::{
        Command,
        Need,
        MASTER, //
    },
    vfio::container::Container,
    wrap::pci::PciDevice,
    wrap::user,
    wrap::wait::{
        new_wait_queue,
        WaitQueue, //
    },
};

struct State {
    command: Command,
    /// A write of the register is going on.
    claimed: bool,
    /// The bit was taken away while the device slept: what it has when it is awake again is to
    /// be looked at.
    asleep: bool,
}

/// An open device.
#[pin_data]
pub(super) struct Device {
    pci: PciDevice,
    container: Arc<Container>,
    #[pin]
    state: Mutex<State>,
    /// Notified when a claim ends.
    #[pin]
    unclaimed: WaitQueue,
}

/// The right to write the register; given back on drop.
struct Claim<'a>(&'a Device);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.0.state.lock().claimed = false;
        self.0.unclaimed.notify();
    }
}

impl Device {
    /// A device in its first open.
    pub(super) fn new(pci: PciDevice, container: Arc<Container>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                pci,
                container,
                state <- new_mutex!(State {
                    command: Command::new(),
                    claimed: false,
                    asleep: false,
                }),
                unclaimed <- new_wait_queue!("vfio_iommu_deferred: gate"),
            }),
            GFP_KERNEL,
        )
    }

    pub(super) fn container(&self) -> &Container {
        &self.container
    }

    /// Waits until no other thread writes the register; `EINTR` after a fatal signal.
    fn claim(&self) -> Result<Claim<'_>> {
        self.unclaimed.wait(&self.state, |state| {
            (!core::mem::replace(&mut state.claimed, true)).then_some(())
        })?;
        Ok(Claim(self))
    }

    /// As [`Device::claim`], whatever signal comes. A write ends soon, or when the mapping that
    /// it waits for does.
    fn claim_in_any_case(&self) -> Claim<'_> {
        self.unclaimed.wait_uninterruptible(&self.state, |state| {
            (!core::mem::replace(&mut state.claimed, true)).then_some(())
        });
        Claim(self)
    }

    /// Makes a write whose byte for the register is at the user address `byte`.
    ///
    /// First maps what has to be mapped for it. Returns what `forward` does, which
    /// makes the write itself, or why it was not made.
    pub(super) fn write_command(
        &self,
        byte: usize,
        forward: impl FnOnce() -> isize,
    ) -> Result<isize> {
        let claim = self.claim()?;
        let mut value = [0];
        user::read(byte, &mut value)?;
        let [value] = value;
        let firmware = self.container.in_firmware();
        let need = self.state.lock().command.need(value, firmware);
        if let Some(need) = need {
            self.container.open_gate(need)?;
            let before = self.state.lock().command.admit(need);
            self.leave(before);
        }
        let awake = self.pci.is_awake();
        let written = forward();
        let hardware = self.pci.command();
        let outcome = {
            let mut state = self.state.lock();
            let outcome = state
                .command
                .written(value, written > 0, hardware, awake, firmware);
            if outcome.clear {
                self.pci.clear_master();
            }
            outcome
        };
        drop(claim);
        self.leave(outcome.left);
        if outcome.system {
            self.container.end_firmware();
        }
        Ok(written)
    }

    /// The register was read.
    pub(super) fn command_read(&self) {
        self.state.lock().command.read();
    }

    /// The device is closed, and no longer ours.
    pub(super) fn closed(&self) {
        let left = self.state.lock().command.withdraw();
        self.leave(left);
    }

    /// Stops the device's DMA.
    pub(super) fn silence(&self) {
        self.stop(Command::withdraw);
    }

    /// Stops the DMA of a device that firmware has left mastering the bus.
    pub(super) fn end_early(&self) {
        self.stop(Command::withdraw_early);
    }

    /// Waits for a write of the register that goes on: it may have been let through already.
    fn stop(&self, withdraw: fn(&mut Command) -> Option<Need>) {
        let claim = self.claim_in_any_case();
        let left = {
            let mut state = self.state.lock();
            let left = withdraw(&mut state.command);
            state.asleep |= left.is_some() && !self.pci.is_awake();
            left
        };
        if left.is_some() {
            self.clear();
        }
        drop(claim);
        self.leave(left);
    }

    /// Takes the bit away, for good unless the device sleeps.
    fn clear(&self) {
        self.pci.clear_master();
        // Should a reset have been going on, this waits until it has put back what was there.
        if self.pci.command() & u16::from(MASTER) != 0 {
            self.pci.clear_master();
        }
    }

    /// Some other part of config space was written, by which the device may have been woken.
    pub(super) fn config_written(&self) {
        if !self.state.lock().asleep {
            return;
        }
        let claim = self.claim_in_any_case();
        let closed = {
            let mut state = self.state.lock();
            if !self.pci.is_awake() {
                return;
            }
            state.asleep = false;
            !state.command.masters()
        };
        if closed {
            self.clear();
        }
        drop(claim);
    }

    fn leave(&self, need: Option<Need>) {
        if let Some(need) = need {
            self.container.close_gate(need);
        }
    }
}
