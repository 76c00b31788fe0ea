// SPDX-License-Identifier: GPL-2.0-only

//! What the containers do to a VM: map and unmap RAM.
//!
//! All functions here may sleep; for the lock order see [`super`].

use kernel::{
    prelude::*,
    sync::Arc, //
};

use crate::{
    admin::knobs::KNOBS,
    compat::ESTALE,
    logic::{
        budget::Budget,
        memory_map::UserRange,
        range::Range,
        range_map::{
            InsertError,
            Ranged, //
        },
        state::{
            Status,
            Want, //
        },
    },
    type1::iommu::ContainerId,
    wrap::user, //
};

use super::Vm;

impl Vm {
    /// Records a map of the caller instead of making it; false if it must be made now.
    ///
    /// `available`: how many more mappings type1 takes. Errors are type1's own: `EEXIST`
    /// on overlap, `ENOMEM` beyond `RLIMIT_MEMLOCK` or without memory.
    /// Context: the VMM's `MAP_DMA` ioctl.
    pub(crate) fn defer(
        self: &Arc<Self>,
        id: ContainerId,
        iova: Range,
        vaddr: u64,
        available: u32,
    ) -> Result<bool> {
        if self.start_workers().is_err() {
            // A limit of processes, say: nobody would map it.
            return Ok(false);
        }
        // Dropped after the lock.
        let mut count = None;
        let mut guard = loop {
            let guard = self.state.lock();
            let served = guard.balloon.is_some() || guard.gate_only;
            if guard.dead || guard.ready || guard.is_mastered() || !served {
                return Ok(false);
            }
            // What will be pinned later counts against the limit now.
            let promised = guard.slots.iter().map(super::Slot::unmapped);
            let promised = promised.fold(iova.len(), u64::saturating_add);
            if user::may_lock(promised) {
                break guard;
            }
            // type1 has charged a part of the pieces that are out: count again without any.
            if count.is_some() || !guard.slots.iter().any(super::Slot::is_busy) {
                return Err(ENOMEM);
            }
            drop(guard);
            count = Some(self.count_exactly());
        };
        let state = &mut *guard;
        let slot = state.slots.iter_mut().find(|s| s.iommu.id() == id);
        let slot = slot.ok_or(ESTALE)?;
        if slot.overlaps(iova) {
            return Err(EEXIST);
        }
        let budget = Budget::new(u64::from(available), slot.table.pieces());
        let windows = slot.table.windows(slot.max);
        if !budget.allows(windows.saturating_add(iova.windows(slot.max))) {
            return Ok(false);
        }
        slot.budget = budget;
        slot.table.insert(iova, vaddr).map_err(|e| match e {
            InsertError::Overlap => EEXIST,
            InsertError::Invalid => EINVAL,
            InsertError::NoMemory => ENOMEM,
        })?;
        // Another container of the VM may have said so before.
        let known = state.memory.insert(iova, vaddr);
        if known.is_err() && state.memory.translate(iova.start(), iova.len()).is_none() {
            pr_warn!(
                "{self}: RAM at {:#x} is not known to the balloon\n",
                iova.start()
            );
        }
        if state.gate_only || KNOBS.premap_at_start() {
            state.premap = true;
            state.wake_workers();
        }
        if state.deadline.is_none() && !state.gate_only {
            state.arm_deadline();
        }
        self.stats.deferred.add(iova.len());
        Ok(true)
    }

    /// `EEXIST` if a byte of `iova` was deferred.
    pub(crate) fn check_overlap(&self, id: ContainerId, iova: Range) -> Result {
        let mut state = self.state.lock();
        match state.slot(id) {
            Some(slot) if slot.table.overlaps(iova) => Err(EEXIST),
            _ => Ok(()),
        }
    }

    /// Whether an end of `range` falls inside a deferred map.
    pub(crate) fn bisects(&self, id: ContainerId, range: Range) -> bool {
        let mut state = self.state.lock();
        state.slot(id).is_some_and(|slot| slot.table.bisects(range))
    }

    /// Whether `range` is a deferred map, and all of it.
    pub(crate) fn is_block(&self, id: ContainerId, range: Range) -> bool {
        let mut state = self.state.lock();
        state.slot(id).is_some_and(
            |slot| matches!(slot.table.covered(range), [block] if block.range() == range),
        )
    }

    /// Notes a map that type1 has made; `ram`: of RAM that the guest may name.
    pub(crate) fn record(&self, id: ContainerId, iova: Range, vaddr: u64, ram: bool) {
        let mut state = self.state.lock();
        let Some(slot) = state.slot(id) else {
            return;
        };
        let noted = UserRange::new(iova, vaddr).is_some_and(|map| slot.direct.insert(map).is_ok());
        if !noted {
            // Only this: an overlap with it would be found when it is mapped.
            pr_warn!("{self}: no memory to note a map\n");
        }
        if ram && state.memory.insert(iova, vaddr).is_err() {
            // The same RAM in a second container, most likely.
            pr_debug!("{self}: RAM at {:#x} not noted\n", iova.start());
        }
    }

    /// A map has another address now. If the guest may name it, that is `vaddr`, or, if it
    /// is no RAM of this process there, none.
    pub(crate) fn moved(&self, iova: Range, vaddr: Option<u64>) {
        let mut state = self.state.lock();
        let mut known = false;
        state.memory.retain(|range| {
            known |= range == iova;
            !range.overlaps(iova)
        });
        let Some(vaddr) = vaddr.filter(|_| known) else {
            return;
        };
        if state.memory.insert(iova, vaddr).is_err() {
            pr_warn!("{self}: no memory to note a map\n");
        }
    }

    /// Unmaps by `inner` and forgets what was deferred in `range`.
    ///
    /// Returns how many bytes more than type1 says were unmapped. `EINVAL` if
    /// that would leave a part of a deferred map, and what `inner` gives.
    pub(crate) fn unmap(
        &self,
        id: ContainerId,
        range: Range,
        inner: impl FnOnce() -> Result,
    ) -> Result<u64> {
        {
            let mut state = self.state.lock();
            let slot = state.slot(id).ok_or(EINVAL)?;
            if slot.table.bisects(range) {
                return Err(EINVAL);
            }
            if !slot.table.overlaps(range) {
                drop(state);
                inner()?;
                self.forget(id, range);
                return Ok(0);
            }
        }
        self.pause(id);
        // Nothing of it is being mapped, nor will be: only the caller can end the pause.
        let result = inner();
        let removed = {
            let mut state = self.state.lock();
            let slot = state.slot(id).ok_or(EINVAL)?;
            slot.paused = false;
            let removed = result.map(|()| slot.table.remove(range).unwrap_or_default());
            state.wake_workers();
            state.nothing_left();
            removed?
        };
        self.forget(id, range);
        self.changed.notify();
        Ok(removed.bytes.saturating_sub(removed.mapped))
    }

    /// type1 has unmapped what it had of `range`. The caller holds the container's
    /// lock, so nothing was mapped there since.
    fn forget(&self, id: ContainerId, range: Range) {
        let mut state = self.state.lock();
        if let Some(slot) = state.slot(id) {
            slot.direct.remove(range);
        }
        // The same RAM may be in another container of the VM.
        state.forget_memory();
    }

    /// Forgets a deferred map whose `MAP_DMA` fails after all; `inner` unmaps what was made
    /// of it.
    pub(crate) fn undo(&self, id: ContainerId, iova: Range, inner: impl FnOnce() -> Result) {
        if let Err(e) = self.unmap(id, iova, inner) {
            pr_warn!("{self}: a map that failed is left: {e:?}\n");
        }
    }

    /// Maps everything of `range` that was deferred, in or out of the balloon.
    pub(crate) fn settle(&self, range: Range) -> Result {
        self.wait_mapped(Want::All, range, |_| ())
    }

    /// As [`Vm::settle`], if that is not so in the container yet.
    pub(crate) fn settle_in(&self, id: ContainerId, range: Range) -> Result {
        let done = match self.state.lock().slot(id) {
            Some(slot) => slot.table.status(Want::All, range) == Status::Done,
            None => true,
        };
        if done {
            return Ok(());
        }
        self.settle(range)
    }

    /// Lets the container's pieces be taken again, after [`Vm::pause`].
    pub(crate) fn resume(&self, id: ContainerId) {
        let mut state = self.state.lock();
        if let Some(slot) = state.slot(id) {
            slot.paused = false;
        }
        state.wake_workers();
    }

    /// Calls `f` for each deferred map of the container; stops at an error.
    pub(crate) fn each_block(
        &self,
        id: ContainerId,
        mut f: impl FnMut(Range, u64) -> Result,
    ) -> Result {
        let mut state = self.state.lock();
        let Some(slot) = state.slot(id) else {
            return Ok(());
        };
        slot.table
            .covered(Range::ALL)
            .iter()
            .try_for_each(|block| f(block.range(), block.vaddr()))
    }
}
