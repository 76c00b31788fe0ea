#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What a process finds that has a container from before its exec(), with SIZE bytes
at IOVA that were deferred and never mapped.

    after_exec.py CONTAINER GROUP DEVICE        descriptors
"""

import sys

import bed
import vfio
from tap import equal
from test_threads import IOVA, SIZE


class Inherited(vfio.Container):
    """A container that is there already."""

    def __init__(self, *descriptors):  # pylint: disable=super-init-not-called
        self.fd, self.group, self.device = descriptors
        self.balloon, self.others = None, []


def main():
    c = Inherited(*map(int, sys.argv[1:]))
    equal("pages pinned", bed.pages_pinned(), 0)
    equal("answer to the write", vfio.name(c.set_master(True)), "ESRCH")
    ram = vfio.memory(SIZE)
    equal("overlap", vfio.name(c.map(IOVA, SIZE, ram)), "EEXIST")
    equal("map", c.map(IOVA + SIZE, SIZE, ram), 0)
    equal("pages pinned", bed.pages_pinned(), SIZE // vfio.PAGE)
    equal("unmap", c.unmap(IOVA, SIZE), (0, SIZE))
    equal("bytes written", c.set_master(True), 2)
    equal("pages pinned", bed.pages_pinned(), SIZE // vfio.PAGE)


if __name__ == "__main__":
    main()
