# SPDX-License-Identifier: GPL-2.0-only
"""Who is deferred and who is not (I5), limits at MAP_DMA (I3), knobs."""

import contextlib
import errno

import bed
import guest
import host
from tap import at_least, equal, group, matches


def refusal(mode, limit):
    """What QEMU says when it does not start with so many bytes to lock."""
    with guest.Guest(mode, bed.MEMORY, paused=True,
                     prefix=bed.may_lock(limit)) as vm:
        status = vm.wait_exit(60)
    equal("QEMU's exit status", status, 1)
    return (guest.RESULTS / f"{vm.name}.qemu").read_text()


@group("limits of locked memory")
def limits():
    guest.prepare("stock")
    text = refusal("stock", 3 * bed.GIB)
    guest.prepare("deferred")
    yield text


@limits.test("I3", "what type1 refuses at MAP_DMA for its limit is refused at MAP_DMA, too")
def refused(text):
    pattern = r"0x100000000, 0x80000000, .*Cannot allocate memory"
    matches("what QEMU says on stock type1", text, pattern)
    matches("what QEMU says with deferral", refusal("deferred", 3 * bed.GIB), pattern)


@limits.test("I3", "negative control: with a limit that is enough it starts, and is deferred")
def enough(_):
    with guest.Guest("deferred", bed.MEMORY, paused=True,
                     prefix=bed.may_lock(5 * bed.GIB)) as vm:
        vm.wait_qmp()
        equal("unmapped_bytes", bed.stat(vm.pid, "unmapped_bytes"), bed.HIGH)
        vm.quit()


@group("VMs that are none of our business")
def bystanders():
    bed.stock_locked()
    guest.prepare("deferred")
    yield lambda **options: guest.Guest("stock", bed.MEMORY, paused=True, **options)


@bystanders.test("I5", "a VM without a balloon is mapped at once, and is not listed")
def no_balloon(new):
    with new() as vm:
        vm.wait_qmp()
        equal("VMs", bed.vms(), [])
        equal("VmLck in KiB", vm.memory()["VmLck"], bed.stock_locked())
        equal("backed above 4 GiB", bed.backed_above(vm), bed.HIGH)
        vm.quit()


@bystanders.test("I5", "a balloon that comes after the device defers nothing, and the log says so")
def wrong_order(new):
    lines = len(bed.LOG.update())
    with new(args=guest.BALLOON) as vm:
        vm.wait_qmp()
        equal("deferred_bytes", bed.stat(vm.pid, "deferred_bytes"), 0)
        equal("VmLck in KiB", vm.memory()["VmLck"], bed.stock_locked())
        vm.quit()
    matches("L1's log", "\n".join(bed.LOG.update()[lines:]), f"{host.MODULE}: .*balloon.*(after|before)")


@bystanders.test("I5", "a VM with a balloon and no device has nothing to defer")
def no_device(_):
    with guest.Guest("floor", bed.MEMORY, paused=True, args=guest.BALLOON) as vm:
        vm.wait_qmp()
        equal("deferred_bytes", bed.stat(vm.pid, "deferred_bytes"), 0)
        equal("pages pinned", bed.pages_pinned(), 0)
        vm.quit()


@bystanders.test("I5", "our driver waits in neither of them for a host that has nothing to map")
def nothing_to_map(_):
    for mode in ("stock", "floor"):
        # Its queues are above 4 GiB, where the host knows of no memory.
        with guest.Guest(mode, bed.MEMORY, args=guest.BALLOON, modules=[bed.DRIVER]) as vm:
            vm.wait_line("L2: ready", bed.BOOT)
            equal("state", bed.driver(vm, "state"), "empty")
            equal("messages", bed.driver(vm, "messages_sent"), 0)
            vm.quit()


NOT_NUMBERS = ("", "x", "1 2", "0x", "1e3", "1" * 40)
NOT_BOOLEANS = ("", "x", "2", "-1", "maybe")

# Each knob with values that it takes and values that it does not.
KNOBS = {
    "threshold_mib": ((0, 1 << 24), (*NOT_NUMBERS, -1, (1 << 24) + 1, 1 << 64)),
    "reserve_mib": ((0, 1 << 24), (*NOT_NUMBERS, -1, (1 << 24) + 1)),
    "chunk_mib": ((2, 1024), (*NOT_NUMBERS, 0, 1, 3, 2048)),
    "eager_first_mib": ((0, 1 << 24), (*NOT_NUMBERS, -1, (1 << 24) + 1)),
    "eager_low_top_mib": ((0, 1 << 24), (*NOT_NUMBERS, -1, (1 << 24) + 1)),
    "eager_top_mib": ((0, 1 << 24), (*NOT_NUMBERS, -1, (1 << 24) + 1)),
    "workers": ((0, 64), (*NOT_NUMBERS, -1, 65)),
    "nice": ((0, 19), (*NOT_NUMBERS, -1, 20)),
    "fallback_timeout_ms": ((0, 86_400_000), (*NOT_NUMBERS, -1, 86_400_001)),
    "premap": ((0, 1), NOT_BOOLEANS),
    "premap_at_start": ((1, 0), NOT_BOOLEANS),
    "populate": ((0, 1), NOT_BOOLEANS),
    "firmware": ((1, 0), NOT_BOOLEANS),
    "policy": (("gate", "balloon"), ("", "x", "0", "gate balloon")),
    "gate": ((0, 1), NOT_BOOLEANS),
    "trap": ((0, 1), NOT_BOOLEANS),
    "hold": ((1, 0), NOT_BOOLEANS),
}


def answer(name, value):
    """The error of setting a knob, or None."""
    try:
        host.set_knob(name, value)
    except OSError as error:
        return errno.errorcode[error.errno]
    return None


@group("the administrator's knobs")
def knobs():
    guest.prepare("deferred")
    yield bed.knobs()


@knobs.test("I6", "there are no others")
def all_known(before):
    equal("knobs", sorted(before), sorted(KNOBS))


@knobs.test("I6", "each takes the least and the most of its range")
def good_values(before):
    for name, (good, _) in KNOBS.items():
        with bed.knobs_set(**{name: before[name]}):
            for value in good:
                host.set_knob(name, value)
                equal(name, host.knob(name), str(value))
    equal("knobs", bed.knobs(), before)


@knobs.test("I6", "each refuses what is out of its range or no number, and keeps its value")
def bad_values(before):
    tried = 0
    for name, (_, bad) in KNOBS.items():
        with bed.knobs_set(**{name: before[name]}):
            for value in bad:
                equal(f"answer to {value!r} for {name}", answer(name, value), "EINVAL")
                equal(f"{name} after {value!r}", host.knob(name), before[name])
                tried += 1
    at_least("values tried", tried, 50)


@knobs.test("I6", "figures of a VM cannot be written")
def read_only(_):
    with guest.Guest("deferred", bed.MEMORY, paused=True) as vm:
        vm.wait_qmp()
        files = list((host.KNOBS / "vms" / str(vm.pid)).iterdir())
        at_least("files", len(files), 15)
        for path in files:
            equal(f"mode of {path.name}", path.stat().st_mode & 0o222, 0)
            with contextlib.suppress(OSError):
                path.write_text("1")
                raise AssertionError(f"{path.name} can be written")
        vm.quit()
