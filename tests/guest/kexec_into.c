// SPDX-License-Identifier: GPL-2.0-only
/*
 * Boots another kernel from this one, without tools that a small initramfs lacks.
 *
 *   kexec_into load KERNEL INITRD CMDLINE    for kexec_into go
 *   kexec_into panic KERNEL INITRD CMDLINE   for the next panic
 *   kexec_into go
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/kexec.h>
#include <linux/reboot.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int load(char **words, unsigned long flags)
{
	int kernel = open(words[0], O_RDONLY), initrd = open(words[1], O_RDONLY);

	if (kernel < 0 || initrd < 0)
		return -1;
	return syscall(SYS_kexec_file_load, kernel, initrd, strlen(words[2]) + 1,
		       words[2], flags);
}

int main(int argc, char **argv)
{
	int err = -1;

	errno = EINVAL;
	if (argc == 5 && !strcmp(argv[1], "load"))
		err = load(argv + 2, 0);
	else if (argc == 5 && !strcmp(argv[1], "panic"))
		err = load(argv + 2, KEXEC_FILE_ON_CRASH);
	else if (argc == 2 && !strcmp(argv[1], "go"))
		err = syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2,
			      LINUX_REBOOT_CMD_KEXEC, NULL);
	if (err)
		perror(argv[0]);
	return err ? 1 : 0;
}
