# SPDX-License-Identifier: GPL-2.0-only
#
# Each target names the script or the kbuild call that does it; 'make help' lists
# them. What they make is kept below build/ and not made twice.
#
# With KDIR=, the modules are built against that kernel tree by the machine's own
# tools. Without, everything runs in a toolchain root that is made on first use.

export KDIR KVER MIRROR

VM := scripts/vm.py
C_FILES = $(shell find host guest include tests -name '*.[ch]' ! -name '*.mod.c')
RUST_FILES = $(shell find host guest include tests -name '*.rs' ! -name '*_generated.rs')
SHELL_FILES = $(shell grep -rlE '^\#!/bin/(ba)?sh|shellcheck shell=' guest/boot host packaging scripts tests .ci)
# Variables of 'make stress', see tests/l1/stress.py.
STRESS := SEED CASES CASES_VM KILLS LOADS DELETIONS PAIRS EIGHTS BOOTS
PYTHON_FILES = $(shell find scripts tests -name '*.py')

.PHONY: all help host guest install uninstall install-guest uninstall-guest deb deb-check
.PHONY: root tree toolchain image versions clippy fmt fmt-check
.PHONY: lint checkpatch unit fuzz smoke demo shell check stress debug-check clean distclean

all: host guest	## both modules (default)

help:	## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	@echo '  variables: KVER= kernel release, KDIR= prepared kernel tree, MIRROR= Debian mirror,'
	@echo '             of demo: SIZES="4G 8G 12G", RUNS=3, KNOBS="workers=2"'
	@echo '             of debug-check: PATTERNS="driver calls", JOBS= compilers at a time'

host: toolchain	## host/vfio_iommu_deferred.ko
	@scripts/build.sh host

guest: toolchain	## guest/virtio_balloon_deferred.ko
	@scripts/build.sh guest

install:	## the host's module for its kernel, and what loads it at boot; DESTDIR=
	@scripts/install.sh

uninstall:	## removes that again
	@scripts/install.sh --remove

deb: root	## Debian packages of both modules, by DKMS: build/deb
	@scripts/deb.sh

deb-check: deb tree	## installs them in a clean Debian, where DKMS builds for KVER: ten minutes
	@tests/packages.sh

install-guest:	## that module into the guest's root file system at DESTDIR=, and its initramfs
	@scripts/install-guest.sh "$(DESTDIR)"

uninstall-guest:	## what that has put there away again
	@scripts/install-guest.sh --uninstall "$(DESTDIR)"

root:	## toolchain root: build/root, 90 s, once
	@scripts/root.sh

tree: root	## kernel tree for modules in Rust: build/linux-KVER, 110 s, once
	@scripts/kernel-tree.sh

toolchain: $(if $(KDIR),,tree)

image: root	## what the virtual host L1 boots from: build/l1-KVER.*, 7 s
	@scripts/image.sh

versions: root	## both modules, and the tests', for each series that can be built for
	@scripts/versions.sh

clippy: toolchain	## Rust lints of both modules
	@scripts/clippy.sh

fmt: root	## format all Rust files
	@scripts/in-root.sh rustfmt --edition 2021 $(RUST_FILES)

fmt-check: root	## fail if a Rust file is not formatted
	@scripts/in-root.sh rustfmt --edition 2021 --check $(RUST_FILES)

lint: root	## shellcheck, and flake8 for errors
	@scripts/in-root.sh shellcheck --external-sources \
		--source-path=SCRIPTDIR $(SHELL_FILES)
	@scripts/in-root.sh flake8 --select=E9,F,W6 $(PYTHON_FILES)

checkpatch: tree	## the kernel's style check of the C files
	@scripts/checkpatch.sh $(C_FILES)

unit: root	## tests of the pure logic, without a kernel, and of what runs tests
	@scripts/in-root.sh tests/unit/run.sh
	@scripts/in-root.sh tests/unit/test_programs.py
	@scripts/in-root.sh tests/unit/test_layout.py
	@scripts/in-root.sh tests/unit/test_build.py

fuzz: root	## coverage-guided fuzzing of the pure logic, SECONDS=60 a target
	@scripts/in-root.sh tests/fuzz/fuzz.py run $(or $(SECONDS),60)

smoke: image	## a VM with an assigned device boots in the nested test bed
	@$(VM) run --name smoke scripts/l1/smoke.py

demo: all image	## boot times with and without deferral: table, chart, build/demo
	@scripts/demo.py

shell: image	## interactive shell in L1, with the modules that are built
	@$(VM) shell

check: all image	## all tests: style, unit, fuzz, driver, host, selftests, distro
	@tests/run.py

stress: all image	## hostile guests, sudden ends, many boots: two hours, SEED=, PHASES=
	@tests/run.py stress -- $(PHASES) $(foreach name,$(STRESS),$(and $($(name)),$(name)=$($(name))))

debug-check: all image	## those of both modules on a kernel with KASAN, lockdep and more
	@scripts/debug-kernel.sh
	@tests/debug.py $(PATTERNS)

clean:	## remove what the modules' builds left
	@scripts/clean.sh

distclean: clean	## remove build/ as well
	@scripts/clean.sh --all
