// SPDX-License-Identifier: GPL-2.0-only

//! What the guest's balloon does to a VM.
//!
//! All addresses come from the guest: they are ranges by type, and everything
//! that lies outside deferred RAM is ignored by the tables. All functions here
//! may sleep; for the lock order see [`super`].

use kernel::prelude::*;

use crate::{
    admin::knobs::KNOBS,
    logic::{
        range::Range,
        state::{
            Progress,
            Want, //
        },
        vec::NoMemory, //
    },
    wrap::user, //
};

use super::{
    Vm, //
    VmState,
};

const GRANULE: u64 = crate::bindings::VIRTIO_BALLOON_DEFERRED_GRANULE as u64;

impl VmState {
    /// How large the balloon should be while it is emptied, in bytes.
    ///
    /// The guest deflates from the bottom, and the threads may map out of order: so
    /// all that is above the lowest byte that has yet to be mapped stays in it, and
    /// a deflation finds its range mapped. Walks the tables.
    pub(super) fn target(&self) -> u64 {
        self.most(|slot| {
            let mut extents = slot.table.iter();
            let pending = extents.find(|(_, state)| state.is_pending());
            let above = extents.fold(0u64, |sum, (range, _)| sum.saturating_add(range.len()));
            // What failed is tried again when the guest asks for it, at its own pace.
            pending.map_or(0, |(range, _)| range.len().saturating_add(above))
        })
    }

    /// Asks for the balloon's memory if nothing is left to map, as when the last device is
    /// unplugged: nobody else would ask for it any more.
    pub(super) fn nothing_left(&self) {
        let Some(balloon) = &self.balloon else {
            return;
        };
        if self.status(Want::All, Range::ALL) == Progress::Done {
            balloon.set_target(0);
        }
    }

    /// Goes on with emptying the balloon.
    fn deflate_on(&mut self) {
        if KNOBS.hold() {
            return;
        }
        if KNOBS.premap() || self.premap {
            self.premap = true;
            self.wake_workers();
        } else if let Some(balloon) = &self.balloon {
            // Step by step: each deflation maps what it gives back.
            let held = self.most(super::Slot::ballooned);
            balloon.set_target(held.saturating_sub(KNOBS.chunk()));
        }
    }
}

/// Lets every VM that has committed go on with emptying its balloon.
pub(crate) fn deflate_on() {
    for entry in &super::VMS.lock().entries {
        let mut state = entry.vm.state.lock();
        if state.ready {
            state.deflate_on();
        }
    }
}

impl Vm {
    /// The guest gave up `range`. Returns how many bytes of it are news.
    pub(crate) fn inflate(&self, range: Range) -> Result<u64> {
        let mut state = self.state.lock();
        let mut most = 0;
        for slot in state.slots.iter_mut() {
            let bytes = slot.table.inflate(range).map_err(|NoMemory| ENOMEM)?;
            most = bytes.max(most);
        }
        if most > 0 {
            // Less is missing outside the balloon: somebody may have waited for that.
            state.wake_workers();
        }
        drop(state);
        self.stats.inflated_ranges.add(1);
        self.changed.notify();
        Ok(most)
    }

    /// The balloon is full: maps all that is outside it (contract I1).
    ///
    /// `EINTR` if that is not `wanted` any more; see [`Vm::look_again`].
    pub(crate) fn commit(&self, wanted: impl Fn() -> bool) -> Result {
        self.wait_mapped_while(wanted, Want::Outside, Range::ALL, |state| {
            state.ready = true;
            state.deadline = None;
            state.deflate_on();
        })?;
        self.stats.commits.add(1);
        Ok(())
    }

    /// The guest wants `range` back: maps it first (contract I2).
    ///
    /// `EINTR` if that is not `wanted` any more; see [`Vm::look_again`].
    pub(crate) fn deflate(&self, range: Range, urgent: bool, wanted: impl Fn() -> bool) -> Result {
        let hit = self.state.lock().status(Want::All, range) == Progress::Done;
        if hit {
            self.stats.hits.add(1);
        } else {
            self.stats.misses.add(1);
        }
        if urgent {
            self.stats.urgent.add(1);
        }
        self.wait_mapped_while(wanted, Want::All, range, |state| {
            if !state.premap && state.ready {
                state.deflate_on();
            }
        })
    }

    /// Maps all there is in the background: for a guest that does not speak our protocol.
    /// The bus-master gate holds its devices back meanwhile (contract I4).
    pub(crate) fn map_on(&self) {
        let mut state = self.state.lock();
        state.ready = true;
        state.deadline = None;
        state.premap = true;
        state.wake_workers();
    }

    /// The balloon device was reset: the guest may use all its memory again.
    ///
    /// If a device masters the bus, comes back only when everything is mapped, or, if
    /// that fails, when no device masters the bus any more. Otherwise the bus-master
    /// gate is what holds devices back from here on.
    pub(crate) fn balloon_reset(&self) {
        let masters = {
            let mut state = self.state.lock();
            for slot in state.slots.iter_mut() {
                slot.table.reset();
            }
            if state.status(Want::Outside, Range::ALL) != Progress::Done {
                state.arm_deadline();
            }
            state.masters()
        };
        self.changed.notify();
        if masters > 0 && KNOBS.gate() {
            if let Err(e) = self.wait_mapped(Want::Outside, Range::ALL, |_| ()) {
                // Whoever resets may be killed, and the VM live on in another process.
                let dying = e == EINTR || e == ESRCH;
                if !dying && self.warnings.allows() {
                    pr_err!("{self}: memory could not be mapped ({e:?}): its devices stop\n");
                }
                self.silence();
            }
        }
    }

    /// How large a balloon to ask the guest for, in bytes.
    ///
    /// 0 only if all is mapped: for a balloon of nothing, no driver has to commit.
    pub(crate) fn balloon_target(&self) -> u64 {
        let unmapped = self.state.lock().most(super::Slot::unmapped);
        if unmapped == 0 {
            return 0;
        }
        let target = unmapped.saturating_sub(KNOBS.reserve());
        (target - target % GRANULE).max(GRANULE)
    }

    /// Where the first byte that is not mapped is; 0 if there is none.
    pub(crate) fn lowest_unmapped(&self) -> u64 {
        let state = self.state.lock();
        let slots = state.slots.iter();
        let lowest = slots.flat_map(|slot| slot.table.iter().find(|(_, s)| s.is_pending()));
        lowest.map(|(range, _)| range.start()).min().unwrap_or(0)
    }

    /// A message of the guest was handled.
    pub(crate) fn count_message(&self) {
        self.stats.messages.add(1);
    }

    /// Fills `bytes` from guest-physical `gpa`; `EFAULT` outside the guest's plain RAM.
    ///
    /// Context: a task of the VM's process.
    pub(crate) fn read_guest(&self, gpa: u64, bytes: &mut [u8]) -> Result {
        let mut at = gpa;
        let mut rest = bytes;
        while !rest.is_empty() {
            let len = self.access(at, rest.len(), |addr, len| {
                user::read(addr, rest.get_mut(..len).ok_or(EFAULT)?)?;
                Ok(len)
            })?;
            at = at.checked_add(len as u64).ok_or(EFAULT)?;
            rest = rest.get_mut(len..).unwrap_or_default();
        }
        Ok(())
    }

    /// Writes `bytes` to guest-physical `gpa`; otherwise as [`Vm::read_guest`].
    pub(crate) fn write_guest(&self, gpa: u64, bytes: &[u8]) -> Result {
        let mut at = gpa;
        let mut rest = bytes;
        while !rest.is_empty() {
            let len = self.access(at, rest.len(), |addr, len| {
                user::write(addr, rest.get(..len).ok_or(EFAULT)?)?;
                Ok(len)
            })?;
            at = at.checked_add(len as u64).ok_or(EFAULT)?;
            rest = rest.get(len..).unwrap_or_default();
        }
        Ok(())
    }
}
