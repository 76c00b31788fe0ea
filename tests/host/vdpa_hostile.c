// SPDX-License-Identifier: GPL-2.0-only
/* What the balloon's vDPA device has to bear; see vdpa_ioctl.c. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/userfaultfd.h>
#include <linux/vhost.h>

#include "vdpa_rig.h"

#define ROM_BASE	(RAM_BASE + 2 * RAM_SIZE)
#define RACES		400	/* resets against a message in flight */

/*
 * A reset waits for an access to guest memory that has begun, and lets none
 * begin after it.  The page fault of the request or of the reply, which this
 * process answers itself, stands for a slow access.
 */
static void test_slow_access(int uffd, int desc, __u64 addr)
{
	static const char *const names[] = { "request", "reply" };
	struct virtio_balloon_deferred_hdr empty = {
		.type = VIRTIO_BALLOON_DEFERRED_INFLATE
	};
	struct uffdio_register area = {
		.range = { addr, 4096 }, .mode = UFFDIO_REGISTER_MODE_MISSING
	};
	struct uffdio_zeropage zero = { .range = area.range };
	struct pollfd fault = { .fd = uffd, .events = POLLIN };
	struct queue *q = &queues[INFLATE];
	struct uffd_msg message;
	int state = -1;
	pid_t pid;

	need(!ioctl(uffd, UFFDIO_REGISTER, &area), "UFFDIO_REGISTER");
	/* Before DRIVER_OK, lest the chain be read before it leads there. */
	start(F_COMMON | F_DEFERRED, 0);
	submit(q, &empty, sizeof(empty));
	q->ring.desc[desc].addr = addr;
	driver_ok();
	kick(q);
	need(poll(&fault, 1, ANSWER_MS) == 1, "page fault");
	need(read(uffd, &message, sizeof(message)) == sizeof(message),
	     "page fault");
	pid = fork();
	need(pid >= 0, "fork");
	if (!pid)
		_exit(set_status(0));
	poll(NULL, 0, SILENCE_MS);
	ok(waitpid(pid, NULL, WNOHANG) == 0, "a reset waits for a slow %s",
	   names[desc]);
	ok(shows_config(), "and nobody else waits for it");
	need(!ioctl(uffd, UFFDIO_ZEROPAGE, &zero), "UFFDIO_ZEROPAGE");
	waitpid(pid, &state, 0);
	poll(NULL, 0, SILENCE_MS);
	ok(state == 0 && status() == 0 && q->ring.used->idx == desc,
	   "then it comes back, and %s is answered", desc ? "all" : "nothing");
}

void test_reset_waits(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (uffd < 0) {
		skip("no userfaultfd");
		return;
	}
	need(!ioctl(uffd, UFFDIO_API, &api), "UFFDIO_API");
	/* Pages that were never touched: nothing is mapped before a commit. */
	test_slow_access(uffd, 0, RAM_BASE + HALF);
	test_slow_access(uffd, 1, RAM_BASE + HALF + 4096);
	close(uffd);
}

void test_hostile(void)
{
	struct queue *q = &queues[INFLATE];
	struct message commit = { .hdr.type = VIRTIO_BALLOON_DEFERRED_COMMIT };
	__u8 before[4096];
	__u8 *rom = map_memory(ROM_BASE, sizeof(before), false);
	int own_call = q->call;

	/* Before DRIVER_OK for the same reason. */
	start(F_COMMON | F_DEFERRED, 0);
	submit(q, &commit, sizeof(commit.hdr));
	q->ring.desc[0].next = 0;
	driver_ok();
	kick(q);
	ok(signalled(config_call, ANSWER_MS) &&
	   status() & VIRTIO_CONFIG_S_NEEDS_RESET, "a loop breaks the device");
	submit(q, &commit, sizeof(commit.hdr));
	kick(q);
	ok(!answered(q, SILENCE_MS), "a broken device serves nothing");

	/* ROM is mapped for devices to read. */
	start(F_COMMON | F_DEFERRED, 0);
	submit(q, &commit, sizeof(commit.hdr));
	memset(rom, 0xa5, sizeof(before));
	memcpy(before, rom, sizeof(before));
	q->ring.desc[1].addr = ROM_BASE;
	driver_ok();
	kick(q);
	ok(signalled(config_call, ANSWER_MS) &&
	   status() & VIRTIO_CONFIG_S_NEEDS_RESET,
	   "an answer to be written to ROM breaks the device");
	ok(!memcmp(rom, before, sizeof(before)), "and ROM is what it was");

	/* vhost checks how the other parts are aligned, and the size. */
	q->ring.desc = (void *)((__u8 *)q->ring.desc + 8);
	start(F_COMMON | F_DEFERRED, 0);
	driver_ok();
	kick(q);
	ok(signalled(config_call, ANSWER_MS) &&
	   status() & VIRTIO_CONFIG_S_NEEDS_RESET,
	   "a misaligned descriptor table breaks the device");
	q->ring.desc = (void *)((__u8 *)q->ring.desc - 8);

	/* An interrupt that is its own kick must not deadlock. */
	q->call = q->kick;
	start(F_COMMON | F_DEFERRED, 0);
	driver_ok();
	submit(q, &commit, sizeof(commit.hdr));
	kick(q);
	for (int waited = 0; waited < ANSWER_MS && q->ring.used->idx != 1;
	     waited += 10)
		poll(NULL, 0, 10);
	ok(__atomic_load_n(&q->ring.used->idx, __ATOMIC_ACQUIRE) == 1,
	   "one eventfd as kick and interrupt");
	q->call = own_call;
	set_status(0);
}

/* After a reset the rings are other memory: nothing late may be written. */
void test_reset_race(void)
{
	static const __u32 types[] = {
		VIRTIO_BALLOON_DEFERRED_INFLATE, VIRTIO_BALLOON_DEFERRED_COMMIT
	};
	const size_t used = 4 + QUEUE_SIZE * sizeof(struct vring_used_elem);
	struct queue *q = &queues[INFLATE];
	int written = 0, answers = 0;

	srand(1);
	for (int i = 0; i < RACES; i++) {
		struct virtio_balloon_deferred_hdr hdr = { .type = types[i % 2] };
		__u8 *bytes = (void *)q->ring.used;

		start(F_COMMON | F_DEFERRED, 0);
		driver_ok();
		submit(q, &hdr, sizeof(hdr));
		kick(q);
		usleep(rand() % 1000);
		set_status(0);
		answers += q->ring.used->idx;
		memset(bytes, 0xa5, used);
		memset(q->reply, 0xa5, sizeof(*q->reply));
		usleep(2000);
		written += bytes[2] != 0xa5 || bytes[4] != 0xa5 ||
			   q->reply->done != 0xa5a5a5a5;
	}
	ok(!written, "%d of %d rings written after a reset (%d answers before)",
	   written, RACES, answers);
}
