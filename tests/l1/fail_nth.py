# SPDX-License-Identifier: GPL-2.0-only
"""Calls of the kernel in which each allocation fails once: the first, then the second
and so on, until there is none left to fail. Needs CONFIG_FAULT_INJECTION.

See Documentation/fault-injection/fault-injection.rst in the kernel's tree (fail-nth).
"""

import contextlib
import ctypes
import errno
import os
import socket
import struct
import threading
from pathlib import Path

import bed
import host
import vfio
from tap import at_least, equal, group

DEBUGFS = Path("/sys/kernel/debug")
# What the call may answer then. EIO: a bus driver's probe() that failed.
CLEAN = {errno.ENOMEM, errno.EFAULT, errno.EAGAIN, errno.ENODEV, errno.EINTR, errno.ENOSPC,
         errno.EIO}
# Of a call with more allocations, the last so many: those of our module come after
# those of whoever calls it.
MOST = 120

_libc = ctypes.CDLL(None, use_errno=True)
FINIT_MODULE = 313


def configure():
    """Lets allocations that may wait fail as well, silently."""
    for kind, files in (("failslab", ("ignore-gfp-wait", "verbose")),
                        ("fail_page_alloc", ("ignore-gfp-wait", "verbose", "min-order")),
                        ("fail_usercopy", ("verbose",))):
        for file in files:
            (DEBUGFS / kind / file).write_text("0\n")


class Arm:
    """The thread's own fail-nth."""

    def __init__(self):
        path = f"/proc/self/task/{threading.get_native_id()}/fail-nth"
        self._file = os.open(path, os.O_RDWR)

    def set(self, nth):
        os.pwrite(self._file, str(nth).encode(), 0)

    def left(self):
        """How many are left of what was set; 0: one has failed. Nothing fails after."""
        # These calls copy to and from user space, which may be what fails.
        left = 0
        with contextlib.suppress(OSError):
            left = int(os.pread(self._file, 16, 0))
        while True:
            with contextlib.suppress(OSError):
                self.set(0)
                return left


def each(call, undo, check=lambda: None):
    """Calls `call` with one allocation failing, for each. A negative errno is its
    failure, after which `check` looks at what is left; `undo` follows a success.
    Returns (how many could fail, the answers)."""
    arm = Arm()
    answers = []
    most = 1 << 20
    arm.set(most)
    answer = attempt(call)
    total = most - arm.left()
    at_least("answer without failures", answer, 0)
    undo(answer)
    for nth in range(max(1, total - MOST), total + 1):
        arm.set(nth)
        answer = attempt(call)
        arm.left()
        answers.append(answer)
        if answer >= 0:
            undo(answer)
            continue
        if -answer not in CLEAN:
            raise AssertionError(f"the answer to failure {nth} of {total} is {vfio.name(answer)}")
        check()
    return total, answers


def attempt(call):
    """The call's answer; Python may be short of memory as well."""
    try:
        return call()
    except MemoryError:
        return -errno.ENOMEM


def report(what, found):
    total, answers = found
    failed = sum(answer < 0 for answer in answers)
    print(f"# {what}: {total} allocations and copies, {len(answers)} of them made to fail, "
          f"{failed} failed the call", flush=True)
    at_least("calls that failed", failed, 1)


def insmod():
    with open(host.MODULE_FILE, "rb") as file:
        if _libc.syscall(FINIT_MODULE, file.fileno(), b"", 0):
            return -ctypes.get_errno()
    return 0


class Vdpa:
    """Adds and deletes vDPA devices from this very thread: netlink."""

    DEV_NEW, DEV_DEL = 3, 4
    MGMTDEV_NAME, NAME = 2, 4
    REQUEST, ACK = 1, 4

    def __init__(self):
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16)
        self._socket.bind((0, 0))
        # CTRL_CMD_GETFAMILY of the controller, by CTRL_ATTR_FAMILY_NAME.
        answer = self._ask(16, 3, [(2, b"vdpa\0")], self.REQUEST)
        at = 20
        while struct.unpack_from("=HH", answer, at)[1] != 1:
            at += (struct.unpack_from("=H", answer, at)[0] + 3) & ~3
        self._family = struct.unpack_from("=H", answer, at + 4)[0]

    def _ask(self, family, command, attributes, flags):
        payload = struct.pack("=BBH", command, 1, 0)
        for kind, value in attributes:
            payload += struct.pack("=HH", 4 + len(value), kind) + value
            payload += bytes(-len(payload) % 4)
        message = struct.pack("=IHHII", 16 + len(payload), family, flags, 1, 0) + payload
        self._socket.send(message)
        return self._socket.recv(65536)

    def _call(self, command, attributes):
        try:
            answer = self._ask(self._family, command, attributes, self.REQUEST | self.ACK)
        except OSError as error:
            # The answer is lost, or the request never arrived.
            self._socket.setblocking(False)
            with contextlib.suppress(OSError):
                while True:
                    self._socket.recv(65536)
            self._socket.setblocking(True)
            return -error.errno
        return struct.unpack_from("=i", answer, 16)[0]

    def add(self, name):
        return self._call(self.DEV_NEW, [(self.NAME, name.encode() + b"\0"),
                                         (self.MGMTDEV_NAME, host.MODULE.encode() + b"\0")])

    def delete(self, name):
        return self._call(self.DEV_DEL, [(self.NAME, name.encode() + b"\0")])


@group("each allocation fails once")
def failing():
    host.run("modprobe", "-a", "vfio-pci", "vdpa", "vhost-vdpa")
    host.load_deferred()
    configure()
    yield host.bind_to_vfio()


@failing.test("I6", "while a balloon device is made and deleted")
def devices(_):
    vdpa = Vdpa()
    name = "failing"
    path = Path("/sys/bus/vdpa/devices") / name

    def gone(_=0):
        # Whether the answer or the device was lost is all the same.
        if path.exists():
            equal("delete", vdpa.delete(name), 0)

    report("vdpa dev add", each(lambda: vdpa.add(name), gone, gone))


def opened(path):
    try:
        return os.open(path, os.O_RDWR)
    except OSError as error:
        return -error.errno


@failing.test("I6", "while a VMM takes the balloon device")
def balloon(_):
    path = "/dev/vhost-vdpa-0"
    report("open", each(lambda: opened(path), os.close))

    def call():
        file = opened(path)
        if file < 0:
            return file
        answer = vfio.answer(file, vfio.VHOST_SET_OWNER)
        if answer < 0:
            os.close(file)
            return answer
        return file

    report("VHOST_SET_OWNER", each(call, os.close, bed.expect_clean))


@failing.test("I6", "while a container is made")
def container(address):
    made = vfio.Container.__new__(vfio.Container)
    made.balloon, made.others = None, []

    def call():
        made.fd = made.group = made.device = None
        try:
            made.__init__(address)
            return 0
        except OSError as error:
            close()
            return -error.errno

    def close(_=0):
        made.close()

    report("container", each(call, close, bed.expect_clean))


@failing.test("I6", "while memory is deferred, unmapped and mapped")
def maps(address):
    ram = vfio.memory(bed.GIB)
    at = 8 * bed.GIB
    with bed.knobs_set(fallback_timeout_ms=86_400_000), \
         contextlib.closing(vfio.Container(address, "/dev/vhost-vdpa-0")) as c:
        pid = os.getpid()

        def unmap(_=0):
            equal("unmap", c.unmap(at, bed.GIB), (0, bed.GIB))
            equal("unmapped_bytes", bed.stat(pid, "unmapped_bytes"), 0)

        def nothing():
            equal("unmap", c.unmap(at, bed.GIB)[0] in (0, -errno.ENOENT), True)

        report("MAP_DMA", each(lambda: c.map(at, bed.GIB, ram), unmap, nothing))

        def deferred(_=0):
            equal("unmap", c.unmap(at, bed.GIB), (0, bed.GIB))
            equal("map", c.map(at, bed.GIB, ram), 0)

        equal("map", c.map(at, bed.GIB, ram), 0)
        report("UNMAP_DMA", each(lambda: c.unmap(at, bed.GIB)[0],
                                 lambda _: equal("map", c.map(at, bed.GIB, ram), 0), deferred))

        def closed(_=0):
            c.set_master(False)
            deferred()

        report("the bus-master bit", each(lambda: c.set_master(True), closed, closed))
    bed.expect_clean()


@failing.test("I6", "while the module is loaded")
def loading(_):
    def unload(_):
        host.run("rmmod", host.MODULE)

    def not_there():
        equal("our directory in sysfs is there", host.KNOBS.exists(), False)

    host.unload_deferred()
    report("insmod", each(insmod, unload, not_there))
    host.load_deferred()
