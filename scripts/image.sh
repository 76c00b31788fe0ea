#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# image.sh: makes what L1 boots from: build/l1-$KVER.erofs, the toolchain root
# without its compilers, and build/l1-$KVER.cpio, an initramfs that mounts it.
# Neither holds anything of this repository but L1's /init: modules and tests are
# handed to L1 afresh for every run, see vm.py.

. "$(dirname "$0")/lib.sh"

KVER=$(kver)
here=$TOP/scripts
in_root() {
	"$here/in-root.sh" "$@"
}

# Everything that neither QEMU nor a test needs.
excluded=(
	'^(boot|home|media|mnt|opt|srv)/'
	'^(dev|proc|run|src|sys|tmp)/.+'
	'^usr/(games|include|local|src)/'
	'^usr/lib/(apt|bfd-plugins|gcc|linux|linux-kbuild-[^/]*|llvm-[0-9]+|rustlib)/'
	'^usr/lib/python3/'
	'^usr/lib/x86_64-linux-gnu/(lib(LLVM|clang|lldb|rustc|std-|asan|tsan|ubsan|hwasan|lsan|itm)[^/]*|perl|perl-base|.*\.a)$'
	'^usr/libexec/gcc/'
	'^usr/share/(bison|bug|doc|fonts|icu|info|javascript|lintian|locale|man|matplotlib|mime|perl|tcltk|unicode|zoneinfo|zsh)/'
	'^usr/share/qemu/(hppa|openbios|skiboot|u-boot|s390|palcode|npcm|vof|slof|linux-user)'
	'^usr/bin/(bindgen|clang|cargo|ld\.|llvm|lto-dump|perl|rust|x86_64-linux-gnu-)'
	'^var/(cache|lib|log)/.+'
	"^usr/lib/modules/[^/]*/(build|source|vmlinux|System.map)"
	"^usr/lib/modules/[^/]*/kernel/(sound|net/(bluetooth|mac80211|wireless|netfilter|sched))/"
	"^usr/lib/modules/[^/]*/kernel/drivers/(accel|ata|bluetooth|comedi|firewire|gpu|hid|hwmon|iio|infiniband|input|isdn|leds|media|mfd|mmc|mtd|power|scsi|staging|thunderbolt|usb|video|w1)/"
	"^usr/lib/modules/[^/]*/kernel/drivers/net/(wireless|wwan|can|usb|phy)/"
)

image=l1-$KVER.erofs
image_key=$(key_of "$KVER" "$(cat "$STAMPS/tools")" "${excluded[@]}")
initramfs=l1-$KVER.cpio
initramfs_key=$(key_of "$KVER" \
	"$(key_of_files "$here/l1/initramfs.py" "$here/l1/init-l1" "$0")")

is_done "image-$KVER" "$image_key" &&
	is_done "initramfs-$KVER" "$initramfs_key" && exit 0
lock_build
steps 2

step "L1's root image (6 s)"
if ! is_done "image-$KVER" "$image_key"; then
	need_disk 2
	for other in "$ROOT"/usr/lib/modules/*; do
		[ "${other##*/}" = "$KVER" ] ||
			excluded+=("^usr/lib/modules/${other##*/}/")
	done
	# No compression: L1 would unpack it in emulation. No extended
	# attributes: they are looked for in what is excluded, too.
	in_root mkfs.erofs -d0 -x-1 --all-root "${excluded[@]/#/--exclude-regex=}" \
		"$IN_SRC/build/.$image.new" / >"$BUILD/image.log" 2>&1 ||
		die "mkfs.erofs failed: see $BUILD/image.log"
	mv "$BUILD/.$image.new" "$BUILD/$image"
	mark_done "image-$KVER" "$image_key"
fi

step "L1's initramfs (1 s)"
if ! is_done "initramfs-$KVER" "$initramfs_key"; then
	in_root python3 "$IN_SRC/scripts/l1/initramfs.py" --kver "$KVER" \
		--init "$IN_SRC/scripts/l1/init-l1" \
		--out "$IN_SRC/build/.$initramfs.new" \
		virtio_pci virtio_blk erofs overlay 9pnet_virtio 9p
	mv "$BUILD/.$initramfs.new" "$BUILD/$initramfs"
	mark_done "initramfs-$KVER" "$initramfs_key"
fi
