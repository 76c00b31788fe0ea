/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a driver gives to vfio_register_iommu_driver(), and that function.
 *
 * The kernel's own declarations are private to drivers/vfio, which distributions'
 * headers do not have. check-layout.sh compares these with the kernel that the module
 * is built for, and deferred_check_type1() with the one that it is loaded into.
 */
#ifndef DEFERRED_DRIVER_OPS_H
#define DEFERRED_DRIVER_OPS_H

#include <linux/types.h>

struct iommu_domain;
struct iommu_group;
struct module;
struct page;
struct vfio_device;

/* What a group's devices are: with an IOMMU, emulated, or with none at all. */
enum vfio_group_type {
	VFIO_IOMMU,
	VFIO_EMULATED_IOMMU,
	VFIO_NO_IOMMU,
};

struct vfio_iommu_driver_ops {
	char *name;
	struct module *owner;
	void *(*open)(unsigned long arg);
	void (*release)(void *iommu_data);
	long (*ioctl)(void *iommu_data, unsigned int cmd, unsigned long arg);
	int (*attach_group)(void *iommu_data, struct iommu_group *group,
			    enum vfio_group_type type);
	void (*detach_group)(void *iommu_data, struct iommu_group *group);
	int (*pin_pages)(void *iommu_data, struct iommu_group *group,
			 dma_addr_t user_iova, int npage, int prot,
			 struct page **pages);
	void (*unpin_pages)(void *iommu_data, dma_addr_t user_iova, int npage);
	void (*register_device)(void *iommu_data, struct vfio_device *vdev);
	void (*unregister_device)(void *iommu_data, struct vfio_device *vdev);
	int (*dma_rw)(void *iommu_data, dma_addr_t user_iova, void *data,
		      size_t count, bool write);
	struct iommu_domain *(*group_iommu_domain)(void *iommu_data,
						   struct iommu_group *group);
};

int vfio_register_iommu_driver(const struct vfio_iommu_driver_ops *ops);
void vfio_unregister_iommu_driver(const struct vfio_iommu_driver_ops *ops);

int deferred_check_type1(const struct vfio_iommu_driver_ops *ops);

#endif /* DEFERRED_DRIVER_OPS_H */
