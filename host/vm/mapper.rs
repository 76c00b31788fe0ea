// SPDX-License-Identifier: GPL-2.0-only

//! The threads that map what was deferred, and waiting for them.
//!
//! What somebody waits for (a *demand*: a commit, a deflation that misses, the
//! bus-master gate) goes before what is mapped in the background (*pre-mapping*).
//!
//! Lock order: see [`super`]. The threads hold nothing while they call type1.

use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
    time::{
        msecs_to_jiffies,
        Jiffies,
        NSEC_PER_MSEC, //
    },
};

use crate::{
    bindings,
    iommu::{
        ContainerId,
        Iommu, //
    },
    knobs::KNOBS,
    logic::{
        range::{
            Align,
            Range, //
        },
        state::{
            Status,
            Want, //
        },
        table::Chunk,
        vec::NoMemory, //
    },
    populate::{
        populate,
        Populated, //
    },
    task::{
        Task,
        Work, //
    },
};

use super::{
    now,
    State,
    Vm, //
};

/// After so many pieces of a container, ballooned memory between the wanted is
/// mapped along with it, so that no guest can cut its RAM into more pieces than
/// type1 takes (`dma_entry_limit`, 65535).
const FRAGMENTED: u64 = 1 << 14;

/// How long background work rests after a piece could not be mapped: what is short
/// now may not be later, and each failure is a line in the log.
const REST_MS: i64 = 1_000;

/// Somebody waits for this.
#[derive(Clone, Copy)]
struct Demand {
    id: u64,
    want: Want,
    range: Range,
}

/// What is waited for, in the order in which it came.
pub(super) struct Demands {
    list: KVec<Demand>,
    next: u64,
    /// How often the tables had no memory for taking a chunk.
    shortages: u64,
}

impl Demands {
    pub(super) const fn new() -> Self {
        Self {
            list: KVec::new(),
            next: 0,
            shortages: 0,
        }
    }

    fn push(&mut self, want: Want, range: Range) -> Result<u64> {
        let id = self.next;
        self.list.push(Demand { id, want, range }, GFP_KERNEL)?;
        self.next = id.wrapping_add(1);
        Ok(id)
    }
}

/// A piece to map.
struct Job {
    iommu: Arc<Iommu>,
    chunk: Chunk,
    /// Nobody waits for it.
    background: bool,
}

impl State {
    /// Takes the most urgent piece there is.
    fn take(&mut self) -> Option<Job> {
        for index in 0..self.demands.list.len() {
            let Some(&Demand { want, range, .. }) = self.demands.list.get(index) else {
                break;
            };
            match self.take_from(want, range, false) {
                Ok(Some(job)) => return Some(job),
                Ok(None) => {}
                Err(NoMemory) => {
                    self.demands.shortages = self.demands.shortages.wrapping_add(1);
                }
            }
        }
        match self.premap && self.rest_until <= now() {
            true => self.take_from(Want::All, Range::ALL, true).ok().flatten(),
            false => None,
        }
    }

    fn take_from(
        &mut self,
        want: Want,
        range: Range,
        background: bool,
    ) -> Result<Option<Job>, NoMemory> {
        let max = Align::at_most(KNOBS.chunk());
        for slot in self.slots.iter_mut().filter(|slot| !slot.paused) {
            let want = match slot.mappings < FRAGMENTED {
                true => want,
                false => Want::All,
            };
            if let Some(chunk) = slot.table.take(want, range, max)? {
                return Ok(Some(Job {
                    iommu: slot.iommu.clone(),
                    chunk,
                    background,
                }));
            }
        }
        Ok(None)
    }

    /// Whether a thread had better put back the chunk that it is populating: what is
    /// there stays there, so that nothing is lost.
    fn interrupts(&mut self, id: ContainerId, chunk: Range, background: bool) -> bool {
        if self.dead || self.slot(id).is_none_or(|slot| slot.paused) {
            return true;
        }
        // Only for what this thread would take next, lest it take the same again.
        background
            && self.demands.list.iter().any(|demand| {
                let mut slots = self.slots.iter().filter(|slot| !slot.paused);
                let ours = |slot: &super::Slot| {
                    let part = chunk.intersect(demand.range);
                    slot.iommu.id() == id
                        && part.is_some_and(|part| {
                            slot.table.status(demand.want, part) == Status::Pending
                        })
                };
                slots.any(|slot| slot.table.has(demand.want, demand.range) || ours(slot))
            })
    }

    /// Arms the time limit after which everything is mapped in the background.
    pub(super) fn arm_deadline(&mut self) {
        let ms = i64::try_from(KNOBS.fallback_timeout_ms()).unwrap_or(i64::MAX);
        self.deadline = Some(now().saturating_add(ms.saturating_mul(NSEC_PER_MSEC)));
        self.wake_workers();
    }

    /// Makes every mapping thread look for work.
    pub(super) fn wake_workers(&self) {
        for worker in &self.workers {
            worker.wake();
        }
    }
}

/// One mapping thread.
pub(crate) struct Worker {
    vm: Arc<Vm>,
    /// The nice value that it has now.
    nice: Atomic<u64>,
}

impl Work for Worker {
    fn run(&self) -> bool {
        let Some(job) = self.vm.next_job() else {
            return false;
        };
        self.be_nice(if job.background { KNOBS.nice() } else { 0 });
        self.vm.finish(job);
        true
    }

    fn patience(&self) -> Option<Jiffies> {
        self.vm.until_deadline()
    }

    fn killed(&self) {
        self.vm.state.lock().dead = true;
        self.vm.changed.notify();
    }
}

impl Worker {
    fn be_nice(&self, nice: u64) {
        if self.nice.load(Relaxed) != nice {
            self.nice.store(nice, Relaxed);
            // SAFETY: `current` is valid; the knob's range is that of nice values.
            unsafe {
                bindings::set_user_nice(bindings::get_current(), nice as kernel::ffi::c_long)
            };
        }
    }
}

impl Vm {
    /// Sees to it that the VM has mapping threads.
    ///
    /// Context: an ioctl of the VMM, may sleep.
    pub(super) fn start_workers(self: &Arc<Self>) -> Result {
        // Should two containers race, there are more threads than were asked for.
        if !self.state.lock().workers.is_empty() {
            return Ok(());
        }
        for _ in 0..KNOBS.workers() {
            let worker = Arc::new(
                Worker {
                    vm: self.clone(),
                    nice: Atomic::new(0),
                },
                GFP_KERNEL,
            )?;
            let task = Task::spawn(worker, c"vfio-deferred")?;
            let mut state = self.state.lock();
            // Not by a `push` that fails: it would drop the task, which waits for the
            // thread, which waits for the lock.
            if let Err(e) = state.workers.reserve(1, GFP_KERNEL) {
                drop(state);
                return Err(e.into());
            }
            state.workers.push(task, GFP_KERNEL)?;
        }
        Ok(())
    }

    fn next_job(&self) -> Option<Job> {
        let mut state = self.state.lock();
        if state.dead {
            return None;
        }
        if state.deadline.is_some_and(|at| at <= now()) {
            state.deadline = None;
            state.premap = true;
            if state.status(Want::All, Range::ALL) == Status::Done {
                state.ready = true;
            } else {
                state.wake_workers();
                self.stats.fallbacks.add(1);
                if self.warnings.allows() {
                    pr_info!("{self}: no commit in time, mapping everything in the background\n");
                }
            }
        }
        let shortages = state.demands.shortages;
        let job = state.take();
        if state.demands.shortages != shortages {
            drop(state);
            self.changed.notify();
        }
        job
    }

    /// How long a thread that has nothing to do may sleep.
    fn until_deadline(&self) -> Option<Jiffies> {
        let state = self.state.lock();
        let rest = Some(state.rest_until).filter(|at| state.premap && *at > now());
        let at = match (state.deadline, rest) {
            (Some(a), Some(b)) => a.min(b),
            (a, b) => a.or(b)?,
        };
        let left = at.saturating_sub(now()).max(0);
        let ms = u32::try_from(left / NSEC_PER_MSEC).unwrap_or(u32::MAX);
        Some(msecs_to_jiffies(ms).saturating_add(1))
    }

    fn finish(&self, job: Job) {
        let Job {
            iommu,
            chunk,
            background,
        } = job;
        let id = iommu.id();
        let result = match self.populate(id, &chunk, background) {
            Populated::Interrupted => Err(EINTR),
            Populated::Done => iommu.map_chunk(&chunk),
        };
        // The last reference to type1's container must not be ours.
        drop(iommu);
        if background && result.is_err() {
            let until = now().saturating_add(REST_MS.saturating_mul(NSEC_PER_MSEC));
            self.state.lock().rest_until = until;
        }
        self.give_back(id, chunk, result);
    }

    /// Lets the kernel provide the chunk's memory, outside type1's lock.
    fn populate(&self, id: ContainerId, chunk: &Chunk, background: bool) -> Populated {
        if !KNOBS.populate() {
            return Populated::Done;
        }
        let Some(vaddrs) = Range::from_len(chunk.vaddr(), chunk.range().len()) else {
            return Populated::Done;
        };
        let go_on = || !self.state.lock().interrupts(id, chunk.range(), background);
        // Without the little memory that it takes, type1 does all of it.
        populate(vaddrs, go_on).unwrap_or(Populated::Done)
    }

    fn give_back(&self, id: ContainerId, chunk: Chunk, result: Result) {
        let mut state = self.state.lock();
        // A slot does not go while a chunk of it is out.
        if let Some(slot) = state.slot(id) {
            match result {
                Err(EINTR) => slot.table.abort(chunk),
                Err(e) => {
                    let range = chunk.range();
                    self.warn_failed(range, e);
                    slot.table.complete(chunk, false);
                    self.stats.failures.add(1);
                }
                Ok(()) => {
                    slot.table.complete(chunk, true);
                    slot.mappings = slot.mappings.saturating_add(1);
                }
            }
        }
        if state.status(Want::All, Range::ALL) == Status::Done {
            // Before a commit or the time limit, there may be more RAM to come.
            state.ready |= state.deadline.is_none() && !state.gate_only;
            self.stats.complete();
        }
        let target = state.premap.then(|| state.target());
        if let (Some(bytes), Some(balloon)) = (target, &state.balloon) {
            balloon.set_target(bytes);
        }
        drop(state);
        self.changed.notify();
    }

    /// Waits until all that is wanted of `range` is mapped in every container,
    /// ahead of background work, and calls `done` with the state still locked.
    ///
    /// Errors: `EINTR` when the process dies, `ENOMEM` when a piece could not be
    /// mapped (the log says why) or the tables could not grow.
    /// Context: process context, may sleep; not a mapping thread.
    pub(super) fn wait_mapped<R>(
        &self,
        want: Want,
        range: Range,
        done: impl FnOnce(&mut State) -> R,
    ) -> Result<R> {
        self.wait_mapped_while(|| true, want, range, done)
    }

    /// Like [`Vm::wait_mapped`], but gives up with `EINTR` once `wanted` says false.
    ///
    /// It is asked with the state locked, and again after each [`Vm::look_again`].
    pub(super) fn wait_mapped_while<R>(
        &self,
        wanted: impl Fn() -> bool,
        want: Want,
        range: Range,
        done: impl FnOnce(&mut State) -> R,
    ) -> Result<R> {
        let (id, shortages) = {
            let mut state = self.state.lock();
            for slot in state.slots.iter_mut() {
                slot.table.retry(range).map_err(|NoMemory| ENOMEM)?;
            }
            if state.status(want, range) == Status::Done {
                return Ok(done(&mut state));
            }
            if state.dead {
                return Err(EINTR);
            }
            let id = state.demands.push(want, range)?;
            state.wake_workers();
            (id, state.demands.shortages)
        };
        let mut done = Some(done);
        let result = self
            .changed
            .wait(&self.state, |state| match state.status(want, range) {
                Status::Done => Some(done.take().map(|done| done(state)).ok_or(EINTR)),
                _ if state.dead || !wanted() => Some(Err(EINTR)),
                Status::Failed => Some(Err(ENOMEM)),
                Status::Pending if state.demands.shortages != shortages => Some(Err(ENOMEM)),
                Status::Pending => None,
            });
        let mut state = self.state.lock();
        state.demands.list.retain(|demand| demand.id != id);
        drop(state);
        result?
    }

    /// Makes everybody who waits look again whether that is still wanted. Any context.
    pub(crate) fn look_again(&self) {
        self.changed.notify();
    }

    /// Keeps the container's pieces from being taken, and waits for those that were.
    ///
    /// Uninterruptible: what follows must not run while type1 is being called.
    /// That ends soon, since type1 gives up a map after a fatal signal.
    pub(crate) fn pause(&self, id: ContainerId) {
        self.changed.wait_uninterruptible(&self.state, |state| {
            let Some(slot) = state.slot(id) else {
                return Some(());
            };
            slot.paused = true;
            (!slot.is_busy()).then_some(())
        });
    }

    fn warn_failed(&self, range: Range, error: Error) {
        if self.warnings.allows() {
            pr_warn!(
                "{self}: could not map {:#x}..{:#x}: {error:?}\n",
                range.start(),
                range.end()
            );
        }
    }
}
