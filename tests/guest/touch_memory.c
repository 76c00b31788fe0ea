// SPDX-License-Identifier: GPL-2.0-only
/*
 * touch_memory PERCENT: writes to every page of an anonymous mapping of so many
 * percent of all memory, and says how many MiB that was.
 */

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	const size_t page = sysconf(_SC_PAGESIZE);
	struct sysinfo info;
	size_t size, at;
	char *memory;

	if (argc != 2 || sysinfo(&info)) {
		fprintf(stderr, "usage: touch_memory PERCENT\n");
		return 2;
	}
	size = (size_t)info.totalram * info.mem_unit / 100 * atoi(argv[1]);
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	for (at = 0; at < size; at += page)
		memory[at] = 1;
	printf("%zu\n", size >> 20);
	return 0;
}
