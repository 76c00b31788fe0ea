// SPDX-License-Identifier: GPL-2.0-only
/*
 * The kernel's own declaration of what driver_ops.h declares, for check-layout.sh, where
 * there is a whole kernel tree. Never linked.
 */

#include "vfio.h"

const struct vfio_iommu_driver_ops *deferred_private_ops;
enum vfio_group_type deferred_private_type;
