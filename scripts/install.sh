#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# install.sh [--remove]: installs the host's module, which is built, for the kernel that it was
# built for, and what has it loaded at boot; or removes all of that. To be run as root;
# where there are packages (make deb), those are better.
#
#   DESTDIR=  root file system, instead of the running one

. "$(dirname "$0")/lib.sh"

root=${DESTDIR:-}
name=vfio_iommu_deferred
module=$TOP/host/$name.ko
command -v depmod >/dev/null || die "this needs depmod and modinfo: install kmod"

if [ "${1:-}" = --remove ]; then
	for file in "$root/lib/modules"/*/updates/"$name.ko"; do
		[ -f "$file" ] || continue
		rm "$file"
		kver=${file#"$root/lib/modules/"}
		depmod --basedir "${root:-/}" "${kver%%/*}"
	done
	"$TOP/packaging/install-files.sh" host "$root" --remove
	note "removed; the module is loaded until rmmod or the next boot"
	exit
fi

[ -f "$module" ] || die "$module is not there: run 'make host' first"
kver=$(modinfo -F vermagic "$module" | cut -d' ' -f1)
[ -d "$root/lib/modules/$kver" ] ||
	die "there is no kernel $kver, which the module was built for: build it with KVER= or KDIR="
install -D --mode=644 "$module" "$root/lib/modules/$kver/updates/$name.ko"
depmod --basedir "${root:-/}" "$kver"
"$TOP/packaging/install-files.sh" host "$root"
note "installed for kernel $kver: modprobe $name"
