// SPDX-License-Identifier: GPL-2.0-only
/*
 * Linked to the kernel's VFIO selftests: where a test does not say by which
 * interface it wants the IOMMU, it gets type1 instead of iommufd.
 */

extern const char *default_iommu_mode;

static void __attribute__((constructor)) choose_type1(void)
{
	default_iommu_mode = "vfio_type1v2_iommu";
}
