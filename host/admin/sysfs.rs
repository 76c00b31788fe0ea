// SPDX-License-Identifier: GPL-2.0-only

//! `/sys/kernel/vfio_iommu_deferred/`: the knobs, and a directory for each VM.

use kernel::{
    prelude::*,
    sync::Arc, //
};

use crate::{
    admin::knobs::{
        Hooks,
        Knobs, //
    },
    vm, //
    wrap::kobject::{
        Directory,
        Parent, //
    },
};

/// The directories; dropping it removes them, when no VM is left.
pub(crate) struct Registration {
    _knobs: Directory<Hooks>,
}

impl Registration {
    /// Creates them. Context: module initialisation, after [`vm::init`].
    pub(crate) fn new() -> Result<Self> {
        let hooks = Hooks {
            unhold: vm::deflate_on,
        };
        let knobs = Directory::new(
            Parent::kernel()?,
            c"vfio_iommu_deferred",
            Arc::new(hooks, GFP_KERNEL)?,
            Knobs::FILES,
        )?;
        let nothing = Arc::new((), GFP_KERNEL)?;
        let vms = Directory::new(Parent::directory(&knobs), c"vms", nothing, &[])?;
        vm::set_directory(Some(Arc::new(vms, GFP_KERNEL)?));
        Ok(Self { _knobs: knobs })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // Before the directory that it is in.
        vm::set_directory(None);
    }
}
