#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Measures the start of VMs with and without an assigned device, inside L1.

    bench.py --sizes 4 8 12 --runs 3

Each size (GiB) is booted in each mode, interleaved. A line per VM is printed,
and /results/results.json is complete after every VM. Exit status 1 if a VM failed.

Modes: floor (no device), stock (type1, our module not loaded), deferred (our
modules in host and guest), and once for each size deferred-hold: the balloon is
kept full after the commit, so that what it saves can be measured at leisure. The
largest size is also booted in modes gate (our host module with policy "gate" and
threshold_mib=0, and nothing of ours in the guest) and deferred-low (threshold_mib=0).
The smallest and the largest size are booted in the first three modes by UEFI as well:
uefi-floor and so on, and followed to user space.

Then the mapper is measured alone, and what an assigned disk reads: maps.py.
"""

import argparse
import json
import re
import sys
import time
import traceback
from pathlib import Path

import guest
import host
import maps
from channel import Closed
from probe import Probe

RESULTS = guest.RESULTS / "results.json"
GUEST_MODULE = "/payload/virtio_balloon_deferred.ko"
MODES = ("floor", "stock", "deferred")
UEFI = "uefi-"
# In these, RAM below 4 GiB is deferred, too.
LOW = ("gate", "deferred-low")
# What the knob threshold_mib is by default.
THRESHOLD = 4096
COMPLAINT = re.compile(r"WARNING: |BUG: |kernel BUG at|Oops: |general protection fault")

# init-l2 prints this after it has inserted the modules, before its normal work.
# The balloon driver's probe() returns only when the balloon is full and the host
# has mapped everything outside it, so from this line on the device can be used:
# deferral cannot hide the costs of inflating and committing. The other modes
# run the same init without a module.
READY = "L2: ready"

# Seconds after which a VM has failed, and after which its kernel hangs.
PATIENCE = 600
KERNEL_PATIENCE = 180

# A port that the device can be unplugged from must be there before the device.
WITH_PORT = ("sh", "-c", 'exec "$0" -device pcie-root-port,id=socket "$@"')

# As one command in L2, so that looking does not slow down what is looked at.
WAIT_EMPTY = """
for file in /sys/bus/virtio/devices/*/deferred/state; do
    while read -r state <$file && [ "$state" != empty ]; do
        [ "$state" != broken ] || exit 1
        sleep 0.2
    done
done"""


# What a device's driver does first of all: PCI_COMMAND with memory and bus mastering, and
# a look at a register. Comes back when the gate has let it through.
MASTER = """
for device in /sys/bus/pci/devices/*; do
    [ "$(cat $device/vendor)" = 0x1234 ] && [ "$(cat $device/device)" = 0x11e8 ] || continue
    printf '\\006\\004' | dd of=$device/config bs=2 seek=2 conv=notrunc &&
        devmem $(sed 's/ .*//;q' $device/resource) 32 || exit 1
done"""


class NoInit(Exception):
    """L2's kernel hung or reset the machine before its init ran. Nested on an emulated
    processor that happens at times, in every mode; it is counted and tried again."""


def kib(vm, name):
    return vm.memory()[name] * 1024


def counters(vm):
    """What the host module knows about the VM, by file name, numbers only."""
    directory = host.KNOBS / "vms" / str(vm.pid)
    texts = {path.name: path.read_text().strip() for path in directory.iterdir()
             if path.name != "table"}
    return {name: int(text) for name, text in texts.items() if text.isdigit()}


def guest_counters(vm):
    """The same of the guest's driver."""
    text = vm.check("cd /sys/bus/virtio/devices/*/deferred && grep -r . .")
    pairs = re.findall(r"^\./(\w+):(\d+)$", text, re.M)
    return {name: int(value) for name, value in pairs}


def wait_all_mapped(vm):
    """Waits until all RAM is mapped and in the guest's hands; returns when."""
    vm.check(WAIT_EMPTY, PATIENCE)
    empty = time.monotonic() - vm.started
    mapped = counters(vm)["completed_ns"] / 1e9 - vm.started
    if mapped <= 0:
        raise RuntimeError("the guest's balloon is empty, but not all RAM is mapped")
    return {"mapped_s": mapped, "all_mapped_s": max(mapped, empty)}


def unplug(vm):
    """Takes the device away while QEMU lives on; what type1 still charges to it
    after that is lost for good."""
    vm.qmp.command("device_del", id="assigned")
    vm.qmp.wait_event("DEVICE_DELETED", timeout=60)
    return {"locked_left_bytes": kib(vm, "VmLck")}


def pages_pinned():
    """As host.pages_pinned(), and exact: processors count apart, and add up
    their counts at times only."""
    Path("/proc/sys/vm/stat_refresh").write_text("1")
    return host.pages_pinned()


def pins_left(before):
    """Pages that are pinned beyond `before`. The last reference to a container
    may be dropped by a kernel thread, so this looks for some time."""
    deadline = time.monotonic() + 10
    while (left := pages_pinned() - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def follow(vm, mode):
    """Follows a VM until its device can be used; returns what was seen, and how long QEMU
    kept others waiting meanwhile."""
    with Probe(vm) as probe:
        result = {"qemu_init_s": vm.wait_qmp(PATIENCE),
                  "kernel_s": vm.wait_line("Linux version", KERNEL_PATIENCE)[0]}
        if mode == UEFI + "deferred":
            seen = counters(vm)
            result |= {f"{name}_at_kernel": seen[name]
                       for name in ("deferred_bytes", "unmapped_bytes")}
        result |= {"init_s": vm.wait_line("L2: init", KERNEL_PATIENCE)[0],
                   "userspace_s": vm.wait_line(READY, PATIENCE)[0],
                   "rss_ready_bytes": kib(vm, "VmRSS")}
        if "deferred" not in mode:
            vm.check(MASTER, PATIENCE)
            result["master_s"] = time.monotonic() - vm.started
        elif not counters(vm)["commits"]:
            raise RuntimeError("the guest's balloon driver did not commit")
    return result | {"qmp_worst_s": probe.worst, "qmp_worst_at_s": probe.worst_at}


def boot(vm, mode):
    """Follows a VM through its boot; returns what was seen."""
    result = follow(vm, mode)
    if mode.startswith(UEFI):
        return result
    if mode == "gate":
        result["host"] = counters(vm)
        if result["host"]["unmapped_bytes"] or not result["host"]["deferred_bytes"]:
            raise RuntimeError("nothing was deferred, or the gate has let the device through")
    if mode == "deferred-hold":
        result["at_hold"] = counters(vm)
        if not result["at_hold"]["ballooned_bytes"]:
            raise RuntimeError("the balloon is not held: it is empty")
        host.set_knob("hold", 0)
    if mode.startswith("deferred"):
        result |= wait_all_mapped(vm)
        result |= {"host": counters(vm), "guest": guest_counters(vm)}
        result |= {name: result["host"][name] for name in ("messages", "inner_mappings")}
    elif mode == "stock":
        result["all_mapped_s"] = result["qemu_init_s"]
    result |= {"rss_bytes": kib(vm, "VmRSS"), "locked_bytes": kib(vm, "VmLck"),
               "cpu_s": vm.cpu_seconds()}
    if mode == "deferred-hold":
        result |= unplug(vm)
    return result


def lacks_init(vm, error):
    """Whether what went wrong is that L2's kernel did not get to its init."""
    if isinstance(error, TimeoutError):
        stopped = "qmp" in vm.times
    else:
        stopped = any('"guest-reset"' in line for _, line in vm.qmp.lines)
    return stopped and not any(line.startswith("L2: ") for _, line in vm.console.lines)


def measure(size, mode, run, knobs):
    """Boots one VM and returns its figures; times are seconds since exec()."""
    base = {"deferred-hold": "deferred", "deferred-low": "deferred",
            "gate": "stock"}.get(mode, mode.removeprefix(UEFI))
    guest.prepare("deferred" if mode == "gate" else base)
    for knob, value in knobs if host.is_loaded(host.MODULE) else ():
        host.set_knob(knob, value)
    if host.is_loaded(host.MODULE):
        host.set_knob("policy", "gate" if mode == "gate" else "balloon")
        host.set_knob("threshold_mib", 0 if mode in LOW
                      else dict(knobs).get("threshold_mib", THRESHOLD))
    options = {"modules": [GUEST_MODULE] if base == "deferred" else [],
               "firmware": "uefi" if mode.startswith(UEFI) else "bios"}
    if mode == "deferred-hold":
        host.set_knob("hold", 1)
        # Nothing is timed here, so a slow machine shall not run out of time.
        host.set_knob("fallback_timeout_ms", PATIENCE * 1000)
        options |= {"prefix": WITH_PORT,
                    "devices": [f"{host.find_device(host.EDU)},bus=socket,id=assigned"]}
    # Let every VM find the same number of free 2 MiB pages.
    Path("/proc/sys/vm/compact_memory").write_text("1")
    log = host.KernelLog()
    pinned = pages_pinned()
    with guest.Guest(base, f"{size}G", name=f"{size:02d}G-{mode}-{run}",
                     stubborn=False, **options) as vm:
        try:
            result = boot(vm, mode)
        except (Closed, TimeoutError) as error:
            if lacks_init(vm, error):
                raise NoInit("L2's kernel did not get to its init, again and again") from None
            raise
        vm.quit()
        console = [line for _, line in vm.console.lines]
    return result | {
        "pins_left": pins_left(pinned),
        "iommu_faults": len(log.faults()),
        "l1_complaints": len(log.matching(COMPLAINT)),
        "l2_complaints": sum(bool(COMPLAINT.search(line)) for line in console),
    }


def plan(sizes, runs):
    """All (size, mode, run), in the order of measuring. What is compared lies
    close together, and no mode is always the first."""
    rows = []
    for run in range(runs):
        shift = run % len(MODES)
        modes = MODES[shift:] + MODES[:shift]
        for size in sizes:
            rows += [(size, mode, run) for mode in modes]
        rows += [(max(sizes), mode, run) for mode in ("gate", "deferred-low")]
        for size in ends(sizes):
            rows += [(size, UEFI + mode, run) for mode in modes]
    return rows + [(size, "deferred-hold", 0) for size in sizes]


def ends(sizes):
    """The smallest and the largest size."""
    return sorted({min(sizes), max(sizes)})


def attempt(row, knobs):
    """measure(), with an error as its result if it failed."""
    size, mode, run = row
    result = {"size_gib": size, "mode": mode, "run": run, "false_starts": 0}
    while True:
        try:
            return result | measure(*row, knobs)
        except NoInit as error:
            result["false_starts"] += 1
            if result["false_starts"] > 2:
                return result | {"error": str(error)}
        except Exception as error:  # Whatever it is, the other VMs are measured.
            traceback.print_exc()
            return result | {"error": f"{type(error).__name__}: {error}"}


def describe(result):
    if "error" in result:
        return "FAILED: " + result["error"]
    return ", ".join(f"{name} {result[key]:.2f} s" for name, key in (
        ("QEMU", "qemu_init_s"), ("kernel", "kernel_s"), ("user space", "userspace_s"),
        ("all mapped", "all_mapped_s"), ("longest wait for QMP", "qmp_worst_s"))
        if key in result)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", required=True, metavar="GIB")
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--knob", action="append", default=[], metavar="NAME=VALUE",
                        type=lambda text: text.split("=", 1),
                        help="of the host module, repeatable")
    args = parser.parse_args()
    rows = plan(args.sizes, args.runs)
    results = []
    # The first VM pays for cold caches, those of the emulator above all: it is
    # booted and not counted.
    print(f"[ 0/{len(rows)}] warming up", flush=True)
    warm_up = attempt((args.sizes[0], "stock", "warm-up"), ())
    started = time.monotonic()
    for row in rows:
        results.append(attempt(row, args.knob))
        RESULTS.write_text(json.dumps({"runs": results}, indent=1))
        left = (time.monotonic() - started) / len(results) * (len(rows) - len(results))
        size, mode, run = row
        print(f"[{len(results):2}/{len(rows)}] {size:3} GiB {mode:13} run {run}: "
              f"{describe(results[-1])}; {left / 60:.0f} min left", flush=True)
    more = {}
    for name, measurement in (
            ("maps", lambda: maps.measure_maps(args.runs)),
            ("reads", lambda: maps.measure_reads("4G", args.runs, GUEST_MODULE))):
        print(f"measuring {name}", flush=True)
        try:
            more[name] = measurement()
        except Exception:  # Whatever it is, the rest is reported.
            traceback.print_exc()
        RESULTS.write_text(json.dumps({"runs": results, **more}, indent=1))
    return int(len(more) < 2 or any("error" in result for result in [warm_up, *results]))


if __name__ == "__main__":
    sys.exit(main())
