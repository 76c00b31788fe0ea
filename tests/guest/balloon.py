#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Tests of the balloon driver against balloon_sim, a device in the same kernel.

Runs in a virtual machine with 6 GiB and nothing else to do, for instance in L1:

    scripts/vm.py run --memory 6G tests/guest/balloon.py
"""

import contextlib
import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "l1"))

# pylint: disable=wrong-import-position
import bed
from channel import TIME_FACTOR
import order  # noqa: F401 Its tests are run as well.
from sim import DRIVER, KNOBS, TARGET, balloon, insmod, meminfo, rmmod
from tap import Reporter, Skip, at_least, at_most, equal, eventually, group, groups, run_group

GRANULE = 2
STEP = 128
EVERYTHING = 1 << 20
# So many times longer a balloon takes whose pages are zeroed. A debug kernel does more with
# each page than that.
ZEROING = 2 if TIME_FACTOR == 1 else 1.2
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
    for name, value in (("step_mib", "0"), ("step_mib", "1"), ("step_mib", "x"),
                        ("step_mib", "1048577"), ("reserve_mib", "-1"), ("reserve_mib", ""),
                        ("skip_zeroing", "2"), ("skip_zeroing", "-1"), ("skip_zeroing", "on"),
                        ("bind_wait_ms", "600001"), ("bind_wait_ms", "-1")):
        try:
            (KNOBS / name).write_text(f"{value}\n")
        except OSError:
            continue
        raise AssertionError(f"{name} accepts {value!r}")
    equal("step_mib", (KNOBS / "step_mib").read_text(), f"{STEP}\n")


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
    at_least("available", meminfo("MemAvailable"), RESERVE - 64)
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
    at_least("available", meminfo("MemAvailable"), 256 - 64)
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


@hardened.test("-", "it does so for the balloon, too, with skip_zeroing=0")
def zeroes(fast):
    # So that it also has gone on with it after the balloon before.
    at_least("microseconds with zeroing", inflation(skip_zeroing=0), ZEROING * fast)


@hardened.test("-", "it does so, too, while any user but root has a process")
def users(fast):
    with subprocess.Popen(["sleep", "infinity"], user=65534) as other:
        try:
            took = inflation()
        finally:
            other.kill()
    at_least("microseconds with zeroing", took, ZEROING * fast)


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


@group("memory runs out")
def pressure():
    with balloon() as sim:
        yield sim


def shrink():
    """Asks all shrinkers of the kernel for memory, as reclaim does."""
    Path("/proc/sys/vm/drop_caches").write_text("2\n")


@pressure.test("I2", "reclaim is heard, and the host told that it is urgent")
def reclaim(sim):
    sim.settle(TARGET)
    shrink()
    eventually("an urgent deflate", lambda: sim.stat("urgent") >= 1)
    eventually("memory", lambda: sim.figure("ballooned_bytes") >> 20 < TARGET)
    # Asked once for each node: there may be more steps than one.
    eventually("all accounts agree", lambda: TARGET - sim.stat("deflated_mib")
               == sim.figure("ballooned_bytes") >> 20 == sim.stat("ballooned_mib")
               == sim.stat("actual_mib") == meminfo("Balloon"))


@pressure.test("I2", "steps are whole granules, whatever step_mib says")
def odd_step(sim):
    before = sim.stat("deflated_mib")
    (KNOBS / "step_mib").write_text("7\n")
    shrink()
    eventually("memory", lambda: sim.stat("deflated_mib") > before)
    (KNOBS / "step_mib").write_text(f"{STEP}\n")
    equal("of a granule", sim.stat("deflated_mib") % GRANULE, 0)
    sim.state("inflated")


@pressure.test("I3", "reclaim does not drive a host that refuses")
def refused_reclaim(sim):
    held = sim.figure("ballooned_bytes") >> 20
    sim.set("fault", "nomap")
    shrink()
    sim.state("refused")
    equal("in the balloon", sim.figure("ballooned_bytes") >> 20, held)
    tries = sim.figure("failed_deflates")
    for _ in range(100):
        shrink()
    at_most("tries", sim.figure("failed_deflates"), tries + 3)
    sim.set("fault", "none")
    sim.set("target_mib", held - STEP)
    eventually("memory", lambda: sim.figure("ballooned_bytes") >> 20 <= held - STEP)


@pressure.test("I2", "with a slow host, the balloon gives way before anybody is killed")
def out_of_memory(sim):
    # Reclaim finds nothing for so long that it gives up and turns to the OOM notifier.
    sim.set("delay_ms", 700)
    need = meminfo("MemAvailable") + TARGET // 2
    killed = vmstat("oom_kill")
    program = f"b = bytearray({need} << 20)\nprint(len(b) >> 20)"
    done = subprocess.run(["python3", "-c", program], text=True, check=False,
                          stdout=subprocess.PIPE)
    equal("the memory hog's output", done.stdout, f"{need}\n")
    equal("OOM kills", vmstat("oom_kill"), killed)
    sim.set("delay_ms", 0)
    # The driver counts a request when it asks, the device when it answers.
    eventually("as many urgent requests at the device as at the driver",
               lambda: sim.stat("urgent") == sim.figure("urgent_requests"))
    sim.settle(TARGET - sim.stat("deflated_mib"))


def vmstat(name):
    return int(re.search(rf"^{name} (\d+)$", Path("/proc/vmstat").read_text(), re.M)[1])


@group("a probe() that fails")
def bad_probe():
    yield None


def fails(fault):
    """A test that probe() fails and keeps nothing."""
    def test(_):
        with balloon(first_fault=fault) as sim:
            equal("bound", sim.bound(), False)
            equal("ballooned memory", meminfo("Balloon"), 0)
            equal("the device's account", sim.stat("ballooned_mib"), 0)
            at_least("resets", sim.stat("resets"), 2)
            # FAILED alone: the reset came before it.
            equal("status", sim.stat("status"), 0x80)
            rmmod(DRIVER)
            sim.set("fault", "none")
            equal("insmod's error", insmod(DRIVER), None)
            sim.settle(TARGET)
    test.__name__ = fault
    return test


for name in ("inflate", "commit", "short", "overdone", "status"):
    bad_probe.test("I3", "all is handed back, and the next try works")(fails(name))


@group("a device that fails later")
def bad_deflate():
    yield None


def gives_up(fault):
    """A test that after a bad answer nothing leaves the balloon until a reset."""
    def test(_):
        with balloon() as sim:
            sim.set("fault", fault)
            sim.set("target_mib", 0)
            sim.state("broken")
            equal("in the balloon", sim.figure("ballooned_bytes") >> 20, TARGET)
            sim.set("fault", "none")
            sim.set("target_mib", 2)
            equal("in the balloon", sim.figure("ballooned_bytes") >> 20, TARGET)
            equal("state", sim.figure("state"), "broken")
    test.__name__ = fault
    return test


for name in ("short", "overdone", "status"):
    bad_deflate.test("I2", "what is in the balloon stays there")(gives_up(name))


@bad_deflate.test("I2", "a device that breaks while an answer is due")
def breaks(_):
    with balloon() as sim:
        sim.set("fault", "silent")
        sim.set("target_mib", 0)
        sim.state("deflating")
        sim.set("control", "break")
        sim.state("broken")
        equal("in the balloon", sim.figure("ballooned_bytes") >> 20, TARGET)
        sim.set("fault", "none")


@bad_deflate.test("I2", "the kernel shuts down while an answer is due: the device is reset")
def shutdown(_):
    with balloon() as sim:
        sim.set("fault", "silent")
        sim.set("target_mib", 0)
        sim.state("deflating")
        # The virtio core does this for drivers without a shutdown() of their own. So the next
        # kernel, if there is one, meets a device that is as new.
        sim.set("control", "shutdown")
        equal("the device's status", sim.stat("status"), 0)
        sim.state("broken")
        # Nobody may use it: the device has been told nothing of it.
        equal("in the balloon", meminfo("Balloon"), TARGET)
        shrink()
        equal("in the balloon", meminfo("Balloon"), TARGET)
        sim.set("fault", "none")


@bad_deflate.test("I2", "without queues after a resume it is taken away like any other")
def not_resumed(_):
    with balloon() as sim:
        sim.set("control", "freeze")
        sim.set("fault", "queues")
        with contextlib.suppress(OSError):
            sim.set("control", "restore")
            raise AssertionError("it has resumed")
        # FAILED
        equal("status", sim.stat("status") & 0x80, 0x80)
        equal("ballooned memory", meminfo("Balloon"), 0)


@bad_deflate.test("I2", "an answer that is late")
def late(_):
    with balloon() as sim:
        sim.set("fault", "silent")
        sim.set("target_mib", 0)
        sim.state("deflating")
        sim.set("fault", "none")
        sim.settle(0)


@group("a device that is not for us")
def not_offered():
    yield None


@not_offered.test("I4", "without the feature the device is left to the stock driver, which works")
def declined(_):
    with balloon(offer=0, target_mib=64) as sim:
        equal("bound", sim.bound(), False)
        equal("status", sim.stat("status") & 0xc, 0)
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
        run_group(reporter, entry)
        reporter.run(f"{entry.name}.quiet: I2: no complaint of the kernel", bed.expect_quiet)
    return reporter.finish()


if __name__ == "__main__":
    sys.exit(main())
