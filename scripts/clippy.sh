#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# clippy.sh: the kernel's Rust lints of both modules; warnings are errors. Done in
# a copy, build/clippy, since objects that clippy made would be compiled again by
# the next build, and the other way round.

. "$(dirname "$0")/lib.sh"

mirror_sources "$BUILD/clippy" host guest include
for module in host guest; do
	"$TOP/scripts/build.sh" "build/clippy/$module" CLIPPY=1 W=e
done
