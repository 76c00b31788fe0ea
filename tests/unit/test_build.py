#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Of scripts/build.sh with KDIR=: what is missing where modules in Rust cannot be built
is said in one sentence, and nothing is built."""

import os
import subprocess
import tempfile
import unittest
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent.parent
RUSTC = "rustc 1.2.3 (of this test)"
RUST = f'CONFIG_RUST=y\nCONFIG_RUSTC_VERSION_TEXT="{RUSTC}"\n'


class Build(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name)
        self.tree = self.path / "tree"
        for name in ("rustc", "bindgen", "pahole", "make"):
            self.tool(name, f"echo {name} ran with $*")
        self.tool("rustc", f"echo '{RUSTC}'")

    def tool(self, name, script):
        (self.path / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.path / name).chmod(0o755)

    def make_tree(self, path, config):
        for name, text in (("config/auto.conf", config),
                           ("generated/utsrelease.h", '#define UTS_RELEASE "1.2.3-test"\n'),
                           ("generated/utsversion.h", "")):
            (path / "include" / name).parent.mkdir(parents=True, exist_ok=True)
            (path / "include" / name).write_text(text)
        (path / "rust").mkdir(exist_ok=True)

    def build(self, status):
        """What it prints and complains."""
        path = f"{self.path}:{os.environ['PATH']}"
        it = subprocess.run([TOP / "scripts/build.sh", "host"], text=True, check=False,
                            capture_output=True,
                            env=os.environ | {"KDIR": str(self.tree), "PATH": path,
                                              "METADATA": str(self.path / "cache")})
        self.assertEqual(it.returncode, status, it.stderr)
        self.assertEqual(it.stderr.count("\n"), status)
        return it.stdout + it.stderr

    def test_sound(self):
        """The negative control: a tree that has all is built against."""
        self.make_tree(self.tree, RUST)
        (self.tree / "rust/libkernel.rmeta").touch()
        self.assertIn(f"make ran with -C {self.tree}", self.build(0))

    def test_no_tree(self):
        self.assertIn("install the kernel's headers", self.build(1))

    def test_no_rust(self):
        self.make_tree(self.tree, "CONFIG_SMP=y\n")
        self.assertIn("kernel 1.2.3-test was built without CONFIG_RUST", self.build(1))

    def test_other_rustc(self):
        """Both are named."""
        self.make_tree(self.tree, RUST)
        self.tool("rustc", "echo rustc 1.3.0")
        said = self.build(1)
        self.assertIn(f"was built with {RUSTC}, this machine has rustc 1.3.0,", said)

    def test_no_tool(self):
        self.make_tree(self.tree, RUST)
        os.environ["BINDGEN"] = "/nonexistent/bindgen"
        self.addCleanup(os.environ.pop, "BINDGEN")
        self.assertIn("/nonexistent/bindgen is missing", self.build(1))

    def test_no_metadata(self):
        self.make_tree(self.tree, RUST)
        self.assertIn("lacks the metadata", self.build(1))

    def test_cache(self):
        """What rust-metadata.sh has made is used, if it is of this very kernel."""
        self.make_tree(self.tree, RUST)
        made = self.path / "cache/1.2.3-test"
        made.mkdir(parents=True)
        key = subprocess.run(["bash", "-c", f". {TOP}/scripts/lib.sh; tree_key {self.tree}"],
                             text=True, capture_output=True, check=True).stdout
        (made / "key").write_text("another\n")
        self.assertIn("lacks the metadata", self.build(1))
        (made / "key").write_text(key)
        self.assertIn(f"make ran with -C {made}", self.build(0))


if __name__ == "__main__":
    unittest.main()
