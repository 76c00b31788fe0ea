// SPDX-License-Identifier: GPL-2.0-only

//! A VFIO container: type1's, and what is deferred in front of it.
//!
//! Lock order: `Container::ops` → `VMS` → `Vm::state`; `ops` → type1's own. `ops` puts
//! maps, unmaps, group changes and the opening of devices of one container in a
//! row; the mapping threads do not take it. Nor does what the driver of an emulated
//! device calls ([`Container::settle`]): it may hold a lock that it takes as well when
//! type1 tells it of an unmap, and then `ops` is held. `membership` is a leaf.

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
        Mutex, //
    },
};

use crate::{
    admin::knobs::KNOBS,
    bindings,
    compat::{
        ESTALE,
        THIS, //
    },
    logic::range::{
        Align,
        Range, //
    },
    type1::iommu::{
        ContainerId,
        Iommu, //
    },
    type1::uapi::{
        get_u64,
        DirtyPages,
        DmaMap,
        DmaUnmap, //
    },
    type1::{
        self,
        Inner, //
    },
    vm::Vm, //
    wrap::user,
};

struct Ops {
    /// The core has let go of it: what still comes is too late.
    closed: bool,
    /// The VM that it belongs to, from its first map on.
    vm: Option<Arc<Vm>>,
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

    /// The VM of this container, which it joins now if it can.
    fn vm(self: ArcBorrow<'_, Self>, ops: &mut Ops) -> Result<Option<Arc<Vm>>> {
        if ops.closed {
            return Err(EINVAL);
        }
        if ops.vm.is_some() {
            return Ok(ops.vm.clone());
        }
        if self.membership.lock().masters > 0 {
            ops.early = true;
            return Ok(None);
        }
        // Without a balloon, the gate alone has to hold all its devices.
        let found = match KNOBS.gate_policy() && !ops.ungated && ops.groups > 0 {
            true => Some(Vm::find_or_make()?),
            false => Vm::find(),
        };
        let Some(vm) = found else {
            ops.early = true;
            return Ok(None);
        };
        match vm.join(self.iommu.as_arc_borrow()) {
            Ok(()) => {}
            // It ended while we looked: a process without a balloon again.
            Err(ESTALE) => {
                ops.early = true;
                return Ok(None);
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
            return Ok(None);
        }
        ops.vm = Some(vm.clone());
        Ok(Some(vm))
    }

    /// `VFIO_IOMMU_MAP_DMA`: deferred if it may be, made by type1 otherwise.
    ///
    /// What type1 would refuse is handed to type1 to refuse.
    fn map(self: ArcBorrow<'_, Self>, arg: c_ulong) -> Result<c_long> {
        let direct = || Ok(self.inner().ioctl(type1::MAP_DMA, arg));
        let mut bytes = [0; DmaMap::SIZE];
        if user::read(arg, &mut bytes).is_err() {
            return direct();
        }
        let Some(map) = DmaMap::parse(&bytes) else {
            return direct();
        };
        let mut ops = self.ops.lock();
        let Some(vm) = self.vm(&mut ops)? else {
            return direct();
        };
        if map.flags & DmaMap::VADDR != 0 {
            // New addresses for old maps: these have to exist.
            vm.settle(Range::ALL)?;
            let Some(iova) = Range::from_len(map.iova, map.size) else {
                return direct();
            };
            let ret = match vm.is_block(self.iommu.id(), iova) {
                true => self.move_pieces(&map, iova)?,
                false => direct()?,
            };
            if ret == 0 {
                let vaddrs = Range::from_len(map.vaddr, map.size);
                let plain = vm.is_current() && vaddrs.is_some_and(user::is_plain_ram);
                vm.moved(iova, plain.then_some(map.vaddr));
            }
            return Ok(ret);
        }
        let (Some(iova), Some(vaddrs)) = (
            Range::from_len(map.iova, map.size),
            Range::from_len(map.vaddr, map.size),
        ) else {
            return direct();
        };
        // Whoever else has the container maps memory of his own, which no thread of the VM
        // can reach, and no guest may name.
        let plain = vm.is_current() && user::is_plain_ram(vaddrs);
        if plain && !ops.ungated && !ops.early {
            if let Some(available) = self.may_defer(&map, iova) {
                if vm.defer(self.iommu.id(), iova, map.vaddr, available)? {
                    return self.map_eagerly(&vm, iova);
                }
            }
        }
        if map.is_wellformed() {
            vm.check_overlap(self.iommu.id(), iova)?;
        }
        let ret = self.inner().ioctl(type1::MAP_DMA, arg);
        if !plain {
            vm.pages_mapped();
        }
        if ret == 0 {
            // The balloon's device writes: ROM is not for the guest to name.
            let ram = plain && map.flags == DmaMap::READ_WRITE;
            vm.record(self.iommu.id(), iova, map.vaddr, ram);
        }
        Ok(ret)
    }

    /// Gives a new address to each piece of a deferred map that type1 now has.
    ///
    /// Where one ends is not recorded: at most [`Self::LONGEST`] after its start, at a
    /// multiple of [`Self::PIECE`]. type1 refuses any other end and changes nothing.
    fn move_pieces(&self, map: &DmaMap, iova: Range) -> Result<c_long> {
        let page = user::UserPage::new()?;
        let mut at = iova.start();
        while at < iova.end() {
            let mut end = Self::LONGEST.next_boundary(at).min(iova.end());
            loop {
                let piece = DmaMap {
                    vaddr: map.vaddr.wrapping_add(at - iova.start()),
                    iova: at,
                    size: end - at,
                    ..*map
                };
                page.write(&piece.bytes())?;
                match self.inner().ioctl(type1::MAP_DMA, page.addr()) {
                    0 => break,
                    // The piece ends before: try the next lower end.
                    ret if ret == EINVAL.to_errno() as c_long => {
                        end = Self::PIECE.down(end - 1);
                        if end <= at {
                            return Ok(ret);
                        }
                    }
                    ret => return Ok(ret),
                }
            }
            at = end;
        }
        Ok(0)
    }

    /// The most of `chunk_mib`.
    const LONGEST: Align = Align::of_shift(30);
    /// The granule of the balloon, at which pieces end.
    const PIECE: Align = Align::of_shift(21);

    /// `VFIO_IOMMU_DIRTY_PAGES`: of whole maps, so there have to be some.
    fn dirty_pages(&self, arg: c_ulong) -> Result<c_long> {
        let ops = self.ops.lock();
        if let Some(vm) = &ops.vm {
            vm.settle(Range::ALL)?;
            let mut bytes = [0; DirtyPages::SIZE];
            let asked = user::read(arg, &mut bytes).ok();
            let asked = asked.and_then(|()| DirtyPages::parse(&bytes)?.range());
            if asked.is_some_and(|range| vm.bisects(self.iommu.id(), range)) {
                return Err(EINVAL);
            }
        }
        Ok(self.inner().ioctl(type1::DIRTY_PAGES, arg))
    }

    /// How many mappings type1 has left, if it would make this one and it is not too low.
    fn may_defer(&self, map: &DmaMap, iova: Range) -> Option<u32> {
        if !map.is_wellformed()
            || map.flags != DmaMap::READ_WRITE
            || iova.start() < KNOBS.threshold()
        {
            return None;
        }
        // Without the page that asking takes, type1 has the last word.
        let info = self.iommu.info().ok().flatten()?;
        info.allows(iova, map.vaddr).then_some(info.available)
    }

    /// Maps the eager windows of what was just deferred, before its `MAP_DMA` returns.
    fn map_eagerly(&self, vm: &Vm, iova: Range) -> Result<c_long> {
        for window in KNOBS.eager().windows(iova) {
            if let Err(e) = vm.settle(window) {
                vm.undo(self.iommu.id(), iova, || self.iommu.unmap(iova));
                return Err(e);
            }
        }
        Ok(0)
    }

    /// `VFIO_IOMMU_UNMAP_DMA`, with the size that user space expects.
    fn unmap(self: ArcBorrow<'_, Self>, arg: c_ulong) -> Result<c_long> {
        let direct = || Ok(self.inner().ioctl(type1::UNMAP_DMA, arg));
        let ops = self.ops.lock();
        let Some(vm) = ops.vm.as_ref() else {
            return direct();
        };
        let mut bytes = [0; DmaUnmap::SIZE];
        if user::read(arg, &mut bytes).is_err() {
            return direct();
        }
        let Some(unmap) = DmaUnmap::parse(&bytes) else {
            return direct();
        };
        if unmap.flags & (DmaUnmap::GET_DIRTY_BITMAP | DmaUnmap::VADDR) != 0 {
            // Both are about whole maps: there have to be some.
            vm.settle(Range::ALL)?;
        }
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
        let mut ret = 0;
        let more = vm.unmap(self.iommu.id(), range, || {
            ret = self.inner().ioctl(type1::UNMAP_DMA, arg);
            match ret {
                0 => Ok(()),
                _ => Err(EINVAL),
            }
        });
        if ret != 0 {
            return Ok(ret);
        }
        self.report_unmapped(arg, more?)?;
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
        let mut ops = self.ops.lock();
        if let (Some(vm), false) = (&ops.vm, gateable) {
            vm.settle(Range::ALL)?;
        }
        // What does not fit must not be tried, or it would have failed.
        if let Some(vm) = &ops.vm {
            vm.pause(self.iommu.id());
        }
        let result = attach().and_then(|()| self.check_deferred(&ops).inspect_err(|_| detach()));
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
    fn check_deferred(&self, ops: &Ops) -> Result {
        let Some(vm) = &ops.vm else {
            return Ok(());
        };
        let Some(info) = self.iommu.info()? else {
            return Ok(());
        };
        vm.each_block(self.iommu.id(), |iova, vaddr| {
            info.allows(iova, vaddr).then_some(()).ok_or(EINVAL)
        })
    }

    /// A group leaves by `detach`. After the last one nothing is mapped any more.
    pub(crate) fn detach_group(&self, detach: impl FnOnce()) {
        let mut ops = self.ops.lock();
        if let Some(vm) = &ops.vm {
            vm.pause(self.iommu.id());
        }
        detach();
        ops.groups = ops.groups.saturating_sub(1);
        if let (Some(vm), true) = (&ops.vm, ops.groups > 0) {
            vm.resume(self.iommu.id());
        }
    }
}
