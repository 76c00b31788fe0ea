#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# check-layout.sh OURS OBJTREE RELEASE [PRIVATE]: fails, with one sentence, unless the
# object OURS has struct vfio_iommu_driver_ops as the kernel has it, which keeps it private.
# What the kernel has is taken from the type information (BTF) of its vfio.ko, or of
# its vmlinux if that is built in, and from the object PRIVATE, if there is one:
# made with the kernel's own header.
#
#   OBJTREE  what the module is built against, RELEASE its kernel
#   VFIO_KO  vfio.ko, if it is in neither of both

ours=$1
objtree=$2
release=$3
private=${4:-}

die() {
	echo "check-layout.sh: $*" >&2
	exit 1
}

# What pahole prints of the types in a file: members, offsets, sizes, arguments.
layout() {
	for type in vfio_iommu_driver_ops vfio_group_type; do
		# Of what is in the base without use here, it warns at length.
		pahole "$@" -C "$type" 2>/dev/null
	done | sed -E 's/[[:space:]]+/ /g; /^ ?$/d'
}

# The first line that differs, of ours and of theirs.
compare() {
	[ -s "$scratch/theirs" ] || return 0
	compared=1
	cmp -s "$scratch/ours" "$scratch/theirs" && return
	line=$(diff "$scratch/ours" "$scratch/theirs" | sed -n '/^>/{s/^> *//;p;q}')
	die "$1 declares struct vfio_iommu_driver_ops in another way than host/type1/driver_ops.h, first at \"${line:-its end}\": this module does not know this kernel ($release)"
}

command -v pahole >/dev/null ||
	die "comparing with the kernel's private structures needs pahole: install it (Debian: dwarves)"
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
compared=

layout "$ours" >"$scratch/ours"
grep -q 'members: 13 ' "$scratch/ours" ||
	die "$ours has no debugging information"

if [ -n "$private" ]; then
	layout "$private" >"$scratch/theirs"
	[ -s "$scratch/theirs" ] || die "$private has no debugging information"
	compare "the kernel's drivers/vfio/vfio.h"
fi

base=$objtree/vmlinux
if ! [ -e "$base" ] && [ "$release" = "$(uname -r)" ]; then
	base=/sys/kernel/btf/vmlinux
fi
for module in "${VFIO_KO:-}" "$objtree/drivers/vfio/vfio.ko" \
	"/lib/modules/$release/kernel/drivers/vfio/vfio.ko"*; do
	case $module in
	*.ko) cat "$module" ;;
	*.ko.xz) xz -dc "$module" ;;
	*.ko.zst) zstd -qdc "$module" ;;
	*.ko.gz) gzip -dc "$module" ;;
	esac >"$scratch/vfio.ko" 2>/dev/null
	[ -s "$scratch/vfio.ko" ] || continue
	layout --btf_base "$base" "$scratch/vfio.ko" >"$scratch/theirs"
	compare "$module"
done
if [ -z "$compared" ]; then
	layout "$base" >"$scratch/theirs"
	compare "$base"
fi

[ -n "$compared" ] ||
	die "this kernel ($release) does not say how struct vfio_iommu_driver_ops is laid out: neither a vfio.ko with type information (CONFIG_DEBUG_INFO_BTF_MODULES), for which $base has to be there as well, nor drivers/vfio/vfio.h was found"
