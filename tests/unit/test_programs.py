#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Of the programs that run the tests: that what fails is counted, that an emulator
which is not the one that is known stays as it is, and what a kernel has died of."""

import contextlib
import io
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent / "scripts")]

# pylint: disable=wrong-import-position
import emulator
import lanes
import run
import vm


def shell(script):
    return ["sh", "-c", script]


def in_lanes(number, *scripts):
    """What lanes.run() returns and prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        programs = lanes.run([shell(script) for script in scripts], number)
    return programs, out.getvalue().splitlines()


def tap(text):
    """The sum of a program that prints this."""
    count = run.Count()
    with contextlib.redirect_stdout(io.StringIO()):
        run.run_tap("part", count, shell(f"printf '{text}'"))
    return count.summary()


class Lanes(unittest.TestCase):
    def test_sum(self):
        (one, two), _ = in_lanes(1, "echo 3 passed, 0 failed, 1 skipped",
                                 "echo '# failed: this'; echo 4 passed, 1 failed; exit 1")
        self.assertEqual((one.sum, one.failed), ([3, 0, 1], []))
        self.assertEqual((two.sum, two.failed), ([4, 1, 0], ["this"]))

    def test_no_sum(self):
        """A program that dies has failed, whatever it has said before."""
        for script in ("echo ok 1; kill -9 $$", "exit 0", "echo 1 passed, 0 failed; echo more"):
            (program,), _ = in_lanes(1, script)
            self.assertEqual(program.sum, [0, 1, 0])
            self.assertIn("no sum", program.failed[0])
        (program,), _ = in_lanes(1, "echo '# failed: this'; exit 1")
        self.assertEqual(program.sum, [0, 2, 0])

    def test_missing(self):
        with self.assertRaises(FileNotFoundError), contextlib.redirect_stdout(io.StringIO()):
            lanes.run([["/no such program"]], 1)

    def test_order(self):
        """Both run at a time, and appear one after the other."""
        with tempfile.TemporaryDirectory() as directory:
            wait = f"timeout 60 sh -c 'until [ -e {directory}/x ]; do sleep 0.01; done'"
            _, lines = in_lanes(2, f"{wait} && echo one",
                                f"echo two; touch {directory}/x")
        self.assertEqual([line for line in lines if not line.startswith("#")], ["one", "two"])


class Tap(unittest.TestCase):
    def test_counts(self):
        self.assertEqual(tap("1..3\\nok 1 - a\\nnot ok 2 - b\\nok 3 - c # SKIP why\\n"),
                         "1 passed, 1 failed, 1 skipped")

    def test_too_few(self):
        self.assertEqual(tap("1..3\\nok 1 - a\\n"), "1 passed, 1 failed")

    def test_no_plan(self):
        self.assertEqual(tap("ok 1 - a\\n"), "1 passed, 1 failed")

    def test_bail_out(self):
        self.assertEqual(tap("Bail out! why\\n"), "0 passed, 1 failed")

    def test_status(self):
        count = run.Count()
        run.run_tap("part", count, shell("exit 3"))
        self.assertEqual(count.failed, ["part: exit status 3"])


# Of the form that the function has in Debian's QEMU 10.0; the addresses are made up.
CODE = [
    (0x10, b"\xc7\x83\x10\x01\0\0\x02\0\0\0", "movl   $0x2,0x110(%rbx)"),
    (0x20, b"\x89\x8b\x20\x01\0\0", "mov    %ecx,0x120(%rbx)"),
    (0x30, b"\x89\x8b\x10\x01\0\0", "mov    %ecx,0x110(%rbx)"),
    (0x40, b"\xe8\0\0\0\0", "call   1000 <do_interrupt_x86_hardirq@@Base>"),
    (0x50, b"\x89\x8b\x10\x01\0\0", "mov    %ecx,0x110(%rbx)"),
]


class Emulator(unittest.TestCase):
    def test_store(self):
        self.assertEqual(emulator.find_store(CODE), (0x30, 6))

    def test_unknown(self):
        """Without the NMI's store, the store, or the delivery, or with two of them."""
        for code in (CODE[1:], CODE[:2] + CODE[3:], CODE[:3], CODE + CODE[3:4],
                     CODE[:3] + CODE[2:], []):
            with self.assertRaises(emulator.Unknown):
                emulator.find_store(code)

    def test_other_program(self):
        with self.assertRaises(emulator.Unknown):
            emulator.disassemble(sys.executable)

    def test_left_alone(self):
        """One that is not known is not copied."""
        with (tempfile.TemporaryDirectory() as directory,
              mock.patch.object(emulator, "PACKAGED", Path(sys.executable))):
            with self.assertRaises(emulator.Unknown):
                emulator.mended(Path(directory))
            self.assertEqual(list(Path(directory).iterdir()), [])

    def test_copy(self):
        """Six bytes of it are NOPs, and all else is as it was."""
        with (tempfile.TemporaryDirectory() as directory,
              tempfile.NamedTemporaryFile() as packaged,
              mock.patch.object(emulator, "PACKAGED", Path(packaged.name)),
              mock.patch.object(emulator, "disassemble", return_value=CODE)):
            packaged.write(bytes(range(0x80)))
            packaged.flush()
            copy = emulator.mended(Path(directory)).read_bytes()
        self.assertEqual(copy, bytes(range(0x30)) + b"\x90" * 6 + bytes(range(0x36, 0x80)))


class LastWords(unittest.TestCase):
    PROVOKED = "DMAR: [DMA Read NO_PASID] Request device [00:04.0] fault addr 0x0 reason 0x06\n"

    def test_crash(self):
        """A fault of the IOMMU, which tests provoke, is not what a kernel has died of."""
        words = vm.last_words(f"{self.PROVOKED}BUG: unable to handle page fault\nRIP: 0010:f\n")
        self.assertIn("BUG: unable to handle page fault", words)
        self.assertNotIn("DMAR", words)

    def test_no_crash(self):
        self.assertTrue(vm.complaints(self.PROVOKED))
        self.assertEqual(vm.last_words(self.PROVOKED), "")


if __name__ == "__main__":
    unittest.main()
