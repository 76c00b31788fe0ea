# SPDX-License-Identifier: GPL-2.0-only
"""How memory is mapped: by a policy without a balloon (I4, I7), whatever memory it
is, in as large pages as type1 does it, and any amount of it."""

import contextlib
import os
import re
import struct
from pathlib import Path

import bed
import guest
import host
import vfio
from tap import Skip, at_least, at_most, equal, eventually, group
from test_type1 import answers, expect_same, stat
from vfio import PROT_NONE, PROT_READ, PROT_WRITE

IOVA = 8 << 30
SIZE = 256 * bed.MIB
HUGE = 2 * bed.MIB


@contextlib.contextmanager
def open_container():
    """A container of this process, without a balloon."""
    with contextlib.closing(vfio.Container(host.find_device(host.EDU))) as container:
        yield container


def wait_all():
    bed.wait_mapped(os.getpid())


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


@group("kinds of memory")
def backends():
    guest.prepare("deferred")
    with bed.knobs_set(policy="gate"):
        yield None


def expect_mapped(ram, size=SIZE):
    with open_container() as c:
        equal("map", c.map(IOVA, size, ram), 0)
        equal("deferred_bytes", stat("deferred_bytes"), size)
        wait_all()
        equal("failures", stat("failures"), 0)
        equal("pages pinned", bed.pages_pinned(), size // vfio.PAGE)
    vfio.unmap_memory(ram, size)


@backends.test("I1", "anonymous memory, with huge pages and without")
def anonymous(_):
    expect_mapped(vfio.memory(SIZE))
    ram = vfio.memory(SIZE)
    vfio.advise(ram, SIZE, vfio.NOHUGEPAGE)
    expect_mapped(ram)


@backends.test("I1", "shared memory of a file")
def shared(_):
    with memfd(SIZE) as fd:
        expect_mapped(vfio.memory(SIZE, fd=fd))


@backends.test("I1", "hugetlb memory")
def hugetlb(_):
    with hugetlb_pages(SIZE), memfd(SIZE, os.MFD_HUGETLB) as fd:
        expect_mapped(vfio.memory(SIZE, fd=fd))


@backends.test("I1", "nothing of it is written: what was there still is")
def contents(_):
    with memfd(SIZE) as fd:
        word = os.urandom(32)
        offsets = [0, HUGE - 16, SIZE // 2 + 4095, SIZE - 32]
        for offset in offsets:
            os.pwrite(fd, word, offset)
        expect_mapped(vfio.memory(SIZE, fd=fd))
        for offset in offsets:
            equal(f"what is at {offset:#x}", os.pread(fd, 32, offset), word)
        equal("what was never written", os.pread(fd, 4096, SIZE // 4), bytes(4096))


@backends.test("I3", "a file that is too short fails, and is mapped when it has grown")
def hole(_):
    with memfd(SIZE // 2) as fd, open_container() as c:
        ram = vfio.memory(SIZE, fd=fd)
        equal("map", c.map(IOVA, SIZE, ram), 0)
        equal("answer to the write", vfio.name(c.set_master(True)), "ENOMEM")
        at_least("failed_bytes", stat("failed_bytes"), HUGE)
        os.ftruncate(fd, SIZE)
        equal("bytes written", c.set_master(True), 2)
        equal("bytes that wait", stat("unmapped_bytes"), 0)
        vfio.unmap_memory(ram, SIZE)


def shared_kib():
    """How much shared memory this process has touched."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"^RssShmem:\s+(\d+) kB$", status, re.M)[1])


@backends.test("I7", "an unmap does not wait for memory that is being provided; "
                     "negative control: for memory that type1 provides, it does")
def interrupted(_):
    size = bed.GIB
    for populate, pieces in ((1, 0), (0, 1)):
        with bed.knobs_set(populate=populate, workers=1, chunk_mib=1024), \
             memfd(size) as fd, open_container() as c:
            ram = vfio.memory(size, fd=fd)
            before = shared_kib()
            equal("map", c.map(IOVA, size, ram), 0)
            eventually("it has begun", lambda base=before: shared_kib() > base + 4096, pause=0)
            equal("unmap", c.unmap(IOVA, size), (0, size))
            equal(f"pieces that were mapped, populate={populate}", stat("inner_mappings"), pieces)
            vfio.unmap_memory(ram, size)


@contextlib.contextmanager
def memfd(size, flags=0):
    fd = os.memfd_create("ram", flags)
    try:
        os.ftruncate(fd, size)
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def hugetlb_pages(size):
    path = Path("/proc/sys/vm/nr_hugepages")
    path.write_text(f"{size // HUGE}\n")
    try:
        if int(path.read_text()) < size // HUGE:
            raise Skip("not enough huge pages")
        yield
    finally:
        path.write_text("0\n")


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
        equal("small pages", sizes_for(bed.GIB // 4, chunk_mib=1024)["4k"] * vfio.PAGE,
              bed.GIB // 4)
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
    ram = vfio.memory(SIZE)
    with open_container() as c, contextlib.closing(vfio.Container(second)) as d:
        equal("map", d.map(IOVA, SIZE, ram), 0)
        equal("map in the other", c.map(IOVA + SIZE, SIZE, ram), 0)
        equal("bytes written", c.set_master(True), 2)
        equal("bytes that wait", stat("unmapped_bytes"), 0)
        equal("pages pinned", bed.pages_pinned(), 2 * SIZE // vfio.PAGE)
    vfio.unmap_memory(ram, SIZE)


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


@group("more memory than there is")
def large():
    guest.prepare("deferred")
    with bed.knobs_set(policy="gate"):
        yield None


# Of memory that is mapped many times in a row.
UNIT = 64 * bed.MIB


@large.test("I1", "256 GiB are deferred and mapped, in one piece a GiB, and unmapped again")
def repeated(_):
    size = 256 * bed.GIB
    with hugetlb_pages(UNIT), memfd(UNIT, os.MFD_HUGETLB) as fd, open_container() as c:
        ram = vfio.memory(size, PROT_NONE)
        for at in range(0, size, UNIT):
            vfio.memory_at(ram + at, UNIT, fd)
        equal("map", c.map(bed.GIB << 10, size, ram), 0)
        equal("bytes that wait", stat("deferred_bytes"), size)
        eventually("all memory is mapped", lambda: stat("unmapped_bytes") == 0, 300)
        equal("pieces", stat("inner_mappings"), size // bed.GIB)
        equal("extents", stat("extents"), 1)
        equal("unmap", c.unmap(bed.GIB << 10, size), (0, size))
        equal("pages pinned", bed.pages_pinned(), 0)
        vfio.unmap_memory(ram, size)


@group("mapping from the start, with a balloon")
def early():
    guest.prepare("deferred")
    with bed.knobs_set(premap_at_start=1, nice=0), \
         guest.Guest("deferred", bed.MEMORY, modules=[bed.DRIVER]) as vm:
        vm.wait_line("L2: ready", bed.BOOT)
        yield vm


@early.test("I1", "the guest commits, although some of it was mapped before")
def commits(vm):
    equal("commits", bed.stat(vm.pid, "commits"), 1)
    equal("deferred_bytes", bed.stat(vm.pid, "deferred_bytes"), bed.HIGH)


@early.test("I2", "all is mapped, and the guest has it back")
def comes_back(vm):
    bed.wait_mapped(vm.pid)
    eventually("the balloon is empty", lambda: bed.driver(vm, "state") == "empty")
    equal("failures", bed.stat(vm.pid, "failures"), 0)
    equal("fallbacks", bed.stat(vm.pid, "fallbacks"), 0)
    equal("state", bed.stat(vm.pid, "state"), "mapped")
