// SPDX-License-Identifier: GPL-2.0-only

//! What devices do to a VM: they master the bus.
//!
//! All functions here may sleep; for the lock order see [`super`].

use kernel::prelude::*;

use crate::{
    admin::knobs::KNOBS,
    logic::{
        command::Need,
        range::Range,
        state::{
            Status,
            Want, //
        },
    },
    vfio::gate, //
};

use super::{
    State,
    Vm, //
};

/// Where firmware's DMA goes: below 4 GiB.
const FIRMWARE: Range = match Range::new(0, 1 << 32) {
    Some(range) => range,
    None => Range::ALL,
};

impl Vm {
    /// Lets a device master the bus: first maps everything outside the balloon, or
    /// what of it firmware may use.
    ///
    /// From then on maps are made at once, until [`Vm::close_gate`].
    pub(crate) fn open_gate(&self, need: Need) -> Result {
        let range = match need {
            Need::Low => FIRMWARE,
            Need::All => Range::ALL,
        };
        if !KNOBS.gate() {
            self.state.lock().count(need, 1);
            return Ok(());
        }
        if self.state.lock().status(Want::Outside, range) != Status::Done {
            self.stats.gate_trips.add(1);
        }
        self.wait_mapped(Want::Outside, range, |state| state.count(need, 1))
            .inspect_err(|_| self.stats.gate_refusals.add(1))?;
        if need == Need::Low {
            self.stats.firmware_passes.add(1);
        }
        Ok(())
    }

    /// The device no longer masters the bus.
    pub(crate) fn close_gate(&self, need: Need) {
        self.state.lock().count(need, -1);
    }

    /// Whether the VM is in the firmware phase.
    pub(crate) fn in_firmware(&self) -> bool {
        self.state.lock().firmware
    }

    /// The guest's operating system has shown itself, or may have.
    pub(crate) fn end_firmware(&self) {
        let ends = core::mem::take(&mut self.state.lock().firmware);
        if ends {
            gate::end_early(self);
        }
    }
}

impl State {
    fn count(&mut self, need: Need, change: i32) {
        let count = match need {
            Need::Low => &mut self.early,
            Need::All => &mut self.masters,
        };
        *count = count.saturating_add_signed(change);
    }
}
