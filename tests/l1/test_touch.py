# SPDX-License-Identifier: GPL-2.0-only
"""The gate at the first touch (I4): a write that sets the bus-master bit while memory is
missing returns at once, and who uses the device waits until it may master the bus."""

import contextlib
import os
import random
import signal
import struct
import threading
import time

import bed
import guest
import host
import stall
import vfio
from balloon import OK, Balloon
from channel import TIME_FACTOR
from edu import Edu
from probe import Probe
from tap import at_least, at_most, equal, eventually, group
from test_faults import fault_module, faults, own
from test_gate import IOVA, SIZE, masters, masters_by_register, mapped_container

# Seconds that a call may take that waits for nobody, on an emulated processor.
PROMPT = 2

# Devices that are closed at any moment.
SEED, CLOSINGS = 1, 20

# VFIO_DEVICE_IOEVENTFD, 4 bytes.
IOEVENTFD, IOEVENTFD_32 = 0x3b74, 4


@group("the first touch, by hand")
def touch():
    guest.prepare("deferred")
    host.bind_to_vfio(host.NVME)
    with bed.knobs_set(fallback_timeout_ms=86_400_000, chunk_mib=2):
        yield host.find_device(host.EDU)


@contextlib.contextmanager
def missing(address):
    """A container with memory of which one page cannot be mapped until the second thing
    that this gives says so, see stall.Stall."""
    with stall.Stall(SIZE - vfio.PAGE) as page, \
         contextlib.closing(vfio.Container(address, "/dev/vhost-vdpa-0")) as container:
        try:
            equal("map", container.map(IOVA, SIZE, page.start), 0)
            # Devices decode their BARs when they are used.
            equal("written", container.set_command(vfio.DECODE), 2)
            yield container, page
        finally:
            page.go_on()


def prompt(what, function, *words):
    """What a call returns that must not wait."""
    started = time.monotonic()
    result = function(*words)
    at_most(f"seconds that {what} took", time.monotonic() - started, PROMPT * TIME_FACTOR)
    return result


class Touch(threading.Thread):
    """Somebody who uses a device, and may have to wait; `answer` is what came of it."""

    def __init__(self, function):
        super().__init__(target=lambda: setattr(self, "answer", function()))
        self.answer = None
        self.start()

    def expect_waiting(self, address):
        eventually("somebody waits for the device",
                   lambda: own("gate_waiting") == address)
        equal("the touch goes on waiting", self.is_alive(), True)

    def wait(self):
        self.join(stall.SOON)
        equal("the touch goes on waiting", self.is_alive(), False)
        return self.answer


def ask(container):
    """Sets the bit while memory is missing."""
    command = container.command() | vfio.MASTER
    equal("written", prompt("the write", container.set_command, command), 2)
    equal("masters", (masters(), masters_by_register(container)), (0, 0))
    equal("asked", own("asked"), 1)
    equal("the bit that is shown", container.command() & vfio.MASTER, vfio.MASTER)


def expect_granted(container):
    eventually("the device masters the bus", lambda: masters_by_register(container))
    equal("masters", masters(), 1)
    equal("asked", own("asked"), 0)
    equal("gate_waiting", own("gate_waiting"), "")


def touches(container):
    """The ways to use the device of a container, by name."""
    bar, _ = container.map_bar()
    return {"a write to a BAR": container.touch,
            "a mapped BAR": lambda: vfio.load(bar + 8)}


@touch.test("I4", "the write returns at once, whoever uses the device waits, and goes on with "
                  "the bit set")
def waits(address):
    for number, name in enumerate(("a write to a BAR", "a mapped BAR")):
        with missing(address) as (container, page):
            ways = touches(container)
            ask(container)
            thread = Touch(ways[name])
            thread.expect_waiting(address)
            equal("masters by the register", masters_by_register(container), 0)
            page.go_on()
            thread.wait()
            expect_granted(container)
            equal("unmapped_bytes", own("unmapped_bytes"), 0)
            equal("gate_trips", own("gate_trips"), 1)
            at_least("gate_wait_max_ns", own("gate_wait_max_ns"), 1)
            # And nobody waits any more.
            for each in ways.values():
                prompt(f"{name} ({number})", each)


@touch.test("I4", "a page of the BAR that was there before faults again")
def zapped(address):
    with missing(address) as (container, page):
        bar, _ = container.map_bar()
        prompt("the BAR", vfio.load, bar + 8)
        ask(container)
        thread = Touch(lambda: vfio.load(bar + 8))
        thread.expect_waiting(address)
        page.go_on()
        thread.wait()
        expect_granted(container)


@touch.test("I4", "and so does one that type1 has brought in for DMA between devices")
def peer_to_peer(address):
    with missing(address) as (container, page):
        bar, size = container.map_bar()
        ask(container)
        equal("map", container.map(1 << 30, size, bar), 0)
        thread = Touch(lambda: vfio.load(bar + 8))
        thread.expect_waiting(address)
        page.go_on()
        thread.wait()
        expect_granted(container)
        equal("unmap", container.unmap(1 << 30, size), (0, size))


@touch.test("I4", "nobody waits, and the device gets the bit, if nobody touches it before")
def untouched(address):
    with missing(address) as (container, page), bed.knobs_set(premap=1):
        ask(container)
        equal("gate_trips", own("gate_trips"), 0)
        page.go_on()
        # The driver of a balloon that is not ours: all is mapped in the background.
        equal("answers", container.balloon_driver(1 << 32 | 1 << 33), [0] * 5)
        expect_granted(container)
        prompt("the touch", container.touch)
        equal("gate_trips", own("gate_trips"), 0)


@touch.test("I4", "what is given up is not waited for, even if it is just being mapped by all "
                  "threads that map")
def inflated(address):
    with bed.knobs_set(workers=1), Balloon() as balloon, missing(address) as (container, page):
        balloon.attach(container)
        balloon.ready()
        ask(container)
        thread = Touch(container.touch)
        thread.expect_waiting(address)
        equal("reply to INFLATE", balloon.inflate((IOVA, SIZE)), (OK, 1))
        thread.wait()
        expect_granted(container)
        equal("the page is not there", page.stalls, True)
        page.go_on()
        balloon.detach()


@touch.test("I4", "who takes the bit back is not waited for")
def taken_back(address):
    with missing(address) as (container, page):
        ask(container)
        thread = Touch(container.touch)
        thread.expect_waiting(address)
        equal("written", container.set_command(vfio.DECODE), 2)
        thread.wait()
        equal("asked", own("asked"), 0)
        equal("masters", (masters(), masters_by_register(container)), (0, 0))
        page.go_on()


@touch.test("I4", "a reset while somebody waits leaves the request as it was")
def resetting(_):
    address = host.find_device(host.NVME)
    with missing(address) as (container, page):
        ask(container)
        thread = Touch(container.touch)
        thread.expect_waiting(address)
        equal("reset", container.reset_device(), 0)
        thread.expect_waiting(address)
        page.go_on()
        thread.wait()
        expect_granted(container)


@touch.test("I4", "a device that sleeps when its memory is mapped has the bit when it is awake")
def asleep(_):
    for wake in (lambda c: c.set_power(0), lambda c: c.reset_device()):
        with missing(host.find_device(host.NVME)) as (container, page):
            ask(container)
            equal("D3", container.set_power(3), 2)
            thread = Touch(container.touch)
            page.go_on()
            thread.wait()
            equal("masters", masters(), 1)
            at_least("woken", wake(container), 0)
            expect_granted(container)


@touch.test("I4", "a BAR that is switched off under one who waits reads as ones, and ends nobody")
def switched_off(address):
    with missing(address) as (container, page):
        bar, _ = container.map_bar()
        value = vfio.load(bar + 8)
        ask(container)
        thread = Touch(lambda: vfio.load(bar + 8))
        thread.expect_waiting(address)
        equal("written", container.set_command(vfio.MASTER), 2)
        page.go_on()
        equal("what was read", thread.wait(), 0xff)
        equal("written", container.set_command(vfio.DECODE | vfio.MASTER), 2)
        equal("what is read then", vfio.load(bar + 8), value)
        expect_granted(container)


@touch.test("I4", "a doorbell that the gate does not see makes the write wait, as does none that "
                  "it sees: the negative control")
def unseen(address):
    with missing(address) as (container, page):
        event = os.eventfd(0)
        _, offset = container.bar()
        answer = vfio.answer(container.device, IOEVENTFD, struct.pack(
            "=IIQQi4x", 32, IOEVENTFD_32, offset + 8, 0, event))
        equal("answer", answer, 0)
        thread = Touch(lambda: container.set_command(vfio.DECODE | vfio.MASTER))
        eventually("the write waits", lambda: own("gate_trips") == 1)
        equal("the write goes on waiting", thread.is_alive(), True)
        page.go_on()
        equal("written", thread.wait(), 2)
        equal("masters", (masters(), masters_by_register(container)), (1, 1))
        os.close(event)


@touch.test("I4", "whoever waits can be killed, and is gone at once")
def killed(address):
    with missing(address) as (container, page):
        ways = touches(container)
        ask(container)
        for name, way in ways.items():
            child = os.fork()
            if not child:
                with contextlib.suppress(BaseException):
                    way()
                os._exit(0)
            eventually(f"{name} waits", lambda: own("gate_waiting") == address)
            os.kill(child, signal.SIGKILL)
            eventually(f"{name} is gone", lambda: os.waitpid(child, os.WNOHANG)[0] == child)
            eventually("nobody waits", lambda: own("gate_waiting") == "")
        page.go_on()


@touch.test("I3", "a device that is closed as its memory is mapped is left alone")
def closing(_):
    rng = random.Random(SEED)
    for _ in range(CLOSINGS):
        # This one is reset as it is closed, which takes a tenth of a second.
        with bed.knobs_set(workers=1), \
             missing(host.find_device(host.NVME)) as (container, page):
            ask(container)
            # The first page holds up the only thread that maps all in the background.
            equal("answers", container.balloon_driver(1 << 32 | 1 << 33), [0] * 5)
            page.wait()
            page.go_on()
            # The bit is about to be set at a moment when little is left.
            left = rng.randrange(0, SIZE, SIZE // 16)
            eventually("most is mapped", lambda: own("unmapped_bytes") <= left, pause=0)
    # A kernel that has used what was freed has said so: the group's last test.


@touch.test("I4", "negative control: with the trap off who uses the device does not wait, and the "
                  "device is silent until all is mapped")
def trap_off(address):
    with bed.knobs_set(trap=0), missing(address) as (container, page):
        ways = touches(container)
        ask(container)
        for name, way in ways.items():
            prompt(name, way)
        equal("masters", (masters(), masters_by_register(container)), (0, 0))
        page.go_on()


@touch.test("I4", "a file of the VM's is well formed: none who asks or waits at first")
def files(address):
    with mapped_container(address):
        for name, value in (("asked", 0), ("gate_waiting", "")):
            equal(name, own(name), value)


@group("the first touch of a VM without our driver")
def first_touch():
    with fault_module(), bed.knobs_set(fallback_timeout_ms=86_400_000), \
         guest.Guest("deferred", bed.MEMORY, files={
             "lib/modules/edu_dma.ko": bed.EDU_DRIVER}) as vm:
        vm.wait_line("L2: ready", bed.BOOT)
        yield vm
        vm.quit()


@first_touch.test("I4", "negative control: where memory cannot be mapped the driver goes on with a "
                        "device that is silent: DMA neither arrives nor faults")
def silent(vm):
    with faults("map") as hits:
        vm.check("insmod /lib/modules/edu_dma.ko", 120)
        at_least("maps that failed", hits(), 1)
        equal("gate_refusals", bed.stat(vm.pid, "gate_refusals"), 1)
        equal("masters", bed.stat(vm.pid, "masters"), 0)
        edu = Edu(vm)
        read, written = edu.wrong_bytes(edu.alloc(1)[0])
        at_least("wrong bytes read", read, 2048)
        at_least("wrong bytes written", written, 2048)
        vm.check("rmmod edu_dma")


@first_touch.test("I4", "the driver's write of the bit takes no time while 2 GiB are missing, and "
                        "its first access to the device waits for them")
def write_returns(vm):
    equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), bed.HIGH)
    trips = bed.stat(vm.pid, "gate_trips")
    vm.check("insmod /lib/modules/edu_dma.ko", 120)
    set_us, touch_us = Edu(vm).started()
    # On a machine that does nothing else it takes one or two thousand. Processors that have
    # one thread of the emulator take turns of a tenth of a second, though.
    at_most("microseconds that the write took", set_us, 120_000 * TIME_FACTOR)
    # It found memory missing: the write has not waited.
    at_least("microseconds that the access took", touch_us, 1)
    equal("gate_trips", bed.stat(vm.pid, "gate_trips"), trips + 1)
    equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), 0)
    at_least("gate_wait_max_ns", bed.stat(vm.pid, "gate_wait_max_ns"), 1)


@first_touch.test("I4", "and then DMA arrives")
def arrives(vm):
    Edu(vm).expect_all(4)


@group("QEMU while its guest waits at the gate")
def manageable():
    guest.prepare("deferred")
    # Pages of 4 KiB that one thread provides: what is missing takes a while.
    with bed.knobs_set(fallback_timeout_ms=86_400_000, workers=1), \
         guest.Guest("deferred", bed.MEMORY, cpus=2, backend="memory-backend-memfd,share=on",
                     files={"lib/modules/edu_dma.ko": bed.EDU_DRIVER}) as vm:
        vm.wait_line("L2: ready", bed.BOOT)
        yield vm
        vm.quit()


@manageable.test("I4", "its monitor answers, and the guest's other processor goes on")
def answers(vm):
    alone = probe_for(vm, lambda: time.sleep(3))
    load = threading.Thread(target=vm.check, args=("insmod /lib/modules/edu_dma.ko", 300))
    load.start()
    eventually("somebody waits", lambda: bed.stat(vm.pid, "gate_waiting"), pause=0.05)
    waiting = probe_for(vm, load.join)
    longest = bed.stat(vm.pid, "gate_wait_max_ns") / 1e9
    print(f"# longest wait at the gate {longest:.1f} s, slowest answer of QEMU's monitor "
          f"{waiting:.2f} s, {alone:.2f} s before")
    at_least("seconds that the guest waited", longest, 3)
    at_most("seconds that the slowest answer took", waiting, max(longest / 5, 2 * alone))
    equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), 0)
    Edu(vm).expect_all(2)


def probe_for(vm, function):
    """The slowest answer of QEMU's monitor while a function runs, in seconds."""
    with Probe(vm) as probe:
        function()
    return probe.worst
