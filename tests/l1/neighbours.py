# SPDX-License-Identifier: GPL-2.0-only
"""What VMs on one host take from each other: each has a control group of its own, as
any management gives it, and its fair share is what the scheduler gives that group."""

import contextlib
import multiprocessing
import os
import time
from pathlib import Path

import host
from tap import eventually

ROOT = Path("/sys/fs/cgroup")


class Share:
    """A control group for the processor time of one process and all its threads."""

    def __init__(self, name, pid):
        if not (ROOT / "cgroup.procs").exists():
            host.run("mount", "-t", "cgroup2", "none", ROOT)
        (ROOT / "cgroup.subtree_control").write_text("+cpu")
        self._path = ROOT / name
        self._path.mkdir()
        (self._path / "cgroup.procs").write_text(str(pid))

    def freeze(self, frozen=True):
        """Stops all threads, or lets them go on."""
        (self._path / "cgroup.freeze").write_text(f"{frozen:d}")
        eventually("it is frozen, or not",
                   lambda: f"frozen {frozen:d}" in (self._path / "cgroup.events").read_text())

    def remove(self):
        """Gives back what there is of it."""
        self.freeze(False)
        for pid in (self._path / "cgroup.procs").read_text().split():
            (ROOT / "cgroup.procs").write_text(pid)
        self._path.rmdir()


@contextlib.contextmanager
def shares(**pids):
    """Control groups by the names of the arguments."""
    made = {}
    try:
        for name, pid in pids.items():
            made[name] = Share(name, pid)
        yield made
    finally:
        for share in made.values():
            share.remove()


def _spin():
    while True:
        pass


@contextlib.contextmanager
def outsiders():
    """Busy processes in no VM's group, two for each processor: what kernel threads
    would be that worked for a guest without being of its VM."""
    made = [multiprocessing.Process(target=_spin, daemon=True)
            for _ in range(2 * os.cpu_count())]
    try:
        for process in made:
            process.start()
        yield
    finally:
        for process in made:
            process.kill()
            process.join()


def work(vm, loops):
    """How long a VM takes for a piece of work, in seconds."""
    started = time.monotonic()
    vm.check(f"i=0; while [ $i -lt {loops} ]; do i=$((i + 1)); done", 120)
    return time.monotonic() - started


def loops_for(vm, seconds):
    """How much work takes so long."""
    loops = 1000
    # An emulated processor stands still at times.
    while (took := min(work(vm, loops) for _ in range(3))) < seconds / 4:
        loops *= 2
    return int(loops * seconds / took)
