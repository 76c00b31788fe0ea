#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# build.sh DIRECTORY [WORD...]: kbuild for a directory of modules: host, guest or
# one below tests. Further words go to make: CLIPPY=1, V=1, clean.
#
#   KDIR=  prepared kernel tree or headers to build against, with the machine's own tools;
#          Debian's headers after rust-metadata.sh
#   KVER=  kernel release, else the one in build/kver; needs the toolchain root

. "$(dirname "$0")/lib.sh"

dir=${1:?usage: build.sh DIRECTORY [WORD...]}
shift
[ -f "$TOP/$dir/Kbuild" ] || die "$dir has no Kbuild file"

if [ -n "${KDIR:-}" ]; then
	check_tree "$KDIR"
	KDIR=$(tree_with_metadata "$KDIR")
	exec make -C "$KDIR" M="$TOP/$dir" "$@"
fi

KVER=$(kver)
cc=$(kernel_cc "$KVER")
kernel_make=(
	make --no-print-directory -C "$IN_SRC/build/linux-$KVER" M="$IN_SRC/$dir"
	ARCH=x86 "LOCALVERSION=+${KVER#*+}" "CC=$cc" "HOSTCC=$cc"
)
exec "$TOP/scripts/in-root.sh" "${kernel_make[@]}" "$@"
