# SPDX-License-Identifier: GPL-2.0-only
"""What is done to a VM's QEMU while the balloon empties: it is stopped and goes on, its
memory is dumped, it has real-time priority."""

import contextlib
import os
import random
import time
from pathlib import Path

import bed
import guest
from channel import TIME_FACTOR
from edu import Edu
from probe import Probe
from tap import at_least, at_most, equal, eventually, group

# The longest time between two acts, in seconds; and of acts between the commit and the
# moment when all is mapped the most, and the least, on a machine however busy.
PAUSE = 0.1
MOST, LEAST = 20, 2

# What is dumped of its memory at a time, and where to.
PIECE = 64 * bed.MIB
DUMP = Path("/tmp/dump")

# In pages of 4 KiB, which take time to map.
SLOW = "memory-backend-memfd,share=on"

# Seconds in which QEMU has answered that nothing keeps from it, on a busy machine.
PROMPT = 4


@group("VMs that are managed while their balloon empties")
def managed():
    guest.prepare("deferred")
    with bed.knobs_set(fallback_timeout_ms=86_400_000):
        yield lambda modules, **options: guest.Guest(
            "deferred", bed.MEMORY, backend=SLOW, modules=modules,
            files={"lib/modules/edu_dma.ko": bed.EDU_DRIVER}, **options)


def stop(vm, _rng):
    vm.qmp.command("stop")
    vm.qmp.command("cont")


def dump(vm, rng):
    """Of memory that was or is in the balloon."""
    start = bed.START + rng.randrange(bed.HIGH // PIECE) * PIECE
    vm.qmp.command("dump-guest-memory", paging=False, protocol=f"file:{DUMP}", begin=start,
                   length=PIECE)
    at_least("bytes dumped", DUMP.stat().st_size, PIECE)
    DUMP.unlink()


def manage(vm, rng):
    """Stops and dumps the VM as long as something is not mapped. Returns what was done and
    the seconds that it took. (QEMU resets the balloon device when it stops: what was in the
    balloon counts as outside from then on, and is mapped when the device is used.)"""
    acts = []
    while bed.stat(vm.pid, "unmapped_bytes") and len(acts) < MOST:
        act = rng.choice((stop, dump))
        started = time.monotonic()
        act(vm, rng)
        acts.append(f"{act.__name__} {time.monotonic() - started:.2f}")
        time.sleep(rng.random() * PAUSE)
    return acts


@managed.test("I2", "stopped, and dumped, at any moment between commit and the last map, a VM "
                    "loses nothing")
def stops(new):
    seed = random.SystemRandom().randrange(1 << 31)
    print(f"# seed {seed}", flush=True)
    with bed.knobs_set(workers=1), new([bed.DRIVER]) as vm:
        vm.qmp.may_stop = True
        vm.wait_line(f"L2: loaded {bed.DRIVER_NAME}", bed.BOOT)
        acts = manage(vm, random.Random(seed))
        print(f"# seconds: {', '.join(acts)}", flush=True)
        at_least("acts", len(acts), LEAST)
        equal("commits", bed.stat(vm.pid, "commits"), 1)
        vm.check("insmod /lib/modules/edu_dma.ko", 120)
        Edu(vm).expect_all(64)
        eventually("the guest has all its memory",
                   lambda: bed.driver(vm, "state") == "empty", 120)
        equal("failed_deflates", bed.driver(vm, "failed_deflates"), 0)
        equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), 0)
        vm.quit()


@contextlib.contextmanager
def more_urgent():
    """What measures has to run when QEMU does not."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(2))
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def policies(pid):
    """Of all mapping threads of a VM."""
    return {os.sched_getscheduler(int(path.parent.name))
            for path in Path(f"/proc/{pid}/task").glob("*/comm")
            if path.read_text().startswith("vfio-deferred")}


@managed.test("-", "a QEMU of real-time priority answers at any time, however many threads map "
                   "memory that takes its time")
def realtime(new):
    with more_urgent(), bed.knobs_set(workers=4):
        for policy in ("-o", "0"), ("-f", "1"):
            with new([bed.DRIVER, bed.EDU_DRIVER], prefix=("chrt", *policy)) as vm, \
                 Probe(vm) as probe:
                vm.wait_line(f"L2: loaded {bed.DRIVER_NAME}", bed.BOOT)
                equal("policies of the mapping threads", policies(vm.pid), {os.SCHED_OTHER})
                bed.wait_mapped(vm.pid)
                vm.wait_line("L2: ready", bed.BOOT)
                equal("commits", bed.stat(vm.pid, "commits"), 1)
                Edu(vm).expect_all(4)
                probe.stop()
                vm.quit()
            print(f"# chrt {' '.join(policy)}: {probe.worst:.2f} s for an answer at most, at "
                  f"{probe.worst_at:.1f} s", flush=True)
            at_most("seconds for an answer", probe.worst, PROMPT * TIME_FACTOR)
