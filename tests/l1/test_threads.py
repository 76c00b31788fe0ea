# SPDX-License-Identifier: GPL-2.0-only
"""The mapping threads: how many, how nice, what goes first (I2, I4, I7), how many
mappings they make of RAM, and what they do when memory cannot be mapped (I3)."""

import contextlib
import errno
import os
import resource
import signal
import sys
import threading
import time
from channel import TIME_FACTOR
from pathlib import Path

import bed
import guest
import host
import vfio
from balloon import (
    COMMIT,
    DEFLATE,
    DEFLATE_QUEUE,
    INFLATE_QUEUE,
    NOMAP,
    OK,
    RINGS,
    RINGS_SIZE,
    USED,
    Balloon,
)
from memory import HUGE, memfd, limited_cgroup, open_container, shared_kib, wait_all
from stall import Stall
from tap import at_least, at_most, equal, eventually, group
from test_type1 import BALLOON, stat

IOVA = 8 << 30
SIZE = 256 * bed.MIB


def thread_fields():
    """The mapping threads of this process: fields 3 and above of /proc/TASK/stat of each."""
    return [(path / "stat").read_text().rpartition(")")[2].split()
            for path in Path("/proc/self/task").iterdir()
            if (path / "comm").read_text().startswith("vfio-deferred")]


def own_threads():
    """The mapping threads of this process: their nice values."""
    return [int(fields[16]) for fields in thread_fields()]


def thread_times():
    """How long each of them has run, the longest first, in clock ticks."""
    return sorted((int(fields[11]) + int(fields[12]) for fields in thread_fields()), reverse=True)


@contextlib.contextmanager
def running_on(*cpus):
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def slow_memory(size=bed.GIB):
    """Memory that takes seconds to provide: shared, in pages of 4 KiB."""
    with memfd(size) as fd:
        ram = vfio.memory(size, fd=fd)
        yield ram
        vfio.unmap_memory(ram, size)


def wait_begun():
    """Waits until more shared memory of this process is being provided."""
    base = shared_kib()
    eventually("memory is being provided", lambda: shared_kib() > base + 4096, pause=0)


@group("mapping threads")
def threads():
    guest.prepare("deferred")
    with bed.knobs_set(policy="gate"):
        yield None


@threads.test("-", "as many as the processors that the VMM may run on, or as the knob says")
def number(_):
    ram = vfio.memory(SIZE)
    cpus = sorted(os.sched_getaffinity(0))
    for workers, allowed, wanted in ((0, cpus, len(cpus)), (0, cpus[:1], 1), (3, cpus[:1], 3)):
        with bed.knobs_set(workers=workers), running_on(*allowed), open_container() as c:
            equal("map", c.map(IOVA, SIZE, ram), 0)
            equal(f"threads, workers={workers} on {len(allowed)} processors",
                  len(own_threads()), wanted)
            wait_all()
    vfio.unmap_memory(ram, SIZE)


@threads.test("-", "nicer than the VMM by the knob in the background, and as nice as it "
                   "while somebody waits")
def nice(_):
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, 3)
    try:
        with bed.knobs_set(nice=5, workers=1), slow_memory() as ram, open_container() as c:
            equal("map", c.map(IOVA, bed.GIB, ram), 0)
            wait_begun()
            equal("nice value", own_threads(), [8])
            master = threading.Thread(target=c.set_master, args=(True,))
            master.start()
            eventually("it is as nice as the VMM", lambda: own_threads() == [3], pause=0)
            at_least("bytes that wait", stat("unmapped_bytes"), HUGE)
            master.join()
            equal("bytes that wait", stat("unmapped_bytes"), 0)
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)


@threads.test("-", "the memory of one piece is provided by all threads; negative control: one that "
                   "type1 provides is not")
def helped(_):
    for populate in (1, 0):
        with bed.knobs_set(workers=2, populate=populate), slow_memory() as ram, \
             open_container() as c:
            equal("map", c.map(IOVA, bed.GIB, ram), 0)
            wait_all()
            equal("pieces", stat("inner_mappings"), 1)
            one, other = thread_times()
            # The first has the mapping as well.
            if populate:
                at_least("clock ticks of the second thread", other, one // 5)
            else:
                at_most("clock ticks of the second thread", other, one // 20)
            equal("unmap", c.unmap(IOVA, bed.GIB), (0, bed.GIB))


@threads.test("-", "half of them leave their processors to the guest while nobody waits, unless the "
                   "knob says how many there are")
def half(_):
    for workers, awaited, busy in ((0, False, False), (0, True, True), (2, False, True)):
        with bed.knobs_set(workers=workers), slow_memory() as ram, open_container() as c, \
             running_on(*sorted(os.sched_getaffinity(0))[:2]):
            equal("map", c.map(IOVA, bed.GIB, ram), 0)
            if awaited:
                c.set_master(True)
            wait_all()
            one, other = thread_times()
            what = f"clock ticks of the second thread, workers={workers}, awaited={awaited}"
            if busy:
                at_least(what, other, one // 5)
            else:
                at_most(what, other, one // 20)
            equal("unmap", c.unmap(IOVA, bed.GIB), (0, bed.GIB))


@threads.test("I7", "an unmap interrupts the background for that long and no longer")
def goes_on(_):
    rounds = 8
    other = vfio.memory(HUGE)
    with bed.knobs_set(workers=1), slow_memory() as ram, open_container() as c:
        equal("map", c.map(IOVA, bed.GIB, ram), 0)
        wait_begun()
        started = time.monotonic()
        for _ in range(rounds):
            equal("map", c.map(16 << 30, HUGE, other), 0)
            equal("unmap", c.unmap(16 << 30, HUGE), (0, HUGE))
            wait_begun()
        # Had it rested after each, as after a failure: a second each.
        at_most("seconds", time.monotonic() - started, rounds * 0.9 * TIME_FACTOR)
        at_least("bytes that wait", stat("unmapped_bytes"), HUGE)
        equal("unmap", c.unmap(IOVA, bed.GIB), (0, bed.GIB))
    vfio.unmap_memory(other, HUGE)


@threads.test("I5", "what another process maps in a container of the VM is its own, and mapped at once")
def forked(_):
    ram = vfio.memory(SIZE)
    with open_container() as c:
        equal("map", c.map(IOVA, SIZE, ram), 0)
        wait_all()
        pid = os.fork()
        if not pid:
            # Where the parent has nothing: its threads could not map this.
            mine = vfio.memory(SIZE)
            answer = c.map(IOVA + SIZE, SIZE, mine)
            pinned = bed.pages_pinned()
            again = c.map(IOVA, SIZE, mine)
            os._exit(int((answer, pinned, vfio.name(again))
                         != (0, 2 * SIZE // vfio.PAGE, "EEXIST")))
        equal("exit status of the child", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0)
        equal("deferred_bytes", stat("deferred_bytes"), SIZE)
        equal("failures", stat("failures"), 0)
        equal("unmap", c.unmap(0, 0, flags=vfio.UNMAP_ALL), (0, 2 * SIZE))
    vfio.unmap_memory(ram, SIZE)


def exec_with(descriptors, *words):
    """Goes on as tests/l1/after_exec.py, with what it has open."""
    for fd in descriptors:
        os.set_inheritable(fd, True)
    program = Path(__file__).with_name("after_exec.py")
    os.execv(sys.executable, [sys.executable, program, *map(str, words)])


def expect_good_exit(pid):
    equal("exit status", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0)


@threads.test("I4", "after an exec() what was deferred cannot be mapped: no device masters the bus "
                    "before it is unmapped; what is new is mapped at once")
def execed(_):
    ram = vfio.memory(SIZE)
    with bed.knobs_set(policy="balloon"):
        pid = os.fork()
        if not pid:
            c = vfio.Container(host.find_device(host.EDU), BALLOON)
            if c.map(IOVA, SIZE, ram) or stat("unmapped_bytes") != SIZE:
                os._exit(2)
            descriptors = (c.fd, c.group, c.device)
            exec_with((*descriptors, c.balloon), *descriptors)
        expect_good_exit(pid)
    vfio.unmap_memory(ram, SIZE)


@threads.test("I7", "after an exec() it can be a VM again, beside what it was")
def execed_again(_):
    first, second = host.find_devices(host.EDU)[:2]
    host.bind_to_vfio(address=second)
    ram = vfio.memory(2 * SIZE)
    pid = os.fork()
    if not pid:
        c = vfio.Container(first)
        if c.map(IOVA, 2 * SIZE, ram) or stat("deferred_bytes") != 2 * SIZE:
            os._exit(2)
        exec_with((c.fd, c.group, c.device), second)
    expect_good_exit(pid)
    vfio.unmap_memory(ram, 2 * SIZE)


@threads.test("I3", "where its limits allow no thread, a process is served as by type1 alone; "
                    "one thread is enough, until there may be more")
def process_limit(_):
    ram, more = vfio.memory(SIZE), vfio.memory(SIZE)
    with limited_cgroup(controller="pids") as cgroup, bed.knobs_set(workers=4):
        procs, root = (path / "cgroup.procs" for path in (cgroup, cgroup.parent))
        procs.write_text(str(os.getpid()))
        try:
            for limit, deferred, number in ((1, 0, 0), (2, SIZE, 1)):
                (cgroup / "pids.max").write_text(str(limit))
                with open_container() as c:
                    equal("map", c.map(IOVA, SIZE, ram), 0)
                    equal(f"threads, limit {limit}", len(own_threads()), number)
                    equal(f"deferred_bytes, limit {limit}", stat("deferred_bytes"), deferred)
                    wait_all()
                    equal("pages pinned", bed.pages_pinned(), SIZE // vfio.PAGE)
                    if not number:
                        continue
                    (cgroup / "pids.max").write_text("max")
                    equal("map", c.map(IOVA + SIZE, SIZE, more), 0)
                    equal("threads when there may be more", len(own_threads()), 4)
        finally:
            root.write_text(str(os.getpid()))
    vfio.unmap_memory(ram, SIZE)
    vfio.unmap_memory(more, SIZE)


@threads.test("I1", "a signal that is pending costs neither deferral nor threads")
def signalled(_):
    caught = []
    before = signal.signal(signal.SIGUSR1, lambda *_: caught.append(1))
    me = threading.get_ident()

    def poke(stall):
        stall.wait()
        signal.pthread_kill(me, signal.SIGUSR1)
        stall.go_on()

    try:
        # It is tried whether pages of a file can be pinned.
        with bed.knobs_set(workers=4), memfd(SIZE) as fd, open_container() as c:
            ram = vfio.memory(SIZE, fd=fd)
            with Stall(page=ram) as stall:
                poker = threading.Thread(target=poke, args=(stall,))
                poker.start()
                equal("map", c.map(IOVA, SIZE, ram), 0)
                poker.join()
            equal("signals", len(caught), 1)
            equal("deferred_bytes", stat("deferred_bytes"), SIZE)
            equal("threads", len(own_threads()), 4)
            wait_all()
            vfio.unmap_memory(ram, SIZE)
    finally:
        signal.signal(signal.SIGUSR1, before)


@threads.test("-", "the threads of a VMM with a real-time priority have none")
def real_time(_):
    fifo, normal = os.sched_param(1), os.sched_param(0)
    with bed.knobs_set(workers=2, nice=5), slow_memory() as ram, open_container() as c:
        os.sched_setscheduler(0, os.SCHED_FIFO, fifo)
        try:
            equal("map", c.map(IOVA, bed.GIB, ram), 0)
        finally:
            os.sched_setscheduler(0, os.SCHED_OTHER, normal)
        wait_begun()
        equal("scheduling policies", [int(fields[38]) for fields in thread_fields()],
              2 * [os.SCHED_OTHER])
        equal("nice values", own_threads(), [5, 5])
        equal("unmap", c.unmap(IOVA, bed.GIB), (0, bed.GIB))


@threads.test("-", "there are none where nothing can be deferred")
def needless(_):
    ram = vfio.memory(SIZE)
    with bed.knobs_set(workers=2), open_container() as c:
        equal("map below", c.map(bed.GIB, SIZE, ram), 0)
        equal("VMs", bed.vms(), [os.getpid()])
        equal("bytes written", c.set_master(True), 2)
        more = vfio.memory(SIZE)
        equal("map above", c.map(IOVA, SIZE, more), 0)
        equal("pages pinned", bed.pages_pinned(), 2 * SIZE // vfio.PAGE)
        equal("threads", own_threads(), [])
        vfio.unmap_memory(more, SIZE)
    vfio.unmap_memory(ram, SIZE)


@threads.test("I7", "whoever waits for all to be mapped keeps nobody else waiting")
def others_go_on(_):
    with bed.knobs_set(workers=1), slow_memory() as ram, open_container() as c:
        equal("map", c.map(IOVA, bed.GIB, ram), 0)
        wait_begun()
        answers = []
        start = threading.Thread(target=lambda: answers.append(c.dirty(vfio.DIRTY_START)[0]))
        start.start()
        eventually("it waits", lambda: own_threads() == [0], pause=0)
        equal("unmap of nothing", c.unmap(bed.GIB, HUGE), (0, 0))
        equal("answers meanwhile", answers, [])
        start.join()
        equal("answers", answers, [0])
        equal("bytes that wait", stat("unmapped_bytes"), 0)
        equal("dirty pages: STOP", c.dirty(vfio.DIRTY_STOP)[0], 0)


@threads.test("I7", "an ioctl that comes while the container's last group leaves it is served or "
                    "refused, and leaves nothing")
def late(_):
    other = vfio.memory(HUGE)
    for _ in range(4):
        answers = {}
        with slow_memory(SIZE) as ram, open_container() as c:
            def run(name, function, answers=answers):
                thread = threading.Thread(target=lambda: answers.update({name: function()}))
                thread.start()
                return thread

            # Below the threshold type1 makes it, and keeps all others waiting.
            running = [run("first", lambda c=c, ram=ram: c.map(bed.GIB, SIZE, ram))]
            wait_begun()
            os.close(c.device)
            c.device = None
            running += [
                run("leave", lambda c=c: vfio.answer(c.group, vfio.GROUP_UNSET_CONTAINER)),
                run("late", lambda c=c: c.map(2 * bed.GIB, HUGE, other)),
                run("later", lambda c=c: c.unmap(0, 0, flags=vfio.UNMAP_ALL)[0])]
            for thread in running:
                thread.join()
        equal("first map, leaving", (answers["first"], answers["leave"]), (0, 0))
        equal("what the others may say", {answers["late"], answers["later"]} - {0, -errno.EINVAL},
              set())
    vfio.unmap_memory(other, HUGE)


@threads.test("I7", "a container that was mapped before it could be deferred knows its overlaps")
def early_maps(_):
    ram = vfio.memory(2 * SIZE)
    with open_container() as c:
        with bed.knobs_set(policy="balloon"):
            equal("map", c.map(IOVA, SIZE, ram), 0)
        equal("overlap", vfio.name(c.map(IOVA + SIZE // 2, SIZE, ram)), "EEXIST")
        equal("map", c.map(IOVA + SIZE, SIZE, ram + SIZE), 0)
        equal("pages pinned", bed.pages_pinned(), 2 * SIZE // vfio.PAGE)
    with open_container() as c:
        equal("bytes written", c.set_master(True), 2)
        equal("map", c.map(IOVA, SIZE, ram), 0)
        equal("bytes written", c.set_master(False), 2)
        equal("overlap", vfio.name(c.map(IOVA + SIZE // 2, SIZE, ram)), "EEXIST")
    vfio.unmap_memory(ram, 2 * SIZE)


@threads.test("I3", "a limit of locked memory that is just enough is enough, whatever is being "
                    "mapped meanwhile; negative control: one page less is not")
def just_enough(_):
    program = Path(__file__).with_name("two_maps.py")
    size = SIZE
    for where, chunk in ((), 1024), (("low",), 2):
        with bed.knobs_set(populate=0, workers=1, chunk_mib=chunk):
            for limit, second, locked in ((2 * size, "0", 2 * size),
                                          (2 * size - vfio.PAGE, "ENOMEM", size)):
                output = host.run(*bed.may_lock(limit), sys.executable, program, size, *where)
                first, other, pieces, total = output.split()
                equal(f"answers, bytes locked, with {limit:#x}, {where}",
                      (first, other, total), ("0", second, str(locked)))
                # It is one that is being made, or most of them are left.
                at_most("pieces made at the second map", int(pieces), 1024 // chunk // 8)


@group("a balloon by hand")
def own_guest():
    guest.prepare("deferred")
    with bed.knobs_set(hold=1, fallback_timeout_ms=86_400_000):
        yield None


@contextlib.contextmanager
def ballooned(size, ram):
    """A container with `size` bytes of RAM at IOVA, all in the balloon."""
    with contextlib.closing(vfio.Container(host.find_device(host.EDU), BALLOON)) as c, \
         Balloon() as balloon:
        balloon.attach(c)
        equal("map", c.map(IOVA, size, ram), 0)
        balloon.ready()
        equal("target", balloon.target(), size)
        equal("reply to INFLATE", balloon.inflate((IOVA, size)), (OK, 1))
        equal("ballooned_bytes", stat("ballooned_bytes"), size)
        yield c, balloon


@own_guest.test("I2", "what the guest waits for is mapped before what a device waits for")
def overtakes(_):
    with bed.knobs_set(workers=1), slow_memory() as ram, \
         ballooned(HUGE, vfio.memory(HUGE)) as (c, balloon):
        high = IOVA + bed.GIB
        equal("map", c.map(high, bed.GIB, ram), 0)
        last = (high + bed.GIB - HUGE, HUGE)
        equal("reply to INFLATE", balloon.inflate(last), (OK, 1))
        master = threading.Thread(target=c.set_master, args=(True,))
        master.start()
        wait_begun()
        equal("reply to DEFLATE", balloon.deflate(last), (OK, 1))
        at_least("bytes that the device waits for then", stat("unmapped_bytes"), bed.GIB // 4)
        equal("misses", stat("misses"), 1)
        master.join()
        equal("bytes that wait", stat("unmapped_bytes"), HUGE)


@own_guest.test("I2", "deflating in any order takes no more mappings than there are")
def any_order(_):
    limit = Path("/sys/module/vfio_iommu_type1/parameters/dma_entry_limit")
    before = limit.read_text()
    ram = vfio.memory(SIZE)
    granules = SIZE // HUGE
    limit.write_text(f"{granules // 2}\n")
    try:
        with bed.knobs_set(premap=0), ballooned(SIZE, ram) as (c, balloon):
            equal("reply to COMMIT", balloon.commit(), (OK, 0))
            for index in (*range(0, granules, 2), *range(granules - 1, 0, -2)):
                equal(f"reply to DEFLATE of granule {index}",
                      balloon.deflate((IOVA + index * HUGE, HUGE)), (OK, 1))
            equal("bytes that wait", stat("unmapped_bytes"), 0)
            at_most("pieces", stat("inner_mappings"), granules // 2 * 3 // 4 + 1)
            at_least("pieces", stat("inner_mappings"), granules // 8)
            equal("unmap", c.unmap(IOVA, SIZE), (0, SIZE))
    finally:
        limit.write_text(before)
    vfio.unmap_memory(ram, SIZE)


@own_guest.test("I7", "when its rings get another address, the balloon finds them there")
def moved_rings(_):
    ram = vfio.memory(SIZE)
    with ballooned(SIZE, ram) as (c, balloon):
        equal("unmap", c.unmap(RINGS, RINGS_SIZE, flags=vfio.UNMAP_VADDR), (0, RINGS_SIZE))
        old = balloon.move()
        equal("map", c.map(RINGS, RINGS_SIZE, balloon.ram, flags=vfio.MAP_VADDR), 0)
        vfio.unmap_memory(old, RINGS_SIZE)
        equal("reply to DEFLATE", balloon.deflate((IOVA, HUGE)), (OK, 1))
    vfio.unmap_memory(ram, SIZE)


@own_guest.test("I6", "an unmap comes back when nobody is in that memory any more")
def in_flight(_):
    ram = vfio.memory(SIZE)
    remove = 9
    with ballooned(SIZE, ram) as (c, balloon):
        # Once more for the first time.
        used = balloon.ram + USED
        vfio.advise(used, vfio.PAGE, remove)
        answers = []
        unmap = threading.Thread(target=lambda: answers.append(c.unmap(RINGS, RINGS_SIZE)))
        with Stall(page=used) as stall:
            balloon.send(INFLATE_QUEUE, COMMIT)
            stall.wait()
            unmap.start()
            # Without the guarantee it comes back at once.
            unmap.join(2)
            equal("answers meanwhile", answers, [])
            stall.go_on()
            unmap.join()
        equal("answers", answers, [(0, RINGS_SIZE)])
        equal("queues are broken", balloon.is_broken(), True)
    vfio.unmap_memory(ram, SIZE)


@own_guest.test("I7", "a new address that is refused for a part of a map is refused for all of it")
def refused_address(_):
    size = SIZE // 4
    ram = vfio.memory(size)
    with bed.knobs_set(chunk_mib=2), contextlib.closing(
            vfio.Container(host.find_device(host.EDU), BALLOON)) as c:
        equal("map", c.map(IOVA, size, ram), 0)
        c.set_master(True)
        at_least("pieces", stat("inner_mappings"), 4)
        equal("unmap", c.unmap(IOVA, size, flags=vfio.UNMAP_VADDR), (0, size))
        pid = os.fork()
        if not pid:
            # It may lock the first pieces only.
            resource.setrlimit(resource.RLIMIT_MEMLOCK, 2 * [size // 2])
            os.setuid(65534)
            os._exit(-c.map(IOVA, size, ram, flags=vfio.MAP_VADDR))
        equal("answer to who may not", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]),
              errno.ENOMEM)
        equal("map", c.map(IOVA, size, ram, flags=vfio.MAP_VADDR), 0)
        equal("unmap", c.unmap(IOVA, size), (0, size))
    vfio.unmap_memory(ram, size)


@own_guest.test("I3", "a range that cannot be mapped stays in the balloon, the guest is told, "
                    "and is served when it can be")
def stays_ballooned(_):
    with memfd(SIZE // 2) as fd:
        ram = vfio.memory(SIZE, fd=fd)
        with bed.knobs_set(chunk_mib=2), ballooned(SIZE, ram) as (_, balloon):
            equal("reply to COMMIT", balloon.commit(), (OK, 0))
            bad = (IOVA + SIZE - HUGE, HUGE)
            equal("reply", balloon.deflate((IOVA, HUGE), bad, (IOVA + HUGE, HUGE)), (NOMAP, 1))
            equal("failed_bytes", stat("failed_bytes"), HUGE)
            equal("ballooned_bytes", stat("ballooned_bytes"), SIZE - HUGE)
            os.ftruncate(fd, SIZE)
            equal("reply", balloon.deflate(bad), (OK, 1))
            equal("failed_bytes", stat("failed_bytes"), 0)
        vfio.unmap_memory(ram, SIZE)


@own_guest.test("I6", "a process that is killed while a deflation waits leaves nothing")
def killed(_):
    pid = os.fork()
    if not pid:
        with slow_memory() as ram, ballooned(bed.GIB, ram) as (_, balloon):
            balloon.send(DEFLATE_QUEUE, DEFLATE, (IOVA, bed.GIB))
            wait_begun()
            os.kill(os.getpid(), signal.SIGKILL)
    equal("signal", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), -signal.SIGKILL)
    bed.expect_clean()


@contextlib.contextmanager
def limited_process(cgroup):
    """A VMM in a cgroup in which nobody may be killed for what is beyond its limit: it
    fails. Yields (its pid, its balloon), with all of its RAM ballooned."""
    with Balloon() as balloon:
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            ram = vfio.memory(SIZE)
            vfio.advise(ram, SIZE, vfio.NOHUGEPAGE)
            c = vfio.Container(host.find_device(host.EDU), BALLOON)
            balloon.attach(c)
            c.map(IOVA, SIZE, ram)
            balloon.ready()
            Path("/proc/self/oom_score_adj").write_text("-1000")
            (cgroup / "cgroup.procs").write_text(str(os.getpid()))
            os.write(writer, b"1")
            while True:
                signal.pause()
        try:
            os.read(reader, 1)
            equal("reply to INFLATE", balloon.inflate((IOVA, SIZE)), (OK, 1))
            equal("reply to COMMIT", balloon.commit(), (OK, 0))
            yield pid, balloon
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(reader)
            os.close(writer)


@own_guest.test("I3", "when its cgroup has no memory left, the rest stays in the balloon, "
                    "and comes when there is more")
def out_of_memory(_):
    low, high = (IOVA, HUGE), (IOVA + SIZE - HUGE, HUGE)
    for populate in (1, 0):
        limit = SIZE // 2
        with bed.knobs_set(populate=populate, chunk_mib=32), bed.provoked_complaint(), \
             limited_cgroup(str(limit)) as cgroup, limited_process(cgroup) as (pid, balloon):
            host.set_knob("hold", 0)
            eventually("no more is tried", lambda p=pid: bed.stat(p, "failed_bytes") > 0
                       and bed.stat(p, "failed_bytes") == bed.stat(p, "unmapped_bytes"))
            host.set_knob("hold", 1)
            failed = bed.stat(pid, "failed_bytes")
            at_least("bytes that failed", failed, SIZE - limit)
            at_most("bytes that failed", failed, SIZE - limit // 2)
            equal("bytes in the balloon", bed.stat(pid, "ballooned_bytes"), failed)
            equal("failures", bed.stat(pid, "failures"), failed // (32 * bed.MIB))
            equal("reply to DEFLATE of what is mapped", balloon.deflate(low), (OK, 1))
            equal("reply to DEFLATE of what failed", balloon.deflate(high), (NOMAP, 0))
            (cgroup / "memory.max").write_text("max")
            equal("reply to DEFLATE of all", balloon.deflate((IOVA, SIZE)), (OK, 1))
            equal("bytes that wait", bed.stat(pid, "unmapped_bytes"), 0)
        bed.expect_clean()
