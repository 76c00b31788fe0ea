#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# in-root.sh COMMAND [ARGUMENT...]: runs a command inside the toolchain root,
# build/root, with the repository at /src. Nothing that is mounted here is seen
# outside, and nothing that is started here outlives the command.

. "$(dirname "$0")/lib.sh"

[ $# -gt 0 ] || die "usage: in-root.sh COMMAND [ARGUMENT...]"
[ -x "$ROOT/usr/bin/env" ] || die "there is no $ROOT: run 'make root' first"

# The command starts where the caller stands, if that is in the repository.
case $PWD/ in
"$TOP"/*) dir=$IN_SRC${PWD#"$TOP"} ;;
*) dir=$IN_SRC ;;
esac

# A clean environment: what a build does must not depend on who calls it.
environment=(
	PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
	TERM="${TERM:-dumb}" IN_ROOT=1
)
for name in http_proxy https_proxy no_proxy KVER; do
	[ -z "${!name:-}" ] || environment+=("$name=${!name}")
done

# shellcheck disable=SC2016 # The inner shell expands these.
enter='
	set -e
	root=$1 top=$2 src=$3 dir=$4
	shift 4
	# A mount of its own, so that in it mounts can be made private, too.
	mount --bind "$root" "$root"
	mkdir -p "$root$src"
	mount -t proc proc "$root/proc"
	mount --rbind /dev "$root/dev"
	mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
	mount --bind "$(readlink -f "$top")" "$root$src"
	! [ -L "$top/build" ] || mount --bind "$top/build" "$root$src/build"
	exec chroot "$root" /usr/bin/env -C "$dir" -i "$@"
'
mapfile -t ns < <(namespaces | tr ' ' '\n')
exec unshare "${ns[@]}" bash -c "$enter" in-root \
	"$ROOT" "$TOP" "$IN_SRC" "$dir" "${environment[@]}" "$@"
