#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# install-source.sh host|guest DIRECTORY: puts there what it takes to build that module,
# as DKMS does. For makers of packages.

set -e
side=$1
to=$2
cd "$(dirname "$0")/.."

mkdir -p "$to/scripts"
find "$side" include -type f \( -name '*.rs' -o -name '*.[ch]' -o -name 'Kbuild*' \
	-o -name 'check-*.sh' \) ! -name '*_generated.rs' ! -name '*.mod.c' ! -name '.*' \
	-exec install -D -m 644 '{}' "$to/{}" \;
find "$to" -name '*.sh' -exec chmod 755 '{}' +
install -m 755 scripts/build.sh scripts/rust-metadata.sh "$to/scripts/"
install -m 644 scripts/lib.sh "$to/scripts/"
