// SPDX-License-Identifier: GPL-2.0-only
/*
 * Opens a device again and again, also while and after its node is removed.
 *
 *   open_again /dev/vhost-vdpa-N    until it is killed
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int node = argc == 2 ? open(argv[1], O_PATH) : -1;
	char again[32];

	if (node < 0) {
		fprintf(stderr, "usage: %s DEVICE, which exists\n", argv[0]);
		return 2;
	}
	snprintf(again, sizeof(again), "/proc/self/fd/%d", node);
	for (;;)
		close(open(again, O_RDWR));
}
