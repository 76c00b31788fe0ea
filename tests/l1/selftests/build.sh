#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Builds the kernel's own VFIO selftests, in the toolchain root, from the prepared
# kernel tree: tools/testing/selftests/vfio, into build/tests/selftests.

here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../../scripts/lib.sh"

tree=$BUILD/linux-$(kver)
out=$BUILD/tests/selftests
gcc=$(kernel_cc "$(kver)")
cc=(CC="$gcc" HOSTCC="$gcc")
mkdir -p "$out"

# All that they need of libuuid, which is not in the root.
mkdir -p "$out/uuid"
cat >"$out/uuid/uuid.h" <<'END'
#include <stdio.h>
typedef unsigned char uuid_t[16];
static inline int uuid_parse(const char *text, uuid_t uuid)
{
	int i, at = 0;

	for (i = 0; i < 16; i++, at += 2) {
		at += text[at] == '-';
		if (sscanf(text + at, "%2hhx", &uuid[i]) != 1)
			return -1;
	}
	return 0;
}
END

make -s -C "$tree" "${cc[@]}" ARCH=x86 headers
"$gcc" -O2 -Wall -c -o "$out/type1.o" "$here/type1.c"
make -s -C "$tree/tools/testing/selftests/vfio" "${cc[@]}" OUTPUT="$out" \
	KHDR_INCLUDES="-isystem $tree/usr/include" EXTRA_CFLAGS="-I$out" \
	LDLIBS="$out/type1.o"
