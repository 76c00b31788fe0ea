# SPDX-License-Identifier: GPL-2.0-only
"""DMA of an assigned device arrives wherever the guest may use memory (I1, I2),
and nowhere else; what the balloon costs; that a reboot changes nothing."""

from types import SimpleNamespace

import bed
import guest
import host
from edu import PAGE, Edu
from tap import at_least, at_most, equal, eventually, group

# Pages that no kernel uses: the first and the last 2 MiB above 4 GiB.
FIRST = bed.START
LAST = bed.END - PAGE
RESERVED = f"memmap=2M${bed.START:#x} memmap=2M${bed.END - 2 * bed.MIB:#x}"

# The guest keeps 256 MiB of what it has available, and the page allocator has
# blocks in use here and there.
LEAST = bed.HIGH * 3 // 4


@group("a VM on stock type1: what the tests below are worth")
def stock():
    guest.prepare("stock")
    bed.stock_locked()
    with guest.Guest("stock", bed.MEMORY, modules=[bed.EDU_DRIVER], cmdline=RESERVED) as vm:
        vm.wait_line("L2: ready", bed.BOOT)
        yield vm
        vm.quit()


@stock.test("I1", "DMA reads and writes the first and the last page above 4 GiB and others")
def dma(vm):
    edu = Edu(vm)
    edu.expect_dma(FIRST, LAST)
    edu.expect_all(4)


@stock.test("I7", "as much memory is locked as when QEMU had started")
def locked(vm):
    equal("VmLck in KiB", vm.memory()["VmLck"], bed.stock_locked())


@group("a VM with our driver, its balloon held full, then emptied, then rebooted")
def balloon():
    bed.stock_locked()
    guest.prepare("floor")
    with guest.Guest("floor", bed.MEMORY) as vm:
        vm.wait_line("L2: ready", bed.BOOT)
        floor = SimpleNamespace(backed=bed.backed_above(vm), free=bed.meminfo(vm, "MemFree"),
                                total=bed.meminfo(vm, "MemTotal"))
        vm.quit()
    guest.prepare("deferred")
    with bed.knobs_set(hold=1, fallback_timeout_ms=86_400_000), \
         guest.Guest("deferred", bed.MEMORY, modules=[bed.DRIVER, bed.EDU_DRIVER],
                     cmdline=RESERVED) as vm:
        vm.wait_line("L2: ready", bed.BOOT)
        # The next time that this appears is after a reboot.
        vm.console.wait_text("L2: ready\n", bed.BOOT)
        yield SimpleNamespace(vm=vm, edu=Edu(vm), floor=floor, pid=vm.pid,
                              full=[row for row in bed.extents(vm.pid) if "Balloon" in row[2]])
        # Killed, not asked to quit: the fixture's end and the check after it are
        # the test of a VM's death in its steady state.


@balloon.test("I1", "after probe() most memory is in the balloon, and none outside is unmapped")
def committed(it):
    equal("deferred_bytes", bed.stat(it.pid, "deferred_bytes"), bed.HIGH)
    equal("commits", bed.stat(it.pid, "commits"), 1)
    equal("state", bed.stat(it.pid, "state"), "committed")
    at_least("ballooned_bytes", bed.stat(it.pid, "ballooned_bytes"), LEAST)
    equal("unmapped and outside", [row for row in bed.extents(it.pid) if "Outside" in row[2]], [])
    equal("unmapped_bytes", bed.stat(it.pid, "unmapped_bytes"),
          bed.stat(it.pid, "ballooned_bytes"))
    equal("the driver's ballooned_bytes", bed.driver(it.vm, "ballooned_bytes"),
          bed.stat(it.pid, "ballooned_bytes"))


@balloon.test("I1", "few messages, each of many ranges, fill it")
def messages(it):
    at_most("messages to fill and commit", bed.stat(it.pid, "messages"),
            4 * bed.HIGH // bed.GIB + 1)
    at_most("rows of the table", bed.stat(it.pid, "extents"), 200)


@balloon.test("I1", "the host backs no more than 5 % of RAM for what is in it")
def not_backed(it):
    at_most("bytes backed above 4 GiB, over those without a device",
            bed.backed_above(it.vm) - it.floor.backed, (bed.LOW + bed.HIGH) // 20)


@balloon.test("I1", "DMA arrives in all memory that the guest has kept")
def dma_outside(it):
    it.edu.expect_dma(FIRST, LAST)
    it.edu.expect_all(4)


@balloon.test("I2", "negative control: DMA to a page in the balloon faults, nothing arrives")
def dma_inside(it):
    # The top is what the guest gives back last, should it need memory meanwhile.
    end = [row for row in bed.extents(it.pid) if "Balloon" in row[2]][-1][1]
    for gpa in (end - 2 * bed.MIB, end - PAGE):
        with bed.provoked_fault():
            equal("bytes that changed", it.edu.changed_bytes(gpa), 0)


@balloon.test("I2", "let go, the host maps all, and the balloon empties")
def empties(it):
    host.set_knob("hold", 0)
    bed.wait_mapped(it.pid)
    eventually("the balloon is empty", lambda: bed.driver(it.vm, "ballooned_bytes") == 0)
    equal("the driver's state", bed.driver(it.vm, "state"), "empty")
    equal("the host's state", bed.stat(it.pid, "state"), "mapped")
    at_least("deflations", bed.stat(it.pid, "hits") + bed.stat(it.pid, "misses"), 1)
    equal("failures", bed.stat(it.pid, "failures"), 0)


@balloon.test("I2", "the guest has all its memory")
def memory_is_back(it):
    reserved = 4 * bed.MIB
    at_least("MemTotal", bed.meminfo(it.vm, "MemTotal"), it.floor.total - reserved - bed.MIB)
    at_least("MemFree", bed.meminfo(it.vm, "MemFree"), it.floor.free - bed.GIB // 8)


@balloon.test("I2", "DMA arrives in pages that were in the balloon")
def dma_deflated(it):
    # The allocator gives what was never in the balloon first.
    never_in = bed.HIGH - sum(end - start for start, end, _ in it.full)
    pages = it.edu.alloc(never_in // PAGE + 1024)
    were_in = [gpa for gpa in pages if any(start <= gpa < end for start, end, _ in it.full)]
    at_least("pages that were in the balloon", len(were_in), 4)
    it.edu.expect_dma(*were_in[-4:], FIRST, LAST)


@balloon.test("I7", "in the end as much memory is locked as without deferral")
def locked_at_last(it):
    equal("VmLck in KiB", it.vm.memory()["VmLck"], bed.stock_locked())


@balloon.test("I4", "after a reboot all stays mapped, and DMA arrives")
def reboot(it):
    def counters():
        return [bed.stat(it.pid, name)
                for name in ("inner_mappings", "inflated_ranges", "messages", "commits")]
    before = counters()
    it.vm.qmp.command("set-action", reboot="reset")
    it.vm.qmp.command("system_reset")
    it.vm.console.wait_text("L2: ready\n", bed.BOOT)
    equal("unmapped_bytes", bed.stat(it.pid, "unmapped_bytes"), 0)
    # Nothing is mapped, and the driver finds that there is nothing to say.
    equal("counters", counters(), before)
    equal("the driver's ballooned_bytes", bed.driver(it.vm, "ballooned_bytes"), 0)
    it.edu.expect_dma(FIRST, LAST)
    it.edu.expect_all(2)
    it.vm.qmp.command("set-action", reboot="shutdown")


@balloon.test("I4", "the driver can be unloaded and loaded again, and DMA arrives")
def reload_driver(it):
    for _ in range(3):
        it.vm.check(f"rmmod {bed.DRIVER_NAME}")
        it.vm.check(f"insmod /lib/modules/{bed.DRIVER_NAME}.ko")
    equal("the driver's state", bed.driver(it.vm, "state"), "empty")
    equal("unmapped_bytes", bed.stat(it.pid, "unmapped_bytes"), 0)
    it.edu.expect_dma(FIRST, LAST)


@group("a VM all of whose memory is deferred, whose driver is unloaded with a full balloon")
def unloaded():
    guest.prepare("deferred")
    with bed.knobs_set(threshold_mib=0, hold=1, fallback_timeout_ms=86_400_000), \
         guest.Guest("deferred", bed.MEMORY, modules=[bed.DRIVER, bed.EDU_DRIVER]) as vm:
        vm.wait_line("L2: ready", bed.BOOT)
        yield vm
        vm.quit()


@unloaded.test("I1", "low memory was deferred, too, and is mapped after probe()")
def low_memory(vm):
    at_least("deferred_bytes", bed.stat(vm.pid, "deferred_bytes"), bed.LOW + bed.HIGH - bed.MIB)
    equal("outside and unmapped", [row for row in bed.extents(vm.pid) if "Outside" in row[2]], [])
    Edu(vm).expect_all(2)


@unloaded.test("I4", "before the guest gets its pages back, all are mapped")
def maps_all(vm):
    at_least("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), LEAST)
    equal("masters", bed.stat(vm.pid, "masters"), 1)
    vm.check(f"rmmod {bed.DRIVER_NAME}", 120)
    equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), 0)


@unloaded.test("I4", "DMA arrives in them")
def dma_after(vm):
    Edu(vm).expect_all(8)


@group("a VM whose memory is mapped only as its balloon shrinks")
def on_demand():
    guest.prepare("deferred")
    with bed.knobs_set(premap=0, fallback_timeout_ms=86_400_000), \
         guest.Guest("deferred", bed.MEMORY, modules=[bed.DRIVER, bed.EDU_DRIVER]) as vm:
        vm.wait_line("L2: ready", bed.BOOT)
        yield vm
        vm.quit()


@on_demand.test("I2", "each step back is mapped while the guest waits, and in the end all is")
def misses(vm):
    bed.wait_mapped(vm.pid)
    eventually("the balloon is empty", lambda: bed.driver(vm, "ballooned_bytes") == 0)
    at_least("misses", bed.stat(vm.pid, "misses"), LEAST // (128 * bed.MIB))
    equal("failures", bed.stat(vm.pid, "failures"), 0)
    Edu(vm).expect_all(4)


@group("a VM that may not lock as much memory as it has")
def short_of_lock():
    """QEMU without CAP_IPC_LOCK. What it may lock is enough when RAM is deferred,
    and is lowered then, to all that is mapped and a little more."""
    guest.prepare("deferred")
    with bed.knobs_set(hold=1, fallback_timeout_ms=86_400_000, chunk_mib=64), \
         guest.Guest("deferred", bed.MEMORY, modules=[bed.DRIVER, bed.EDU_DRIVER],
                     prefix=bed.may_lock(5 * bed.GIB)) as vm:
        vm.wait_line("L2: ready", bed.BOOT)
        bed.limit_locked(vm.pid, vm.memory()["VmLck"] * 1024 + 512 * bed.MIB)
        host.set_knob("hold", 0)
        yield vm
        vm.quit()


@short_of_lock.test("I3", "what cannot be mapped stays in the balloon, and both sides say so")
def refused(vm):
    eventually("the host has failed", lambda: bed.stat(vm.pid, "failures"))
    eventually("the driver knows", lambda: bed.driver(vm, "state") == "refused")
    at_least("the driver's failed_deflates", bed.driver(vm, "failed_deflates"), 1)
    at_least("failed_bytes", bed.stat(vm.pid, "failed_bytes"), 64 * bed.MIB)
    held = bed.driver(vm, "ballooned_bytes")
    at_least("the driver's ballooned_bytes", held, bed.GIB // 2)
    at_most("the driver's ballooned_bytes", held, LEAST)
    equal("outside and unmapped", [row for row in bed.extents(vm.pid) if "Outside" in row[2]], [])


@short_of_lock.test("I3", "the guest runs on with less memory, in which DMA arrives")
def runs_on(vm):
    Edu(vm).expect_all(4)


@short_of_lock.test("I3", "given the limit, it gets all its memory by itself")
def recovers(vm):
    bed.limit_locked(vm.pid, 5 * bed.GIB)
    eventually("the balloon is empty", lambda: bed.driver(vm, "ballooned_bytes") == 0, 150)
    equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), 0)
    equal("failed_bytes", bed.stat(vm.pid, "failed_bytes"), 0)
    Edu(vm).expect_all(2)
