# SPDX-License-Identifier: GPL-2.0-only
"""What is the guest's RAM, and what is something else at the same address, as behind a
virtual IOMMU (I1, I5, I6)."""

import contextlib
import ctypes

import bed
import guest
import host
import vfio
from balloon import COMMIT, INFLATE_QUEUE, OK, RINGS, RINGS_SIZE, Balloon
from edu import Edu
from memory import HUGE, memfd
from tap import at_least, equal, group
from test_dma import FIRST, LAST, RESERVED
from test_type1 import BALLOON, stat

IOVA = 8 << 30
SIZE = 64 * bed.MIB
RINGS_PAGES = RINGS_SIZE // vfio.PAGE


@group("RAM that is where the guest has it, and memory that is not")
def flat():
    second = host.bind_to_vfio(host.NVME)
    guest.prepare("deferred")
    with bed.knobs_set(hold=1, fallback_timeout_ms=86_400_000):
        yield second


@contextlib.contextmanager
def with_balloon():
    """(container, balloon): nothing is mapped but the rings."""
    with contextlib.closing(vfio.Container(host.find_device(host.EDU), BALLOON)) as c, \
         Balloon() as balloon:
        balloon.attach(c)
        yield c, balloon


@flat.test("I1", "memory that another device has where the guest has RAM is never in the balloon; "
                 "negative control: the same RAM is")
def two_devices(second):
    for same in (False, True):
        with vfio.memory_for(SIZE) as ram, vfio.memory_for(HUGE) as other, \
             with_balloon() as (c, balloon), contextlib.closing(vfio.Container(second)) as d:
            equal("map", c.map(IOVA, SIZE, ram), 0)
            equal("map in the other", d.map(IOVA + HUGE, HUGE, ram + HUGE if same else other), 0)
            equal("deferred_bytes", stat("deferred_bytes"), SIZE + same * HUGE)
            balloon.ready()
            equal("reply to INFLATE", balloon.inflate((IOVA, SIZE)), (OK, 1))
            equal("reply to COMMIT", balloon.commit(), (OK, 0))
            equal("bytes written", d.set_master(True), 2)
            equal("pages pinned", bed.pages_pinned(),
                  RINGS_PAGES + (not same) * HUGE // vfio.PAGE)


@flat.test("I5", "RAM has the address that it had first: at another one, or others at this one, it "
                 "is mapped at once")
def first_address(_):
    with vfio.memory_for(2 * SIZE) as ram, vfio.memory_for(SIZE) as other, \
         with_balloon() as (c, _):
        equal("map", c.map(IOVA, SIZE, ram), 0)
        equal("bytes that wait", stat("unmapped_bytes"), SIZE)
        equal("the same elsewhere", c.map(IOVA + 4 * SIZE, SIZE, ram), 0)
        equal("a part of it elsewhere", c.map(IOVA + 8 * SIZE, SIZE, ram + SIZE // 2), 0)
        equal("bytes that wait", stat("unmapped_bytes"), SIZE)
        equal("pages pinned", bed.pages_pinned(), RINGS_PAGES + 2 * SIZE // vfio.PAGE)
        equal("unmap", c.unmap(IOVA, 16 * SIZE), (0, 3 * SIZE))
        # What it was first, it still is.
        equal("something else there", c.map(IOVA, SIZE, other), 0)
        equal("bytes that wait", stat("unmapped_bytes"), 0)
        equal("unmap", c.unmap(IOVA, SIZE), (0, SIZE))
        equal("map", c.map(IOVA, SIZE, ram), 0)
        equal("bytes that wait", stat("unmapped_bytes"), SIZE)


@flat.test("I5", "what is smaller than RAM is mapped at once")
def small(_):
    size = 15 * vfio.PAGE
    with vfio.memory_for(SIZE) as ram, with_balloon() as (c, _):
        equal("map", c.map(IOVA, size, ram), 0)
        equal("bytes that wait", stat("unmapped_bytes"), 0)
        equal("map", c.map(IOVA + SIZE, SIZE, ram), 0)
        equal("bytes that wait", stat("unmapped_bytes"), SIZE)


@flat.test("I6", "rings are not looked for in what a virtual IOMMU has put at their address")
def moved_away(_):
    with memfd(RINGS_SIZE) as fd, with_balloon() as (c, balloon):
        balloon.ready()
        equal("unmap", c.unmap(RINGS, RINGS_SIZE), (0, RINGS_SIZE))
        other = vfio.memory(RINGS_SIZE, fd=fd)
        equal("map of something else", c.map(RINGS, RINGS_SIZE, other), 0)
        # To all appearance a ring with a message.
        rings, balloon.ram = balloon.ram, other
        balloon.send(INFLATE_QUEUE, COMMIT)
        before = ctypes.string_at(other, RINGS_SIZE)
        equal("the queues are broken", balloon.is_broken(), True)
        equal("what was there is there", ctypes.string_at(other, RINGS_SIZE) == before, True)
        equal("commits", stat("commits"), 0)
        balloon.ram = rings
        vfio.unmap_memory(other, RINGS_SIZE)


@flat.test("I4", "when a virtual IOMMU takes all RAM away, the guest may empty its balloon")
def translated(_):
    with vfio.memory_for(SIZE) as ram, with_balloon() as (c, balloon):
        equal("map", c.map(IOVA, SIZE, ram), 0)
        balloon.ready()
        equal("reply to INFLATE", balloon.inflate((IOVA, SIZE)), (OK, 1))
        equal("reply to COMMIT", balloon.commit(), (OK, 0))
        equal("target", balloon.target(), SIZE)
        equal("unmap", c.unmap(IOVA, SIZE), (0, SIZE))
        equal("target", balloon.target(), 0)
        equal("map elsewhere", c.map(bed.GIB << 1, SIZE, ram), 0)
        equal("bytes that wait", stat("unmapped_bytes"), 0)


@flat.test("I1", "of a map that reaches from below the threshold above it, what is above waits")
def across(_):
    with vfio.memory_for(SIZE) as ram, with_balloon() as (c, _):
        equal("map", c.map((4 << 30) - SIZE // 4, SIZE, ram), 0)
        equal("bytes that wait", stat("unmapped_bytes"), SIZE * 3 // 4)
        equal("pages pinned", bed.pages_pinned(), RINGS_PAGES + SIZE // 4 // vfio.PAGE)


@group("guests with a virtual IOMMU, which maps what they ask for")
def viommu():
    guest.prepare("deferred")

    @contextlib.contextmanager
    def boot(cmdline):
        words = ("-device", "intel-iommu,intremap=off,caching-mode=on", *guest.BALLOON)
        with bed.knobs_set(fallback_timeout_ms=86_400_000), \
             guest.Guest("deferred", bed.MEMORY, modules=[bed.DRIVER, bed.EDU_DRIVER],
                         balloon=words, cmdline=f"{RESERVED} {cmdline}") as vm:
            vm.wait_line("L2: ready", bed.BOOT)
            yield vm
            vm.quit()
    yield boot


@viommu.test("I1", "one that does not use it is deferred like any other")
def unused(boot):
    with boot("intel_iommu=off") as vm:
        equal("commits", bed.stat(vm.pid, "commits"), 1)
        at_least("deferred_bytes", bed.stat(vm.pid, "deferred_bytes"), bed.HIGH)
        edu = Edu(vm)
        edu.expect_dma(FIRST, LAST)
        edu.expect_all(4)


@viommu.test("I1", "one whose devices it lets through has what it is given")
def passed(boot):
    with boot("intel_iommu=on iommu=pt") as vm:
        edu = Edu(vm)
        edu.expect_dma(FIRST, LAST)
        edu.expect_all(4)
        equal("unmapped and outside",
              [row for row in bed.extents(vm.pid) if "Outside" in row[2]], [])


@viommu.test("I4", "one whose devices it translates for has no balloon, and waits for nothing")
def translating(boot):
    with boot("intel_iommu=on iommu=nopt") as vm:
        equal("state", bed.driver(vm, "state"), "empty")
        equal("messages", bed.driver(vm, "messages_sent"), 0)
        equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), 0)
