# SPDX-License-Identifier: GPL-2.0-only
"""Guests that suspend with a full balloon. The kernel's own test of suspend is used,
which stops all devices and starts them again, and leaves the machine on."""

import bed
import guest
from edu import Edu
from tap import at_least, equal, group

# As far as it goes without switching anything off; and for how long, in seconds.
LEVEL = "devices"
DELAY = 1

# Seconds that it may take. The host has to map all memory meanwhile.
PATIENCE = 200


@group("a guest that suspends with a full balloon, a device of it at work")
def suspended():
    guest.prepare("deferred")
    with bed.knobs_set(hold=1, fallback_timeout_ms=86_400_000), \
         guest.Guest("deferred", bed.MEMORY, modules=[bed.DRIVER, bed.EDU_DRIVER],
                     # Not what an image is compressed with: none is written.
                     cmdline=f"suspend.pm_test_delay={DELAY} hibernate=nocompress") as vm:
        vm.wait_line("L2: ready", bed.BOOT)
        yield vm
        vm.quit()


def suspend(vm, state):
    """Suspends to `state` and comes back."""
    vm.check(f"echo {LEVEL} >/sys/power/pm_test && echo {state} >/sys/power/state", PATIENCE)
    equal("the driver's state", bed.driver(vm, "state"), "empty")
    equal("ballooned_bytes", bed.stat(vm.pid, "ballooned_bytes"), 0)
    equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), 0)
    equal("Balloon of meminfo", bed.meminfo(vm, "Balloon"), 0)


@suspended.test("I2", "to disk: the balloon is given back, mapped")
def disk(vm):
    at_least("ballooned_bytes before", bed.stat(vm.pid, "ballooned_bytes"), bed.HIGH * 3 // 4)
    equal("commits before", bed.stat(vm.pid, "commits"), 1)
    suspend(vm, "disk")
    # The reset has mapped all, since a device masters the bus.
    equal("commits", bed.stat(vm.pid, "commits"), 1)


@suspended.test("I1", "DMA arrives after that")
def dma(vm):
    Edu(vm).expect_all(8)


@suspended.test("I2", "to idle, with an empty balloon")
def idle(vm):
    suspend(vm, "freeze")
    Edu(vm).expect_all(2)
