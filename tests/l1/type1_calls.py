#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Calls of type1's UAPI, each with the kernel's answer, as JSON: the same calls
must get the same answers whatever stands in front of type1.

    type1_calls.py ADDRESS STATE [BALLOON]

    ADDRESS  of a PCI device that is bound to vfio-pci
    STATE    how far maps above 4 GiB are made before they are used, where a map
             may wait: "deferred", "partly" or "mapped"
    BALLOON  vhost-vdpa device to own, which is what lets maps wait
"""

import json
import os
import sys

import bed
import vfio
from vfio import (
    DIRTY_GET,
    DIRTY_START,
    DIRTY_STOP,
    GET_DIRTY_BITMAP,
    MAP_VADDR,
    READ,
    UNMAP_ALL,
    UNMAP_VADDR,
    WRITE,
)

MIB = 1 << 20
SIZE = 16 * MIB
LOW = 1 << 30
HIGH = 8 << 30
TOP = 1 << 64


class Calls:
    """Makes the calls and keeps the answers."""

    def __init__(self, container, state):
        self.container = container
        self.state = state
        self.answers = []
        # As of a guest, each byte has one address.
        self.low, self.high = vfio.memory(4 * SIZE), vfio.memory(12 * SIZE)
        self.ram = vfio.memory(SIZE)

    def at(self, iova):
        """Where in this process the page is that the guest has at an address."""
        for start, size, ram in ((LOW, 4 * SIZE, self.low),
                                 (HIGH - 2 * SIZE, 12 * SIZE, self.high)):
            if start <= iova < start + size:
                return ram + (iova - start) // vfio.PAGE * vfio.PAGE
        return self.ram

    def note(self, what, answer):
        self.answers.append((what, answer))

    def map(self, what, iova, size=SIZE, vaddr=None, **options):
        vaddr = self.at(iova) if vaddr is None else vaddr
        self.note(f"map {what}", vfio.name(self.container.map(iova, size, vaddr, **options)))

    def unmap(self, what, iova, size, **options):
        result, size = self.container.unmap(iova, size, **options)
        self.note(f"unmap {what}", f"{vfio.name(result)}, {size:#x} bytes")

    def settle(self):
        """Brings all that waits into the state that was asked for. A device that
        is to master the bus has everything mapped before; what cannot be pinned
        makes that fail half-way."""
        if self.state == "deferred":
            return
        if self.state == "partly":
            vfio.protect(self.at(HIGH + SIZE // 2), 2 * SIZE, vfio.PROT_NONE)
        self.container.set_master(True)
        self.container.set_master(False)
        vfio.protect(self.high, 12 * SIZE, vfio.PROT_READ | vfio.PROT_WRITE)

    def clear(self):
        self.container.unmap(0, 0, flags=UNMAP_ALL)

    def information(self):
        for extension in range(1, 13):
            answer = vfio.answer(self.container.fd, vfio.CHECK_EXTENSION, extension)
            self.note(f"CHECK_EXTENSION {extension}", vfio.name(answer))
        for name, value in self.container.info().items():
            self.note(f"GET_INFO: {name}", value)
        self.note("an unknown ioctl", vfio.name(vfio.answer(self.container.fd, 0x3bff)))
        self.note("SET_IOMMU again", vfio.name(
            vfio.answer(self.container.fd, vfio.SET_IOMMU, vfio.TYPE1V2)))

    def malformed_maps(self):
        """At an IOVA that may wait and at one that never does."""
        holes = vfio.memory(SIZE)
        vfio.unmap_memory(holes + SIZE // 2, SIZE // 4)
        readable = vfio.memory(SIZE, vfio.PROT_READ)
        for place, iova in (("low", LOW), ("high", HIGH)):
            self.map(f"{place}: nothing", iova, 0)
            self.map(f"{place}: iova not aligned", iova + 0x800)
            self.map(f"{place}: size not aligned", iova, SIZE - 0x800)
            self.map(f"{place}: address not aligned", iova, vaddr=self.ram + 0x800)
            self.map(f"{place}: no flags", iova, flags=0)
            self.map(f"{place}: an unknown flag", iova, flags=READ | WRITE | 1 << 5)
            self.map(f"{place}: VADDR and READ", iova, flags=MAP_VADDR | READ)
            self.map(f"{place}: new address of nothing", iova, flags=MAP_VADDR)
            self.map(f"{place}: short argument", iova, argsz=31)
            self.map(f"{place}: iova wraps", TOP - vfio.PAGE, 2 * vfio.PAGE)
            self.map(f"{place}: address wraps", iova, vaddr=TOP - vfio.PAGE)
            self.map(f"{place}: larger than memory", iova, 1 << 46)
            self.map(f"{place}: no memory there", iova, vaddr=1 << 46)
            self.map(f"{place}: a hole in the memory", iova, vaddr=holes)
            self.map(f"{place}: memory that cannot be written", iova, vaddr=readable)
            self.map(f"{place}: the same, to be read only", iova, vaddr=readable, flags=READ)
            self.unmap(f"{place}: that", iova, SIZE)
        self.map("beyond what the IOMMU can address", 1 << 50)
        self.map("the last page of all", TOP - vfio.PAGE, vfio.PAGE)
        self.map("where interrupts go", 0xfee00000, vfio.PAGE)
        self.map("across the threshold", (4 << 30) - SIZE // 2)
        self.unmap("across the threshold", (4 << 30) - SIZE // 2, SIZE)
        for argument in (0, vfio.PAGE):
            for what, request in (("map", vfio.IOMMU_MAP_DMA), ("unmap", vfio.IOMMU_UNMAP_DMA),
                                  ("GET_INFO", vfio.IOMMU_GET_INFO),
                                  ("DIRTY_PAGES", vfio.IOMMU_DIRTY_PAGES)):
                self.note(f"{what} with its argument at {argument:#x}", vfio.name(
                    vfio.answer(self.container.fd, request, argument)))
        self.clear()

    def overlaps(self):
        """Of what waits with what does not, and the other way round."""
        self.map("for overlaps", HIGH)
        self.map("read only, for overlaps", HIGH + 2 * SIZE, flags=READ)
        self.settle()
        for kind, iova in (("", HIGH), ("a read only one ", HIGH + 2 * SIZE)):
            for flags in (READ | WRITE, READ):
                how = "read only " if flags == READ else ""
                self.map(f"{how}over {kind}", iova, flags=flags)
                self.map(f"{how}over the first page of {kind}", iova - MIB,
                         MIB + vfio.PAGE, flags=flags)
                self.map(f"{how}over the last page of {kind}", iova + SIZE - vfio.PAGE,
                         MIB, flags=flags)
                self.map(f"{how}inside {kind}", iova + MIB, MIB, flags=flags)
                self.map(f"{how}around {kind}", iova - MIB, SIZE + 2 * MIB, flags=flags)
        self.map("touching from below", HIGH - SIZE)
        self.map("touching from above", HIGH + SIZE)
        self.settle()
        self.unmap("everything", 0, 0, flags=UNMAP_ALL)

    def unmaps(self):
        self.map("for unmaps", HIGH)
        self.map("beside it", HIGH + SIZE)
        self.settle()
        half = SIZE // 2
        self.unmap("the first half", HIGH, half)
        self.unmap("the last half", HIGH + half, half)
        self.unmap("the middle", HIGH + MIB, MIB)
        self.unmap("from the middle of one to the end of the next", HIGH + half, SIZE + half)
        self.unmap("from the start of one to the middle of the next", HIGH, SIZE + half)
        self.unmap("from before to the middle", HIGH - MIB, half)
        self.unmap("nothing", HIGH, 0)
        self.unmap("iova not aligned", HIGH + 0x800, SIZE)
        self.unmap("size not aligned", HIGH, SIZE + 0x800)
        self.unmap("short argument", HIGH, SIZE, argsz=23)
        self.unmap("an unknown flag", HIGH, SIZE, flags=1 << 7)
        self.unmap("ALL with an iova", HIGH, 0, flags=UNMAP_ALL)
        self.unmap("ALL with a size", 0, SIZE, flags=UNMAP_ALL)
        self.unmap("ALL and GET_DIRTY_BITMAP", 0, 0, flags=UNMAP_ALL | GET_DIRTY_BITMAP)
        self.unmap("to beyond the end", HIGH, TOP - vfio.PAGE)
        self.unmap("from the middle to beyond the end", HIGH + half, TOP - vfio.PAGE)
        self.unmap("and the dirty bitmap, without tracking", HIGH, SIZE,
                   flags=GET_DIRTY_BITMAP, bitmap=True)
        self.unmap("where nothing is", HIGH + 4 * SIZE, SIZE)
        self.unmap("one exactly", HIGH, SIZE)
        self.unmap("it again", HIGH, SIZE)
        self.map("there once more", HIGH)
        self.map("further up", HIGH + 4 * SIZE)
        self.settle()
        self.unmap("two with what is around and between them", HIGH - SIZE, 4 * SIZE)
        self.unmap("up to the last byte", HIGH, TOP - HIGH)
        self.unmap("ALL of nothing", 0, 0, flags=UNMAP_ALL)
        self.map("low", LOW)
        self.map("high", HIGH)
        self.settle()
        self.unmap("ALL, low and high", 0, 0, flags=UNMAP_ALL)
        self.note("GET_INFO: mappings left after all", self.container.info()["mappings left"])

    def dirty_tracking(self):
        dirty = self.container.dirty
        self.map("for dirty tracking", HIGH)
        self.settle()
        for what, flag, iova, size in (
                ("bitmap before START", DIRTY_GET, HIGH, SIZE),
                ("START", DIRTY_START, 0, 0),
                ("bitmap", DIRTY_GET, HIGH, SIZE),
                ("bitmap of a part", DIRTY_GET, HIGH, SIZE // 2),
                ("bitmap of nothing", DIRTY_GET, HIGH + SIZE, SIZE),
                ("two flags", DIRTY_START | DIRTY_STOP, 0, 0)):
            result, bits = dirty(flag, iova, size)
            self.note(f"dirty pages: {what}", f"{vfio.name(result)}, {bits} pages")
        self.map("under dirty tracking", HIGH + SIZE)
        result, bits = dirty(DIRTY_GET, HIGH + SIZE, SIZE)
        self.note("dirty pages: of that", f"{vfio.name(result)}, {bits} pages")
        self.unmap("and the dirty bitmap", HIGH, SIZE, flags=GET_DIRTY_BITMAP, bitmap=True)
        self.note("dirty pages: STOP", vfio.name(dirty(DIRTY_STOP)[0]))
        self.clear()

    def new_addresses(self):
        """VFIO_UPDATE_VADDR: maps keep their pages and get another address."""
        self.map("for a new address", HIGH)
        self.settle()
        self.unmap("the address of a part", HIGH, SIZE // 2, flags=UNMAP_VADDR)
        self.unmap("the address", HIGH, SIZE, flags=UNMAP_VADDR)
        self.unmap("the address again", HIGH, SIZE, flags=UNMAP_VADDR)
        self.map("a new address of a part", HIGH, SIZE // 2, flags=MAP_VADDR)
        self.map("a new address", HIGH, flags=MAP_VADDR)
        self.map("a new address again", HIGH, flags=MAP_VADDR)
        self.unmap("what has a new address", HIGH, SIZE)
        self.map("low, for new addresses", LOW)
        self.map("high, for new addresses", HIGH)
        self.settle()
        self.unmap("all addresses", 0, 0, flags=UNMAP_ALL | UNMAP_VADDR)
        self.map("a new address, low", LOW, flags=MAP_VADDR)
        self.map("a new address, high", HIGH, flags=MAP_VADDR)
        self.unmap("both", 0, 0, flags=UNMAP_ALL)

    def run(self):
        self.information()
        self.malformed_maps()
        self.overlaps()
        self.unmaps()
        self.dirty_tracking()
        self.new_addresses()
        return self.answers


def main():
    address, state, *balloon = sys.argv[1:]
    container = vfio.Container(address, *balloon)
    calls = Calls(container, state).run()
    waited = bed.stat(os.getpid(), "deferred_bytes") if os.getpid() in bed.vms() else 0
    print(json.dumps({"answers": calls, "deferred": waited}))


if __name__ == "__main__":
    main()
