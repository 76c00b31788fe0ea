# SPDX-License-Identifier: GPL-2.0-only
"""VMs that die at the worst moments, and the module's coming and going. What must
be left of it all is nothing: see bed.expect_clean()."""

import contextlib
import os
import subprocess

import bed
import guest
import host
import vfio
from tap import at_least, equal, eventually, group


@group("VMs that are killed")
def killed():
    guest.prepare("deferred")
    with bed.knobs_set(fallback_timeout_ms=86_400_000):
        yield None


@killed.test("I3", "right after deferral")
def after_deferral(_):
    with guest.Guest("deferred", bed.MEMORY, paused=True) as vm:
        vm.wait_qmp()
        equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), bed.HIGH)
    bed.expect_clean()


@killed.test("I3", "while QEMU starts")
def in_start(_):
    with guest.Guest("deferred", bed.MEMORY, paused=True) as vm:
        eventually("the VM is known", lambda: vm.pid in bed.vms())
    bed.expect_clean()


@killed.test("I3", "while the background maps its memory")
def in_mapping(_):
    with bed.knobs_set(chunk_mib=2, fallback_timeout_ms=0), \
         guest.Guest("deferred", bed.MEMORY, paused=True) as vm:
        eventually("a part is mapped",
                   lambda: vm.pid in bed.vms() and bed.stat(vm.pid, "inner_mappings") > 0,
                   pause=0)
    bed.expect_clean()


@killed.test("I3", "while its guest fills the balloon")
def in_inflation(_):
    with guest.Guest("deferred", bed.MEMORY, modules=[bed.DRIVER]) as vm:
        vm.wait_line("L2: init", bed.BOOT)
        eventually("the balloon fills", lambda: bed.stat(vm.pid, "messages") > 0, pause=0)
    bed.expect_clean()


@killed.test("I3", "while a device waits at the gate")
def at_gate(_):
    address = host.find_device(host.EDU)
    script = ("import sys, vfio; c = vfio.Container(sys.argv[1], '/dev/vhost-vdpa-0'); "
              "c.map(8 << 30, 1 << 30, vfio.memory(1 << 30)); c.set_master(True)")
    environment = {**os.environ, "PYTHONPATH": f"{os.path.dirname(__file__)}:/payload/l1"}
    with bed.knobs_set(chunk_mib=2), \
         subprocess.Popen(["python3", "-c", script, address], env=environment) as process:
        eventually("it waits", lambda: process.pid in bed.vms()
                   and bed.stat(process.pid, "gate_trips") > 0, pause=0)
        process.kill()
        equal("how it ended", process.wait(), -9)
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


@module.test("I7", "nor under a container without a balloon")
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


@module.test("I7", "loaded and unloaded ten times, it leaves type1 as it was")
def rounds(_):
    for _ in range(10):
        host.unload_deferred()
        equal("type1 is there", host.is_loaded("vfio_iommu_type1"), True)
        host.load_deferred()
    host.unload_deferred()
    equal("our directory in sysfs is there", host.KNOBS.exists(), False)
    ram = vfio.memory(bed.MIB)
    with contextlib.closing(vfio.Container(host.find_device(host.EDU))) as container:
        equal("map", container.map(8 << 30, bed.MIB, ram), 0)
        equal("pages pinned", bed.pages_pinned(), bed.MIB // vfio.PAGE)
        equal("unmap", container.unmap(8 << 30, bed.MIB), (0, bed.MIB))
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
