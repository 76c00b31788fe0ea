#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Measures the mapper without a VM around it: how long it takes until memory is mapped,
by type1 in MAP_DMA and by our threads after it; and what an assigned disk then reads.

    maps.py maps ROUNDS
    maps.py reads ROUNDS       with --device nvme for L1

bench.py does both for the demo.

Everything here runs in L1, with our module loaded. What type1 does alone is measured
through it, with policy "balloon" and no balloon: then it only hands on.
"""

import contextlib
import os
import sys
import time
from pathlib import Path
from statistics import median

import guest
import host
import vfio

GIB = 1 << 30
HUGE = 2 << 20
IOVA = 8 << 30
PATIENCE = 300

# What is mapped: GiB, and whether it is shared memory in pages of 4 KiB.
KINDS = {"anonymous, huge pages": (3, False), "shared, pages of 4 KiB": (1, True)}
# Threads, in the order of measuring; 0: type1 alone.
THREADS = (0, 1, 2)


def vm_file(name):
    return int(host.knob(f"vms/{os.getpid()}/{name}"))


@contextlib.contextmanager
def memory(size, shared):
    fd = os.memfd_create("ram") if shared else -1
    if shared:
        os.ftruncate(fd, size)
    ram = vfio.memory(size + HUGE, fd=-1) if not shared else vfio.memory(size, fd=fd)
    start = ram if shared else -(-ram // HUGE) * HUGE
    if not shared:
        vfio.advise(start, size, vfio.HUGEPAGE)
    try:
        yield start
    finally:
        vfio.unmap_memory(ram, size if shared else size + HUGE)
        if shared:
            os.close(fd)


def time_map(size, shared, threads):
    """Seconds from the call of MAP_DMA until all is mapped, of fresh memory."""
    host.set_knob("policy", "gate" if threads else "balloon")
    host.set_knob("workers", threads)
    Path("/proc/sys/vm/compact_memory").write_text("1")
    container = vfio.Container(host.find_device(host.EDU))
    with memory(size, shared) as ram, contextlib.closing(container):
        started = time.monotonic()
        if answer := container.map(IOVA, size, ram):
            raise RuntimeError(f"MAP_DMA: {vfio.name(answer)}")
        if not threads:
            return time.monotonic() - started
        while vm_file("unmapped_bytes"):
            if time.monotonic() - started > PATIENCE:
                raise RuntimeError("not all memory is mapped")
            # Looking costs time, too; what counts is "completed_ns".
            time.sleep(0.2)
        if vm_file("deferred_bytes") != size:
            raise RuntimeError("it was not deferred")
        return vm_file("completed_ns") / 1e9 - started


def measure_maps(rounds):
    """A row for each kind, number of threads and round; what is compared lies close
    together, and no number of threads is always the first."""
    guest.prepare("deferred")
    before = {name: host.knob(name) for name in ("policy", "workers")}
    rows = []
    try:
        for number in range(rounds):
            shift = number % len(THREADS)
            for kind, (gib, shared) in KINDS.items():
                for threads in THREADS[shift:] + THREADS[:shift]:
                    seconds = time_map(gib * GIB, shared, threads)
                    rows.append({"kind": kind, "gib": gib, "threads": threads,
                                 "round": number, "seconds": seconds})
    finally:
        for name, value in before.items():
            host.set_knob(name, value)
    return rows


# How fast L2 reads its assigned disk, past the page cache, in seconds by its own clock.
READ = """
read start _ </proc/uptime
dd if=/dev/nvme0n1 of=/dev/null bs=1M count=256 iflag=direct 2>/dev/null || exit 1
read end _ </proc/uptime
echo "$start $end"
"""


def time_reads(mode, size, reads, driver):
    """Seconds of each read, once all memory is mapped."""
    modules = [driver, "nvme"] if mode == "deferred" else ["nvme"]
    guest.prepare(mode, host.NVME)
    with guest.Guest(mode, size, modules=modules, devices=[host.find_device(host.NVME)]) as vm:
        vm.wait_line("L2: ready", PATIENCE)
        if mode == "deferred":
            deadline = time.monotonic() + PATIENCE
            while host.knob(f"vms/{vm.pid}/state") != "mapped":
                if time.monotonic() > deadline:
                    raise RuntimeError("not all memory is mapped")
                time.sleep(0.2)
        found = []
        for _ in range(reads):
            start, end = map(float, vm.check(READ, PATIENCE).split())
            found.append(end - start)
        vm.quit()
    return found


def measure_reads(size, rounds, driver):
    """A row for each mode and round: the median of a few reads."""
    rows = []
    for number in range(rounds):
        for mode in ("stock", "deferred")[::1 if number % 2 else -1]:
            seconds = time_reads(mode, size, 5, driver)
            rows.append({"mode": mode, "round": number, "seconds": median(seconds),
                         "least_s": min(seconds)})
    return rows


def main():
    what, rounds = sys.argv[1], int(sys.argv[2])
    if what == "maps":
        rows = measure_maps(rounds)
        keys = [(kind, threads) for kind in KINDS for threads in THREADS]
        groups = {key: [row["seconds"] / row["gib"] for row in rows
                        if (row["kind"], row["threads"]) == key] for key in keys}
    else:
        rows = measure_reads("4G", rounds, "/payload/virtio_balloon_deferred.ko")
        groups = {mode: [row["seconds"] for row in rows if row["mode"] == mode]
                  for mode in ("stock", "deferred")}
    for key, values in groups.items():
        print(key, f"median {median(values):.3f}", *(f"{value:.3f}" for value in values))


if __name__ == "__main__":
    main()
