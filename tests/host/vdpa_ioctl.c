// SPDX-License-Identifier: GPL-2.0-only
/*
 * The balloon's vDPA device, driven the way a VMM drives it.  TAP on stdout.
 *
 *	vdpa_ioctl /dev/vhost-vdpa-N [VFIO-GROUP [stalls]]
 *
 * The group's number (of a device bound to vfio-pci) lets the test register
 * "guest RAM" by VFIO, which is where the balloon's rings have to be; without
 * it, what needs rings is skipped.  IOVA and user address of the RAM are equal.
 * "stalls" are tests that want RAM of which nothing is mapped yet.
 *
 * Build with -I include/uapi and the other files vdpa_*.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/vhost.h>
#include <linux/virtio_ids.h>

#include "vdpa_rig.h"

#define MODULE		"vfio_iommu_deferred"

/* What a VMM asks before a guest runs, and what needs no rings. */
static void test_registers(void)
{
	struct vhost_vring_state state = { 0, 2 * QUEUE_SIZE };
	struct config junk = { 77, 5, { 1, 2 }, 3 };
	__u64 features = 0;
	__u32 value = 0;
	__u16 num = 0;

	call(VHOST_VDPA_GET_DEVICE_ID, &value);
	ok(value == VIRTIO_ID_BALLOON, "device id %u", value);
	call(VHOST_VDPA_GET_VQS_COUNT, &value);
	ok(value == QUEUES, "%u queues", value);
	call(VHOST_VDPA_GET_VRING_NUM, &num);
	ok(num >= QUEUE_SIZE, "queue size %u", num);
	call(VHOST_VDPA_GET_CONFIG_SIZE, &value);
	ok(value == sizeof(struct config), "config size %u", value);
	call(VHOST_GET_FEATURES, &features);
	ok(features == (F_COMMON | F_DEFERRED), "features %#llx",
	   (unsigned long long)features);
	call(VHOST_GET_BACKEND_FEATURES, &features);
	ok(features & BIT(VHOST_BACKEND_F_SUSPEND) &&
	   features & BIT(VHOST_BACKEND_F_RESUME), "can suspend and resume");

	set_status(READY | VIRTIO_CONFIG_S_FEATURES_OK);
	ok(status() == READY, "no FEATURES_OK without an owner");
	ok(open(path, O_RDWR) < 0 && errno == EBUSY, "a second open is refused");
	ok(!call(VHOST_SET_OWNER, NULL), "owner set");
	ok(call(VHOST_SET_OWNER, NULL) == EBUSY, "a second owner is refused");

	set_status(READY);
	features = F_COMMON | F_DEFERRED | BIT(VIRTIO_F_RING_PACKED);
	ok(!call(VHOST_SET_FEATURES, &features), "a feature too many is dropped");
	set_status(READY | VIRTIO_CONFIG_S_FEATURES_OK);
	ok(status() == (READY | VIRTIO_CONFIG_S_FEATURES_OK), "FEATURES_OK");
	ok(call(VHOST_SET_FEATURES, &features) == EBUSY,
	   "features are settled then");

	set_config(junk);
	ok(config().num_pages == 0 && config().actual == 5 &&
	   config().rest[0] == 0 && config().rest[1] == 0 &&
	   config().lowest_mib == 0,
	   "the driver can write `actual` alone");
	ok(call(VHOST_SET_VRING_NUM, &state) == EINVAL,
	   "a queue of %u is refused", state.num);
	state = (struct vhost_vring_state){ 1, 0x1234 };
	call(VHOST_SET_VRING_BASE, &state);
	state.num = 0;
	call(VHOST_GET_VRING_BASE, &state);
	ok(state.num == 0x1234, "queue state kept: %#x", state.num);

	set_status(0);
	state.num = 1;
	call(VHOST_GET_VRING_BASE, &state);
	ok(status() == 0 && config().actual == 0 && state.num == 0,
	   "a reset forgets it all");
	ok(syscall(SYS_delete_module, MODULE, O_NONBLOCK) < 0 &&
	   (errno == EAGAIN || errno == EBUSY),
	   "the module is not unloaded while the device is open");
}

/* Rings that no VFIO mapping covers. */
static void test_no_ram(void)
{
	start(F_COMMON | F_DEFERRED, 0);
	/* The rings may have been looked at by now. */
	ok(!driver_ok() && (config().num_pages == 0 ||
			    config().num_pages == VIRTIO_BALLOON_DEFERRED_NEEDS_RESET),
	   "without guest RAM there is nothing to inflate");
	kick(&queues[INFLATE]);
	ok(signalled(config_call, ANSWER_MS) &&
	   status() & VIRTIO_CONFIG_S_NEEDS_RESET,
	   "rings outside guest RAM break the device");
	ok(config().num_pages == VIRTIO_BALLOON_DEFERRED_NEEDS_RESET,
	   "its configuration says so, too");
	ok(set_status(status() & ~VIRTIO_CONFIG_S_NEEDS_RESET) == EINVAL &&
	   !set_status(0) && status() == 0 && config().num_pages == 0,
	   "until it is reset");
}

static void test_messages(void)
{
	struct queue *inflate = &queues[INFLATE], *deflate = &queues[DEFLATE];
	struct message commit = { .hdr.type = VIRTIO_BALLOON_DEFERRED_COMMIT };
	struct vhost_vring_state base = { .index = DEFLATE };
	__u64 upper = RAM_BASE + HALF;

	/* 65535: the free-running indices wrap with the second message. */
	start(F_COMMON | F_DEFERRED, 65535);
	submit(inflate, &commit, sizeof(commit.hdr) - 1);
	kick(inflate);
	ok(!answered(inflate, SILENCE_MS), "nothing is served before DRIVER_OK");
	ok(!driver_ok() && replied(inflate, VIRTIO_BALLOON_DEFERRED_INVALID, 0),
	   "an early kick is not lost; a short message is invalid");
	ok(config().num_pages == PAGES, "%u pages to inflate",
	   config().num_pages);
	ok(config().lowest_mib == RAM_BASE >> 20, "from %u MiB up",
	   config().lowest_mib);

	ok(send_message(INFLATE, VIRTIO_BALLOON_DEFERRED_INFLATE, 1, upper,
			HALF, VIRTIO_BALLOON_DEFERRED_OK, 1), "inflate");
	ok(send_message(INFLATE, VIRTIO_BALLOON_DEFERRED_INFLATE, 1, upper + 4096,
			HALF, VIRTIO_BALLOON_DEFERRED_INVALID, 0),
	   "an unaligned range is invalid");
	ok(send_message(INFLATE, VIRTIO_BALLOON_DEFERRED_DEFLATE, 1, upper,
			HALF, VIRTIO_BALLOON_DEFERRED_INVALID, 0),
	   "deflate on the inflate queue is invalid");
	ok(send_message(INFLATE, VIRTIO_BALLOON_DEFERRED_COMMIT, 0, 0, 0,
			VIRTIO_BALLOON_DEFERRED_OK, 0), "commit");

	ok(!call(VHOST_VDPA_SUSPEND, NULL), "suspend");
	submit(deflate, &(struct message){
		{ .type = VIRTIO_BALLOON_DEFERRED_DEFLATE, .count = 1 },
		{ { upper, HALF } }
	}, sizeof(struct virtio_balloon_deferred_hdr) +
	   sizeof(struct virtio_balloon_deferred_range));
	kick(deflate);
	ok(!answered(deflate, SILENCE_MS), "nothing is served then");
	call(VHOST_GET_VRING_BASE, &base);
	ok(base.num == 65535, "what was not answered counts as not taken: %u",
	   base.num);
	ok(!call(VHOST_VDPA_RESUME, NULL) &&
	   replied(deflate, VIRTIO_BALLOON_DEFERRED_OK, 1),
	   "resume, and the message is served");
	call(VHOST_GET_VRING_BASE, &base);
	ok(base.num == 0, "its index moves on: %u", base.num);
	ok(send_message(DEFLATE, VIRTIO_BALLOON_DEFERRED_DEFLATE, 1, RAM_BASE,
			HALF, VIRTIO_BALLOON_DEFERRED_OK, 1),
	   "deflate what was not in the balloon");
	ok(signalled(config_call, ANSWER_MS) && config().num_pages == 0,
	   "the target is 0 and the driver was told");
	ok(!set_status(0) && config().num_pages == 0, "reset");
}

static void test_stock_driver(void)
{
	static const __u32 pfns[16];

	start(F_COMMON, 0);
	ok(!driver_ok() && status() & VIRTIO_CONFIG_S_DRIVER_OK,
	   "a stock driver starts");
	ok(config().num_pages == 0, "it has nothing to inflate");
	submit(&queues[DEFLATE], pfns, sizeof(pfns));
	kick(&queues[DEFLATE]);
	ok(answered(&queues[DEFLATE], ANSWER_MS) &&
	   queues[DEFLATE].ring.used->ring[0].len == 0,
	   "its PFNs are acknowledged, with nothing written");
}

/* Says "ready", then waits for the order to go on. */
static void checkpoint(int *ready, int *go)
{
	char byte;

	need(write(ready[1], "", 1) == 1, "pipe");
	need(read(go[0], &byte, 1) == 1, "pipe");
}

/*
 * The owner is killed in mid-flight, while a child of it still has the device
 * open; then that goes as well, and the device is free again.
 */
static void test_death(void)
{
	int ready[2], go[2];
	char byte;
	pid_t pid;

	close(fd);
	need(!pipe(ready) && !pipe(go), "pipe");
	pid = fork();
	need(pid >= 0, "fork");
	if (!pid) {
		open_device();
		need(!call(VHOST_SET_OWNER, NULL), "VHOST_SET_OWNER");
		start(F_COMMON | F_DEFERRED, 0);
		driver_ok();
		if (!fork()) {
			checkpoint(ready, go);
			kick(&queues[INFLATE]);
			set_status(0);
			set_status(READY);
			_exit(write(ready[1], "", 1) != 1);
		}
		pause();
		_exit(1);
	}
	need(read(ready[0], &byte, 1) == 1, "child");
	ok(open(path, O_RDWR) < 0 && errno == EBUSY, "a child owns the device");
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	ok(open(path, O_RDWR) < 0 && errno == EBUSY,
	   "its child keeps it open when it dies");
	need(write(go[1], "", 1) == 1, "pipe");
	need(read(ready[0], &byte, 1) == 1, "grandchild");
	for (int waited = 0; waited < ANSWER_MS; waited += 10) {
		fd = open(path, O_RDWR);
		if (fd >= 0)
			break;
		poll(NULL, 0, 10);
	}
	ok(fd >= 0 && status() == 0 && !call(VHOST_SET_OWNER, NULL),
	   "the device survives its owner");
}

int main(int argc, char **argv)
{
	if (argc < 2 || argc > 4) {
		fprintf(stderr, "usage: %s /dev/vhost-vdpa-N [VFIO-GROUP [stalls]]\n",
			argv[0]);
		return 2;
	}
	path = argv[1];
	printf("TAP version 13\n");
	config_call = eventfd(0, EFD_NONBLOCK);
	for (int i = 0; i < QUEUES; i++) {
		queues[i].kick = eventfd(0, EFD_NONBLOCK);
		queues[i].call = eventfd(0, EFD_NONBLOCK);
	}

	open_device();
	if (argc > 3) {
		need(!call(VHOST_SET_OWNER, NULL), "VHOST_SET_OWNER");
		map_ram(argv[2]);
		test_stalls();
		goto out;
	}
	test_registers();
	test_no_ram();
	if (argc > 2) {
		map_ram(argv[2]);
		test_reset_waits();
		test_messages();
		test_stock_driver();
		test_hostile();
		test_reset_race();
	} else {
		skip("messages: no VFIO group given");
	}
	test_death();
out:
	close(fd);

	printf("1..%d\n", tests);
	return failures != 0;
}
