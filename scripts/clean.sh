#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# clean.sh [--all]: removes what kbuild left beside the sources; with --all, also
# build/, which may hold files that only the root of a user namespace can remove.

. "$(dirname "$0")/lib.sh"

find "$TOP/host" "$TOP/guest" "$TOP/include" "$TOP/tests" "$TOP/scripts" \
	\( -name '*.o' -o -name '*.ko' -o -name '*.mod' -o -name '*.mod.c' \
	-o -name '.*.cmd' -o -name '.*.d' -o -name '*.rmeta' \
	-o -name '*_generated.rs' -o -name '*.checked' -o -name Module.symvers \
	-o -name modules.order \) -type f -delete
find "$TOP/scripts" "$TOP/tests" -name __pycache__ -type d -exec rm -r {} +

[ "${1:-}" = --all ] || exit 0
lock_build
mapfile -t ns < <(namespaces | tr ' ' '\n')
unshare "${ns[@]}" rm -rf --one-file-system "$BUILD"
