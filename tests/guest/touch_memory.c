// SPDX-License-Identifier: GPL-2.0-only
/*
 * touch_memory PERCENT [NODE]: writes to every page of an anonymous mapping of so
 * many percent of all memory, from one node alone if that is given, and says how
 * many MiB that was.
 */

#include <linux/mempolicy.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	const size_t page = sysconf(_SC_PAGESIZE);
	struct sysinfo info;
	unsigned long nodes;
	size_t size, at;
	char *memory;

	if (argc < 2 || argc > 3 || sysinfo(&info)) {
		fprintf(stderr, "usage: touch_memory PERCENT [NODE]\n");
		return 2;
	}
	if (argc == 3) {
		nodes = 1UL << atoi(argv[2]);
		if (syscall(SYS_set_mempolicy, MPOL_BIND, &nodes,
			    8 * sizeof(nodes))) {
			perror("set_mempolicy");
			return 1;
		}
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
