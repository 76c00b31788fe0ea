// SPDX-License-Identifier: GPL-2.0-only
/*
 * Takes memory when it is inserted, gives it back at once, and fails with ENOMEM
 * if it did not get all: allocations that end in failure, not in the OOM killer.
 */

#include <linux/gfp.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/numa.h>
#include <linux/sched.h>

static unsigned int mib;
module_param(mib, uint, 0444);
MODULE_PARM_DESC(mib, "How much, in MiB");

static unsigned int order;
module_param(order, uint, 0444);
MODULE_PARM_DESC(order, "Of each allocation");

static int node = NUMA_NO_NODE;
module_param(node, int, 0444);
MODULE_PARM_DESC(node, "From this node alone");

static bool dma32;
module_param(dma32, bool, 0444);
MODULE_PARM_DESC(dma32, "From below 4 GiB alone");

static bool mayfail;
module_param(mayfail, bool, 0444);
MODULE_PARM_DESC(mayfail, "With __GFP_RETRY_MAYFAIL");

static int __init take_init(void)
{
	unsigned long left = ((unsigned long)mib << (20 - PAGE_SHIFT)) >> order;
	struct page *page, *next;
	LIST_HEAD(pages);
	gfp_t gfp = GFP_KERNEL | __GFP_NOWARN;

	if (node != NUMA_NO_NODE)
		gfp |= __GFP_THISNODE;
	if (dma32)
		gfp |= __GFP_DMA32;
	if (mayfail)
		gfp |= __GFP_RETRY_MAYFAIL;
	for (; left; left--) {
		page = alloc_pages_node(node, gfp, order);
		if (!page)
			break;
		list_add(&page->lru, &pages);
		cond_resched();
	}
	list_for_each_entry_safe(page, next, &pages, lru) {
		list_del(&page->lru);
		__free_pages(page, order);
	}
	if (left)
		pr_info("%lu allocations of order %u are missing\n", left, order);
	return left ? -ENOMEM : 0;
}

static void __exit take_exit(void)
{
}

module_init(take_init);
module_exit(take_exit);
MODULE_DESCRIPTION("Takes memory and gives it back, for tests");
MODULE_LICENSE("GPL");
