// SPDX-License-Identifier: GPL-2.0-only
/*
 * What VFIO_IOMMU_MAP_DMA and VFIO_IOMMU_UNMAP_DMA of single pages cost.
 *
 *   map_costs GROUP ADDRESS COUNT WHERE [BALLOON]
 *
 *   GROUP    number of the group of the device at the PCI address ADDRESS
 *   COUNT    pages of 4 KiB that are mapped at the same time
 *   WHERE    "low": below 4 GiB, "high": above, while the device masters the bus
 *   BALLOON  vhost-vdpa device to own first
 *
 * Prints nanoseconds: of a map, of an unmap, and of one unmap of all, for each page of it.
 * Each is the fastest of several tries, since whatever else the machine does only adds to it.
 */
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <linux/vhost.h>

#define SIZE 4096UL
#define GIB 0x40000000UL
#define LOW GIB
#define HIGH (8 * GIB)
/* Where all of it is mapped first. */
#define FIRST (16 * GIB)
#define FLAT (3 * GIB)
/* So many in a row are timed, and so many unmaps of all. */
#define PIECE 125
#define TRIES 5

static int container;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static unsigned long now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000UL + at.tv_nsec;
}

static void map(unsigned long iova, char *vaddr, unsigned long size)
{
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (unsigned long)vaddr,
		.iova = iova,
		.size = size,
	};

	if (ioctl(container, VFIO_IOMMU_MAP_DMA, &map))
		die("MAP_DMA");
}

static void unmap(unsigned long iova, unsigned long size, unsigned int flags, unsigned long wanted)
{
	struct vfio_iommu_type1_dma_unmap unmap = {
		.argsz = sizeof(unmap),
		.flags = flags,
		.iova = iova,
		.size = size,
	};

	if (ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap))
		die("UNMAP_DMA");
	if (unmap.size != wanted) {
		fprintf(stderr, "%llu bytes unmapped\n", unmap.size);
		exit(1);
	}
}

static void set_master(int device)
{
	struct vfio_region_info config = {
		.argsz = sizeof(config),
		.index = VFIO_PCI_CONFIG_REGION_INDEX,
	};
	unsigned short command;

	if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config))
		die("GET_REGION_INFO");
	if (pread(device, &command, 2, config.offset + PCI_COMMAND) != 2)
		die("PCI_COMMAND");
	command |= PCI_COMMAND_MASTER;
	if (pwrite(device, &command, 2, config.offset + PCI_COMMAND) != 2)
		die("PCI_COMMAND");
}

/*
 * Maps or unmaps each page. Returns what one takes while there are many, in the last
 * quarter of maps and the first of unmaps.
 */
static unsigned long each(unsigned long count, unsigned long iova, char *ram, int is_map)
{
	unsigned long from = is_map ? count - count / 4 : 0;
	unsigned long best = ULONG_MAX, start = 0;

	for (unsigned long i = 0; i < count; i++) {
		unsigned long at = (i - from) % PIECE;

		if (i >= from && at == 0)
			start = now();
		if (is_map)
			map(iova + i * SIZE, ram + i * SIZE, SIZE);
		else
			unmap(iova + i * SIZE, SIZE, 0, SIZE);
		if (i >= from && i < from + count / 4 && at == PIECE - 1) {
			unsigned long taken = (now() - start) / PIECE;

			if (taken < best)
				best = taken;
		}
	}
	return best;
}

int main(int argc, char **argv)
{
	unsigned long count, iova, mapped, unmapped, all = ULONG_MAX;
	char path[64], *ram;
	int group, device;

	if (argc < 5) {
		fprintf(stderr, "usage: %s GROUP ADDRESS COUNT WHERE [BALLOON]\n", argv[0]);
		return 2;
	}
	count = strtoul(argv[3], NULL, 0);
	iova = strcmp(argv[4], "low") ? HIGH : LOW;
	if (argc > 5) {
		int balloon = open(argv[5], O_RDWR);

		if (balloon < 0 || ioctl(balloon, VHOST_SET_OWNER))
			die(argv[5]);
	}
	container = open("/dev/vfio/vfio", O_RDWR);
	snprintf(path, sizeof(path), "/dev/vfio/%s", argv[1]);
	group = open(path, O_RDWR);
	if (container < 0 || group < 0)
		die(path);
	if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) ||
	    ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU))
		die("SET_IOMMU");
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, argv[2]);
	if (device < 0)
		die("GET_DEVICE_FD");

	ram = mmap(NULL, count * SIZE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (ram == MAP_FAILED)
		die("mmap");
	/* As a guest's RAM is, until a virtual IOMMU maps what of it the guest asks for. */
	map(iova == HIGH ? FIRST : FLAT, ram, count * SIZE);
	if (iova == HIGH)
		set_master(device);
	unmap(0, 0, VFIO_DMA_UNMAP_FLAG_ALL, count * SIZE);

	mapped = each(count, iova, ram, 1);
	unmapped = each(count, iova, ram, 0);
	for (int i = 0; i < TRIES; i++) {
		unsigned long start, taken;

		each(count, iova, ram, 1);
		start = now();
		unmap(0, 0, VFIO_DMA_UNMAP_FLAG_ALL, count * SIZE);
		taken = (now() - start) / count;
		if (taken < all)
			all = taken;
	}
	printf("%lu %lu %lu\n", mapped, unmapped, all);
	return 0;
}
