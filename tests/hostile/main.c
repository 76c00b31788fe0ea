// SPDX-License-Identifier: GPL-2.0-only
/*
 * A hostile guest: takes the balloon's PCI function from virtio-pci and does to it
 * what no driver should, from a seed.
 *
 * A case is one attack of at most a few dozen steps.  Its random numbers depend on
 * the seed and its number alone.  After it the device either has answered everything
 * or is reset, and the next case begins.
 *
 * The attacker wants its own kernel to survive, so that it can go on: the device may
 * be told to read from anywhere, but to write only into the arena and to addresses
 * that are no memory.
 *
 * Where a request is in order, or is not, but the ring is, the answer is known and
 * compared.  An answer that is not the one expected is counted as "wrong".
 *
 * Cases that map much at once, which leaves the host little to decide afterwards,
 * are kept for the last quarter, and deflations walk up through memory as cases go by.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/err.h>
#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/ioport.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/pci.h>

#include "hostile.h"

static unsigned int seed = 1;
module_param(seed, uint, 0444);
MODULE_PARM_DESC(seed, "Where all random numbers come from");

static unsigned int cases = 1000;
module_param(cases, uint, 0444);
MODULE_PARM_DESC(cases, "How many cases");

static bool others = true;
module_param(others, bool, 0444);
MODULE_PARM_DESC(others, "Start as another driver now and then, which has all mapped");

static bool lie;
module_param(lie, bool, 0444);
MODULE_PARM_DESC(lie, "Negative control: take every sound request for a malformed one");

static unsigned int done;
module_param(done, uint, 0444);
MODULE_PARM_DESC(done, "How many cases are over");

/* Changes one thing that the device may be reading. Never an address in a ring. */
static void scribble(struct hostile *h, struct rnd_state *rnd)
{
	struct queue *q = &h->queues[prandom_u32_state(rnd) % QUEUES];
	u32 value = prandom_u32_state(rnd);
	u16 at = prandom_u32_state(rnd) % q->size;
	u8 *message = h->arena + MESSAGES + prandom_u32_state(rnd) % 4 * SLOT_BYTES;
	u64 *word = (u64 *)message + prandom_u32_state(rnd) % 8;

	/* Mostly what is in use. */
	if (value & 7)
		at %= 16;
	switch ((value >> 8) % 8) {
	case 0:
		WRITE_ONCE(q->desc[at].flags, cpu_to_le16(value >> 16 & 7));
		break;
	case 1:
		WRITE_ONCE(q->desc[at].len, cpu_to_le32(value >> 16));
		break;
	case 2:
		WRITE_ONCE(q->desc[at].next, cpu_to_le16((value >> 16) % 16));
		break;
	case 3:
		WRITE_ONCE(q->avail->ring[at], cpu_to_le16((value >> 16) % 16));
		break;
	case 4:
		WRITE_ONCE(q->avail->idx, cpu_to_le16(q->avail_idx + (value >> 16) % 3));
		break;
	case 5:
		WRITE_ONCE(*word, *word ^ BIT_ULL(value >> 16 & 63));
		break;
	case 6:
		WRITE_ONCE(*word, ALL_MEMORY);
		break;
	default:
		WRITE_ONCE(*(u32 *)word, (value >> 16) % 4);
		break;
	}
}

static int scribbler(void *data)
{
	struct hostile *h = data;
	struct rnd_state rnd;

	while (!kthread_should_stop()) {
		wait_event_interruptible(h->wait, READ_ONCE(h->scribble) ||
					 kthread_should_stop());
		WRITE_ONCE(h->scribbling, true);
		prandom_seed_state(&rnd, h->scribble_seed);
		/* Pairs with attack_race(): what it has sent is there. */
		while (smp_load_acquire(&h->scribble) && !kthread_should_stop()) {
			scribble(h, &rnd);
			cond_resched();
		}
		WRITE_ONCE(h->scribbling, false);
		wake_up(&h->wait);
	}
	return 0;
}

static const struct attack *choose(struct hostile *h)
{
	const struct attack *attack = attacks;
	unsigned int left = below(h, 100);

	while (left >= attack->weight && attack[1].name) {
		left -= attack->weight;
		attack++;
	}
	return attack;
}

static void one_case(struct hostile *h)
{
	const struct attack *attack;
	unsigned int stuck = h->stuck;

	prandom_seed_state(&h->rnd, (u64)seed << 32 | (h->index + 1));
	h->late = h->done * 4 >= h->cases * 3;
	attack = choose(h);
	h->fatal = attack->fatal;
	if (attack->run(h))
		return;
	if (h->stuck != stuck)
		pr_notice("case %u: %s: no answer\n", h->index, attack->name);
	h->fatal = false;
	restart(h);
}

static void report(struct hostile *h, const char *what)
{
	pr_notice("%s: seed=%u cases=%u answers=%u invalid=%u nomap=%u wrong=%u stuck=%u resets=%u\n",
		  what, seed, h->done, h->answers, h->invalid, h->nomap, h->wrong, h->stuck,
		  h->resets);
}

static int attacker(void *data)
{
	struct hostile *h = data;
	unsigned int step = max(h->cases / 10, 1);

	prandom_seed_state(&h->rnd, seed);
	restart(h);
	/* A device that is stuck once has failed, and would take forever. */
	while (h->done < h->cases && !h->stuck && !kthread_should_stop()) {
		one_case(h);
		h->index++;
		WRITE_ONCE(done, ++h->done);
		if (h->done % step == 0 && h->done < h->cases)
			report(h, "so far");
		cond_resched();
	}
	reset(h);
	report(h, "done");
	/* kthread_stop() wants a thread that is still there. */
	while (!kthread_should_stop())
		schedule_timeout_interruptible(HZ);
	return 0;
}

/* The end of this kernel's memory, and registers of a device passed through. */
static void look_round(struct hostile *h)
{
	/* QEMU's edu. */
	struct pci_dev *other = pci_get_device(0x1234, 0x11e8, NULL);
	struct resource *res;

	/* One level is enough, and nothing is plugged in or out here. */
	for (res = iomem_resource.child; res; res = res->sibling)
		if ((res->flags & IORESOURCE_SYSTEM_RAM) == IORESOURCE_SYSTEM_RAM)
			h->ram_end = res->end + 1;
	if (other)
		h->other_bar = pci_resource_start(other, 0);
	pci_dev_put(other);
}

static int set_up_rings(struct hostile *h)
{
	unsigned int i;

	for (i = 0; i < QUEUES; i++) {
		struct queue *q = &h->queues[i];
		u8 *ring = h->arena + i * RING_BYTES;

		q->desc = (void *)ring;
		q->avail = (void *)(ring + AVAIL);
		q->used = (void *)(ring + USED);
		q->size = 256;
		q->notify = vp_modern_map_vq_notify(&h->mdev, i, NULL);
		if (!q->notify)
			return -EIO;
	}
	return 0;
}

static int start_threads(struct hostile *h)
{
	h->scribbler = kthread_run(scribbler, h, "hostile-scribble");
	if (IS_ERR(h->scribbler))
		return PTR_ERR(h->scribbler);
	h->attacker = kthread_run(attacker, h, "hostile");
	if (IS_ERR(h->attacker)) {
		kthread_stop(h->scribbler);
		return PTR_ERR(h->attacker);
	}
	return 0;
}

static int hostile_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct hostile *h = devm_kzalloc(&pdev->dev, sizeof(*h), GFP_KERNEL);
	int err;

	if (!h)
		return -ENOMEM;
	h->arena = (void *)devm_get_free_pages(&pdev->dev, GFP_KERNEL | __GFP_ZERO,
					       get_order(ARENA));
	if (!h->arena)
		return -ENOMEM;
	h->arena_pa = virt_to_phys(h->arena);
	h->replies = (u64 *)(h->arena + REPLIES);
	h->pdev = pdev;
	h->cases = cases;
	h->others = others;
	h->lie = lie;
	init_waitqueue_head(&h->wait);
	look_round(h);

	err = pcim_enable_device(pdev);
	if (err)
		return err;
	/* Nobody here answers interrupts; what they say is in a register, too. */
	pci_intx(pdev, 0);
	pci_set_master(pdev);
	h->mdev.pci_dev = pdev;
	err = vp_modern_probe(&h->mdev);
	if (err)
		return err;
	pci_set_drvdata(pdev, h);
	err = set_up_rings(h) ?: start_threads(h);
	if (err)
		vp_modern_remove(&h->mdev);
	return err;
}

static void hostile_remove(struct pci_dev *pdev)
{
	struct hostile *h = pci_get_drvdata(pdev);

	kthread_stop(h->attacker);
	kthread_stop(h->scribbler);
	reset(h);
	vp_modern_remove(&h->mdev);
	pci_clear_master(pdev);
	pci_intx(pdev, 1);
}

static const struct pci_device_id hostile_ids[] = {
	{ PCI_DEVICE(PCI_VENDOR_ID_REDHAT_QUMRANET, 0x1002) },
	{ PCI_DEVICE(PCI_VENDOR_ID_REDHAT_QUMRANET, 0x1045) },
	{ }
};
MODULE_DEVICE_TABLE(pci, hostile_ids);

static struct pci_driver hostile_driver = {
	.name = KBUILD_MODNAME,
	.id_table = hostile_ids,
	.probe = hostile_probe,
	.remove = hostile_remove,
};

static int __init hostile_init(void)
{
	const struct pci_device_id *id;
	struct pci_dev *pdev;

	/* The kernel's own driver is built in, and has it. */
	for (id = hostile_ids; id->vendor; id++) {
		pdev = pci_get_device(id->vendor, id->device, NULL);
		if (pdev)
			device_release_driver(&pdev->dev);
		pci_dev_put(pdev);
	}
	return pci_register_driver(&hostile_driver);
}
module_init(hostile_init);

static void __exit hostile_exit(void)
{
	pci_unregister_driver(&hostile_driver);
}
module_exit(hostile_exit);

MODULE_DESCRIPTION("A hostile driver of the deferred balloon, for tests");
MODULE_LICENSE("GPL");
