/* SPDX-License-Identifier: GPL-2.0-only */
/* What bindgen reads for the host module; see ../include/Kbuild.bindgen. */

#include <linux/hrtimer_types.h>

#include <linux/iommu.h>
#include <linux/kmod.h>
#include <linux/mman.h>
#include <linux/pci_regs.h>
#include <linux/ratelimit.h>
#include <linux/sched/mm.h>
#include <linux/sched/vhost_task.h>
#include <linux/vdpa.h>
#include <linux/vfio.h>
#include <uapi/linux/vdpa.h>
#include <uapi/linux/vfio.h>
#include <uapi/linux/virtio_balloon.h>
#include <uapi/linux/virtio_config.h>
#include <uapi/linux/virtio_ids.h>

#include <linux/virtio_balloon_deferred.h>
#include "type1/driver_ops.h"
#include "wrap/ksym.h"

#include "wrap/helpers.c"
#include "balloon/helpers.c"
