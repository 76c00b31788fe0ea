#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Runs tests in L1 on the debug kernel, and then asks the kernel what it has seen.

    debug.py control              the negative control: splat.ko makes one fault of each
                                  kind, and each must be reported
    debug.py suite [PATTERN...]   the tests of the guest's driver and of the host's; with
                                  patterns only the host's groups that match, and the
                                  former if one is "driver"

The modules of L1 are built for the debug kernel, L2 is the stock kernel with modules
for that.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import host
import tap

RELEASE = os.uname().release
PAYLOAD = Path("/payload")
BUILT = PAYLOAD / "ko"
KMEMLEAK = Path("/sys/kernel/debug/kmemleak")
HOST = "vfio_iommu_deferred"
GUEST = "virtio_balloon_deferred"

# What the kernel says of a fault, by kind. Leaks are asked for.
REPORTS = {
    "memory": r"BUG: KASAN: ",
    "locks": r"WARNING: (possible (circular|recursive) locking|inconsistent lock state|"
             r"possible irq lock inversion|bad unlock balance|.*lock held when|"
             r"suspicious RCU usage)|BUG: Invalid wait context|BUG: (spinlock|rwlock)|"
             r"DEBUG_LOCKS_WARN_ON|BUG: MAX_\w+ too low",
    "context": r"BUG: sleeping function called|BUG: scheduling while atomic|"
               r"do not call blocking ops|Illegal context switch",
    "arithmetic": r"UBSAN: ",
    "lists": r"list_(add|del) corruption",
    "objects": r"ODEBUG: ",
    "panics of Rust": r"rust_kernel: panicked|rust_begin_unwind",
    "anything else": r"WARNING: |BUG: |Oops: |general protection fault|Call Trace:|"
                     r"blocked for more than|soft lockup|rcu.*detected stalls",
}

# What splat.ko does, and the kind as which it must be reported. KASAN's report turns
# lockdep off, so that is asked first.
CONTROLS = {
    "lock_inversion": "locks",
    "use_after_free": "memory",
    "out_of_bounds": "memory",
    "shift_too_far": "arithmetic",
    "live_object": "objects",
    "sleep_in_atomic": "context",
}


def mount(name, path):
    """Puts a module that was built for this kernel in the place of the stock kernel's."""
    host.run("mount", "--bind", BUILT / f"{name}.ko", PAYLOAD / path / f"{name}.ko")


def unmount(name, path):
    host.run("umount", PAYLOAD / path / f"{name}.ko")


def kernel_log():
    """All of it, without time stamps."""
    text = subprocess.run(["dmesg", "--notime"], check=True, text=True, errors="replace",
                          stdout=subprocess.PIPE).stdout
    return text.splitlines()


def reports(lines):
    """{kind: [line]} of what a log says of faults; each line counts once.

    What the OOM killer prints of itself is none: tests have it come, and say when."""
    found = {kind: [] for kind in REPORTS}
    oom = False
    for line in lines:
        if "invoked oom-killer" in line:
            oom = True
        elif oom and "Call Trace:" in line:
            oom = False
            continue
        for kind, pattern in REPORTS.items():
            if re.search(pattern, line):
                found[kind].append(line)
                break
    return found


def leaks(names):
    """Objects that nobody points to any more and in whose allocation a module of
    these names had a part, as kmemleak's text of each."""
    # Nothing younger than 5 s counts, and what is in flight at one scan is not at the next.
    for _ in range(2):
        time.sleep(6)
        KMEMLEAK.write_text("scan\n")
    # A module that was unloaded has no names any more, only addresses.
    ours = re.compile("|".join(rf"\[{name}\]" for name in names) + r"|^\s+0x[0-9a-f]{16}$",
                      re.M)
    return [entry for entry in re.split(r"(?=^unreferenced object)", KMEMLEAK.read_text(),
                                        flags=re.M) if ours.search(entry)]


def expect_none(lines):
    if lines:
        raise AssertionError(f"{len(lines)} reports, such as " + " | ".join(lines[:3]))


def expect_no_leaks():
    found = leaks([HOST, GUEST, "balloon_sim"])
    Path("/results/kmemleak").write_text("".join(found))
    if found:
        raise AssertionError(f"{len(found)} objects, see kmemleak in the results")


def lockdep_is_on():
    text = Path("/proc/lockdep_stats").read_text()
    tap.matches("/proc/lockdep_stats", text, r"debug_locks:\s+1\b")


def splat(fault):
    host.run("insmod", BUILT / "splat.ko", f"fault={fault}")
    host.run("rmmod", "splat")


def control(reporter):
    """Each kind of fault is reported."""
    def leaked():
        host.run("insmod", BUILT / "splat.ko", "fault=leak")
        try:
            found = leaks(["splat"])
        finally:
            Path("/results/kmemleak-control").write_text(KMEMLEAK.read_text())
            host.run("rmmod", "splat")
        tap.at_least("objects that leaked", len(found), 6)

    def reported(fault, kind):
        before = len(reports(kernel_log())[kind])
        splat(fault)
        tap.at_least("reports", len(reports(kernel_log())[kind]) - before, 1)

    reporter.run("control.lockdep: it is on", lockdep_is_on)
    for fault, kind in CONTROLS.items():
        reporter.run(f"control.{fault}: reported as {kind}", reported, fault, kind)
    reporter.run("control.driver: without faults there is no leak", expect_no_leaks)
    # The last: what it leaks goes on being found, in part not before its module is gone.
    reporter.run("control.leak: reported", leaked)


def run(program, *words):
    """Runs a program that prints TAP of its own."""
    subprocess.run([PAYLOAD / program, *words], check=False)


def suite(patterns):
    """The tests."""
    KMEMLEAK.write_text("clear\n")
    rest = [pattern for pattern in patterns if pattern != "driver"]
    if not patterns or "driver" in patterns:
        # Those that otherwise run in L2.
        for name, path in ((GUEST, "."), ("edu_dma", "tests/guest")):
            mount(name, path)
        run("tests/guest/balloon.py")
        for name, path in ((GUEST, "."), ("edu_dma", "tests/guest")):
            unmount(name, path)
    if not patterns or rest:
        run("tests/l1/suite.py", *rest)


def look(reporter):
    """What the kernel has seen meanwhile."""
    found = reports(kernel_log())
    for kind, lines in found.items():
        reporter.run(f"kernel.{kind}: no report", expect_none, lines)
    reporter.run("kernel.leaks: no object of our modules was lost", expect_no_leaks)
    reporter.run("kernel.lockdep: it is still on", lockdep_is_on)


def main():
    command, *patterns = sys.argv[1:]
    (Path("/usr/lib/modules") / RELEASE).symlink_to(PAYLOAD / "modules/lib/modules" / RELEASE)
    for name, path in ((HOST, "."), ("emulated", "tests/host"), ("fault", "tests/host"),
                       ("iommu_walk", "tests/host"), ("balloon_sim", "tests/guest")):
        mount(name, path)
    if command == "suite":
        suite(patterns)
    reporter = tap.Reporter()
    if command == "control":
        control(reporter)
    else:
        look(reporter)
    return reporter.finish()


if __name__ == "__main__":
    sys.exit(main())
