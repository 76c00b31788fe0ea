#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Runs the tests that need a host with an IOMMU, in L1.

    suite.py [PATTERN...]   only groups whose names match one of these patterns
    suite.py N/2            the first half of them, or the second

After each group the host must be as clean and its kernel as quiet as before: that
is a test, too.
"""

import importlib
import re
import sys
import time

import bed
import tap

# In the order in which they run, in two halves that take about as long.
HALVES = [["awake", "lost", "touch", "type1", "costs", "flat", "emulated", "mapper", "memory",
           "threads", "scope", "hostile", "manage"],
          ["gate", "firmware", "edk2", "dma", "kexec", "faults", "pressure", "inflate", "suspend",
           "unplug", "lifecycle", "load"]]


def modules(words):
    """Names of the modules that have the tests, and the patterns for them."""
    if half := re.fullmatch("([12])/2", " ".join(words)):
        return HALVES[int(half[1]) - 1], []
    return HALVES[0] + HALVES[1], words


def main():
    names, patterns = modules(sys.argv[1:])
    for name in names:
        importlib.import_module(f"test_{name}")
    reporter = tap.Reporter()
    started = time.monotonic()
    bed.run_groups(reporter, patterns, {f"test_{name}" for name in names})
    reporter.note(f"{time.monotonic() - started:.0f} s")
    sys.exit(reporter.finish())


if __name__ == "__main__":
    main()
