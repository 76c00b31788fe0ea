// SPDX-License-Identifier: GPL-2.0-only

//! virtio-balloon driver that keeps guest RAM from being mapped for DMA until it is needed.
//!
//! Its probe() takes nearly all free memory out of use before the drivers of assigned devices come,
//! tells the host, and returns when the host has mapped the rest. The host maps what is in the
//! balloon in the background and shrinks the balloon as it goes.
//!
//! From top to bottom: `driver` (who calls whom), `balloon` (the logic), then wrappers
//! of the kernel: `event`, `node`, `oom`, `order`, `pages`, `pm`, `shrinker`, `virtio`, `zeroing` and
//! those shared with the host module.
//!
//! The module has no alias, so that it is loaded only where somebody wants it, and in time. A
//! device that does not offer `VIRTIO_BALLOON_F_DEFERRED` is left to the stock driver.

use kernel::prelude::*;

#[path = "../include/wrap/abi.rs"]
mod abi;
mod balloon;
mod bindings;
#[path = "../include/wrap/compat.rs"]
mod compat;
mod driver;
mod event;
mod knobs;
#[path = "../include/wrap/kobject.rs"]
mod kobject;
#[path = "../include/logic/mod.rs"]
#[allow(dead_code, reason = "the other module uses the rest")]
mod logic;
mod node;
mod oom;
mod order;
mod pages;
mod pm;
mod shrinker;
mod stats;
mod sysfs;
mod virtio;
#[path = "../include/wrap/work.rs"]
mod work;
mod zeroing;

/// The name of the module, of its driver and of its directory in sysfs.
const NAME: &CStr = c"virtio_balloon_deferred";

module! {
    type: Module,
    name: "virtio_balloon_deferred",
    authors: ["The vfio-deferred authors"],
    description: "Balloon that keeps guest RAM from being mapped for DMA until it is needed",
    license: "GPL",
    params: {
        reserve_mib: u64 {
            default: 256,
            description: "MiB of available memory that a balloon leaves to the guest",
        },
        step_mib: u64 {
            default: 128,
            description: "MiB that are deflated at a time",
        },
        skip_zeroing: u64 {
            default: 1,
            description: "1: the kernel does not zero memory for the balloon; 0: no balloon if it does",
        },
        bind_wait_ms: u64 {
            default: 60_000,
            description: "How long drivers of PCI devices wait for a balloon, in ms; 0: not at all",
        },
    },
}

struct Module {
    // In this order: drivers go before the knobs that they read, and before what waits for them.
    _registration: Pin<KBox<virtio::Registration<driver::Driver>>>,
    _notifier: Pin<KBox<order::Notifier>>,
    _knobs: kobject::Directory<()>,
}

impl kernel::Module for Module {
    fn init(module: &'static ThisModule) -> Result<Self> {
        knobs::set(
            compat::parameter(module_parameters::reserve_mib.value()),
            compat::parameter(module_parameters::step_mib.value()),
            compat::parameter(module_parameters::skip_zeroing.value()),
            compat::parameter(module_parameters::bind_wait_ms.value()),
        )?;
        // SAFETY: This is the module's initialisation, and nothing has used it yet.
        unsafe { zeroing::init() };
        let knobs = sysfs::directory()?;
        // From before the notifier until all devices that are there have been probed.
        let coming = order::Coming::new();
        let notifier = KBox::try_pin_init(order::Notifier::new(), GFP_KERNEL)?;
        let registration = KBox::try_pin_init(virtio::Registration::new(module), GFP_KERNEL);
        // Also before the notifier goes, should it: that waits for those who wait for this.
        drop(coming);
        Ok(Self {
            _registration: registration?,
            _notifier: notifier,
            _knobs: knobs,
        })
    }
}
