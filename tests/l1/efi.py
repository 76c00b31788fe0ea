# SPDX-License-Identifier: GPL-2.0-only
"""A disk that UEFI boots from: a program that prints a line, in a file system.

Sources: Microsoft's PE format specification (headers), the UEFI specification 2.10,
3.5.1.1 (name of the file), Microsoft's FAT specification 1.03."""

import struct

SECTOR = 512
# The first page after the headers.
CODE = 0x1000


def program(text):
    """An application for UEFI on x86-64 that prints a line to the serial port and stops."""
    code = (b"\x48\x8d\x35\x0f\x00\x00\x00"     # lea text(%rip), %rsi
            b"\x66\xba\xf8\x03"                 # mov $0x3f8, %dx
            b"\xac\x84\xc0\x74\x03"             # 1: lodsb; test %al, %al; jz 2f
            b"\xee\xeb\xf8"                     # out %al, %dx; jmp 1b
            b"\xf4\xeb\xfd"                     # 2: hlt; jmp 2b
            + text.encode() + b"\n\0").ljust(SECTOR, b"\0")
    # Machine x86-64; one section; an executable that may lie anywhere.
    coff = struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, 1, 0, 0, 0, 240, 0x22)
    # PE32+; an application of UEFI; 16 directories, all empty.
    optional = struct.pack("<HBBIIIIIQIIHHHHHHIIIIHHQQQQII", 0x20B, 0, 0, SECTOR, 0, 0, CODE, CODE,
                           0, CODE, SECTOR, 0, 0, 0, 0, 0, 0, 0, 2 * CODE, SECTOR, 0, 10, 0,
                           0, 0, 0, 0, 0, 16).ljust(240, b"\0")
    # Code that is executed and read.
    section = struct.pack("<8sIIIIIIHHI", b".text", SECTOR, CODE, SECTOR, SECTOR, 0, 0, 0, 0,
                          0x60000020)
    stub = b"MZ".ljust(60, b"\0") + struct.pack("<I", 64)
    return (stub + coff + optional + section).ljust(SECTOR, b"\0") + code


def _entry(name, cluster, size=None):
    """An entry of a directory; one without a size is a directory itself."""
    return struct.pack("<11sB14xHI", name.encode().ljust(11), 0x20 if size else 0x10, cluster,
                       size or 0)


def _directory(cluster, parent, entry):
    return (_entry(".", cluster) + _entry("..", parent) + entry).ljust(SECTOR, b"\0")


def disk(data):
    """The start of a disk with a file system (FAT12, as on a floppy disk) in which
    `data`, of two sectors, is what UEFI boots."""
    assert len(data) == 2 * SECTOR
    boot = (struct.pack("<3s8sHBHBHHBHHHII", b"\xeb\xfe\x90", b"", SECTOR, 1, 1, 2, 224, 2880,
                        0xF0, 9, 18, 2, 0, 0)
            + struct.pack("<BBBI11s8s", 0, 0, 0x29, 1, b"EFI".ljust(11), b"FAT12".ljust(8))
            ).ljust(SECTOR - 2, b"\0") + b"\x55\xaa"
    # Clusters 2 and 3 are directories, 4 and 5 the file.
    chain = [0xFF0, 0xFFF, 0xFFF, 0xFFF, 0x005, 0xFFF]
    fat = b"".join((low | high << 12).to_bytes(3, "little")
                   for low, high in zip(chain[::2], chain[1::2])).ljust(9 * SECTOR, b"\0")
    root = _entry("EFI", 2).ljust(14 * SECTOR, b"\0")
    return (boot + 2 * fat + root + _directory(2, 0, _entry("BOOT", 3))
            + _directory(3, 2, _entry("BOOTX64 EFI", 4, len(data))) + data)
