#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# checkpatch.sh FILE...: the kernel's own style check of files, named from the top
# of the repository. Warnings count, but for those about helpers that carry the
# kernel's names, and are declared for bindgen.

. "$(dirname "$0")/lib.sh"

tree=$IN_SRC/build/linux-$(kver)
# In /tmp, since it leaves a file where it runs. The toolchain root has no git:
# with this, checkpatch does not ask for it.
exec "$TOP/scripts/in-root.sh" env -C /tmp GIT_DIR=/nonexistent \
	perl "$tree/scripts/checkpatch.pl" --root="$tree" \
	--strict --terse --no-summary --ignore AVOID_EXTERNS,CAMELCASE \
	--file "${@/#/$IN_SRC/}"
