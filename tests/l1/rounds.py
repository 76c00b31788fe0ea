# SPDX-License-Identifier: GPL-2.0-only
"""Rounds of which the tests do a few and the stress tests many: sudden ends of VMs,
the module's coming and going. What must be left of each is nothing."""

import contextlib
import os
import subprocess
from pathlib import Path

import bed
import guest
import host
import vfio
from tap import at_least, equal, eventually

MEMORY = "1G"

# All RAM is deferred and mapped in many small pieces, so that there is time for an
# end in the middle of it.
SLOW = {"threshold_mib": 0, "chunk_mib": 2, "reserve_mib": 256,
        "fallback_timeout_ms": 86_400_000}


def _stat(vm, name):
    """A figure of a VM, or 0 as long as it is not known."""
    return bed.stat(vm.pid, name) if vm.pid in bed.vms() else 0


# The phases of a VM's life: {name: (does its guest run, knobs, has it begun)}.
PHASES = {
    "before deferral": (False, {}, lambda vm: vm.pid in bed.vms()),
    "deferred": (False, {}, lambda vm: _stat(vm, "deferred_bytes")),
    "mapped without a commit": (False, {"fallback_timeout_ms": 0},
                                lambda vm: _stat(vm, "inner_mappings")),
    "inflating": (True, {}, lambda vm: _stat(vm, "inflated_ranges")),
    "committing": (True, {}, lambda vm: _stat(vm, "inner_mappings")),
    "pre-mapping": (True, {}, lambda vm: _stat(vm, "commits")),
    "deflating": (True, {}, lambda vm: _stat(vm, "hits")),
    "deflating on demand": (True, {"premap": 0, "chunk_mib": 64},
                            lambda vm: _stat(vm, "misses")),
    "steady": (True, {"chunk_mib": 1024},
               lambda vm: _stat(vm, "commits") and not _stat(vm, "unmapped_bytes")),
}


def kill_in(phase):
    """Kills a VM in a phase of its life; returns what it had then."""
    runs, knobs, begun = PHASES[phase]
    with bed.knobs_set(**{**SLOW, **knobs}), \
         guest.Guest("deferred", MEMORY, paused=not runs, modules=[bed.DRIVER]) as vm:
        if runs:
            vm.wait_line("L2: init", bed.BOOT)
        eventually(phase, lambda: begun(vm), 120, pause=0)
        left = _stat(vm, "unmapped_bytes")
    bed.expect_clean()
    return f"{phase}, {left >> 20} MiB not mapped"


def kill_at(rng, longest):
    """Kills a VM, paused or booting, at a random moment of its first `longest` seconds,
    with knobs at random. Returns what was done."""
    knobs = {"threshold_mib": rng.choice((0, 0, 0, 512)),
             "chunk_mib": rng.choice((2, 64, 1024)),
             "workers": rng.randint(1, 2),
             "fallback_timeout_ms": rng.choice((0, 86_400_000))}
    paused = rng.random() < 0.5
    moment = rng.uniform(0, longest)
    with bed.knobs_set(**knobs), \
         guest.Guest("deferred", MEMORY, paused=paused, modules=[bed.DRIVER],
                     stubborn=False) as vm:
        with contextlib.suppress(subprocess.TimeoutExpired):
            vm.process.wait(moment)
    bed.expect_clean()
    return f"{'paused' if paused else 'booting'}, {moment:.2f} s, {knobs}"


def kill_at_gate():
    """Kills a process while its device waits at the bus-master gate."""
    script = ("import sys, vfio; c = vfio.Container(sys.argv[1], '/dev/vhost-vdpa-0'); "
              "c.map(8 << 30, 1 << 30, vfio.memory(1 << 30)); c.set_master(True)")
    environment = {**os.environ, "PYTHONPATH": f"{os.path.dirname(__file__)}:/payload/l1"}
    with bed.knobs_set(chunk_mib=2, fallback_timeout_ms=86_400_000), \
         subprocess.Popen(["python3", "-c", script, host.find_device(host.EDU)],
                          env=environment) as process:
        eventually("it waits", lambda: process.pid in bed.vms()
                   and bed.stat(process.pid, "gate_trips") > 0, pause=0)
        process.kill()
        equal("how it ended", process.wait(), -9)
    bed.expect_clean()


def load():
    """Unloads our module and loads it, with type1 idle."""
    host.unload_deferred()
    equal("type1 is there", host.is_loaded("vfio_iommu_type1"), True)
    equal("our directory in sysfs is there", host.KNOBS.exists(), False)
    host.load_deferred()


def expect_type1():
    """Without our module, type1 maps and unmaps as ever."""
    host.unload_deferred()
    ram = vfio.memory(bed.MIB)
    with contextlib.closing(vfio.Container(host.find_device(host.EDU))) as container:
        equal("map", container.map(8 << 30, bed.MIB, ram), 0)
        equal("pages pinned", bed.pages_pinned(), bed.MIB // vfio.PAGE)
        equal("unmap", container.unmap(8 << 30, bed.MIB), (0, bed.MIB))
    vfio.unmap_memory(ram, bed.MIB)
    host.load_deferred()


def delete_balloon(vm):
    """Has `vdpa dev del` delete the balloon device of a running VM; it waits, in the
    kernel, for the VM's end. Returns its process."""
    node = next(Path(f"/sys/bus/vdpa/devices/{host.BALLOON_NAME}").glob("vhost-vdpa-*"))
    deletion = subprocess.Popen(["vdpa", "dev", "del", host.BALLOON_NAME])
    eventually("the device's node is gone", lambda: not node.exists())
    equal("exit status of vdpa, with the VM running", deletion.poll(), None)
    vm.qmp.command("query-status")
    return deletion


def delete_under_vm(paused=True):
    """Deletes the balloon device of a VM, which then ends, and makes it anew."""
    deletion = None
    with bed.knobs_set(**SLOW):
        try:
            with guest.Guest("deferred", MEMORY, paused=paused,
                             modules=[bed.DRIVER]) as vm:
                vm.wait_qmp()
                if not paused:
                    vm.wait_line("L2: ready", bed.BOOT)
                deletion = delete_balloon(vm)
                if paused:
                    # In the first MiB is what is no RAM.
                    at_least("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"),
                             bed.GIB - bed.MIB)
                else:
                    bed.wait_mapped(vm.pid)
        finally:
            if deletion:
                equal("exit status of vdpa, without the VM", deletion.wait(60), 0)
            host.load_deferred()
    bed.expect_clean()


@contextlib.contextmanager
def several(count, memory, **options):
    """So many VMs at once, each with an edu device and a balloon of its own."""
    devices = host.find_devices(host.EDU)[:count]
    equal("devices for VMs", len(devices), count)
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(guest.Guest(
            "deferred", memory, devices=[host.bind_to_vfio(address=address)],
            patience=count * guest.BOOT["bios"],
            balloon=stack.enter_context(bed.balloon(f"of{number}")), **options))
               for number, address in enumerate(devices)]
