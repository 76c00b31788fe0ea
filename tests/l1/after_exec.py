#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What a process finds that has a container from before its exec().

    after_exec.py CONTAINER GROUP DEVICE    descriptors: SIZE bytes at IOVA were deferred
                                            there, and never mapped
    after_exec.py ADDRESS                   of another device, for a container of its own
"""

import contextlib
import os
import sys

import bed
import host
import vfio
from tap import equal
from test_threads import IOVA, SIZE


class Inherited(vfio.Container):
    """A container that is there already."""

    def __init__(self, *descriptors):  # pylint: disable=super-init-not-called
        self.fd, self.group, self.device = descriptors
        self.address = host.find_device(host.EDU)
        self.balloon, self.others = None, []


def inherited(descriptors):
    """With the one container that it has."""
    c = Inherited(*map(int, descriptors))
    equal("pages pinned", bed.pages_pinned(), 0)
    equal("answer to the write", vfio.name(c.set_master(True)), "ESRCH")
    ram = vfio.memory(SIZE)
    equal("overlap", vfio.name(c.map(IOVA, SIZE, ram)), "EEXIST")
    equal("map", c.map(IOVA + SIZE, SIZE, ram), 0)
    equal("pages pinned", bed.pages_pinned(), SIZE // vfio.PAGE)
    equal("unmap", c.unmap(IOVA, SIZE), (0, SIZE))
    equal("bytes written", c.set_master(True), 2)
    equal("pages pinned", bed.pages_pinned(), SIZE // vfio.PAGE)


def another(address):
    """With a second one, it is a VM again, and the directory of its name is that one's."""
    with vfio.memory_for(SIZE) as ram, contextlib.closing(vfio.Container(address)) as c:
        equal("map", c.map(IOVA, SIZE, ram), 0)
        equal("deferred_bytes", bed.stat(os.getpid(), "deferred_bytes"), SIZE)
        equal("VMs", bed.vms(), [os.getpid()])


def main():
    if len(sys.argv) == 2:
        another(sys.argv[1])
    else:
        inherited(sys.argv[1:])


if __name__ == "__main__":
    main()
