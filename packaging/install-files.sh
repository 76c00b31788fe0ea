#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# install-files.sh host|guest ROOT [--remove]: what belongs to a module, beside the module itself: who
# loads it when. In the places that are for packages, below /usr. For makers of packages, and
# of "make install". Or removes it.

set -e
root=$2
remove=${3:-}
cd "$(dirname "$0")/.."

put() {
	if [ -n "$remove" ]; then
		rm -f "$root$3"
	else
		install -D -m "$1" "$2" "$root$3"
	fi
}

case $1 in
host)
	put 644 packaging/host/modules-load.conf /usr/lib/modules-load.d/vfio_iommu_deferred.conf
	put 644 packaging/host/modprobe.conf /usr/lib/modprobe.d/vfio_iommu_deferred.conf
	put 644 packaging/host/udev.rules /usr/lib/udev/rules.d/60-vfio-deferred.rules
	put 755 packaging/host/node-group /usr/lib/vfio-deferred/node-group
	[ -z "$remove" ] || rmdir "$root/usr/lib/vfio-deferred" 2>/dev/null || true
	;;
guest)
	name=virtio_balloon_deferred
	put 755 guest/boot/initramfs-tools/hook /usr/share/initramfs-tools/hooks/$name
	put 755 guest/boot/initramfs-tools/init-top \
		/usr/share/initramfs-tools/scripts/init-top/00-$name
	dracut=/usr/lib/dracut/modules.d/02$name
	put 755 guest/boot/dracut/module-setup.sh $dracut/module-setup.sh
	put 755 guest/boot/dracut/load.sh $dracut/load.sh
	;;
*)
	echo "usage: install-files.sh host|guest ROOT [--remove]" >&2
	exit 1
	;;
esac
