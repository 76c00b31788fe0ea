// SPDX-License-Identifier: GPL-2.0-only
/*
 * A module that is called as type1 is, with operations of that name, in which something is
 * not where it should be: our module has to refuse to stand in front of it. Nothing is
 * registered, so that VFIO does not know it.
 *
 *   fault=  what is wrong: nothing, name, owner, swapped, missing, other, shifted
 */

#include <linux/err.h>
#include <linux/minmax.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "../../host/type1/driver_ops.h"

static char *fault = "nothing";
module_param(fault, charp, 0);
MODULE_PARM_DESC(fault, "What is wrong with the operations");

static void *vfio_iommu_type1_open(unsigned long arg)
{
	return ERR_PTR(-ENODEV);
}

static void vfio_iommu_type1_release(void *data)
{
}

static long vfio_iommu_type1_ioctl(void *data, unsigned int cmd, unsigned long arg)
{
	return -ENOTTY;
}

static int vfio_iommu_type1_attach_group(void *data, struct iommu_group *group,
					 enum vfio_group_type type)
{
	return -ENODEV;
}

static void vfio_iommu_type1_detach_group(void *data, struct iommu_group *group)
{
}

static int vfio_iommu_type1_pin_pages(void *data, struct iommu_group *group, dma_addr_t iova,
				      int npage, int prot, struct page **pages)
{
	return -EINVAL;
}

static void vfio_iommu_type1_unpin_pages(void *data, dma_addr_t iova, int npage)
{
}

static void vfio_iommu_type1_register_device(void *data, struct vfio_device *vdev)
{
}

static void vfio_iommu_type1_unregister_device(void *data, struct vfio_device *vdev)
{
}

static int vfio_iommu_type1_dma_rw(void *data, dma_addr_t iova, void *buffer, size_t count,
				   bool write)
{
	return -EINVAL;
}

static struct iommu_domain *vfio_iommu_type1_group_iommu_domain(void *data,
								struct iommu_group *group)
{
	return ERR_PTR(-ENODEV);
}

/* Not constant, since it is changed below; one longer, so that it can be shifted. */
static struct {
	struct vfio_iommu_driver_ops ops;
	void *more;
} vfio_iommu_driver_ops_type1 __used = {
	.ops = {
		.name = "vfio-iommu-type1",
		.owner = THIS_MODULE,
		.open = vfio_iommu_type1_open,
		.release = vfio_iommu_type1_release,
		.ioctl = vfio_iommu_type1_ioctl,
		.attach_group = vfio_iommu_type1_attach_group,
		.detach_group = vfio_iommu_type1_detach_group,
		.pin_pages = vfio_iommu_type1_pin_pages,
		.unpin_pages = vfio_iommu_type1_unpin_pages,
		.register_device = vfio_iommu_type1_register_device,
		.unregister_device = vfio_iommu_type1_unregister_device,
		.dma_rw = vfio_iommu_type1_dma_rw,
		.group_iommu_domain = vfio_iommu_type1_group_iommu_domain,
	},
};

static int __init type1_init(void)
{
	struct vfio_iommu_driver_ops *ops = &vfio_iommu_driver_ops_type1.ops;

	if (!strcmp(fault, "name")) {
		ops->name = "vfio-iommu-spapr";
	} else if (!strcmp(fault, "owner")) {
		ops->owner = NULL;
	} else if (!strcmp(fault, "swapped")) {
		swap(ops->register_device, ops->unregister_device);
	} else if (!strcmp(fault, "missing")) {
		ops->dma_rw = NULL;
	} else if (!strcmp(fault, "other")) {
		/* Nothing is called: its address is enough. */
		ops->release = (void (*)(void *))(void *)kfree;
	} else if (!strcmp(fault, "shifted")) {
		/* A member more before "detach_group". */
		void **slots = (void **)&vfio_iommu_driver_ops_type1;
		size_t slot;

		for (slot = sizeof(*ops) / sizeof(void *);
		     slot > offsetof(struct vfio_iommu_driver_ops, attach_group) / sizeof(void *);
		     slot--)
			slots[slot] = slots[slot - 1];
	} else if (strcmp(fault, "nothing")) {
		return -EINVAL;
	}
	return 0;
}
module_init(type1_init);

static void __exit type1_exit(void)
{
}
module_exit(type1_exit);

MODULE_DESCRIPTION("A type1 that is not what it should be");
MODULE_LICENSE("GPL");
