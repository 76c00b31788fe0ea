// SPDX-License-Identifier: GPL-2.0-only
/*
 * The knobs as parameters of the module, so that modprobe.d can set them.
 *
 * In C because module! knows numbers only, without ranges. Ranges and values are those
 * of the files in sysfs, see knobs.rs; a parameter has no file of its own.
 */

#include <linux/module.h>
#include <linux/moduleparam.h>

#include "../../include/version.h"

/* In params.rs. */
int deferred_set_knob(const char *name, const char *value);

static int set(const char *value, const struct kernel_param *knob)
{
	return deferred_set_knob(knob->name, value);
}

/* Without "noarg": the kernel refuses a parameter that has no value. */
static const struct kernel_param_ops knob_ops = { .set = set };

#define KNOB(name) module_param_cb(name, &knob_ops, NULL, 0)

KNOB(threshold_mib);
MODULE_PARM_DESC(threshold_mib, "RAM at or above this address is deferred, MiB (4096)");
KNOB(reserve_mib);
MODULE_PARM_DESC(reserve_mib, "Deferred RAM that a guest is not asked to give up, MiB (0)");
KNOB(chunk_mib);
MODULE_PARM_DESC(chunk_mib, "The most that is mapped at a time, MiB, a power of two up to 1024 (1024)");
KNOB(eager_first_mib);
MODULE_PARM_DESC(eager_first_mib, "What is mapped at once from address 0, MiB (0)");
KNOB(eager_low_top_mib);
MODULE_PARM_DESC(eager_low_top_mib, "What is mapped at once below the end of RAM below 4 GiB, MiB (0)");
KNOB(eager_top_mib);
MODULE_PARM_DESC(eager_top_mib, "What is mapped at once below the end of RAM, MiB (0)");
KNOB(workers);
MODULE_PARM_DESC(workers, "Mapping threads of a VM; 0: as many as there are processors, 64 at most (0)");
KNOB(nice);
MODULE_PARM_DESC(nice, "Nice value of mapping threads that nobody waits for, 0 to 19 (5)");
KNOB(fallback_timeout_ms);
MODULE_PARM_DESC(fallback_timeout_ms, "When all is mapped without a commit, ms (120000)");
KNOB(premap);
MODULE_PARM_DESC(premap, "Map the balloon's memory in the background after the commit (1)");
KNOB(premap_at_start);
MODULE_PARM_DESC(premap_at_start, "Map all memory in the background from the first map on (0)");
KNOB(populate);
MODULE_PARM_DESC(populate, "Populate memory in parallel before it is mapped (1)");
KNOB(policy);
MODULE_PARM_DESC(policy, "Who is deferred: balloon, VMs with a balloon; gate, all (balloon)");
KNOB(firmware);
MODULE_PARM_DESC(firmware, "Firmware may use devices with RAM below 4 GiB mapped only (0)");
KNOB(gate);
MODULE_PARM_DESC(gate, "For tests: 0 lets devices lose DMA (1)");
KNOB(trap);
MODULE_PARM_DESC(trap, "For tests: 0 lets devices fail that are used too early (1)");
KNOB(hold);
MODULE_PARM_DESC(hold, "For tests: 1 keeps balloons at their size (0)");

MODULE_VERSION(DEFERRED_VERSION);
