# SPDX-License-Identifier: GPL-2.0-only
"""What happens when the host runs short: of memory in our own paths, of threads, of
what type1 needs. A VM fails to start with an error, or runs on; no device masters
the bus with memory missing (I3, I4); nothing is left behind (the groups' `clean`)."""

import contextlib
import ctypes
import errno
import os
import random
import struct
import threading
import time
from pathlib import Path

import bed
import guest
import host
import stall
import vfio
from edu import Edu
from tap import at_least, equal, eventually, group, matches
from test_gate import IOVA, SIZE, deferred_container, masters, masters_by_register

FAULT = Path("/sys/module/fault/parameters")
BALLOON = "/dev/vhost-vdpa-0"
ALL = 1_000_000

# Of the moments in a reset.
SEED, RESETS = 1, 12


@contextlib.contextmanager
def faults(kind, times=ALL, skip=0):
    """Calls of a kind fail in here, see tests/host/fault.c. Gives a function that
    says how many have failed."""
    def parameter(name):
        return FAULT / f"{kind}_{name}"
    before = int(parameter("hits").read_text())
    parameter("skip").write_text(str(skip))
    parameter("times").write_text(str(times))
    try:
        yield lambda: int(parameter("hits").read_text()) - before
    finally:
        parameter("times").write_text("0")


@contextlib.contextmanager
def fault_module():
    guest.prepare("deferred")
    host.run("insmod", "/payload/tests/host/fault.ko")
    try:
        yield
    finally:
        host.run("rmmod", "fault")


@group("failures under a container that is driven by hand")
def failing():
    with fault_module(), bed.knobs_set(fallback_timeout_ms=86_400_000, chunk_mib=64):
        yield host.find_device(host.EDU)


def own(name):
    return bed.stat(os.getpid(), name)


def expect_no_memory(what, value):
    equal(what, vfio.name(value), "ENOMEM")


def session(address, ram):
    """All that a VMM does with a device. Returns the step that failed, of which the
    error must be ENOMEM, or None."""
    with contextlib.ExitStack() as stack:
        step = "open"
        try:
            container = stack.enter_context(contextlib.closing(vfio.Container(address, BALLOON)))
            for step, call in (
                    ("map", lambda: container.map(IOVA, SIZE, ram)),
                    ("map low", lambda: container.map(0, bed.MIB, ram)),
                    ("master", lambda: min(container.set_master(True), 0)),
                    ("unmap", lambda: container.unmap(IOVA, SIZE)[0])):
                if answer := call():
                    expect_no_memory(step, answer)
                    return step
                # Without memory for its directory, a VM has none.
                if step == "master" and os.getpid() in bed.vms():
                    equal("unmapped_bytes", own("unmapped_bytes"), 0)
        except OSError as error:
            equal("error of opening", errno.errorcode[error.errno], "ENOMEM")
            return step
    return None


def each_in_turn(kind, times, address):
    """A session for each call of a kind, in which that one fails, and as many
    after it as `times` says. Returns the steps that failed."""
    failed = []
    with vfio.memory_for(SIZE) as ram:
        for skip in range(1000):
            with faults(kind, times, skip) as hits:
                step = session(address, ram)
                if not hits():
                    equal("step that failed without a fault", step, None)
                    return failed
            failed.append(step)
            bed.expect_no_vm()
    raise AssertionError(f"{len(failed)} calls in a session, and no end")


@failing.test("I3", "without a fault it all works: the negative control")
def control(address):
    with vfio.memory_for(SIZE) as ram:
        equal("step that failed", session(address, ram), None)


@failing.test("I3", "each allocation of memory fails in turn: ENOMEM, or as if nothing had been")
def allocations(address):
    failed = each_in_turn("alloc", 1, address)
    at_least("allocations that failed", len(failed), 10)
    for step in ("open", "map"):
        at_least(f"sessions that ended at {step}", failed.count(step), 1)


@failing.test("I3", "all allocations fail from one on")
def all_allocations(address):
    at_least("allocations that failed", len(each_in_turn("alloc", ALL, address)), 10)


@failing.test("I3", "each thread that cannot be made: ENOMEM for the balloon's; without one that "
                    "maps, type1 maps at once, and one is enough")
def threads(address):
    # The balloon's, and two that map.
    equal("steps that failed", each_in_turn("task", 1, address), ["open", None, None])


@failing.test("I3", "each page for type1's arguments: without one to ask with, type1 maps at once")
def pages(address):
    failed = each_in_turn("mmap", 1, address)
    for step in (None, "master"):
        at_least(f"sessions that ended at {step}", failed.count(step), 1)


@failing.test("I4", "each map of type1: the bit is not set, and may be asked for again")
def maps(address):
    for skip in range(SIZE // bed.MIB // 64):
        with deferred_container(address) as container:
            with faults("map", 1, skip) as hits:
                expect_no_memory("setting the bit", container.set_master(True))
                equal("faults", hits(), 1)
            equal("masters", (masters(), masters_by_register(container)), (0, 0))
            equal("gate_refusals", own("gate_refusals"), 1)
            at_least("failed_bytes", own("failed_bytes"), 64 * bed.MIB)
            equal("setting the bit", container.set_master(True), 2)
            equal("unmapped_bytes", own("unmapped_bytes"), 0)


@contextlib.contextmanager
def mastering(address, prepare=lambda container: None):
    """A container whose device masters the bus while memory is missing: only with the gate
    off is there a way to it."""
    with deferred_container(address) as container:
        prepare(container)
        with bed.knobs_set(gate=0):
            equal("setting the bit", container.set_master(True), 2)
        equal("masters", (masters(), masters_by_register(container)), (1, 1))
        yield container


class Call(threading.Thread):
    """A call that has begun."""

    def __init__(self, function, *words):
        super().__init__(target=lambda: setattr(self, "answer", function(*words)))
        self.answer = None
        self.start()

    def stack(self):
        """Where it is in the kernel."""
        return Path(f"/proc/self/task/{self.native_id}/stack").read_text()

    def wait(self):
        """Its answer."""
        self.join()
        return self.answer


def expect_silent(container):
    at_least("unmapped_bytes", own("unmapped_bytes"), 1)
    equal("masters", (masters(), masters_by_register(container)), (0, 0))


@failing.test("I4", "a balloon's reset that cannot map all: the device stops")
def silenced(address):
    with mastering(address) as container:
        with faults("map") as hits:
            container.balloon_status(0)
            at_least("faults", hits(), 1)
        expect_silent(container)
        equal("setting the bit", container.set_master(True), 2)
        equal("unmapped_bytes", own("unmapped_bytes"), 0)


def reset_card(card):
    """Resets an e1000e by its own register. An emulated one keeps the rings that it was
    given by a VM over VFIO's reset, and would use them as soon as it masters the bus."""
    # PCI_COMMAND_MEMORY; CTRL.RST of the 82574's datasheet, 10.2.2.1.
    card.set_command(2)
    equal("bytes written", os.pwrite(card.device, struct.pack("<I", 1 << 26),
                                     card.region(0)[1]), 4)


@failing.test("I4", "and one that sleeps then has not got it back when it wakes")
def silenced_asleep(_):
    # A reset wakes it as well.
    for wake in (lambda c: c.set_power(0), lambda c: c.reset_device()):
        with mastering(host.bind_to_vfio(host.E1000E), reset_card) as container:
            equal("D3", container.set_power(3), 2)
            with faults("map"):
                container.balloon_status(0)
            equal("masters", masters(), 0)
            at_least("woken", wake(container), 0)
            expect_silent(container)


@failing.test("I4", "nor has one that is reset at the same time, by which registers are put back")
def silenced_resetting(_):
    address = host.bind_to_vfio(host.NVME)
    rng = random.Random(SEED)
    for _ in range(RESETS):
        with mastering(address) as container, faults("map"):
            reset = Call(container.reset_device)
            # Any moment will do of the tenth of a second that a function-level reset takes.
            time.sleep(rng.uniform(0, 0.1))
            container.balloon_status(0)
            equal("answer to the reset", reset.wait(), 0)
            expect_silent(container)


@failing.test("I4", "nor has one whose bit was on its way to it")
def silenced_writing(address):
    with mastering(address) as container, stall.Stall() as page, faults("map"):
        # What comes before PCI_COMMAND is not there yet, and will not be written.
        data = container.config_read(vfio.COMMAND, 2)
        ctypes.memmove(page.address, data, len(data))
        write = Call(vfio.pwrite, container.device, page.address - vfio.COMMAND,
                     vfio.COMMAND + len(data), container.region(vfio.CONFIG_REGION)[1])
        page.wait()
        silence = Call(container.balloon_status, 0)
        eventually("it is silenced, or waits for that",
                   lambda: not silence.is_alive() or "4gate" in silence.stack())
        page.go_on()
        equal("bytes written", write.wait(), vfio.COMMAND + len(data))
        silence.wait()
        expect_silent(container)


@failing.test("I4", "negative control: if it can, the device goes on")
def not_silenced(address):
    with mastering(address) as container:
        equal("reset", container.balloon_status(0), 0)
        equal("masters", (masters(), masters_by_register(container)), (1, 1))
        equal("unmapped_bytes", own("unmapped_bytes"), 0)


@group("failures under VMs")
def failing_vms():
    bed.stock_locked()
    with fault_module():
        yield None


@failing_vms.test("I3", "a VM whose balloon gets no thread does not start, and QEMU says why")
def no_thread(_):
    with faults("task", 1) as hits, guest.Guest("deferred", bed.MEMORY, paused=True) as vm:
        equal("QEMU's exit status", vm.wait_exit(60), 1)
        equal("faults", hits(), 1)
        log = (guest.RESULTS / f"{vm.name}.qemu").read_text()
        matches("what QEMU says", log, "Cannot allocate memory")
    bed.expect_no_vm()


@failing_vms.test("I3", "a VM that gets no thread to map it is mapped at once")
def no_worker(_):
    # All but the balloon's.
    with faults("task", ALL, 1) as hits, \
         guest.Guest("deferred", bed.MEMORY, paused=True) as vm:
        vm.wait_qmp()
        at_least("faults", hits(), 1)
        equal("deferred_bytes", bed.stat(vm.pid, "deferred_bytes"), 0)
        equal("VmLck in KiB", vm.memory()["VmLck"], bed.stock_locked())
        vm.quit()
    bed.expect_no_vm()


@failing_vms.test("I3", "a VM survives maps that fail while its balloon empties")
def premap(_):
    with bed.knobs_set(hold=1, chunk_mib=256, fallback_timeout_ms=86_400_000), \
         guest.Guest("deferred", bed.MEMORY, modules=[bed.DRIVER, bed.EDU_DRIVER]) as vm:
        vm.wait_line("L2: ready", bed.BOOT)
        with faults("map", 3, 1) as hits:
            host.set_knob("hold", 0)
            eventually("all balloons are empty",
                       lambda: bed.driver(vm, "ballooned_bytes") == 0, 150)
            equal("faults", hits(), 3)
        equal("failures", bed.stat(vm.pid, "failures"), 3)
        equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), 0)
        equal("failed_bytes", bed.stat(vm.pid, "failed_bytes"), 0)
        Edu(vm).expect_all(4)
        vm.quit()


@failing_vms.test("I3", "QEMU, killed for its memory while it is being mapped, leaves nothing")
def out_of_memory(_):
    cgroups = Path("/sys/fs/cgroup")
    if not (cgroups / "cgroup.procs").exists():
        host.run("mount", "-t", "cgroup2", "cgroup", cgroups)
    (cgroups / "cgroup.subtree_control").write_text("+memory")
    cgroup = cgroups / "vm"
    cgroup.mkdir()
    # Enough for low memory, too little for all.
    (cgroup / "memory.max").write_text(str(bed.LOW + bed.GIB))
    into = ("sh", "-c", f'echo $$ >{cgroup}/cgroup.procs && exec "$0" "$@"')
    with bed.provoked_oom(), bed.knobs_set(fallback_timeout_ms=0), \
         guest.Guest("deferred", bed.MEMORY, paused=True, prefix=into) as vm:
        equal("how it ended", vm.wait_exit(120), -9)
    bed.expect_clean()
    eventually("its cgroup is empty", lambda: not (cgroup / "cgroup.procs").read_text())
    cgroup.rmdir()
