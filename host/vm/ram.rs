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
        memory_map::{
            MemoryMap,
            UserRange,
            Verdict, //
        },
        range::Range,
        range_map::{
            InsertError,
            Ranged, //
        },
        state::{
            Progress,
            Want, //
        },
        sum::less,
        vec::NoMemory, //
    },
    type1::iommu::ContainerId,
    wrap::user, //
};

use super::{
    mapper::Count,
    Slot,
    StateGuard,
    Vm, //
    VmState,
};

/// A map that type1 has made.
pub(super) struct Direct {
    user: UserRange,
    /// Of RAM of the VM's process, to read and write: if the guest has it there, the guest
    /// may name it.
    ram: bool,
}

impl Ranged for Direct {
    fn range(&self) -> Range {
        self.user.range()
    }
}

/// What there is to do about a map that comes.
#[derive(Clone, Copy)]
pub(crate) struct Outlook {
    /// It may be deferred, if it is RAM and the container takes it.
    pub(crate) may_wait: bool,
    /// The guest may name it, if it is RAM.
    pub(crate) may_be_named: bool,
    /// It is known to be RAM, at whatever address.
    pub(crate) is_ram: bool,
    /// It overlaps with what was deferred.
    pub(crate) overlaps: bool,
    /// Something was deferred that type1 has not charged yet.
    pub(crate) promised: bool,
}

impl Slot {
    /// Whether a byte of `range` was mapped, by type1 or deferred.
    pub(super) fn overlaps(&self, range: Range) -> bool {
        self.table.overlaps(range) || self.direct.overlaps(range)
    }

    /// The map of RAM that has `iova`.
    fn ram_at(&self, iova: u64) -> Option<UserRange> {
        let direct = self.direct.at(iova).filter(|direct| direct.ram);
        direct
            .map(|direct| direct.user)
            .or_else(|| self.table.at(iova))
    }
}

impl VmState {
    /// What will be pinned later, in bytes.
    fn promised(&self) -> u64 {
        let unmapped = self.slots.iter().map(Slot::unmapped);
        unmapped.fold(0, u64::saturating_add)
    }

    /// Whether a map that comes now may be deferred at all.
    fn defers(&self) -> bool {
        let served = self.balloon.is_some() || self.gate_only;
        served && !self.is_mastered() && !self.ready && !self.dead
    }

    /// Where the guest's RAM at `gpa` is in the VMM, and how many of `len` bytes are there in a
    /// row: it has to be known, and a container has to have it there, for the VMM may use its
    /// addresses for something else once it has unmapped them.
    fn translate(&self, gpa: u64, len: u64) -> Option<(u64, u64)> {
        let (vaddr, known) = self.memory.translate(gpa, len)?;
        let rests = self
            .slots
            .iter()
            .filter_map(|slot| slot.ram_at(gpa)?.rest(gpa));
        let live = rests.filter(|(other, _)| *other == vaddr);
        let longest = live.map(|(_, rest)| rest).max()?;
        Some((vaddr, known.min(longest)))
    }

    /// Whether a thread is in the guest's memory somewhere in `range`.
    fn is_accessed(&self, range: Range) -> bool {
        self.accesses.iter().any(|access| access.overlaps(range))
    }

    /// Learns where RAM is; false if it is not flat, as far as is known.
    fn learn(&mut self, user: UserRange) -> bool {
        let flat = self.memory.learn(user);
        if flat == Err(NoMemory) {
            pr_warn!("no memory to note RAM at {:#x}\n", user.range().start());
        }
        flat == Ok(true)
    }
}

impl Vm {
    /// What may become of a map of the caller.
    ///
    /// No more than a look at what is known: of a guest with a virtual IOMMU, this is asked at
    /// each of its maps.
    pub(crate) fn outlook(&self, id: ContainerId, user: &UserRange) -> Outlook {
        let mut state = self.state.lock();
        let may_be_named = match state.memory.judge(user) {
            Verdict::Known => true,
            Verdict::New => user.range().len() >= MemoryMap::LEAST,
            Verdict::Differs => false,
        };
        let slot = state.slot(id);
        let overlaps = slot.is_some_and(|slot| slot.table.overlaps(user.range()));
        Outlook {
            may_wait: may_be_named && state.defers(),
            may_be_named,
            is_ram: state.memory.has(user),
            overlaps,
            promised: state.promised() != 0,
        }
    }

    /// Takes the lock while so much more than what is promised is within the caller's limit;
    /// `ENOMEM` beyond. `count` outlives the guard.
    fn within_limit<'a>(
        &'a self,
        more: u64,
        count: &mut Option<Count<'a>>,
    ) -> Result<StateGuard<'a>> {
        loop {
            let state = self.state.lock();
            if user::may_lock(state.promised().saturating_add(more)) {
                return Ok(state);
            }
            // type1 has charged a part of the pieces that are out: count again without any.
            if count.is_some() || !state.slots.iter().any(Slot::is_busy) {
                return Err(ENOMEM);
            }
            drop(state);
            *count = Some(self.count_exactly());
        }
    }

    /// Whether a map that is made now leaves what is promised within the caller's limit: type1
    /// knows of what it has pinned only. `ENOMEM` if not.
    pub(crate) fn keeps_promise(&self, bytes: u64) -> Result {
        let mut count = None;
        self.within_limit(bytes, &mut count).map(drop)
    }

    /// Records a map of RAM of the caller instead of making it; false if it must be made now.
    ///
    /// `capacity`: how many mappings type1 takes of the container, by [`Vm::mappings`]. Errors
    /// are type1's own: `EEXIST` on overlap, `ENOMEM` beyond `RLIMIT_MEMLOCK` or without memory;
    /// `ERESTARTNOINTR` after a signal: the caller is to make the call again.
    /// Context: the VMM's `MAP_DMA` ioctl.
    pub(crate) fn defer(
        self: &Arc<Self>,
        id: ContainerId,
        map: UserRange,
        capacity: u64,
    ) -> Result<bool> {
        match self.start_workers() {
            Ok(()) => {}
            Err(e) if e == ERESTARTNOINTR => return Err(e),
            // A limit of processes, say: nobody would map it.
            Err(e) => {
                if self.warnings.allows() {
                    pr_warn!("{self}: no thread to map with ({e:?}), so nothing is deferred\n");
                }
                return Ok(false);
            }
        }
        let (iova, vaddr) = (map.range(), map.vaddr());
        // Dropped after the lock.
        let mut count = None;
        let mut guard = self.within_limit(iova.len(), &mut count)?;
        let state = &mut *guard;
        if !state.defers() {
            return Ok(false);
        }
        let slot = state.slots.iter_mut().find(|s| s.iommu.id() == id);
        let slot = slot.ok_or(ESTALE)?;
        if slot.overlaps(iova) {
            return Err(EEXIST);
        }
        let windows = slot.windows.saturating_add(iova.windows(slot.max));
        let budget = Budget::new(capacity.saturating_sub(slot.direct.len() as u64), 0);
        if !budget.allows(windows) || !state.learn(map) {
            return Ok(false);
        }
        let slot = state.slots.iter_mut().find(|s| s.iommu.id() == id);
        let slot = slot.ok_or(ESTALE)?;
        slot.table.insert(iova, vaddr).map_err(|e| match e {
            InsertError::Overlap => EEXIST,
            InsertError::Invalid => EINVAL,
            InsertError::NoMemory => ENOMEM,
        })?;
        slot.budget = budget;
        slot.windows = windows;
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

    /// How many of type1's mappings of the container we know of.
    pub(crate) fn mappings(&self, id: ContainerId) -> u64 {
        let mut state = self.state.lock();
        let count = |slot: &mut Slot| slot.table.pieces().saturating_add(slot.direct.len() as u64);
        state.slot(id).map_or(0, count)
    }

    /// Whether a byte of `iova` was mapped or deferred.
    pub(crate) fn is_mapped(&self, id: ContainerId, iova: Range) -> bool {
        let mut state = self.state.lock();
        state.slot(id).is_some_and(|slot| slot.overlaps(iova))
    }

    /// Whether an end of `range` falls inside a deferred map.
    pub(crate) fn bisects(&self, id: ContainerId, range: Range) -> bool {
        let mut state = self.state.lock();
        state.slot(id).is_some_and(|slot| slot.table.bisects(range))
    }

    /// Whether `range` is a deferred map, and all of it.
    pub(crate) fn is_block(&self, id: ContainerId, range: Range) -> bool {
        let mut state = self.state.lock();
        let block = state.slot(id).and_then(|slot| slot.table.at(range.start()));
        block.is_some_and(|block| block.range() == range)
    }

    /// Notes a map that type1 has made; `ram`: of RAM that the guest may name.
    pub(crate) fn record(&self, id: ContainerId, user: UserRange, ram: bool) {
        let mut state = self.state.lock();
        if ram && !state.learn(user) {
            pr_debug!("{self}: a map at {:#x} is not flat\n", user.range().start());
        }
        let Some(slot) = state.slot(id) else {
            return;
        };
        if slot.direct.insert(Direct { user, ram }).is_err() {
            // Only this: an overlap with it would be found when it is mapped.
            pr_warn!("{self}: no memory to note a map\n");
        }
    }

    /// A map of the container has another address now: `vaddr`, or, if it is no RAM of this
    /// process there, none.
    pub(crate) fn moved(&self, id: ContainerId, iova: Range, vaddr: Option<u64>) {
        let mut state = self.state.lock();
        let Some(slot) = state.slot(id) else {
            return;
        };
        let user = vaddr.and_then(|vaddr| UserRange::new(iova, vaddr));
        // What waited is RAM.
        let mut ram = true;
        if let Some(user) = user {
            slot.table.moved(iova, user.vaddr());
        }
        for direct in slot.direct.overlapping_mut(iova) {
            ram = direct.ram;
            match user {
                Some(user) => direct.user = user,
                None => direct.ram = false,
            }
        }
        match user {
            Some(user) if ram => {
                if state.memory.replace(user).is_err() {
                    pr_warn!("{self}: no memory to note a map\n");
                }
            }
            _ => state.memory.forget(iova),
        }
    }

    /// Whether something of the container was deferred that is not unmapped since.
    pub(crate) fn has_blocks(&self, id: ContainerId) -> bool {
        let mut state = self.state.lock();
        state
            .slot(id)
            .is_some_and(|slot| slot.table.block_count() > 0)
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
        let overlaps = {
            let mut state = self.state.lock();
            let table = &state.slot(id).ok_or(EINVAL)?.table;
            if table.bisects(range) {
                return Err(EINVAL);
            }
            table.overlaps(range)
        };
        if !overlaps {
            inner()?;
            self.forget(id, range);
            return Ok(0);
        }
        self.pause(id);
        // Nothing of it is being mapped, nor will be: only the caller can end the pause.
        let result = inner();
        let removed = {
            let mut state = self.state.lock();
            let slot = state.slot(id).ok_or(EINVAL)?;
            slot.paused = false;
            let removed = result.and_then(|()| {
                let windows = slot.table.windows(range, slot.max);
                // A piece of it is out although it is paused: it stays, as does the block.
                let removed = slot.table.remove(range).inspect_err(|_| {
                    kernel::pr_err_once!("a map that is being made was to be unmapped\n");
                });
                let removed = removed.map_err(|_| EBUSY)?;
                slot.windows = less(slot.windows, windows);
                Ok(removed)
            });
            state.wake_workers();
            state.nothing_left();
            removed?
        };
        self.forget(id, range);
        self.changed.notify();
        Ok(less(removed.bytes, removed.mapped))
    }

    /// type1 has unmapped what it had of `range`. The caller holds the container's
    /// lock, so nothing was mapped there since.
    ///
    /// Comes back when no thread is in the guest's memory there any more, for the VMM may use
    /// its addresses for something else then; or when the caller dies.
    pub(crate) fn forget(&self, id: ContainerId, range: Range) {
        let mut state = self.state.lock();
        if let Some(slot) = state.slot(id) {
            slot.direct.remove(range);
        }
        if !state.is_accessed(range) {
            return;
        }
        state.leaving += 1;
        drop(state);
        let waited = self.changed.wait(&self.state, |state| {
            (!state.is_accessed(range)).then_some(())
        });
        if waited.is_err() {
            pr_debug!("{self}: unmapped by a thread that dies\n");
        }
        self.state.lock().leaving -= 1;
    }

    /// Calls `f` with where the first of `len` bytes at guest-physical `gpa` are in the VMM, and
    /// how many of them are there in a row. Their unmap waits for it.
    ///
    /// Errors: `EFAULT` outside the guest's plain RAM, what `f` gives, `ENOMEM`.
    /// Context: a task of the VM's process, may sleep.
    pub(crate) fn access<R>(
        &self,
        gpa: u64,
        len: usize,
        f: impl FnOnce(usize, usize) -> Result<R>,
    ) -> Result<R> {
        if !self.is_current() {
            return Err(EFAULT);
        }
        let (vaddr, range) = {
            let mut state = self.state.lock();
            let (vaddr, len) = state.translate(gpa, len as u64).ok_or(EFAULT)?;
            let range = Range::from_len(gpa, len).ok_or(EFAULT)?;
            state.accesses.push(range, GFP_KERNEL)?;
            (vaddr, range)
        };
        let result = usize::try_from(vaddr)
            .and_then(|vaddr| Ok((vaddr, usize::try_from(range.len())?)))
            .map_err(|_| EFAULT)
            .and_then(|(vaddr, len)| f(vaddr, len));
        let mut state = self.state.lock();
        let index = state.accesses.iter().position(|access| *access == range);
        // It was put there above, and each takes away one.
        let _ = index.map(|index| state.accesses.remove(index));
        if state.leaving > 0 {
            drop(state);
            self.changed.notify();
        }
        result
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

    /// Whether nothing is left to map in any container.
    pub(crate) fn is_settled(&self) -> bool {
        self.state.lock().status(Want::All, Range::ALL) == Progress::Done
    }

    /// As [`Vm::settle`], if that is not so in the container yet.
    pub(crate) fn settle_in(&self, id: ContainerId, range: Range) -> Result {
        let done = match self.state.lock().slot(id) {
            Some(slot) => slot.table.status(Want::All, range) == Progress::Done,
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
        let mut blocks = slot.table.covered(Range::ALL);
        blocks.try_for_each(|block| f(block.range(), block.vaddr()))
    }
}
