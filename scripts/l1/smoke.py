#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Proves the test bed: a VM with an assigned device boots and answers."""

import time
from pathlib import Path

import guest
import host


def uptime():
    return float(Path("/proc/uptime").read_text().split()[0])


def main():
    print(f"L1 is up: {uptime():.1f} s after its kernel started", flush=True)
    started = time.monotonic()
    guest.prepare("stock")
    print(f"KVM loaded, edu bound to vfio-pci: {time.monotonic() - started:.1f} s",
          flush=True)
    with guest.Guest("stock", "4G") as vm:
        print(f"L2's QEMU answers: {vm.wait_qmp():.1f} s", flush=True)
        for pattern in ("Linux version", "L2: init", "L2: ready"):
            print(f"L2 prints '{pattern}': {vm.wait_line(pattern)[0]:.1f} s", flush=True)
        release = vm.check("uname -r")
        print(f"L2's shell answers, uname -r: {release}", flush=True)
        if release != guest.KVER:
            raise RuntimeError(f"L2 runs {release}, not {guest.KVER}")
        print(f"L2 sees the device: {vm.check('grep -il 0x1234 /sys/bus/pci/devices/*/vendor')}")
        memory = vm.memory()
        print(f"QEMU: VmRSS {memory['VmRSS']} kB, VmLck {memory['VmLck']} kB, "
              f"{vm.cpu_seconds():.1f} s of CPU", flush=True)
        vm.quit()
        print(f"QEMU ended: {vm.times['exit']:.1f} s", flush=True)
    print(f"pages still pinned: {host.pages_pinned()}", flush=True)


if __name__ == "__main__":
    main()
