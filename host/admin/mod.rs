// SPDX-License-Identifier: GPL-2.0-only

//! The administrator's side: knobs and directories in sysfs.

pub(crate) mod knobs;
mod params;
pub(crate) mod sysfs;
