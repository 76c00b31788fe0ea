/* SPDX-License-Identifier: GPL-2.0-only */
/* What the parts of the hostile guest share; see main.c. */
#ifndef HOSTILE_H
#define HOSTILE_H

#include <linux/prandom.h>
#include <linux/sizes.h>
#include <linux/types.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci_modern.h>
#include <linux/virtio_ring.h>
#include <linux/wait.h>

#include <linux/virtio_balloon_deferred.h>

#define GRANULE		((u64)VIRTIO_BALLOON_DEFERRED_GRANULE)
/* A sound range that covers all there can be. */
#define ALL_MEMORY	(-GRANULE)

enum { INFLATE_QUEUE, DEFLATE_QUEUE, QUEUES };

#define STATUS_DRIVER	(VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER)
#define STATUS_FEATURES	(STATUS_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK)
#define STATUS_RUNNING	(STATUS_FEATURES | VIRTIO_CONFIG_S_DRIVER_OK)

/* The arena: rings, requests and replies; offsets. */
#define ARENA		SZ_256K
#define RING_BYTES	SZ_32K
#define AVAIL		SZ_16K
#define USED		(SZ_16K + SZ_4K)
#define MESSAGES	(QUEUES * RING_BYTES)
#define SLOT_BYTES	SZ_8K
#define SLOTS		16
#define REPLIES		(ARENA - SZ_4K)
#define NO_REPLY	U64_MAX

/* How long to wait for what must come, and for what need not. */
#define ANSWER_US	(60 * USEC_PER_SEC)
#define FATAL_US	(20 * USEC_PER_MSEC)
#define RESET_MS	(60 * MSEC_PER_SEC)

/* So many wrong answers are told one by one; all are counted. */
#define WRONG_TOLD	8

struct queue {
	struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;
	void __iomem *notify;
	u16 size;
	u16 avail_idx;		/* the driver's own, unlike avail->idx */
	u16 desc_at;		/* the next descriptor to use */
	u16 chain_head, chain_last, chain_len;	/* the chain made last */
};

struct hostile {
	struct virtio_pci_modern_device mdev;
	struct pci_dev *pdev;
	struct queue queues[QUEUES];
	u8 *arena;
	u64 arena_pa;
	u64 *replies;
	u64 ram_end;
	u64 other_bar;		/* of a device that is passed through; or 0 */

	/* The case at hand. */
	struct rnd_state rnd;
	unsigned int index, done, cases;
	bool others;		/* may start as another driver */
	bool lie;		/* expect wrong answers */
	bool late;		/* of the last quarter */
	bool fatal;		/* likely to break the device */
	bool deferred;		/* VIRTIO_BALLOON_F_DEFERRED was negotiated */
	bool sound[SLOTS];	/* which requests are in order */
	u64 last_start, last_len;

	struct task_struct *attacker, *scribbler;
	wait_queue_head_t wait;
	u32 scribble_seed;
	bool scribble, scribbling;

	unsigned int answers, invalid, nomap, wrong, stuck, resets;
};

/* A kind of attack, and how many of a hundred are of it. */
struct attack {
	const char *name;
	bool (*run)(struct hostile *h);
	unsigned int weight;
	bool fatal;
};

extern const struct attack attacks[];

static inline u32 random32(struct hostile *h)
{
	return prandom_u32_state(&h->rnd);
}

static inline u64 random64(struct hostile *h)
{
	return (u64)random32(h) << 32 | random32(h);
}

static inline u32 below(struct hostile *h, u32 limit)
{
	return limit ? random32(h) % limit : 0;
}

static inline bool one_in(struct hostile *h, u32 count)
{
	return !below(h, count);
}

/* messages.c */
u64 no_memory(struct hostile *h);
u64 arena_address(struct hostile *h);
u64 any_address(struct hostile *h);
bool is_sound(const u8 *message, u32 len, unsigned int index);
u32 random_message(struct hostile *h, unsigned int index, u8 *message);

/* rings.c */
void begin_chain(struct queue *q);
void add_desc(struct hostile *h, struct queue *q, u64 addr, u32 len, bool write);
void end_chain(struct queue *q);
void send(struct hostile *h, unsigned int index, unsigned int slot);
void send_plain(struct hostile *h, unsigned int index, u32 type, u64 start, u64 len,
		unsigned int slot);
void kick(struct hostile *h, unsigned int index);
bool settle(struct hostile *h, unsigned int timeout_us);
void check(struct hostile *h, unsigned int count);
void reset(struct hostile *h);
void restart(struct hostile *h);

#endif
