#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# versions.sh [KVER...]: builds both modules and the tests' modules for kernels, by
# default for the newest one of each series of which Debian's archive has all that it
# takes. Makes their trees on first use, 2 GiB and two minutes each; what is built is left in
# build/versions/KVER. Ends with a table, and fails if one does not build.

. "$(dirname "$0")/lib.sh"

directories=(host guest tests/guest tests/host tests/hostile)

if [ $# -eq 0 ]; then
	mapfile -t kernels < <("$TOP/scripts/root.sh" --series)
	set -- "${kernels[@]}"
fi
[ -n "${1:-}" ] || die "Debian's archive has no kernel that the modules could be built for"

# Makes the tree and builds all, or says where it is written why not.
build() {
	local dir=build/versions/$1 log=$BUILD/versions/$1.log
	"$TOP/scripts/root.sh" || return
	"$TOP/scripts/kernel-tree.sh" || return
	mirror_sources "$TOP/$dir" host guest include tests
	for module in "${directories[@]}"; do
		"$TOP/scripts/build.sh" "$dir/$module" >>"$log" 2>&1 && continue
		note "$module does not build for $1: see $log"
		return 1
	done
}

mkdir -p "$BUILD/versions"
table=()
failed=0
for kver; do
	export KVER=$kver
	rm -f "$BUILD/versions/$kver.log"
	note "kernel $kver"
	if build "$kver"; then
		rustc=$(sed -n 's/^CONFIG_RUSTC_VERSION_TEXT="rustc \([^ ]*\).*/\1/p' \
			"$BUILD/linux-$kver/.config")
		table+=("$kver rustc $rustc built")
	else
		table+=("$kver - - failed")
		failed=1
	fi
done
printf '%s\n' "${table[@]}" | column -t
exit $failed
