# SPDX-License-Identifier: GPL-2.0-only
"""The last VFIO device of a VM is unplugged while its balloon holds memory (I3): nothing is
left to be mapped, and the guest gets its memory back."""

import contextlib

import bed
import guest
import host
import vfio
from balloon import OK, Balloon
from tap import equal, eventually, group

SIZE = bed.GIB // 4
IOVA = 8 << 30


@group("the last device goes, by hand")
def unplugged():
    guest.prepare("deferred")
    with bed.knobs_set(hold=1, fallback_timeout_ms=86_400_000):
        yield host.find_device(host.EDU)


@contextlib.contextmanager
def full(address):
    """A container with a balloon that holds all of its RAM."""
    with vfio.memory_for(SIZE) as ram, Balloon() as balloon, \
         contextlib.closing(vfio.Container(address, "/dev/vhost-vdpa-0")) as container:
        balloon.attach(container)
        equal("map", container.map(IOVA, SIZE, ram), 0)
        balloon.ready()
        equal("reply to INFLATE", balloon.inflate((IOVA, SIZE)), (OK, 1))
        equal("reply to COMMIT", balloon.commit(), (OK, 0))
        equal("target", balloon.target(), SIZE)
        yield container, balloon
        balloon.detach()


@unplugged.test("I3", "what is unmapped is not wanted any more: the target is 0")
def unmapped(address):
    with full(address) as (container, balloon):
        equal("unmap", container.unmap(IOVA, SIZE), (0, SIZE))
        equal("target", balloon.target(), 0)


@unplugged.test("I3", "nor is what goes with its container")
def closed(address):
    with full(address) as (container, balloon):
        container.close_device()
        eventually("the target is 0", lambda: balloon.target() == 0)


@unplugged.test("I3", "negative control: while something is left to be mapped, it is wanted")
def left(address):
    with full(address) as (container, balloon), vfio.memory_for(bed.MIB) as other:
        equal("map", container.map(0, bed.MIB, other), 0)
        equal("unmap", container.unmap(0, bed.MIB), (0, bed.MIB))
        equal("target", balloon.target(), SIZE)
