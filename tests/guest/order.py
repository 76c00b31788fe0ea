# SPDX-License-Identifier: GPL-2.0-only
"""Drivers of other devices that come while a balloon is on its way."""

import contextlib
import re
import subprocess
from pathlib import Path

import host
from sim import DRIVER, KNOBS, SIM, TARGET, Sim, find_module, insmod, rmmod
from tap import Skip, at_least, equal, eventually, group

EDU_DRIVER = "edu_dma"


class Coming:
    """A balloon in the middle of its driver's probe(), until the device answers, and a
    PCI device to which a driver is bound meanwhile."""

    def __init__(self, pci, sim, loader):
        self.pci = pci
        self.sim = sim
        self.loader = loader
        self.log = host.KernelLog()

    def bind(self, driver=EDU_DRIVER):
        """Has a process bind a driver to the device."""
        path = f"/sys/bus/pci/drivers/{driver}/bind"
        # The shell writes itself: it can be killed in the middle.
        return subprocess.Popen(["sh", "-c", f"echo {self.pci.name} >{path}"],
                                stderr=subprocess.DEVNULL)

    def bound(self):
        return (self.pci / "driver").exists()

    def waits(self, count):
        equal("drivers that had to wait", knob("bind_waits"), count)

    def silent(self):
        """The balloon is still on its way."""
        equal("insmod's exit status", self.loader.poll(), None)
        equal("commits", self.sim.stat("commits"), 0)

    def answer(self, fault="none"):
        """Lets probe() come to its end."""
        self.sim.set("fault", fault)
        self.loader.wait(60)


def knob(name):
    return int((KNOBS / name).read_text())


@contextlib.contextmanager
def coming(pci, **driver_options):
    """A Coming; nothing is left of it."""
    sim = Sim(target_mib=TARGET, first_fault="silent")
    words = [f"{key}={value}" for key, value in driver_options.items()]
    loader = subprocess.Popen(["insmod", find_module(DRIVER), *words])
    state = Coming(pci, sim, loader)
    try:
        eventually("probe() inflates", lambda: [
            path for path in Path("/sys/bus/virtio/devices").glob("virtio*/deferred/state")
            if path.read_text() == "inflating\n"])
        yield state
        state.answer()
        equal("breaches of the protocol", sim.stat("errors"), 0)
    finally:
        state.answer()
        if state.bound():
            (pci / "driver/unbind").write_text(pci.name)
        rmmod(DRIVER)
        rmmod(SIM)


@group("drivers of other devices come while a balloon is on its way")
def order():
    try:
        address = host.find_device(host.EDU)
    except RuntimeError as error:
        raise Skip(str(error)) from error
    pci = host.DEVICES / address
    equal("error of loading the device's driver", insmod(EDU_DRIVER), None)
    try:
        (pci / "driver/unbind").write_text(address)
        yield pci
    finally:
        rmmod(EDU_DRIVER)


@order.test("I1", "they are bound after the commit")
def bind_waits(pci):
    with coming(pci) as state:
        binder = state.bind()
        eventually("a driver that has to wait", lambda: knob("bind_waits") == 1)
        state.silent()
        equal("exit status of who binds", binder.poll(), None)
        equal("bound", state.bound(), False)
        state.answer()
        equal("exit status of who binds", binder.wait(60), 0)
        equal("bound", state.bound(), True)
        # Both are printed while the other side has to wait for it.
        seen = [match[1] for match in map(re.compile(r"(committed in|waited) \d+ ms").search,
                                          state.log.update()) if match]
        equal("what happened, in order", seen, ["committed in", "waited"])
        equal("time limits exceeded", knob("bind_timeouts"), 0)
        state.waits(1)


@order.test("I1", "with bind_wait_ms=0 they are bound before it: the tests here can fail")
def bind_control(pci):
    with coming(pci, bind_wait_ms=0) as state:
        equal("exit status of who binds", state.bind().wait(60), 0)
        equal("bound", state.bound(), True)
        state.silent()
        state.waits(0)


@order.test("-", "a device that does not answer costs the time limit once")
def bind_limit(pci):
    with coming(pci, bind_wait_ms=100) as state:
        for _ in range(2):
            equal("exit status of who binds", state.bind().wait(60), 0)
            equal("bound", state.bound(), True)
            (pci / "driver/unbind").write_text(pci.name)
        state.silent()
        state.waits(1)
        equal("time limits exceeded", knob("bind_timeouts"), 1)


@order.test("-", "who waits can be killed")
def bind_kill(pci):
    with coming(pci, bind_wait_ms=600000) as state:
        binder = state.bind()
        eventually("a driver that has to wait", lambda: knob("bind_waits") == 1)
        binder.kill()
        binder.wait(60)
        state.silent()
        equal("time limits exceeded", knob("bind_timeouts"), 0)


@order.test("-", "a probe() that fails lets them go on")
def bind_failed(pci):
    with coming(pci, bind_wait_ms=600000) as state:
        binder = state.bind()
        eventually("a driver that has to wait", lambda: knob("bind_waits") == 1)
        state.answer("inflate")
        equal("the balloon's driver is bound", state.sim.bound(), False)
        equal("exit status of who binds", binder.wait(60), 0)
        equal("time limits exceeded", knob("bind_timeouts"), 0)


@order.test("-", "virtio-pci, which balloons come by, never waits")
def bind_virtio(pci):
    override = pci / "driver_override"
    with coming(pci, bind_wait_ms=600000) as state:
        override.write_text("virtio-pci\n")
        try:
            # It does not know the device.
            at_least("exit status of who binds", state.bind("virtio-pci").wait(60), 1)
        finally:
            override.write_text("\n")
        state.silent()
        state.waits(0)


@order.test("-", "without a balloon nobody waits")
def bind_alone(pci):
    equal("insmod's error", insmod(DRIVER), None)
    try:
        (pci.parents[1] / "drivers" / EDU_DRIVER / "bind").write_text(pci.name)
        equal("drivers that had to wait", knob("bind_waits"), 0)
        (pci / "driver/unbind").write_text(pci.name)
    finally:
        rmmod(DRIVER)
