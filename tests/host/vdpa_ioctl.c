// SPDX-License-Identifier: GPL-2.0-only
/*
 * The balloon's vDPA device, driven the way a VMM drives it.  TAP on stdout.
 *
 *	vdpa_ioctl /dev/vhost-vdpa-N [VFIO-GROUP]
 *
 * The group's number (of a device bound to vfio-pci) lets the test register
 * "guest RAM" by VFIO, which is where the balloon's rings have to be; without
 * it, what needs rings is skipped.  IOVA and user address of the RAM are equal.
 *
 * Build with -I include/uapi.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/types.h>
#include <linux/userfaultfd.h>
#include <linux/vfio.h>
#include <linux/vhost.h>
#include <linux/virtio_balloon.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_ring.h>
#include <linux/virtio_balloon_deferred.h>

#define MODULE		"vfio_iommu_deferred"
#define RAM_BASE	0x200000000ULL
#define RAM_SIZE	(64ULL << 20)
#define HALF		(RAM_SIZE / 2)
#define PAGES		(RAM_SIZE / 4096)
#define QUEUE_SIZE	1024
#define ANSWER_MS	10000	/* an answer that takes longer is missing */
#define SILENCE_MS	200	/* how long no answer may come */
#define RACES		400	/* resets against a message in flight */

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

static const char *path;
static int fd = -1;
static int config_call;
static struct queue queues[QUEUES];
static __u8 *ram;
static int tests, failures;

static void ok(bool good, const char *format, ...)
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

static void need(bool good, const char *what)
{
	if (good)
		return;
	printf("Bail out! %s: %s\n", what, strerror(errno));
	exit(1);
}

/* The errno of an ioctl, or 0. */
static int call(unsigned long request, void *arg)
{
	return ioctl(fd, request, arg) < 0 ? errno : 0;
}

static __u8 status(void)
{
	__u8 value = 0xff;

	call(VHOST_VDPA_GET_STATUS, &value);
	return value;
}

static int set_status(__u8 value)
{
	return call(VHOST_VDPA_SET_STATUS, &value);
}

static struct config config(void)
{
	struct {
		struct vhost_vdpa_config head;
		struct config config;
	} arg = { .head.len = sizeof(struct config) };

	need(!call(VHOST_VDPA_GET_CONFIG, &arg), "VHOST_VDPA_GET_CONFIG");
	return arg.config;
}

static void set_config(struct config value)
{
	struct {
		struct vhost_vdpa_config head;
		struct config config;
	} arg = { .head.len = sizeof(value), .config = value };

	need(!call(VHOST_VDPA_SET_CONFIG, &arg), "VHOST_VDPA_SET_CONFIG");
}

static bool signalled(int event, int ms)
{
	struct pollfd poll_fd = { .fd = event, .events = POLLIN };
	__u64 count;

	return poll(&poll_fd, 1, ms) == 1 &&
	       read(event, &count, sizeof(count)) == sizeof(count);
}

static void open_device(void)
{
	fd = open(path, O_RDWR);
	need(fd >= 0, path);
}

/* From a reset device up to everything but DRIVER_OK. */
static void start(__u64 features, __u16 base)
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

static int driver_ok(void)
{
	return set_status(status() | VIRTIO_CONFIG_S_DRIVER_OK);
}

static void kick(struct queue *q)
{
	__u64 one = 1;

	need(write(q->kick, &one, sizeof(one)) == sizeof(one), "kick");
}

/* Puts a request of `len` bytes into the ring, with room for a reply. */
static void submit(struct queue *q, const void *request, __u32 len)
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

static bool answered(struct queue *q, int ms)
{
	__u16 *used = &q->ring.used->idx;

	return signalled(q->call, ms) &&
	       __atomic_load_n(used, __ATOMIC_ACQUIRE) == q->ring.avail->idx;
}

struct message {
	struct virtio_balloon_deferred_hdr hdr;
	struct virtio_balloon_deferred_range ranges[2];
};

static bool replied(struct queue *q, __u32 state, __u32 done)
{
	return answered(q, ANSWER_MS) && q->reply->status == state &&
	       q->reply->done == done;
}

static bool send_message(int queue, __u32 type, __u32 count,
			 __u64 start, __u64 len, __u32 state,
			 __u32 done)
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
	ok(!driver_ok() && config().num_pages == 0,
	   "without guest RAM there is nothing to inflate");
	kick(&queues[INFLATE]);
	ok(signalled(config_call, ANSWER_MS) &&
	   status() & VIRTIO_CONFIG_S_NEEDS_RESET,
	   "rings outside guest RAM break the device");
	ok(set_status(status() & ~VIRTIO_CONFIG_S_NEEDS_RESET) == EINVAL &&
	   !set_status(0) && status() == 0, "until it is reset");
}

static void map_ram(const char *group)
{
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = RAM_BASE,
		.iova = RAM_BASE,
		.size = RAM_SIZE,
	};
	int container = open("/dev/vfio/vfio", O_RDWR);
	char name[64];
	int group_fd;

	need(container >= 0, "/dev/vfio/vfio");
	snprintf(name, sizeof(name), "/dev/vfio/%s", group);
	group_fd = open(name, O_RDWR);
	need(group_fd >= 0, name);
	need(!ioctl(group_fd, VFIO_GROUP_SET_CONTAINER, &container),
	     "VFIO_GROUP_SET_CONTAINER");
	need(!ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU),
	     "VFIO_SET_IOMMU");
	need(!ioctl(container, VFIO_IOMMU_MAP_DMA, &map), "VFIO_IOMMU_MAP_DMA");
}

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
	start(F_COMMON | F_DEFERRED, 0);
	driver_ok();
	submit(q, &empty, sizeof(empty));
	q->ring.desc[desc].addr = addr;
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
	need(!ioctl(uffd, UFFDIO_ZEROPAGE, &zero), "UFFDIO_ZEROPAGE");
	waitpid(pid, &state, 0);
	poll(NULL, 0, SILENCE_MS);
	ok(state == 0 && status() == 0 && q->ring.used->idx == desc,
	   "then it comes back, and %s is answered", desc ? "all" : "nothing");
}

static void test_reset_waits(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (uffd < 0) {
		printf("ok %d # SKIP no userfaultfd: %s\n", ++tests,
		       strerror(errno));
		return;
	}
	need(!ioctl(uffd, UFFDIO_API, &api), "UFFDIO_API");
	/* Pages that were never touched: nothing is mapped before a commit. */
	test_slow_access(uffd, 0, RAM_BASE + HALF);
	test_slow_access(uffd, 1, RAM_BASE + HALF + 4096);
	close(uffd);
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

static void test_hostile(void)
{
	struct queue *q = &queues[INFLATE];
	struct message commit = { .hdr.type = VIRTIO_BALLOON_DEFERRED_COMMIT };
	int own_call = q->call;

	start(F_COMMON | F_DEFERRED, 0);
	driver_ok();
	submit(q, &commit, sizeof(commit.hdr));
	q->ring.desc[0].next = 0;
	kick(q);
	ok(signalled(config_call, ANSWER_MS) &&
	   status() & VIRTIO_CONFIG_S_NEEDS_RESET, "a loop breaks the device");
	submit(q, &commit, sizeof(commit.hdr));
	kick(q);
	ok(!answered(q, SILENCE_MS), "a broken device serves nothing");

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
static void test_reset_race(void)
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
	if (argc < 2 || argc > 3) {
		fprintf(stderr, "usage: %s /dev/vhost-vdpa-N [VFIO-GROUP]\n",
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
	test_registers();
	test_no_ram();
	if (argc > 2) {
		ram = mmap((void *)RAM_BASE, RAM_SIZE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
			   -1, 0);
		need(ram == (void *)RAM_BASE, "mmap");
		lay_out_queues();
		map_ram(argv[2]);
		test_reset_waits();
		test_messages();
		test_stock_driver();
		test_hostile();
		test_reset_race();
	} else {
		printf("ok %d # SKIP messages: no VFIO group given\n", ++tests);
	}
	test_death();
	close(fd);

	printf("1..%d\n", tests);
	return failures != 0;
}
