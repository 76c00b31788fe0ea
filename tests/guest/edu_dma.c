// SPDX-License-Identifier: GPL-2.0-only
/*
 * Proves that an assigned device reaches a page: a driver for QEMU's "edu",
 * which copies up to 4 KiB between memory and a buffer of its own.
 *
 * The page is read and written by DMA, by way of the device's buffer, and what
 * arrives is compared with what the CPU put there.  A page that the IOMMU does
 * not map loses both without an error, so every byte is counted.
 *
 * Guest-physical addresses are given to the device as they are, without the DMA
 * API: no bouncing, and no IOMMU in the guest.
 *
 * sysfs, /sys/bus/pci/drivers/edu_dma/0000:.../:
 *   alloc            rw  a number: takes as many pages above 4 GiB; reading lists
 *                        the addresses of all, the latest first, as far as fits
 *   gpa              w   address of a page to test: one of `alloc`, or one that
 *                        is not memory of this kernel (memmap= on its command
 *                        line); what it held is put back
 *   all              w   anything: tests every page of `alloc`
 *   probe_ballooned  w   address of a page in the balloon: only writes it by DMA
 *                        and looks whether it changed. Looking makes the host
 *                        back the page, which changes nothing for the IOMMU.
 *   result           r   of the last test: pages=N read_wrong=N write_wrong=N in
 *                        bytes, or changed=N for probe_ballooned
 *   started         r    set_us=N touch_us=N: what setting the bus-master bit took
 *                        at probe, and the first access to a register after it
 *
 * A test takes about half a second a page: the device takes 100 ms a transfer.
 */

#include <linux/delay.h>
#include <linux/io.h>
#include <linux/ioport.h>
#include <linux/iopoll.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/prandom.h>
#include <linux/sizes.h>

/* The low half is the same for all versions of the device. */
#define EDU_ID		0x00
#define EDU_ID_MASK	0xffff
#define EDU_ID_VALUE	0x00ed
#define EDU_SRC		0x80
#define EDU_DST		0x88
#define EDU_COUNT	0x90
#define EDU_CMD		0x98
#define EDU_CMD_START	BIT(0)
#define EDU_CMD_TO_RAM	BIT(1)
/* The buffer, in the device's address space. */
#define EDU_BUFFER	0x40000

#define TRANSFER_LIMIT_US	(10 * USEC_PER_SEC)

struct edu {
	void __iomem *regs;
	struct mutex lock;	/* one test at a time; all that follows */
	struct list_head pages;	/* of `alloc` */
	struct page *scratch;	/* below 4 GiB, so always mapped */
	u8 *wanted;		/* what a transfer should have brought */
	u8 *saved;
	u32 seed;
	s64 set_us;	/* what setting the bus-master bit took */
	s64 touch_us;	/* and the first access to a register after it */
	char result[80];
};

/* Copies a page from memory to the device's buffer, or the other way round. */
static int edu_transfer(struct edu *edu, phys_addr_t addr, bool to_ram)
{
	u64 cmd;

	writeq(to_ram ? EDU_BUFFER : addr, edu->regs + EDU_SRC);
	writeq(to_ram ? addr : EDU_BUFFER, edu->regs + EDU_DST);
	writeq(PAGE_SIZE, edu->regs + EDU_COUNT);
	writeq(EDU_CMD_START | (to_ram ? EDU_CMD_TO_RAM : 0),
	       edu->regs + EDU_CMD);
	return readq_poll_timeout(edu->regs + EDU_CMD, cmd,
				  !(cmd & EDU_CMD_START), USEC_PER_MSEC,
				  TRANSFER_LIMIT_US);
}

/* Fills the expected content with bytes that were not used before. */
static void new_pattern(struct edu *edu)
{
	struct rnd_state rnd;

	prandom_seed_state(&rnd, ++edu->seed);
	prandom_bytes_state(&rnd, edu->wanted, PAGE_SIZE);
}

static unsigned int wrong_bytes(const struct edu *edu, const u8 *got)
{
	unsigned int i, wrong = 0;

	for (i = 0; i < PAGE_SIZE; i++)
		wrong += got[i] != edu->wanted[i];
	return wrong;
}

/* Brings a new pattern from the scratch page into the page at @gpa by DMA. */
static int write_page(struct edu *edu, phys_addr_t gpa)
{
	new_pattern(edu);
	memcpy(page_address(edu->scratch), edu->wanted, PAGE_SIZE);
	return edu_transfer(edu, page_to_phys(edu->scratch), false) ?:
	       edu_transfer(edu, gpa, true);
}

/* Tests one page, which @page is the CPU's address of. */
static int test_page(struct edu *edu, phys_addr_t gpa, u8 *page,
		     unsigned int *read_wrong, unsigned int *write_wrong)
{
	u8 *scratch = page_address(edu->scratch);
	int err;

	memcpy(edu->saved, page, PAGE_SIZE);

	new_pattern(edu);
	memcpy(page, edu->wanted, PAGE_SIZE);
	memset(scratch, 0, PAGE_SIZE);
	err = edu_transfer(edu, gpa, false) ?:
	      edu_transfer(edu, page_to_phys(edu->scratch), true);
	if (!err) {
		*read_wrong += wrong_bytes(edu, scratch);
		err = write_page(edu, gpa);
	}
	if (!err)
		*write_wrong += wrong_bytes(edu, page);

	memcpy(page, edu->saved, PAGE_SIZE);
	return err;
}

static struct page *find_page(struct edu *edu, phys_addr_t gpa)
{
	struct page *page;

	list_for_each_entry(page, &edu->pages, lru)
		if (page_to_phys(page) == gpa)
			return page;
	return NULL;
}

/* Tests a page by its address, unless this kernel uses it for something else. */
static int test_gpa(struct edu *edu, phys_addr_t gpa, unsigned int *read_wrong,
		    unsigned int *write_wrong)
{
	struct page *page = find_page(edu, gpa);
	void *virt;
	int err;

	if (page)
		return test_page(edu, gpa, page_address(page), read_wrong,
				 write_wrong);
	if (region_intersects(gpa, PAGE_SIZE, IORESOURCE_SYSTEM_RAM,
			      IORES_DESC_NONE) != REGION_DISJOINT)
		return -EPERM;
	virt = memremap(gpa, PAGE_SIZE, MEMREMAP_WB);
	if (!virt)
		return -ENOMEM;
	err = test_page(edu, gpa, virt, read_wrong, write_wrong);
	memunmap(virt);
	return err;
}

static int parse_gpa(const char *buf, phys_addr_t *gpa)
{
	u64 value;
	int err = kstrtou64(buf, 16, &value);

	*gpa = value;
	return err ?: (PAGE_ALIGNED(value) ? 0 : -EINVAL);
}

static ssize_t gpa_store(struct device *dev, struct device_attribute *attr,
			 const char *buf, size_t count)
{
	struct edu *edu = dev_get_drvdata(dev);
	unsigned int read_wrong = 0, write_wrong = 0;
	phys_addr_t gpa;
	int err = parse_gpa(buf, &gpa);

	if (err)
		return err;
	guard(mutex)(&edu->lock);
	err = test_gpa(edu, gpa, &read_wrong, &write_wrong);
	if (!err)
		scnprintf(edu->result, sizeof(edu->result),
			  "pages=1 read_wrong=%u write_wrong=%u",
			  read_wrong, write_wrong);
	return err ?: count;
}
static DEVICE_ATTR_WO(gpa);

static ssize_t all_store(struct device *dev, struct device_attribute *attr,
			 const char *buf, size_t count)
{
	struct edu *edu = dev_get_drvdata(dev);
	unsigned int pages = 0, read_wrong = 0, write_wrong = 0;
	struct page *page;
	int err = 0;

	guard(mutex)(&edu->lock);
	list_for_each_entry(page, &edu->pages, lru) {
		err = test_page(edu, page_to_phys(page), page_address(page),
				&read_wrong, &write_wrong);
		if (err)
			return err;
		pages++;
	}
	scnprintf(edu->result, sizeof(edu->result),
		  "pages=%u read_wrong=%u write_wrong=%u",
		  pages, read_wrong, write_wrong);
	return count;
}
static DEVICE_ATTR_WO(all);

static ssize_t probe_ballooned_store(struct device *dev,
				     struct device_attribute *attr,
				     const char *buf, size_t count)
{
	struct edu *edu = dev_get_drvdata(dev);
	unsigned int i, changed = 0;
	phys_addr_t gpa;
	const u8 *page;
	int err = parse_gpa(buf, &gpa);

	if (err)
		return err;
	/* The balloon marks its pages so. */
	if (!pfn_valid(PHYS_PFN(gpa)) || !PageOffline(pfn_to_page(PHYS_PFN(gpa))))
		return -EPERM;
	guard(mutex)(&edu->lock);
	page = page_address(pfn_to_page(PHYS_PFN(gpa)));
	memcpy(edu->saved, page, PAGE_SIZE);
	err = write_page(edu, gpa);
	if (err)
		return err;
	for (i = 0; i < PAGE_SIZE; i++)
		changed += READ_ONCE(page[i]) != edu->saved[i];
	scnprintf(edu->result, sizeof(edu->result), "changed=%u", changed);
	return count;
}
static DEVICE_ATTR_WO(probe_ballooned);

static ssize_t result_show(struct device *dev, struct device_attribute *attr,
			   char *buf)
{
	struct edu *edu = dev_get_drvdata(dev);

	guard(mutex)(&edu->lock);
	return sysfs_emit(buf, "%s\n", edu->result);
}
static DEVICE_ATTR_RO(result);

static void free_pages_list(struct list_head *pages)
{
	struct page *page, *next;

	list_for_each_entry_safe(page, next, pages, lru) {
		list_del(&page->lru);
		__free_page(page);
	}
}

static ssize_t alloc_store(struct device *dev, struct device_attribute *attr,
			   const char *buf, size_t count)
{
	struct edu *edu = dev_get_drvdata(dev);
	struct page *page;
	unsigned int wanted;
	LIST_HEAD(low);
	int err = kstrtouint(buf, 0, &wanted);

	if (err)
		return err;
	guard(mutex)(&edu->lock);
	while (wanted) {
		page = alloc_page(GFP_KERNEL | __GFP_NORETRY);
		if (!page)
			break;
		if (page_to_phys(page) < SZ_4G) {
			/* Kept until the end, so as not to get it again. */
			list_add(&page->lru, &low);
			continue;
		}
		list_add(&page->lru, &edu->pages);
		wanted--;
	}
	free_pages_list(&low);
	return wanted ? -ENOMEM : count;
}

static ssize_t alloc_show(struct device *dev, struct device_attribute *attr,
			  char *buf)
{
	struct edu *edu = dev_get_drvdata(dev);
	struct page *page;
	int len = 0;

	guard(mutex)(&edu->lock);
	list_for_each_entry(page, &edu->pages, lru)
		if (len < PAGE_SIZE - 1)
			len += sysfs_emit_at(buf, len, "%llx\n",
					     (u64)page_to_phys(page));
	return len;
}
static DEVICE_ATTR_RW(alloc);

static ssize_t started_show(struct device *dev, struct device_attribute *attr,
			    char *buf)
{
	struct edu *edu = dev_get_drvdata(dev);

	return sysfs_emit(buf, "set_us=%lld touch_us=%lld\n", edu->set_us,
			  edu->touch_us);
}
static DEVICE_ATTR_RO(started);

static struct attribute *edu_attrs[] = {
	&dev_attr_alloc.attr,
	&dev_attr_all.attr,
	&dev_attr_gpa.attr,
	&dev_attr_probe_ballooned.attr,
	&dev_attr_result.attr,
	&dev_attr_started.attr,
	NULL
};
ATTRIBUTE_GROUPS(edu);

static void edu_free(void *data)
{
	struct edu *edu = data;

	free_pages_list(&edu->pages);
	__free_page(edu->scratch);
}

/* Sets the bus-master bit, and uses the device: what the host's gate waits for. */
static int edu_start(struct pci_dev *pdev, struct edu *edu)
{
	ktime_t before = ktime_get(), set, touched;
	u32 ident;

	pci_set_master(pdev);
	set = ktime_get();
	ident = readl(edu->regs + EDU_ID);
	touched = ktime_get();
	edu->set_us = ktime_us_delta(set, before);
	edu->touch_us = ktime_us_delta(touched, set);
	return (ident & EDU_ID_MASK) == EDU_ID_VALUE ? 0 : -ENODEV;
}

static int edu_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct device *dev = &pdev->dev;
	struct edu *edu = devm_kzalloc(dev, sizeof(*edu), GFP_KERNEL);
	int err;

	if (!edu)
		return -ENOMEM;
	INIT_LIST_HEAD(&edu->pages);
	err = devm_mutex_init(dev, &edu->lock) ?: pcim_enable_device(pdev) ?:
	      dma_set_mask_and_coherent(dev, DMA_BIT_MASK(64));
	if (err)
		return err;
	edu->regs = pcim_iomap_region(pdev, 0, KBUILD_MODNAME);
	if (IS_ERR(edu->regs))
		return PTR_ERR(edu->regs);
	edu->wanted = devm_kmalloc(dev, PAGE_SIZE, GFP_KERNEL);
	edu->saved = devm_kmalloc(dev, PAGE_SIZE, GFP_KERNEL);
	edu->scratch = alloc_page(GFP_KERNEL | GFP_DMA32);
	if (!edu->scratch)
		return -ENOMEM;
	err = devm_add_action_or_reset(dev, edu_free, edu);
	if (err)
		return err;
	if (!edu->wanted || !edu->saved)
		return -ENOMEM;
	pci_set_drvdata(pdev, edu);
	return edu_start(pdev, edu);
}

static void edu_remove(struct pci_dev *pdev)
{
	pci_clear_master(pdev);
}

static const struct pci_device_id edu_ids[] = {
	{ PCI_DEVICE(0x1234, 0x11e8) },
	{ }
};
MODULE_DEVICE_TABLE(pci, edu_ids);

static struct pci_driver edu_driver = {
	.name = KBUILD_MODNAME,
	.id_table = edu_ids,
	.probe = edu_probe,
	.remove = edu_remove,
	.dev_groups = edu_groups,
};
module_pci_driver(edu_driver);

MODULE_DESCRIPTION("DMA to given pages with QEMU's edu device, for tests");
MODULE_LICENSE("GPL");
