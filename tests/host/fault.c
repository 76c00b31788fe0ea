// SPDX-License-Identifier: GPL-2.0-only
/*
 * Makes functions fail that vfio_iommu_deferred calls, and only when it calls them.
 *
 * Debian's kernel has no fault injection.  A kprobe at a function's first
 * instruction can return from it at once, before it has done anything.
 *
 * parameters, /sys/module/fault/parameters/, for each KIND below:
 *   KIND_times  so many of the next calls fail; counts down
 *   KIND_skip   but first so many succeed; counts down
 *   KIND_hits   read-only: calls that were made to fail
 *
 *   alloc       allocations of memory by Rust code; it frees by the same function, with
 *               a size of 0, which never fails
 *   task        vhost_task_create()
 *   mmap        vm_mmap(), with which type1 is handed its arguments
 *   map         type1's VFIO_IOMMU_MAP_DMA
 */

#include <linux/atomic.h>
#include <linux/err.h>
#include <linux/kallsyms.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/string.h>
#include <linux/vfio.h>

#define VICTIM	"[vfio_iommu_deferred]"

struct fault {
	struct kprobe probe;
	unsigned long result;
	int *skip, *times, *hits;
	/* Of the call's arguments; NULL: any. */
	bool (*matches)(const struct pt_regs *regs);
};

#define KIND(kind)						\
	static int kind##_skip, kind##_times, kind##_hits;	\
	module_param(kind##_skip, int, 0644);			\
	module_param(kind##_times, int, 0644);			\
	module_param(kind##_hits, int, 0444)

KIND(alloc);
KIND(task);
KIND(mmap);
KIND(map);

/* Where a function goes on that was made to fail: back to its caller. */
asm(".pushsection .text\n"
	".type fault_return, @function\n"
	"fault_return:\n"
	ANNOTATE_NOENDBR "\n"
	ASM_RET
	".size fault_return, .-fault_return\n"
	".popsection\n");
void fault_return(void);

static bool is_called_by_victim(const struct pt_regs *regs)
{
	char name[KSYM_SYMBOL_LEN];
	unsigned long caller = *(unsigned long *)regs->sp;

	if (caller < MODULES_VADDR)
		return false;
	sprint_symbol(name, caller);
	return strstr(name, VICTIM);
}

/* Counts down, if there is anything left.  Takes no lock: a breakpoint may have
 * brought it here from anywhere.
 */
static bool take(int *counter)
{
	int old = READ_ONCE(*counter);

	do {
		if (old <= 0)
			return false;
	} while (!try_cmpxchg(counter, &old, old - 1));
	return true;
}

static int fault_inject(struct kprobe *probe, struct pt_regs *regs)
{
	struct fault *fault = container_of(probe, struct fault, probe);

	if (!READ_ONCE(*fault->times) ||
	    (fault->matches && !fault->matches(regs)) ||
	    !is_called_by_victim(regs))
		return 0;
	if (take(fault->skip) || !take(fault->times))
		return 0;
	xadd(fault->hits, 1);
	regs->ax = fault->result;
	regs->ip = (unsigned long)fault_return;
	return 1;
}

/* With one, the probe is not made a jump, which would go on in the function. */
static void fault_after(struct kprobe *probe, struct pt_regs *regs, unsigned long flags)
{
}

/* krealloc_node_align(objp, new_size, ...) */
static bool is_allocation(const struct pt_regs *regs)
{
	return regs->si;
}

static bool is_map(const struct pt_regs *regs)
{
	return (unsigned int)regs->si == VFIO_IOMMU_MAP_DMA;
}

#define FAULT(kind, symbol, error, which)				\
	{								\
		.probe = { .symbol_name = symbol,			\
			   .pre_handler = fault_inject,			\
			   .post_handler = fault_after },		\
		.result = error, .skip = &kind##_skip,			\
		.times = &kind##_times, .hits = &kind##_hits,		\
		.matches = which,					\
	}

static struct fault faults[] = {
	FAULT(alloc, "rust_helper_krealloc_node_align", 0, is_allocation),
	FAULT(alloc, "rust_helper_kvrealloc_node_align", 0, is_allocation),
	FAULT(task, "vhost_task_create", -ENOMEM, NULL),
	FAULT(mmap, "vm_mmap", -ENOMEM, NULL),
	FAULT(map, "vfio_iommu_type1_ioctl", -ENOMEM, is_map),
};

static int __init fault_init(void)
{
	struct kprobe *probes[ARRAY_SIZE(faults)];
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(faults); i++)
		probes[i] = &faults[i].probe;
	return register_kprobes(probes, ARRAY_SIZE(probes));
}
module_init(fault_init);

static void __exit fault_exit(void)
{
	struct kprobe *probes[ARRAY_SIZE(faults)];
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(faults); i++)
		probes[i] = &faults[i].probe;
	unregister_kprobes(probes, ARRAY_SIZE(probes));
}
module_exit(fault_exit);

MODULE_DESCRIPTION("Failures of what vfio_iommu_deferred calls, for tests");
MODULE_LICENSE("GPL");
