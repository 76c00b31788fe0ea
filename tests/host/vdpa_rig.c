// SPDX-License-Identifier: GPL-2.0-only
/* See vdpa_rig.h. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/vfio.h>
#include <linux/vhost.h>

#include "vdpa_rig.h"

const char *path;
int fd = -1;
int config_call;
struct queue queues[QUEUES];
__u8 *ram;
int tests, failures;

void ok(bool good, const char *format, ...)
{
	va_list args;

	printf("%sok %d - ", good ? "" : "not ", ++tests);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
	failures += !good;
}

void skip(const char *why)
{
	printf("ok %d # SKIP %s\n", ++tests, why);
}

void need(bool good, const char *what)
{
	if (good)
		return;
	printf("Bail out! %s: %s\n", what, strerror(errno));
	exit(1);
}

/* The errno of an ioctl, or 0. */
int call(unsigned long request, void *arg)
{
	return ioctl(fd, request, arg) < 0 ? errno : 0;
}

__u8 status(void)
{
	__u8 value = 0xff;

	call(VHOST_VDPA_GET_STATUS, &value);
	return value;
}

int set_status(__u8 value)
{
	return call(VHOST_VDPA_SET_STATUS, &value);
}

struct config config(void)
{
	struct {
		struct vhost_vdpa_config head;
		struct config config;
	} arg = { .head.len = sizeof(struct config) };

	need(!call(VHOST_VDPA_GET_CONFIG, &arg), "VHOST_VDPA_GET_CONFIG");
	return arg.config;
}

void set_config(struct config value)
{
	struct {
		struct vhost_vdpa_config head;
		struct config config;
	} arg = { .head.len = sizeof(value), .config = value };

	need(!call(VHOST_VDPA_SET_CONFIG, &arg), "VHOST_VDPA_SET_CONFIG");
}

bool signalled(int event, int ms)
{
	struct pollfd poll_fd = { .fd = event, .events = POLLIN };
	__u64 count;

	return poll(&poll_fd, 1, ms) == 1 &&
	       read(event, &count, sizeof(count)) == sizeof(count);
}

void open_device(void)
{
	fd = open(path, O_RDWR);
	need(fd >= 0, path);
}

/* From a reset device up to everything but DRIVER_OK. */
void start(__u64 features, __u16 base)
{
	struct vhost_vring_file config_file = { .fd = config_call };

	need(!set_status(0), "reset");
	need(!set_status(READY), "DRIVER");
	need(!call(VHOST_SET_FEATURES, &features), "VHOST_SET_FEATURES");
	need(!set_status(READY | VIRTIO_CONFIG_S_FEATURES_OK), "FEATURES_OK");
	need(!call(VHOST_VDPA_SET_CONFIG_CALL, &config_file.fd), "config call");

	for (unsigned int i = 0; i < QUEUES; i++) {
		struct queue *q = &queues[i];
		struct vhost_vring_state num = { i, QUEUE_SIZE };
		struct vhost_vring_state next = { i, base };
		struct vhost_vring_state on = { i, 1 };
		struct vhost_vring_file kick = { i, q->kick };
		struct vhost_vring_file answer = { i, q->call };
		struct vhost_vring_addr addr = {
			.index = i,
			.desc_user_addr = (uintptr_t)q->ring.desc,
			.avail_user_addr = (uintptr_t)q->ring.avail,
			.used_user_addr = (uintptr_t)q->ring.used,
		};

		if (q->ring.avail) {
			q->ring.avail->idx = base;
			q->ring.used->idx = base;
		}
		need(!call(VHOST_SET_VRING_NUM, &num), "VHOST_SET_VRING_NUM");
		need(!call(VHOST_SET_VRING_BASE, &next), "VHOST_SET_VRING_BASE");
		need(!call(VHOST_SET_VRING_ADDR, &addr), "VHOST_SET_VRING_ADDR");
		need(!call(VHOST_SET_VRING_KICK, &kick), "VHOST_SET_VRING_KICK");
		need(!call(VHOST_SET_VRING_CALL, &answer), "VHOST_SET_VRING_CALL");
		need(!call(VHOST_VDPA_SET_VRING_ENABLE, &on), "enable");
	}
}

int driver_ok(void)
{
	return set_status(status() | VIRTIO_CONFIG_S_DRIVER_OK);
}

void kick(struct queue *q)
{
	__u64 one = 1;

	need(write(q->kick, &one, sizeof(one)) == sizeof(one), "kick");
}

/* Puts a request of `len` bytes into the ring, with room for a reply. */
void submit(struct queue *q, const void *request, __u32 len)
{
	__u16 idx = q->ring.avail->idx;

	memcpy(q->request, request, len);
	memset(q->reply, 0xee, sizeof(*q->reply));
	q->ring.desc[0] = (struct vring_desc){
		(uintptr_t)q->request, len, VRING_DESC_F_NEXT, 1
	};
	q->ring.desc[1] = (struct vring_desc){
		(uintptr_t)q->reply, sizeof(*q->reply), VRING_DESC_F_WRITE, 0
	};
	q->ring.avail->ring[idx % QUEUE_SIZE] = 0;
	__atomic_store_n(&q->ring.avail->idx, idx + 1, __ATOMIC_RELEASE);
}

bool answered(struct queue *q, int ms)
{
	__u16 *used = &q->ring.used->idx;

	return signalled(q->call, ms) &&
	       __atomic_load_n(used, __ATOMIC_ACQUIRE) == q->ring.avail->idx;
}

bool replied(struct queue *q, __u32 state, __u32 done)
{
	return answered(q, ANSWER_MS) && q->reply->status == state &&
	       q->reply->done == done;
}

bool send_message(int queue, __u32 type, __u32 count, __u64 start, __u64 len,
		  __u32 state, __u32 done)
{
	struct queue *q = &queues[queue];
	struct message message = {
		{ .type = type, .count = count }, { { start, len } }
	};

	submit(q, &message, sizeof(message.hdr) +
			    count * sizeof(message.ranges[0]));
	kick(q);
	return replied(q, state, done);
}

static int container;

static void lay_out_queues(void)
{
	for (int i = 0; i < QUEUES; i++) {
		struct queue *q = &queues[i];
		__u8 *at = ram + i * (1 << 20);

		vring_init(&q->ring, QUEUE_SIZE, at, 4096);
		q->request = at + (512 << 10);
		q->reply = (void *)(at + (516 << 10));
	}
}

/* Makes memory and maps it by VFIO, for a device to read, and to write or not. */
__u8 *map_memory(__u64 addr, __u64 size, bool writable)
{
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = VFIO_DMA_MAP_FLAG_READ |
			 (writable ? VFIO_DMA_MAP_FLAG_WRITE : 0),
		.vaddr = addr,
		.iova = addr,
		.size = size,
	};
	void *memory = mmap((void *)addr, size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	need(memory == (void *)addr, "mmap");
	need(!ioctl(container, VFIO_IOMMU_MAP_DMA, &map), "VFIO_IOMMU_MAP_DMA");
	return memory;
}

/* Makes the RAM, with the queues in it. */
void map_ram(const char *group)
{
	char name[64];
	int group_fd;

	container = open("/dev/vfio/vfio", O_RDWR);
	need(container >= 0, "/dev/vfio/vfio");
	snprintf(name, sizeof(name), "/dev/vfio/%s", group);
	group_fd = open(name, O_RDWR);
	need(group_fd >= 0, name);
	need(!ioctl(group_fd, VFIO_GROUP_SET_CONTAINER, &container),
	     "VFIO_GROUP_SET_CONTAINER");
	need(!ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU),
	     "VFIO_SET_IOMMU");
	ram = map_memory(RAM_BASE, RAM_SIZE, true);
	lay_out_queues();
}
