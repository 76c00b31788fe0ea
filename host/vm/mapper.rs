// SPDX-License-Identifier: GPL-2.0-only

//! The threads that map what was deferred, and waiting for them.
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
    admin::knobs::KNOBS,
    bindings,
    logic::{
        range::Range,
        state::{
            Progress,
            Want, //
        },
        table::Chunk,
        vec::NoMemory, //
    },
    type1::iommu::ContainerId,
    vm::populate::{
        Memory,
        Populated, //
    },
    wrap::task::{
        Task,
        Work, //
    },
    wrap::user, //
};

use super::{
    now,
    schedule::{
        Job,
        Piece,
        Provision,
        Urgency, //
    },
    Vm, //
    VmState,
};

/// The most threads of a VM that does not say otherwise: memory is no faster for more.
const MOST_AUTOMATIC: u64 = 16;

/// The nice value of a priority of 0, and the greatest.
const NICE_BASE: i64 = 120;
const NICE_MOST: i64 = 19;

/// How long background work rests after a piece could not be mapped: what is short
/// now may not be later, and each failure is a line in the log.
const REST_MS: i64 = 1_000;

impl VmState {
    /// Arms the time limit after which everything is mapped in the background.
    pub(super) fn arm_deadline(&mut self) {
        let ms = i64::try_from(KNOBS.fallback_timeout_ms()).unwrap_or(i64::MAX);
        self.deadline = Some(now().saturating_add(ms.saturating_mul(NSEC_PER_MSEC)));
        self.wake_workers();
    }

    /// Background work rests for a while.
    pub(super) fn rest(&mut self) {
        self.rest_until = now().saturating_add(REST_MS.saturating_mul(NSEC_PER_MSEC));
    }

    /// Makes every mapping thread look for work.
    pub(super) fn wake_workers(&self) {
        for worker in &self.workers {
            worker.wake();
        }
    }
}

/// What threads a VM is to have.
#[derive(Clone, Copy)]
pub(super) struct Crew {
    wanted: u64,
    /// Those of them that do background work, too.
    background: u64,
    /// The nice value of the VMM's thread that made the first.
    base: i64,
}

impl Crew {
    /// By the processors that the caller may run on, and the knob.
    fn of_the_caller() -> Self {
        // SAFETY: `current` is valid, and both fields may be read at any time.
        let (cpus, priority) = unsafe {
            let task = bindings::get_current();
            ((*task).nr_cpus_allowed, (*task).static_prio)
        };
        let (wanted, background) = match KNOBS.workers() {
            0 => {
                let wanted = u64::try_from(cpus).unwrap_or(1).clamp(1, MOST_AUTOMATIC);
                // While nobody waits, the rest of the processors is for the guest's vCPUs.
                (wanted, wanted.div_ceil(2))
            }
            workers => (workers, workers),
        };
        Self {
            wanted,
            background,
            base: i64::from(priority).saturating_sub(NICE_BASE),
        }
    }
}

/// One mapping thread.
pub(crate) struct MapperThread {
    vm: Arc<Vm>,
    /// The least urgent work that it does.
    least: Urgency,
    /// The nice value of the VMM's thread that made it.
    base: i64,
    /// How much nicer than that it is now.
    nice: Atomic<u64>,
    /// When it looked for work last, by [`now`].
    looked: Atomic<i64>,
}

impl Work for MapperThread {
    fn run(&self) -> bool {
        self.looked.store(now(), Relaxed);
        let Some(job) = self.vm.next_job(self.least) else {
            return false;
        };
        self.be_nice(match job.urgency() {
            Urgency::Background => KNOBS.nice(),
            _ => 0,
        });
        self.vm.finish(job);
        true
    }

    fn patience(&self) -> Option<Jiffies> {
        self.vm.until_deadline(self.looked.load(Relaxed))
    }

    fn killed(&self) {
        self.vm.state.lock().dead = true;
        self.vm.changed.notify();
        self.vm.refuse_all();
    }
}

impl MapperThread {
    fn be_nice(&self, nice: u64) {
        if self.nice.load(Relaxed) != nice {
            self.nice.store(nice, Relaxed);
            let nice = i64::try_from(nice).unwrap_or(NICE_MOST);
            let nice = self.base.saturating_add(nice).min(NICE_MOST);
            // SAFETY: `current` is valid; any value is taken for the next nice value.
            unsafe {
                bindings::set_user_nice(bindings::get_current(), nice as kernel::ffi::c_long)
            };
        }
    }
}

impl Vm {
    /// Sees to it that the VM has mapping threads: as many as the knob says, or else as
    /// the processors that the caller may run on, half of them for background work, too;
    /// fewer where its limits allow no more, until they do.
    ///
    /// Errors: `ERESTARTNOINTR` if a signal has kept it from making one: the call is to be made
    /// again; otherwise there is none at all. Context: an ioctl of the VMM, may sleep.
    pub(super) fn start_workers(self: &Arc<Self>) -> Result {
        let crew = *self
            .state
            .lock()
            .crew
            .get_or_insert_with(Crew::of_the_caller);
        let count = || self.state.lock().workers.len() as u64;
        // Another container may come at the same time.
        while count() < crew.wanted {
            let least = match count() < crew.background {
                true => Urgency::Background,
                false => Urgency::Everything,
            };
            if let Err(e) = self.start_worker(least, crew.base, crew.wanted) {
                return match count() {
                    _ if e == ERESTARTNOINTR => Err(e),
                    0 => Err(e),
                    _ => Ok(()),
                };
            }
        }
        Ok(())
    }

    fn start_worker(self: &Arc<Self>, least: Urgency, base: i64, wanted: u64) -> Result {
        let worker = Arc::new(
            MapperThread {
                vm: self.clone(),
                least,
                base,
                nice: Atomic::new(0),
                looked: Atomic::new(0),
            },
            GFP_KERNEL,
        )?;
        let task = Task::spawn(worker, c"vfio-deferred")?;
        let mut state = self.state.lock();
        let enough = state.workers.len() as u64 >= wanted;
        let room = state.workers.reserve(1, GFP_KERNEL);
        if enough || room.is_err() {
            // The thread's end is waited for, so not under the lock.
            drop(state);
            drop(task);
            return Ok(room?);
        }
        // It has looked for work already, maybe before there was some.
        task.wake();
        Ok(state.workers.push(task, GFP_KERNEL)?)
    }

    fn next_job(&self, least: Urgency) -> Option<Job> {
        let mut state = self.state.lock();
        if state.dead {
            return None;
        }
        if state.deadline.is_some_and(|at| at <= now()) {
            state.deadline = None;
            state.premap = true;
            if state.status(Want::All, Range::ALL) == Progress::Done {
                state.ready = true;
            } else {
                state.wake_workers();
                self.stats.fallbacks.add(1);
                if self.warnings.allows() {
                    pr_info!("{self}: no commit in time, mapping everything in the background\n");
                }
            }
        }
        if let Some(news) = state.news() {
            self.count_news(&news);
            return Some(Job::Tell(news));
        }
        let shortages = state.demands.shortages;
        let job = state.take(least);
        if state.demands.shortages != shortages {
            drop(state);
            self.changed.notify();
        }
        job
    }

    /// How long a thread may sleep that has found nothing to do at `looked`.
    fn until_deadline(&self, looked: i64) -> Option<Jiffies> {
        let state = self.state.lock();
        // A rest that has ended since is one that it has not looked after.
        let rest = Some(state.rest_until).filter(|at| state.premap && *at > looked);
        let at = match (state.deadline, rest) {
            (Some(a), Some(b)) => a.min(b),
            (a, b) => a.or(b)?,
        };
        let left = at.saturating_sub(now()).max(0);
        let ms = u32::try_from(left / NSEC_PER_MSEC).unwrap_or(u32::MAX);
        Some(msecs_to_jiffies(ms).saturating_add(1))
    }

    fn finish(&self, job: Job) {
        match job {
            Job::Map(piece) => self.map(piece),
            Job::Tell(news) => news.tell(),
            Job::Help(Provision {
                id,
                range,
                memory,
                urgency,
            }) => {
                self.populate(id, range, &memory, urgency);
                self.state.lock().helped(id);
                self.changed.notify();
            }
        }
    }

    fn map(&self, piece: Piece) {
        let Piece {
            iommu,
            chunk,
            memory,
            urgency,
        } = piece;
        let id = iommu.id();
        let allowed = user::may_lock(chunk.range().len());
        let populated = memory.map_or(Populated::Done, |memory| {
            let populated = match allowed {
                true => self.populate(id, chunk.range(), &memory, urgency),
                false => Populated::Done,
            };
            self.state.lock().provided(&memory);
            populated
        });
        let result = match populated {
            Populated::Interrupted => Err(EINTR),
            // What the limit refuses needs no memory; and type1 has no limit for what it
            // says about it in the log, as often as the guest asks.
            Populated::Done if !allowed => Err(ENOMEM),
            Populated::Done => iommu.map_chunk(&chunk),
        };
        // The last reference to type1's container must not be ours.
        drop(iommu);
        let failed = result.is_err_and(|e| e != EINTR);
        if failed && urgency == Urgency::Background {
            self.state.lock().rest();
        }
        self.give_back(id, chunk, result);
    }

    /// Lets the kernel provide memory of a chunk, outside type1's lock.
    fn populate(
        &self,
        id: ContainerId,
        chunk: Range,
        memory: &Memory,
        urgency: Urgency,
    ) -> Populated {
        let go_on = || !self.state.lock().interrupts(id, chunk, urgency);
        memory.populate(go_on).unwrap_or(Populated::Done)
    }

    fn give_back(&self, id: ContainerId, chunk: Chunk, result: Result) {
        let mut state = self.state.lock();
        // A slot does not go while a chunk of it is out.
        if let Some(slot) = state.slot(id) {
            match result {
                Err(EINTR) => {
                    slot.table.abort(chunk);
                    // Others have found nothing to do while it was out.
                    state.wake_workers();
                }
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
        if state.status(Want::All, Range::ALL) == Progress::Done {
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
    /// Errors: `EINTR` when the caller dies, `ESRCH` when the VM's process has gone or is
    /// another program now, `ENOMEM` when a piece could not be mapped (the log says why)
    /// or the tables could not grow.
    /// Context: process context, may sleep; not a mapping thread.
    pub(super) fn wait_mapped<R>(
        &self,
        want: Want,
        range: Range,
        done: impl FnOnce(&mut VmState) -> R,
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
        done: impl FnOnce(&mut VmState) -> R,
    ) -> Result<R> {
        let (id, shortages) = {
            let mut state = self.state.lock();
            for slot in state.slots.iter_mut() {
                slot.table.retry(range).map_err(|NoMemory| ENOMEM)?;
            }
            if state.status(want, range) == Progress::Done {
                return Ok(done(&mut state));
            }
            if state.dead {
                return Err(ESRCH);
            }
            let id = state.demands.push(want, range, true)?;
            state.wake_workers();
            (id, state.demands.shortages)
        };
        let mut done = Some(done);
        let result = self
            .changed
            .wait(&self.state, |state| match state.status(want, range) {
                Progress::Done => Some(done.take().map(|done| done(state)).ok_or(EINTR)),
                _ if state.dead => Some(Err(ESRCH)),
                _ if !wanted() => Some(Err(EINTR)),
                Progress::Failed => Some(Err(ENOMEM)),
                Progress::Pending if state.demands.shortages != shortages => Some(Err(ENOMEM)),
                Progress::Pending => None,
            });
        let mut state = self.state.lock();
        state.demands.remove(id);
        drop(state);
        result?
    }

    /// Makes everybody who waits look again whether that is still wanted. Any context.
    pub(crate) fn look_again(&self) {
        self.changed.notify();
    }

    /// Waits until no piece of the VM is out, and keeps it so until the drop: then what
    /// type1 has charged and what it will be asked for are to be told apart.
    pub(super) fn count_exactly(&self) -> Count<'_> {
        self.state.lock().counting += 1;
        self.changed.wait_uninterruptible(&self.state, |state| {
            let busy = state.slots.iter().any(super::Slot::is_busy);
            (!busy).then_some(())
        });
        Count(self)
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

/// See [`Vm::count_exactly`].
pub(super) struct Count<'a>(&'a Vm);

impl Drop for Count<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.counting = state.counting.saturating_sub(1);
        state.wake_workers();
    }
}
