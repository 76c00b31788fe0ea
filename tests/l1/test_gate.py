# SPDX-License-Identifier: GPL-2.0-only
"""Guests that do not speak our protocol are mapped in full before a device can
touch their memory, or in the background when the time is up (I4)."""

import contextlib
import ctypes
import mmap
import os

import bed
import guest
import host
import vfio
from edu import Edu
from tap import at_least, at_most, equal, group


@group("a VM without a balloon driver, the gate off at first")
def driverless():
    guest.prepare("deferred")
    with bed.knobs_set(gate=0, fallback_timeout_ms=86_400_000), \
         guest.Guest("deferred", bed.MEMORY, modules=[bed.EDU_DRIVER]) as vm:
        vm.wait_line("L2: ready", bed.BOOT)
        yield vm
        vm.quit()


@driverless.test("I4", "negative control: without the gate DMA is lost, without a word to the guest")
def lost(vm):
    equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), bed.HIGH)
    edu = Edu(vm)
    gpa = edu.alloc(1)[0]
    with bed.provoked_fault():
        read, written = edu.wrong_bytes(gpa)
    at_least("wrong bytes read", read, 2048)
    at_least("wrong bytes written", written, 2048)


@driverless.test("I4", "at the gate the driver waits until all memory is mapped")
def waits_at_gate(vm):
    vm.check("rmmod edu_dma")
    equal("masters", bed.stat(vm.pid, "masters"), 0)
    equal("gate_trips", bed.stat(vm.pid, "gate_trips"), 0)
    host.set_knob("gate", 1)
    vm.check("insmod /lib/modules/edu_dma.ko", 120)
    equal("gate_trips", bed.stat(vm.pid, "gate_trips"), 1)
    equal("gate_refusals", bed.stat(vm.pid, "gate_refusals"), 0)
    equal("masters", bed.stat(vm.pid, "masters"), 1)
    equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), 0)
    equal("fallbacks", bed.stat(vm.pid, "fallbacks"), 0)


@driverless.test("I4", "and then DMA arrives")
def arrives(vm):
    Edu(vm).expect_all(4)


@group("a VM with the stock balloon driver")
def stock_driver():
    guest.prepare("deferred")
    with bed.knobs_set(fallback_timeout_ms=86_400_000), \
         guest.Guest("deferred", bed.MEMORY,
                     modules=["virtio_balloon", bed.EDU_DRIVER]) as vm:
        vm.wait_line("L2: loaded virtio_balloon.ko", bed.BOOT)
        yield vm
        vm.quit()


@stock_driver.test("I4", "all is mapped in the background from its start on")
def mapped_on(vm):
    equal("deferred_bytes", bed.stat(vm.pid, "deferred_bytes"), bed.HIGH)
    bed.wait_mapped(vm.pid)
    equal("messages", bed.stat(vm.pid, "messages"), 0)
    equal("fallbacks", bed.stat(vm.pid, "fallbacks"), 0)


@stock_driver.test("I4", "the driver works, and DMA arrives")
def dma(vm):
    vm.wait_line("L2: ready", bed.BOOT)
    vm.check("ls -d /sys/bus/virtio/drivers/virtio_balloon/virtio*")
    Edu(vm).expect_all(4)
    equal("masters", bed.stat(vm.pid, "masters"), 1)


@group("VMs that never run")
def paused():
    bed.stock_locked()
    guest.prepare("deferred")
    yield lambda **options: guest.Guest("deferred", bed.MEMORY, paused=True, **options)


@paused.test("I1", "nothing above 4 GiB is mapped or even backed when QEMU has started")
def deferred(new):
    with bed.knobs_set(fallback_timeout_ms=86_400_000), new() as vm:
        vm.wait_qmp()
        equal("deferred_bytes", bed.stat(vm.pid, "deferred_bytes"), bed.HIGH)
        equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), bed.HIGH)
        equal("backed above 4 GiB", bed.backed_above(vm), 0)
        at_most("VmLck in KiB", vm.memory()["VmLck"], bed.stock_locked() - (bed.HIGH >> 10))
        vm.quit()


@paused.test("I4", "when the time is up, everything is mapped in the background")
def fallback(new):
    with bed.knobs_set(fallback_timeout_ms=2000), new() as vm:
        vm.wait_qmp()
        bed.wait_mapped(vm.pid)
        equal("fallbacks", bed.stat(vm.pid, "fallbacks"), 1)
        equal("VmLck in KiB", vm.memory()["VmLck"], bed.stock_locked())
        vm.quit()


@paused.test("I4", "a reset of a VM that is not mapped yet leaves it deferred, behind the gate")
def reset(new):
    with bed.knobs_set(fallback_timeout_ms=86_400_000), new() as vm:
        vm.wait_qmp()
        vm.qmp.command("set-action", reboot="reset")
        vm.qmp.command("system_reset")
        vm.qmp.wait_event("RESET", 60)
        equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), bed.HIGH)
        equal("masters", bed.stat(vm.pid, "masters"), 0)
        vm.quit()


@group("VMs whose balloon driver stops half way")
def half_way():
    guest.prepare("deferred")
    name = "half_balloon.ko"
    with bed.knobs_set(fallback_timeout_ms=86_400_000), \
         guest.Guest("deferred", bed.MEMORY, files={
             f"lib/modules/{name}": f"/payload/tests/guest/{name}",
             "lib/modules/edu_dma.ko": bed.EDU_DRIVER}, modules=["virtio_pci"]) as vm:
        vm.wait_line("L2: ready", bed.BOOT)
        yield vm
        vm.quit()


def insmod(vm, module, words=""):
    vm.check(f"insmod /lib/modules/{module}.ko {words}", 120)


@half_way.test("I4", "it gives up 1 GiB and never commits: nothing is mapped for it")
def never_commits(vm):
    insmod(vm, "half_balloon", "mib=1024")
    equal("messages", bed.stat(vm.pid, "messages"), 512)
    equal("ballooned_bytes", bed.stat(vm.pid, "ballooned_bytes"), bed.GIB)
    equal("commits", bed.stat(vm.pid, "commits"), 0)
    equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), bed.HIGH)


@half_way.test("I4", "at the gate all that it has kept is mapped, and DMA arrives in it")
def gate_without_commit(vm):
    insmod(vm, "edu_dma")
    equal("gate_trips", bed.stat(vm.pid, "gate_trips"), 1)
    equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), bed.GIB)
    Edu(vm).expect_all(4)


@half_way.test("I4", "negative control: DMA to what it gave up faults, nothing arrives")
def what_was_given_up(vm):
    last = int(vm.check("cat /sys/module/half_balloon/parameters/last"))
    with bed.provoked_fault():
        equal("bytes that changed", Edu(vm).changed_bytes(last), 0)


@half_way.test("I4", "one that gives up nothing is mapped when the time is up, and DMA arrives")
def never_inflates(vm):
    vm.check("rmmod edu_dma")
    equal("masters", bed.stat(vm.pid, "masters"), 0)
    # The reset by rmmod arms the time limit anew.
    with bed.knobs_set(fallback_timeout_ms=5000):
        vm.check("rmmod half_balloon")
        insmod(vm, "half_balloon", "mib=0")
    equal("ballooned_bytes", bed.stat(vm.pid, "ballooned_bytes"), 0)
    bed.wait_mapped(vm.pid)
    equal("fallbacks", bed.stat(vm.pid, "fallbacks"), 1)
    insmod(vm, "edu_dma")
    equal("gate_trips", bed.stat(vm.pid, "gate_trips"), 1)
    Edu(vm).expect_all(4)


IOVA = 8 << 30
SIZE = bed.GIB // 4


@group("PCI_COMMAND written by hand")
def by_hand():
    guest.prepare("deferred")
    host.bind_to_vfio(host.NVME)
    with bed.knobs_set(fallback_timeout_ms=86_400_000, chunk_mib=64):
        yield host.find_device(host.EDU)


@contextlib.contextmanager
def deferred_container(address):
    """A container of this process with some memory that is deferred."""
    with vfio.memory_for(SIZE) as ram, \
         contextlib.closing(vfio.Container(address, "/dev/vhost-vdpa-0")) as container:
        equal("map", container.map(IOVA, SIZE, ram), 0)
        equal("unmapped_bytes", bed.stat(os.getpid(), "unmapped_bytes"), SIZE)
        yield container


@contextlib.contextmanager
def mapped_container(address):
    """The same when all is mapped, and a write that sets the bit is answered at once."""
    with deferred_container(address) as container:
        equal("written", container.set_master(True), 2)
        equal("written", container.set_master(False), 2)
        yield container


def masters():
    return bed.stat(os.getpid(), "masters")


def masters_by_register(container):
    return int(bool(container.hardware_command() & vfio.MASTER))


@by_hand.test("I4", "each size and alignment of a write that covers the bit meets the gate")
def sizes(address):
    with deferred_container(address) as container:
        for offset in range(vfio.COMMAND + 1):
            for count in range(1, 9):
                covers = offset <= vfio.COMMAND < offset + count
                for on in (True, False):
                    data = bytearray(container.config_read(offset, count))
                    if covers:
                        data[vfio.COMMAND - offset] = 0x07 if on else 0x03
                    equal("written", container.config_write(offset, data), count)
                    container.touch()
                    what = f"after {count} bytes at {offset}: masters"
                    equal(what, masters(), int(covers and on))
                    equal(what + " by the register", masters_by_register(container),
                          int(covers and on))
        equal("gate_trips", bed.stat(os.getpid(), "gate_trips"), 1)
        equal("unmapped_bytes", bed.stat(os.getpid(), "unmapped_bytes"), 0)


@by_hand.test("I4", "a write that is refused, or fails half way, leaves gate and register as one")
def refused(address):
    with deferred_container(address) as container:
        at = container.region(vfio.CONFIG_REGION)[1]
        # More than there is of config space.
        equal("answer", vfio.name(container.config_write(0, b"\xff" * 65536)), "EFAULT")
        equal("masters", (masters(), masters_by_register(container)), (0, 0))
        # The rest of the bit's dword cannot be read.
        with vfio.memory_for(2 * vfio.PAGE) as pages:
            vfio.protect(pages + vfio.PAGE, vfio.PAGE, vfio.PROT_NONE)
            ctypes.memmove(pages + vfio.PAGE - 5, b"\0\0\0\0\x07", 5)
            # In the second case not even the bit can be read.
            for count in (5, 4):
                answer = vfio.pwrite(container.device, pages + vfio.PAGE - count, 8, at)
                equal("answer", vfio.name(answer), "EFAULT")
                equal("masters", (masters(), masters_by_register(container)), (0, 0))


@contextlib.contextmanager
def other_self(function):
    """A second process that runs a function, and is ended afterwards."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            function()
        os._exit(0)
    try:
        yield
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


@by_hand.test("I4", "a value that changes after the gate has looked at it gets nobody through")
def double_fetch(address):
    with mapped_container(address) as container:
        at = container.region(vfio.CONFIG_REGION)[1] + vfio.COMMAND
        shared = mmap.mmap(-1, vfio.PAGE)
        value = ctypes.c_char.from_buffer(shared)

        def change():
            while True:
                shared[0] = 0x03
                shared[0] = 0x07

        with other_self(change):
            for _ in range(3000):
                vfio.pwrite(container.device, ctypes.addressof(value), 1, at)
                equal("masters, and by the register", masters(),
                      masters_by_register(container))
        del value


@by_hand.test("I4", "two that set and clear it at once leave gate and register as one")
def racing(address):
    rounds = 500
    with mapped_container(address) as container:
        at = container.region(vfio.CONFIG_REGION)[1] + vfio.COMMAND
        turn, done = 0, 1
        shared = mmap.mmap(-1, vfio.PAGE)

        def set_in_turn():
            for number in range(rounds):
                while shared[turn] == number % 256:
                    pass
                os.pwrite(container.device, b"\x07", at)
                shared[done] = shared[turn]

        with other_self(set_in_turn):
            for number in range(rounds):
                shared[turn] = (number + 1) % 256
                os.pwrite(container.device, b"\x03", at)
                while shared[done] != shared[turn]:
                    pass
                equal("masters, and by the register", masters(),
                      masters_by_register(container))


@by_hand.test("I4", "a device that is closed while it masters the bus opens behind a closed gate")
def reopened(address):
    with deferred_container(address) as container:
        equal("written", container.set_master(True), 2)
        equal("masters", masters(), 1)
        container.reopen_device(address)
        equal("masters", (masters(), masters_by_register(container)), (0, 0))
        equal("written", container.set_master(True), 2)
        equal("masters", (masters(), masters_by_register(container)), (1, 1))


@by_hand.test("I4", "a device waits for the memory of all containers of its VM")
def two_containers(address):
    other = host.find_device(host.NVME)
    with deferred_container(address) as first, vfio.memory_for(SIZE) as ram, \
         contextlib.closing(vfio.Container(other)) as second:
        equal("map", second.map(IOVA + SIZE, SIZE, ram), 0)
        equal("deferred_bytes", bed.stat(os.getpid(), "deferred_bytes"), 2 * SIZE)
        equal("written", second.set_master(True), 2)
        equal("unmapped_bytes", bed.stat(os.getpid(), "unmapped_bytes"), 0)
        equal("written", first.set_master(True), 2)
        equal("masters", masters(), 2)
        equal("gate_trips", bed.stat(os.getpid(), "gate_trips"), 1)


@by_hand.test("I4", "a group that leaves and comes back starts behind a closed gate")
def group_returns(address):
    other = host.find_device(host.NVME)
    with deferred_container(address) as container:
        for trips in (1, 1):
            equal("attach", container.attach(other), 0)
            with contextlib.closing(container.open_attached(other)) as device:
                equal("masters", (masters(), masters_by_register(device)), (0, 0))
                equal("written", device.set_master(True), 2)
                equal("masters", (masters(), masters_by_register(device)), (1, 1))
                equal("gate_trips", bed.stat(os.getpid(), "gate_trips"), trips)
            equal("masters", masters(), 0)
            container.detach()
        equal("unmapped_bytes", bed.stat(os.getpid(), "unmapped_bytes"), 0)


@by_hand.test("I4", "a reset of a device, which restores the bit, leaves the gate open")
def device_reset(_):
    with deferred_container(host.find_device(host.NVME)) as container:
        equal("written", container.set_master(True), 2)
        equal("reset", container.reset_device(), 0)
        equal("masters", (masters(), masters_by_register(container)), (1, 1))
        equal("written", container.set_master(False), 2)
        equal("reset", container.reset_device(), 0)
        equal("masters", (masters(), masters_by_register(container)), (0, 0))


@by_hand.test("I4", "the bit that is cleared in D3 may come back, so the gate stays open")
def power_state(_):
    with deferred_container(host.find_device(host.NVME)) as container:
        equal("written", container.set_master(True), 2)
        equal("D3", container.set_power(3), 2)
        equal("written", container.set_master(False), 2)
        equal("masters", masters(), 1)
        equal("D0", container.set_power(0), 2)
        equal("written", container.set_master(False), 2)
        equal("masters", (masters(), masters_by_register(container)), (0, 0))


def in_child(function):
    """What a child process answers, a small number or a negative errno."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        result = -1
        with contextlib.suppress(BaseException):
            result = function()
        os.write(writer, str(result).encode())
        os._exit(0)
    os.close(writer)
    answer = os.read(reader, 100)
    os.close(reader)
    os.waitpid(child, 0)
    return int(answer)


@by_hand.test("I4", "another process that was given the device meets the same gate")
def other_process(address):
    with deferred_container(address) as container:
        equal("written", in_child(lambda: container.set_master(True)), 2)
        equal("unmapped_bytes", bed.stat(os.getpid(), "unmapped_bytes"), 0)
        equal("masters", (masters(), masters_by_register(container)), (1, 1))


@by_hand.test("I7", "what another process maps is its own memory, mapped at once")
def other_memory(address):
    def map_own():
        ram = vfio.memory(bed.MIB)
        before = bed.pages_pinned()
        if container.map(IOVA + SIZE, bed.MIB, ram):
            return -1
        return bed.pages_pinned() - before

    with deferred_container(address) as container:
        equal("pages pinned by its map", in_child(map_own), bed.MIB // vfio.PAGE)
        equal("deferred_bytes", bed.stat(os.getpid(), "deferred_bytes"), SIZE)
