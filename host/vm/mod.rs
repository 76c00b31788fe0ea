// SPDX-License-Identifier: GPL-2.0-only

//! One VM, as the host sees it: a process with a balloon and containers.
//!
//! A [`Vm`] is found by its `mm`. It exists from the moment its VMM binds one of
//! our balloon devices until both that and its last container are gone. Each of
//! its containers has a *slot* with a table of the guest RAM that was deferred.
//!
//! - [`mapper`]: the threads that map, and how to wait for them,
//! - [`schedule`]: what they do next,
//! - [`ram`]: what the containers' ioctls do to the tables,
//! - [`masters`]: devices that master the bus,
//! - [`requests`]: what these ask for, and what they are told,
//! - [`guest`]: what the balloon's messages do to them,
//! - [`stats`]: counters, and the VM's directory in sysfs.
//!
//! # Lock order
//!
//! `Container::ops` → `VMS` → `Vm::state`, and `Container::ops` → type1's own locks.
//! The mapping threads call type1 with none of ours held. `Vm::state` is never held
//! while type1 is called, a thread stopped or a directory removed; `VMS` is while a VM's
//! directory is removed, whose readers take `Vm::state`.

mod guest;
mod mapper;
mod masters;
mod populate;
mod ram;
mod requests;
mod schedule;
mod stats;

pub(crate) use guest::deflate_on;
pub(crate) use masters::{
    BusMaster,
    MasterId, //
};

use kernel::{
    current,
    fmt,
    mm::Mm,
    prelude::*,
    str::CString,
    sync::{
        aref::ARef,
        global_lock,
        new_mutex,
        Arc,
        ArcBorrow,
        Mutex,
        MutexGuard, //
    },
    task::Pid,
    time::NSEC_PER_SEC, //
};

use crate::{
    admin::knobs::KNOBS,
    compat::ESTALE,
    logic::{
        budget::Budget,
        memory_map::MemoryMap,
        range::{
            Align,
            Range, //
        },
        range_map::RangeMap,
        state::{
            Progress,
            Want, //
        },
        table::Table, //
    },
    type1::iommu::{
        ContainerId,
        Iommu, //
    },
    wrap::kobject::{
        Directory,
        Parent, //
    },
    wrap::ratelimit::Ratelimit,
    wrap::task::Task,
    wrap::time::now,
    wrap::wait::{
        new_wait_queue,
        WaitQueue, //
    },
};

use mapper::{
    Crew,
    MapperThread, //
};
use masters::Master;
use ram::Direct;
use schedule::{
    Demands,
    Provision, //
};
use stats::Stats;

/// The size that a balloon is asked to have.
pub(crate) trait BalloonTarget: Send {
    /// Lowers it to `bytes`, and tells a running driver. Of two calls the lower one wins.
    ///
    /// Context: any that may take a spinlock.
    fn set_target(&self, bytes: u64);
}

/// A container of a VM.
struct Slot {
    iommu: Arc<Iommu>,
    /// What was deferred.
    table: Table,
    /// What type1 was given at once.
    direct: RangeMap<Direct>,
    /// No piece crosses a multiple of it.
    max: Align,
    /// The fewest pieces that the table can be made of.
    windows: u64,
    /// How many pieces there may be.
    budget: Budget,
    /// Nothing of it may be mapped right now: it is being unmapped, or its groups change.
    paused: bool,
    /// Threads that help with the memory of its pieces.
    helpers: u32,
    /// Calls of type1 that mapped a piece of the table.
    mappings: u64,
}

/// What [`Vm::state`] protects.
struct VmState {
    slots: KVec<Slot>,
    /// Where the guest's RAM is, for translating what it says: see [`VmState::translate`].
    memory: MemoryMap,
    /// Where threads are in the guest's memory.
    accesses: KVec<Range>,
    /// Unmaps that wait for these.
    leaving: u32,
    /// What threads there are to be, from the first on.
    crew: Option<Crew>,
    workers: KVec<Task<MapperThread>>,
    demands: Demands,
    /// The memory of the pieces that are out.
    provisions: KVec<Provision>,
    /// The balloon, while its device is bound.
    balloon: Option<KBox<dyn BalloonTarget>>,
    /// Nothing of the VM may be mapped right now: somebody counts what is.
    counting: u32,
    /// Devices that master the bus, or have asked to.
    devices: KVec<Master>,
    /// No operating system has shown itself: the firmware phase.
    firmware: bool,
    /// The guest has committed, or is fully mapped: nothing new is deferred.
    ready: bool,
    /// Everything is to be mapped in the background.
    premap: bool,
    /// Without a balloon: mapped from the start, and held back by the gate alone.
    gate_only: bool,
    /// Background work rests until then, by [`now`]: the last try failed.
    rest_until: i64,
    /// When `premap` is set if nobody has committed by then, by [`now`].
    deadline: Option<i64>,
    /// The process is gone or the VM is taken down: nothing will be mapped any more.
    dead: bool,
}

type StateGuard<'a> = MutexGuard<'a, VmState>;

impl Slot {
    /// Whether a thread works on a piece of it.
    fn is_busy(&self) -> bool {
        let totals = self.table.totals();
        totals.mapping_outside | totals.mapping_balloon != 0 || self.helpers > 0
    }

    /// Bytes of it that are not mapped.
    fn unmapped(&self) -> u64 {
        self.table.totals().unmapped()
    }

    /// Bytes of it that are not mapped and in the balloon.
    fn ballooned(&self) -> u64 {
        let totals = self.table.totals();
        let sum = totals.ballooned.saturating_add(totals.mapping_balloon);
        sum.saturating_add(totals.failed_balloon)
    }
}

/// When the calling process was started, by [`now`].
fn process_start() -> i64 {
    // SAFETY: The leader of the current thread's group lives as long as the thread.
    let start = unsafe { (*(*crate::bindings::get_current()).group_leader).start_time };
    i64::try_from(start).unwrap_or(i64::MAX)
}

impl VmState {
    /// How far all containers are from having what is wanted mapped.
    fn status(&self, want: Want, range: Range) -> Progress {
        let whole = range == Range::ALL;
        let slots = self.slots.iter().map(|slot| match whole {
            true => slot.table.totals().status(want),
            false => slot.table.status(want, range),
        });
        slots.max().unwrap_or(Progress::Done)
    }

    fn slot(&mut self, id: ContainerId) -> Option<&mut Slot> {
        self.slots.iter_mut().find(|slot| slot.iommu.id() == id)
    }

    /// The largest sum of any container.
    fn most(&self, bytes: impl Fn(&Slot) -> u64) -> u64 {
        self.slots.iter().map(bytes).max().unwrap_or(0)
    }

    fn in_use(&self) -> bool {
        self.balloon.is_some() || !self.slots.is_empty()
    }
}

/// A device that comes with the VM is there this long after its start, in nanoseconds.
/// One that comes later meets an operating system, not firmware.
const STARTING: i64 = 60 * NSEC_PER_SEC;

/// A VM.
#[pin_data]
pub(crate) struct Vm {
    mm: ARef<Mm>,
    pid: Pid,
    /// When it was started, by [`now`].
    started: i64,
    #[pin]
    state: Mutex<VmState>,
    /// Notified after each change that somebody may wait for.
    #[pin]
    changed: WaitQueue,
    /// Of what its guest can have logged.
    #[pin]
    warnings: Ratelimit,
    stats: Stats,
}

/// A VM that can be found, and its directory.
struct Entry {
    vm: Arc<Vm>,
    directory: Option<Directory<Vm>>,
}

/// All VMs.
struct Registry {
    entries: KVec<Entry>,
    /// Where their directories are.
    directory: Option<Arc<Directory<()>>>,
}

global_lock! {
    // SAFETY: Initialised in `init`, before anything can call in here.
    unsafe(uninit) static VMS: Mutex<Registry> = Registry {
        entries: KVec::new(),
        directory: None,
    };
}

/// Says under which directory each VM has its own; `None`: the module goes. May sleep.
pub(crate) fn set_directory(directory: Option<Arc<Directory<()>>>) {
    let mut vms = VMS.lock();
    let old = core::mem::replace(&mut vms.directory, directory);
    if vms.entries.is_empty() {
        // A static is never dropped: what an emptied vector keeps would be lost.
        vms.entries = KVec::new();
    }
    drop(vms);
    // Waits for readers, so not under the lock.
    drop(old);
}

/// Makes the registry usable.
///
/// # Safety
///
/// Called once, at module initialisation, before any other function here.
pub(crate) unsafe fn init() {
    // SAFETY: Called once, before anybody uses the registry, by this function's requirement.
    unsafe { VMS.init() };
}

impl fmt::Display for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid)
    }
}

impl Vm {
    /// `started`: see the field.
    fn new(started: i64) -> Result<Arc<Self>> {
        let task = current!();
        let mm = task.mm().ok_or(EINVAL)?;
        Arc::pin_init(
            pin_init!(Self {
                mm: ARef::from(&**mm),
                pid: task.group_leader().pid(),
                started,
                state <- new_mutex!(VmState {
                    slots: KVec::new(),
                    memory: MemoryMap::new(),
                    accesses: KVec::new(),
                    leaving: 0,
                    crew: None,
                    workers: KVec::new(),
                    demands: Demands::new(),
                    provisions: KVec::new(),
                    balloon: None,
                    counting: 0,
                    devices: KVec::new(),
                    firmware: true,
                    ready: false,
                    premap: false,
                    gate_only: false,
                    rest_until: 0,
                    deadline: None,
                    dead: false,
                }),
                changed <- new_wait_queue!("vfio_iommu_deferred: vm"),
                warnings <- Ratelimit::new(),
                stats: Stats::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// Whether it is the calling process: others may have its containers, too, after a
    /// `fork()` or by passing descriptors.
    pub(crate) fn is_current(&self) -> bool {
        current!()
            .mm()
            .is_some_and(|mm| core::ptr::eq(mm.as_raw(), self.mm.as_raw()))
    }

    /// The VM of the calling process.
    pub(crate) fn find() -> Option<Arc<Self>> {
        let vms = VMS.lock();
        let mut entries = vms.entries.iter();
        let entry = entries.find(|entry| entry.vm.is_current())?;
        Some(entry.vm.clone())
    }

    /// Makes the calling process a VM with a balloon. One balloon a VM: `EBUSY`.
    ///
    /// Context: an ioctl of the VMM, may sleep.
    pub(crate) fn bind(balloon: KBox<dyn BalloonTarget>) -> Result<Arc<Self>> {
        let mut vms = VMS.lock();
        if let Some(entry) = vms.entries.iter().find(|entry| entry.vm.is_current()) {
            let mut state = entry.vm.state.lock();
            if state.balloon.is_some() {
                return Err(EBUSY);
            }
            state.balloon = Some(balloon);
            return Ok(entry.vm.clone());
        }
        let vm = Self::new(now())?;
        vm.state.lock().balloon = Some(balloon);
        Self::register(&mut vms, &vm)?;
        Ok(vm)
    }

    /// The VM of the calling process, which is made one if it is none.
    ///
    /// It has no balloon: its memory is mapped in the background from the start, and
    /// the bus-master gate waits for what is missing. The caller joins it, or calls
    /// [`Vm::drop_if_unused`]. Context: an ioctl of the VMM, may sleep.
    pub(crate) fn find_or_make() -> Result<Arc<Self>> {
        let mut vms = VMS.lock();
        if let Some(entry) = vms.entries.iter().find(|entry| entry.vm.is_current()) {
            return Ok(entry.vm.clone());
        }
        // It may have run for long, and be given a device now.
        let vm = Self::new(process_start())?;
        vm.state.lock().gate_only = true;
        Self::register(&mut vms, &vm)?;
        Ok(vm)
    }

    fn register(vms: &mut Registry, vm: &Arc<Self>) -> Result {
        // The programs that the process was before an `exec()`, whose descriptors it has
        // kept: the name is for what it is now. Readers do not take this lock.
        for entry in vms.entries.iter_mut().filter(|e| e.vm.pid == vm.pid) {
            entry.directory = None;
        }
        // A VM without a directory is better than none.
        let directory = Self::directory(vm, vms.directory.as_deref())
            .inspect_err(|e| pr_warn!("{vm}: no sysfs directory: {e:?}\n"))
            .ok();
        vms.entries.push(
            Entry {
                vm: vm.clone(),
                directory,
            },
            GFP_KERNEL,
        )?;
        Ok(())
    }

    fn directory(vm: &Arc<Self>, parent: Option<&Directory<()>>) -> Result<Directory<Self>> {
        let name = CString::try_from_fmt(fmt!("{}", vm.pid))?;
        let parent = Parent::directory(parent.ok_or(ENODEV)?);
        Directory::new(parent, &name, vm.clone(), stats::FILES)
    }

    /// The balloon is unbound. The guest's use of it ends like a reset.
    ///
    /// Context: any process context, may sleep; `current->mm` may be NULL.
    pub(crate) fn unbind(&self) {
        let balloon = self.state.lock().balloon.take();
        drop(balloon);
        self.balloon_reset();
        self.drop_if_unused();
    }

    /// Gives `container` a slot. `ESTALE` if the VM was taken down meanwhile.
    pub(crate) fn join(&self, iommu: ArcBorrow<'_, Iommu>) -> Result {
        let vms = VMS.lock();
        if !vms
            .entries
            .iter()
            .any(|entry| core::ptr::eq(&*entry.vm, self))
        {
            return Err(ESTALE);
        }
        let slot = Slot {
            iommu: iommu.into(),
            table: Table::new(),
            direct: RangeMap::new(),
            max: Align::at_most(KNOBS.chunk()),
            windows: 0,
            budget: Budget::NONE,
            paused: false,
            helpers: 0,
            mappings: 0,
        };
        let mut state = self.state.lock();
        state.slots.push(slot, GFP_KERNEL)?;
        if now().saturating_sub(self.started) > STARTING {
            state.firmware = false;
        }
        Ok(())
    }

    /// Takes the container's slot away, once nothing of it is being mapped.
    ///
    /// Context: as [`Vm::unbind`]; waits for chunks that are being mapped.
    pub(crate) fn leave(&self, id: ContainerId) {
        self.pause(id);
        {
            let mut state = self.state.lock();
            state.slots.retain(|slot| slot.iommu.id() != id);
            state.wake_workers();
            state.nothing_left();
        }
        self.changed.notify();
        self.drop_if_unused();
    }

    /// Takes the VM down when neither a balloon nor a container is left.
    pub(crate) fn drop_if_unused(&self) {
        let (vm, workers) = {
            let mut vms = VMS.lock();
            let workers = {
                let mut state = self.state.lock();
                if state.in_use() {
                    return;
                }
                state.dead = true;
                core::mem::take(&mut state.workers)
            };
            let index = vms.entries.iter();
            let index = index.map(|e| &*e.vm).position(|vm| core::ptr::eq(vm, self));
            let entry = index.and_then(|i| vms.entries.remove(i).ok());
            // Before the process can become a VM again, whose directory has the same name.
            // Waits for readers, who take no more than `state`.
            (entry.map(|Entry { vm, directory: _ }| vm), workers)
        };
        self.changed.notify();
        // Waits for the threads, so no lock is held. The caller may be such a thread, past
        // its last `run`.
        drop(workers);
        drop(vm);
    }
}
