// SPDX-License-Identifier: GPL-2.0-only
/* Inline functions and macros of the kernel's headers that Rust cannot call. */

#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/ratelimit.h>
#include <linux/sched/signal.h>
#include <linux/uaccess.h>
#include <linux/wait.h>

#include "../../include/wrap/compat.h"

/* bindgen and modpost see these: they are called from Rust alone. */
void rust_helper_set_current_running(void);
bool rust_helper_fatal_signal_pending_current(void);
void rust_helper_init_woken_entry(struct wait_queue_entry *entry);
unsigned long rust_helper_memlock_limit(void);
unsigned long rust_helper_total_locked(struct mm_struct *mm);
void rust_helper_ratelimit_default_init(struct ratelimit_state *state);
void rust_helper_release_fault_lock(struct vm_fault *vmf);
struct file *rust_helper_hold_file(struct file *file);
vm_fault_t rust_helper_insert_kernel_page(struct vm_fault *vmf, struct page *page);

/* An enumerator, since bindgen does not evaluate the macro's expression. */
enum { TASK_KILLABLE_STATE = TASK_KILLABLE };

void rust_helper_set_current_running(void)
{
	__set_current_state(TASK_RUNNING);
}

bool rust_helper_fatal_signal_pending_current(void)
{
	return fatal_signal_pending(current);
}

void rust_helper_init_woken_entry(struct wait_queue_entry *entry)
{
	init_wait_func(entry, woken_wake_function);
}

unsigned long rust_helper_memlock_limit(void)
{
	return rlimit(RLIMIT_MEMLOCK) >> PAGE_SHIFT;
}

unsigned long rust_helper_total_locked(struct mm_struct *mm)
{
	return READ_ONCE(mm->locked_vm);
}

void rust_helper_ratelimit_default_init(struct ratelimit_state *state)
{
	ratelimit_default_init(state);
}

void rust_helper_release_fault_lock(struct vm_fault *vmf)
{
	release_fault_lock(vmf);
}

struct file *rust_helper_hold_file(struct file *file)
{
	return get_file(file);
}

vm_fault_t rust_helper_insert_kernel_page(struct vm_fault *vmf, struct page *page)
{
	return vmf_insert_pfn(vmf->vma, vmf->address, page_to_pfn(page));
}
