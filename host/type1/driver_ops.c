// SPDX-License-Identifier: GPL-2.0-only
/*
 * Whether type1's operations are laid out as driver_ops.h says, in the kernel that
 * this module is loaded into.
 *
 * In C because names of symbols are printed into buffers, and compared, here.
 * check-layout.sh looks at this file's object: it has to use the whole structure.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/kallsyms.h>
#include <linux/module.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "driver_ops.h"

#define TYPE1 "vfio_iommu_type1"
#define UNKNOWN ": this module does not know this kernel\n"

/* Of each operation: where its pointer is, and how type1 calls its function. */
#define OPERATION(member) \
	{ offsetof(struct vfio_iommu_driver_ops, member), TYPE1 "_" #member }

static const struct {
	size_t offset;
	const char *function;
} operations[] = {
	OPERATION(open),
	OPERATION(release),
	OPERATION(ioctl),
	OPERATION(attach_group),
	OPERATION(detach_group),
	OPERATION(pin_pages),
	OPERATION(unpin_pages),
	OPERATION(register_device),
	OPERATION(unregister_device),
	OPERATION(dma_rw),
	OPERATION(group_iommu_domain),
};

/* Another member has to be checked here, too. */
static_assert(offsetof(struct vfio_iommu_driver_ops, open) +
	      ARRAY_SIZE(operations) * sizeof(void (*)(void)) ==
	      sizeof(struct vfio_iommu_driver_ops));

/* Whether a string of the kernel, if it is one, is @expected. */
static bool is_string(const char *string, const char *expected)
{
	char text[sizeof("vfio-iommu-type1")];
	size_t size = strlen(expected) + 1;

	return size <= sizeof(text) &&
	       !copy_from_kernel_nofault(text, string, size) &&
	       !memcmp(text, expected, size);
}

/* Whether @symbol begins at @address, in type1's module, or in the kernel if @builtin. */
static bool is_symbol(unsigned long address, const char *symbol, bool builtin)
{
	/* Too large for the stack; this runs once, when the module is loaded. */
	static char text[KSYM_SYMBOL_LEN];
	const char *module;
	size_t length;

	/* "symbol+offset/size [module]" */
	sprint_symbol(text, address);
	length = str_has_prefix(text, symbol);
	if (!length || strncmp(text + length, "+0x0/", strlen("+0x0/")))
		return false;
	module = strstr(text, " [");
	if (builtin)
		return !module;
	return module && str_has_prefix(module, " [" TYPE1 "]");
}

/**
 * deferred_check_type1() - see whether these are type1's operations, as we know them
 * @ops: what is called vfio_iommu_driver_ops_type1; its module may not be unloaded meanwhile
 *
 * Its name, its module, and that each pointer leads to the function of type1's that belongs
 * there. A pointer that is somewhere else, is missing or was added before others is noticed;
 * one behind all others is not, but then nothing is read that is not there. Errors are logged.
 *
 * Context: module initialisation, one caller at a time.
 * Return: 0, or -EOPNOTSUPP.
 */
int deferred_check_type1(const struct vfio_iommu_driver_ops *ops)
{
	const struct module *owner = ops->owner;
	size_t i;

	if (!is_string(ops->name, "vfio-iommu-type1")) {
		pr_err("the operations of " TYPE1 " have another name" UNKNOWN);
		return -EOPNOTSUPP;
	}
	if (owner && !(is_string(owner->name, TYPE1) &&
		       within_module((unsigned long)ops, owner))) {
		pr_err("the operations of " TYPE1 " are another module's" UNKNOWN);
		return -EOPNOTSUPP;
	}
	for (i = 0; i < ARRAY_SIZE(operations); i++) {
		unsigned long address =
			*(unsigned long *)((char *)ops + operations[i].offset);

		if (is_symbol(address, operations[i].function, !owner))
			continue;
		pr_err("%pS is where %s of " TYPE1 " should be" UNKNOWN,
		       (void *)address, operations[i].function);
		return -EOPNOTSUPP;
	}
	return 0;
}
