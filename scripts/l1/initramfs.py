#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Small initramfs images: busybox, an init script and a list of kernel modules.

Used in the toolchain root for L1 and inside L1 for L2. As a program:

    initramfs.py --kver RELEASE --init FILE --out FILE [MODULE...]
"""

import argparse
import lzma
import os
import stat
import subprocess
from pathlib import Path

BUSYBOX = Path("/bin/busybox")


class Cpio:
    """A cpio archive in the "newc" format, the one that the kernel unpacks.

    A later entry replaces an earlier one of the same name, in this archive or
    in one that was unpacked before it.
    """

    def __init__(self):
        self._data = bytearray()
        self._inode = 0

    def _entry(self, name, mode, data=b"", device=(0, 0)):
        self._inode += 1
        raw = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(raw), 0)
        self._data += b"070701" + b"".join(b"%08x" % field for field in fields) + raw
        self._pad()
        self._data += data
        self._pad()

    def _pad(self):
        self._data += bytes(-len(self._data) % 4)

    def directory(self, name):
        self._entry(name, stat.S_IFDIR | 0o755)

    def file(self, name, data, mode=0o644):
        self._entry(name, stat.S_IFREG | mode, data)

    def symlink(self, name, target):
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, name, major, minor):
        self._entry(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def finish(self):
        """The archive as bytes. Nothing may be added after this."""
        self._entry("TRAILER!!!", 0)
        self._data += bytes(-len(self._data) % 512)
        return bytes(self._data)


def resolve(names, kver):
    """The files of modules and of all that they need, in the order to insert
    them. What is built into the kernel is left out."""
    files = []
    for name in names:
        output = subprocess.run(
            ["modprobe", "--show-depends", "--set-version", kver, name],
            check=True, capture_output=True, text=True).stdout
        for line in output.splitlines():
            kind, _, path = line.strip().partition(" ")
            path = Path(path.split(" ")[0])
            if kind == "insmod" and path not in files:
                files.append(path)
    return files


def contents(path):
    """A file's bytes; those of a module that is stored compressed, unpacked."""
    data = Path(path).read_bytes()
    return lzma.decompress(data) if str(path).endswith(".xz") else data


def build(kver, init, modules=(), files=None):
    """An uncompressed initramfs.

    init     text of /init
    modules  names, resolved by modprobe, or paths of .ko files; /modules lists
             their file names below /lib/modules in the order to insert them
    files    {name in the image: path or bytes}; kept executable if it is
    """
    archive = Cpio()
    for name in ("bin", "dev", "proc", "sys", "lib", "lib/modules"):
        archive.directory(name)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", BUSYBOX.read_bytes(), 0o755)
    archive.symlink("bin/sh", "busybox")
    archive.file("init", init.encode(), 0o755)
    order = []
    for module in modules:
        own = str(module).endswith(".ko")
        for path in [Path(module)] if own else resolve([module], kver):
            name = path.name.removesuffix(".xz")
            if name not in order:
                order.append(name)
                archive.file(f"lib/modules/{name}", contents(path))
    archive.file("modules", "".join(f"{name}\n" for name in order).encode())
    made = {"bin", "dev", "proc", "sys", "lib", "lib/modules"}
    for name, source in (files or {}).items():
        for parent in reversed(Path(name).parents[:-1]):
            if str(parent) not in made:
                archive.directory(str(parent))
                made.add(str(parent))
        if isinstance(source, bytes):
            archive.file(name, source)
        else:
            mode = 0o755 if os.access(source, os.X_OK) else 0o644
            archive.file(name, contents(source), mode)
    return archive.finish()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kver", required=True)
    parser.add_argument("--init", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("modules", nargs="*")
    args = parser.parse_args()
    args.out.write_bytes(build(args.kver, args.init.read_text(), args.modules))


if __name__ == "__main__":
    main()
