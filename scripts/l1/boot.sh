#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# First process of L1: runs /payload/run with its output on the second serial
# port, leaves exit status and kernel log in /results, and switches L1 off. Before
# it, /results/started says that L1 is up.

export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=linux LC_ALL=C.UTF-8
export PYTHONPATH=/payload/l1 PYTHONDONTWRITEBYTECODE=1 PYTHON_COLORS=0

mount -t tmpfs run /run
mount -t tmpfs -o mode=1777 tmp /tmp
mkdir -p /dev/shm /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t devpts devpts /dev/pts
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
hostname l1
ip link set lo up

# Set by vm.py, on the kernel's command line.
[ -z "${AWAKE-}" ] || /payload/l1/awake.py

: >/results/started
cd /root || exit
if grep -qw l1=shell /proc/cmdline; then
	echo "This is L1. The payload is in /payload, 'exit' switches it off."
	setsid --ctty --wait bash -i </dev/ttyS0 >/dev/ttyS0 2>&1
	status=$?
else
	# What comes in is for the kernel alone, see watch.py.
	stty -F /dev/ttyS0 -echo -cread
	stty -F /dev/ttyS1 raw -echo
	setsid --wait /payload/run </dev/null >/dev/ttyS1 2>&1
	status=$?
fi
dmesg >/results/dmesg
echo "$status" >/results/status
sync
busybox poweroff -f
