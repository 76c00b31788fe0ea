/* SPDX-License-Identifier: GPL-2.0-only */
/* The balloon's vDPA device, as a VMM has it: what its tests share. */
#ifndef VDPA_RIG_H
#define VDPA_RIG_H

#include <stdbool.h>
#include <stdint.h>

#include <linux/types.h>
#include <linux/virtio_balloon.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <linux/virtio_balloon_deferred.h>

#define RAM_BASE	0x200000000ULL
#define RAM_SIZE	(64ULL << 20)
#define HALF		(RAM_SIZE / 2)
#define PAGES		(RAM_SIZE / 4096)
#define QUEUE_SIZE	1024
#define ANSWER_MS	10000	/* an answer that takes longer is missing */
#define SILENCE_MS	200	/* how long no answer may come */

#define BIT(n)		(1ULL << (n))
#define F_DEFERRED	BIT(VIRTIO_BALLOON_F_DEFERRED)
#define F_COMMON	(BIT(VIRTIO_BALLOON_F_MUST_TELL_HOST) | \
			 BIT(VIRTIO_F_VERSION_1) | \
			 BIT(VIRTIO_F_ACCESS_PLATFORM))
#define READY		(VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER)

enum { INFLATE, DEFLATE, QUEUES };

struct config {
	__u32 num_pages;
	__u32 actual;
	__u32 rest[2];
	__u32 lowest_mib;
};

/* One queue's share of the RAM: the rings, a request and its reply. */
struct queue {
	struct vring ring;
	__u8 *request;
	struct virtio_balloon_deferred_reply *reply;
	int kick;
	int call;
};

struct message {
	struct virtio_balloon_deferred_hdr hdr;
	struct virtio_balloon_deferred_range ranges[2];
};

extern const char *path;	/* of the device */
extern int fd;			/* its descriptor */
extern int config_call;
extern struct queue queues[QUEUES];
extern __u8 *ram;
extern int tests, failures;

/* TAP: one result; giving up. */
void ok(bool good, const char *format, ...);
void skip(const char *why);
void need(bool good, const char *what);

/* Registers. */
int call(unsigned long request, void *arg);
__u8 status(void);
int set_status(__u8 value);
struct config config(void);
void set_config(struct config value);
void open_device(void);
void start(__u64 features, __u16 base);
int driver_ok(void);

/* Guest memory. */
__u8 *map_memory(__u64 addr, __u64 size, bool writable);
void map_ram(const char *group);

/* Messages. */
bool signalled(int event, int ms);
void kick(struct queue *q);
void submit(struct queue *q, const void *request, __u32 len);
bool answered(struct queue *q, int ms);
bool replied(struct queue *q, __u32 state, __u32 done);
bool send_message(int queue, __u32 type, __u32 count, __u64 start, __u64 len,
		  __u32 state, __u32 done);

/* vdpa_hostile.c */
void test_hostile(void);
void test_reset_waits(void);
void test_reset_race(void);

/* vdpa_stalls.c */
void test_stalls(void);
bool shows_config(void);

#endif
