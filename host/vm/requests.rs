// SPDX-License-Identifier: GPL-2.0-only

//! What devices ask a VM for, and what it tells them.
//!
//! All functions here may sleep; for the lock order see [`super`].

use core::fmt::Write;

use kernel::{
    prelude::*,
    sync::Arc, //
};

use crate::{
    admin::knobs::KNOBS,
    logic::{
        command::{
            Need,
            Phase, //
        },
        state::Want, //
    },
    wrap::{
        kobject::Writer,
        time::now, //
    },
};

use super::{
    masters::{
        range_of,
        BusMaster,
        Master,
        MasterId,
        News,
        Stage, //
    },
    Vm, //
};

impl Vm {
    /// Who runs in the VM.
    pub(crate) fn phase(&self) -> Phase {
        match self.state.lock().firmware {
            true if KNOBS.firmware() => Phase::Firmware(Need::Low),
            true => Phase::Firmware(Need::All),
            false => Phase::System,
        }
    }

    /// Lets a device master the bus if nothing that it could reach is missing. From then on maps
    /// are made at once, until [`Vm::release`].
    ///
    /// Returns what it was let through for, or `None`. Errors: `ESRCH` if nothing will be mapped any
    /// more, `ENOMEM`.
    pub(crate) fn try_grant(
        &self,
        device: &Arc<dyn BusMaster>,
        need: Need,
    ) -> Result<Option<Need>> {
        let mut state = self.state.lock();
        let stage = Stage::Asked {
            need,
            touched: false,
            demand: None,
            refused: false,
            shortages: 0,
        };
        let granted = match KNOBS.gate() {
            true => state.grantable(&stage),
            false => Some(need),
        };
        if granted.is_none() && state.dead {
            return Err(ESRCH);
        }
        if let Some(need) = granted {
            state.set_stage(device, Stage::Granted(need))?;
            self.count_grant(need);
        }
        Ok(granted)
    }

    /// As [`Vm::try_grant`], and waits first until all that it needs is mapped.
    ///
    /// Errors: those of [`Vm::wait_mapped`]. For a device whose use the gate cannot notice.
    pub(crate) fn grant_when_mapped(&self, device: &Arc<dyn BusMaster>, need: Need) -> Result {
        if self.try_grant(device, need)?.is_some() {
            return Ok(());
        }
        self.stats.gate_trips.add(1);
        let started = now();
        let result = self.wait_mapped(Want::Outside, range_of(need), |state| {
            state.set_stage(device, Stage::Granted(need))
        });
        self.stats.gate_waited(now().saturating_sub(started));
        result
            .and_then(|set| set)
            .inspect_err(|_| self.stats.gate_refusals.add(1))?;
        self.count_grant(need);
        Ok(())
    }

    /// Tells devices what they wait for, if it has come. Context: as [`BusMaster::grant`].
    pub(crate) fn tell_news(&self) {
        loop {
            let Some(news) = self.state.lock().news() else {
                return;
            };
            self.count_news(&news);
            news.tell();
        }
    }

    /// Counts what a device is told.
    pub(super) fn count_news(&self, news: &News) {
        match news {
            News::Granted(_, need) => self.count_grant(*need),
            News::Refused(_) => self.stats.gate_refusals.add(1),
        }
    }

    fn count_grant(&self, need: Need) {
        if need == Need::Low {
            self.stats.firmware_passes.add(1);
        }
    }

    /// A device has asked to master the bus, and its bit is kept clear. What is missing becomes a
    /// demand at once, or, if it is not `urgent`, when the guest touches the device: firmware asks
    /// for devices that it never uses.
    ///
    /// [`BusMaster::grant`] or, once it is touched, [`BusMaster::refuse`] follows, maybe before
    /// this returns. Errors: `ENOMEM`.
    pub(crate) fn ask(&self, device: &Arc<dyn BusMaster>, need: Need, urgent: bool) -> Result {
        let mut state = self.state.lock();
        let touched = match state.master(device.id()) {
            Some(Master {
                stage: Stage::Asked { touched, .. },
                ..
            }) => *touched,
            _ => false,
        };
        let stage = Stage::Asked {
            need,
            touched,
            demand: None,
            refused: false,
            shortages: 0,
        };
        state.set_stage(device, stage)?;
        if touched || urgent {
            state.demand(device.id())?;
        }
        state.wake_workers();
        Ok(())
    }

    /// The guest uses a device that has asked, and is going to wait.
    ///
    /// Errors: `ESRCH` if nothing will be mapped any more, `ENOMEM`.
    pub(crate) fn touch(&self, id: MasterId) -> Result {
        let mut state = self.state.lock();
        if state.dead {
            return Err(ESRCH);
        }
        let Some(master) = state.master(id) else {
            return Ok(());
        };
        master.waiters = master.waiters.saturating_add(1);
        let Stage::Asked { touched, .. } = &mut master.stage else {
            return Ok(());
        };
        let first = !core::mem::replace(touched, true);
        let missing = state
            .devices
            .iter()
            .any(|m| m.device.id() == id && state.grantable(&m.stage).is_none());
        if missing {
            if first {
                self.stats.gate_trips.add(1);
                state.demand(id)?;
            }
        }
        state.wake_workers();
        Ok(())
    }

    /// The wait that followed [`Vm::touch`] is over, after so many nanoseconds.
    pub(crate) fn touched(&self, id: MasterId, waited: i64) {
        self.stats.gate_waited(waited);
        if let Some(master) = self.state.lock().master(id) {
            master.waiters = master.waiters.saturating_sub(1);
        }
    }

    /// What a device was let through for is not enough any more, nor what it asked for: it asks for
    /// everything, as [`Vm::ask`] without urgency. It is used, then, if it was.
    pub(crate) fn ask_all(&self, id: MasterId) {
        let mut state = self.state.lock();
        let Some(master) = state.master(id) else {
            return;
        };
        let device = master.device.clone();
        let touched = matches!(master.stage, Stage::Asked { touched: true, .. });
        let stage = Stage::Asked {
            need: Need::All,
            touched,
            demand: None,
            refused: false,
            shortages: 0,
        };
        // It is there, so that this needs no memory.
        let set = state.set_stage(&device, stage);
        if set.is_err() || touched && state.demand(id).is_err() {
            pr_warn!("{self}: no memory for what a device waits for\n");
        }
        state.wake_workers();
        drop(state);
        drop(device);
    }

    /// Whether what a device was told by [`BusMaster::grant`] still holds. Asked with a claim of the
    /// device, without which neither it nor the VM takes that back.
    pub(crate) fn is_granted(&self, id: MasterId) -> bool {
        let mut state = self.state.lock();
        let master = state.master(id);
        master.is_some_and(|m| matches!(m.stage, Stage::Granted(_)))
    }

    /// A device that was let through, and has not heard of it yet, may not master the bus after
    /// all: it goes on asking.
    pub(crate) fn revoke(&self, id: MasterId) {
        if self.is_granted(id) {
            self.ask_all(id);
        }
    }

    /// A device has the bit no longer, and does not ask for it.
    pub(crate) fn release(&self, id: MasterId) {
        let mut state = self.state.lock();
        let index = state.devices.iter().position(|m| m.device.id() == id);
        let released = index.and_then(|index| state.devices.remove(index).ok());
        if let Some(master) = &released {
            state.drop_demand(&master.stage);
        }
        drop(state);
        // The last reference to a device must not go under the lock.
        drop(released);
    }

    /// Calls `f` for each device, in rising order of their identities.
    fn each_master(&self, f: impl Fn(&dyn BusMaster)) {
        let mut last = None;
        loop {
            let state = self.state.lock();
            let next = state
                .devices
                .iter()
                .map(|m| &m.device)
                .filter(|device| Some(device.id()) > last)
                .min_by_key(|device| device.id())
                .cloned();
            drop(state);
            let Some(device) = next else {
                return;
            };
            last = Some(device.id());
            f(&*device);
        }
    }

    /// Memory outside the balloon could not be mapped: no device masters the bus any more.
    ///
    /// While it is missing nobody is let through, so those that are there now are all.
    pub(super) fn silence(&self) {
        self.each_master(|device| device.withdraw());
    }

    /// Nothing will be mapped any more: nobody is to wait for that.
    pub(super) fn refuse_all(&self) {
        self.each_master(|device| device.refuse());
    }

    /// The guest's operating system has shown itself by sizing BARs.
    pub(crate) fn system_seen(&self) {
        if core::mem::take(&mut self.state.lock().firmware) {
            self.each_master(|device| device.forget());
        }
    }

    /// The driver of the balloon has started.
    pub(crate) fn driver_seen(&self) {
        if core::mem::take(&mut self.state.lock().firmware) {
            self.each_master(|device| device.hand_over());
        }
    }

    /// type1 has mapped something that is no RAM: a device's BAR, which it has brought into the
    /// VMM's page tables, past the gate.
    pub(crate) fn pages_mapped(&self) {
        self.each_master(|device| device.pages_mapped());
    }

    /// For sysfs: devices that have asked.
    pub(super) fn asked(&self) -> u64 {
        self.state.lock().asked()
    }

    /// For sysfs: the devices that somebody waits for, each on a line.
    pub(super) fn show_waiting(&self, out: &mut Writer<'_>) -> Result {
        for master in &self.state.lock().devices {
            if master.waiters > 0 {
                master.device.name(out)?;
                writeln!(out).map_err(|_| EIO)?;
            }
        }
        Ok(())
    }
}
