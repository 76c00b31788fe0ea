// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the balloon's vDPA device does while memory takes for ever to be mapped;
 * see vdpa_ioctl.c.
 *
 * A page fault in the RAM, which this process would have to answer, and does not,
 * stands for a VM so large, or a host so short of memory, that it takes long.
 */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/userfaultfd.h>
#include <linux/vhost.h>

#include "vdpa_rig.h"

#define FAULT		(RAM_BASE + HALF)

/* How many messages the host has of this VM. */
static long messages_so_far(void)
{
	char name[128];
	long count = -1;
	FILE *file;

	snprintf(name, sizeof(name),
		 "/sys/kernel/vfio_iommu_deferred/vms/%d/messages", getpid());
	file = fopen(name, "r");
	if (!file || fscanf(file, "%ld", &count) != 1)
		count = -1;
	if (file)
		fclose(file);
	return count;
}

/* Sends a commit and waits until the host is at it. */
static void commit(void)
{
	struct virtio_balloon_deferred_hdr hdr = {
		.type = VIRTIO_BALLOON_DEFERRED_COMMIT
	};
	struct queue *q = &queues[INFLATE];
	long before = messages_so_far();

	submit(q, &hdr, sizeof(hdr));
	kick(q);
	for (int waited = 0; waited < ANSWER_MS && messages_so_far() == before; waited += 10)
		poll(NULL, 0, 10);
	need(before >= 0 && messages_so_far() == before + 1, "commit");
}

/* The device's name on the vDPA bus. */
static const char *device_name(void)
{
	static char name[64];
	char pattern[128];
	glob_t found;

	snprintf(pattern, sizeof(pattern), "/sys/bus/vdpa/devices/*%s",
		 strrchr(path, '/'));
	need(!glob(pattern, 0, NULL, &found) && found.gl_pathc == 1, pattern);
	need(sscanf(found.gl_pathv[0], "/sys/bus/vdpa/devices/%63[^/]", name) == 1,
	     found.gl_pathv[0]);
	globfree(&found);
	return name;
}

/* Whether a process ends by itself in time; returns its status, or -1. */
static int ends(pid_t pid)
{
	int state;

	for (int waited = 0; waited < ANSWER_MS; waited += 10) {
		if (waitpid(pid, &state, WNOHANG) == pid)
			return state;
		poll(NULL, 0, 10);
	}
	return -1;
}

/* Whether who asks for the device's configuration, by netlink, is answered. */
bool shows_config(void)
{
	const char *name = device_name();
	pid_t admin = fork();
	int state;

	need(admin >= 0, "fork");
	if (!admin) {
		need(freopen("/dev/null", "w", stdout), "/dev/null");
		need(freopen("/dev/null", "w", stderr), "/dev/null");
		execlp("vdpa", "vdpa", "dev", "config", "show", name, NULL);
		_exit(127);
	}
	state = ends(admin);
	/* The kernel shows that of other kinds of device alone. */
	return WIFEXITED(state) && WEXITSTATUS(state) != 127;
}

/* A driver of another kind starts at once: the bus-master gate holds devices back. */
static void test_other_driver(void)
{
	pid_t driver;

	start(F_COMMON, 0);
	driver = fork();
	need(driver >= 0, "fork");
	if (!driver)
		_exit(driver_ok());
	ok(ends(driver) == 0, "a driver of another kind starts while memory is missing");
	ok(status() & VIRTIO_CONFIG_S_DRIVER_OK &&
	   !(status() & VIRTIO_CONFIG_S_NEEDS_RESET), "and finds the device in order");
	ok(shows_config(), "who asks for the device's configuration is answered");
}

static void *close_device(void *done)
{
	__u64 one = 1;

	close(fd);
	need(write(*(int *)done, &one, sizeof(one)) == sizeof(one), "eventfd");
	return NULL;
}

void test_stalls(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register area = {
		.range = { FAULT, 4096 }, .mode = UFFDIO_REGISTER_MODE_MISSING
	};
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct pollfd fault = { .fd = uffd, .events = POLLIN };
	struct queue *q = &queues[INFLATE];
	int closed = eventfd(0, EFD_NONBLOCK);
	pthread_t thread;

	if (uffd < 0) {
		skip("no userfaultfd");
		return;
	}
	need(!ioctl(uffd, UFFDIO_API, &api), "UFFDIO_API");
	need(!ioctl(uffd, UFFDIO_REGISTER, &area), "UFFDIO_REGISTER");

	start(F_COMMON | F_DEFERRED, 0);
	driver_ok();
	commit();
	need(poll(&fault, 1, ANSWER_MS) == 1, "page fault");
	ok(!answered(q, SILENCE_MS), "a commit waits for all to be mapped");
	start(F_COMMON | F_DEFERRED, 0);
	driver_ok();
	ok(send_message(INFLATE, VIRTIO_BALLOON_DEFERRED_INFLATE, 0, 0, 0,
			VIRTIO_BALLOON_DEFERRED_OK, 0),
	   "the next driver does not wait for it, too");

	commit();
	need(!call(VHOST_VDPA_SUSPEND, NULL), "suspend");
	need(!call(VHOST_VDPA_RESUME, NULL), "resume");
	ok(!answered(q, SILENCE_MS), "suspended and resumed, it goes on waiting");

	test_other_driver();

	start(F_COMMON | F_DEFERRED, 0);
	driver_ok();
	commit();
	need(!pthread_create(&thread, NULL, close_device, &closed), "thread");
	ok(signalled(closed, ANSWER_MS), "the device can be closed then");

	/* The fault is answered, and all is mapped. */
	need(!ioctl(uffd, UFFDIO_UNREGISTER, &area.range), "UFFDIO_UNREGISTER");
	pthread_join(thread, NULL);
	open_device();
	need(!call(VHOST_SET_OWNER, NULL), "VHOST_SET_OWNER");
	start(F_COMMON | F_DEFERRED, 0);
	driver_ok();
	ok(send_message(INFLATE, VIRTIO_BALLOON_DEFERRED_COMMIT, 0, 0, 0,
			VIRTIO_BALLOON_DEFERRED_OK, 0),
	   "when memory comes, a commit is answered");
	close(uffd);
}
