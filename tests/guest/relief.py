# SPDX-License-Identifier: GPL-2.0-only
"""Memory that is wanted while a balloon is full: whoever would get it without a balloon
gets it with one, and nobody waits for long for a device that does not answer."""

import contextlib
import re
import subprocess
import time
from pathlib import Path

import bed
from channel import TIME_FACTOR
from sim import DRIVER, KNOBS, TARGET, balloon, insmod, meminfo, rmmod
from tap import Skip, at_least, at_most, equal, eventually, group

NODES = Path("/sys/devices/system/node")
HUGE = 2
TAKE = "take"
EVERYTHING = 1 << 20

# Of what there is without a balloon, in percent: both counts vary a little.
MOST = 98

# Milliseconds: long for a host, but so are failures on an emulated processor.
DELAY = 300

# Seconds for which a task that has run out of memory may be kept from the OOM killer by
# a device that does not answer.
PATIENCE = 60


def shrink():
    """Asks all shrinkers of the kernel for memory, without needing any."""
    Path("/proc/sys/vm/drop_caches").write_text("2\n")


def vmstat(name):
    return int(re.search(rf"^{name} (\d+)$", Path("/proc/vmstat").read_text(), re.M)[1])


def free():
    """What is free or in page cache, in MiB: what there is without the balloon's help."""
    return meminfo("MemAvailable") - meminfo("Balloon")


def node_vmstat(node, name):
    text = (NODES / f"node{node}/vmstat").read_text()
    return int(re.search(rf"^{name} (\d+)$", text, re.M)[1])


def last_node():
    return max(int(path.name[4:]) for path in NODES.glob("node[0-9]*"))


def fresh():
    """What is in page cache counts as free, but may be anywhere."""
    Path("/proc/sys/vm/drop_caches").write_text("3\n")
    Path("/proc/sys/vm/compact_memory").write_text("1\n")


def run_hog(mib):
    """A program that touches memory, and is the first to be killed; returns what it says."""
    program = ("open('/proc/self/oom_score_adj', 'w').write('1000')\n"
               f"b = bytearray({mib} << 20)\nprint(len(b) >> 20)")
    done = subprocess.run(["python3", "-c", program], text=True, check=False,
                          stdout=subprocess.PIPE)
    return done.stdout


@group("memory runs out")
def pressure():
    with balloon() as sim:
        yield sim


@pressure.test("-", "what is in the balloon counts as available")
def available(sim):
    sim.settle(TARGET)
    at_least("MemAvailable", meminfo("MemAvailable"), meminfo("MemFree") + TARGET * 9 // 10)


@pressure.test("I2", "reclaim is heard, and the host told that it is urgent")
def reclaim(sim):
    shrink()
    eventually("an urgent deflate", lambda: sim.stat("urgent") >= 1)
    eventually("memory", lambda: sim.figure("ballooned_bytes") >> 20 < TARGET)
    # Asked once for each node: there may be more steps than one.
    eventually("all accounts agree", lambda: TARGET - sim.stat("deflated_mib")
               == sim.figure("ballooned_bytes") >> 20 == sim.stat("ballooned_mib")
               == sim.stat("actual_mib") == meminfo("Balloon"))


@pressure.test("I2", "steps are whole granules, whatever step_mib says")
def odd_step(sim):
    before = sim.stat("deflated_mib")
    step = (KNOBS / "step_mib").read_text()
    (KNOBS / "step_mib").write_text("7\n")
    shrink()
    eventually("memory", lambda: sim.stat("deflated_mib") > before)
    (KNOBS / "step_mib").write_text(step)
    equal("of a granule", sim.stat("deflated_mib") % HUGE, 0)
    sim.state("inflated")


@pressure.test("I3", "reclaim does not drive a host that refuses")
def refused_reclaim(sim):
    held = sim.figure("ballooned_bytes") >> 20
    sim.set("fault", "nomap")
    shrink()
    sim.state("refused")
    equal("in the balloon", sim.figure("ballooned_bytes") >> 20, held)
    tries = sim.figure("failed_deflates")
    for _ in range(100):
        shrink()
    at_most("tries", sim.figure("failed_deflates"), tries + 3)
    sim.set("fault", "none")
    sim.set("target_mib", held - 128)
    eventually("memory", lambda: sim.figure("ballooned_bytes") >> 20 <= held - 128)


@pressure.test("I2", "with a slow host, the balloon gives way before anybody is killed")
def out_of_memory(sim):
    sim.set("delay_ms", 700)
    held = sim.figure("ballooned_bytes") >> 20
    need = free() + held // 2
    killed = vmstat("oom_kill")
    equal("the memory hog's output", run_hog(need), f"{need}\n")
    equal("OOM kills", vmstat("oom_kill"), killed)
    sim.set("delay_ms", 0)
    # The driver counts a request when it asks, the device when it answers.
    eventually("as many urgent requests at the device as at the driver",
               lambda: sim.stat("urgent") == sim.figure("urgent_requests"))
    sim.settle(TARGET - sim.stat("deflated_mib"))


@group("memory runs out, and the device does not answer")
def silence():
    with balloon() as sim:
        yield sim


@silence.test("I2", "nobody is kept from the OOM killer for long")
def silent(sim):
    held = sim.figure("ballooned_bytes") >> 20
    sim.set("fault", "silent")
    killed = vmstat("oom_kill")
    begin = time.monotonic()
    with bed.provoked_complaint():
        equal("the memory hog's output", run_hog(free() + held // 2), "")
        took = time.monotonic() - begin
        print(f"# killed after {took:.0f} s", flush=True)
        at_most("seconds", took, PATIENCE * TIME_FACTOR)
        at_least("OOM kills", vmstat("oom_kill"), killed + 1)
        equal("in the balloon", sim.figure("ballooned_bytes") >> 20, held)
    # What it was asked for is still due.
    sim.set("fault", "none")
    eventually("memory", lambda: sim.figure("ballooned_bytes") >> 20 < held)
    sim.settle(TARGET - sim.stat("deflated_mib"))


@group("a full balloon, and who fails without it ever coming to an OOM killer")
def unheard():
    # The control is made before any balloon is there.
    yield None


def hugepages(path, wanted):
    """How many large pages there are when so many are wanted."""
    fresh()
    knob = path / "nr_hugepages"
    knob.write_text(f"{wanted}\n")
    got = int(knob.read_text())
    knob.write_text("0\n")
    return got


@contextlib.contextmanager
def full(**options):
    """A balloon that holds all that it can get."""
    with balloon(target_mib=EVERYTHING, **options) as sim:
        equal("insmod's error", sim.error, None)
        at_least("in the balloon", sim.figure("ballooned_bytes") >> 20, 1024)
        # What a host needs for a step; by then who only has the worker woken has failed.
        sim.set("delay_ms", DELAY)
        yield sim


def as_many(path, wanted):
    """As many large pages with a full balloon as without one."""
    control = hugepages(path, wanted)
    with full() as sim:
        held = sim.figure("ballooned_bytes") >> 20
        got = hugepages(path, wanted)
        print(f"# {wanted} large pages wanted, {control} without a balloon, {got} with one of "
              f"{held} MiB", flush=True)
        at_least("MiB that come from the balloon", control * HUGE, free() - held + 256)
        at_least("large pages", got, control * MOST // 100)
        at_least("urgent requests", sim.stat("urgent"), 1)


@unheard.test("I2", "vm.nr_hugepages")
def hugetlb(_):
    as_many(Path("/sys/kernel/mm/hugepages/hugepages-2048kB"), meminfo("MemTotal") * 7 // 10 // HUGE)


@unheard.test("I2", "nr_hugepages of a node")
def hugetlb_node(_):
    node = last_node()
    total = node_vmstat(node, "nr_free_pages") >> 8
    as_many(NODES / f"node{node}/hugepages/hugepages-2048kB", total * 9 // 10 // HUGE)


def taken(name, **options):
    """A test that memory is there with a full balloon if it is without one."""
    def test(_):
        lowest = {"lowest_mib": 512} if "dma32" in options else {}
        node = last_node()
        if "node" in options:
            options["node"] = node
        # More than is left beside the balloon, less than all.
        if "dma32" in options:
            mib = 1200
        elif "node" in options:
            mib = (node_vmstat(node, "nr_free_pages") >> 8) * 3 // 4
        else:
            mib = meminfo("MemAvailable") * 3 // 4
        fresh()
        equal("error without a balloon", insmod(TAKE, mib=mib, **options), None)
        rmmod(TAKE)
        with full(**lowest) as sim:
            equal("error with a full one", insmod(TAKE, mib=mib, **options), None)
            rmmod(TAKE)
            at_least("urgent requests", sim.stat("urgent"), 1)
            node = node if "node" in options else None
            if node is not None:
                others = sum(node_vmstat(other, "nr_balloon_pages") for other in range(node))
                equal("balloon of the other nodes", others,
                      meminfo("Balloon") * 256 - node_vmstat(node, "nr_balloon_pages"))
    test.__name__ = name
    return test


for name, description, options in (
        ("order4", "allocations of order 4", {"order": 4}),
        ("mayfail", "allocations that may fail", {"mayfail": 1}),
        ("this_node", "allocations from one node", {"node": 1}),
        ("dma32", "allocations from below 4 GiB", {"dma32": 1}),
):
    unheard.test("I2", description)(taken(name, **options))


@unheard.test("I2", "a node's own memory comes back, not that of others")
def one_node(_):
    node = last_node()
    if not node:
        raise Skip("there is one node only")
    with full() as sim:
        before = {other: node_vmstat(other, "nr_balloon_pages") for other in range(node + 1)}
        at_least("pages of the node", before[node], 256 << 8)
        mib = (node_vmstat(node, "nr_free_pages") >> 8) + 256
        equal("error", insmod(TAKE, mib=mib, node=node), None)
        rmmod(TAKE)
        at_least("urgent requests", sim.stat("urgent"), 1)
        for other in range(node):
            equal(f"pages of node {other} in the balloon",
                  node_vmstat(other, "nr_balloon_pages"), before[other])


@unheard.test("-", "every node keeps what reclaim would see to")
def watermarks(_):
    with full():
        text = Path("/proc/zoneinfo").read_text()
        zones = re.findall(r"^Node (\d+), zone +(\w+).*?pages free +(\d+).*?low +(\d+).*?"
                           r"present +(\d+)", text, re.M | re.S)
        for node, zone, pages, low, present in zones:
            if int(present):
                at_least(f"free pages of node {node}, {zone}", int(pages), int(low))
    equal("the driver is gone", Path(f"/sys/module/{DRIVER}").exists(), False)
