#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Of host/type1/check-layout.sh: a kernel whose struct vfio_iommu_driver_ops is another
than that of host/type1/driver_ops.h is refused, in one sentence. Needs gcc and pahole."""

import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

HOST = Path(__file__).resolve().parent.parent.parent / "host"
CC = "x86_64-linux-gnu-gcc-14"
# What linux/types.h has of it in a kernel.
TYPES = "typedef unsigned long long dma_addr_t, u64; typedef unsigned long size_t;\n" \
        "typedef _Bool bool;\n"
USE = "const struct vfio_iommu_driver_ops *ops; enum vfio_group_type type;\n"

# What another kernel might have: what is replaced, and by what.
CHANGES = {
    "a member more at the end": ("struct iommu_group *group);\n};",
                                 "struct iommu_group *group);\n\tvoid (*more)(void);\n};"),
    "a member more in between": ("\tint (*dma_rw)", "\tvoid (*more)(void);\n\tint (*dma_rw)"),
    "a member less": ("\tvoid (*release)(void *iommu_data);\n", ""),
    "two members swapped": ("\tchar *name;\n\tstruct module *owner;",
                            "\tstruct module *owner;\n\tchar *name;"),
    "an argument of another type": ("int npage, int prot", "long npage, int prot"),
    "an argument more": ("(*open)(unsigned long arg)", "(*open)(unsigned long arg, int more)"),
    "another type of answer": ("\tvoid (*unpin_pages)", "\tint (*unpin_pages)"),
    "a kind of group in between": ("\tVFIO_EMULATED_IOMMU,", "\tVFIO_MORE,\n\tVFIO_EMULATED_IOMMU,"),
}


@unittest.skipUnless(shutil.which(CC) and shutil.which("pahole"), "no gcc or no pahole")
class Layout(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name)
        (self.path / "linux").mkdir()
        (self.path / "linux/types.h").write_text(TYPES)
        self.ours = self.object("ours.o", self.header())

    def header(self, old="", new=""):
        text = (HOST / "type1/driver_ops.h").read_text()
        self.assertIn(old, text)
        return text.replace(old, new, 1)

    def object(self, name, text, use=USE):
        path = self.path / name
        subprocess.run([CC, "-g", "-c", "-x", "c", "-I", self.path, "-o", path, "-"],
                       input=text + use, text=True, check=True)
        return path

    def module(self, text):
        """A vfio.ko and the vmlinux below it, as far as their types go."""
        self.object("vmlinux", TYPES, "dma_addr_t address; char *name; size_t size;\n")
        module = self.object("vfio.ko", text)
        vmlinux = self.path / "vmlinux"
        subprocess.run(["pahole", "-J", vmlinux], check=True)
        subprocess.run(["pahole", "-J", "--btf_base", vmlinux, module], check=True)
        subprocess.run(["objcopy", "--strip-debug", module], check=True)
        return module

    def check(self, *private, **environment):
        """What it says; nothing if the two are the same."""
        it = subprocess.run([HOST / "type1/check-layout.sh", self.ours, self.path, "1.2.3",
                             *private], env=os.environ | environment, text=True,
                            capture_output=True, check=False)
        self.assertEqual(it.returncode != 0, bool(it.stderr), it.stderr)
        self.assertEqual(it.stdout, "")
        self.assertLessEqual(it.stderr.count("\n"), 1)
        return it.stderr

    def test_same(self):
        """The negative control."""
        self.assertEqual(self.check(self.object("private.o", self.header())), "")
        self.assertEqual(self.check(VFIO_KO=str(self.module(self.header()))), "")

    def test_header(self):
        for what, change in CHANGES.items():
            with self.subTest(what):
                said = self.check(self.object("private.o", self.header(*change)))
                self.assertIn("does not know this kernel (1.2.3)", said)

    def test_module(self):
        for what, change in CHANGES.items():
            with self.subTest(what):
                said = self.check(VFIO_KO=str(self.module(self.header(*change))))
                self.assertIn("does not know this kernel (1.2.3)", said)

    def test_nothing(self):
        """A kernel that does not say is not taken to be the same."""
        self.assertIn("does not say how", self.check())


if __name__ == "__main__":
    unittest.main()
