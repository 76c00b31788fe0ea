// SPDX-License-Identifier: GPL-2.0-only

//! The devices of a VM that master the bus, or have asked to.
//!
//! A device is here from the moment its guest has set the bus-master bit until that is clear
//! again. While memory outside the balloon is missing it is *asked* ([`Stage::Asked`]) and its bit
//! is kept clear; the mapping threads tell it when that changes. The VM knows a device by
//! [`BusMaster`] only.
//!
//! All functions here may sleep; for the lock order see [`super`].

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
    logic::{
        command::Need,
        range::Range,
        state::{
            Progress,
            Want, //
        },
        vec::NoMemory, //
    },
    wrap::kobject::Writer, //
};

use super::VmState;

/// Where firmware's DMA goes: below 4 GiB.
const FIRMWARE: Range = match Range::new(0, 1 << 32) {
    Some(range) => range,
    None => Range::ALL,
};

/// What has to be mapped for a need.
pub(super) const fn range_of(need: Need) -> Range {
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
pub(super) enum Stage {
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
    pub(super) device: Arc<dyn BusMaster>,
    pub(super) stage: Stage,
    /// Threads that wait for it.
    pub(super) waiters: u32,
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
    pub(super) fn master(&mut self, id: MasterId) -> Option<&mut Master> {
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
    pub(super) fn asked(&self) -> u64 {
        let devices = self.devices.iter();
        let asked = devices.filter(|m| matches!(m.stage, Stage::Asked { .. }));
        asked.count() as u64
    }

    /// Puts a device on a stage; it is entered if it is not there. Its demand goes.
    pub(super) fn set_stage(&mut self, device: &Arc<dyn BusMaster>, stage: Stage) -> Result {
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

    pub(super) fn drop_demand(&mut self, stage: &Stage) {
        if let Stage::Asked {
            demand: Some(id), ..
        } = stage
        {
            self.demands.remove(*id);
        }
    }

    /// What may be granted of a request by now.
    pub(super) fn grantable(&self, stage: &Stage) -> Option<Need> {
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
    pub(super) fn demand(&mut self, id: MasterId) -> Result {
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
