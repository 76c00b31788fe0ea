// SPDX-License-Identifier: GPL-2.0-only
/*
 * One fault of each kind that a debug kernel has to report, on demand: the negative
 * control of the tests that find nothing. Never for a kernel that is of use.
 *
 * insmod splat.ko fault=KIND. The fault happens in init, which then succeeds.
 */

#include <linux/delay.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/workqueue.h>

static char *fault = "";
module_param(fault, charp, 0444);
MODULE_PARM_DESC(fault, "which kind, see faults[]");

/* What the compiler must not know. */
static int three = 3;
module_param(three, int, 0444);

static DEFINE_MUTEX(first);
static DEFINE_MUTEX(second);
static DEFINE_SPINLOCK(spin);

static void use_after_free(void)
{
	char *p = kmalloc(64, GFP_KERNEL);

	if (!p)
		return;
	kfree(p);
	WRITE_ONCE(p[three], 1);
}

static void out_of_bounds(void)
{
	char *p = kmalloc(64, GFP_KERNEL);

	if (!p)
		return;
	OPTIMIZER_HIDE_VAR(p);
	WRITE_ONCE(p[61 + three], 1);
	kfree(p);
}

static void leak(void)
{
	/*
	 * So many that the allocator's own lists, which go on naming objects that were
	 * handed out, do not have all of them.
	 */
	for (int i = 0; i < 4096; i++) {
		void *p = kmalloc(200 + three, GFP_KERNEL);

		OPTIMIZER_HIDE_VAR(p);
	}
}

static void lock_inversion(void)
{
	mutex_lock(&first);
	mutex_lock(&second);
	mutex_unlock(&second);
	mutex_unlock(&first);

	mutex_lock(&second);
	mutex_lock(&first);
	mutex_unlock(&first);
	mutex_unlock(&second);
}

static void sleep_in_atomic(void)
{
	spin_lock(&spin);
	msleep(three);
	spin_unlock(&spin);
}

static void shift_too_far(void)
{
	pr_info("splat: %d\n", three << (30 + three));
}

static void nothing(struct work_struct *work)
{
}

/* Freed while it is queued. */
static void live_object(void)
{
	struct delayed_work *work = kmalloc_obj(*work);

	if (!work)
		return;
	INIT_DELAYED_WORK(work, nothing);
	schedule_delayed_work(work, 1000 * HZ);
	kfree(work);
}

static const struct {
	const char *name;
	void (*run)(void);
} faults[] = {
	{ "use_after_free", use_after_free },
	{ "out_of_bounds", out_of_bounds },
	{ "leak", leak },
	{ "lock_inversion", lock_inversion },
	{ "sleep_in_atomic", sleep_in_atomic },
	{ "shift_too_far", shift_too_far },
	{ "live_object", live_object },
};

static int __init splat_init(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(faults); i++) {
		if (strcmp(faults[i].name, fault))
			continue;
		faults[i].run();
		return 0;
	}
	return -EINVAL;
}
module_init(splat_init);

static void __exit splat_exit(void)
{
}
module_exit(splat_exit);

MODULE_DESCRIPTION("Faults that a debug kernel has to report");
MODULE_LICENSE("GPL");
