#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Guests as their owners would make them: Debian with systemd, the driver installed by
install-guest.sh, the root file system on the assigned disk.

    test_distro.py [ROUNDS] [PATTERN...]   only groups whose names match a pattern

Needs a boot of L1 of its own, with the image of guest-image.sh on its NVMe disk and
the initramfs images in /payload: tests/run.py distro.
"""

import contextlib
import re
import sys

import bed
import guest
import host
import tap
from tap import at_least, equal, eventually, group

# Status messages would pass the serial port a byte at a time.
CMDLINE = "root=/dev/nvme0n1 rw systemd.show_status=no"

# systemd brings up its services within this time, in seconds, however slow the machine.
BOOT = 900

# The guest of a race keeps so much that the host needs a while to commit.
RACE = f"{bed.DRIVER_NAME}.reserve_mib=3000"


@contextlib.contextmanager
def boot(initrd, cmdline=""):
    guest.prepare("deferred", host.NVME)
    # However slow the machine: what is mapped by then would hide what is tested here.
    with bed.knobs_set(fallback_timeout_ms=86_400_000), \
         guest.Guest("deferred", bed.MEMORY, devices=[host.find_device(host.NVME)],
                     initrd=f"/payload/guest-{guest.KVER}-{initrd}.initrd",
                     cmdline=f"{CMDLINE} {cmdline}") as vm:
        yield vm


def multi_user(vm):
    # It waits until nothing is left to start.
    _, state = vm.sh("systemctl is-system-running --wait", BOOT)
    equal("failed units", vm.check("systemctl --failed --plain --no-legend"), "")
    equal("systemd's state", state.strip(), "running")
    equal("multi-user.target", vm.check("systemctl is-active multi-user.target"), "active")
    equal("the root file system", vm.check("findmnt --noheadings --output SOURCE /"),
          "/dev/nvme0n1")
    print(f"# multi-user after {float(vm.check('cat /proc/uptime').split()[0]):.0f} s",
          flush=True)


def order(vm):
    log = vm.check("dmesg")
    committed = log.find("committed in")
    at_least("position of the commit in the log", committed, 0)
    at_least("position of the disk's driver", log.find("nvme nvme0: "), committed)


def gate(vm):
    equal("commits", bed.stat(vm.pid, "commits"), 1)
    equal("gate_trips", bed.stat(vm.pid, "gate_trips"), 0)
    equal("fallbacks", bed.stat(vm.pid, "fallbacks"), 0)


def comes_back(vm):
    bed.wait_mapped(vm.pid)
    eventually("the balloon is empty", lambda: bed.driver(vm, "state") == "empty")
    equal("failures", bed.stat(vm.pid, "failures"), 0)
    at_least("returned_bytes", bed.driver(vm, "returned_bytes"), bed.HIGH // 2)


def disk(vm):
    vm.check("dd if=/dev/urandom of=/var/tmp/data bs=1M count=16 status=none", 300)
    written = vm.check("sha256sum </var/tmp/data", 300)
    vm.check("sync; echo 3 >/proc/sys/vm/drop_caches", 300)
    equal("the file's checksum", vm.check("sha256sum </var/tmp/data", 300), written)


def installed(tool):
    """A group for one maker of initramfs images."""
    def fixture():
        with boot(tool) as vm:
            vm.wait_line("L2: ready", BOOT)
            yield vm

    fixture.__name__ = tool.replace("-", "_")
    entry = group(f"Debian with systemd, the driver in the initramfs of {tool}")(fixture)
    entry.test("-", "systemd reaches multi-user, and no unit fails")(multi_user)
    entry.test("I1", "the balloon is committed before the disk has a driver")(order)
    entry.test("I4", "nobody had to wait at the gate")(gate)
    entry.test("I2", "all memory comes back")(comes_back)
    entry.test("I1", "what is written to the disk is what is read from it")(disk)
    entry.test("-", "no driver takes others with it when it is removed")(removes)


def removes(vm):
    """What goes with a driver, or with ours, when it is removed."""
    for name in ("nvme", bed.DRIVER_NAME):
        lines = vm.check(f"modprobe -r --dry-run --verbose {name} 2>&1 || true").splitlines()
        equal(f"what else goes with {name}",
              [line for line in lines if re.search("virtio", line)
               and line.split()[-1] != name], [])


for name in ("initramfs-tools", "dracut"):
    installed(name)


LOST = rf"{bed.DRIVER_NAME}: not loaded, .* {bed.DRIVER_NAME} not found"


def lost(tool):
    """A group for a guest with a new kernel, for which the driver was not built."""
    def fixture():
        with boot(f"lost-{tool}") as vm:
            yield vm

    fixture.__name__ = f"lost_{tool.replace('-', '_')}"
    return group(f"the kernel in the initramfs of {tool} is new, and there is no driver for it")(
        fixture)


def says(vm):
    vm.wait_line(LOST, BOOT)


def falls_back(vm):
    vm.wait_line("L2: ready", BOOT)
    multi_user(vm)
    # udev goes on when systemd has reached its target.
    eventually("the stock driver has the device",
               lambda: vm.sh("ls /sys/bus/virtio/drivers/virtio_balloon | grep virtio")[0] == 0,
               BOOT)
    equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), 0)


def others(vm):
    # Forced into the image, so loaded by it; nothing here uses it.
    vm.check("grep -q '^loop ' /proc/modules")


for name in ("initramfs-tools", "dracut"):
    entry = lost(name)
    entry.test("-", "its log says so")(says)
    if name == "dracut":
        entry.test("I4", "the stock driver has the device, and all memory is mapped")(falls_back)
        entry.test("-", "drivers that other packages want are in the image")(others)


@group("the disk's driver is loaded while the balloon is on its way")
def race():
    with boot("race", RACE) as vm:
        yield vm


@race.test("I1", "it waits for the commit, and nobody at the gate")
def waits(vm):
    waited, _ = vm.wait_line(r"nvme .* waited \d+ ms for the balloon", BOOT)
    at_least("time of that", waited, vm.wait_line("committed in")[0])
    vm.wait_line("init-bottom", BOOT)
    gate(vm)


@group("the same, but drivers do not wait: bind_wait_ms=0")
def unordered():
    with boot("race", f"{RACE} {bed.DRIVER_NAME}.bind_wait_ms=0") as vm:
        yield vm


@group("the disk's driver is loaded before the balloon's")
def first():
    with boot("race", f"{RACE} race=first") as vm:
        yield vm


def trips(vm):
    # The root file system is mounted: the disk has worked.
    vm.wait_line("init-bottom", BOOT)
    equal("drivers that have waited", [line for _, line in vm.console.lines if "waited" in line],
          [])
    at_least("gate_trips", bed.stat(vm.pid, "gate_trips"), 1)
    bed.wait_mapped(vm.pid)


for entry in (unordered, first):
    entry.test("I4", "it waits at the gate: the tests above can fail")(trips)


def main():
    # Of a test or a fixture: a whole boot is in some of them.
    tap.TIME_LIMIT = BOOT + 300
    rounds = int(sys.argv[1]) if sys.argv[1:] else 1
    reporter = tap.Reporter()
    for number in range(rounds):
        if rounds > 1:
            reporter.note(f"round {number + 1} of {rounds}")
        bed.run_groups(reporter, sys.argv[2:])
    return reporter.finish()


if __name__ == "__main__":
    sys.exit(main())
