#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Builds and runs the unit tests of include/logic and prints TAP; exit status 0
# means that all passed, 4 that there is no compiler.
#
#   UNIT_SEED=N   the seed that a failed run printed
#   UNIT_STEPS=N  steps of each randomised test (a default for each)
#   RUSTC=PATH    the compiler, CLIPPY=PATH clippy-driver
#   MIRI=PATH     Miri's driver, if there is one; MIRI_SYSROOT= as for cargo-miri,
#                 MIRI_STEPS= steps of each randomised test under it (50)
set -euo pipefail

cd "$(dirname "$0")"
out=../../build/unit
rustc=${RUSTC:-rustc}
clippy=${CLIPPY:-clippy-driver}
flags=(--edition 2021 --check-cfg 'cfg(MODULE)' --check-cfg 'cfg(test)' -D warnings
	-C debug-assertions=on -C overflow-checks=on)

if ! "$rustc" --version >/dev/null 2>&1; then
	echo "1..0 # SKIP no rustc"
	exit 4
fi
mkdir -p "$out"

# build NAME FLAG...: compiles the tests.
build() {
	"$rustc" "${flags[@]}" --test "${@:2}" -o "$out/$1" main.rs || {
		echo "Bail out! the tests do not compile"
		exit 1
	}
}

# count NAME: how many tests there are.
count() {
	"$out/$1" --list --format terse | grep -c ': test$'
}

# tap NAME FIRST: libtest's report on stdin as TAP lines from number FIRST on.
# The tests that did not report, since the process died, failed.
tap() {
	awk -v name="$1" -v number="$2" -v tests="$(count "$1")" '
		BEGIN { last = number + tests }
		/^test .* \.\.\. / {
			verdict = $NF == "ok" ? "ok" : "not ok"
			if ($NF ~ /^ignored/)
				verdict = "ok"
			print verdict, number++, "- " name ": " $2 ($NF ~ /^ignored/ ? " # SKIP ignored" : "")
			bad += verdict != "ok"
			next
		}
		# Not the lists of names that follow.
		/^(running|successes:|failures:|    [a-z_:0-9]+$)/ { next }
		NF { print "# " $0 }
		END {
			while (number < last) {
				print "not ok", number++, "- " name ": did not report"
				bad++
			}
			exit bad != 0
		}'
}

# run NAME FIRST: runs the tests of a build; what they print goes into the report.
run() {
	{ RUST_BACKTRACE=0 "$out/$1" --show-output 2>&1 || true; } | tap "$1" "$2"
}

echo "# $("$rustc" --version)"
build plain -C opt-level=0
build optimised -C opt-level=2
each=$(count plain)
echo "1..$((2 * each + 2))"
status=0

# Without the optimiser the randomised tests make fewer steps.
UNIT_STEPS=${UNIT_STEPS:-100000} run plain 1 || status=1
run optimised $((each + 1)) || status=1

lint="$((2 * each + 1)) - nothing in the logic can panic, by clippy's lints"
if ! "$clippy" --version >/dev/null 2>&1; then
	echo "ok $lint # SKIP no clippy-driver"
elif "$clippy" "${flags[@]}" --crate-type lib --emit metadata -o "$out/lint.rmeta" main.rs 2>&1 |
	sed 's/^/# /'; then
	echo "ok $lint"
else
	echo "not ok $lint"
	status=1
fi

# Few steps, and without what is about terabytes: Miri is slow.
miri=(--edition 2021 --check-cfg 'cfg(MODULE)' --check-cfg 'cfg(test)'
	-Zmiri-disable-isolation --test main.rs -- --skip budget:: --skip table_size::)
result="$((2 * each + 2)) - no undefined behaviour, by Miri"
if [ -z "${MIRI:-}" ]; then
	echo "ok $result # SKIP no MIRI=, which Debian does not have: see tests/README.md"
elif UNIT_STEPS=${MIRI_STEPS:-50} "$MIRI" --sysroot "${MIRI_SYSROOT:?}" "${miri[@]}" 2>&1 |
	sed 's/^/# /'; then
	echo "ok $result"
else
	echo "not ok $result"
	status=1
fi
exit "$status"
