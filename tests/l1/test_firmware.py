# SPDX-License-Identifier: GPL-2.0-only
"""Firmware that uses assigned devices (I4): safe whatever it does; and, with the
knob `firmware`, not held up by memory that it does not use.

SeaBIOS runs here. Of OVMF, which runs in test_edk2.py, there is what it was seen to do
with PCI_COMMAND, and in what state it hands devices over."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import bed
import guest
import host
import vfio
from edu import Edu
from tap import at_least, equal, eventually, group
from test_gate import IOVA, SIZE, deferred_container, masters_by_register

# Prints a line to the serial port and stops.
BOOTED = "L2: booted"
BOOT_SECTOR = (
    b"\xbe\x15\x7c"             # mov $text, %si
    b"\x31\xc0\x8e\xd8"         # xor %ax, %ax; mov %ax, %ds
    b"\xba\xf8\x03"             # mov $0x3f8, %dx
    b"\xac\x84\xc0\x74\x03"     # 1: lodsb; test %al, %al; jz 2f
    b"\xee\xeb\xf8"             # out %al, %dx; jmp 1b
    b"\xf4\xeb\xfd"             # 2: hlt; jmp 2b
    + BOOTED.encode() + b"\n\0").ljust(510, b"\0") + b"\x55\xaa"

# OVMF 2025.02 and a disk that it boots from: from reset until it hands over, with
# bus mastering on. "r" reads the register, "t" touches the device, "b" writes all ones to
# its first BAR and puts back what was there; the rest are writes.
OVMF = "r 0 r r 0 r r 0 r 27 r 0 r 0 r 3 r 3 r 0 r r 7 t r r 7 r r 7 r 7 r"
# The same and a device that it does not drive.
PRESENT = OVMF.replace(" t", "")
# Linux that finds the device so.
ENUMERATION = "r 407 r 7 r 4 b 7 r"


# SeaBIOS drives no disk whose BAR is above 4 GiB, which is where it puts 64-bit BARs
# of VMs with memory there, unless the processor cannot address much.
SMALL = ("-cpu", "host,host-phys-bits-limit=35", "-global", "q35-pcihost.pci-hole64-size=1G")


def write_disk(data):
    """Puts data on the nvme disk, by L1's own driver; returns its address."""
    address = host.find_device(host.NVME)
    path = host.DEVICES / address
    driver = path / "driver"
    if driver.exists():
        (driver / "unbind").write_text(address)
    host.run("modprobe", "nvme")
    (path / "driver_override").write_text("nvme\n")
    Path("/sys/bus/pci/drivers_probe").write_text(address)
    disk = eventually("the disk is there", lambda: list(Path("/dev").glob("nvme0n1")))[0]
    with open(disk, "r+b", buffering=0) as file:
        file.write(data)
        os.fsync(file)
    (driver / "unbind").write_text(address)
    return host.bind_to_vfio(host.NVME)


def boot_mapped(vm, timeout=bed.BOOT):
    """Firmware boots from an assigned device, before which everything is mapped."""
    vm.console.wait(BOOTED, timeout)
    equal("gate_trips", bed.stat(vm.pid, "gate_trips"), 1)
    equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), 0)
    equal("firmware_passes", bed.stat(vm.pid, "firmware_passes"), 0)
    equal("masters", bed.stat(vm.pid, "masters"), 1)
    vm.quit()


def boot_early(vm, timeout=bed.BOOT, trips=0):
    """Firmware boots from an assigned device, for which nothing is mapped above 4 GiB. Has
    to wait so many times."""
    vm.console.wait(BOOTED, timeout)
    at_least("firmware_passes", bed.stat(vm.pid, "firmware_passes"), 1)
    equal("gate_trips", bed.stat(vm.pid, "gate_trips"), trips)
    equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), bed.HIGH)
    equal("masters", bed.stat(vm.pid, "masters"), 0)
    vm.quit()


@group("VMs whose firmware boots from an assigned disk")
def disk():
    guest.prepare("deferred")
    address = write_disk(BOOT_SECTOR)
    with bed.knobs_set(fallback_timeout_ms=86_400_000):
        yield lambda: guest.Guest("deferred", bed.MEMORY, kernel=False, args=SMALL,
                                  devices=[f"{address},bootindex=0"])


@disk.test("I4", "by default everything is mapped before firmware may drive the disk")
def strict(new):
    with new() as vm:
        boot_mapped(vm)


@disk.test("I4", "with the knob it boots from the disk with nothing mapped above 4 GiB")
def early(new):
    with bed.knobs_set(firmware=1), new() as vm:
        boot_early(vm)


@disk.test("I4", "with low memory deferred, too, that is mapped for firmware, and no more")
def early_low(new):
    with bed.knobs_set(firmware=1, threshold_mib=0), new() as vm:
        boot_early(vm, trips=1)


@disk.test("I4", "a VM that stays in its firmware is mapped when the time is up")
def stays(new):
    with bed.knobs_set(firmware=1, fallback_timeout_ms=3000), new() as vm:
        vm.console.wait(BOOTED, bed.BOOT)
        bed.wait_mapped(vm.pid)
        equal("fallbacks", bed.stat(vm.pid, "fallbacks"), 1)
        vm.quit()


@group("VMs with an assigned network card whose option ROM drives it")
def card():
    guest.prepare("deferred", host.E1000E)
    # Which the card's network serves as a file.
    (guest.RESULTS / "boot").write_bytes(BOOT_SECTOR)
    with bed.knobs_set(fallback_timeout_ms=86_400_000):
        yield lambda **options: guest.Guest("deferred", bed.MEMORY, **options,
                                            devices=[host.find_device(host.E1000E)])


@card.test("I4", "by default everything is mapped before the ROM may drive the card")
def rom_strict(new):
    with new(kernel=False) as vm:
        boot_mapped(vm)


@card.test("I4", "with the knob it boots from the network with nothing mapped above 4 GiB")
def rom_early(new):
    with bed.knobs_set(firmware=1), new(kernel=False) as vm:
        boot_early(vm)


@card.test("I4", "one that nothing is booted from holds up nobody: nothing is mapped "
                 "above 4 GiB when L2's kernel starts")
def rom_idle(new):
    with new() as vm:
        vm.wait_line("Linux version", bed.BOOT)
        equal("gate_trips", bed.stat(vm.pid, "gate_trips"), 0)
        equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), bed.HIGH)
        vm.quit()


@group("a system after firmware that has driven an assigned disk, without a balloon driver")
def system():
    guest.prepare("deferred")
    disk_address = write_disk(BOOT_SECTOR)
    host.bind_to_vfio(host.EDU)
    modules = ["nvme-core", "nvme"]
    files = {f"lib/modules/{path.name.removesuffix('.xz')}": path
             for name in modules for path in guest.initramfs.resolve([name], guest.KVER)}
    with bed.knobs_set(firmware=1, fallback_timeout_ms=86_400_000), \
         guest.Guest("deferred", bed.MEMORY,
                     files=files | {"lib/modules/edu_dma.ko": bed.EDU_DRIVER}, args=SMALL,
                     devices=[f"{disk_address},bootindex=1", host.find_device(host.EDU)]) as vm:
        vm.wait_line("L2: ready", bed.BOOT)
        yield vm, [name for name in files if "edu" not in name]
        vm.quit()


# The low byte of PCI_COMMAND of the device of a class.
MASTER_BIT = """
for device in /sys/bus/pci/devices/*; do
    [ "$(cat $device/class)" != {} ] || od -An -tu1 -j4 -N1 $device/config
done"""


@system.test("I4", "firmware has driven the disk, and the disk masters the bus no longer")
def taken_away(it):
    vm, _ = it
    at_least("firmware_passes", bed.stat(vm.pid, "firmware_passes"), 1)
    equal("gate_trips", bed.stat(vm.pid, "gate_trips"), 0)
    equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), bed.HIGH)
    equal("bus-master bit", int(vm.check(MASTER_BIT.format("0x010802"))) & vfio.MASTER, 0)


@system.test("I4", "the disk's driver has to ask for it, and waits until everything is mapped")
def asks_again(it):
    vm, modules = it
    for module in modules:
        vm.check(f"insmod /{module}", 120)
    equal("gate_trips", bed.stat(vm.pid, "gate_trips"), 1)
    equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), 0)
    equal("masters", bed.stat(vm.pid, "masters"), 1)


@system.test("I4", "and then DMA arrives: the disk's, and edu's above 4 GiB")
def arrives(it):
    vm, _ = it
    text = vm.check("while ! [ -b /dev/nvme0n1 ]; do sleep 0.2; done; "
                    "dd if=/dev/nvme0n1 bs=512 count=1 2>/dev/null | strings", 60)
    equal("the disk's text", BOOTED in text, True)
    vm.check("insmod /lib/modules/edu_dma.ko", 60)
    Edu(vm).expect_all(4)


@group("what OVMF and Linux do, by hand")
def ovmf():
    guest.prepare("deferred")
    with bed.knobs_set(fallback_timeout_ms=86_400_000, chunk_mib=64):
        yield host.find_device(host.EDU)


# In config space.
BAR0 = 0x10


def replay(container, trace):
    for word in trace.split():
        if word == "r":
            container.command()
        elif word == "t":
            container.touch()
        elif word == "b":
            before = container.config_read(BAR0, 4)
            equal("sizing", container.config_write(BAR0, b"\xff" * 4), 4)
            equal("putting back", container.config_write(BAR0, before), 4)
        else:
            equal(f"writing {word}", container.set_command(int(word, 16)), 2)


def process_start():
    """When this process was started, by CLOCK_BOOTTIME in seconds."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def own(name):
    return bed.stat(os.getpid(), name)


@ovmf.test("I4", "by default OVMF is held up until everything is mapped")
def ovmf_strict(address):
    with deferred_container(address) as container:
        replay(container, OVMF)
        equal("unmapped_bytes", own("unmapped_bytes"), 0)
        equal("gate_trips", own("gate_trips"), 1)
        equal("masters", own("masters"), 1)


@ovmf.test("I4", "with the knob it is not; what it leaves on is taken away by the enumeration")
def ovmf_early(address):
    with bed.knobs_set(firmware=1), deferred_container(address) as container:
        replay(container, OVMF)
        equal("gate_trips", own("gate_trips"), 0)
        equal("unmapped_bytes", own("unmapped_bytes"), SIZE)
        equal("firmware_passes", own("firmware_passes"), 1)
        equal("the bit by the register", masters_by_register(container), 1)
        replay(container, ENUMERATION)
        equal("the bit by the register", masters_by_register(container), 0)
        equal("unmapped_bytes", own("unmapped_bytes"), SIZE)
        equal("written", container.set_master(True), 2)
        equal("gate_trips", own("gate_trips"), 1)
        equal("unmapped_bytes", own("unmapped_bytes"), 0)
        equal("the bit by the register", masters_by_register(container), 1)


@ovmf.test("I4", "a device that it does not drive costs nothing, with the knob or without; what "
                 "it asked is forgotten at the enumeration, and what quirks touch then does not "
                 "wait")
def ovmf_present(address):
    for knob in (0, 1):
        with bed.knobs_set(firmware=knob), deferred_container(address) as container:
            replay(container, PRESENT)
            equal("asked", own("asked"), 1)
            equal("the bit by the register", masters_by_register(container), 0)
            equal("the bit that is shown", container.command() & vfio.MASTER, vfio.MASTER)
            replay(container, ENUMERATION)
            equal("asked", own("asked"), 0)
            equal("the bit that is shown", container.command() & vfio.MASTER, 0)
            container.touch()
            equal("gate_trips", own("gate_trips"), 0)
            equal("unmapped_bytes", own("unmapped_bytes"), SIZE)
            equal("written", container.set_master(True), 2)
            equal("unmapped_bytes", own("unmapped_bytes"), 0)
            equal("the bit by the register", masters_by_register(container), 1)


@ovmf.test("I4", "negative control: a system that does not enumerate goes on with the bit")
def ovmf_control(address):
    """What the knob costs, as Documentation/design.md says."""
    with bed.knobs_set(firmware=1), deferred_container(address) as container:
        replay(container, OVMF)
        equal("the bit by the register", masters_by_register(container), 1)
        equal("unmapped_bytes", own("unmapped_bytes"), SIZE)
        equal("masters", own("masters"), 0)


@ovmf.test("I4", "the phase is over for all devices of the VM, and for those to come")
def ovmf_over(address):
    other = host.bind_to_vfio(host.NVME)
    with bed.knobs_set(firmware=1), deferred_container(address) as container:
        replay(container, OVMF)
        replay(container, ENUMERATION)
        equal("attach", container.attach(other), 0)
        with contextlib.closing(container.open_attached(other)) as device:
            equal("written", device.set_master(True), 2)
            equal("gate_trips", own("gate_trips"), 1)
            equal("unmapped_bytes", own("unmapped_bytes"), 0)


@ovmf.test("I4", "a balloon driver ends the phase as well, without any enumeration")
def ovmf_driver(address):
    with bed.knobs_set(firmware=1), deferred_container(address) as container:
        replay(container, OVMF)
        # VIRTIO_BALLOON_F_DEFERRED, VIRTIO_F_VERSION_1, VIRTIO_F_ACCESS_PLATFORM.
        equal("answers", container.balloon_driver(1 << 23 | 1 << 32 | 1 << 33), [0] * 5)
        equal("the bit by the register", masters_by_register(container), 0)
        equal("unmapped_bytes", own("unmapped_bytes"), SIZE)
        equal("written", container.set_master(True), 2)
        equal("unmapped_bytes", own("unmapped_bytes"), 0)


# What a process without a balloon does that has a device from its start.
NEWCOMER = """
import sys, bed, stall, test_firmware, vfio
# Not all of it is mapped in the background before the device is used.
with stall.Stall(test_firmware.SIZE - vfio.PAGE) as memory:
    container = vfio.Container(sys.argv[1])
    assert container.map(test_firmware.IOVA, test_firmware.SIZE, memory.start) == 0
    test_firmware.replay(container, test_firmware.OVMF)
    print(test_firmware.own("firmware_passes"), test_firmware.own("masters"))
    memory.go_on()
    container.close()
"""


def newcomer(address):
    """firmware_passes and masters, as the process sees them."""
    path = os.pathsep.join((os.path.dirname(__file__), *sys.path))
    output = subprocess.run([sys.executable, "-c", NEWCOMER, address], check=True, text=True,
                            stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path})
    return [int(word) for word in output.stdout.split()]


@ovmf.test("I4", "a VM that gets its first device late has no firmware phase")
def ovmf_late(address):
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - process_start()
    # Of this process, which is the VM: it is the suite's.
    time.sleep(max(0, 61 - age))
    with bed.knobs_set(firmware=1, policy="gate"), vfio.memory_for(SIZE) as ram, \
         contextlib.closing(vfio.Container(address)) as container:
        equal("map", container.map(IOVA, SIZE, ram), 0)
        replay(container, OVMF)
        equal("firmware_passes, masters", (own("firmware_passes"), own("masters")), (0, 1))
        equal("unmapped_bytes", own("unmapped_bytes"), 0)


@ovmf.test("I4", "negative control: one that has it from its start does")
def ovmf_newcomer(address):
    with bed.knobs_set(firmware=1, policy="gate"):
        passes, masters = newcomer(address)
        at_least("firmware_passes", passes, 1)
        equal("masters", masters, 0)


@ovmf.test("I5", "while firmware drives a device, what is mapped is mapped at once")
def ovmf_maps(address):
    with bed.knobs_set(firmware=1), vfio.memory_for(bed.MIB) as ram, \
         deferred_container(address) as container:
        replay(container, OVMF)
        equal("map", container.map(IOVA + SIZE, bed.MIB, ram), 0)
        equal("unmapped_bytes", own("unmapped_bytes"), SIZE)
        equal("deferred_bytes", own("deferred_bytes"), SIZE)
