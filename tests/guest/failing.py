# SPDX-License-Identifier: GPL-2.0-only
"""Devices that fail: they are reset, and the guest has its memory back."""

import contextlib
from pathlib import Path

from sim import DRIVER, TARGET, balloon, insmod, meminfo, rmmod
from tap import at_least, equal, eventually, group

# Of a device's status.
FAILED = 0x80

# Seconds: a device is looked at each second.
SOON = 5


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
            # As the core has offered it: the device serves nobody while it is marked FAILED.
            equal("status", sim.stat("status"), 1)
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


def expect_reset(sim, timeout=SOON):
    """The device is reset, and then all is given back; the device counts a breach for what
    is freed before."""
    eventually("state broken", lambda: sim.figure("state") == "broken", timeout)
    equal("ballooned memory", meminfo("Balloon"), 0)
    equal("in the balloon", sim.figure("ballooned_bytes"), 0)
    equal("given back", sim.figure("returned_bytes") >> 20, TARGET)
    equal("the device's status", sim.stat("status"), 0)
    equal("deflates that the device carried out", sim.stat("deflated_mib"), 0)


def rebind(sim):
    """The driver is bound anew."""
    driver = Path(f"/sys/bus/virtio/drivers/{DRIVER}")
    name = sim.device.name
    (driver / "unbind").write_text(name)
    (driver / "bind").write_text(name)


def gives_up(fault):
    """A test that a bad answer has the device reset, after which it works again."""
    def test(_):
        with balloon() as sim:
            # A whole request is carried out, whatever is said of it.
            sim.set("limit", 0)
            sim.set("fault", fault)
            sim.set("target_mib", 0)
            eventually("state broken", lambda: sim.figure("state") == "broken", SOON)
            equal("ballooned memory", meminfo("Balloon"), 0)
            equal("the device's status", sim.stat("status"), 0)
            sim.set("fault", "none")
            # Nobody is there to hear it.
            sim.set("target_mib", TARGET)
            equal("state", sim.figure("state"), "broken")
            rebind(sim)
            sim.settle(TARGET)
    test.__name__ = fault
    return test


for name in ("short", "overdone", "status"):
    bad_deflate.test("I2", "it is reset, and all is given back")(gives_up(name))


def breaks_with(name, control, at_work):
    """A test of a device that says, or does not say, that it needs a reset."""
    def test(_):
        with balloon() as sim:
            if at_work:
                sim.set("fault", "silent")
                sim.set("target_mib", 0)
                sim.state("deflating")
            sim.set("control", control)
            expect_reset(sim)
            sim.set("fault", "none")
    test.__name__ = name
    return test


for name, description, control, at_work in (
        ("breaks", "it breaks while an answer is due", "break", True),
        ("needs_reset", "it needs a reset while an answer is due", "needs_reset", True),
        ("quietly", "the same, without an interrupt", "needs_reset_quietly", True),
        ("resting", "it needs a reset while nothing is due", "needs_reset", False),
):
    bad_deflate.test("I2", description)(breaks_with(name, control, at_work))


@bad_deflate.test("I2", "who runs out of memory hears of it, and gets all that there is")
def in_need(_):
    with balloon() as sim:
        sim.set("fault", "silent")
        sim.set("target_mib", 0)
        sim.state("deflating")
        sim.set("control", "needs_reset_quietly")
        Path("/proc/sys/vm/drop_caches").write_text("2\n")
        expect_reset(sim)
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
        expect_reset(sim)
        sim.set("fault", "none")


@bad_deflate.test("I2", "the kernel shuts down while nothing is due: nothing is given back")
def shutdown_at_rest(_):
    with balloon() as sim:
        sim.set("control", "shutdown")
        equal("the device's status", sim.stat("status"), 0)
        # The next kernel has no use for it.
        equal("in the balloon", meminfo("Balloon"), TARGET)


@bad_deflate.test("I2", "without queues after a resume it is taken away like any other")
def not_resumed(_):
    with balloon() as sim:
        sim.set("control", "freeze")
        sim.set("fault", "queues")
        with contextlib.suppress(OSError):
            sim.set("control", "restore")
            raise AssertionError("it has resumed")
        equal("status", sim.stat("status") & FAILED, FAILED)
        equal("ballooned memory", meminfo("Balloon"), 0)


@bad_deflate.test("I2", "an answer that is late")
def late(_):
    with balloon() as sim:
        sim.set("fault", "silent")
        sim.set("target_mib", 0)
        sim.state("deflating")
        sim.set("fault", "none")
        sim.settle(0)


@bad_deflate.test("I2", "the driver goes while an answer is due")
def goes(_):
    with balloon() as sim:
        sim.set("fault", "silent")
        sim.set("target_mib", 0)
        sim.state("deflating")
        rmmod(DRIVER)
        equal("ballooned memory", meminfo("Balloon"), 0)
        sim.set("fault", "none")
