# SPDX-License-Identifier: GPL-2.0-only
"""OVMF, which sets the bus-master bit of every device and leaves it set for the system:
what boots from an assigned disk, and what boots beside assigned devices (I4).

Beside means that OVMF has no driver for a device, or no use for it: it enables the device
and never touches its BARs."""

import bed
import efi
import guest
import host
from edu import Edu
from tap import at_least, equal, eventually, group
from test_firmware import BOOTED, boot_early, boot_mapped, write_disk


@group("VMs with OVMF")
def edk2():
    guest.prepare("deferred", host.NVME)
    disk = write_disk(efi.disk(efi.program(BOOTED)))
    edu = host.bind_to_vfio(host.EDU)

    def new(*devices, **options):
        return guest.Guest("deferred", bed.MEMORY, devices=devices, firmware="uefi", **options)

    with bed.knobs_set(fallback_timeout_ms=86_400_000):
        yield disk, edu, new


@edk2.test("I4", "by default everything is mapped before it may drive the disk that it boots "
                 "from")
def strict(it):
    disk, _, new = it
    with new(f"{disk},bootindex=0", kernel=False) as vm:
        boot_mapped(vm)


@edk2.test("I4", "with the knob it boots from the disk with nothing mapped above 4 GiB")
def early(it):
    disk, _, new = it
    with bed.knobs_set(firmware=1), new(f"{disk},bootindex=0", kernel=False) as vm:
        boot_early(vm)


@edk2.test("I4", "a disk and edu that are beside it, with the knob or without: nothing is mapped "
                 "above 4 GiB when the system's kernel starts, and DMA arrives when its drivers "
                 "run")
def beside(it):
    disk, edu, new = it
    for knob in (0, 1):
        with bed.knobs_set(firmware=knob), \
             new(disk, edu, modules=[bed.DRIVER, bed.EDU_DRIVER],
                 stubborn=False) as vm:
            vm.wait_qmp()
            eventually("OVMF has enabled both", lambda: bed.stat(vm.pid, "asked") == 2,
                       bed.BOOT, pause=0.05)
            vm.wait_line("Linux version", bed.BOOT)
            equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), bed.HIGH)
            vm.wait_line("L2: ready", bed.BOOT)
            equal("asked", bed.stat(vm.pid, "asked"), 0)
            equal("gate_trips", bed.stat(vm.pid, "gate_trips"), 0)
            equal("firmware_passes", bed.stat(vm.pid, "firmware_passes"), 0)
            equal("commits", bed.stat(vm.pid, "commits"), 1)
            Edu(vm).expect_all(4)
            bed.wait_mapped(vm.pid)
            vm.quit()


@edk2.test("I4", "a system without a balloon driver, for which OVMF has left the bit set, has "
                 "everything mapped before its driver uses edu, and DMA arrives")
def without_driver(it):
    _, edu, new = it
    with new(edu, modules=[bed.EDU_DRIVER]) as vm:
        vm.wait_line("Linux version", bed.BOOT)
        equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), bed.HIGH)
        vm.wait_line("L2: ready", bed.BOOT)
        equal("gate_trips", bed.stat(vm.pid, "gate_trips"), 1)
        equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), 0)
        equal("commits", bed.stat(vm.pid, "commits"), 0)
        Edu(vm).expect_all(4)
        vm.quit()


@edk2.test("I4", "negative control: without the gate nothing is, and DMA is lost")
def without_gate(it):
    _, edu, new = it
    with bed.knobs_set(gate=0), new(edu, modules=[bed.EDU_DRIVER]) as vm:
        vm.wait_line("L2: ready", bed.BOOT)
        equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), bed.HIGH)
        found = Edu(vm)
        gpa = found.alloc(1)[0]
        with bed.provoked_fault():
            read, _ = found.wrong_bytes(gpa)
        at_least("wrong bytes read", read, 2048)
        vm.quit()
