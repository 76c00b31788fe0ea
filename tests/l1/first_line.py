#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Measures how long VMs stay in their firmware, with devices that it drives and devices
that are merely there: from QEMU's start to the first line of what is booted.

    scripts/vm.py run --memory 14G --time-limit 3600 --device nvme --device e1000e \\
        tests/l1/first_line.py ROUNDS [GIB...]

The firmware is SeaBIOS. "boots" is a disk, or a network card with its option ROM, that
the VM boots from, with the knob `firmware`; "beside" one that a VM has whose kernel
QEMU loads. Prints seconds: medians, and of deferred those above the floor, which has no
device.
"""

import sys
from statistics import median

import bed
import guest
import host
import test_firmware
from tap import equal

DEVICES = {"disk": host.NVME, "card": host.E1000E}
SIZES = (4, 8, 12)
KERNEL = "Linux version"


def time_of(mode, size, device, boots):
    """Seconds to the first line of one VM."""
    guest.prepare(mode, device)
    options = {"args": test_firmware.SMALL if device == host.NVME and boots else ()}
    if mode != "floor":
        options["devices"] = [host.find_device(device) + (",bootindex=0" if boots else "")]
    with guest.Guest(mode, f"{size}G", kernel=not boots, **options) as vm:
        line = test_firmware.BOOTED if boots else KERNEL
        when = vm.console.wait(line, bed.BOOT)[0]
        if mode == "deferred":
            equal("gate_trips", bed.stat(vm.pid, "gate_trips"), 0)
    return when


def measure(name, device, boots, sizes, rounds):
    """Prints a line for each size."""
    modes = ("stock", "deferred") if boots else ("floor", "stock", "deferred")
    for size in sizes:
        times = {mode: [] for mode in modes}
        for _ in range(rounds):
            for mode in modes:
                if mode == "deferred":
                    host.load_deferred()
                    host.set_knob("firmware", int(boots))
                times[mode].append(time_of(mode, size, device, boots))
        middle = {mode: median(values) for mode, values in times.items()}
        text = "".join(f", {mode} {value:.2f}" for mode, value in middle.items())
        if not boots:
            text += f"; deferred adds {middle['deferred'] - middle['floor']:.2f}"
        print(f"{name} {'boots' if boots else 'beside'}, {size:2} GiB{text}", flush=True)


def main():
    rounds, *sizes = map(int, sys.argv[1:])
    test_firmware.write_disk(test_firmware.BOOT_SECTOR)
    (guest.RESULTS / "boot").write_bytes(test_firmware.BOOT_SECTOR)
    for name, device in DEVICES.items():
        for boots in (True, False):
            measure(name, device, boots, sizes or SIZES, rounds)


if __name__ == "__main__":
    main()
