#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# clippy.sh: the kernel's Rust lints of both modules; warnings are errors. Done in
# a copy, build/clippy, since objects that clippy made would be compiled again by
# the next build, and the other way round.

. "$(dirname "$0")/lib.sh"

mkdir -p "$BUILD/clippy"
cd "$TOP"
sources=(
	-type f "(" -name '*.rs' -o -name '*.[ch]' -o -name 'Kbuild*' ")"
	! -name '*_generated.rs' ! -name '*.mod.c'
)
# Files that are gone must not stay, or a module may be found twice.
find "$BUILD/clippy" "${sources[@]}" -delete
find host guest include "${sources[@]}" -print0 |
	tar -c --null -T - | tar -x -C "$BUILD/clippy"
for module in host guest; do
	"$TOP/scripts/build.sh" "build/clippy/$module" CLIPPY=1 W=e
done
