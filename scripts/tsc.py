# SPDX-License-Identifier: GPL-2.0-only
"""How fast this machine's time-stamp counter runs, which QEMU's emulator hands on to L1
as it is.

L1's kernel would measure that itself. But where other programs want the processors as
well, the moments between which it does so are not those that it takes them for: all of its
clocks may then run four times as fast as they should, and so do its VMs'.
"""

import ctypes
import mmap
import time

# rdtsc; shl $32, %rdx; or %rdx, %rax; ret
READ = bytes.fromhex("0f31 48c1e220 4809d0 c3")

# Seconds to measure, and looks at both clocks of which the quickest counts.
INTERVAL = 0.2
LOOKS = 50


def _reader():
    """A function that reads the counter, and the memory that it is in."""
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(READ)
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    return ctypes.CFUNCTYPE(ctypes.c_uint64)(address), code


def _look(read):
    """(nanoseconds, count) at one moment."""
    def look():
        before = time.monotonic_ns()
        count = read()
        after = time.monotonic_ns()
        return after - before, (before + after) / 2, count
    return min(look() for _ in range(LOOKS))[1:]


def khz():
    """Its frequency."""
    read, _code = _reader()
    started, first = _look(read)
    time.sleep(INTERVAL)
    ended, last = _look(read)
    return round((last - first) / (ended - started) * 1e6)


if __name__ == "__main__":
    print(khz())
