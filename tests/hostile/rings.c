// SPDX-License-Identifier: GPL-2.0-only
/* The device's rings and registers, as they should be used; see main.c. */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/delay.h>
#include <linux/io.h>
#include <linux/ktime.h>
#include <linux/string.h>

#include <linux/virtio_balloon_deferred.h>

#include "hostile.h"

/* Adds a descriptor to the chain that is being made. */
void add_desc(struct hostile *h, struct queue *q, u64 addr, u32 len, bool write)
{
	u16 next = (q->desc_at + 1) % q->size;

	q->desc[q->desc_at] = (struct vring_desc) {
		.addr = cpu_to_le64(addr),
		.len = cpu_to_le32(len),
		.flags = cpu_to_le16(VRING_DESC_F_NEXT | (write ? VRING_DESC_F_WRITE : 0)),
		.next = cpu_to_le16(next),
	};
	q->chain_last = q->desc_at;
	q->chain_len++;
	q->desc_at = next;
}

void begin_chain(struct queue *q)
{
	q->chain_head = q->desc_at;
	q->chain_len = 0;
}

void end_chain(struct queue *q)
{
	q->desc[q->chain_last].flags &= ~cpu_to_le16(VRING_DESC_F_NEXT);
}

/* Makes the chain known to the device. */
static void offer(struct queue *q, u16 head)
{
	q->avail->ring[q->avail_idx++ % q->size] = cpu_to_le16(head);
	/* The chain before the index that promises it. */
	smp_wmb();
	WRITE_ONCE(q->avail->idx, cpu_to_le16(q->avail_idx));
}

void kick(struct hostile *h, unsigned int index)
{
	/* The index before the notification. */
	mb();
	iowrite16(index, h->queues[index].notify);
}

/* A chain for @len bytes at @message, in pieces, and for its reply. */
static void make_chain(struct hostile *h, struct queue *q, u8 *message, u32 len,
		       unsigned int slot)
{
	u64 addr = h->arena_pa + (message - h->arena);
	u64 reply = h->arena_pa + REPLIES + slot * sizeof(u64);
	u32 pieces = one_in(h, 3) ? 1 + below(h, 13) : 1;
	u32 at = 0;

	h->replies[slot] = NO_REPLY;
	begin_chain(q);
	while (at < len && --pieces) {
		u32 part = 1 + below(h, len - at);

		add_desc(h, q, addr + at, part, false);
		at += part;
	}
	if (at < len)
		add_desc(h, q, addr + at, len - at, false);
	if (one_in(h, 8)) {
		add_desc(h, q, reply, 3, true);
		add_desc(h, q, reply + 3, 5, true);
	} else {
		add_desc(h, q, reply, one_in(h, 8) ? SZ_2K : 8, true);
	}
	end_chain(q);
}

/* Sends a request whose ring is in order. */
void send(struct hostile *h, unsigned int index, unsigned int slot)
{
	struct queue *q = &h->queues[index];
	u8 *message = h->arena + MESSAGES + slot * SLOT_BYTES;
	u32 len = random_message(h, index, message);

	make_chain(h, q, message, len, slot);
	h->sound[slot] = is_sound(message, len, index) && !h->lie;
	offer(q, q->chain_head);
}

/* Sends one with a given header and one range. */
void send_plain(struct hostile *h, unsigned int index, u32 type, u64 start, u64 len,
		unsigned int slot)
{
	struct queue *q = &h->queues[index];
	u8 *message = h->arena + MESSAGES + slot * SLOT_BYTES;
	struct virtio_balloon_deferred_hdr *hdr = (void *)message;
	struct virtio_balloon_deferred_range *range = (void *)(hdr + 1);

	*hdr = (struct virtio_balloon_deferred_hdr) {
		.type = cpu_to_le32(type),
		.count = cpu_to_le32(!!len),
	};
	range->start = cpu_to_le64(start);
	range->len = cpu_to_le64(len);
	make_chain(h, q, message, sizeof(*hdr) + (len ? sizeof(*range) : 0), slot);
	h->sound[slot] = true;
	offer(q, q->chain_head);
}

static bool answered(struct hostile *h)
{
	unsigned int i;

	for (i = 0; i < QUEUES; i++)
		if (le16_to_cpu(READ_ONCE(h->queues[i].used->idx)) != h->queues[i].avail_idx)
			return false;
	/* The answers after the indices. */
	smp_rmb();
	return true;
}

/* Waits until everything is answered, or the device says that it is broken. */
bool settle(struct hostile *h, unsigned int timeout_us)
{
	ktime_t until = ktime_add_us(ktime_get(), timeout_us);
	unsigned int turn;

	for (turn = 0; !answered(h); turn++) {
		ktime_t now = ktime_get();

		if (ktime_after(now, until))
			return false;
		if (turn < 16) {
			cpu_relax();
			continue;
		}
		usleep_range(100, 200);
		/*
		 * The status that is read is the VMM's, which does not know that the
		 * device is broken; its configuration interrupt comes through. It may
		 * be for a new target, though.
		 */
		if (h->fatal && (ioread8(h->mdev.isr) & VIRTIO_PCI_ISR_CONFIG))
			until = min(until, ktime_add_us(now, 500));
	}
	return true;
}

/* Compares answers with what they must be. */
void check(struct hostile *h, unsigned int count)
{
	unsigned int i;

	for (i = 0; i < count; i++) {
		u32 status = le32_to_cpu((__force __le32)(u32)h->replies[i]);
		bool invalid = status == VIRTIO_BALLOON_DEFERRED_INVALID;

		h->answers++;
		h->invalid += invalid;
		h->nomap += status == VIRTIO_BALLOON_DEFERRED_NOMAP;
		if (status > VIRTIO_BALLOON_DEFERRED_NOMAP ||
		    h->sound[i] == invalid) {
			/* A line takes a slow host's serial port seconds. */
			if (h->wrong++ < WRONG_TOLD)
				pr_notice("case %u: %s request %u of %u got status %#x\n",
					  h->index, h->sound[i] ? "sound" : "malformed", i,
					  count, status);
		}
	}
}

void reset(struct hostile *h)
{
	ktime_t until = ktime_add_ms(ktime_get(), RESET_MS);

	vp_modern_set_status(&h->mdev, 0);
	while (vp_modern_get_status(&h->mdev) && ktime_before(ktime_get(), until))
		usleep_range(100, 200);
	h->resets++;
}

static void clear_rings(struct hostile *h)
{
	unsigned int i;

	memset(h->arena, 0, MESSAGES);
	for (i = 0; i < QUEUES; i++) {
		h->queues[i].avail_idx = 0;
		h->queues[i].desc_at = 0;
	}
}

static void set_up_queue(struct hostile *h, unsigned int index)
{
	struct queue *q = &h->queues[index];

	q->size = 1 << (8 + below(h, 3));
	vp_modern_set_queue_size(&h->mdev, index, q->size);
	vp_modern_queue_address(&h->mdev, index, virt_to_phys(q->desc),
				virt_to_phys(q->avail), virt_to_phys(q->used));
	vp_modern_set_queue_enable(&h->mdev, index, true);
}

/* Resets the device and starts it as a driver should. */
void restart(struct hostile *h)
{
	u64 features = BIT_ULL(VIRTIO_F_VERSION_1) |
		       BIT_ULL(VIRTIO_BALLOON_F_DEFERRED);
	unsigned int i;

	h->deferred = true;
	if (h->late && h->others && one_in(h, 64)) {
		/* Any other driver: then all is mapped. */
		features &= ~BIT_ULL(VIRTIO_BALLOON_F_DEFERRED);
		h->deferred = false;
	}
	reset(h);
	clear_rings(h);
	vp_modern_set_status(&h->mdev, STATUS_DRIVER);
	vp_modern_set_features(&h->mdev, features);
	vp_modern_set_status(&h->mdev, STATUS_FEATURES);
	for (i = 0; i < QUEUES; i++)
		set_up_queue(h, i);
	vp_modern_set_status(&h->mdev, STATUS_RUNNING);
	ioread8(h->mdev.isr);
	/* Something has to be in the balloon, or there is nothing to take out. */
	if (h->deferred && !one_in(h, 4)) {
		send_plain(h, INFLATE_QUEUE, VIRTIO_BALLOON_DEFERRED_INFLATE, 0,
			   ALL_MEMORY, 0);
		kick(h, INFLATE_QUEUE);
		if (settle(h, ANSWER_US))
			check(h, 1);
		else
			h->stuck++;
	}
}
