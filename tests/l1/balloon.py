# SPDX-License-Identifier: GPL-2.0-only
"""The driver's side of a balloon of this very process, which is its own guest: the
messages of include/uapi/linux/virtio_balloon_deferred.h, in any order.

    balloon = Balloon()
    balloon.attach(container)         # a vfio.Container with a balloon
    balloon.ready()
    balloon.inflate((start, size))
    balloon.deflate((start, size))    # (status, ranges that were carried out)

The rings are shared with processes that are forked before attach(): the one may be
the VMM, the other its guest.
"""

import ctypes
import fcntl
import os
import select
import struct

import vfio
from tap import eventually

SET_FEATURES = 0x4008af00
SET_VRING_NUM = 0x4008af10
SET_VRING_ADDR = 0x4028af11
SET_VRING_BASE = 0x4008af12
SET_VRING_KICK = 0x4008af20
SET_VRING_CALL = 0x4008af21
GET_STATUS = 0x8001af71
SET_STATUS = 0x4001af72
GET_CONFIG = 0x8008af73
SET_VRING_ENABLE = 0x4008af75

# MUST_TELL_HOST, DEFERRED, VERSION_1, ACCESS_PLATFORM.
FEATURES = 1 << 1 | 1 << 23 | 1 << 32 | 1 << 33
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 64
INFLATE_QUEUE, DEFLATE_QUEUE = 0, 1
INFLATE, COMMIT, DEFLATE = 1, 2, 3
OK, INVALID, NOMAP = 0, 1, 2
DESC_NEXT, DESC_WRITE = 1, 2

QUEUE_SIZE = 16
# Where the rings are: RAM below any threshold, mapped when the balloon is made.
RINGS = 1 << 30
# Of one queue: its three parts, a request, a reply.
STEP = 0x8000
RINGS_SIZE = 2 * STEP
AVAIL, USED, REQUEST, REPLY = 0x1000, 0x2000, 0x3000, 0x4000


class Balloon:
    """The driver of a container's balloon. One message a queue at a time."""

    def __init__(self):
        self.fd = None
        self.file = os.memfd_create("rings")
        os.ftruncate(self.file, RINGS_SIZE)
        self.ram = vfio.memory(RINGS_SIZE, fd=self.file)
        self.sent = [0, 0]
        self.kicks = [os.eventfd(0) for _ in range(2)]
        self.calls = [os.eventfd(0) for _ in range(2)]

    def attach(self, container):
        """What a VMM does: up to all but DRIVER_OK."""
        self.fd = container.balloon
        if container.map(RINGS, RINGS_SIZE, self.ram):
            raise RuntimeError("the rings cannot be mapped")
        self._status(0)
        self._status(ACKNOWLEDGE | DRIVER)
        fcntl.ioctl(self.fd, SET_FEATURES, struct.pack("=Q", FEATURES))
        self._status(ACKNOWLEDGE | DRIVER | FEATURES_OK)
        for queue in range(2):
            at = RINGS + queue * STEP
            for request, value in ((SET_VRING_NUM, QUEUE_SIZE), (SET_VRING_BASE, 0),
                                   (SET_VRING_KICK, self.kicks[queue]),
                                   (SET_VRING_CALL, self.calls[queue]),
                                   (SET_VRING_ENABLE, 1)):
                fcntl.ioctl(self.fd, request, struct.pack("=Ii", queue, value))
            fcntl.ioctl(self.fd, SET_VRING_ADDR,
                        struct.pack("=IIQQQQ", queue, 0, at, at + USED, at + AVAIL, 0))

    def __enter__(self):
        return self

    def detach(self):
        """Resets the device, if it is the balloon's still."""
        if self.fd is not None:
            self._status(0)
            self.fd = None

    def __exit__(self, *_):
        self.detach()
        for fd in (self.file, *self.kicks, *self.calls):
            os.close(fd)
        vfio.unmap_memory(self.ram, RINGS_SIZE)

    def move(self):
        """Has the rings at another address; returns the old one, which is still there."""
        old, self.ram = self.ram, vfio.memory(RINGS_SIZE, fd=self.file)
        return old

    def _status(self, value):
        fcntl.ioctl(self.fd, SET_STATUS, struct.pack("B", value))

    def ready(self):
        """DRIVER_OK: from here on messages are answered."""
        self._status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
        return self

    def target(self):
        """How large the host wants the balloon, in bytes."""
        argument = bytearray(struct.pack("=II4x", 0, 4))
        fcntl.ioctl(self.fd, GET_CONFIG, argument)
        return struct.unpack_from("=I", argument, 8)[0] * vfio.PAGE

    def is_broken(self):
        """Whether the device says that only a reset helps; waits for it to be idle."""
        os.eventfd_write(self.kicks[0], 1)
        eventually("the device looks", lambda: self._needs_reset() or self._answered())
        return self._needs_reset()

    def _needs_reset(self):
        argument = bytearray(1)
        fcntl.ioctl(self.fd, GET_STATUS, argument)
        return bool(argument[0] & NEEDS_RESET)

    def _answered(self):
        return all(self._read(queue, USED + 2, "=H")[0] == self.sent[queue] & 0xffff
                   for queue in range(2))

    def _write(self, queue, offset, data):
        ctypes.memmove(self.ram + queue * STEP + offset, data, len(data))

    def _read(self, queue, offset, layout):
        data = ctypes.string_at(self.ram + queue * STEP + offset, struct.calcsize(layout))
        return struct.unpack(layout, data)

    def send(self, queue, kind, *ranges, flags=0):
        """Puts a message into a queue."""
        at = RINGS + queue * STEP
        request = struct.pack("=IIII", kind, flags, len(ranges), 0)
        request += b"".join(struct.pack("=QQ", *item) for item in ranges)
        self._write(queue, REQUEST, request)
        self._write(queue, 0, struct.pack("=QIHHQIHH", at + REQUEST, len(request), DESC_NEXT, 1,
                                          at + REPLY, 8, DESC_WRITE, 0))
        slot = self.sent[queue] % QUEUE_SIZE
        self._write(queue, AVAIL + 4 + 2 * slot, struct.pack("=H", 0))
        self.sent[queue] += 1
        self._write(queue, AVAIL + 2, struct.pack("=H", self.sent[queue] & 0xffff))
        os.eventfd_write(self.kicks[queue], 1)

    def reply(self, queue, timeout=120):
        """Waits for the answer: (status, ranges that were carried out)."""
        if not select.select([self.calls[queue]], [], [], timeout)[0]:
            raise TimeoutError(f"queue {queue} was not answered in {timeout} s")
        os.eventfd_read(self.calls[queue])
        used, = self._read(queue, USED + 2, "=H")
        if used != self.sent[queue] & 0xffff:
            raise RuntimeError(f"{used} answers in the ring to {self.sent[queue]} messages")
        return self._read(queue, REPLY, "=II")

    def inflate(self, *ranges):
        self.send(INFLATE_QUEUE, INFLATE, *ranges)
        return self.reply(INFLATE_QUEUE)

    def commit(self):
        self.send(INFLATE_QUEUE, COMMIT)
        return self.reply(INFLATE_QUEUE)

    def deflate(self, *ranges, flags=0):
        self.send(DEFLATE_QUEUE, DEFLATE, *ranges, flags=flags)
        return self.reply(DEFLATE_QUEUE)
