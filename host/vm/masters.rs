// SPDX-License-Identifier: GPL-2.0-only

//! The devices of a VM that master the bus, or have asked to.
//!
//! A device is here from the moment its guest has set the bus-master bit until that is clear
//! again. While memory outside the balloon is missing it is *asked* ([`Stage::Asked`]) and its bit
//! is kept clear; the mapping threads tell it when that changes. The VM knows a device by
//! [`BusMaster`] only.
//!
//! All functions here may sleep; for the lock order see [`super`].

use core::fmt::Write;

use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    }, //
};

use crate::{
    admin::knobs::KNOBS,
    logic::{
        command::{
            Need,
            Phase, //
        },
        range::Range,
        state::{
            Progress,
            Want, //
        },
        vec::NoMemory, //
    },
    wrap::kobject::Writer, //
};

use super::{
    now,
    Vm, //
    VmState,
};

/// Where firmware's DMA goes: below 4 GiB.
const FIRMWARE: Range = match Range::new(0, 1 << 32) {
    Some(range) => range,
    None => Range::ALL,
};

/// What has to be mapped for a need.
const fn range_of(need: Need) -> Range {
    match need {
        Need::Low => FIRMWARE,
        Need::All => Range::ALL,
    }
}

static NEXT_ID: Atomic<u64> = Atomic::new(0);

/// Tells devices apart, each time that one is opened; rises, and is never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MasterId(u64);

impl MasterId {
    /// A new one.
    pub(crate) fn new() -> Self {
        Self(NEXT_ID.fetch_add(1, Relaxed))
    }
}

/// A device whose bus-master bit is the VM's to allow.
///
/// All functions are called in process context, and, but for `id` and `name`, with no lock of the
/// VM held; they may sleep for a short time.
pub(crate) trait BusMaster: Send + Sync {
    /// Tells it from all others. Takes no lock.
    fn id(&self) -> MasterId;

    /// Writes how the administrator knows it: its PCI address. Takes no lock.
    fn name(&self, out: &mut Writer<'_>) -> Result;

    /// What it asked for is mapped: it gets the bit.
    ///
    /// Context: a thread of the VM's process (`current->mm` is its mm).
    fn grant(&self, need: Need);

    /// What it asked for cannot be mapped: it stays without the bit, and nobody waits for it.
    fn refuse(&self);

    /// It masters the bus no longer: what it was let through for is not mapped any more.
    fn withdraw(&self);

    /// An operating system has shown itself by sizing BARs: what firmware asked does not hold.
    fn forget(&self);

    /// A driver of the balloon has started. Firmware has none; drivers may go on with what
    /// firmware has left.
    fn hand_over(&self);

    /// Pages of its BARs may have come into page tables without a fault of the guest's.
    fn pages_mapped(&self);
}

/// How far a device is.
enum Stage {
    /// It waits for memory.
    Asked {
        need: Need,
        /// The guest has used the device since, and waits.
        touched: bool,
        /// Of [`VmState::demands`].
        demand: Option<u64>,
        /// What was missing could not be mapped.
        refused: bool,
        /// As [`super::schedule::Demands::shortages`] was when the demand was made.
        shortages: u64,
    },
    /// It masters the bus, or is about to; so much is mapped.
    Granted(Need),
}

/// A device that masters the bus or has asked to.
pub(super) struct Master {
    device: Arc<dyn BusMaster>,
    stage: Stage,
    /// Threads that wait for it.
    waiters: u32,
}

/// What a device is to be told.
pub(super) enum News {
    Granted(Arc<dyn BusMaster>, Need),
    Refused(Arc<dyn BusMaster>),
}

impl News {
    /// Tells it. Context: as [`BusMaster::grant`].
    pub(super) fn tell(self) {
        match self {
            Self::Granted(device, need) => device.grant(need),
            Self::Refused(device) => device.refuse(),
        }
    }
}

impl VmState {
    fn master(&mut self, id: MasterId) -> Option<&mut Master> {
        self.devices.iter_mut().find(|m| m.device.id() == id)
    }

    fn granted(&self, wanted: Need) -> u32 {
        let devices = self.devices.iter();
        let count = devices.filter(|m| matches!(m.stage, Stage::Granted(need) if need == wanted));
        u32::try_from(count.count()).unwrap_or(u32::MAX)
    }

    /// Devices that master the bus with everything mapped.
    pub(super) fn masters(&self) -> u32 {
        self.granted(Need::All)
    }

    /// Devices that have the right to master the bus, for whatever was mapped.
    pub(super) fn is_mastered(&self) -> bool {
        let mut devices = self.devices.iter();
        devices.any(|m| matches!(m.stage, Stage::Granted(_)))
    }

    /// Devices that have asked and wait for memory.
    fn asked(&self) -> u64 {
        let devices = self.devices.iter();
        let asked = devices.filter(|m| matches!(m.stage, Stage::Asked { .. }));
        asked.count() as u64
    }

    /// Puts a device on a stage; it is entered if it is not there. Its demand goes.
    fn set_stage(&mut self, device: &Arc<dyn BusMaster>, stage: Stage) -> Result {
        let Some(master) = self.master(device.id()) else {
            let master = Master {
                device: device.clone(),
                stage,
                waiters: 0,
            };
            return Ok(self.devices.push(master, GFP_KERNEL)?);
        };
        let old = core::mem::replace(&mut master.stage, stage);
        self.drop_demand(&old);
        Ok(())
    }

    fn drop_demand(&mut self, stage: &Stage) {
        if let Stage::Asked {
            demand: Some(id), ..
        } = stage
        {
            self.demands.remove(*id);
        }
    }

    /// What may be granted of a request by now.
    fn grantable(&self, stage: &Stage) -> Option<Need> {
        let &Stage::Asked { need, touched, .. } = stage else {
            return None;
        };
        if self.status(Want::Outside, Range::ALL) == Progress::Done {
            return Some(Need::All);
        }
        // Little is mapped for firmware, so only for what it really drives.
        let low = need == Need::Low && touched;
        let low = low && self.status(Want::Outside, FIRMWARE) == Progress::Done;
        low.then_some(Need::Low)
    }

    /// Whether nobody is at what a device waits for any more.
    fn is_hopeless(&self, stage: &Stage) -> bool {
        match *stage {
            Stage::Asked {
                need,
                touched: true,
                refused: false,
                shortages,
                ..
            } => {
                self.dead
                    || self.demands.shortages != shortages
                    || self.status(Want::Outside, range_of(need)) == Progress::Failed
            }
            _ => false,
        }
    }

    /// Whether a device is to be told something.
    pub(super) fn has_news(&self) -> bool {
        let mut devices = self.devices.iter();
        devices
            .any(|m| self.is_hopeless(&m.stage) || !self.dead && self.grantable(&m.stage).is_some())
    }

    /// What a device is to be told next. After this it holds: the caller tells it.
    pub(super) fn news(&mut self) -> Option<News> {
        for index in 0..self.devices.len() {
            let master = self.devices.get(index)?;
            let device = master.device.clone();
            let grantable = self.grantable(&master.stage).filter(|_| !self.dead);
            if let Some(need) = grantable {
                // It is there, so this does not fail.
                self.set_stage(&device, Stage::Granted(need)).ok()?;
                return Some(News::Granted(device, need));
            }
            if self.is_hopeless(&master.stage) {
                self.refuse(index);
                return Some(News::Refused(device));
            }
        }
        None
    }

    fn refuse(&mut self, index: usize) {
        let Some(master) = self.devices.get_mut(index) else {
            return;
        };
        if let Stage::Asked {
            demand, refused, ..
        } = &mut master.stage
        {
            *refused = true;
            if let Some(id) = demand.take() {
                self.demands.remove(id);
            }
        }
    }

    /// Makes what a device asked for a demand of the mapping threads: one that somebody waits for
    /// if the guest has touched the device, and else background work.
    fn demand(&mut self, id: MasterId) -> Result {
        let Some(&Stage::Asked { need, touched, .. }) = self.master(id).map(|m| &m.stage) else {
            return Ok(());
        };
        let range = range_of(need);
        for slot in self.slots.iter_mut() {
            slot.table.retry(range).map_err(|NoMemory| ENOMEM)?;
        }
        let new = self.demands.push(Want::Outside, range, touched)?;
        let now = self.demands.shortages;
        if let Some(Stage::Asked {
            demand,
            shortages,
            refused,
            ..
        }) = self.master(id).map(|m| &mut m.stage)
        {
            *shortages = now;
            *refused = false;
            if let Some(old) = demand.replace(new) {
                self.demands.remove(old);
            }
        }
        Ok(())
    }
}

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
