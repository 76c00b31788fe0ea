# SPDX-License-Identifier: GPL-2.0-only
"""A hostile guest, by tests/hostile in the kernel of an L2, and what its host has to
show for it meanwhile."""

import contextlib
import re
import time
from pathlib import Path

import bed
import guest
import host
from channel import TIME_FACTOR
from tap import at_least, at_most, equal

MODULE = "/payload/tests/hostile/hostile_balloon.ko"

# All of its RAM is below 4 GiB, where tests/hostile keeps itself out of harm's way.
MEMORY = "1G"
SIZE = bed.GIB
GRANULE = 2 * bed.MIB

# A page that the kernel of L2 leaves alone, for DMA.
PAGE = SIZE * 3 // 4
RESERVED = f"memmap=2M${PAGE:#x}"

# All is deferred, and what is in the balloon stays there: there is more to attack.
KNOBS = {"threshold_mib": 0, "hold": 1, "fallback_timeout_ms": 86_400_000}

# An attack that has not moved for so many seconds is worth a look.
STALLED = 20

# Of a slab cache, so many objects come and go by themselves.
NOISE = 400

# KASAN has a quarantine for what was freed, which counts as if it was not. Its kernel has
# kmemleak as well, and debug.py asks that.
QUARANTINE = Path("/sys/kernel/debug/kmemleak").exists()

# The log's limit for each VM and for each balloon device: ten messages in five
# seconds, and one that says how many there would have been.
BURST = 11
INTERVAL = 5


def slabs():
    """How many objects L1's kernel has of each kind that our module or type1 could
    leak, {slab cache: objects}."""
    rows = (line.split() for line in Path("/proc/slabinfo").read_text().splitlines())
    kinds = re.compile(r"kmalloc|vm_area|anon_vma|maple_node|task_struct|vfio|iommu")
    return {row[0]: int(row[1]) for row in rows if kinds.match(row[0])}


def expect_no_leak(before, after, cases):
    """Not an object of any kind was left by every fourth of so many cases."""
    grown = {name: count - before.get(name, 0) for name, count in after.items()}
    worst = max(grown, key=grown.get)
    at_most(f"objects more in the slab cache {worst}", grown[worst], NOISE + cases // 4)


class Lost(Exception):
    """The VM is of no use any more, by no fault of its host: see guest.Guest.lost()."""


class Attack:
    """The attacks on its balloon of an L2 of start()."""

    def __init__(self, vm):
        self.vm = vm
        vm.wait_line("L2: ready", bed.BOOT)
        unmapped = bed.stat(vm.pid, "unmapped_bytes")
        # No firmware or driver has had it mapped, or there is little to attack. In the
        # first MiB is what is no RAM.
        at_least("bytes not mapped", unmapped, SIZE - bed.MIB)
        self.registered = vm.memory()["VmLck"] * 1024 + unmapped
        # What the host has of the VM, at its worst.
        self.locked = self.extents = 0
        # Of the attack at hand.
        self.cases = self.reports = self.last = 0
        self.started = self.moved = self.slabs = self.logged = None

    def begin(self, seed, cases, **options):
        """Begins an attack; `options` are further parameters of the module."""
        self.cases = cases
        self.reports = len(self._reports())
        words = " ".join(f"{name}={value}" for name, value in options.items())
        self.vm.sh("rmmod hostile_balloon")
        self.started = self.moved = time.monotonic()
        self.last = 0
        self.logged = len(bed.LOG.update())
        self.slabs = slabs()
        self.vm.check(f"insmod /hostile.ko seed={seed} cases={cases} {words}")

    def done(self):
        """How many cases are over; notes what the host has of the VM."""
        self.locked = max(self.locked, self.vm.memory()["VmLck"] * 1024)
        self.extents = max(self.extents, bed.stat(self.vm.pid, "extents"))
        return int(self.vm.check("cat /sys/module/hostile_balloon/parameters/done"))

    def _reports(self):
        return [line for _, line in self.vm.console.lines if "hostile_balloon: done:" in line]

    def report(self):
        """The attack's own count when it is over, {name: number}, else None."""
        lines = self._reports()[self.reports:]
        return {name: int(value) for name, value in
                re.findall(r"(\w+)=(\d+)", lines[0])} if lines else None

    def poll(self):
        """Looks after the attack; returns its report when it is over, else None."""
        if report := self.report():
            return report
        try:
            done = self.done()
        except Exception as error:
            if why := self.vm.lost():
                raise Lost(f"{why}, after {self.last} cases") from error
            self.show()
            raise
        if done != self.last:
            self.last, self.moved = done, time.monotonic()
        elif self.moved and time.monotonic() > self.moved + STALLED * TIME_FACTOR:
            self.moved = None
            self.show()
        return None

    def show(self):
        """Says what is known of the VM, and what each of its threads waits for."""
        print(f"# {self.vm.name}: at case {self.last}", flush=True)
        for path in sorted((host.KNOBS / f"vms/{self.vm.pid}").iterdir()):
            print(f"# {path.name}: {path.read_text().strip()[-300:]}", flush=True)
        for path in sorted(Path(f"/proc/{self.vm.pid}/task").iterdir()):
            stack = "; ".join((path / "stack").read_text().split("\n"))
            print(f"# {(path / 'comm').read_text().strip()}: {stack}", flush=True)

    def expect_survived(self, report):
        """All cases ran, no request was answered wrongly or not at all, and the host
        has not more of the VM, nor of its own memory, than before."""
        equal("cases", report["cases"], self.cases)
        equal("requests answered wrongly", report["wrong"], 0)
        equal("requests not answered", report["stuck"], 0)
        at_most("bytes locked", self.locked, self.registered)
        at_most("extents", self.extents, 2 * SIZE // GRANULE)
        if not QUARANTINE:
            expect_no_leak(self.slabs, slabs(), self.cases)

    def expect_quiet_log(self, vms=1):
        """So many attacks had no more logged than the two limits of each let pass."""
        ours = [line for line in bed.LOG.update()[self.logged:]
                if line.startswith(host.MODULE)]
        intervals = (time.monotonic() - self.started) // INTERVAL + 2
        at_most("lines logged", len(ours), int(2 * BURST * intervals) * vms)
        return len(ours)


@contextlib.contextmanager
def start(address=None, **options):
    """An L2 that can attack its balloon, with the first edu device assigned, or that
    at an address. (Firmware would make an NVMe disk master the bus, and have all
    memory mapped.)"""
    with guest.Guest("deferred", MEMORY, cpus=2, cmdline=RESERVED,
                     devices=[host.bind_to_vfio(address=address)],
                     files={"hostile.ko": MODULE, "balloon.ko": bed.DRIVER,
                            "edu.ko": bed.EDU_DRIVER}, **options) as vm:
        yield Attack(vm)


def wait(attacks, timeout):
    """Waits until all attacks are over; returns their reports."""
    deadline = time.monotonic() + timeout * TIME_FACTOR
    while not all(reports := [attack.poll() for attack in attacks]):
        if time.monotonic() > deadline:
            raise AssertionError(f"not over within {timeout} s, but at "
                                 f"{[attack.last for attack in attacks]}")
        time.sleep(1)
    for attack in attacks:
        attack.done()
    return reports


def take_over(vm):
    """Has our own driver take the device from the attacker."""
    vm.check("rmmod hostile_balloon && cd /sys/bus/pci/drivers/virtio-pci && "
             "for dev in /sys/bus/pci/devices/*; do "
             "case $(cat $dev/device) in 0x1002|0x1045) echo ${dev##*/} >bind;; esac; done && "
             "insmod /balloon.ko", 120)
