// SPDX-License-Identifier: GPL-2.0-only
/* The attacks. Each says whether the device may go on as it is; see main.c. */

#include <linux/delay.h>
#include <linux/io.h>
#include <linux/pci.h>

#include <linux/virtio_balloon_deferred.h>

#include "hostile.h"

/* Requests, sound or not, in a ring that is in order. */
static bool attack_messages(struct hostile *h)
{
	unsigned int count = one_in(h, 8) ? SLOTS : 1 + below(h, 3), i;
	unsigned int both = one_in(h, 4) ? QUEUES : 1;
	unsigned int index = one_in(h, 5) ? DEFLATE_QUEUE : INFLATE_QUEUE;

	if (index == DEFLATE_QUEUE && !h->late)
		count = 1 + below(h, 2);
	for (i = 0; i < count; i++) {
		/* The device may begin at any time. */
		send(h, index, i);
		if (one_in(h, 8))
			kick(h, index);
		if (both > 1)
			index = one_in(h, 5) ? DEFLATE_QUEUE : INFLATE_QUEUE;
	}
	kick(h, INFLATE_QUEUE);
	kick(h, DEFLATE_QUEUE);
	if (!settle(h, ANSWER_US)) {
		h->stuck++;
		return false;
	}
	if (h->deferred)
		check(h, count);
	return true;
}

/* A chain that is broken in one way. */
static bool attack_chain(struct hostile *h)
{
	unsigned int index = below(h, QUEUES);
	struct queue *q = &h->queues[index];
	struct vring_desc *desc;
	bool settled;
	u16 head;

	send(h, index, 0);
	head = q->chain_head;
	desc = &q->desc[(head + below(h, q->chain_len)) % q->size];
	switch (below(h, 12)) {
	case 0:
		/* A loop. */
		q->desc[q->chain_last].flags |= cpu_to_le16(VRING_DESC_F_NEXT);
		q->desc[q->chain_last].next = cpu_to_le16(head);
		break;
	case 1:
		/* A chain of all descriptors, or more. */
		begin_chain(q);
		do {
			add_desc(h, q, arena_address(h), 1 + below(h, 64), false);
		} while (q->chain_len < q->size);
		if (one_in(h, 2))
			end_chain(q);
		break;
	case 2:
		desc->flags |= cpu_to_le16(VRING_DESC_F_INDIRECT);
		desc->len = cpu_to_le32(below(h, 9) * sizeof(*desc));
		break;
	case 3:
		desc->len = 0;
		break;
	case 4:
		desc->len = cpu_to_le32(U32_MAX - below(h, 2));
		break;
	case 5:
		desc->addr = cpu_to_le64(no_memory(h));
		break;
	case 6:
		if (!(desc->flags & cpu_to_le16(VRING_DESC_F_WRITE)))
			desc->addr = cpu_to_le64(any_address(h));
		break;
	case 7:
		/* The wrong direction; all addresses are of the arena. */
		desc->flags ^= cpu_to_le16(VRING_DESC_F_WRITE);
		break;
	case 8:
		desc->next = cpu_to_le16(random32(h));
		break;
	case 9:
		desc->flags = cpu_to_le16(random32(h));
		break;
	case 10:
		head = random32(h);
		break;
	default:
		/* No room for the answer. */
		q->desc[q->chain_last].len = cpu_to_le32(1 + below(h, 7));
		break;
	}
	q->avail->ring[(u16)(q->avail_idx - 1) % q->size] = cpu_to_le16(head);
	kick(h, index);
	settled = settle(h, FATAL_US);
	/* Nothing shall be written there by a chain that comes by later. */
	desc->addr = cpu_to_le64(h->arena_pa + MESSAGES);
	return settled;
}

/* An index that jumps, with what was in the ring before, or not. */
static bool attack_index(struct hostile *h)
{
	unsigned int index = below(h, QUEUES);
	struct queue *q = &h->queues[index];
	u16 by = one_in(h, 2) ? below(h, 8) : random32(h);
	bool back = one_in(h, 4);

	send(h, index, 0);
	q->avail_idx += by;
	WRITE_ONCE(q->avail->idx, cpu_to_le16(q->avail_idx));
	kick(h, index);
	if (back) {
		q->avail_idx -= by;
		WRITE_ONCE(q->avail->idx, cpu_to_le16(q->avail_idx));
		kick(h, index);
	}
	/* What was there before may be in work, and is not waited for. */
	return settle(h, FATAL_US) && !back;
}

static bool attack_kicks(struct hostile *h)
{
	unsigned int count = 1 + below(h, 32), sent = 0, i;

	for (i = 0; i < count; i++) {
		if (sent < SLOTS && one_in(h, 16))
			send(h, INFLATE_QUEUE, sent++);
		iowrite16(one_in(h, 4) ? random32(h) : below(h, QUEUES),
			  h->queues[below(h, QUEUES)].notify);
	}
	kick(h, INFLATE_QUEUE);
	if (settle(h, ANSWER_US))
		return true;
	h->stuck++;
	return false;
}

/* The ring and the requests change while they are read. */
static bool attack_race(struct hostile *h)
{
	unsigned int count = 1 + below(h, 8), i;

	h->scribble_seed = random32(h);
	/* The seed before the word to begin. */
	smp_store_release(&h->scribble, true);
	wake_up(&h->wait);
	for (i = 0; i < count; i++) {
		send(h, one_in(h, 5) ? DEFLATE_QUEUE : INFLATE_QUEUE, i);
		kick(h, INFLATE_QUEUE);
		kick(h, DEFLATE_QUEUE);
	}
	settle(h, 1000 + below(h, 2000));
	WRITE_ONCE(h->scribble, false);
	wait_event(h->wait, !READ_ONCE(h->scribbling));
	return false;
}

static bool attack_config(struct hostile *h)
{
	unsigned int count = 1 + below(h, 16), at;

	while (count--) {
		at = below(h, h->mdev.device_len);
		switch (below(h, 4)) {
		case 0:
			iowrite8(random32(h), h->mdev.device + at);
			break;
		case 1:
			iowrite16(random32(h), h->mdev.device + (at & ~1));
			break;
		case 2:
			iowrite32(random32(h), h->mdev.device + (at & ~3));
			break;
		default:
			ioread32(h->mdev.device + (at & ~3));
			break;
		}
	}
	return attack_messages(h);
}

/*
 * Only what a VMM takes: for a ring outside memory, for one that is misaligned where
 * vhost looks, or a size that is no power of 2, QEMU's vhost gives up on the device
 * until it is itself started again. tests/host/vdpa_ioctl.c has those.
 */
static void random_queue(struct hostile *h, unsigned int index)
{
	static const u16 sizes[] = { 0, 1, 2, 4, 64, 256, 1024, 2048, 32768 };
	u64 desc = arena_address(h), avail = arena_address(h);
	u64 used = h->arena_pa + below(h, ARENA - SZ_16K);

	/*
	 * Descriptors come from the arena: whatever else they were read from, they
	 * might let the device write there.
	 */
	if (!one_in(h, 4))
		desc &= ~15ULL;
	if (one_in(h, 4))
		avail = one_in(h, 2) ? h->ram_end - SZ_8K : below(h, SZ_512K);
	vp_modern_set_queue_size(&h->mdev, index, sizes[below(h, ARRAY_SIZE(sizes))]);
	vp_modern_queue_address(&h->mdev, index, desc, avail & ~1ULL, used & ~3ULL);
	vp_modern_set_queue_enable(&h->mdev, index, !one_in(h, 8));
}

/* Queues that overlap each other and all else, set while they run or not. */
static bool attack_queues(struct hostile *h)
{
	unsigned int count = 1 + below(h, 4);

	if (!one_in(h, 4)) {
		reset(h);
		vp_modern_set_status(&h->mdev, STATUS_DRIVER);
		vp_modern_set_features(&h->mdev, BIT_ULL(VIRTIO_F_VERSION_1) |
						 BIT_ULL(VIRTIO_BALLOON_F_DEFERRED));
		vp_modern_set_status(&h->mdev, STATUS_FEATURES);
	}
	while (count--)
		random_queue(h, below(h, QUEUES + (one_in(h, 8) ? 64 : 0)));
	vp_modern_set_status(&h->mdev, STATUS_RUNNING);
	kick(h, INFLATE_QUEUE);
	kick(h, DEFLATE_QUEUE);
	usleep_range(200, 2000);
	return false;
}

/* The steps of starting and stopping, in any order. */
static bool attack_status(struct hostile *h)
{
	unsigned int count = 1 + below(h, 6);

	while (count--) {
		switch (below(h, 6)) {
		case 0:
			vp_modern_set_status(&h->mdev, random32(h));
			break;
		case 1:
			vp_modern_set_features(&h->mdev, random64(h) |
					       BIT_ULL(VIRTIO_BALLOON_F_DEFERRED));
			break;
		case 2:
			vp_modern_set_status(&h->mdev, STATUS_RUNNING);
			break;
		case 3:
			vp_modern_set_status(&h->mdev, 0);
			break;
		case 4:
			/* Without mastering the bus the device is stopped. */
			pci_clear_master(h->pdev);
			pci_set_master(h->pdev);
			break;
		default:
			send(h, INFLATE_QUEUE, 0);
			kick(h, INFLATE_QUEUE);
			break;
		}
	}
	return false;
}

/* Resets that come while the device is at work. */
static bool attack_reset(struct hostile *h)
{
	unsigned int count = 1 + below(h, 8), i;

	for (i = 0; i < count; i++)
		send(h, one_in(h, 3) ? DEFLATE_QUEUE : INFLATE_QUEUE, i);
	kick(h, INFLATE_QUEUE);
	kick(h, DEFLATE_QUEUE);
	if (one_in(h, 2))
		udelay(below(h, 300));
	return false;
}

static bool attack_commit(struct hostile *h)
{
	unsigned int count = 2 + below(h, 4), i;

	/* All in the balloon but a few holes, so that little has to be mapped. */
	if (!h->late)
		send_plain(h, INFLATE_QUEUE, VIRTIO_BALLOON_DEFERRED_INFLATE, 0,
			   ALL_MEMORY, 0);
	else
		send_plain(h, INFLATE_QUEUE, VIRTIO_BALLOON_DEFERRED_COMMIT, 0, 0, 0);
	for (i = 1; i < count; i++)
		send_plain(h, INFLATE_QUEUE, VIRTIO_BALLOON_DEFERRED_COMMIT, 0, 0, i);
	kick(h, INFLATE_QUEUE);
	if (!settle(h, ANSWER_US)) {
		h->stuck++;
		return false;
	}
	if (h->deferred)
		check(h, count);
	return true;
}

const struct attack attacks[] = {
	{ "messages", attack_messages, 64, false },
	{ "chain", attack_chain, 5, true },
	{ "index", attack_index, 2, true },
	{ "kicks", attack_kicks, 8, false },
	{ "race", attack_race, 2, true },
	{ "config", attack_config, 14, false },
	{ "queues", attack_queues, 1, true },
	{ "status", attack_status, 1, true },
	{ "reset", attack_reset, 1, true },
	{ "commit", attack_commit, 2, false },
	{ }
};
