# SPDX-License-Identifier: GPL-2.0-only
"""L1 itself: its processors find what they have lost, see scripts/l1/awake.py."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import host
from channel import TIME_FACTOR
from tap import Skip, equal, eventually, group

# For a debug kernel, and for the stock one, which L2 always is.
MODULES = [Path(f"/payload/{where}/lose_interrupt.ko") for where in ("ko", "tests/host")]
LOSE = Path("/sys/module/lose_interrupt/parameters/cpu")

# Seconds within which a processor with a timer returns from a sleep of a tenth.
SOON = 10 * TIME_FACTOR


@contextlib.contextmanager
def signalled(pids, first, then):
    """Sends processes a signal, and another one at the end."""
    for pid in pids:
        os.kill(pid, first)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, then)


@group("an interrupt that an emulated processor loses")
def awake():
    pids = subprocess.run(["pgrep", "-f", "l1/awake.py"], text=True, check=False,
                          stdout=subprocess.PIPE).stdout.split()
    if not pids:
        raise Skip("L1's processors are not emulated")
    host.run("insmod", next(path for path in MODULES if path.exists()))
    before = os.sched_getaffinity(0)
    # Of this processor's timer, or this test would sleep as well.
    os.sched_setaffinity(0, {0})
    yield [int(pid) for pid in pids]
    os.sched_setaffinity(0, before)
    host.run("rmmod", "lose_interrupt")


def sleep_there():
    """Has processor 1 sleep for a tenth of a second; returns the process that does."""
    return subprocess.Popen(["taskset", "-c", "1", "sleep", "0.1"])


def lose():
    """Loses a timer interrupt of processor 1; returns two processes, of which the second
    waits for another."""
    LOSE.write_text("1\n")
    first = sleep_there()
    eventually("an interrupt is lost", lambda: int(LOSE.read_text()) == -1)
    return first, sleep_there()


@awake.test("-", "it goes on")
def goes_on(_):
    log = host.KernelLog()
    for sleeper in lose():
        equal("status", sleeper.wait(SOON), 0)
    eventually("the kernel's log says so", lambda: log.matching("awake: CPU 1 lost interrupt"))


@awake.test("-", "negative control: without awake.py it does not, until that is back")
def control(pids):
    with signalled(pids, signal.SIGSTOP, signal.SIGCONT):
        sleepers = lose()
        with contextlib.suppress(subprocess.TimeoutExpired):
            sleepers[1].wait(SOON)
            raise AssertionError("processor 1 has woken up by itself")
    for sleeper in sleepers:
        equal("status", sleeper.wait(SOON), 0)
