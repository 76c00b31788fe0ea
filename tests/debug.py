#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Runs the tests of both modules on a debug kernel, which scripts/debug-kernel.sh
makes. Prints TAP; the last line is the sum.

    tests/debug.py               the negative control, the driver's and the host's tests
    tests/debug.py control       the negative control
    tests/debug.py PATTERN...    groups of the host's that match, or a half of them, N/2;
                                 "driver" stands for the tests of the driver

One boot for each of these; all of it takes three, two at a time. The modules for the
stock kernel must have been built too: L2 runs that.
"""

import os
import re
import sys

import run

# Of L1, an eighth of it KASAN's: the largest VM that is tested has 4 GiB. Seconds.
MEMORY = "7000M"
TIME_LIMIT = {"control": 600, "suite": 14400}
# All limits of the tests are longer by this.
FACTOR = os.environ.get("TIME_FACTOR", "6")


# GiB that a boot takes.
BOOT_GIB = 8
EVERYTHING = [["driver", "1/2"], ["2/2"], ["control"]]


def boot(count, command, *patterns):
    """One boot of L1 with the debug kernel."""
    debug = "build/debug"
    kver = os.environ.get("KVER") or (run.TOP / "build/kver").read_text().strip()
    part = re.sub(r"\W+", "-", " ".join(["debug", command, *patterns])).strip("-")
    run.boot_l1(part, count, "--accel", "tcg",
                "--kernel", f"{debug}/vmlinuz", "--initrd", f"{debug}/l1.cpio",
                f"--append=L2_KVER={kver}", f"--append=TIME_FACTOR={FACTOR}",
                "--append=kasan_multi_shot", *run.NUMA,
                "--add", f"{debug}/modules", "--add", f"{debug}/ko",
                "tests/l1/debug.py", command, *patterns,
                limit=TIME_LIMIT[command], memory=MEMORY, silence=int(run.SILENCE * float(FACTOR)))


def main():
    words = sys.argv[1:]
    count = run.Count()
    if not words:
        run.side_by_side(count, EVERYTHING, BOOT_GIB)
    elif run.build("debug", count):
        if words == ["control"]:
            boot(count, "control")
        else:
            boot(count, "suite", *words)
    count.finish()


if __name__ == "__main__":
    main()
