#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# root.sh: makes the toolchain root, build/root: Debian trixie with Debian's own
# Rust, GCC and QEMU, and one kernel of trixie-backports. The Rust crates of the
# kernel must be compiled by the very compiler that Debian used, so the machine's
# own tools are of no use here.
#
# Needs Debian 12 or later on amd64. Works as root, and as a normal user with
# subordinate ids (package uidmap). Each step is skipped if it was done before.
# "root.sh --series" prints the newest kernel of each series that can be built for.
#
#   KVER=    kernel release, instead of the newest: 7.3.4+deb13-amd64
#   MIRROR=  Debian mirror, instead of the one in apt's configuration

. "$(dirname "$0")/lib.sh"

tools=(
	bc bindgen bison busybox-static ca-certificates clang cpio dwarves
	erofs-utils flake8 flex gcc-14 iproute2 kmod libc6-dev libclang-dev
	libelf-dev libfuzzer-19-dev libssl-dev lld llvm make mount ovmf pciutils
	perl procps python3 python3-matplotlib qemu-system-x86 rust-clippy
	rust-src rustc rustfmt shellcheck xz-utils zstd
)

in_root() {
	"$TOP/scripts/in-root.sh" "$@"
}

install_packages() {
	in_root env DEBIAN_FRONTEND=noninteractive apt-get -qq \
		install --no-install-recommends --yes "$@" >"$BUILD/root.log" 2>&1 ||
		die "apt-get install failed in the toolchain root: see $BUILD/root.log"
}

# What must be installed on the machine itself, as one line for the user.
check_machine() {
	local missing=()
	[ "$(dpkg --print-architecture 2>/dev/null)" = amd64 ] ||
		die "this needs Debian (12 or later) on amd64; elsewhere, build with 'make KDIR=...' and the machine's own tools"
	command -v mmdebstrap >/dev/null || missing+=(mmdebstrap)
	[ "$EUID" = 0 ] || command -v newuidmap >/dev/null || missing+=(uidmap)
	[ ${#missing[@]} -eq 0 ] && return
	[ "$EUID" = 0 ] ||
		die "please run once: sudo apt-get install --no-install-recommends ${missing[*]}"
	note "installing ${missing[*]}"
	{ apt-get -qq update && apt-get -qq install --no-install-recommends \
		--yes "${missing[@]}"; } >"$BUILD/root.log" 2>&1 ||
		die "apt-get install ${missing[*]} failed: see $BUILD/root.log"
}

bootstrap() {
	# The remains of an interrupted run belong to ids that only the
	# namespace can remove.
	mapfile -t ns < <(namespaces | tr ' ' '\n')
	unshare "${ns[@]}" rm -rf "$ROOT" "$ROOT.new"
	install_debian "$ROOT.new"
	unshare "${ns[@]}" mv "$ROOT.new" "$ROOT"
}

# The releases that have all that modules in Rust need, the newest last. The archive keeps
# more images than it has headers and sources for.
kernels() {
	in_root apt-cache search --names-only '^linux-(binary|headers|source)-[0-9]' |
		awk '{ print $1 }' | sed -nE '
			s/^linux-binary-([0-9.]+\+deb[0-9]+-amd64)$/\1 binary/p
			s/^linux-headers-([0-9.]+\+deb[0-9]+-amd64)$/\1 headers/p' |
		sort -V | awk '$1 == last { print $1 } { last = $1 }' |
		while read -r kver; do
			[ "$(source_version "$(series_of "$kver")")" != "${kver%%+*}" ] ||
				echo "$kver"
		done
}

# 7.3 of 7.3.4+deb13-amd64.
series_of() {
	cut -d. -f1,2 <<<"${1%%[+-]*}"
}

# The upstream version of what linux-source-$1 has; nothing if there is none.
source_version() {
	in_root apt-cache show --no-all-versions "linux-source-$1" 2>/dev/null |
		sed -nE 's/^Version: ([0-9.]+).*/\1/p'
}

install_kernel() {
	local kver=$1 series known
	series=$(series_of "$kver")
	known=$(kernels | xargs)
	[[ " $known " == *" $kver "* ]] ||
		die "KVER=$kver is not in the archive, which has: $known"
	install_packages "linux-binary-$kver" "linux-modules-$kver" \
		"linux-base-$kver" "linux-headers-$kver" "linux-source-$series"
	[ -f "$ROOT/usr/lib/modules/$kver/modules.dep" ] ||
		in_root depmod "$kver"
}

tools_key=$(key_of "${tools[@]}")

# True if nothing is left to do, which is the case on all runs but the first.
is_complete() {
	is_done root "$SUITE" && is_done tools "$tools_key" || return
	{ [ -n "${KVER:-}" ] || [ -f "$BUILD/kver" ]; } || return
	is_done "kernel-$(kver)" "$(kver)"
}

# Each series has one source, which is of one release.
if [ "${1:-}" = --series ]; then
	is_done root "$SUITE" || "$0"
	kernels
	exit
fi

is_complete && exit 0
lock_build
steps 4

step "checking this machine"
check_machine
is_done root "$SUITE" || need_disk 12

if is_done root "$SUITE"; then
	step "Debian $SUITE in $ROOT: there already"
else
	step "Debian $SUITE into $ROOT (20 s)"
	bootstrap
	mark_done root "$SUITE"
fi

if is_done tools "$tools_key"; then
	step "compilers, QEMU and tools: there already"
else
	step "compilers, QEMU and tools (60 s)"
	in_root apt-get -qq update
	install_packages "${tools[@]}"
	mark_done tools "$tools_key"
fi

if [ -z "${KVER:-}" ] && [ ! -f "$BUILD/kver" ]; then
	in_root apt-get -qq update
	KVER=$(kernels | tail -1)
	[ -n "$KVER" ] || die "$SUITE-backports has no kernel with headers and source: set KVER="
	echo "$KVER" >"$BUILD/kver"
fi
KVER=$(kver)
if is_done "kernel-$KVER" "$KVER"; then
	step "kernel $KVER: there already"
else
	step "kernel $KVER (30 s)"
	install_kernel "$KVER"
	mark_done "kernel-$KVER" "$KVER"
fi
note "toolchain root ready"
