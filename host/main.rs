// SPDX-License-Identifier: GPL-2.0-only

//! VFIO IOMMU driver that defers the DMA mapping of guest RAM.
//!
//! From the outside in:
//!
//! - [`driver`], [`container`], [`gate`]: what the VFIO core and VMMs call,
//! - [`vdpa`], [`balloon`]: the balloon device, which the guest calls,
//! - [`vm`]: where both meet; it knows what is mapped and maps the rest,
//! - [`type1`], [`pci`], [`task`], [`wait`], [`user`], [`info`], [`uapi`],
//!   [`ratelimit`]: what they use,
//! - [`knobs`], [`sysfs`]: the administrator's side,
//! - [`logic`]: tables, rings and messages without a kernel.
//!
//! `Documentation/design.md` tells how they work together.

use kernel::{
    module::ModuleMetadata,
    prelude::*, //
};

mod balloon;
mod bindings;
mod container;
mod driver;
mod gate;
mod info;
mod iommu;
mod knobs;
#[path = "../include/wrap/kobject.rs"]
mod kobject;
#[path = "../include/logic/mod.rs"]
#[expect(dead_code, reason = "each module uses a part of it")]
mod logic;
mod pci;
mod populate;
mod ratelimit;
mod sysfs;
mod task;
mod type1;
mod uapi;
mod user;
mod vdpa;
mod vm;
mod wait;

module! {
    type: Deferred,
    name: "vfio_iommu_deferred",
    authors: ["The vfio-deferred authors"],
    description: "Deferred DMA mapping of guest RAM in front of vfio_iommu_type1",
    license: "GPL",
}

/// This module, for the structures that C wants it in.
const THIS: ThisModule = <Deferred as ModuleMetadata>::THIS_MODULE;

/// What is registered; undone in the order of the fields.
struct Deferred {
    _balloons: vdpa::Mgmt<balloon::Balloon>,
    _driver: driver::Registration,
    _gate: gate::Registration,
    _sysfs: sysfs::Registration,
}

impl kernel::Module for Deferred {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        // SAFETY: Each is called once, here, and before what uses it.
        unsafe {
            vm::init();
            let sysfs = sysfs::Registration::new()?;
            let gate = gate::Registration::new();
            let type1 = type1::Type1::acquire()?;
            let driver = driver::Registration::new(type1)?;
            let balloons = vdpa::Mgmt::new()?;
            pr_info!("in front of vfio_iommu_type1\n");
            Ok(Self {
                _balloons: balloons,
                _driver: driver,
                _gate: gate,
                _sysfs: sysfs,
            })
        }
    }
}
