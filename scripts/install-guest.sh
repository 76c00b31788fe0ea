#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# install-guest.sh ROOT: installs the guest's driver into a guest's root file system, "/"
# being the running system, so that its initramfs loads it before the driver of any
# other device; then makes that initramfs anew, with initramfs-tools or dracut,
# whichever is there. To be run as root; needs kmod.

. "$(dirname "$0")/lib.sh"

# The running system only for those who say so.
[ -n "${1-}" ] || die "which root file system? Give it as DESTDIR=, which is / inside the guest"
root=${1%/}
name=virtio_balloon_deferred
module=$TOP/guest/$name.ko
boot=$TOP/guest/boot

command -v depmod >/dev/null || die "this needs depmod and modinfo: install kmod"
[ -f "$module" ] || die "$module is not there: run 'make guest' first"
[ -d "$root/usr" ] || die "$root does not look like a root file system"
kver=$(modinfo -F vermagic "$module" | cut -d' ' -f1)
[ -d "$root/lib/modules/$kver" ] ||
	die "$root has no kernel $kver, which the module was built for: build it with KVER= or KDIR="

# Kept out of anything that a package owns.
put() {
	install -D --mode="$1" "$2" "$root$3"
}
put 644 "$module" "/lib/modules/$kver/updates/$name.ko"
put 644 "$boot/modprobe.conf" "/etc/modprobe.d/$name.conf"
put 755 "$boot/initramfs-tools/hook" "/etc/initramfs-tools/hooks/$name"
put 755 "$boot/initramfs-tools/init-top" \
	"/etc/initramfs-tools/scripts/init-top/00-$name"
put 644 "$boot/dracut/dracut.conf" "/etc/dracut.conf.d/$name.conf"
depmod --basedir "${root:-/}" "$kver"

# Runs a program of the guest, if it has it.
guest_has() {
	[ -x "$root/usr/sbin/$1" ] || [ -x "$root/usr/bin/$1" ]
}
# What makes an initramfs reads /proc, and dracut /dev/fd as well; nobody else sees what is
# mounted here.
in_guest() {
	# shellcheck disable=SC2016 # The inner shell expands these.
	unshare --mount bash -ec '
		root=$1
		shift
		if [ -n "$root" ]; then
			mount -t proc proc "$root/proc"
			mount --rbind /dev "$root/dev"
		fi
		exec chroot "$root/" "$@"
	' in-guest "$root" "$@"
}
if guest_has update-initramfs; then
	# "-u" alone does nothing where there is no image yet.
	action=-u
	[ -e "$root/boot/vmlinuz-$kver" ] ||
		note "warning: $root/boot has no kernel $kver: is /boot mounted?"
	[ -e "$root/boot/initrd.img-$kver" ] || action=-c
	in_guest update-initramfs "$action" -k "$kver"
elif guest_has dracut; then
	in_guest dracut --force --kver "$kver"
else
	note "neither initramfs-tools nor dracut: load $name.ko before other drivers yourself"
fi
note "installed for kernel $kver"
