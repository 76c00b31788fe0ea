# SPDX-License-Identifier: GPL-2.0-only
"""Guests that do not speak our protocol are mapped in full before a device can
touch their memory, or in the background when the time is up (I4)."""

import bed
import guest
import host
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


@stock_driver.test("I4", "all is mapped before the driver is let go on")
def mapped_first(vm):
    equal("deferred_bytes", bed.stat(vm.pid, "deferred_bytes"), bed.HIGH)
    equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), 0)
    equal("messages", bed.stat(vm.pid, "messages"), 0)


@stock_driver.test("I4", "the driver works, the device meets an open gate, and DMA arrives")
def dma(vm):
    vm.wait_line("L2: ready", bed.BOOT)
    vm.check("ls -d /sys/bus/virtio/drivers/virtio_balloon/virtio*")
    equal("gate_trips", bed.stat(vm.pid, "gate_trips"), 0)
    Edu(vm).expect_all(4)


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
