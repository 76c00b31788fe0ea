// SPDX-License-Identifier: GPL-2.0-only
/*
 * Address of a data symbol that is not exported.
 *
 * In C because struct kprobe is mostly macros and architecture.
 */

#include <linux/errno.h>
#include <linux/kprobes.h>

#include "ksym.h"

/**
 * deferred_find_data() - look up a data symbol of the kernel or of a module
 * @name: the symbol, or "module:symbol"
 * @addr: its address, on success
 *
 * register_kprobe() resolves a name and only then refuses to probe what is not
 * code, so it serves as a look-up: no probe is ever armed, and no function that
 * is not exported is called (whose entry may be sealed against indirect calls).
 *
 * Context: process context, may sleep.
 * Return: 0; -ENOENT when there is no such symbol; -EOPNOTSUPP when it is code;
 * or what register_kprobe() says (no CONFIG_KPROBES).
 */
int deferred_find_data(const char *name, unsigned long *addr)
{
	struct kprobe kp = { .symbol_name = name };
	int ret;

	ret = register_kprobe(&kp);
	if (!ret) {
		unregister_kprobe(&kp);
		return -EOPNOTSUPP;
	}
	if (!kp.addr)
		return ret;
	*addr = (unsigned long)kp.addr;
	return 0;
}
