# SPDX-License-Identifier: GPL-2.0-only
"""What the tests of the balloon driver share: balloon_sim, the device, and the driver's
view of it."""

import contextlib
import re
import subprocess
from pathlib import Path

from tap import Skip, equal, eventually

HERE = Path(__file__).resolve().parent

DRIVER = "virtio_balloon_deferred"
SIM = "balloon_sim"
KNOBS = Path(f"/sys/kernel/{DRIVER}")
CONTROL = Path(f"/sys/kernel/debug/{SIM}")
# What the device wants in the balloon, in MiB, unless a test says otherwise.
TARGET = 2048


def find_module(name):
    for path in (HERE / f"{name}.ko", HERE.parent.parent / f"{name}.ko",
                 HERE.parent.parent / "guest" / f"{name}.ko"):
        if path.exists():
            return path
    raise Skip(f"{name}.ko was not built")


def insmod(name, **options):
    """Loads a module; returns the error's text, or None."""
    words = [f"{key}={value}" for key, value in options.items()]
    done = subprocess.run(["insmod", find_module(name), *words], text=True,
                          check=False, stderr=subprocess.PIPE)
    return done.stderr if done.returncode else None


def rmmod(name):
    if Path(f"/sys/module/{name}").exists():
        subprocess.run(["rmmod", name], check=True)


def meminfo(name):
    """A figure of /proc/meminfo in MiB."""
    text = Path("/proc/meminfo").read_text()
    return int(re.search(rf"^{name}:\s+(\d+) kB", text, re.M)[1]) >> 10


class Sim:
    """The device, and the driver's view of it."""

    def __init__(self, **options):
        self.total = meminfo("MemTotal")
        equal("ballooned memory before", meminfo("Balloon"), 0)
        error = insmod(SIM, **options)
        if error:
            raise RuntimeError(error)

    @property
    def device(self):
        return next(Path("/sys/bus/virtio/devices").glob("virtio*/deferred/..")).resolve()

    def bound(self):
        return any(Path(f"/sys/bus/virtio/drivers/{DRIVER}").glob("virtio*"))

    def stat(self, name):
        text = (CONTROL / "stat").read_text()
        return int(re.search(rf"^{name}=(\d+)$", text, re.M)[1])

    def figure(self, name):
        text = (self.device / "deferred" / name).read_text().strip()
        return int(text) if text.isdigit() else text

    def set(self, name, value):
        (CONTROL / name).write_text(f"{value}\n")

    def settle(self, mib):
        """Waits until this much is in the balloon, says everybody."""
        eventually(f"{mib} MiB in the balloon",
                   lambda: self.figure("ballooned_bytes") >> 20 == mib)
        eventually("the driver rests", lambda: self.figure("state") in ("inflated", "empty"))
        equal("the device's account", self.stat("ballooned_mib"), mib)
        equal("actual", self.stat("actual_mib"), mib)
        equal("Balloon of meminfo", meminfo("Balloon"), mib)
        equal("MemTotal", meminfo("MemTotal"), self.total)

    def state(self, name):
        return eventually(f"state {name}", lambda: self.figure("state") == name)


@contextlib.contextmanager
def balloon(driver_options=None, load=True, **options):
    """A device with a driver, unless the caller is to load it; nothing may be left of
    either, and no breach seen."""
    sim = Sim(**{"target_mib": TARGET, **options})
    try:
        if load:
            sim.error = insmod(DRIVER, **(driver_options or {}))
        yield sim
        rmmod(DRIVER)
        equal("ballooned memory without the driver", meminfo("Balloon"), 0)
        equal("breaches of the protocol", sim.stat("errors"), 0)
        equal("the device's status", sim.stat("status"), 1)
    finally:
        rmmod(DRIVER)
        rmmod(SIM)
