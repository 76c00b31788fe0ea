// SPDX-License-Identifier: GPL-2.0-only
/*
 * What QEMU's emulated processors do to interrupts, here to those of their timers.
 *
 * parameters, /sys/module/lose_interrupt/parameters/; a processor's number is written:
 *   cpu    its next one is lost: it stays in service, and no other of that or a lower
 *          priority comes; -1 once that has been done
 *   again  it is delivered while interrupts are off, and its handler never ends
 */

#include <linux/irq_work.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/smp.h>
#include <asm/apic.h>
#include <asm/fixmap.h>
#include <asm/irq_vectors.h>

static int cpu = -1;
module_param(cpu, int, 0644);

static int again = -1;

/* Where a function goes on that is to do nothing: back to its caller. */
asm(".pushsection .text\n"
	".type lose_return, @function\n"
	"lose_return:\n"
	ANNOTATE_NOENDBR "\n"
	ASM_RET
	".size lose_return, .-lose_return\n"
	".popsection\n");
void lose_return(void);

static bool timer_in_service(void)
{
	u32 word = native_apic_mem_read(APIC_ISR + LOCAL_TIMER_VECTOR / 32 * 0x10);

	return word & BIT(LOCAL_TIMER_VECTOR % 32);
}

/* In the handler of an interrupt, with interrupts off. */
static int end_of_interrupt(struct kprobe *probe, struct pt_regs *regs)
{
	/* Not busily: an emulated processor that an L2 never leaves may hear nothing. */
	while (READ_ONCE(again) == smp_processor_id())
		asm volatile("hlt");
	if (READ_ONCE(cpu) != smp_processor_id() || !timer_in_service())
		return 0;
	WRITE_ONCE(cpu, -1);
	regs->ip = (unsigned long)lose_return;
	return 1;
}

/* With one, the probe is not made a jump, which would go on in the function. */
static void after(struct kprobe *probe, struct pt_regs *regs, unsigned long flags)
{
}

static struct kprobe probe = {
	.symbol_name = "native_apic_mem_eoi",
	.pre_handler = end_of_interrupt,
	.post_handler = after,
};

static void deliver(struct irq_work *work)
{
	WRITE_ONCE(again, smp_processor_id());
	asm volatile("int %0" : : "i" (LOCAL_TIMER_VECTOR) : "memory");
}

/* In the handler of another interrupt, so on the stack that all of them have. */
static struct irq_work delivery = IRQ_WORK_INIT_HARD(deliver);

static void queue_delivery(void *info)
{
	irq_work_queue(&delivery);
}

static int set_again(const char *value, const struct kernel_param *kp)
{
	int number, ret = kstrtoint(value, 0, &number);

	return ret ?: smp_call_function_single(number, queue_delivery, NULL, false);
}

static const struct kernel_param_ops again_ops = {
	.set = set_again,
	.get = param_get_int,
};
module_param_cb(again, &again_ops, &again, 0644);

static int __init lose_init(void)
{
	return register_kprobe(&probe);
}
module_init(lose_init);

static void __exit lose_exit(void)
{
	unregister_kprobe(&probe);
}
module_exit(lose_exit);

MODULE_DESCRIPTION("Interrupts that the processor loses or delivers twice, for tests");
MODULE_LICENSE("GPL");
