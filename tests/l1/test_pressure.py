# SPDX-License-Identifier: GPL-2.0-only
"""Guests that need their memory at once: it comes back on demand, before anybody is
killed for it."""

import contextlib

import bed
import guest
import host
from edu import Edu
from tap import at_least, at_most, equal, eventually, group

TOUCH = "/payload/touch_memory"

# Of all memory; what is in the balloon is part of that.
PERCENT = 80

# Of a pool, next to another in a guest that is not quite the same.
ALIKE = 97

# Seconds that the guest may take to get back what nobody maps any more.
SOON = 60

# Seconds. The host has to clear all of it.
PATIENCE = 300


@contextlib.contextmanager
def vm_of(**options):
    with guest.Guest("deferred", bed.MEMORY, modules=[bed.DRIVER, bed.EDU_DRIVER],
                     files={"bin/touch_memory": TOUCH}, **options) as vm:
        vm.wait_line("L2: ready", bed.BOOT)
        # The report of a kill has a call trace, which is a complaint elsewhere.
        vm.check("dmesg -n 1")
        yield vm


def killed(vm):
    return int(vm.check("sed -n 's/^oom_kill //p' /proc/vmstat"))


def expect_memory(vm):
    """Takes it; nobody is killed."""
    wanted = bed.meminfo(vm, "MemTotal") // 100 * PERCENT
    status, output = vm.sh(f"touch_memory {PERCENT}", PATIENCE)
    equal("touch_memory's exit status", status, 0)
    at_least("MiB that it touched", int(output), wanted // bed.MIB - 1)
    equal("OOM kills", killed(vm), 0)


@group("a guest that needs 80 % of its memory, as soon as its balloon is full")
def eager():
    guest.prepare("deferred")
    with bed.knobs_set(fallback_timeout_ms=86_400_000), vm_of() as vm:
        yield vm


@eager.test("I2", "gets it, without an OOM kill")
def gets(vm):
    expect_memory(vm)
    equal("failures", bed.stat(vm.pid, "failures"), 0)


@group("the same, but nothing is mapped before it is asked for")
def pressed():
    guest.prepare("deferred")
    with bed.knobs_set(hold=1, premap=0, fallback_timeout_ms=86_400_000), vm_of() as vm:
        yield vm


@pressed.test("I2", "the balloon gives way to pressure alone")
def gives_way(vm):
    before = bed.stat(vm.pid, "ballooned_bytes")
    at_least("ballooned_bytes before", before, bed.HIGH * 3 // 4)
    equal("requests before", bed.driver(vm, "urgent_requests"), 0)
    expect_memory(vm)
    at_least("urgent requests", bed.driver(vm, "urgent_requests"), 1)
    at_least("misses", bed.stat(vm.pid, "misses"), 1)
    at_most("ballooned_bytes after", bed.driver(vm, "ballooned_bytes"),
            bed.meminfo(vm, "MemTotal") // 100 * (100 - PERCENT))
    equal("failures", bed.stat(vm.pid, "failures"), 0)


@pressed.test("I1", "what is out of it is mapped: DMA arrives")
def dma(vm):
    equal("outside and unmapped", [row for row in bed.extents(vm.pid) if "Outside" in row[2]], [])
    Edu(vm).expect_all(4)


@group("the same, but the host cannot map any more")
def starved():
    guest.prepare("deferred")
    with bed.knobs_set(hold=1, premap=0, fallback_timeout_ms=86_400_000), \
         vm_of(prefix=bed.may_lock(5 * bed.GIB)) as vm:
        bed.limit_locked(vm.pid, vm.memory()["VmLck"] * 1024)
        yield vm


@starved.test("I3", "the guest kills the program and runs on: the tests above can fail")
def kills(vm):
    status, _ = vm.sh(f"touch_memory {PERCENT}", PATIENCE)
    equal("touch_memory's exit status", status, 128 + 9)
    at_least("OOM kills", killed(vm), 1)
    at_least("failed deflates", bed.driver(vm, "failed_deflates"), 1)
    at_least("ballooned_bytes", bed.driver(vm, "ballooned_bytes"), bed.HIGH * 3 // 4)
    equal("outside and unmapped", [row for row in bed.extents(vm.pid) if "Outside" in row[2]], [])


@group("a pool of large pages is the first thing that user space wants of a full balloon")
def pooled():
    guest.prepare("deferred")
    with bed.knobs_set(hold=1, premap=0, fallback_timeout_ms=86_400_000):
        # Without our driver there is no balloon: everything is there.
        with guest.Guest("deferred", bed.MEMORY, modules=[bed.EDU_DRIVER]) as vm:
            vm.wait_line("L2: ready", bed.BOOT)
            control = pool(vm)
            vm.quit()
        with vm_of() as vm:
            yield vm, control


def pool(vm):
    """How many large pages there are when PERCENT of memory are wanted."""
    wanted = bed.meminfo(vm, "MemTotal") // 100 * PERCENT // (2 * bed.MIB)
    vm.check(f"echo {wanted} >/proc/sys/vm/nr_hugepages", PATIENCE)
    return int(vm.check("cat /proc/sys/vm/nr_hugepages"))


@pooled.test("I2", "it is as large as without a balloon")
def complete(given):
    vm, control = given
    held = bed.driver(vm, "ballooned_bytes")
    at_least("ballooned_bytes", held, bed.HIGH * 3 // 4)
    got = pool(vm)
    print(f"# {got} large pages, {control} without a balloon", flush=True)
    at_least("large pages without a balloon", control * 2 * bed.MIB, bed.LOW + held // 4)
    at_least("large pages", got, control * ALIKE // 100)
    at_least("urgent requests", bed.driver(vm, "urgent_requests"), 1)
    equal("failures", bed.stat(vm.pid, "failures"), 0)


@group("the last device is unplugged from a guest whose balloon is full")
def unplugged_full():
    guest.prepare("deferred")
    with bed.knobs_set(hold=1, premap=0, fallback_timeout_ms=86_400_000), \
         vm_of(prefix=("sh", "-c", 'exec "$0" -device pcie-root-port,id=socket "$@"'),
               devices=[f"{host.find_device(host.EDU)},bus=socket,id=assigned"]) as vm:
        at_least("ballooned_bytes", bed.driver(vm, "ballooned_bytes"), bed.HIGH * 3 // 4)
        vm.qmp.command("device_del", id="assigned")
        vm.qmp.wait_event("DEVICE_DELETED", timeout=60)
        yield vm


@unplugged_full.test("I3", "it gets all of its memory back")
def returned(vm):
    # The host asks for it; or it can not be told any more, and the device is reset.
    vm.check("echo 2 >/proc/sys/vm/drop_caches")
    eventually("the balloon is empty", lambda: bed.meminfo(vm, "Balloon") == 0, SOON)
    print(f"# state: {bed.driver(vm, 'state')}", flush=True)


@unplugged_full.test("I3", "and can use it")
def used(vm):
    expect_memory(vm)
