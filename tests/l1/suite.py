#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Runs the tests that need a host with an IOMMU, in L1.

    suite.py [PATTERN...]   only groups whose names match one of these patterns
    suite.py edk2           those with OVMF, which take long and are left out otherwise

After each group the host must be as clean and its kernel as quiet as before: that
is a test, too.
"""

import importlib
import sys
import time

import bed
import tap

# In the order in which they run.
MODULES = ["awake", "lost", "type1", "emulated", "mapper", "memory", "threads", "scope",
           "hostile", "gate", "firmware", "dma", "kexec", "faults", "pressure", "inflate",
           "suspend", "lifecycle"]


def main():
    for name in ["edk2"] if sys.argv[1:] == ["edk2"] else MODULES:
        importlib.import_module(f"test_{name}")
    reporter = tap.Reporter()
    started = time.monotonic()
    bed.run_groups(reporter, sys.argv[1:])
    reporter.note(f"{time.monotonic() - started:.0f} s")
    sys.exit(reporter.finish())


if __name__ == "__main__":
    main()
