// SPDX-License-Identifier: GPL-2.0-only

//! What the VFIO core and VMMs call: the IOMMU driver, its containers, and the gate in
//! front of each device.

mod container;
pub(crate) mod driver;
pub(crate) mod gate;
