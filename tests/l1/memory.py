# SPDX-License-Identifier: GPL-2.0-only
"""Memory of this process for a container without a balloon: of files, of huge pages,
in a memory cgroup, on NUMA nodes."""

import collections
import contextlib
import ctypes
import os
import re
from pathlib import Path

import bed
import host
import vfio
from tap import Skip, eventually

HUGE = 2 * bed.MIB
# Of memory that is mapped many times in a row.
UNIT = 64 * bed.MIB

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def open_container():
    """A container of this process, without a balloon."""
    with contextlib.closing(vfio.Container(host.find_device(host.EDU))) as container:
        yield container


def wait_all():
    bed.wait_mapped(os.getpid())


@contextlib.contextmanager
def memfd(size, flags=0):
    fd = os.memfd_create("ram", flags)
    try:
        os.ftruncate(fd, size)
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def hugetlb_pages(size):
    path = Path("/proc/sys/vm/nr_hugepages")
    path.write_text(f"{size // HUGE}\n")
    try:
        if int(path.read_text()) < size // HUGE:
            raise Skip("not enough huge pages")
        yield
    finally:
        path.write_text("0\n")


def shared_kib():
    """How much shared memory this process has touched."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"^RssShmem:\s+(\d+) kB$", status, re.M)[1])


@contextlib.contextmanager
def limited_cgroup(limit="max", controller="memory"):
    """A cgroup with a limit that processes can join."""
    root = Path("/sys/fs/cgroup")
    if not (root / "cgroup.controllers").exists():
        host.run("mount", "-t", "cgroup2", "none", root)
    (root / "cgroup.subtree_control").write_text(f"+{controller}")
    path = root / "tested"
    path.mkdir()
    try:
        (path / f"{controller}.max").write_text(limit)
        yield path
    finally:
        eventually("the cgroup is empty", lambda: not (path / "cgroup.procs").read_text())
        path.rmdir()


@contextlib.contextmanager
def joined(cgroup):
    """This process is in the cgroup; yields a function that says what kernel objects
    are charged to it, in bytes."""
    def charged():
        text = (cgroup / "memory.stat").read_text()
        return int(re.search(r"^slab (\d+)$", text, re.M)[1]) + \
            int(re.search(r"^vmalloc (\d+)$", text, re.M)[1])
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield charged
    finally:
        (cgroup.parent / "cgroup.procs").write_text(str(os.getpid()))


@contextlib.contextmanager
def repeated_memory(size):
    """So much address space, with the same memory again and again."""
    with hugetlb_pages(UNIT), memfd(UNIT, os.MFD_HUGETLB) as fd:
        ram = vfio.memory(size, vfio.PROT_NONE)
        for at in range(0, size, UNIT):
            vfio.memory_at(ram + at, UNIT, fd)
        yield ram
        vfio.unmap_memory(ram, size)


def _policy(number, *arguments):
    """A call of the kernel's memory policies, which the C library has no functions for."""
    if _libc.syscall(number, *map(ctypes.c_ulong, arguments)):
        raise OSError(ctypes.get_errno(), f"syscall {number}")


def bind_memory(address, size, policy, nodes):
    """mbind(): `nodes` is a mask."""
    mask = ctypes.c_ulong(nodes)
    _policy(237, address, size, policy, ctypes.addressof(mask), 64, 0)


def bind_process(policy, nodes):
    """set_mempolicy(): `nodes` is a mask; policy 0 is the default."""
    mask = ctypes.c_ulong(nodes)
    _policy(238, policy, ctypes.addressof(mask) if nodes else 0, 64)


def nodes(address, size):
    """On which NUMA nodes the pages are: {node: pages}; negative: -errno."""
    count = size // vfio.PAGE
    pages = (ctypes.c_void_p * count)(*range(address, address + size, vfio.PAGE))
    status = (ctypes.c_int * count)()
    _policy(279, 0, count, ctypes.addressof(pages), 0, ctypes.addressof(status), 0)
    return dict(sorted(collections.Counter(status).items()))
