#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# install-guest.sh [--uninstall] ROOT: installs the guest's driver into a guest's root file
# system, "/" being the running system, so that its initramfs loads it before the driver of
# any other device; or removes what was installed, for all kernels. Then makes the initramfs
# anew, with initramfs-tools or dracut, whichever is there. To be run as root; needs kmod.

. "$(dirname "$0")/lib.sh"

uninstall=
if [ "${1-}" = --uninstall ]; then
	uninstall=1
	shift
fi
# The running system only for those who say so.
[ -n "${1-}" ] || die "which root file system? Give it as DESTDIR=, which is / inside the guest"
root=${1%/}
name=virtio_balloon_deferred
module=$TOP/guest/$name.ko
boot=$TOP/guest/boot

# All that is installed beside the module, whose place is below each kernel's.
hook=/etc/initramfs-tools/hooks/$name
init_top=/etc/initramfs-tools/scripts/init-top/00-$name
dracut=/usr/lib/dracut/modules.d/02$name
# What earlier versions had installed.
stale=("/etc/modprobe.d/$name.conf" "/etc/dracut.conf.d/$name.conf")

command -v depmod >/dev/null || die "this needs depmod and modinfo: install kmod"
[ -d "$root/usr" ] || die "$root does not look like a root file system"

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
# make_initramfs KVER
make_initramfs() {
	local action=-u
	if guest_has update-initramfs; then
		# "-u" alone does nothing where there is no image yet.
		[ -e "$root/boot/vmlinuz-$1" ] ||
			note "warning: $root/boot has no kernel $1: is /boot mounted?"
		[ -e "$root/boot/initrd.img-$1" ] || action=-c
		in_guest update-initramfs "$action" -k "$1"
	elif guest_has dracut; then
		in_guest dracut --force --kver "$1"
	elif [ -z "$uninstall" ]; then
		note "neither initramfs-tools nor dracut: load $name.ko before other drivers yourself"
	fi
}

rm -f "${stale[@]/#/$root}"
if [ -n "$uninstall" ]; then
	rm -f "$root$hook" "$root$init_top"
	rm -rf "${root:?}$dracut"
	for path in "$root"/lib/modules/*/updates/"$name.ko"; do
		[ -e "$path" ] || continue
		kver=${path#"$root/lib/modules/"}
		kver=${kver%%/*}
		rm "$path"
		rmdir --ignore-fail-on-non-empty "${path%/*}"
		depmod --basedir "${root:-/}" "$kver"
		make_initramfs "$kver"
		note "removed for kernel $kver"
	done
	exit
fi

[ -f "$module" ] || die "$module is not there: run 'make guest' first"
kver=$(modinfo -F vermagic "$module" | cut -d' ' -f1)
[ -d "$root/lib/modules/$kver" ] ||
	die "$root has no kernel $kver, which the module was built for: build it with KVER= or KDIR="
# Kept out of anything that a package owns.
put() {
	install -D --mode="$1" "$2" "$root$3"
}
put 644 "$module" "/lib/modules/$kver/updates/$name.ko"
put 755 "$boot/initramfs-tools/hook" "$hook"
put 755 "$boot/initramfs-tools/init-top" "$init_top"
if guest_has dracut; then
	put 755 "$boot/dracut/module-setup.sh" "$dracut/module-setup.sh"
	put 755 "$boot/dracut/load.sh" "$dracut/load.sh"
fi
depmod --basedir "${root:-/}" "$kver"
make_initramfs "$kver"
note "installed for kernel $kver"
