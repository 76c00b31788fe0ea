#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Tests of the balloon driver against balloon_sim, a device in the same kernel.

Runs in a virtual machine with 6 GiB and nothing else to do, for instance in L1:

    scripts/vm.py run --memory 6G tests/guest/balloon.py
"""

import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "l1"))

# pylint: disable=wrong-import-position
import bed
import failing  # noqa: F401 Its tests are run as well,
import order  # noqa: F401 and those of this one,
import relief  # noqa: F401 and of this.
from sim import DRIVER, KNOBS, TARGET, balloon, find_module, insmod, meminfo, rmmod
from tap import Reporter, Skip, at_least, at_most, equal, eventually, group, groups, run_group

GRANULE = 2
STEP = 128

# What knobs do not take, and the bounds of what they do.
BAD = (("step_mib", "0"), ("step_mib", "1"), ("step_mib", "x"), ("step_mib", "1048577"),
       ("reserve_mib", "-1"), ("reserve_mib", ""), ("skip_zeroing", "2"), ("skip_zeroing", "-1"),
       ("skip_zeroing", "on"), ("bind_wait_ms", "600001"), ("bind_wait_ms", "-1"))
LEAST = {"reserve_mib": 0, "step_mib": 2, "skip_zeroing": 0, "bind_wait_ms": 0}
MOST = {"reserve_mib": 1 << 20, "step_mib": 1 << 20, "skip_zeroing": 1, "bind_wait_ms": 600000}
EVERYTHING = 1 << 20
# How often something may happen too late.
TRIES = 10
# More than there is below 4 GiB, which is never taken.
RESERVE = 3000


@group("a device that behaves")
def good():
    with balloon() as sim:
        yield sim


@good.test("I1", "probe() returns after all was told and committed")
def probe(sim):
    equal("insmod's error", sim.error, None)
    sim.settle(TARGET)
    equal("commits", sim.stat("commits"), 1)
    equal("state", sim.figure("state"), "inflated")
    equal("messages", sim.figure("messages_sent"), sim.stat("inflates") + 1)
    equal("ranges", sim.figure("ranges_sent"), sim.stat("ranges"))


@good.test("I2", "what the host wants back is given back, from the bottom up, in steps")
def deflate(sim):
    sim.set("target_mib", TARGET // 2)
    sim.settle(TARGET // 2)
    equal("deflated", sim.stat("deflated_mib"), TARGET // 2)
    at_least("deflates", sim.stat("deflates"), TARGET // 2 // STEP)
    equal("deflates below an earlier one", sim.stat("descending"), 0)


@good.test("-", "a step is as big as step_mib says")
def step(sim):
    before = sim.stat("deflates")
    (KNOBS / "step_mib").write_text("16\n")
    sim.set("target_mib", TARGET // 2 - 160)
    sim.settle(TARGET // 2 - 160)
    (KNOBS / "step_mib").write_text(f"{STEP}\n")
    at_least("deflates", sim.stat("deflates") - before, 10)


@good.test("-", "knobs refuse what is out of range")
def knobs(_sim):
    for name, value in BAD:
        try:
            (KNOBS / name).write_text(f"{value}\n")
        except OSError:
            continue
        raise AssertionError(f"{name} accepts {value!r}")
    equal("step_mib", (KNOBS / "step_mib").read_text(), f"{STEP}\n")


@group("parameters of the driver")
def parameters():
    yield None
    rmmod(DRIVER)


@parameters.test("-", "each takes the least and the most of its range")
def good_parameters(_):
    for values in (LEAST, MOST):
        equal("error", insmod(DRIVER, **values), None)
        equal("knobs", {name: int((KNOBS / name).read_text()) for name in values}, values)
        rmmod(DRIVER)


@parameters.test("-", "each refuses what is out of range: nothing is loaded")
def bad_parameters(_):
    for name, value in BAD:
        equal(f"{name}={value} is refused", "Invalid parameters" in
              (insmod(DRIVER, **{name: value}) or ""), True)
        equal("loaded", Path(f"/sys/module/{DRIVER}").exists(), False)


@good.test("-", "a target that rises after probe() is ignored")
def rise(sim):
    held = sim.figure("ballooned_bytes")
    sim.set("target_mib", TARGET)
    sim.set("target_mib", (held >> 20) - 2)
    sim.settle((held >> 20) - 2)
    equal("inflates", sim.stat("inflates"), 1)


@good.test("I3", "what the host refuses stays, is asked for again, and comes")
def refusal(sim):
    held = sim.figure("ballooned_bytes") >> 20
    sim.set("fault", "nomap")
    sim.set("target_mib", held - 256)
    sim.state("refused")
    equal("in the balloon", sim.figure("ballooned_bytes") >> 20, held)
    at_least("failed deflates", sim.figure("failed_deflates"), 1)
    eventually("it asks again", lambda: sim.figure("failed_deflates") >= 2, timeout=5)
    sim.set("fault", "none")
    sim.settle(held - 256)


@good.test("I2", "suspend gives all back, resume commits an empty balloon")
def suspend(sim):
    commits = sim.stat("commits")
    sim.set("control", "freeze")
    equal("ballooned memory", meminfo("Balloon"), 0)
    equal("state", sim.figure("state"), "stopped")
    equal("the device's status", sim.stat("status"), 0)
    sim.set("control", "restore")
    sim.settle(0)
    equal("commits", sim.stat("commits"), commits + 1)
    equal("inflates", sim.stat("inflates"), 1)


@group("memory in many pieces")
def pieces():
    with balloon(holes=450, target_mib=EVERYTHING, driver_options={"step_mib": 4096}) as sim:
        yield sim


@pieces.test("I1", "more ranges than a message holds are told in several")
def messages(sim):
    at_least("ranges", sim.stat("ranges"), 256)
    at_least("inflates", sim.stat("inflates"), 2)
    sim.settle(sim.figure("ballooned_bytes") >> 20)


@pieces.test("I3", "of a request that was carried out in part, that part is given back")
def partial(sim):
    held = sim.figure("ballooned_bytes") >> 20
    sim.set("limit", 5)
    sim.set("fault", "nomap")
    sim.set("target_mib", 0)
    sim.state("refused")
    left = sim.figure("ballooned_bytes") >> 20
    equal("the device's account", sim.stat("ballooned_mib"), left)
    at_most("left", left, held - 5 * GRANULE)
    sim.set("fault", "none")
    sim.settle(0)
    equal("deflates below an earlier one", sim.stat("descending"), 0)


@group("a host that wants more than there is")
def greedy():
    with balloon(target_mib=EVERYTHING, driver_options={"reserve_mib": RESERVE}) as sim:
        yield sim


@greedy.test("-", "reserve_mib stays available")
def reserve(sim):
    equal("insmod's error", sim.error, None)
    at_least("available", meminfo("MemAvailable") - meminfo("Balloon"), RESERVE - 64)
    at_least("in the balloon", sim.figure("ballooned_bytes") >> 20, 512)


@greedy.test("-", "memory below 4 GiB is left alone")
def high(sim):
    equal("in the balloon below 4 GiB", sim.stat("low_mib"), 0)


@group("a host that defers low memory as well")
def low():
    with balloon(target_mib=EVERYTHING, lowest_mib=1024) as sim:
        yield sim


@low.test("-", "low memory is given up too, and comes back")
def some(sim):
    equal("insmod's error", sim.error, None)
    # QEMU puts 2 GiB below 4 GiB; the device counts a breach for what is below lowest_mib.
    at_least("in the balloon below 4 GiB", sim.stat("low_mib"), 256)
    at_least("available", meminfo("MemAvailable") - meminfo("Balloon"), 256 - 64)
    sim.set("target_mib", 0)
    sim.settle(0)


def inflation(**options):
    """How many microseconds it takes to fill a balloon; what is in it is as expected."""
    with balloon(driver_options=options) as sim:
        sim.settle(TARGET)
        return sim.figure("inflate_us")


@group("a kernel that zeroes what it allocates")
def hardened():
    log = subprocess.run(["dmesg"], text=True, check=True, stdout=subprocess.PIPE).stdout
    if not re.search(r"mem auto-init:.* heap alloc:on", log):
        raise Skip("init_on_alloc is off")
    yield min(inflation() for _ in range(2))


def expect_none(sim):
    """Nothing is in the balloon, and the host knows it."""
    equal("insmod's error", sim.error, None)
    sim.settle(0)
    equal("inflates", sim.stat("inflates"), 0)
    equal("commits", sim.stat("commits"), 1)


@hardened.test("I1", "nothing is taken with skip_zeroing=0: it would be zeroed")
def zeroes(_):
    with balloon(driver_options={"skip_zeroing": 0}) as sim:
        expect_none(sim)


@hardened.test("I1", "nor while any user but root has a process")
def users(_):
    with subprocess.Popen(["sleep", "infinity"], user=65534) as other:
        try:
            with balloon() as sim:
                expect_none(sim)
        finally:
            other.kill()


@hardened.test("I1", "nothing more is taken once there is such a process")
def user_comes(_):
    # Whoever it is, he comes between the first block and the last.
    program = ("import os, re, subprocess, sys\n"
               "loader = subprocess.Popen(['insmod', sys.argv[1]])\n"
               "while not re.search(r'^Balloon: +[1-9]', open('/proc/meminfo').read(), re.M): pass\n"
               "os.setresuid(65534, 65534, 65534)\n"
               "sys.exit(loader.wait())")
    with balloon(target_mib=EVERYTHING) as sim:
        most = sim.figure("ballooned_bytes")
    seen = []
    for _ in range(TRIES):
        with balloon(target_mib=EVERYTHING, load=False) as sim:
            subprocess.run([sys.executable, "-c", program, find_module(DRIVER)], check=True)
            equal("commits", sim.stat("commits"), 1)
            seen.append(sim.figure("ballooned_bytes"))
        if 0 < seen[-1] < most * 9 // 10:
            return
    raise AssertionError(f"of {most} bytes there were always all, or none: {seen}")


@hardened.test("-", "skip_zeroing can be changed at any time, and makes it fast again")
def skips(fast):
    with balloon(driver_options={"skip_zeroing": 0, "reserve_mib": EVERYTHING}) as sim:
        equal("inflated", sim.figure("ballooned_bytes"), 0)
        (KNOBS / "skip_zeroing").write_text("1\n")
        (KNOBS / "reserve_mib").write_text("256\n")
        driver = Path(f"/sys/bus/virtio/drivers/{DRIVER}")
        name = sim.device.name
        (driver / "unbind").write_text(name)
        (driver / "bind").write_text(name)
        sim.settle(TARGET)
        at_most("microseconds without zeroing", sim.figure("inflate_us"), 3 * fast)


@group("no memory wanted")
def none():
    with balloon(target_mib=0) as sim:
        yield sim


@none.test("I1", "nothing is sent to a host that may not know of any memory")
def empty(sim):
    equal("insmod's error", sim.error, None)
    sim.settle(0)
    equal("commits", sim.stat("commits"), 0)
    equal("state", sim.figure("state"), "empty")


@group("a device that is not for us")
def not_offered():
    yield None


@not_offered.test("I4", "without the feature the device is left to the stock driver, which works")
def declined(_):
    with balloon(offer=0, target_mib=64) as sim:
        equal("bound", sim.bound(), False)
        # As the core has offered it to us: ACKNOWLEDGE.
        equal("status", sim.stat("status"), 1)
        subprocess.run(["modprobe", "virtio_balloon"], check=True)
        try:
            eventually("the stock driver inflates", lambda: sim.stat("actual_mib") == 64)
        finally:
            subprocess.run(["rmmod", "virtio_balloon"], check=True)


@group("at any moment")
def moments():
    yield None


@moments.test("I2", "the driver goes while it deflates, 20 times")
def churn(_):
    with balloon() as sim:
        for count in range(20):
            sim.set("delay_ms", 5)
            sim.set("target_mib", 0)
            eventually("a deflate", lambda: sim.figure("returned_bytes") > 0)
            rmmod(DRIVER)
            equal("ballooned memory", meminfo("Balloon"), 0)
            sim.set("delay_ms", 0)
            sim.set("target_mib", TARGET - 2 * count)
            equal("insmod's error", insmod(DRIVER), None)
            sim.settle(TARGET - 2 * count)


def main():
    reporter = Reporter()
    for entry in groups():
        if sys.argv[1:] and not any(re.search(word, entry.name) for word in sys.argv[1:]):
            continue
        run_group(reporter, entry)
        reporter.run(f"{entry.name}.quiet: I2: no complaint of the kernel", bed.expect_quiet)
    return reporter.finish()


if __name__ == "__main__":
    sys.exit(main())
