# SPDX-License-Identifier: GPL-2.0-only
"""L1 as a host of VMs: modules, devices for assignment, counters, kernel log."""

import functools
import os
import re
import subprocess
from pathlib import Path

# What vm.py --device offers, as vendor:device.
E1000E = "8086:10d3"
EDU = "1234:11e8"
IGB = "8086:10c9"
NVME = "1b36:0010"

MODULE = "vfio_iommu_deferred"
MODULE_FILE = Path(f"/payload/{MODULE}.ko")
KNOBS = Path(f"/sys/kernel/{MODULE}")
BALLOON_NAME = "balloon0"
DEVICES = Path("/sys/bus/pci/devices")


def run(*command):
    """Runs a program, raises with its output if it fails, returns its output."""
    done = subprocess.run([str(word) for word in command], text=True, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: status "
                           f"{done.returncode}: {done.stdout.strip()}")
    return done.stdout


def is_loaded(module):
    return Path(f"/sys/module/{module.replace('-', '_')}").exists()


# A VM that is there as long as this program, with a processor that never runs and whose
# local APIC, as after its reset, is disabled. KVM_CREATE_VM, KVM_CREATE_IRQCHIP and
# KVM_CREATE_VCPU of <linux/kvm.h>.
HOLD_KVM = """
import fcntl, os, sys
vm = fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR), 0xae01, 0)
fcntl.ioctl(vm, 0xae60, 0)
fcntl.ioctl(vm, 0xae41, 0)
sys.stdin.read()
"""


@functools.cache
def load_kvm():
    """Loads KVM for the processor that L1 has, and keeps it in use: with its first VM and
    after its last, it has the scheduler patched, and itself with the first local APIC that
    is disabled (kvm_apic_sw_enabled(), arch/x86/kvm/lapic.h), which is one at each boot. An
    emulated processor executes the breakpoint of such a patch at times when it is long
    gone."""
    amd = re.search(r"^flags\s.*\bsvm\b", Path("/proc/cpuinfo").read_text(), re.M)
    run("modprobe", "kvm-amd" if amd else "kvm-intel")
    return subprocess.Popen(["python3", "-c", HOLD_KVM], stdin=subprocess.PIPE)


def load_deferred(options=()):
    """Loads our host module and makes its balloon device, unless that is done.

    options  words for insmod: parameters of the module
    """
    run("modprobe", "-a", "vfio-pci", "vdpa", "vhost-vdpa")
    if not is_loaded(MODULE):
        run("insmod", MODULE_FILE, *options)
    if not Path(f"/sys/bus/vdpa/devices/{BALLOON_NAME}").exists():
        run("vdpa", "dev", "add", "name", BALLOON_NAME, "mgmtdev", MODULE)


def unload_deferred():
    """Unloads our host module, if it is loaded."""
    if Path(f"/sys/bus/vdpa/devices/{BALLOON_NAME}").exists():
        run("vdpa", "dev", "del", BALLOON_NAME)
    if is_loaded(MODULE):
        run("rmmod", MODULE)


def find_devices(ident):
    """The PCI addresses of all devices given as vendor:device."""
    vendor, device = (int(part, 16) for part in ident.split(":"))
    return [path.name for path in sorted(DEVICES.iterdir())
            if int((path / "vendor").read_text(), 16) == vendor
            and int((path / "device").read_text(), 16) == device]


def find_device(ident):
    """The PCI address of the first of them."""
    found = find_devices(ident)
    if not found:
        raise RuntimeError(f"L1 has no PCI device {ident}: see vm.py --device")
    return found[0]


def bind_to_vfio(ident=EDU, address=None):
    """Binds a device to vfio-pci, the first or that at an address; returns its PCI
    address."""
    run("modprobe", "vfio-pci")
    address = address or find_device(ident)
    path = DEVICES / address
    driver = path / "driver"
    if driver.exists() and driver.resolve().name == "vfio-pci":
        return address
    (path / "driver_override").write_text("vfio-pci\n")
    if driver.exists():
        (driver / "unbind").write_text(address)
    Path("/sys/bus/pci/drivers_probe").write_text(address)
    if not driver.exists():
        raise RuntimeError(f"{address} was not bound to vfio-pci: see dmesg")
    return address


def knob(name):
    """Reads an attribute of our module, by its path below the module's kobject."""
    return (KNOBS / name).read_text().strip()


def set_knob(name, value):
    (KNOBS / name).write_text(f"{value}\n")


def knobs():
    """All attributes that can be read, {path: text}."""
    found = {}
    for path in sorted(KNOBS.rglob("*")):
        if path.is_file() and os.access(path, os.R_OK):
            try:
                found[str(path.relative_to(KNOBS))] = path.read_text().strip()
            except OSError:
                continue
    return found


def vmstat(prefix=""):
    """/proc/vmstat's counters whose names start with a prefix."""
    rows = (line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return {name: int(value) for name, value in rows if name.startswith(prefix)}


def pages_pinned():
    """Pages that are pinned at this moment, in the whole of L1."""
    counters = vmstat("nr_foll_pin_")
    return counters["nr_foll_pin_acquired"] - counters["nr_foll_pin_released"]


class KernelLog:
    """L1's kernel log from the moment of creation on."""

    # Repeated faults are compressed: their count is a lower bound.
    FAULT = re.compile(r"DMAR: .*(fault|PTE (Read|Write) access is not set)", re.I)

    def __init__(self):
        self._file = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self._file, 0, os.SEEK_END)
        self.lines = []

    def update(self):
        """Reads what was logged since; returns all lines so far."""
        while True:
            try:
                record = os.read(self._file, 8192).decode(errors="replace")
            except BlockingIOError:
                return self.lines
            except BrokenPipeError:
                self.lines.append("(records were lost)")
                continue
            self.lines.append(record.partition(";")[2].split("\n")[0])

    def matching(self, pattern):
        regex = re.compile(pattern)
        return [line for line in self.update() if regex.search(line)]

    def faults(self):
        """Lines that report a device's DMA to an address that is not mapped."""
        return [line for line in self.update() if self.FAULT.search(line)]

    def mark(self):
        """Forgets all so far: the next lines are what comes after."""
        self.update()
        self.lines = []
