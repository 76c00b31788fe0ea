// SPDX-License-Identifier: GPL-2.0-only

//! The devices of a container that master the bus, and its VM.
//!
//! Lock order: `Container::membership` is a leaf here; nothing takes `ops` but
//! [`Container::open_ungated`]. See [`super`].

use kernel::{
    prelude::*,
    sync::Arc, //
};

use crate::{
    logic::{
        command::{
            Need,
            Phase, //
        },
        range::Range, //
    },
    vm::{
        BusMaster,
        MasterId,
        Vm, //
    },
};

use super::Container;

/// Which VM a container belongs to, for those who must not wait for `ops`.
pub(super) struct Membership {
    /// As `Ops::vm`; changed under `ops`.
    pub(super) vm: Option<Arc<Vm>>,
    /// Devices that master the bus while there is none. With one there will be none.
    pub(super) masters: u32,
}

impl Container {
    /// Its VM, if it has one.
    pub(in crate::vfio) fn vm_now(&self) -> Option<Arc<Vm>> {
        self.membership.lock().vm.clone()
    }

    /// Lets a device master the bus if nothing that it could reach is missing; returns what it was
    /// let through for. See [`Vm::try_grant`].
    pub(in crate::vfio) fn try_grant(
        &self,
        device: &Arc<dyn BusMaster>,
        need: Need,
    ) -> Result<Option<Need>> {
        let vm = {
            let mut membership = self.membership.lock();
            if membership.vm.is_none() {
                membership.masters += 1;
                return Ok(Some(Need::All));
            }
            membership.vm.clone()
        };
        vm.map_or(Ok(None), |vm| vm.try_grant(device, need))
    }

    /// As [`Container::try_grant`], and waits until that is so: see [`Vm::grant_when_mapped`].
    pub(in crate::vfio) fn grant_when_mapped(
        &self,
        device: &Arc<dyn BusMaster>,
        need: Need,
    ) -> Result {
        match self.vm_now() {
            Some(vm) => vm.grant_when_mapped(device, need),
            None => self.try_grant(device, need).map(|_| ()),
        }
    }

    /// A device has the bus-master bit no longer, for which it was let through, or does not ask for
    /// it any more.
    pub(in crate::vfio) fn release(&self, id: MasterId) {
        let vm = {
            let mut membership = self.membership.lock();
            if membership.vm.is_none() {
                membership.masters = membership.masters.saturating_sub(1);
            }
            membership.vm.clone()
        };
        if let Some(vm) = vm {
            vm.release(id);
        }
    }

    /// Who runs in its VM.
    pub(in crate::vfio) fn phase(&self) -> Phase {
        self.vm_now().map_or(Phase::System, |vm| vm.phase())
    }

    /// A device that the gate cannot hold back is opened.
    pub(in crate::vfio) fn open_ungated(&self) -> Result {
        self.ops.lock().ungated = true;
        // Nothing more of it is deferred, so what is missing can be waited for without the lock.
        self.vm_now().map_or(Ok(()), |vm| vm.settle(Range::ALL))
    }
}
