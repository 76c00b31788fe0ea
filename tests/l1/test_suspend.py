# SPDX-License-Identifier: GPL-2.0-only
"""Guests that suspend with a full balloon. The kernel's own test of suspend is used,
which stops all devices and starts them again, and leaves the machine on; and guests that
hibernate, and are back in another VM, whose kernel has filled a balloon by then."""

from pathlib import Path

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


# A guest that has no memory below 4 GiB to spare, either, and what it has in use.
SMALL = "1536M"
IN_USE = 600
SWAP = Path("/tmp/l2-swap")
DEVICE = "/dev/vda"


def small():
    """It, with a disk to swap to."""
    return guest.Guest("deferred", SMALL, modules=["virtio_blk", bed.DRIVER],
                       cmdline="hibernate=nocompress no_console_suspend",
                       args=("-drive", f"file={SWAP},format=raw,if=none,id=swap,cache=unsafe",
                             "-device", "virtio-blk-pci,drive=swap"))


def resume_from(vm):
    """What makes the kernel look for an image on the disk."""
    return f"echo $(cat /sys/block/{Path(DEVICE).name}/dev) >/sys/power/resume"


@group("a guest that hibernates, and is back in a VM whose balloon is full")
def hibernated():
    guest.prepare("deferred")
    with open(SWAP, "wb") as file:
        file.truncate(2 << 30)
    try:
        with bed.knobs_set(threshold_mib=0, hold=1, fallback_timeout_ms=86_400_000):
            with small() as vm:
                vm.wait_line("L2: ready", bed.BOOT)
                at_least("ballooned_bytes", bed.driver(vm, "ballooned_bytes"),
                         IN_USE * bed.MIB)
                vm.check(f"mkswap {DEVICE} && swapon {DEVICE} && mkdir /data && "
                         "mount -t tmpfs -o size=90% tmpfs /data")
                # Pages of zeroes would not be in the image.
                vm.check("dd if=/dev/urandom of=/data/0 bs=1M count=20 && "
                         f"for i in $(seq {IN_USE // 20}); do cat /data/0; done >/data/all",
                         PATIENCE)
                data = vm.check("md5sum </data/all", PATIENCE)
                vm.check(resume_from(vm))
                # What comes after that is said in the other VM.
                vm.send("echo shutdown >/sys/power/disk; echo disk >/sys/power/state; "
                        "echo L2: back >/dev/console")
                equal("QEMU's exit status", vm.wait_exit(PATIENCE), 0)
            with small() as vm:
                vm.wait_line("L2: ready", bed.BOOT)
                yield vm, data
    finally:
        SWAP.unlink()


@hibernated.test("I2", "the kernel that has booted has memory for the image")
def back(given):
    vm, data = given
    at_least("ballooned_bytes", bed.driver(vm, "ballooned_bytes"), IN_USE * bed.MIB)
    equal("what is there before", vm.check("ls /data 2>/dev/null || echo nothing"), "nothing")
    vm.send(resume_from(vm))
    vm.wait_line("L2: back", PATIENCE)
    equal("its data", vm.check("md5sum </data/all", PATIENCE), data)
    equal("the driver's state", bed.driver(vm, "state"), "empty")
    equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), 0)
