# SPDX-License-Identifier: GPL-2.0-only
"""What filling a balloon costs, in the guest and in the host, next to the stock driver;
and guests whose kernels treat free memory otherwise than by default."""

import contextlib
import mmap
import re
import time
from channel import TIME_FACTOR
from pathlib import Path

import bed
import guest
import host
from edu import Edu
from tap import at_least, at_most, equal, eventually, group

# A guest of whose memory 4800 MiB fit into a balloon above 4 GiB. L1 need not have as
# much: next to nothing of it is ever touched.
LARGE = 7 << 10
INFLATED = 4800
# What q35 puts below 4 GiB.
LOW = 2 << 10

# Bars: seconds in probe() for INFLATED MiB, how much faster than the stock driver, how many
# ranges, and how much of the balloon the host may back for it.
SECONDS = 0.3
FASTER = 20
RANGES = 16
BACKED = 0.02

# What the stock driver is timed with, in MiB: it takes time in proportion.
STOCK = 128

# Of a node's part of reserve_mib, in pages, what drivers and the shell have left by now.
SHARE = (64 << 20) // mmap.PAGESIZE

# What a process that is bound to a node touches, in percent of all memory; step_mib; seconds
# for that.
BOUND = 12
STEP = 128
PATIENCE = 200

# Seconds per MiB, of the fastest of so many.
TRIES = 3
_ours = []


@contextlib.contextmanager
def overcommit():
    """QEMU may have more memory than L1."""
    knob = Path("/proc/sys/vm/overcommit_memory")
    before = knob.read_text()
    knob.write_text("1\n")
    try:
        yield
    finally:
        knob.write_text(before)


def backed(vm):
    """Which pages of L2's RAM L1 has backed, a byte each: 1 or 0."""
    for line in Path(f"/proc/{vm.pid}/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if end - start == LARGE * bed.MIB:
            break
    else:
        raise RuntimeError("QEMU has no mapping of the size of the guest's RAM")
    with open(f"/proc/{vm.pid}/pagemap", "rb") as file:
        file.seek(start // mmap.PAGESIZE * 8)
        entries = file.read((end - start) // mmap.PAGESIZE * 8)
    # Bit 63 of an entry: the page is present.
    return entries[7::8].translate(bytes(byte >> 7 for byte in range(256)))


def newly_backed(vm, before):
    """How many bytes of what is in the balloon were backed since `before`."""
    after = backed(vm)
    count = 0
    for start, end, state in bed.extents(vm.pid):
        if "Balloon" in state:
            # Above 4 GiB, and in RAM next to what is below.
            first, last = ((gpa - bed.START + LOW * bed.MIB) // mmap.PAGESIZE
                           for gpa in (start, end))
            was = int.from_bytes(before[first:last], "little")
            # A bit set in both is no new one.
            count += (int.from_bytes(after[first:last], "little") & ~was).bit_count()
    return count * mmap.PAGESIZE


@group("a balloon of 4800 MiB in a guest with the kernel's defaults")
def filled():
    guest.prepare("deferred")
    with overcommit(), bed.knobs_set(hold=1, fallback_timeout_ms=86_400_000), \
         guest.Guest("deferred", f"{LARGE}M", files={"ours.ko": bed.DRIVER}) as vm:
        vm.wait_line("L2: ready", bed.BOOT)
        yield vm


@filled.test("I1", "the host does not back what is in it")
def not_backed(vm):
    at_least("init_on_alloc", vm.check("dmesg").find("heap alloc:on"), 0)
    before = backed(vm)
    vm.check("insmod /ours.ko")
    size = bed.driver(vm, "ballooned_bytes")
    at_least("MiB in the balloon", size // bed.MIB, INFLATED)
    new = newly_backed(vm, before)
    print(f"# {new >> 10} KiB of {size >> 10} KiB were backed", flush=True)
    at_most("bytes backed", new, size * BACKED)


@filled.test("-", "the host is told of it in few ranges")
def ranges(vm):
    count = bed.driver(vm, "ranges_sent")
    print(f"# {count} ranges, {bed.driver(vm, 'messages_sent')} messages", flush=True)
    at_most("ranges", count, RANGES)


@filled.test("-", "it takes no more than 0.3 s to fill")
def fast(vm):
    for left in reversed(range(TRIES)):
        _ours.append(bed.driver(vm, "inflate_us") / 1e6
                     / (bed.driver(vm, "ballooned_bytes") / bed.MIB))
        if left:
            vm.check(f"rmmod {bed.DRIVER_NAME} && insmod /ours.ko")
    print(f"# s for {INFLATED} MiB:", *(f"{INFLATED * taken:.3f}" for taken in _ours), flush=True)
    at_most("seconds", INFLATED * min(_ours), SECONDS * TIME_FACTOR)


@group("the balloon device that QEMU has of its own")
def plain():
    guest.prepare("floor")
    with overcommit(), \
         guest.Guest("floor", f"{LARGE}M", args=("-device", "virtio-balloon-pci"),
                     modules=[bed.DRIVER, "virtio_balloon"]) as vm:
        vm.wait_line("L2: ready", bed.BOOT)
        yield vm
        vm.quit()


@plain.test("I4", "our driver leaves it to the stock one")
def declined(vm):
    at_least("what it says", vm.check("dmesg").find("leaving the device to other drivers"), 0)
    equal("devices of our driver",
          vm.check(f"ls /sys/bus/virtio/drivers/{bed.DRIVER_NAME}").split().count("virtio0"), 0)
    equal("driver of the device", vm.check(
        "for d in /sys/bus/virtio/devices/*; do"
        " [ $(cat $d/device) = 0x0005 ] && basename $(readlink $d/driver); done"),
        "virtio_balloon")


@plain.test("-", "that works, and takes at least 20 times as long as ours")
def slower(vm):
    target = (LARGE - STOCK) * bed.MIB
    vm.wait_qmp()
    begin = time.monotonic()
    vm.qmp.command("balloon", value=target)
    eventually("the stock balloon is full",
               lambda: vm.qmp.command("query-balloon")["actual"] == target, 300)
    taken = time.monotonic() - begin
    print(f"# {taken:.1f} s for {STOCK} MiB, {taken / (STOCK * min(_ours)):.0f} times as long",
          flush=True)
    at_least("times as long", taken / (STOCK * min(_ours)), FASTER)


def hardened(name, cmdline, *nodes):
    """Guests with another command line; `nodes` must each have a part in the balloon."""
    def fixture():
        guest.prepare("deferred")
        with bed.knobs_set(hold=1, fallback_timeout_ms=86_400_000), \
             guest.Guest("deferred", bed.MEMORY, modules=[bed.DRIVER, bed.EDU_DRIVER],
                         files={"bin/touch_memory": "/payload/touch_memory"},
                         cmdline=f"{cmdline} memmap=2M${bed.START:#x}") as vm:
            vm.wait_line("L2: ready", bed.BOOT)
            yield vm

    def ballooned(vm, node):
        return mmap.PAGESIZE * int(vm.check(
            f"sed -n 's/^nr_balloon_pages //p' /sys/devices/system/node/node{node}/vmstat"))

    def fills(vm):
        equal("commits", bed.stat(vm.pid, "commits"), 1)
        at_least("ballooned_bytes", bed.stat(vm.pid, "ballooned_bytes"), bed.HIGH * 3 // 4)
        for node in nodes:
            at_least(f"bytes of node {node}", ballooned(vm, node), bed.HIGH // len(nodes) // 2)
        # Of memory above 4 GiB, the balloon leaves next to nothing to allocate.
        Edu(vm).expect_dma(bed.START)

    def keeps(vm):
        text = vm.check("cat /proc/zoneinfo")
        zones = re.findall(r"^Node (\d+), zone +(\w+).*?pages free +(\d+).*?low +(\d+)",
                           text, re.M | re.S)
        for node in nodes:
            # What drivers want next must not wake who reclaims, and be local.
            free, low = next((int(free), int(low)) for number, zone, free, low in zones
                             if (int(number), zone) == (node, "Normal"))
            print(f"# node {node}: {free} pages free, low watermark {low}", flush=True)
            at_least(f"free pages of node {node}", free, low + SHARE // len(nodes))

    def gives(vm):
        *others, last = nodes
        held = {node: ballooned(vm, node) for node in others}
        before = bed.driver(vm, "urgent_requests")
        output = vm.check(f"touch_memory {BOUND} {last}", PATIENCE)
        at_least("MiB that it touched", int(output), 1)
        count = bed.driver(vm, "urgent_requests") - before
        print(f"# {output} MiB took {count} requests", flush=True)
        at_least("urgent requests", count, 1)
        at_most("urgent requests", count, int(output) // STEP + 2)
        for node, size in held.items():
            equal(f"bytes of node {node} in the balloon", ballooned(vm, node), size)

    def empties(vm):
        host.set_knob("hold", 0)
        bed.wait_mapped(vm.pid)
        eventually("the balloon is empty", lambda: bed.driver(vm, "state") == "empty")
        Edu(vm).expect_all(2)

    fixture.__name__ = name
    entry = group(f"a guest with {cmdline}")(fixture)
    entry.test("I1", "the balloon is filled, and DMA arrives in the rest")(fills)
    if nodes:
        entry.test("-", "each node keeps a part of what there is")(keeps)
        entry.test("I2", "who is bound to a node gets its memory, and no more than he needs")(gives)
    entry.test("I2", "it comes back, and DMA arrives")(empties)


# On free, the kernel zeroes or poisons. The nodes above 4 GiB are 2 and 3.
hardened("init_on_free", "init_on_free=1 numa=fake=4", 2, 3)
hardened("page_poison", "page_poison=1")
