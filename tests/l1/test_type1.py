# SPDX-License-Identifier: GPL-2.0-only
"""type1's UAPI through our module: the same answers as without it (I7), and what
is deferred of it and what is not (I1, I4, I5)."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import bed
import guest
import host
import vfio
from tap import at_least, at_most, equal, group
from vfio import PROT_NONE, PROT_READ, PROT_WRITE, READ, UNMAP_ALL, WRITE

BALLOON = "/dev/vhost-vdpa-0"
IOVA = 8 << 30
SIZE = 64 * bed.MIB


def stat(name):
    """An attribute of the VM that this process is taken for."""
    return bed.stat(os.getpid(), name)


def answers(state, *balloon):
    """The transcript of type1_calls.py: (answers, bytes that were deferred)."""
    program = Path(__file__).with_name("type1_calls.py")
    output = json.loads(host.run(sys.executable, program, host.find_device(host.EDU),
                                 state, *balloon))
    return output["answers"], output["deferred"]


def expect_same(got, wanted):
    """Compares transcripts call by call."""
    wrong = [f"{what}: {mine}, but stock {theirs}"
             for (what, mine), (_, theirs) in zip(got, wanted) if mine != theirs]
    equal("wrong answers", wrong, [])
    equal("the calls made", [what for what, _ in got], [what for what, _ in wanted])


@group("calls of type1's UAPI, compared with type1 alone")
def calls():
    guest.prepare("stock")
    stock = {state: answers(state)[0] for state in ("deferred", "partly", "mapped")}
    guest.prepare("deferred")
    with bed.knobs_set(chunk_mib=2, fallback_timeout_ms=86_400_000):
        yield stock


@calls.test("I7", "the transcript has refusals as well as successes")
def transcript_is_worth_it(stock):
    for state, transcript in stock.items():
        at_least(f"calls made, {state}", len(transcript), 100)
        for errno in ("EINVAL", "EEXIST", "EFAULT", "EOVERFLOW", "ENOENT", "ENOTTY"):
            at_least(f"{errno} in the transcript",
                     sum(errno in str(answer) for _, answer in transcript), 1)


@calls.test("I5", "a process without a balloon gets the answers of type1 alone")
def without_balloon(stock):
    expect_same(answers("deferred")[0], stock["deferred"])


@calls.test("I7", "the same answers while maps are deferred")
def deferred(stock):
    got, waited = answers("deferred", BALLOON)
    at_least("bytes that were deferred", waited, SIZE)
    expect_same(got, stock["deferred"])


@calls.test("I7", "the same answers while maps are half made")
def partly(stock):
    got, waited = answers("partly", BALLOON)
    at_least("bytes that were deferred", waited, SIZE)
    expect_same(got, stock["partly"])


@calls.test("I7", "the same answers once all is mapped")
def mapped(stock):
    got, waited = answers("mapped", BALLOON)
    at_least("bytes that were deferred", waited, 1)
    expect_same(got, stock["mapped"])


@group("a container by hand, of a process with a balloon")
def container():
    guest.prepare("deferred")
    with bed.knobs_set(chunk_mib=2, fallback_timeout_ms=86_400_000):
        yield lambda: contextlib.closing(vfio.Container(host.find_device(host.EDU), BALLOON))


@container.test("I1", "a map above the threshold waits, one below is made at once")
def waits_above_threshold(new):
    ram = vfio.memory(2 * SIZE)
    with new() as c:
        equal("map below", c.map(bed.GIB, SIZE, ram), 0)
        equal("bytes that wait", stat("unmapped_bytes"), 0)
        at_least("pages pinned", bed.pages_pinned(), SIZE // vfio.PAGE)
        pinned = bed.pages_pinned()
        equal("map above", c.map(IOVA, SIZE, ram + SIZE), 0)
        equal("bytes that wait", stat("unmapped_bytes"), SIZE)
        equal("pages pinned", bed.pages_pinned(), pinned)
        equal("state", stat("state"), "deferred")
    vfio.unmap_memory(ram, 2 * SIZE)


@container.test("I4", "a device becomes bus master only after all is mapped, "
                      "and what comes later is mapped at once")
def bus_master(new):
    ram = vfio.memory(2 * SIZE)
    with new() as c:
        equal("map", c.map(IOVA, SIZE, ram), 0)
        equal("pages pinned", bed.pages_pinned(), 0)
        equal("bytes written", c.set_master(True), 2)
        equal("bytes that wait", stat("unmapped_bytes"), 0)
        equal("pages pinned", bed.pages_pinned(), SIZE // vfio.PAGE)
        equal("gate_trips", stat("gate_trips"), 1)
        equal("masters", stat("masters"), 1)
        equal("second map", c.map(IOVA + SIZE, SIZE, ram + SIZE), 0)
        equal("bytes that wait", stat("unmapped_bytes"), 0)
        equal("pages pinned", bed.pages_pinned(), 2 * SIZE // vfio.PAGE)
        c.set_master(False)
        equal("masters", stat("masters"), 0)
    vfio.unmap_memory(ram, 2 * SIZE)


@container.test("I4", "negative control: with the gate off it becomes bus master, "
                      "and nothing is mapped")
def gate_off(new):
    ram = vfio.memory(SIZE)
    with bed.knobs_set(gate=0), new() as c:
        equal("map", c.map(IOVA, SIZE, ram), 0)
        equal("bytes written", c.set_master(True), 2)
        equal("bytes that wait", stat("unmapped_bytes"), SIZE)
    vfio.unmap_memory(ram, SIZE)


@container.test("I3", "memory that cannot be pinned keeps the device from bus mastering, "
                      "and is tried again")
def gate_refuses(new):
    ram = vfio.memory(SIZE)
    with new() as c:
        equal("map", c.map(IOVA, SIZE, ram), 0)
        vfio.protect(ram + SIZE // 2, SIZE // 2, PROT_NONE)
        equal("answer to the driver", vfio.name(c.set_master(True)), "ENOMEM")
        equal("gate_refusals", stat("gate_refusals"), 1)
        equal("masters", stat("masters"), 0)
        at_least("failed_bytes", stat("failed_bytes"), 2 * bed.MIB)
        at_least("bytes that wait", stat("unmapped_bytes"), SIZE // 2)
        at_most("bytes that wait", stat("unmapped_bytes"), SIZE - 2 * bed.MIB)
        vfio.protect(ram, SIZE, PROT_READ | PROT_WRITE)
        equal("bytes written", c.set_master(True), 2)
        equal("bytes that wait", stat("unmapped_bytes"), 0)
        equal("failed_bytes", stat("failed_bytes"), 0)
    vfio.unmap_memory(ram, SIZE)


@container.test("I5", "only memory to read and write is deferred")
def read_only_maps(new):
    ram = vfio.memory(SIZE)
    for flags in (READ, WRITE):
        with new() as c:
            equal("map", c.map(IOVA, SIZE, ram, flags=flags), 0)
            equal("deferred_bytes", stat("deferred_bytes"), 0)
            equal("pages pinned", bed.pages_pinned(), SIZE // vfio.PAGE)
    vfio.unmap_memory(ram, SIZE)


@container.test("I5", "a device's BAR above the threshold is not deferred")
def bars(new):
    with new() as c:
        size, offset = c.region(0)
        bar = vfio.memory(size, fd=c.device, offset=offset)
        equal("map", c.map(IOVA, size, bar), 0)
        equal("deferred_bytes", stat("deferred_bytes"), 0)
        equal("unmap", c.unmap(IOVA, size), (0, size))
        vfio.unmap_memory(bar, size)


@container.test("I5", "nothing is deferred with the threshold above it")
def threshold(new):
    ram = vfio.memory(SIZE)
    with bed.knobs_set(threshold_mib=16384), new() as c:
        equal("map", c.map(IOVA, SIZE, ram), 0)
        equal("deferred_bytes", stat("deferred_bytes"), 0)
        equal("pages pinned", bed.pages_pinned(), SIZE // vfio.PAGE)
    vfio.unmap_memory(ram, SIZE)


@container.test("I7", "an unmap counts what was deferred, and pages go with it")
def unmap_in_part(new):
    ram = vfio.memory(2 * SIZE)
    with new() as c:
        equal("map", c.map(IOVA, SIZE, ram), 0)
        equal("map", c.map(IOVA + SIZE, SIZE, ram + SIZE), 0)
        equal("unmap", c.unmap(IOVA, SIZE), (0, SIZE))
        equal("bytes that wait", stat("unmapped_bytes"), SIZE)
        c.set_master(True)
        equal("pages pinned", bed.pages_pinned(), SIZE // vfio.PAGE)
        equal("unmap", c.unmap(0, 0, flags=UNMAP_ALL), (0, SIZE))
        equal("pages pinned", bed.pages_pinned(), 0)
    vfio.unmap_memory(ram, 2 * SIZE)


@container.test("I4", "without a commit, everything is mapped when the time is up")
def fallback(new):
    ram = vfio.memory(SIZE)
    with bed.knobs_set(fallback_timeout_ms=500), new() as c:
        equal("map", c.map(IOVA, SIZE, ram), 0)
        equal("deferred_bytes", stat("deferred_bytes"), SIZE)
        bed.wait_mapped(os.getpid())
        equal("fallbacks", stat("fallbacks"), 1)
        equal("pages pinned", bed.pages_pinned(), SIZE // vfio.PAGE)
    vfio.unmap_memory(ram, SIZE)


def vdpa_ioctl(*words):
    """Runs tests/host/vdpa_ioctl.c; what failed in it fails here."""
    address = host.find_device(host.EDU)
    grp = (host.DEVICES / address / "iommu_group").resolve().name
    done = subprocess.run(["/payload/vdpa_ioctl", BALLOON, grp, *words], text=True,
                          check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    bad = [line for line in done.stdout.splitlines()
           if line.startswith(("not ok", "Bail out!"))]
    equal("what failed", bad, [])
    equal("exit status", done.returncode, 0)


@container.test("I3", "the module's device stays whole when driven as a VMM drives it")
def vdpa_device(_):
    vdpa_ioctl()


@container.test("I3", "no driver, VMM or administrator waits for a mapping that does not end")
def stalls(_):
    with bed.knobs_set(threshold_mib=4096, fallback_timeout_ms=86_400_000):
        vdpa_ioctl("stalls")
