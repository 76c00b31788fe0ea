# SPDX-License-Identifier: GPL-2.0-only
"""OVMF, in an L2 that QEMU emulates: it does not run where KVM itself is emulated
(QEMU 10.0 and 11.1 abort on its first write to CR8 there). Slow: a part of the stress
tests, or `tests/run.py host -- edk2`."""

import shutil

import bed
import efi
import guest
import host
from edu import Edu
from tap import at_least, equal, group
from test_firmware import BOOTED, boot_early, boot_mapped, write_disk

FIRMWARE = "/usr/share/OVMF/OVMF_CODE_4M.fd"
VARIABLES = "/usr/share/OVMF/OVMF_VARS_4M.fd"

# Seconds: an emulated L2 in an emulated L1 boots within this time.
BOOT = 600


@group("VMs with OVMF and an assigned disk")
def edk2():
    guest.prepare("deferred", host.NVME)
    address = write_disk(efi.disk(efi.program(BOOTED)))
    host.bind_to_vfio(host.EDU)

    def new(devices, **options):
        shutil.copy(VARIABLES, "/tmp/variables.fd")
        flash = "if=pflash,format=raw,unit="
        return guest.Guest("deferred", bed.MEMORY, devices=devices, stubborn=False,
                           emulated=True, **options,
                           args=("-drive", f"{flash}0,readonly=on,file={FIRMWARE}",
                                 "-drive", f"{flash}1,file=/tmp/variables.fd"))

    with bed.knobs_set(fallback_timeout_ms=86_400_000):
        yield address, new


@edk2.test("I4", "by default everything is mapped before it may drive the disk")
def strict(it):
    address, new = it
    with new([f"{address},bootindex=0"], kernel=False) as vm:
        boot_mapped(vm, BOOT)


@edk2.test("I4", "with the knob it boots from the disk with nothing mapped above 4 GiB")
def early(it):
    address, new = it
    with bed.knobs_set(firmware=1), new([f"{address},bootindex=0"], kernel=False) as vm:
        boot_early(vm, BOOT)


@edk2.test("I4", "with the knob and a disk that is merely there, nothing is mapped above 4 GiB "
                 "when L2's kernel starts, and DMA arrives when its drivers run")
def present(it):
    address, new = it
    with bed.knobs_set(firmware=1), \
         new([address, host.find_device(host.EDU)],
             modules=[bed.DRIVER, bed.EDU_DRIVER]) as vm:
        vm.wait_line("Linux version", BOOT)
        at_least("firmware_passes", bed.stat(vm.pid, "firmware_passes"), 1)
        equal("gate_trips", bed.stat(vm.pid, "gate_trips"), 0)
        equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), bed.HIGH)
        vm.wait_line("L2: ready", BOOT)
        equal("commits", bed.stat(vm.pid, "commits"), 1)
        Edu(vm).expect_all(4)
        bed.wait_mapped(vm.pid)
        vm.quit(120)
