# SPDX-License-Identifier: GPL-2.0-only
"""What maps and unmaps of single pages cost, compared with type1 alone (I7): a guest
with a virtual IOMMU, or a process that maps page by page, has tens of thousands."""

import bed
import guest
import host
from tap import equal, group
from test_type1 import BALLOON

COUNTS = (2_000, 8_000, 32_000)
CASES = [(where, count) for where in ("low", "high") for count in COUNTS]
# Most of all in turn; the fastest of each counts, and if all are fast enough, that will do.
ROUNDS = 6
# Most that ours may take of what type1 alone does. On an emulated processor, which has no faster
# and slower instructions, looking a call up and noting it is a sixth of a map, and a third of an
# unmap. What costs time with the number of maps, or makes a page of memory for each, is several
# times as slow.
MOST = 1.5
KINDS = ("map", "unmap", "unmap of all")


def costs(count, where, *balloon):
    """Nanoseconds that a page takes: (map, unmap, one unmap of all)."""
    address = host.find_device(host.EDU)
    grp = (host.DEVICES / address / "iommu_group").resolve().name
    output = host.run("/payload/map_costs", grp, address, count, where, *balloon)
    return tuple(map(int, output.split()))


def too_slow(found, places=("low", "high")):
    """What takes too long, in words."""
    slow = []
    for (mode, where, count), figures in found.items():
        if mode == "stock" or where not in places:
            continue
        for kind, mine, theirs in zip(KINDS, figures, found["stock", where, count]):
            if mine > theirs * MOST:
                slow.append(f"{kind}, {where}, {count} maps, {mode}: {mine} ns, stock {theirs} ns")
    return slow


@group("what maps and unmaps cost, compared with type1 alone")
def costs_of_maps():
    found = {}

    def measure(mode, where, count, *balloon):
        key = mode, where, count
        new = costs(count, where, *balloon)
        found[key] = tuple(map(min, found.get(key, new), new))

    for _ in range(ROUNDS):
        if found and not too_slow(found):
            break
        guest.prepare("stock")
        for where, count in CASES:
            measure("stock", where, count)
        guest.prepare("deferred")
        with bed.knobs_set(fallback_timeout_ms=86_400_000):
            for where, count in CASES:
                measure("bystander", where, count)
                measure("balloon", where, count, BALLOON)
                with bed.knobs_set(policy="gate"):
                    measure("gate", where, count)
    for (mode, where, count), figures in sorted(found.items()):
        print(f"# {where}, {count} maps, {mode}: ns a page: {figures}", flush=True)
    yield found


@costs_of_maps.test("I7", "below the threshold, however many there are")
def below(found):
    equal("what takes too long", too_slow(found, ["low"]), [])


@costs_of_maps.test("I7", "above it, once a device masters the bus")
def above(found):
    equal("what takes too long", too_slow(found, ["high"]), [])
