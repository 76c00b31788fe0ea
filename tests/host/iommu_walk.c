// SPDX-License-Identifier: GPL-2.0-only
/*
 * Counts what a device can reach through an Intel IOMMU, by the size of the pages:
 * the distribution's kernel has no debugfs file that says so.
 *
 * Walks the tables once, at insmod, from the unit's own root table pointer. Nothing
 * may be mapped or unmapped meanwhile. The counts are read from the parameters.
 *
 * Source: Intel VT-d specification, revision 4.1, sections 9.1 (root entry), 9.3
 * (context entry), 9.8 (second-stage entries) and 11.4.5 (RTADDR_REG).
 */

#include <linux/bits.h>
#include <linux/io.h>
#include <linux/io-64-nonatomic-lo-hi.h>
#include <linux/module.h>
#include <linux/sizes.h>

#define RTADDR_REG	0x20
#define RTADDR_MODE	GENMASK_ULL(11, 10)	/* 0: legacy mode */
#define ADDRESS		GENMASK_ULL(51, 12)
#define PRESENT		BIT_ULL(0)		/* of root and context entries */
#define WIDTH		GENMASK_ULL(2, 0)	/* upper half of a context entry */
#define ACCESS		GENMASK_ULL(1, 0)	/* of a second-stage entry */
#define LARGE		BIT_ULL(7)		/* it is a leaf above the last level */
#define ENTRIES		512

static unsigned long unit;
module_param(unit, ulong, 0444);
MODULE_PARM_DESC(unit, "physical address of the unit's registers");

static unsigned int device;
module_param(device, uint, 0444);
MODULE_PARM_DESC(device, "bus << 8 | devfn");

static unsigned long pages[4];
module_param_named(pages_4k, pages[1], ulong, 0444);
module_param_named(pages_2m, pages[2], ulong, 0444);
module_param_named(pages_1g, pages[3], ulong, 0444);

static void walk(u64 table, int level)
{
	const u64 *entries = phys_to_virt(table);
	int i;

	for (i = 0; i < ENTRIES; i++) {
		u64 entry = READ_ONCE(entries[i]);

		if (!(entry & ACCESS))
			continue;
		if (level == 1 || (level <= 3 && entry & LARGE))
			pages[level]++;
		else
			walk(entry & ADDRESS, level - 1);
		cond_resched();
	}
}

static int __init iommu_walk_init(void)
{
	void __iomem *registers = ioremap(unit, SZ_4K);
	const u64 *entry;
	u64 root;
	int level;

	if (!registers)
		return -ENOMEM;
	root = readq(registers + RTADDR_REG);
	iounmap(registers);
	if (root & RTADDR_MODE || !(root & ADDRESS)) {
		pr_err("iommu_walk: root table %#llx is not in legacy mode\n", root);
		return -EOPNOTSUPP;
	}
	entry = (const u64 *)phys_to_virt(root & ADDRESS) + (device >> 8) * 2;
	if (!(entry[0] & PRESENT))
		return -ENODEV;
	entry = (const u64 *)phys_to_virt(entry[0] & ADDRESS) + (device & 0xff) * 2;
	level = (entry[1] & WIDTH) + 2;
	if (!(entry[0] & PRESENT) || level > 5)
		return -ENODEV;
	walk(entry[0] & ADDRESS, level);
	return 0;
}

static void __exit iommu_walk_exit(void)
{
}

module_init(iommu_walk_init);
module_exit(iommu_walk_exit);

MODULE_DESCRIPTION("Counts the pages that a device can reach through an Intel IOMMU");
MODULE_LICENSE("GPL");
