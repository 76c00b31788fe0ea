// SPDX-License-Identifier: GPL-2.0-only

//! `VFIO_IOMMU_MAP_DMA` of a container: deferred, or made at once.
//!
//! Lock order: see [`super`].

use kernel::{
    ffi::{
        c_long,
        c_ulong, //
    },
    prelude::*,
    sync::ArcBorrow, //
};

use crate::{
    admin::knobs::KNOBS,
    logic::{
        memory_map::UserRange,
        range::{
            Align,
            Range, //
        },
    },
    type1::{
        self,
        uapi::DmaMap, //
    },
    vm::Vm,
    wrap::user, //
};

use super::{
    Container,
    Limits, //
};

impl Container {
    /// `VFIO_IOMMU_MAP_DMA`: deferred if it may be, made by type1 otherwise.
    ///
    /// What type1 would refuse is handed to type1 to refuse.
    pub(super) fn map(self: ArcBorrow<'_, Self>, arg: c_ulong) -> Result<c_long> {
        let direct = || Ok(self.inner().ioctl(type1::MAP_DMA, arg));
        let mut bytes = [0; DmaMap::SIZE];
        if user::read(arg, &mut bytes).is_err() {
            return direct();
        }
        let Some(map) = DmaMap::parse(&bytes) else {
            return direct();
        };
        if map.flags & DmaMap::VADDR != 0 {
            return self.map_vaddr(&map, arg);
        }
        let mut guard = self.ops.lock();
        let ops = &mut *guard;
        self.join_vm(ops)?;
        let Some(vm) = &ops.vm else {
            return direct();
        };
        let (Some(iova), Some(vaddrs)) = (
            Range::from_len(map.iova, map.size),
            Range::from_len(map.vaddr, map.size),
        ) else {
            return direct();
        };
        let Some(user) = UserRange::new(iova, map.vaddr) else {
            return direct();
        };
        let id = self.iommu.id();
        let outlook = vm.outlook(id, &user);
        // Whoever else has the container maps memory of his own, which no thread of the VM
        // can reach, and no guest may name. The balloon's device writes: nor may it name ROM.
        let plain = || vm.is_current() && user::is_plain_ram(vaddrs);
        let ram = map.flags == DmaMap::READ_WRITE && outlook.may_be_named && plain();
        let is_memory = ram || outlook.is_ram || plain();
        if ram && outlook.may_wait && !ops.ungated && !ops.early {
            if let Some(capacity) = self.may_defer(&mut ops.limits, vm, &map, iova) {
                if vm.defer(id, user, capacity)? {
                    ops.deferred = true;
                    return self.map_eagerly(vm, iova);
                }
            }
        }
        if map.is_wellformed() {
            if outlook.overlaps {
                return Err(EEXIST);
            }
            // What is no RAM is not charged.
            if outlook.promised && (ram || plain()) && self.takes(&mut ops.limits, vm, &map, iova) {
                vm.keeps_promise(iova.len())?;
            }
        }
        let ret = self.inner().ioctl(type1::MAP_DMA, arg);
        if !is_memory {
            vm.pages_mapped();
        }
        if ret == 0 {
            vm.record(id, user, ram);
        }
        Ok(ret)
    }

    /// `VFIO_IOMMU_MAP_DMA` of a new address for an old map, which has to exist.
    fn map_vaddr(&self, map: &DmaMap, arg: c_ulong) -> Result<c_long> {
        let direct = || Ok(self.inner().ioctl(type1::MAP_DMA, arg));
        let ops = self.lock_settled()?;
        let (Some(vm), Some(iova)) = (&ops.vm, Range::from_len(map.iova, map.size)) else {
            return direct();
        };
        let ret = match vm.is_block(self.iommu.id(), iova) {
            true => self.move_pieces(map, iova)?,
            false => direct()?,
        };
        if ret == 0 {
            let vaddrs = Range::from_len(map.vaddr, map.size);
            let plain = vm.is_current() && vaddrs.is_some_and(user::is_plain_ram);
            vm.moved(self.iommu.id(), iova, plain.then_some(map.vaddr));
        }
        Ok(ret)
    }

    /// Gives a new address to each piece of a deferred map that type1 now has.
    ///
    /// All of them, or none: if type1 refuses one, those before have no address again.
    fn move_pieces(&self, map: &DmaMap, iova: Range) -> Result<c_long> {
        let mut at = iova.start();
        let result = self.move_from(map, iova, &mut at);
        if !matches!(result, Ok(0)) {
            if let Some(moved) = Range::new(iova.start(), at) {
                if let Err(e) = self.iommu.invalidate(moved) {
                    pr_warn!("a map has a new address in part: {e:?}\n");
                }
            }
        }
        result
    }

    /// The same, up to `at`.
    ///
    /// Where one ends is not recorded: at most [`Self::LONGEST`] after its start, at a
    /// multiple of [`Self::PIECE`]. type1 refuses any other end and changes nothing.
    fn move_from(&self, map: &DmaMap, iova: Range, at: &mut u64) -> Result<c_long> {
        let page = user::UserPage::new()?;
        while *at < iova.end() {
            let mut end = Self::LONGEST.next_boundary(*at).min(iova.end());
            loop {
                let piece = DmaMap {
                    vaddr: map.vaddr.wrapping_add(*at - iova.start()),
                    iova: *at,
                    size: end - *at,
                    ..*map
                };
                page.write(&piece.bytes())?;
                match self.inner().ioctl(type1::MAP_DMA, page.addr()) {
                    0 => break,
                    // The piece ends before: try the next lower end.
                    ret if ret == EINVAL.to_errno() as c_long => {
                        end = Self::PIECE.down(end - 1);
                        if end <= *at {
                            return Ok(ret);
                        }
                    }
                    ret => return Ok(ret),
                }
            }
            *at = end;
        }
        Ok(0)
    }

    /// The most of `chunk_mib`.
    const LONGEST: Align = Align::of_shift(30);
    /// The granule of the balloon, at which pieces end.
    const PIECE: Align = Align::of_shift(21);

    /// How many mappings type1 takes, if it would make this one and some of it is not too low.
    fn may_defer(
        &self,
        limits: &mut Option<Limits>,
        vm: &Vm,
        map: &DmaMap,
        iova: Range,
    ) -> Option<u64> {
        if !map.is_wellformed()
            || map.flags != DmaMap::READ_WRITE
            || iova.end() <= KNOBS.threshold()
        {
            return None;
        }
        // Without the page that asking takes, type1 has the last word.
        let limits = self.limits(limits, vm).ok().flatten()?;
        let allowed = limits.info.allows(iova, map.vaddr);
        allowed.then_some(limits.capacity)
    }

    /// Whether type1 would make this map, by what it says of itself and what it has; true
    /// where it says nothing.
    fn takes(&self, limits: &mut Option<Limits>, vm: &Vm, map: &DmaMap, iova: Range) -> bool {
        let id = self.iommu.id();
        let allows = |limits: &Limits| {
            limits.info.allows(iova, map.vaddr) && vm.mappings(id) < limits.capacity
        };
        let limits = self.limits(limits, vm).ok().flatten();
        limits.is_none_or(allows) && !vm.is_mapped(id, iova)
    }

    /// Maps the eager windows of what was just deferred, and what of it lies below the
    /// threshold, before its `MAP_DMA` returns.
    fn map_eagerly(&self, vm: &Vm, iova: Range) -> Result<c_long> {
        let low = Range::new(0, KNOBS.threshold()).and_then(|low| low.intersect(iova));
        let eager = KNOBS.eager();
        for window in Iterator::chain(low.into_iter(), eager.windows(iova)) {
            if let Err(e) = vm.settle(window) {
                vm.undo(self.iommu.id(), iova, || self.iommu.unmap(iova));
                return Err(e);
            }
        }
        Ok(0)
    }
}
