# SPDX-License-Identifier: GPL-2.0-only
"""A kernel that follows another in the same VM without a reset of the machine, while
the balloon is full and a device masters the bus (I4): kexec, and a crash kernel."""

from types import SimpleNamespace

import bed
import guest
from edu import PAGE, Edu
from tap import at_least, equal, group

# Pages that no kernel uses and the balloon does not have.
FIRST = bed.START
RESERVED = f"memmap=2M${bed.START:#x}"


def successor():
    """Files with which one L2 can boot another: its kernel, and an initramfs with
    modules that its init does not insert."""
    files = {"lib/modules/edu_dma.ko": bed.EDU_DRIVER,
             f"lib/modules/{bed.DRIVER_NAME}.ko": bed.DRIVER}
    return {"vmlinuz": guest.KERNEL, "bin/kexec_into": "/payload/kexec_into",
            "second.cpio": guest.l2_image(files=files)}


def start(cmdline=""):
    """A VM with a full balloon and a device that masters the bus."""
    vm = guest.Guest("deferred", bed.MEMORY, modules=[bed.DRIVER, bed.EDU_DRIVER],
                     files=successor(), cmdline=f"{RESERVED} {cmdline}")
    vm.wait_line("L2: ready", bed.BOOT)
    vm.console.wait_text("L2: ready\n", bed.BOOT)
    return vm


def load(vm, kind, cmdline=""):
    vm.check(f"kexec_into {kind} /vmlinuz /second.cpio "
             f"'{guest.CMDLINE} {RESERVED} {cmdline}'")


def follow(vm, command):
    """Ends the kernel by a command, and waits for the next one."""
    vm.send(command)
    vm.console.wait_text("L2: ready\n", bed.BOOT)


@group("a kernel without a balloon driver, by kexec from one with a full balloon")
def kexec():
    guest.prepare("deferred")
    with bed.knobs_set(hold=1, fallback_timeout_ms=86_400_000), start() as vm:
        load(vm, "load")
        yield SimpleNamespace(vm=vm, pid=vm.pid)
        vm.quit()


@kexec.test("I4", "the balloon is full, and a device masters the bus")
def before(it):
    at_least("ballooned_bytes", bed.stat(it.pid, "ballooned_bytes"), bed.HIGH // 2)
    equal("masters", bed.stat(it.pid, "masters"), 1)


@kexec.test("I4", "negative control: without the gate the next kernel loses DMA")
def control(it):
    with bed.knobs_set(gate=0):
        follow(it.vm, "kexec_into go")
        at_least("unmapped_bytes", bed.stat(it.pid, "unmapped_bytes"), bed.HIGH // 2)
        it.vm.check("insmod /lib/modules/edu_dma.ko", 120)
        unmapped = [row for row in bed.extents(it.pid) if row[2] != "mapped"]
        edu = Edu(it.vm)
        # The allocator gives what was never in the balloon first.
        pages = edu.alloc((bed.HIGH - bed.stat(it.pid, "unmapped_bytes")) // PAGE + 1024)
        lost = [gpa for gpa in pages if any(start <= gpa < end for start, end, _ in unmapped)]
        at_least("pages that are not mapped", len(lost), 1)
        with bed.provoked_fault():
            at_least("wrong bytes", sum(edu.wrong_bytes(lost[0])), 4096)
        it.vm.check("rmmod edu_dma")


@kexec.test("I4", "with it, its driver waits until all is mapped, and DMA arrives")
def gated(it):
    it.vm.check("insmod /lib/modules/edu_dma.ko", 120)
    equal("gate_trips", bed.stat(it.pid, "gate_trips"), 1)
    equal("unmapped_bytes", bed.stat(it.pid, "unmapped_bytes"), 0)
    Edu(it.vm).expect_all(8)


@kexec.test("I4", "a balloon driver that comes now finds nothing to do")
def driver_after(it):
    it.vm.check(f"insmod /lib/modules/{bed.DRIVER_NAME}.ko")
    equal("the driver's ballooned_bytes", bed.driver(it.vm, "ballooned_bytes"), 0)
    Edu(it.vm).expect_all(2)


@group("a crash kernel, from one with a full balloon")
def kdump():
    guest.prepare("deferred")
    with bed.knobs_set(hold=1, fallback_timeout_ms=86_400_000), \
         start("crashkernel=256M") as vm:
        load(vm, "panic", "nr_cpus=1 reset_devices")
        bed.provoked_panic(vm)
        pid = vm.pid
        inside = [row for row in bed.extents(pid) if "Balloon" in row[2]][-1][1] - PAGE
        follow(vm, "echo c >/proc/sysrq-trigger")
        yield SimpleNamespace(vm=vm, pid=pid, inside=inside)
        vm.quit()


@kdump.test("I4", "its bus of the balloon has reset it: all was mapped before it went on")
def mapped_by_reset(it):
    equal("unmapped_bytes", bed.stat(it.pid, "unmapped_bytes"), 0)
    equal("gate_trips", bed.stat(it.pid, "gate_trips"), 0)
    equal("fallbacks", bed.stat(it.pid, "fallbacks"), 0)
    equal("masters", bed.stat(it.pid, "masters"), 1)


@kdump.test("I4", "DMA arrives in its own memory, and in what the old one used and had in its balloon")
def dma_crash(it):
    it.vm.check("insmod /lib/modules/edu_dma.ko", 60)
    Edu(it.vm).expect_dma(FIRST, it.inside)


@kdump.test("I4", "a balloon driver finds nothing to do")
def driver_in_crash_kernel(it):
    it.vm.check(f"insmod /lib/modules/{bed.DRIVER_NAME}.ko", 120)
    equal("the driver's ballooned_bytes", bed.driver(it.vm, "ballooned_bytes"), 0)
