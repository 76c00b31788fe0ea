# SPDX-License-Identifier: GPL-2.0-only
"""Memory of which one page is not there until it is said that it may be: whoever touches
it, the kernel included, waits. userfaultfd(2), include/uapi/linux/userfaultfd.h."""

import ctypes
import fcntl
import os
import select
import struct

from channel import TIME_FACTOR
from vfio import PAGE, memory, unmap_memory

SYSCALL = 323
API, REGISTER, ZEROPAGE = 0xc018aa3f, 0xc020aa00, 0xc020aa04
VERSION, MISSING = 0xaa, 1

# Seconds until somebody touches the page.
SOON = 60


class Stall:
    """A page, and memory behind it of which the first page is there.

    stalls   whether the page is not there
    start    where it is: that of somebody else, if `page` says so
    address  of what is behind it
    """

    def __init__(self, behind=PAGE, page=None):
        self._own = page is None
        self._size = PAGE + behind
        self.start = self._start = memory(self._size) if self._own else page
        self.address = self._start + PAGE
        libc = ctypes.CDLL(None, use_errno=True)
        # Only of one that does not block it can be told whether there is something to read.
        self._fd = libc.syscall(SYSCALL, os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd")
        fcntl.ioctl(self._fd, API, struct.pack("=QQQ", VERSION, 0, 0))
        fcntl.ioctl(self._fd, REGISTER, struct.pack("=QQQQ", self._start, PAGE, MISSING, 0))
        # Not before: it might come with its neighbours, as a huge page.
        if self._own:
            ctypes.memset(self.address, 0, PAGE)
        self.stalls = True

    def wait(self):
        """Waits until somebody has touched the page."""
        if not select.select([self._fd], [], [], SOON * TIME_FACTOR)[0]:
            raise TimeoutError("nobody has touched the page")

    def go_on(self):
        """Whoever has touched the page goes on, and finds zeros."""
        if self.stalls:
            fcntl.ioctl(self._fd, ZEROPAGE, struct.pack("=QQQq", self._start, PAGE, 0, 0))
            self.stalls = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.go_on()
        os.close(self._fd)
        if self._own:
            unmap_memory(self._start, self._size)
