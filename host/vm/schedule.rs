// SPDX-License-Identifier: GPL-2.0-only

//! What a mapping thread does next.
//!
//! What somebody waits for (a *demand*: a commit, a deflation that misses, the
//! bus-master gate) goes before what is mapped in the background (*pre-mapping*), and
//! of the demands, those for some range before those for all there is. A thread that
//! finds nothing to map helps another to provide the memory of its piece.
//!
//! All of it runs with `Vm::state` locked.

use kernel::{
    prelude::*,
    sync::Arc, //
};

use crate::{
    admin::knobs::KNOBS,
    logic::{
        range::Range,
        state::{
            Progress,
            Want, //
        },
        table::Chunk,
        vec::NoMemory, //
    },
    type1::iommu::{
        ContainerId,
        Iommu, //
    },
    vm::populate::Memory, //
};

use super::{
    masters::News,
    now,
    VmState, //
};

/// Who wants a piece: the greater goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Urgency {
    /// Nobody waits for it.
    Background,
    /// Somebody waits for all memory, which takes its time in any case.
    Everything,
    /// Somebody waits for a part.
    Part,
}

/// Somebody waits for this, or is expected to.
#[derive(Clone, Copy)]
struct Demand {
    id: u64,
    want: Want,
    range: Range,
    /// Somebody waits for it already.
    awaited: bool,
}

impl Demand {
    fn urgency(&self) -> Urgency {
        match (self.awaited, self.range == Range::ALL) {
            (false, _) => Urgency::Background,
            (true, true) => Urgency::Everything,
            (true, false) => Urgency::Part,
        }
    }
}

/// What is waited for: the most urgent first, and of these what came first.
pub(super) struct Demands {
    list: KVec<Demand>,
    next: u64,
    /// How often the tables had no memory for taking a chunk.
    pub(super) shortages: u64,
}

impl Demands {
    pub(super) const fn new() -> Self {
        Self {
            list: KVec::new(),
            next: 0,
            shortages: 0,
        }
    }

    /// Adds a demand; `awaited`: somebody waits for it, and does not only expect it.
    pub(super) fn push(&mut self, want: Want, range: Range, awaited: bool) -> Result<u64> {
        let id = self.next;
        let demand = Demand {
            id,
            want,
            range,
            awaited,
        };
        let urgency = demand.urgency();
        let before = |d: &&Demand| d.urgency() >= urgency;
        let index = self.list.iter().take_while(before).count();
        self.list.push(demand, GFP_KERNEL)?;
        if let Some(tail) = self.list.get_mut(index..) {
            tail.rotate_right(1);
        }
        self.next = id.wrapping_add(1);
        Ok(id)
    }

    /// Nobody waits for it any more.
    pub(super) fn remove(&mut self, id: u64) {
        self.list.retain(|demand| demand.id != id);
    }
}

/// A piece to map.
pub(super) struct Piece {
    pub(super) iommu: Arc<Iommu>,
    pub(super) chunk: Chunk,
    /// Its memory, unless type1 is to provide that.
    pub(super) memory: Option<Arc<Memory>>,
    pub(super) urgency: Urgency,
}

/// Memory of a piece that is out, as others see it who help to provide it.
#[derive(Clone)]
pub(super) struct Provision {
    pub(super) id: ContainerId,
    pub(super) range: Range,
    pub(super) memory: Arc<Memory>,
    pub(super) urgency: Urgency,
}

/// What a thread does next.
pub(super) enum Job {
    /// A device is waited for.
    Tell(News),
    Map(Piece),
    Help(Provision),
}

impl Job {
    pub(super) fn urgency(&self) -> Urgency {
        match self {
            Self::Tell(_) => Urgency::Part,
            Self::Map(piece) => piece.urgency,
            Self::Help(provision) => provision.urgency,
        }
    }
}

impl VmState {
    /// What is most urgent: a piece to map, or else to help another thread with one.
    /// Nothing that is less urgent than `least`.
    pub(super) fn take(&mut self, least: Urgency) -> Option<Job> {
        if self.counting > 0 {
            return None;
        }
        match self.take_piece(least) {
            Some(piece) => Some(Job::Map(piece)),
            None => self.help(least).map(Job::Help),
        }
    }

    fn take_piece(&mut self, least: Urgency) -> Option<Piece> {
        for index in 0..self.demands.list.len() {
            let Some(&demand) = self.demands.list.get(index) else {
                break;
            };
            let background = demand.urgency() == Urgency::Background;
            if demand.urgency() < least || background && self.rest_until > now() {
                continue;
            }
            match self.take_from(demand.want, demand.range, demand.urgency()) {
                Ok(Some(piece)) => return Some(piece),
                Ok(None) => {}
                Err(NoMemory) => {
                    self.demands.shortages = self.demands.shortages.wrapping_add(1);
                }
            }
        }
        let premap = self.premap && least == Urgency::Background;
        if !premap || self.rest_until > now() {
            return None;
        }
        self.take_from(Want::All, Range::ALL, Urgency::Background)
            .unwrap_or_else(|NoMemory| {
                self.rest();
                None
            })
    }

    fn take_from(
        &mut self,
        want: Want,
        range: Range,
        urgency: Urgency,
    ) -> Result<Option<Piece>, NoMemory> {
        for slot in self.slots.iter_mut().filter(|slot| !slot.paused) {
            let extent = slot.budget.take(slot.table.pieces());
            if let Some(chunk) = slot.table.take(want, range, slot.max, extent)? {
                let iommu = slot.iommu.clone();
                let memory = self.provide(iommu.id(), &chunk, urgency);
                return Ok(Some(Piece {
                    iommu,
                    chunk,
                    memory,
                    urgency,
                }));
            }
        }
        Ok(None)
    }

    /// Lets others help with the memory of a chunk. Without the little memory that this
    /// takes, type1 provides all of it.
    fn provide(&mut self, id: ContainerId, chunk: &Chunk, urgency: Urgency) -> Option<Arc<Memory>> {
        let vaddrs = Range::from_len(chunk.vaddr(), chunk.range().len())?;
        if !KNOBS.populate() {
            return None;
        }
        let memory = Arc::new(Memory::new(vaddrs), GFP_KERNEL).ok()?;
        let provision = Provision {
            id,
            range: chunk.range(),
            memory: memory.clone(),
            urgency,
        };
        self.provisions.push(provision, GFP_KERNEL).ok()?;
        Some(memory)
    }

    /// The memory of a piece is there, or its thread goes on without.
    pub(super) fn provided(&mut self, memory: &Arc<Memory>) {
        memory.stop();
        self.provisions
            .retain(|provision| !Arc::ptr_eq(&provision.memory, memory));
    }

    /// The most urgent memory of which some is left to provide, none below `least`. The
    /// thread counts as busy with the container until [`VmState::helped`].
    fn help(&mut self, least: Urgency) -> Option<Provision> {
        let mut best: Option<Provision> = None;
        for index in 0..self.provisions.len() {
            let Some(provision) = self.provisions.get(index).cloned() else {
                break;
            };
            let Provision {
                id, range, urgency, ..
            } = provision;
            let better = best.as_ref().is_none_or(|best| urgency > best.urgency);
            if urgency >= least
                && better
                && provision.memory.is_left()
                && !self.interrupts(id, range, urgency)
            {
                best = Some(provision);
            }
        }
        let provision = best?;
        let slot = self.slot(provision.id)?;
        slot.helpers = slot.helpers.saturating_add(1);
        Some(provision)
    }

    /// A thread has stopped to help.
    pub(super) fn helped(&mut self, id: ContainerId) {
        if let Some(slot) = self.slot(id) {
            match slot.helpers.checked_sub(1) {
                Some(helpers) => slot.helpers = helpers,
                None => kernel::pr_warn_once!("more threads stop to help than have begun\n"),
            }
        }
    }

    /// Whether a thread had better stop to populate a chunk: what is there stays there,
    /// so that nothing is lost.
    pub(super) fn interrupts(&mut self, id: ContainerId, chunk: Range, urgency: Urgency) -> bool {
        let paused = self.slot(id).is_none_or(|slot| slot.paused);
        if self.dead || self.counting > 0 || paused || self.has_news() {
            return true;
        }
        // Only for what this thread would take next, lest it take the same again.
        let mut demands = self.demands.list.iter();
        demands.any(|demand| {
            let mut slots = self.slots.iter().filter(|slot| !slot.paused);
            let ours = |slot: &super::Slot| {
                let part = chunk.intersect(demand.range);
                slot.iommu.id() == id
                    && part.is_some_and(|part| {
                        slot.table.status(demand.want, part) == Progress::Pending
                    })
            };
            demand.urgency() > urgency
                && slots.any(|slot| slot.table.has(demand.want, demand.range) || ours(slot))
        })
    }
}
