#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Makes two maps of SIZE bytes, the second while the first is being made by a thread
of the module, and prints both answers and what is mapped in the end.

    two_maps.py SIZE [low]

    low  the second lies where a map never waits
"""

import os
import re
import sys
from pathlib import Path

import bed
import vfio
from memory import memfd, open_container, wait_all
from tap import eventually

IOVA = 8 << 30
LOW = 1 << 30


def locked():
    return int(re.search(r"^VmLck:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)[1])


def main():
    size = int(sys.argv[1])
    second = LOW if sys.argv[2:] == ["low"] else IOVA + size
    with memfd(2 * size) as fd, open_container() as c:
        # Half a map may be done before anybody looks: the first pages are slow.
        ram = vfio.memory(2 * size, fd=fd)
        answers = [c.map(IOVA, size, ram)]
        eventually("some of it is locked", locked, pause=0)
        early = bed.stat(os.getpid(), "inner_mappings")
        answers.append(c.map(second, size, ram + size))
        wait_all()
        print(*map(vfio.name, answers), early, locked() << 10)


if __name__ == "__main__":
    main()
