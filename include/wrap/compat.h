/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What older kernels do not have for Rust, see compat.rs. Included by one file of each
 * module, since it defines functions.
 */
#ifndef DEFERRED_COMPAT_H
#define DEFERRED_COMPAT_H

/* From Kbuild.bindgen. */
#ifndef LINUX_7_3

#include <linux/gfp.h>
#include <linux/spinlock.h>

/* bindgen and modpost see these: they are called from Rust alone. */
unsigned long compat_spin_lock_irqsave(spinlock_t *lock);
void compat_spin_unlock_irqrestore(spinlock_t *lock, unsigned long flags);
struct page *rust_helper_alloc_pages_node_noprof(int node, gfp_t gfp,
						 unsigned int order);

unsigned long compat_spin_lock_irqsave(spinlock_t *lock)
{
	unsigned long flags;

	spin_lock_irqsave(lock, flags);
	return flags;
}

void compat_spin_unlock_irqrestore(spinlock_t *lock, unsigned long flags)
{
	spin_unlock_irqrestore(lock, flags);
}

struct page *rust_helper_alloc_pages_node_noprof(int node, gfp_t gfp,
						 unsigned int order)
{
	return alloc_pages_node_noprof(node, gfp, order);
}

#endif /* LINUX_7_3 */

#endif /* DEFERRED_COMPAT_H */
