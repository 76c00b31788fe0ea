// SPDX-License-Identifier: GPL-2.0-only

//! A VFIO container: type1's, and what is deferred in front of it.
//!
//! Lock order: `Container::ops` → `VMS` → `Vm::state`; `ops` → type1's own. `ops` puts
//! maps, unmaps, group changes and the opening of devices of one container in a
//! row; the mapping threads do not take it. Nor does what the driver of an emulated
//! device calls ([`Container::settle`]): it may hold a lock that it takes as well when
//! type1 tells it of an unmap, and then `ops` is held. `membership` is a leaf.
//!
//! Whoever waits for `ops` cannot be killed, so nobody holds it while memory is mapped that
//! was deferred ([`Container::lock_settled`]). A map that type1 makes, and the eager windows of
//! one that is deferred, are made with it: type1 holds a lock of its own for as long.

mod map;
mod masters;

use masters::Membership;

use kernel::{
    ffi::{
        c_long,
        c_ulong, //
    },
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        ArcBorrow,
        Mutex,
        MutexGuard, //
    },
};

use crate::{
    admin::knobs::KNOBS,
    bindings,
    compat::{
        ESTALE,
        THIS, //
    },
    logic::range::Range,
    type1::{
        self,
        info::Info,
        iommu::{
            ContainerId,
            Iommu, //
        },
        uapi::{
            get_u64,
            DirtyPages,
            DmaUnmap, //
        },
        Inner, //
    },
    vm::Vm,
    wrap::user, //
};

/// What type1 takes, as long as its groups stay the same.
struct Limits {
    info: Info,
    /// How many mappings, those included that it has.
    capacity: u64,
}

struct Ops {
    /// The core has let go of it: what still comes is too late.
    closed: bool,
    /// What type1 takes, once somebody had to know.
    limits: Option<Limits>,
    /// The VM that it belongs to, from its first map on.
    vm: Option<Arc<Vm>>,
    /// Something of it was deferred, and may not be unmapped yet.
    deferred: bool,
    /// Something of it was mapped before it had a VM: of that no table knows, so nothing
    /// of it is deferred.
    early: bool,
    /// Groups that are attached.
    groups: usize,
    /// It has, or has had, a device that the bus-master gate cannot hold back.
    ungated: bool,
}

/// A reference to this module, given back on drop.
struct ThisModule;

impl ThisModule {
    /// Context: a call of the VFIO core for a container, or to make one.
    fn get() -> Self {
        // SAFETY: The module is not on its way out: the core has a reference for this call.
        unsafe { bindings::__module_get(THIS.as_ptr()) };
        Self
    }
}

impl Drop for ThisModule {
    fn drop(&mut self) {
        // SAFETY: Taken in `get`.
        unsafe { bindings::module_put(THIS.as_ptr()) };
    }
}

/// One container, from `VFIO_SET_IOMMU` on.
#[pin_data]
pub(crate) struct Container {
    iommu: Arc<Iommu>,
    /// Of `VFIO_TYPE1v2_IOMMU`, whose unmaps never cut a map in two.
    v2: bool,
    #[pin]
    ops: Mutex<Ops>,
    #[pin]
    membership: Mutex<Membership>,
    /// The core gives its own back while an ioctl of the container may still run. Dropped last.
    _module: ThisModule,
}

impl Container {
    /// Wraps a container of type1.
    pub(crate) fn new(inner: Inner, v2: bool) -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                iommu: Iommu::new(inner)?,
                v2,
                ops <- new_mutex!(Ops {
                    closed: false,
                    limits: None,
                    deferred: false,
                    vm: None,
                    early: false,
                    groups: 0,
                    ungated: false,
                }),
                membership <- new_mutex!(Membership {
                    vm: None,
                    masters: 0,
                }),
                _module: ThisModule::get(),
            }? Error),
            GFP_KERNEL,
        )
    }

    /// Tells it from all others.
    pub(crate) fn id(&self) -> ContainerId {
        self.iommu.id()
    }

    /// type1's container.
    pub(crate) fn inner(&self) -> &Inner {
        self.iommu.inner()
    }

    /// The last group is gone: nothing of it may be mapped after this.
    ///
    /// Context: any process context, `current->mm` may be NULL; may sleep.
    pub(crate) fn close(&self) {
        let vm = {
            let mut ops = self.ops.lock();
            ops.closed = true;
            self.membership.lock().vm.take();
            ops.vm.take()
        };
        if let Some(vm) = vm {
            vm.leave(self.iommu.id());
        }
    }

    /// An ioctl of user space; `arg` is its argument.
    ///
    /// Context: process context of whoever has the container open, may sleep.
    pub(crate) fn ioctl(self: ArcBorrow<'_, Self>, cmd: u32, arg: c_ulong) -> Result<c_long> {
        match cmd {
            type1::MAP_DMA if self.v2 => self.map(arg),
            type1::UNMAP_DMA if self.v2 => self.unmap(arg),
            type1::DIRTY_PAGES => self.dirty_pages(arg),
            _ => Ok(self.inner().ioctl(cmd, arg)),
        }
    }

    /// Takes `ops` with all mapped that was deferred.
    ///
    /// Waits for that without the lock, killably; the errors are those of [`Vm::settle`].
    fn lock_settled(&self) -> Result<MutexGuard<'_, Ops>> {
        loop {
            if let Some(vm) = self.vm_now() {
                vm.settle(Range::ALL)?;
            }
            let ops = self.ops.lock();
            // More may have been deferred meanwhile, or it has a VM now.
            if ops.vm.as_ref().is_none_or(|vm| vm.is_settled()) {
                return Ok(ops);
            }
        }
    }

    /// Sees to it that it has joined its VM, if it can.
    fn join_vm(&self, ops: &mut Ops) -> Result {
        if ops.closed {
            return Err(EINVAL);
        }
        if ops.vm.is_some() {
            return Ok(());
        }
        if self.membership.lock().masters > 0 {
            ops.early = true;
            return Ok(());
        }
        // Without a balloon, the gate alone has to hold all its devices.
        let found = match KNOBS.gate_policy() && !ops.ungated && ops.groups > 0 {
            true => Some(Vm::find_or_make()?),
            false => Vm::find(),
        };
        let Some(vm) = found else {
            ops.early = true;
            return Ok(());
        };
        match vm.join(self.iommu.as_arc_borrow()) {
            Ok(()) => {}
            // It ended while we looked: a process without a balloon again.
            Err(ESTALE) => {
                ops.early = true;
                return Ok(());
            }
            Err(e) => {
                vm.drop_if_unused();
                return Err(e);
            }
        }
        if ops.early {
            pr_warn!("{vm}: RAM was mapped before the balloon was there, so nothing is deferred: put its device before any vfio-pci\n");
        }
        let mastered = {
            let mut membership = self.membership.lock();
            let free = membership.masters == 0;
            membership.vm = free.then(|| vm.clone());
            !free
        };
        if mastered {
            // A device came to master the bus while we looked.
            vm.leave(self.iommu.id());
            ops.early = true;
            return Ok(());
        }
        ops.vm = Some(vm);
        Ok(())
    }

    /// `VFIO_IOMMU_DIRTY_PAGES`: of whole maps, so there have to be some.
    fn dirty_pages(&self, arg: c_ulong) -> Result<c_long> {
        let ops = self.lock_settled()?;
        if let Some(vm) = &ops.vm {
            let mut bytes = [0; DirtyPages::SIZE];
            let asked = user::read(arg, &mut bytes).ok();
            let asked = asked.and_then(|()| DirtyPages::parse(&bytes)?.range());
            if asked.is_some_and(|range| vm.bisects(self.iommu.id(), range)) {
                return Err(EINVAL);
            }
        }
        Ok(self.inner().ioctl(type1::DIRTY_PAGES, arg))
    }

    /// What type1 takes: it is asked once after each change of the groups.
    fn limits<'a>(&self, limits: &'a mut Option<Limits>, vm: &Vm) -> Result<Option<&'a Limits>> {
        if limits.is_none() {
            let mappings = vm.mappings(self.iommu.id());
            *limits = self.iommu.info()?.map(|info| Limits {
                capacity: mappings.saturating_add(info.available.into()),
                info,
            });
        }
        Ok(limits.as_ref())
    }

    /// `VFIO_IOMMU_UNMAP_DMA`, with the size that user space expects.
    fn unmap(self: ArcBorrow<'_, Self>, arg: c_ulong) -> Result<c_long> {
        let direct = || Ok(self.inner().ioctl(type1::UNMAP_DMA, arg));
        let mut bytes = [0; DmaUnmap::SIZE];
        if user::read(arg, &mut bytes).is_err() {
            return direct();
        }
        let Some(unmap) = DmaUnmap::parse(&bytes) else {
            return direct();
        };
        let mut guard = match unmap.flags & (DmaUnmap::GET_DIRTY_BITMAP | DmaUnmap::VADDR) {
            0 => self.ops.lock(),
            // Both are about whole maps: there have to be some.
            _ => self.lock_settled()?,
        };
        let ops = &mut *guard;
        let Some(vm) = &ops.vm else {
            return direct();
        };
        if unmap.flags & DmaUnmap::VADDR != 0 {
            let range = unmap.range();
            return match range.is_some_and(|range| vm.bisects(self.iommu.id(), range)) {
                true => Err(EINVAL),
                false => direct(),
            };
        }
        let Some(range) = unmap.range() else {
            return direct();
        };
        let id = self.iommu.id();
        let mut ret = 0;
        let mut inner = || {
            ret = self.inner().ioctl(type1::UNMAP_DMA, arg);
            match ret {
                0 => Ok(()),
                _ => Err(EINVAL),
            }
        };
        let more = match ops.deferred {
            true => vm.unmap(id, range, inner),
            false => inner().map(|()| {
                vm.forget(id, range);
                0
            }),
        };
        if ret != 0 {
            return Ok(ret);
        }
        let more = more?;
        if more != 0 || ops.deferred {
            ops.deferred = vm.has_blocks(id);
            self.report_unmapped(arg, more)?;
        }
        Ok(0)
    }

    /// Adds `more` to the size that type1 has written back.
    fn report_unmapped(&self, arg: c_ulong, more: u64) -> Result {
        if more == 0 {
            return Ok(());
        }
        let at = arg.wrapping_add(DmaUnmap::SIZE_OFFSET);
        let mut bytes = [0; 8];
        user::read(at, &mut bytes)?;
        let size = get_u64(&bytes, 0).unwrap_or(0).saturating_add(more);
        user::write(at, &size.to_ne_bytes())
    }

    /// Maps all of `range` that was deferred, before type1 is asked about it.
    ///
    /// Context: the driver of an emulated device, with whatever locks it has. Since its
    /// group was attached there is nothing left to map, so that this does not sleep for it.
    pub(crate) fn settle(&self, range: Range) -> Result {
        let vm = self.vm_now();
        vm.map_or(Ok(()), |vm| vm.settle_in(self.iommu.id(), range))
    }

    /// A group joins by `attach`; `gateable`: all its devices are PCI devices. It leaves
    /// again by `detach`, with `EINVAL`, if what is deferred does not fit it.
    pub(crate) fn attach_group(
        &self,
        gateable: bool,
        attach: impl FnOnce() -> Result,
        detach: impl FnOnce(),
    ) -> Result {
        let mut ops = match gateable {
            true => self.ops.lock(),
            false => self.lock_settled()?,
        };
        // What does not fit must not be tried, or it would have failed.
        if let Some(vm) = &ops.vm {
            vm.pause(self.iommu.id());
        }
        ops.limits = None;
        let result = attach().and_then(|()| {
            self.check_deferred(&mut ops).inspect_err(|_| {
                ops.limits = None;
                detach();
            })
        });
        if let Some(vm) = &ops.vm {
            vm.resume(self.iommu.id());
            vm.pages_mapped();
        }
        result?;
        ops.ungated |= !gateable;
        ops.groups += 1;
        Ok(())
    }

    /// Whether what is deferred fits the groups that are attached now; `EINVAL` if not.
    fn check_deferred(&self, ops: &mut Ops) -> Result {
        let Ops { vm, limits, .. } = ops;
        let Some(vm) = vm else {
            return Ok(());
        };
        let Some(limits) = self.limits(limits, vm)? else {
            return Ok(());
        };
        vm.each_block(self.iommu.id(), |iova, vaddr| {
            let allowed = limits.info.allows(iova, vaddr);
            allowed.then_some(()).ok_or(EINVAL)
        })
    }

    /// A group leaves by `detach`. After the last one nothing is mapped any more.
    pub(crate) fn detach_group(&self, detach: impl FnOnce()) {
        let mut ops = self.ops.lock();
        if let Some(vm) = &ops.vm {
            vm.pause(self.iommu.id());
        }
        detach();
        ops.limits = None;
        match ops.groups.checked_sub(1) {
            Some(groups) => ops.groups = groups,
            None => kernel::pr_warn_once!("more groups are detached than were attached\n"),
        }
        if let (Some(vm), true) = (&ops.vm, ops.groups > 0) {
            vm.resume(self.iommu.id());
        }
    }
}
