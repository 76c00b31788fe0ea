#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# deb.sh: makes Debian packages of both modules, by DKMS, in build/deb: by Debian's own
# tools, in the toolchain root, from what is checked in and what is not. Fails if lintian finds
# an error.

. "$(dirname "$0")/lib.sh"

tools=(debhelper dh-dkms lintian)
in_root() {
	"$TOP/scripts/in-root.sh" "$@"
}

version=$(sed -n 's/^#define DEFERRED_VERSION "\(.*\)"$/\1/p' "$TOP/include/version.h")
head -1 "$TOP/packaging/debian/changelog" | grep -qF "($version)" ||
	die "packaging/debian/changelog is not of version $version, which include/version.h says"
grep -q "^$version\b" "$TOP/NEWS" || die "NEWS has nothing of version $version"

lock_build
key=$(key_of "${tools[@]}")
if ! is_done deb-tools "$key"; then
	in_root apt-get -qq update
	in_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install \
		--no-install-recommends --yes "${tools[@]}" >"$BUILD/deb.log" 2>&1 ||
		die "apt-get install failed in the toolchain root: see $BUILD/deb.log"
	mark_done deb-tools "$key"
fi

source=$BUILD/deb/vfio-deferred-$version
rm -rf "$BUILD/deb"
mirror_sources "$source" host guest include
cp -r "$TOP"/{scripts,packaging,README.md,NEWS,COPYING} "$source/"
cp -r "$TOP/guest/boot" "$source/guest/"
cp -r "$TOP/packaging/debian" "$source/debian"
# Not build-essential: nothing is compiled.
in_root env -C "$IN_SRC/build/deb/vfio-deferred-$version" \
	dpkg-buildpackage --no-sign --no-check-builddeps --build=binary \
	>"$BUILD/deb.log" 2>&1 ||
	die "dpkg-buildpackage failed: see $BUILD/deb.log"
in_root bash -c "lintian --fail-on error --allow-root $IN_SRC/build/deb/*.changes" >&2 ||
	die "lintian has found an error"
rm -rf "$source"
ls "$BUILD"/deb/*.deb
