#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# packages.sh: installs the packages that deb.sh has made in a clean Debian, build/try, where
# DKMS has to build both modules for kernel KVER with what the packages depend on, and removes
# them again. Prints TAP. Takes ten minutes and 5 GiB.

. "$(dirname "$0")/../scripts/lib.sh"

KVER=$(kver)
export KVER TOOLCHAIN_ROOT=$BUILD/try
log=$BUILD/try.log
version=$(sed -n 's/^#define DEFERRED_VERSION "\(.*\)"$/\1/p' "$TOP/include/version.h")
series=$(cut -d. -f1,2 <<<"${KVER%%[+-]*}")
tests=0
failed=0

in_try() {
	"$TOP/scripts/in-root.sh" env DEBIAN_FRONTEND=noninteractive "$@" >>"$log" 2>&1
}

# ok WHAT COMMAND...: a test.
ok() {
	local what=$1 result=ok
	shift
	tests=$((tests + 1))
	"$@" || { result="not ok" && failed=$((failed + 1)); }
	echo "$result $tests - $what"
}

not() {
	! "$@"
}

# Whether module $1 is installed for the kernel, in our version.
has_module() {
	in_try sh -c "[ \"\$(modinfo -k $KVER -F version $1)\" = $version ]"
}

# Whether nothing of the packages is left but what DKMS logged.
is_gone() {
	in_try sh -c '! find /usr /etc /lib/modules /var/cache | grep -E "(vfio|balloon)(_iommu)?[-_]deferred"'
}

apt_get() {
	in_try apt-get -qq --no-install-recommends --yes "$@"
}

lock_build
need_disk 6
mapfile -t ns < <(namespaces | tr ' ' '\n')
unshare "${ns[@]}" rm -rf --one-file-system "$BUILD/try"
install_debian "$BUILD/try"
mkdir -p "$BUILD/deb"
: >"$log"
echo "TAP version 13"

apt_get update
# The kernel's files, without the machinery that boots it.
ok "the kernel, its headers and its source are installed" apt_get install \
	"linux-modules-$KVER" "linux-headers-$KVER" "linux-source-$series"
apt_get install initramfs-tools
ok "the packages can be installed" apt_get install \
	"$IN_SRC/build/deb/vfio-deferred-host-dkms_${version}_all.deb" \
	"$IN_SRC/build/deb/vfio-deferred-guest-dkms_${version}_all.deb"
for module in vfio_iommu_deferred virtio_balloon_deferred; do
	ok "DKMS has built $module" has_module "$module"
	ok "modprobe knows what it needs" in_try modprobe -n -S "$KVER" "$module"
done
ok "the driver goes into the guest's initramfs, before all else" in_try sh -c "
	update-initramfs -c -k $KVER
	lsinitramfs /boot/initrd.img-$KVER >/tmp/list
	grep -q virtio_balloon_deferred.ko /tmp/list &&
	grep -q scripts/init-top/00-virtio_balloon_deferred /tmp/list"
ok "the headers are as they were" not in_try sh -c \
	"dpkg --verify linux-headers-$KVER | grep ."
ok "they can be removed" apt_get purge vfio-deferred-host-dkms vfio-deferred-guest-dkms
ok "nothing is left of them" is_gone
echo "1..$tests"
echo "$((tests - failed)) passed, $failed failed"
[ "$failed" = 0 ]
