// SPDX-License-Identifier: GPL-2.0-only

//! Small safe wrappers of kernel objects.

pub(crate) mod fault;
pub(crate) mod gup;
#[path = "../../include/wrap/kobject.rs"]
pub(crate) mod kobject;
pub(crate) mod ksym;
pub(crate) mod pci;
pub(crate) mod ratelimit;
pub(crate) mod task;
pub(crate) mod time;
pub(crate) mod user;
pub(crate) mod wait;
