# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# Functions shared by the scripts: messages, errors, stamps. Source it first.

set -euo pipefail

# A normal user's PATH may lack chroot and mount's helpers.
PATH=$PATH:/usr/sbin:/sbin

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
BUILD=$TOP/build
# shellcheck disable=SC2034 # Read by the scripts that source this file.
ROOT=${TOOLCHAIN_ROOT:-$BUILD/root}
STAMPS=$BUILD/stamps

# Where the repository appears inside the toolchain root. Fixed, so that the
# command lines that kbuild compares are the same wherever the checkout lies.
# shellcheck disable=SC2034
IN_SRC=/src

STEP=0
STEPS=0

# Announces how many steps follow.
steps() {
	STEPS=$1
	STEP=0
}

# One line per step on standard error: [k/n] seconds since the start, and what
# happens next.
step() {
	STEP=$((STEP + 1))
	printf '[%d/%d] %4ds  %s\n' "$STEP" "$STEPS" "$SECONDS" "$*" >&2
}

note() {
	printf '       %4ds  %s\n' "$SECONDS" "$*" >&2
}

# Ends the script with one line that says what is wrong and what to do.
die() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

# Fails unless the build directory's file system has $1 GiB free.
need_disk() {
	local free
	mkdir -p "$BUILD"
	free=$(df --output=avail -BG "$BUILD" | tail -1 | tr -dc 0-9)
	[ "$free" -ge "$1" ] ||
		die "$BUILD has $free GiB free, $1 GiB are needed: free some space, or make build/ a symbolic link to a larger disk"
}

# One script at a time prepares anything below build/. Released at exit.
lock_build() {
	mkdir -p "$BUILD" "$STAMPS"
	exec 9>"$BUILD/.lock"
	flock --nonblock 9 && return
	note "waiting for another run that prepares $BUILD"
	flock 9
}

# True if step $1 was completed for exactly the inputs that key $2 stands for.
is_done() {
	[ -f "$STAMPS/$1" ] && [ "$(cat "$STAMPS/$1")" = "$2" ]
}

# Records that step $1 is complete for key $2. Atomic: a stamp is never partial.
mark_done() {
	mkdir -p "$STAMPS"
	printf '%s\n' "$2" >"$STAMPS/.$1.$$"
	mv "$STAMPS/.$1.$$" "$STAMPS/$1"
}

# One word for any number of arguments, for use as a key.
key_of() {
	printf '%s\n' "$@" | sha256sum | cut -c1-16
}

# The same for the contents of files.
key_of_files() {
	cat -- "$@" | sha256sum | cut -c1-16
}

# The kernel release that is built for and booted: KVER from the environment,
# else the one that root.sh chose.
kver() {
	if [ -n "${KVER:-}" ]; then
		echo "$KVER"
	elif [ -f "$BUILD/kver" ]; then
		cat "$BUILD/kver"
	else
		die "no kernel release chosen yet: run 'make root' first, or set KVER="
	fi
}

# The compiler that Debian built kernel $1 with, as every build has to call it.
kernel_cc() {
	sed -n 's/^CONFIG_CC_VERSION_TEXT="\([^ ]*\).*/\1/p' \
		"$ROOT/usr/lib/modules/$1/config"
}

# Copies the sources below directories $2... to directory $1, for a build that is not to be
# mixed with another one. Unchanged files keep their times; files that are gone go, or a
# module may be found twice.
mirror_sources() {
	local to=$1 sources=(
		-type f "(" -name '*.rs' -o -name '*.[ch]' -o -name '*.sh' -o
		-name 'Kbuild*' ")" ! -name '*_generated.rs' ! -name '*.mod.c'
		! -name '.*'
	)
	shift
	mkdir -p "$to"
	find "$to" "${sources[@]}" -delete
	(cd "$TOP" && find "$@" "${sources[@]}" -print0 | tar -c --null -T -) |
		tar -x -C "$to"
}

# Where rust-metadata.sh leaves what Debian's headers lack, below a directory a release.
METADATA=${METADATA:-/var/cache/vfio-deferred}

# The release of kernel tree $1.
release_of() {
	sed -n 's/^#define UTS_RELEASE "\(.*\)"$/\1/p' "$1/include/generated/utsrelease.h"
}

# What kernel tree $1 was configured with: identifies what fits to it.
tree_key() {
	key_of_files "$1/include/config/auto.conf" "$1/include/generated/utsrelease.h" \
		"$1/include/generated/utsversion.h"
}

# Fails, in a sentence, unless modules in Rust can be built against kernel tree $1 by this
# machine's tools.
check_tree() {
	local config=$1/include/config/auto.conf theirs ours tool
	[ -f "$config" ] ||
		die "$1 is no kernel tree that modules can be built against: install the kernel's headers"
	grep -q '^CONFIG_RUST=y' "$config" ||
		die "kernel $(release_of "$1") was built without CONFIG_RUST: it takes no modules in Rust"
	for tool in "${RUSTC:-rustc}" "${BINDGEN:-bindgen}" pahole; do
		command -v "$tool" >/dev/null ||
			die "$tool is missing: install it (Debian: rustc, bindgen, dwarves)"
	done
	theirs=$(sed -n 's/^CONFIG_RUSTC_VERSION_TEXT="\?\([^"]*\)"\?$/\1/p' "$config")
	ours=$("${RUSTC:-rustc}" --version)
	[ "$ours" = "$theirs" ] ||
		die "kernel $(release_of "$1") was built with $theirs, this machine has $ours, and the two do not mix: install that version, or set RUSTC="
}

# Where to build against kernel tree $1: there if it has the metadata of the kernel's crates,
# else in what rust-metadata.sh has made of it.
tree_with_metadata() {
	local made
	made=$METADATA/$(release_of "$1")
	if [ -f "$1/rust/libkernel.rmeta" ]; then
		echo "$1"
	elif [ "$(cat "$made/key" 2>/dev/null)" = "$(tree_key "$1")" ]; then
		echo "$made"
	else
		die "$1 lacks the metadata of the kernel's Rust crates (rust/libkernel.rmeta): on Debian, run scripts/rust-metadata.sh as root; a tree of your own needs 'make prepare'"
	fi
}

# The Debian that is installed below build/.
SUITE=trixie

# The archive that it comes from.
mirror() {
	local uri=${MIRROR:-}
	# shellcheck disable=SC2016 # apt-get expands this.
	[ -n "$uri" ] || uri=$(apt-get indextargets --format '$(REPO_URI)' \
		'Created-By: Packages' 'Label: Debian' | head -1)
	[ -n "$uri" ] || die "apt's configuration names no Debian mirror: run apt-get update, or set MIRROR="
	echo "$uri"
}

# Installs it, with the kernels of its backports, in directory $1.
install_debian() {
	local uri ns
	uri=$(mirror)
	mapfile -t ns < <(namespaces | tr ' ' '\n')
	unshare "${ns[@]}" mmdebstrap --mode=root --variant=apt --quiet \
		--include=ca-certificates \
		--aptopt='APT::Install-Recommends "false"' \
		--dpkgopt=force-unsafe-io \
		--dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		--dpkgopt='path-exclude=/usr/share/doc/*' \
		--dpkgopt='path-include=/usr/share/doc/*/copyright' \
		"$SUITE" "$1" "deb $uri $SUITE main" \
		"deb $uri $SUITE-backports main" >"$BUILD/root.log" 2>&1 ||
		die "mmdebstrap failed: see $BUILD/root.log"
	printf 'Package: linux-*\nPin: release n=%s-backports\nPin-Priority: 600\n' \
		"$SUITE" >"$1/etc/apt/preferences.d/kernel"
	apt-config dump | grep -E '^Acquire::https?::Proxy' \
		>"$1/etc/apt/apt.conf.d/90proxy" || true
}

# Everything that in-root.sh needs to enter namespaces, as words for unshare.
# A normal user becomes root of a user namespace in which its own files stay
# its own.
namespaces() {
	echo --mount --pid --fork --kill-child
	[ "$EUID" = 0 ] || echo --user --map-auto --map-root-user
}
