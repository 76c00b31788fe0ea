# SPDX-License-Identifier: GPL-2.0-only
"""VMs that die at the worst moments, and the module's coming and going. What must
be left of it all is nothing: see bed.expect_clean()."""

import contextlib
import functools
import os
import random
import subprocess
import sys

import bed
import guest
import host
import hostile
import rounds
import vfio
from edu import Edu
from tap import at_least, equal, eventually, group


# tests/l1/stress.py does more of all this.
KILLS = 5
LOADS = 5
OPENED = 20
SEED = 1


@group("VMs that are killed")
def killed():
    guest.prepare("deferred")
    yield None


@killed.test("I3", "negative control: a VM that lives is not taken for a clean host")
def alive(_):
    with guest.Guest("deferred", bed.MEMORY, paused=True) as vm:
        vm.wait_qmp()
        equal("what is clean", [what for what, holds in bed.CLEAN.items() if holds()], [])
        vm.quit()
    bed.expect_clean()


# What takes a guest that has booted is left to the stress tests.
for _phase in list(rounds.PHASES)[:-2]:
    killed.test("I3", f"in the phase: {_phase}", _phase.replace(" ", "_"))(
        functools.partial(lambda phase, _: print(f"# {rounds.kill_in(phase)}"), _phase))


@killed.test("I3", "while a device waits at the gate")
def at_gate(_):
    rounds.kill_at_gate()


@killed.test("I3", f"at {KILLS} random moments of their first seconds, seed {SEED}")
def at_random(_):
    rng = random.Random(SEED)
    started = guest.time_init("deferred", rounds.MEMORY)["qmp"]
    for _ in range(KILLS):
        # QEMU starts, or firmware and kernel do.
        rounds.kill_at(rng, rng.choice((2, 8)) * started)


@killed.test("I3", "one of two at once; the other goes on, and its DMA arrives")
def one_of_two(_):
    with bed.knobs_set(threshold_mib=0), \
         rounds.several(2, rounds.MEMORY, modules=[bed.DRIVER, bed.EDU_DRIVER],
                        cmdline=hostile.RESERVED) as (first, second):
        first.wait_line("L2: init", bed.BOOT)
        second.wait_line("L2: init", bed.BOOT)
        first.kill()
        second.wait_line("L2: ready", bed.BOOT)
        Edu(second).expect_dma(hostile.PAGE)
        bed.wait_mapped(second.pid)
        equal("VMs", bed.vms(), [second.pid])
        second.quit()
    bed.expect_clean()


def rmmod():
    """The error of unloading our module, or None."""
    done = subprocess.run(["rmmod", host.MODULE], text=True, check=False,
                          stderr=subprocess.PIPE)
    if not done.returncode:
        return None
    return "EBUSY" if "in use" in done.stderr else done.stderr


@group("the module's coming and going")
def module():
    guest.prepare("deferred")
    yield None
    host.unload_deferred()


@module.test("I7", "it cannot be unloaded under a VM")
def held_by_vm(_):
    with guest.Guest("deferred", bed.MEMORY, paused=True) as vm:
        vm.wait_qmp()
        equal("answer to rmmod", rmmod(), "EBUSY")
        equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), bed.HIGH)
        vm.quit()


@module.test("I7", "deleting the balloon device of a VM waits for the VM, which goes on")
def delete_under_vm(_):
    rounds.delete_under_vm()


@module.test("I7", "nor can it be unloaded under a container without a balloon")
def held_by_container(_):
    with contextlib.closing(vfio.Container(host.find_device(host.EDU))):
        equal("answer to rmmod", rmmod(), "EBUSY")


@module.test("I7", "balloon devices come and go, more than one at a time")
def balloons(_):
    for _ in range(3):
        names = [f"test{number}" for number in range(4)]
        for name in names:
            host.run("vdpa", "dev", "add", "name", name, "mgmtdev", host.MODULE)
        shown = host.run("vdpa", "dev", "show")
        equal("devices shown", [name for name in names if name not in shown], [])
        for name in names:
            host.run("vdpa", "dev", "del", name)
    equal("devices left", sorted(os.listdir("/sys/bus/vdpa/devices")), [host.BALLOON_NAME])


@module.test("I7", "a name cannot be taken twice, nor a device deleted that is not there")
def balloon_names(_):
    for words in (("add", "name", host.BALLOON_NAME, "mgmtdev", host.MODULE),
                  ("del", "nobody")):
        done = subprocess.run(["vdpa", "dev", *words], check=False, capture_output=True)
        at_least("exit status of vdpa", done.returncode, 1)


@module.test("I7", f"loaded and unloaded {LOADS} times, it leaves type1 as it was")
def reloaded(_):
    for _ in range(LOADS):
        rounds.load()
    rounds.expect_type1()


# delete_module(2) of x86-64, with O_NONBLOCK, until it is done.
UNLOAD = """
import ctypes, sys
while ctypes.CDLL(None).syscall(176, sys.argv[1].encode(), 0x800):
    pass
"""


@module.test("I7", f"it is unloaded {OPENED} times while somebody opens its balloon device again "
                   "and again")
def unloaded_while_opened(_):
    for _ in range(OPENED):
        # Before, vhost_vdpa_probe() may not be through: it makes the device's node before
        # what a close needs.
        host.load_deferred()
        # At an open's first call the module may already be going.
        with subprocess.Popen(["/payload/open_again", "/dev/vhost-vdpa-0"]) as opener:
            try:
                # Not run(): one that waits for ever cannot be killed.
                unload = subprocess.Popen(  # pylint: disable=consider-using-with
                    [sys.executable, "-c", UNLOAD, host.MODULE])
                eventually("it is unloaded", lambda: unload.poll() is not None)
            finally:
                opener.kill()
        equal("exit status", unload.returncode, 0)
    host.load_deferred()


@module.test("I7", "it can be loaded while a VM runs on type1 alone, which goes on undisturbed")
def loaded_under_vm(_):
    guest.prepare("stock")
    with guest.Guest("stock", bed.MEMORY, paused=True) as vm:
        vm.wait_qmp()
        locked = vm.memory()["VmLck"]
        host.load_deferred()
        equal("VMs", bed.vms(), [])
        equal("VmLck in KiB", vm.memory()["VmLck"], locked)
        vm.quit()
