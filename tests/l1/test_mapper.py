# SPDX-License-Identifier: GPL-2.0-only
"""How memory is mapped: by a policy without a balloon (I4, I7), in as large pages as
type1 does it, for several devices, some of it at once."""

import contextlib
import os
import struct
from pathlib import Path

import bed
import guest
import host
import vfio
from memory import HUGE, memfd, open_container, wait_all
from tap import Skip, at_least, at_most, equal, eventually, group
from test_type1 import BALLOON, answers, expect_same, stat
from vfio import PROT_READ, PROT_WRITE

IOVA = 8 << 30
SIZE = 256 * bed.MIB


@group("policy gate: without a balloon, the bus-master gate alone")
def policy():
    guest.prepare("stock")
    stock = {state: answers(state)[0] for state in ("deferred", "mapped")}
    bed.stock_locked()
    guest.prepare("deferred")
    with bed.knobs_set(policy="gate", chunk_mib=2):
        yield stock


@policy.test("I7", "type1's UAPI gives the same answers as without it")
def same_answers(stock):
    for state, wanted in stock.items():
        got, waited = answers(state)
        at_least("bytes that were deferred", waited, 1)
        expect_same(got, wanted)


@policy.test("I1", "memory is mapped in the background from the start")
def background(_):
    ram = vfio.memory(SIZE)
    with open_container() as c:
        equal("map", c.map(IOVA, SIZE, ram), 0)
        equal("deferred_bytes", stat("deferred_bytes"), SIZE)
        wait_all()
        equal("pages pinned", bed.pages_pinned(), SIZE // vfio.PAGE)
        # There may be more to come: the end of one map does not end deferral.
        more = vfio.memory(SIZE)
        equal("map", c.map(IOVA + SIZE, SIZE, more), 0)
        equal("deferred_bytes", stat("deferred_bytes"), 2 * SIZE)
        wait_all()
        vfio.unmap_memory(more, SIZE)
    vfio.unmap_memory(ram, SIZE)


@policy.test("I4", "the gate waits for what is missing, and refuses what cannot be mapped")
def gate_waits(_):
    ram = vfio.memory(SIZE)
    with open_container() as c:
        vfio.protect(ram + SIZE // 2, SIZE // 2, PROT_READ)
        # Read-only memory is none of ours; type1 refuses it when it is mapped.
        equal("answer", vfio.name(c.map(IOVA, SIZE, ram)), "EFAULT")
        vfio.protect(ram, SIZE, PROT_READ | PROT_WRITE)
        equal("map", c.map(IOVA, SIZE, ram), 0)
        equal("bytes written", c.set_master(True), 2)
        equal("bytes that wait", stat("unmapped_bytes"), 0)
        equal("pages pinned", bed.pages_pinned(), SIZE // vfio.PAGE)
    vfio.unmap_memory(ram, SIZE)


@policy.test("I5", "a device that masters the bus first gets its maps at once, as from type1")
def master_first(_):
    ram = vfio.memory(SIZE)
    with open_container() as c:
        equal("bytes written", c.set_master(True), 2)
        equal("map", c.map(IOVA, SIZE, ram), 0)
        equal("VMs", bed.vms(), [])
        equal("pages pinned", bed.pages_pinned(), SIZE // vfio.PAGE)
    vfio.unmap_memory(ram, SIZE)


@policy.test("I5", "negative control: with policy balloon nothing is deferred")
def balloon_only(_):
    ram = vfio.memory(SIZE)
    with bed.knobs_set(policy="balloon"), open_container() as c:
        equal("map", c.map(IOVA, SIZE, ram), 0)
        equal("VMs", bed.vms(), [])
        equal("pages pinned", bed.pages_pinned(), SIZE // vfio.PAGE)
    vfio.unmap_memory(ram, SIZE)


@policy.test("I1", "a guest without any driver of ours: all of it is mapped, no more is locked")
def stock_guest(_):
    with guest.Guest("stock", bed.MEMORY, paused=True) as vm:
        vm.wait_qmp()
        equal("deferred_bytes", bed.stat(vm.pid, "deferred_bytes"), bed.HIGH)
        bed.wait_mapped(vm.pid)
        equal("VmLck in KiB", vm.memory()["VmLck"], bed.stock_locked())
        vm.quit()


def iommu_unit():
    """The physical address of the first IOMMU's registers, from ACPI's DMAR table."""
    table = Path("/sys/firmware/acpi/tables/DMAR").read_bytes()
    at = 48
    while at < len(table):
        kind, length = struct.unpack_from("=HH", table, at)
        if kind == 0:
            return struct.unpack_from("=Q", table, at + 8)[0]
        at += length
    raise Skip("no Intel IOMMU")


def page_sizes():
    """Entries of the IOMMU's tables for the device, by size: {"4k": number, ...}."""
    bus, slot, function = (int(part, 16) for part in
                           host.find_device(host.EDU).replace(".", ":").split(":")[1:])
    host.run("insmod", "/payload/tests/host/iommu_walk.ko", f"unit={iommu_unit():#x}",
             f"device={bus << 8 | slot << 3 | function}")
    try:
        path = Path("/sys/module/iommu_walk/parameters")
        return {size: int((path / f"pages_{size}").read_text()) for size in ("4k", "2m", "1g")}
    finally:
        host.run("rmmod", "iommu_walk")


def sizes_for(size, **knobs):
    """What page_sizes() says of new memory: with knobs through us, without as stock."""
    with contextlib.ExitStack() as stack:
        if knobs:
            stack.enter_context(bed.knobs_set(policy="gate", **knobs))
        # Aligned to 1 GiB, as VMMs align RAM.
        ram = vfio.memory(size + bed.GIB)
        start = -(-ram // bed.GIB) * bed.GIB
        vfio.advise(start, size, vfio.HUGEPAGE)
        c = stack.enter_context(open_container())
        equal("map", c.map(IOVA, size, start), 0)
        if knobs:
            equal("deferred_bytes", stat("deferred_bytes"), size)
            wait_all()
        found = page_sizes()
    vfio.unmap_memory(ram, size + bed.GIB)
    return found


@group("large pages of the IOMMU")
def superpages():
    guest.prepare("deferred")
    yield sizes_for(bed.GIB)


def small_bytes(sizes):
    return sizes["4k"] * vfio.PAGE


@superpages.test("-", "type1 alone maps huge pages as such, and the walk sees all that is mapped")
def walked(stock):
    equal("bytes mapped", stock["4k"] * vfio.PAGE + stock["2m"] * HUGE + stock["1g"] * bed.GIB,
          bed.GIB)
    at_most("bytes in small pages", small_bytes(stock), bed.GIB // 16)


@superpages.test("I7", "so do we, in large chunks and in small ones")
def as_large(stock):
    for chunk in (1024, 2):
        ours = sizes_for(bed.GIB, chunk_mib=chunk)
        # Two huge pages fewer, should the kernel not have had them at that moment.
        at_most(f"bytes in small pages, chunks of {chunk} MiB", small_bytes(ours),
                small_bytes(stock) + 2 * HUGE)


@superpages.test("-", "negative control: without huge pages there are none")
def control(_):
    before = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    chosen = before.read_text().split("[")[1].split("]")[0]
    before.write_text("never")
    try:
        # Now and then 512 small pages lie side by side.
        at_least("bytes in small pages", small_bytes(sizes_for(bed.GIB // 4, chunk_mib=1024)),
                 bed.GIB // 4 - 8 * HUGE)
    finally:
        before.write_text(chosen)


@group("more than one device")
def devices():
    second = host.bind_to_vfio(host.NVME)
    guest.prepare("deferred")
    with bed.knobs_set(policy="gate"):
        yield second


@devices.test("I1", "two containers of one process map the same memory, each by itself")
def containers(second):
    ram = vfio.memory(SIZE)
    with open_container() as c, contextlib.closing(vfio.Container(second)) as d:
        equal("map", c.map(IOVA, SIZE, ram), 0)
        equal("map in the other", d.map(IOVA, SIZE, ram), 0)
        equal("VMs", bed.vms(), [os.getpid()])
        equal("deferred_bytes", stat("deferred_bytes"), 2 * SIZE)
        wait_all()
        equal("pages pinned", bed.pages_pinned(), 2 * SIZE // vfio.PAGE)
        equal("unmap", c.unmap(IOVA, SIZE), (0, SIZE))
        equal("pages pinned", bed.pages_pinned(), SIZE // vfio.PAGE)
        equal("unmap in the other", d.unmap(IOVA, SIZE), (0, SIZE))
    vfio.unmap_memory(ram, SIZE)


@devices.test("I4", "a device of one container waits for what is missing in the other")
def gate_of_both(second):
    ram = vfio.memory(2 * SIZE)
    with open_container() as c, contextlib.closing(vfio.Container(second)) as d:
        equal("map", d.map(IOVA, SIZE, ram), 0)
        equal("map in the other", c.map(IOVA + SIZE, SIZE, ram + SIZE), 0)
        equal("deferred_bytes", stat("deferred_bytes"), 2 * SIZE)
        equal("bytes written", c.set_master(True), 2)
        equal("bytes that wait", stat("unmapped_bytes"), 0)
        equal("pages pinned", bed.pages_pinned(), 2 * SIZE // vfio.PAGE)
    vfio.unmap_memory(ram, 2 * SIZE)


@devices.test("I7", "a group joins and leaves a container with deferred memory")
def groups(second):
    ram = vfio.memory(4 * SIZE)
    with open_container() as c:
        equal("map", c.map(IOVA, 4 * SIZE, ram), 0)
        equal("attach", c.attach(second), 0)
        wait_all()
        c.detach()
        equal("pages pinned", bed.pages_pinned(), 4 * SIZE // vfio.PAGE)
        equal("bytes written", c.set_master(True), 2)
        equal("attach", c.attach(second), 0)
        equal("unmap", c.unmap(0, 0, flags=vfio.UNMAP_ALL), (0, 4 * SIZE))
        equal("pages pinned", bed.pages_pinned(), 0)
    vfio.unmap_memory(ram, 4 * SIZE)


@group("eager windows")
def eager_windows():
    guest.prepare("deferred")
    with bed.knobs_set(threshold_mib=0, fallback_timeout_ms=86_400_000):
        yield lambda: contextlib.closing(vfio.Container(host.find_device(host.EDU), BALLOON))


def eager_knobs(first, low_top, top):
    return bed.knobs_set(eager_first_mib=first, eager_low_top_mib=low_top, eager_top_mib=top)


@eager_windows.test("I1", "they are mapped when MAP_DMA returns, and the rest of the map waits; "
                  "negative control: without windows all of it waits")
def windows(new):
    ram = vfio.memory(3 * SIZE)
    for sizes, wanted in (((16, 32, 64), (16 + 32, 32, 64)), ((0, 0, 0), (0, 0, 0))):
        with eager_knobs(*sizes), new() as c:
            mapped = 0
            for index, iova in enumerate((0, 2 * bed.GIB, IOVA)):
                equal("map", c.map(iova, SIZE, ram + index * SIZE), 0)
                mapped += wanted[index] * bed.MIB
                equal(f"bytes that wait, {sizes}", stat("unmapped_bytes"),
                      (index + 1) * SIZE - mapped)
                equal(f"pages pinned, {sizes}", bed.pages_pinned(), mapped // vfio.PAGE)
            # The ends of the maps, not only so many bytes.
            states = {(start, end) for start, end, state in bed.extents(os.getpid())
                      if state == "mapped"}
            equal("what is mapped", states, {
                (0, 16 * bed.MIB), (SIZE - 32 * bed.MIB, SIZE),
                (2 * bed.GIB + SIZE - 32 * bed.MIB, 2 * bed.GIB + SIZE),
                (IOVA + SIZE - 64 * bed.MIB, IOVA + SIZE)} if mapped else set())
    vfio.unmap_memory(ram, 3 * SIZE)


@eager_windows.test("I3", "a window that cannot be mapped is refused at MAP_DMA, and nothing is left of it")
def refused_window(new):
    with memfd(SIZE - HUGE) as fd, eager_knobs(16, 0, 16), new() as c:
        ram = vfio.memory(SIZE, fd=fd)
        equal("answer", vfio.name(c.map(IOVA, SIZE, ram)), "ENOMEM")
        equal("bytes that wait", stat("unmapped_bytes"), 0)
        equal("pages pinned", bed.pages_pinned(), 0)
        os.ftruncate(fd, SIZE)
        equal("map", c.map(IOVA, SIZE, ram), 0)
        equal("bytes that wait", stat("unmapped_bytes"), SIZE - 16 * bed.MIB)
        equal("unmap", c.unmap(IOVA, SIZE), (0, SIZE))
        vfio.unmap_memory(ram, SIZE)


@group("mapping from the start, with a balloon")
def early():
    guest.prepare("deferred")
    with bed.knobs_set(premap_at_start=1, nice=0), \
         guest.Guest("deferred", bed.MEMORY, modules=[bed.DRIVER]) as vm:
        vm.wait_line("L2: ready", bed.BOOT)
        yield vm


@early.test("I1", "the guest commits, although some of it was mapped before, unless all was")
def commits(vm):
    equal("commits", bed.stat(vm.pid, "commits"), int(bed.driver(vm, "messages_sent") > 0))
    equal("deferred_bytes", bed.stat(vm.pid, "deferred_bytes"), bed.HIGH)


@early.test("I2", "all is mapped, and the guest has it back")
def comes_back(vm):
    bed.wait_mapped(vm.pid)
    eventually("the balloon is empty", lambda: bed.driver(vm, "state") == "empty")
    equal("failures", bed.stat(vm.pid, "failures"), 0)
    equal("fallbacks", bed.stat(vm.pid, "fallbacks"), 0)
    equal("state", bed.stat(vm.pid, "state"), "mapped")
