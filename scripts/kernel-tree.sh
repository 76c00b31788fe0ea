#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# kernel-tree.sh: makes build/linux-$KVER, a kernel tree that modules in Rust can
# be built against. Debian's headers lack the metadata of the kernel's own Rust
# crates, so those are compiled here from Debian's source and configuration; the
# list of exported symbols comes from the headers. No kernel is compiled.

. "$(dirname "$0")/lib.sh"

KVER=$(kver)
is_done "tree-$KVER" "$KVER" && exit 0
lock_build
upstream=${KVER%%+*}
series=$(cut -d. -f1,2 <<<"$upstream")
name=linux-$KVER
tree=$BUILD/$name
log=$BUILD/kernel-tree.log

in_root() {
	"$TOP/scripts/in-root.sh" "$@"
}

# Another run may have made it meanwhile.
is_done "tree-$KVER" "$KVER" && exit 0
steps 2
need_disk 4

step "unpacking the source of Linux $upstream (15 s)"
rm -rf "$tree" "$tree.new"
mkdir -p "$tree.new"
in_root tar -xf "/usr/src/linux-source-$series.tar.xz" --no-same-owner \
	--strip-components=1 -C "$IN_SRC/build/$name.new"
mv "$tree.new" "$tree"

step "configuring it and compiling the kernel's Rust crates (90 s)"
cp "$ROOT/usr/lib/modules/$KVER/config" "$tree/.config"
cc=$(kernel_cc "$KVER")
kernel_make=(
	make -C "$IN_SRC/build/$name" ARCH=x86
	"LOCALVERSION=${KVER#"$upstream"}" "CC=$cc" "HOSTCC=$cc"
)
{ in_root "${kernel_make[@]}" olddefconfig &&
	in_root "${kernel_make[@]}" -j"$(nproc)" prepare modules_prepare; } \
	>"$log" 2>&1 || die "preparing the tree failed: see $log"
release=$(cat "$tree/include/config/kernel.release")
[ "$release" = "$KVER" ] ||
	die "the source is of $release, the kernel is $KVER: choose a KVER whose linux-source is still in the archive"
grep -q '^CONFIG_RUST=y' "$tree/.config" ||
	die "CONFIG_RUST was switched off for want of a tool: see $log"
# The headers' vmlinux holds the kernel's type information, which that of modules
# builds on.
cp "$ROOT/usr/src/linux-headers-$KVER/"{Module.symvers,vmlinux} "$tree/"
mark_done "tree-$KVER" "$KVER"
note "kernel tree ready"
