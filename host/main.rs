// SPDX-License-Identifier: GPL-2.0-only

//! VFIO IOMMU driver that defers the DMA mapping of guest RAM.
//!
//! From the top down, as calls go:
//!
//! - [`vfio`]: what the VFIO core and VMMs call: driver, container, gate,
//! - [`balloon`]: what the guest's messages make the host do,
//! - [`vm`]: what is mapped, and the mapping,
//! - [`vdpa`]: the device side of the guest's balloon,
//! - [`type1`]: the driver behind this one: found, called, asked,
//! - [`wrap`]: small safe wrappers of kernel objects,
//! - [`admin`]: the administrator's side,
//! - [`logic`]: tables, rings and messages without a kernel.
//!
//! `Documentation/design.md` tells how they work together.

use kernel::prelude::*;

mod admin;
mod balloon;
mod bindings;
#[path = "../include/wrap/compat.rs"]
mod compat;
#[path = "../include/logic/mod.rs"]
#[expect(dead_code, reason = "each module uses a part of it")]
mod logic;
mod type1;
mod vdpa;
mod vfio;
mod vm;
mod wrap;

use admin::sysfs;
use vfio::{
    driver,
    gate, //
};

module! {
    type: Deferred,
    name: "vfio_iommu_deferred",
    authors: ["The vfio-deferred authors"],
    description: "Deferred DMA mapping of guest RAM in front of vfio_iommu_type1",
    license: "GPL",
}

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
