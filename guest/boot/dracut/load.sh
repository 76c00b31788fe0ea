#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# dracut, hook pre-udev, which is sourced: fills the balloon before any device of the
# guest has a driver.

# It returns when probe() has: the host has then mapped all that is not in the
# balloon. Without a module for this kernel the guest boots as without a balloon.
modprobe -q virtio_pci
_why=$(modprobe virtio_balloon_deferred 2>&1) ||
	echo "<4>virtio_balloon_deferred: not loaded, memory is mapped before devices use it: $_why" \
		>/dev/kmsg
unset _why
