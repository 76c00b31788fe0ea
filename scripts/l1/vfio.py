# SPDX-License-Identifier: GPL-2.0-only
"""A VFIO container of this very process, driven by hand: include/uapi/linux/vfio.h.

All calls return 0 or more, or a negative errno: what is compared is the kernel's
answer, so nothing here raises for it.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import struct

import host

GROUP_SET_CONTAINER = 0x3b68
GROUP_UNSET_CONTAINER = 0x3b69
CHECK_EXTENSION = 0x3b65
SET_IOMMU = 0x3b66
GROUP_GET_DEVICE_FD = 0x3b6a
DEVICE_GET_REGION_INFO = 0x3b6c
DEVICE_RESET = 0x3b6f
IOMMU_GET_INFO = 0x3b70
IOMMU_MAP_DMA = 0x3b71
IOMMU_UNMAP_DMA = 0x3b72
IOMMU_DIRTY_PAGES = 0x3b75
VHOST_SET_OWNER = 0xaf01
VHOST_SET_FEATURES = 0x4008af00
VHOST_VDPA_SET_STATUS = 0x4001af72

TYPE1V2 = 3
READ, WRITE, MAP_VADDR = 1, 2, 4
GET_DIRTY_BITMAP, UNMAP_ALL, UNMAP_VADDR = 1, 2, 4
DIRTY_START, DIRTY_STOP, DIRTY_GET = 1, 2, 4
CONFIG_REGION = 7
COMMAND = 4
DECODE, MASTER = 2, 4
BARS = range(6)
CAP_DMA_AVAIL = 3

PROT_NONE, PROT_READ, PROT_WRITE = 0, 1, 2
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS = 1, 2, 0x10, 0x20
HUGEPAGE, NOHUGEPAGE = 14, 15
PAGE = 4096

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int,
                       ctypes.c_int, ctypes.c_long]
_libc.pwrite.restype = ctypes.c_ssize_t
_libc.pwrite.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def memory(size, prot=PROT_READ | PROT_WRITE, fd=-1, offset=0):
    """The address of new memory of this process: anonymous, or of a file."""
    flags = MAP_PRIVATE | MAP_ANONYMOUS if fd < 0 else MAP_SHARED
    address = _libc.mmap(None, size, prot, flags, fd, offset)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    return address


def memory_at(address, size, fd):
    """Replaces what is mapped at an address by memory of a file."""
    if _libc.mmap(address, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                  fd, 0) != address:
        raise OSError(ctypes.get_errno(), "mmap")


@contextlib.contextmanager
def memory_for(size):
    """The address of new memory, for as long as the context lasts."""
    address = memory(size)
    try:
        yield address
    finally:
        unmap_memory(address, size)


def advise(address, size, advice):
    if _libc.madvise(address, size, advice):
        raise OSError(ctypes.get_errno(), "madvise")


def protect(address, size, prot):
    if _libc.mprotect(address, size, prot):
        raise OSError(ctypes.get_errno(), "mprotect")


def unmap_memory(address, size):
    if _libc.munmap(address, size):
        raise OSError(ctypes.get_errno(), "munmap")


def pwrite(fd, address, count, offset):
    """pwrite() of memory at an address; returns a negative errno on failure."""
    result = _libc.pwrite(fd, address, count, offset)
    return result if result >= 0 else -ctypes.get_errno()


def answer(fd, request, argument=0):
    """What an ioctl returns; a bytearray as `argument` is filled by it."""
    if isinstance(argument, bytes):
        argument = bytearray(argument)
    try:
        return fcntl.ioctl(fd, request, argument)
    except OSError as error:
        return -error.errno


def load(address):
    """What is at an address of this process, as a byte; other threads run meanwhile."""
    byte = ctypes.create_string_buffer(1)
    _libc.memcpy(byte, address, 1)
    return byte.raw[0]


def name(value):
    """An answer in words: an errno's name, or the number."""
    return errno.errorcode.get(-value, str(value)) if value < 0 else str(value)


class Device:
    """An open device.

    device   its descriptor
    address  of the PCI device
    """

    def __init__(self, group, address):
        self.address = address
        self._maps = []
        self.device = fcntl.ioctl(group, GROUP_GET_DEVICE_FD,
                                  bytearray(address.encode() + b"\0"))

    def region(self, index):
        """(size, offset) of a region of the device"""
        argument = bytearray(struct.pack("=IIIIQQ", 32, 0, index, 0, 0, 0))
        fcntl.ioctl(self.device, DEVICE_GET_REGION_INFO, argument)
        return struct.unpack_from("=QQ", argument, 16)

    def config_read(self, offset, count):
        """Bytes of config space."""
        return os.pread(self.device, count, self.region(CONFIG_REGION)[1] + offset)

    def config_write(self, offset, data):
        """Writes to config space; returns how many bytes, or a negative errno."""
        try:
            return os.pwrite(self.device, data, self.region(CONFIG_REGION)[1] + offset)
        except OSError as error:
            return -error.errno

    def command(self):
        """PCI_COMMAND."""
        return struct.unpack("=H", self.config_read(COMMAND, 2))[0]

    def set_command(self, value):
        return self.config_write(COMMAND, struct.pack("=H", value))

    def hardware_command(self):
        """PCI_COMMAND as the device has it, whatever a guest is shown."""
        with open(host.DEVICES / self.address / "config", "rb", buffering=0) as config:
            return struct.unpack("=H", os.pread(config.fileno(), 2, COMMAND))[0]

    def bar(self):
        """(size, offset) of the first BAR that there is."""
        return next(region for index in BARS if (region := self.region(index))[0])

    def touch(self):
        """Uses the device as a guest whose BARs are not mapped: writes to a register that
        can only be read, or has no effect, on all devices that are tested. A device that
        does not decode its BARs gets nothing of it."""
        try:
            return os.pwrite(self.device, bytes(4), self.bar()[1] + 8)
        except OSError as error:
            return -error.errno

    def map_bar(self):
        """The address of a mapping of the first BAR, and its size. It goes with the device,
        which it keeps open."""
        size, offset = self.bar()
        self._maps.append((memory(size, fd=self.device, offset=offset), size))
        return self._maps[-1]

    def set_master(self, on):
        """Sets or clears the bus-master bit of PCI_COMMAND, and uses the device then, as a
        driver does. What config_write() gives; -ENOMEM if the device stays without the bit."""
        command = self.command()
        result = self.set_command(command | MASTER if on else command & ~MASTER)
        if on and result > 0:
            self.touch()
            if not self.hardware_command() & MASTER:
                return -errno.ENOMEM
        return result

    def set_power(self, state):
        """Puts the device into power state D0 to D3; what config_write() gives."""
        at = self.config_read(0x34, 1)[0]
        while self.config_read(at, 1)[0] != 1:
            at = self.config_read(at + 1, 1)[0]
            if at < 0x40:
                raise RuntimeError("the device has no power management capability")
        return self.config_write(at + 4, struct.pack("=H", state))

    def reset_device(self):
        return answer(self.device, DEVICE_RESET)

    def unmap_bars(self):
        while self._maps:
            unmap_memory(*self._maps.pop())

    def close(self):
        self.unmap_bars()
        os.close(self.device)


class Container(Device):
    """A container with one device in it.

    address  of the PCI device, which is bound to vfio-pci
    balloon  vhost-vdpa device to become the owner of first, or None
    """

    def __init__(self, address, balloon=None):
        self.balloon = self.fd = self.group = self.device = None
        self.others = []
        self._maps = []
        try:
            self._open(address, balloon)
        except OSError:
            self.close()
            raise

    def _open(self, address, balloon):
        if balloon:
            self.balloon = os.open(balloon, os.O_RDWR)
            fcntl.ioctl(self.balloon, VHOST_SET_OWNER)
        link = host.DEVICES / address / "iommu_group"
        self.fd = os.open("/dev/vfio/vfio", os.O_RDWR)
        self.group = os.open(f"/dev/vfio/{link.resolve().name}", os.O_RDWR)
        fcntl.ioctl(self.group, GROUP_SET_CONTAINER, struct.pack("i", self.fd))
        fcntl.ioctl(self.fd, SET_IOMMU, TYPE1V2)
        super().__init__(self.group, address)

    def map(self, iova, size, vaddr, flags=READ | WRITE, argsz=32):
        return answer(self.fd, IOMMU_MAP_DMA,
                      struct.pack("=IIQQQ", argsz, flags, vaddr, iova, size))

    def unmap(self, iova, size, flags=0, argsz=24, bitmap=False):
        """(answer, size that the kernel left in the argument)"""
        argument = bytearray(struct.pack("=IIQQ", argsz, flags, iova, size))
        if bitmap:
            bits = ctypes.create_string_buffer(max(8, size // PAGE // 8))
            argument += struct.pack("=QQQ", PAGE, len(bits), ctypes.addressof(bits))
            struct.pack_into("=I", argument, 0, len(argument))
        result = answer(self.fd, IOMMU_UNMAP_DMA, argument)
        return result, struct.unpack_from("=Q", argument, 16)[0]

    def info(self):
        """What the container says of itself, {name: value}."""
        argument = bytearray(struct.pack("=IIQII", PAGE, 0, 0, 0, 0).ljust(PAGE, b"\0"))
        found = {"answer": answer(self.fd, IOMMU_GET_INFO, argument)}
        found["flags"], found["page sizes"], at = struct.unpack_from("=IQI", argument, 4)
        while at:
            ident, version, following = struct.unpack_from("=HHI", argument, at)
            if ident == CAP_DMA_AVAIL:
                found["mappings left"] = struct.unpack_from("=I", argument, at + 8)[0]
            else:
                end = following or len(argument)
                found[f"capability {ident}.{version}"] = argument[at + 8:end].rstrip(b"\0").hex()
            at = following
        return found

    def dirty(self, flag, iova=0, size=0):
        """(answer, set bits of the bitmap)"""
        bitmap = ctypes.create_string_buffer(max(8, size // PAGE // 8))
        result = answer(self.fd, IOMMU_DIRTY_PAGES, struct.pack(
            "=IIQQQQQ", 48, flag, iova, size, PAGE, len(bitmap), ctypes.addressof(bitmap)))
        return result, sum(byte.bit_count() for byte in bitmap.raw)

    def reopen_device(self, address):
        """Closes the device and opens it again."""
        os.close(self.device)
        super().__init__(self.group, address)

    def balloon_status(self, status):
        """Sets the balloon device's status; 0 resets it."""
        return answer(self.balloon, VHOST_VDPA_SET_STATUS, bytes([status]))

    def balloon_driver(self, features):
        """Does what a driver of the balloon does until DRIVER_OK."""
        return [self.balloon_status(1), self.balloon_status(3),
                answer(self.balloon, VHOST_SET_FEATURES, struct.pack("=Q", features)),
                self.balloon_status(0xb), self.balloon_status(0xf)]

    def attach(self, address):
        """Adds another device's group; returns 0 or a negative errno."""
        link = host.DEVICES / address / "iommu_group"
        group = os.open(f"/dev/vfio/{link.resolve().name}", os.O_RDWR)
        self.others.append(group)
        return answer(group, GROUP_SET_CONTAINER, struct.pack("i", self.fd))

    def open_attached(self, address):
        """A device of the group that was added last."""
        return Device(self.others[-1], address)

    def detach(self):
        """Takes away the group that was added last."""
        os.close(self.others.pop())

    def close_device(self):
        """Closes the device and takes its group out of the container, which stays."""
        self.unmap_bars()
        os.close(self.device)
        os.close(self.group)
        self.device = self.group = None

    def close(self):
        self.unmap_bars()
        for fd in (*self.others, self.device, self.group, self.fd, self.balloon):
            if fd is not None:
                os.close(fd)
