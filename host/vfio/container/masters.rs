// SPDX-License-Identifier: GPL-2.0-only

//! The devices of a container that master the bus, and its VM.
//!
//! Lock order: see [`super`].

use kernel::prelude::*;

use crate::logic::{
    command::Need,
    range::Range, //
};

use super::Container;

impl Container {
    /// A device is about to master the bus: see [`Vm::open_gate`].
    pub(crate) fn open_gate(&self, need: Need) -> Result {
        let vm = {
            let mut ops = self.ops.lock();
            if ops.vm.is_none() {
                // With this it stays without one.
                ops.masters += 1;
                return Ok(());
            }
            ops.vm.clone()
        };
        if let Some(vm) = vm {
            // Without the lock: this may take long.
            vm.open_gate(need)?;
        }
        self.ops.lock().masters += 1;
        Ok(())
    }

    /// A device no longer masters the bus for which `open_gate` was called.
    pub(crate) fn close_gate(&self, need: Need) {
        let mut ops = self.ops.lock();
        ops.masters = ops.masters.saturating_sub(1);
        if let Some(vm) = &ops.vm {
            vm.close_gate(need);
        }
    }

    /// Whether its VM is in the firmware phase: see [`crate::logic::command`].
    pub(crate) fn in_firmware(&self) -> bool {
        let vm = self.ops.lock().vm.clone();
        vm.is_some_and(|vm| vm.in_firmware())
    }

    /// The operating system of its VM has shown itself.
    pub(crate) fn end_firmware(&self) {
        let vm = self.ops.lock().vm.clone();
        if let Some(vm) = vm {
            vm.end_firmware();
        }
    }

    /// A device that the gate cannot hold back is opened.
    pub(crate) fn open_ungated(&self) -> Result {
        let mut ops = self.ops.lock();
        ops.ungated = true;
        ops.vm.as_ref().map_or(Ok(()), |vm| vm.settle(Range::ALL))
    }
}
