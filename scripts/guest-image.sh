#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# guest-image.sh: makes guests as their owners would: Debian trixie with systemd, once
# with initramfs-tools and once with dracut, into which install-guest.sh has put the
# driver. For VMs in L1 that boot from an assigned NVMe disk. Left in build/:
#
#   guest-root-TOOL          the root file systems, from packages; made once
#   guest-$KVER.ext4         that with initramfs-tools, as a disk for all of them
#   guest-$KVER-TOOL.initrd  what each tool makes of it
#   guest-$KVER-lost-TOOL.initrd  the same for a kernel that the driver was not built for
#   guest-$KVER-race.initrd  one that loads the disk's driver while the balloon is on its
#                            way, see tests/guest/init-top-race
#
# Needs the toolchain root and guest/virtio_balloon_deferred.ko.

. "$(dirname "$0")/lib.sh"

KVER=$(kver)
here=$TOP/scripts
in_root() {
	"$here/in-root.sh" "$@"
}
tools=(initramfs-tools dracut)
image=guest-$KVER
log=$BUILD/guest-image.log

packages=(
	e2fsprogs kmod systemd-sysv udev
	"linux-base-$KVER" "linux-binary-$KVER" "linux-modules-$KVER"
)
# Nothing that a VM of the tests has a device for.
excluded=(
	usr/lib/modules/"$KVER"/kernel/{sound,net/{bluetooth,wireless}}
	usr/lib/modules/"$KVER"/kernel/drivers/{gpu,infiniband,media,net,staging,usb}
	usr/lib/udev/hwdb.bin
)

# Timers, what asks for a password on a console, and what is only work for an emulated
# processor.
masked=(
	apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service
	fstrim.timer getty.target ldconfig.service systemd-hwdb-update.service
	systemd-journal-catalog-update.service systemd-tmpfiles-clean.timer
)

base_key=$(key_of "${packages[@]}" "${excluded[@]}")
image_key=$(key_of "$base_key" "$(key_of_files "$0" "$here/install-guest.sh" \
	"$TOP"/guest/boot/*/* "$here/l1/guest-shell" \
	"$TOP/tests/guest/init-top-race" "$TOP/guest/virtio_balloon_deferred.ko")")

is_done "guest-image-$KVER" "$image_key" && exit 0
lock_build
steps 4

# bootstrap TOOL
bootstrap() {
	local uri ns base=$BUILD/guest-root-$1
	uri=$(sed -nE 's/^deb ([^ ]+) trixie main.*/\1/p' "$ROOT/etc/apt/sources.list")
	mapfile -t ns < <(namespaces | tr ' ' '\n')
	unshare "${ns[@]}" rm -rf "$base" "$base.new"
	# shellcheck disable=SC2016 # mmdebstrap expands $1.
	unshare "${ns[@]}" mmdebstrap --mode=root --variant=apt --quiet \
		--include="$1,$(IFS=,; echo "${packages[*]}")" \
		--aptopt='APT::Install-Recommends "false"' \
		--dpkgopt=force-unsafe-io \
		--dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		--dpkgopt='path-exclude=/usr/share/doc/*' \
		--setup-hook='mkdir -p "$1/etc/apt/preferences.d"' \
		--setup-hook="cp $ROOT/etc/apt/preferences.d/kernel \"\$1/etc/apt/preferences.d/\"" \
		trixie "$base.new" "deb $uri trixie main" "deb $uri trixie-backports main" \
		>"$log" 2>&1 || die "mmdebstrap failed: see $log"
	unshare "${ns[@]}" rm -rf "${excluded[@]/#/$base.new/}"
	unshare "${ns[@]}" mv "$base.new" "$base"
}

# What makes them guests of the tests; nothing that changes what is loaded when.
configure() {
	# shellcheck disable=SC2016 # The inner shell expands these.
	in_root bash -ec '
		cd "$1"
		tool=$2 shell=$3
		shift 3
		echo guest >etc/hostname
		echo "/dev/nvme0n1 / ext4 defaults 0 1" >etc/fstab
		: >etc/machine-id
		# Small enough to be unpacked by an emulated processor. What is listed is
		# loaded by udev, like the driver of any device.
		case $tool in
		initramfs-tools)
			echo "MODULES=list" >etc/initramfs-tools/conf.d/modules
			echo "COMPRESS=gzip" >etc/initramfs-tools/conf.d/compress
			printf "%s\n" ext4 nvme >etc/initramfs-tools/modules
			;;
		dracut)
			printf "%s\n" "hostonly=no" "compress=gzip" "early_microcode=no" \
				"drivers=\" ext4 nvme \"" "filesystems=\" ext4 \"" \
				"omit_dracutmodules=\" hwdb lunmask nvdimm overlay-root qemu resume virtfs virtiofs \"" \
				>etc/dracut.conf.d/tests.conf
			;;
		esac
		install -m 755 "$shell" usr/local/sbin/guest-shell
		printf "%s\n" "[Service]" "ExecStart=/usr/local/sbin/guest-shell" \
			"StandardOutput=null" "[Install]" "WantedBy=multi-user.target" \
			>etc/systemd/system/guest-shell.service
		mount -t proc proc proc
		chroot . systemctl --quiet enable guest-shell.service
		chroot . systemctl --quiet set-default multi-user.target
		chroot . systemctl --quiet mask "$@"
	' configure "$IN_SRC/build/guest-root-$1" "$1" "$IN_SRC/scripts/l1/guest-shell" \
		"${masked[@]}"
}

# undone TOOL: nothing of the driver is left after it was uninstalled.
undone() {
	local left base=$IN_SRC/build/guest-root-$1
	in_root scripts/install-guest.sh --uninstall "$base" >>"$log" 2>&1 || return
	# shellcheck disable=SC2016
	left=$(in_root bash -c '
		cd "$1"
		find . -xdev -name "*$3*"
		grep -rl "$3" etc usr/lib/modules/"$2"/modules.*
	' left "$base" "$KVER" virtio_balloon_deferred)
	[ -z "$left" ] || { echo "left: $left" >>"$log"; return 1; }
}

# Of what install-guest.sh has installed, the module alone.
race_initrd() {
	# shellcheck disable=SC2016
	in_root bash -ec '
		cd "$1"
		mount -t proc proc proc
		mount -t tmpfs tmpfs tmp
		cp -a etc/initramfs-tools tmp/race
		rm tmp/race/scripts/init-top/00-virtio_balloon_deferred
		install -m 755 "$2" tmp/race/scripts/init-top/00-race
		chroot . mkinitramfs -d /tmp/race -o /tmp/race.initrd "$3"
		mv tmp/race.initrd "$4"
	' race "$IN_SRC/build/guest-root-initramfs-tools" \
		"$IN_SRC/tests/guest/init-top-race" "$KVER" "$IN_SRC/build/$image-race.initrd"
}

# lost_initrd TOOL: as if the kernel was new. What other packages want of dracut, in a
# file that sorts after any of ours, has to be in the image nevertheless.
lost_initrd() {
	# shellcheck disable=SC2016
	in_root bash -ec '
		cd "$1"
		tool=$2 kver=$3 out=$4
		module=usr/lib/modules/$kver/updates/virtio_balloon_deferred.ko
		mount -t proc proc proc
		mount --rbind /dev dev
		mount -t tmpfs tmpfs tmp
		mv "$module" tmp/module
		depmod --basedir . "$kver"
		case $tool in
		initramfs-tools)
			chroot . mkinitramfs -o /tmp/lost.initrd "$kver"
			;;
		dracut)
			cp -a etc/dracut.conf.d tmp
			echo "force_drivers+=\" loop \"" >tmp/dracut.conf.d/z.conf
			chroot . dracut --force --confdir /tmp/dracut.conf.d \
				--kver "$kver" /tmp/lost.initrd
			;;
		esac
		mv tmp/lost.initrd "$out"
		mv tmp/module "$module"
		depmod --basedir . "$kver"
	' lost "$IN_SRC/build/guest-root-$1" "$1" "$KVER" "$IN_SRC/build/$image-lost-$1.initrd"
}

# No loop device is needed, nor a mount.
make_disk() {
	local base=$IN_SRC/build/guest-root-initramfs-tools
	rm -f "$BUILD/.$image.ext4"
	# The tool is the guest's: the toolchain root has none.
	in_root env LD_LIBRARY_PATH="$base/usr/lib/x86_64-linux-gnu" \
		"$base/usr/sbin/mke2fs" -q -t ext4 -E root_owner=0:0 \
		-d "$base" "$IN_SRC/build/.$image.ext4" 1G
	mv "$BUILD/.$image.ext4" "$BUILD/$image.ext4"
}

for tool in "${tools[@]}"; do
	step "Debian with systemd and $tool (40 s, once)"
	if ! is_done "guest-root-$tool" "$base_key"; then
		need_disk 3
		bootstrap "$tool"
		mark_done "guest-root-$tool" "$base_key"
	fi
done

step "the driver into them (40 s)"
: >"$log"
for tool in "${tools[@]}"; do
	configure "$tool" >>"$log" 2>&1 || die "could not configure the guest: see $log"
	in_root scripts/install-guest.sh "$IN_SRC/build/guest-root-$tool" >>"$log" 2>&1 ||
		die "could not install the driver: see $log"
	undone "$tool" || die "could not uninstall the driver: see $log"
	in_root scripts/install-guest.sh "$IN_SRC/build/guest-root-$tool" >>"$log" 2>&1 ||
		die "could not install the driver again: see $log"
	cp "$BUILD/guest-root-$tool/boot/initrd.img-$KVER" "$BUILD/$image-$tool.initrd"
done
for tool in "${tools[@]}"; do
	lost_initrd "$tool" >>"$log" 2>&1 ||
		die "could not make the initramfs without the driver: see $log"
done
race_initrd >>"$log" 2>&1 || die "could not make the initramfs of the race: see $log"

step "their disk (5 s)"
make_disk >>"$log" 2>&1 || die "mke2fs failed: see $log"
mark_done "guest-image-$KVER" "$image_key"
