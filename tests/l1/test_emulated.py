# SPDX-License-Identifier: GPL-2.0-only
"""A device that is emulated, as a vGPU is: no IOMMU and no gate holds it back, so nothing
may wait for it (I4). Its driver, tests/host/emulated.c, pins what it reaches."""

import contextlib
import ctypes
import os
import threading
from pathlib import Path

import bed
import guest
import host
import vfio
from channel import TIME_FACTOR
from tap import equal, eventually, group

BALLOON = "/dev/vhost-vdpa-0"
NAME = "emulated"
DEVICE = f"/sys/devices/faux/{NAME}"
WAITING = Path(f"/sys/module/{NAME}/parameters/waiting")
# _IO('e', number)
PIN, PIN_LATE = 0x6501, 0x6502

IOVA = 8 << 30
SIZE = 16 * bed.MIB
PAGES = SIZE // vfio.PAGE


@group("an emulated device, whose driver pins pages")
def emulated():
    guest.prepare("deferred")
    host.run("insmod", f"/payload/tests/host/{NAME}.ko")
    with bed.knobs_set(fallback_timeout_ms=86_400_000):
        yield None
    host.run("rmmod", NAME)


def stat(name):
    """An attribute of the VM that this process is taken for."""
    return bed.stat(os.getpid(), name)


@contextlib.contextmanager
def opened(container):
    """The emulated device, in a container."""
    equal("attach", container.attach(DEVICE), 0)
    device = container.open_attached(NAME)
    try:
        yield device.device
    finally:
        device.close()
        container.detach()


@contextlib.contextmanager
def two_maps():
    """(container, address of the RAM): two maps side by side, which wait."""
    with vfio.memory_for(2 * SIZE) as ram, \
         contextlib.closing(vfio.Container(host.find_device(host.EDU), BALLOON)) as container:
        for at in (0, SIZE):
            equal("map", container.map(IOVA + at, SIZE, ram + at), 0)
        equal("bytes that wait", stat("unmapped_bytes"), 2 * SIZE)
        yield container, ram


@emulated.test("I4", "as it comes everything is mapped, and what comes later at once")
def maps_all(_):
    with two_maps() as (container, ram), opened(container):
        equal("bytes that wait", stat("unmapped_bytes"), 0)
        equal("pages pinned", bed.pages_pinned(), 2 * PAGES)
        equal("another map", container.map(IOVA + 2 * SIZE, SIZE, ram), 0)
        equal("bytes that wait", stat("unmapped_bytes"), 0)
        equal("pages pinned", bed.pages_pinned(), 3 * PAGES)


@emulated.test("I1", "what it writes arrives, and it reads what is there")
def dma(_):
    with two_maps() as (container, ram), opened(container) as device:
        # The last page of the first map, and the first of the second.
        at, text = SIZE - vfio.PAGE, os.urandom(2 * vfio.PAGE)
        equal("bytes written", os.pwrite(device, text, IOVA + at), len(text))
        equal("the memory is as it was written", ctypes.string_at(ram + at, len(text)) == text,
              True)
        ctypes.memset(ram + at, 0x5a, len(text))
        equal("it reads what is there", os.pread(device, len(text), IOVA + at) ==
              b"\x5a" * len(text), True)


def pin(device, request, iova):
    return vfio.answer(device, request, iova // vfio.PAGE)


@emulated.test("I3", "it lets go of what it has pinned when that is unmapped, and what is "
                     "not mapped it cannot pin")
def pins(_):
    with two_maps() as (container, _), opened(container) as device:
        equal("pin", pin(device, PIN, IOVA), 0)
        equal("pages pinned", bed.pages_pinned(), 2 * PAGES + 1)
        equal("unmap", container.unmap(IOVA, SIZE), (0, SIZE))
        equal("pages pinned", bed.pages_pinned(), PAGES)
        equal("pin", vfio.name(pin(device, PIN, IOVA)), "EINVAL")


@emulated.test("I7", "its driver may pin with a lock that an unmap waits for")
def pins_during_unmap(_):
    with two_maps() as (container, _), opened(container) as device:
        equal("pin", pin(device, PIN, IOVA), 0)
        answers = {}

        def call(name, function, *words):
            answers[name] = function(*words)

        threads = [
            threading.Thread(target=call, daemon=True,
                             args=("pin", pin, device, PIN_LATE, IOVA + SIZE)),
            threading.Thread(target=call, daemon=True,
                             args=("unmap", container.unmap, IOVA, SIZE)),
        ]
        threads[0].start()
        eventually("the driver has its lock", lambda: WAITING.read_text() == "1\n")
        equal("waits", list(answers), [])
        threads[1].start()
        for thread in threads:
            thread.join(30 * TIME_FACTOR)
        # Only an unmap that was under way lets the pin go on.
        equal("answers", answers, {"pin": 0, "unmap": (0, SIZE)})
        equal("pages pinned", bed.pages_pinned(), PAGES + 1)
