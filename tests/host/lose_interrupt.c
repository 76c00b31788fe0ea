// SPDX-License-Identifier: GPL-2.0-only
/*
 * Loses an interrupt of a processor's timer, as QEMU's emulated processors do.
 *
 * parameter, /sys/module/lose_interrupt/parameters/:
 *   cpu  the processor: its next one stays in service, and no other of that or a lower
 *        priority comes; -1 once that has been done
 */

#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/smp.h>
#include <asm/apic.h>
#include <asm/fixmap.h>
#include <asm/irq_vectors.h>

static int cpu = -1;
module_param(cpu, int, 0644);

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

MODULE_DESCRIPTION("Interrupts that the processor loses, for tests");
MODULE_LICENSE("GPL");
