#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# dracut, modules.d/: puts the balloon's driver and what it needs into the image, and
# has it loaded before udev starts to load those of other devices. A module of
# dracut's, and not force_drivers in its configuration: for a kernel that a driver
# was not built for dracut drops all that come after it in that list, and says nothing.

# called by dracut
check() {
	return 0
}

# called by dracut
depends() {
	return 0
}

# called by dracut
installkernel() {
	# Each by itself: where one is not there the image is made without it.
	hostonly='' instmods virtio_pci
	hostonly='' instmods virtio_balloon_deferred
}

# called by dracut
install() {
	# shellcheck disable=SC2154 # dracut sets it.
	inst_hook pre-udev 00 "$moddir/load.sh"
}
