#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# rust-metadata.sh [RELEASE]: makes what Debian's kernel headers lack for modules in Rust,
# the metadata of the kernel's own crates, for the running kernel or that release. It is
# compiled from the distribution's source, linux-source-SERIES, which has to be that of
# the same package version, by the compiler that the kernel was built with; takes two
# minutes and, meanwhile, 2 GiB.
#
# The result is a tree of 200 MiB that modules are built against, with links to the headers:
# /var/cache/vfio-deferred/RELEASE. Nothing is done if it is there and fits.
#
#   METADATA=  another place than /var/cache/vfio-deferred

. "$(dirname "$0")/lib.sh"

release=${1:-$(uname -r)}
headers=$(readlink -f "/lib/modules/$release/build" || true)
[ -d "$headers" ] || die "kernel $release has no headers: install linux-headers-$release"
tree=$METADATA/$release

check_tree "$headers"
[ ! -f "$headers/rust/libkernel.rmeta" ] || exit 0
key=$(tree_key "$headers")
[ "$(cat "$tree/key" 2>/dev/null)" != "$key" ] || exit 0

# 7.3 of 7.3.4+deb13-amd64, and 7.3.4-1~bpo13+1 of "#1 SMP ... Debian 7.3.4-1~bpo13+1 (...)".
series=$(cut -d. -f1,2 <<<"${release%%[+-]*}")
version=$(sed -n 's/.* Debian \([^ ]*\) .*/\1/p' "$headers/include/generated/utsversion.h")
common=$(sed -n 's/^include \(.*\)\/Makefile$/\1/p' "$headers/Makefile")
if [ -d "$common" ] && [ -n "$version" ]; then known=1; fi
[ -n "${known:-}" ] ||
	die "$headers is not of Debian: build against a kernel tree in which 'make prepare' was run, by KDIR="
source=/usr/src/linux-source-$series.tar.xz
[ -f "$source" ] || die "$source is missing: install linux-source-$series"
installed=$(dpkg-query -W -f '${Version}' "linux-source-$series" 2>/dev/null || true)
[ "$installed" = "$version" ] ||
	die "linux-source-$series is of version ${installed:-(none)}, kernel $release of $version: install that one"

mkdir -p "$METADATA"
exec 9>"$METADATA/.lock"
flock 9
work=$METADATA/.$release
trap 'rm -rf "$work"' EXIT
rm -rf "$work" "$tree"
mkdir -p "$work/source" "$work/tree/rust" "$work/tree/scripts"

steps 2
step "unpacking $source (15 s)"
tar -xf "$source" --no-same-owner --strip-components=1 -C "$work/source" \
	--exclude='linux-source-*/Documentation/*/*' \
	--exclude='linux-source-*/drivers/gpu/drm/amd/include/*' \
	--exclude='linux-source-*/tools/testing/*' \
	--exclude='linux-source-*/arch/*/boot/dts/*'

step "compiling the kernel's Rust crates (90 s)"
cp "$headers/.config" "$work/source/.config"
cc=$(sed -n 's/^CONFIG_CC_VERSION_TEXT="\([^ ]*\).*/\1/p' "$headers/.config")
kernel_make=(
	make -C "$work/source" ARCH=x86 "LOCALVERSION=${release#"${release%%[+-]*}"}"
	"CC=$cc" "HOSTCC=$cc"
)
{ "${kernel_make[@]}" olddefconfig && "${kernel_make[@]}" -j"$(nproc)" prepare; } \
	>"$METADATA/$release.log" 2>&1 ||
	die "compiling the kernel's Rust crates failed: see $METADATA/$release.log"
cmp -s "$headers/include/config/auto.conf" "$work/source/include/config/auto.conf" ||
	die "the kernel's configuration changed, for want of a tool: compare $headers/.config with what $METADATA/$release.log says"

# What modules need of it, beside links to all that the headers have.
find "$headers" -mindepth 1 -maxdepth 1 ! -name Makefile ! -name scripts ! -name rust \
	-exec ln -s -t "$work/tree" {} +
find "$headers/scripts/" -mindepth 1 -maxdepth 1 -exec ln -s -t "$work/tree/scripts" {} +
cp "$work"/source/rust/*.rmeta "$work"/source/rust/*.so "$work/tree/rust/"
[ ! -f "$work/source/scripts/target.json" ] ||
	cp "$work/source/scripts/target.json" "$work/tree/scripts/"
printf 'KBUILD_OUTPUT=%s\ninclude %s/Makefile\n' "$tree" "$common" >"$work/tree/Makefile"
echo "$key" >"$work/tree/key"
mv "$work/tree" "$tree"
note "metadata for $release ready: $tree"
