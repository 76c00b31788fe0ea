# SPDX-License-Identifier: GPL-2.0-only
"""What the tests in L1 share: VMs, what is known of them, and a clean host."""

import contextlib
import functools
import re
import resource
from pathlib import Path

import guest
import host
import tap
from tap import equal, eventually

GIB = 1 << 30
MIB = 1 << 20
DRIVER_NAME = "virtio_balloon_deferred"
DRIVER = f"/payload/{DRIVER_NAME}.ko"
EDU_DRIVER = "/payload/tests/guest/edu_dma.ko"

# An L2 has booted within this time, in seconds, on a machine however busy.
BOOT = 200

# Larger than what is below 4 GiB, which q35 makes 2 GiB of.
MEMORY = "4G"
LOW = 2 * GIB
HIGH = 2 * GIB
START = 4 * GIB
END = START + HIGH

# How often pages that are pinned are counted.
LOOKS = 3

# What no kernel log may show; where our modules mean it, tests say so.
COMPLAINT = re.compile(
    r"WARNING: |BUG: |kernel BUG at|Oops: |general protection fault|Unable to handle|"
    r"possible (circular|recursive) locking|suspicious RCU usage|"
    r"blocked for more than|soft lockup|rcu.*detected stalls|Kernel panic|"
    r"Unknown symbol|Call Trace:")

LOG = host.KernelLog()
_provoked = set()
_panicking = set()

# What sysrq-c makes a kernel print.
PANIC = re.compile(r"Kernel panic - not syncing: sysrq triggered crash|Call Trace:")


@contextlib.contextmanager
def provoked_fault():
    """What is done in here makes a device touch what is not mapped, and the IOMMU
    has to say so; its reports are no complaints then."""
    before = len(LOG.faults())
    yield
    faults = eventually("the IOMMU reports a fault",
                        lambda: LOG.faults()[before:], timeout=20)
    _provoked.update(id(line) for line in faults)


def provoked_panic(vm):
    """This L2 is going to be made to panic: what its kernel says then is no complaint."""
    _panicking.add(vm.name)


@contextlib.contextmanager
def provoked_oom():
    """What is done in here makes L1's kernel kill a process for its memory, and show
    where it did so."""
    before = len(LOG.update())
    yield
    killed = eventually("the kernel kills", lambda: [
        line for line in LOG.update()[before:] if "Memory cgroup out of memory" in line])
    equal("processes killed", len(killed), 1)
    _provoked.update(id(line) for line in LOG.lines[before:] if "Call Trace:" in line)


@contextlib.contextmanager
def provoked_complaint():
    """What is done in here makes L1's kernel complain, as it should."""
    before = len(LOG.update())
    yield
    _provoked.update(id(line) for line in LOG.update()[before:])


def unprovoked_faults():
    return [line for line in LOG.faults() if id(line) not in _provoked]


def complaints():
    """What kernels have complained about: L1's, and those of all L2 so far."""
    found = [f"L1: {line}" for line in LOG.update()
             if COMPLAINT.search(line) and id(line) not in _provoked]
    for console in sorted(guest.RESULTS.glob("*.console")):
        found += [f"{console.stem}: {line}"
                  for line in console.read_text(errors="replace").splitlines()
                  if COMPLAINT.search(line)
                  and not (console.stem in _panicking and PANIC.search(line))]
    return found


def knobs():
    """The knobs of our module, {name: value}."""
    return {path.name: path.read_text().strip()
            for path in host.KNOBS.iterdir() if path.is_file()}


@contextlib.contextmanager
def knobs_set(**values):
    """Sets knobs, and puts back what they were."""
    before = knobs()
    try:
        for name, value in values.items():
            host.set_knob(name, value)
        yield
    finally:
        for name in values:
            host.set_knob(name, before[name])


def vms():
    """The processes that our module takes for VMs."""
    path = host.KNOBS / "vms"
    # A directory is there before its files, of which this is the last.
    return sorted(int(file.parent.name) for file in path.glob("*/table"))


def stat(pid, name):
    """An attribute of a VM: a number where it is one, else text."""
    text = host.knob(f"vms/{pid}/{name}")
    return int(text) if text.isdigit() else text


def extents(pid):
    """The VM's table, [(start, end, state)], such as "unmapped Balloon"."""
    rows = (line.split(maxsplit=2) for line in str(stat(pid, "table")).splitlines())
    return [(int(start, 16), int(start, 16) + int(size, 16), state)
            for start, size, state in rows]


def wait_mapped(pid, timeout=120):
    """Waits until the host has mapped all of a VM's memory."""
    eventually("all memory is mapped", lambda: stat(pid, "unmapped_bytes") == 0, timeout)


def threads():
    """Threads that our module has made, in whatever process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/task/*/comm"):
        with contextlib.suppress(OSError):
            if re.match(r"vfio-(deferred|balloon)", path.read_text()):
                found.append(path.parent.name)
    return found


def pages_pinned():
    """Pages that are pinned in L1, exactly, and for longer than a write to 9p takes: what
    is written there is pinned until the other side has it."""
    def look():
        # Processors count apart, and by themselves add up every few seconds only.
        Path("/proc/sys/vm/stat_refresh").write_text("1")
        return host.pages_pinned()
    return min(look() for _ in range(LOOKS))


def references():
    """How many hold our module in place."""
    path = Path(f"/sys/module/{host.MODULE}/refcnt")
    return int(path.read_text()) if path.exists() else 0


def expect_no_vm():
    """Nothing is left of any VM, which pages are not counted for: that takes seconds."""
    eventually("every VM is gone", lambda: not vms() and not threads() and not references(),
               timeout=20, pause=0.01)


CLEAN = {
    "every VM is gone": lambda: not vms(),
    "all mapping threads are gone": lambda: not threads(),
    "nobody holds the module": lambda: references() == 0,
    "no page is pinned": lambda: pages_pinned() == 0,
}


def expect_clean():
    """Nothing is left of any VM or container."""
    for what, holds in CLEAN.items():
        eventually(what, holds, timeout=20)


def expect_quiet():
    """No kernel has complained, and no device touched what was not mapped."""
    equal("the kernels' complaints", complaints(), [])
    equal("unprovoked IOMMU faults", unprovoked_faults(), [])


def backed_above(vm):
    """Bytes of an L2's RAM above 4 GiB that L1 has backed with memory."""
    for line in Path(f"/proc/{vm.pid}/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if end - start == LOW + HIGH:
            break
    else:
        raise RuntimeError("QEMU has no mapping of the size of the guest's RAM")
    page = 4096
    with open(f"/proc/{vm.pid}/pagemap", "rb") as file:
        file.seek((start + LOW) // page * 8)
        entries = file.read(HIGH // page * 8)
    # Bit 63 of an entry: the page is present.
    present = bytes(byte >> 7 for byte in range(256))
    return sum(entries[7::8].translate(present)) * page


def meminfo(vm, name):
    """A figure of L2's /proc/meminfo, in bytes."""
    return int(vm.check(f"sed -n 's/^{name}: *//p' /proc/meminfo").split()[0]) << 10


def driver(vm, name):
    """A figure of our driver in L2, see guest/stats.rs."""
    text = vm.check(f"cat /sys/bus/virtio/drivers/{DRIVER_NAME}/virtio*/deferred/{name}")
    return int(text) if text.isdigit() else text


@contextlib.contextmanager
def balloon(name):
    """A balloon device for a VM beside the first, as words for QEMU."""
    host.run("vdpa", "dev", "add", "name", name, "mgmtdev", host.MODULE)
    try:
        path = next(Path(f"/sys/bus/vdpa/devices/{name}").glob("vhost-vdpa-*"))
        yield ("-device", f"vhost-vdpa-device-pci,vhostdev=/dev/{path.name}")
    finally:
        host.run("vdpa", "dev", "del", name)


@functools.cache
def stock_locked():
    """KiB that QEMU locks for an L2 of MEMORY on stock type1."""
    mode = "deferred" if host.is_loaded(host.MODULE) else "stock"
    # Without a balloon it is a VM on type1 alone, whatever is loaded.
    guest.prepare(mode)
    with guest.Guest("stock", MEMORY, paused=True) as vm:
        vm.wait_qmp()
        locked = vm.memory()["VmLck"]
        vm.quit()
    return locked


def limit_locked(pid, size):
    """Sets RLIMIT_MEMLOCK of a process, in bytes."""
    resource.prlimit(pid, resource.RLIMIT_MEMLOCK, (size, size))


def may_lock(size):
    """Words before QEMU that let it lock so many bytes and no more."""
    return ("prlimit", f"--memlock={size}",
            "setpriv", "--bounding-set", "-ipc_lock", "--inh-caps", "-ipc_lock")


# More VMs that are lost in one run, see guest.Guest.lost(), are a fault of ours until
# proven otherwise.
MOST_LOST = 3


def run_groups(reporter, patterns, modules=None):
    """Runs the groups of tests, of some modules if any are named, whose names match one of
    the patterns, all if there is none. What each leaves behind is a test, too."""
    lost = 0

    def excuse():
        nonlocal lost
        why = guest.first_lost(seen)
        lost += why is not None
        return why if lost <= MOST_LOST else None

    for entry in tap.groups(modules):
        if patterns and not any(re.search(pattern, entry.name) for pattern in patterns):
            continue
        seen = len(guest.STARTED)
        tap.run_group(reporter, entry, excuse)
        reporter.run(f"{entry.name}.clean: I3: no pin, thread, VM or reference is left",
                     expect_clean)
        reporter.run(f"{entry.name}.quiet: I2: no complaint of a kernel, no unprovoked "
                     "IOMMU fault", expect_quiet)
    if lost:
        reporter.note(f"VMs that the emulated processor has failed: {lost}")
