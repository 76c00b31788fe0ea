/* SPDX-License-Identifier: GPL-2.0-only */
/* What bindgen reads for the guest module; see ../include/Kbuild.bindgen. */

#include <linux/hrtimer_types.h>

#include <linux/mm.h>
#include <linux/oom.h>
#include <linux/scatterlist.h>
#include <linux/shrinker.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <uapi/linux/virtio_balloon.h>
#include <uapi/linux/virtio_ids.h>

#include <linux/virtio_balloon_deferred.h>

/* A macro with a cast, which bindgen does not evaluate. */
static const unsigned int SHRINKER_FLAGS = SHRINKER_NUMA_AWARE;

#include "helpers.c"
