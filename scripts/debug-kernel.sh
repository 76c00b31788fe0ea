#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# debug-kernel.sh: makes build/debug, a small kernel of the same source as the
# stock one that checks itself: KASAN, lockdep, kmemleak, UBSAN and more, see
# debug.config. An interrupted run goes on where it stopped.
#
#   vmlinuz, l1.cpio  what L1 boots from
#   modules           its modules
#   src, ko           this repository's modules and test modules, built for it
#
# Clang and the LLVM tools are used, as Rust and KASAN together demand.
#
#   KVER=  kernel release whose source it is, else the one in build/kver
#   JOBS=  compilers at a time, instead of one per processor

. "$(dirname "$0")/lib.sh"

KVER=$(kver)
upstream=${KVER%%+*}
series=$(cut -d. -f1,2 <<<"$upstream")
here=$TOP/scripts
debug=$BUILD/debug
in_debug=$IN_SRC/build/debug
log=$debug/build.log

in_root() {
	"$here/in-root.sh" "$@"
}

# The timestamp goes into the kernel: the same inputs make the same kernel.
kernel_make=(
	nice -n 15 make --no-print-directory -C "$in_debug/linux" ARCH=x86 LLVM=1
	LOCALVERSION=-debug KBUILD_BUILD_TIMESTAMP=1970-01-01
	-j"${JOBS:-$(nproc)}"
)

# Documentation and firmware tables are two fifths of the source.
unpack() {
	rm -rf "$debug/linux" "$debug/linux.new"
	mkdir -p "$debug/linux.new"
	in_root tar -xf "/usr/src/linux-source-$series.tar.xz" --no-same-owner \
		--strip-components=1 -C "$in_debug/linux.new" \
		--exclude='linux-source-*/Documentation/*/*' \
		--exclude='linux-source-*/drivers/gpu/drm/amd/include/*' \
		--exclude='linux-source-*/tools/testing/*' \
		--exclude='linux-source-*/arch/*/boot/dts/*'
	mv "$debug/linux.new" "$debug/linux"
}

# Fails if something of debug.config did not survive: kconfig drops silently what
# lacks a dependency.
check_config() {
	local missing
	missing=$(grep -E '^(CONFIG|# CONFIG.* is not set)' "$here/debug.config" |
		grep -vxFf "$debug/linux/.config") || return 0
	die "the kernel's configuration lacks: ${missing//$'\n'/, }"
}

compile() {
	in_root "${kernel_make[@]}" \
		"KCONFIG_ALLCONFIG=$IN_SRC/scripts/debug.config" allnoconfig >"$log" 2>&1 ||
		die "configuring the debug kernel failed: see $log"
	check_config
	in_root "${kernel_make[@]}" bzImage modules >>"$log" 2>&1 ||
		die "compiling the debug kernel failed: see $log"
	# What was built for the kernel before this one does not fit.
	rm -rf "$debug/modules" "$debug/src"
	in_root "${kernel_make[@]}" "INSTALL_MOD_PATH=$in_debug/modules" \
		modules_install >>"$log" 2>&1 ||
		die "installing the debug kernel's modules failed: see $log"
	# Links into the tree, which L1 is not to get a copy of.
	rm -f "$debug"/modules/lib/modules/*/{build,source}
	cp "$debug/linux/arch/x86/boot/bzImage" "$debug/vmlinuz"
}

# A copy of the sources: what is built for the stock kernel stays where it is.
# Unchanged files keep their times, so that nothing is compiled in vain; those that
# are no more go.
copy_sources() {
	mkdir -p "$debug/src"
	find "$debug/src" -type f \( -name '*.[ch]' -o -name '*.rs' \) \
		! -name '*_generated.rs' ! -name '*.mod.c' -delete
	tar -C "$TOP" -cf - --exclude='*.o' --exclude='*.ko' --exclude='.*' \
		--exclude='*.mod' --exclude='*.mod.c' --exclude='*_generated.rs' \
		--exclude=modules.order --exclude=Module.symvers \
		host guest include tests/guest tests/host tests/debug |
		tar -C "$debug/src" -xf -
}

build_modules() {
	local dir
	for dir in host guest tests/host tests/guest tests/debug; do
		in_root "${kernel_make[@]}" "M=$in_debug/src/$dir" modules \
			>"$debug/modules.log" 2>&1 ||
			die "$dir does not build for the debug kernel: see $debug/modules.log"
	done
	rm -rf "$debug/ko"
	mkdir "$debug/ko"
	cp "$debug"/src/{host,guest,tests/*}/*.ko "$debug/ko/"
}

source_key=$(key_of "$upstream")
kernel_key=$(key_of "$source_key" "$(key_of_files "$here/debug.config" "$0")")
initramfs_key=$(key_of "$kernel_key" \
	"$(key_of_files "$here/l1/initramfs.py" "$here/l1/init-l1")")

lock_build
mkdir -p "$debug"
steps 4

step "the debug kernel's source"
if ! is_done debug-source "$source_key"; then
	need_disk 3
	unpack
	mark_done debug-source "$source_key"
fi

step "configuring and compiling it (20 min at the first time)"
if ! is_done debug-kernel "$kernel_key"; then
	compile
	mark_done debug-kernel "$kernel_key"
fi

step "its initramfs"
if ! is_done debug-initramfs "$initramfs_key"; then
	# Nothing needs to be loaded: L1's disk and file systems are built in.
	in_root python3 "$IN_SRC/scripts/l1/initramfs.py" --kver "$KVER" \
		--init "$IN_SRC/scripts/l1/init-l1" --out "$in_debug/.l1.cpio.new"
	mv "$debug/.l1.cpio.new" "$debug/l1.cpio"
	mark_done debug-initramfs "$initramfs_key"
fi

step "the modules for it"
copy_sources
build_modules
note "debug kernel ready"
