#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Of the programs that run the tests: that what fails is counted, that an emulator
which is not the one that is known stays as it is, what a kernel has died of, and what is
said to QEMU's monitor; and how the demo's figures are judged."""

import contextlib
import io
import json
import socket
import struct
import sys
import tempfile
import threading
import time
import types
import unittest
from pathlib import Path
from unittest import mock

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent / "scripts"), str(TESTS.parent / "scripts/l1")]

# pylint: disable=wrong-import-position
import demo
import emulator
import lanes
import probe
import qmp
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


# Of the form that helper_vmrun() has in Debian's QEMU 10.0; the addresses are made up.
VMRUN = [
    (0x10, b"\xc7\x83\x10\x01\0\0\x02\0\0\0", "movl   $0x2,0x110(%rbx)"),
    (0x20, b"\x89\x8b\x20\x01\0\0", "mov    %ecx,0x120(%rbx)"),
    (0x30, b"\x89\x8b\x10\x01\0\0", "mov    %ecx,0x110(%rbx)"),
    (0x40, b"\xe8\0\0\0\0", "call   1000 <do_interrupt_x86_hardirq@@Base>"),
    (0x50, b"\x89\x8b\x10\x01\0\0", "mov    %ecx,0x110(%rbx)"),
]

# And of helper_write_crN(): what it calls is at 0x1000, 0x2000, 0x3000 and 0x4000.
WRITE_CR = [
    (0x60, b"\xe9\x9b\x0f\0\0", "jmp    1000 <cpu_reset_interrupt@@Base>"),
    (0x70, b"\xe9\x8b\x1f\0\0", "jmp    2000 <cpu_interrupt@@Base>"),
    (0x80, b"\xe8\x7b\x2f\0\0", "call   3000 <bql_lock_impl@@Base>"),
    (0x90, b"\xe8\x6b\x3f\0\0", "call   4000 <bql_unlock@@Base>"),
]
CALL = emulator.LockedCall(0x70, 0x2000, 0x3000, 0x4000)
SEGMENT = 0x1000


def program_file(size=SEGMENT, memory=None, tail=b""):
    """An ELF file with a segment of code of `size` bytes at its start, and what follows."""
    header = struct.pack("<32xQ14xHH4x", 64, 56, 2)
    segments = b"".join(struct.pack("<IIQQQQQQ", 1, flags, 0, 0, 0, length, extent, 0x1000)
                        for flags, length, extent in ((4, 0, 0), (5, size, memory or size)))
    image = bytearray(max(0x6000, -(-size // 0x1000) * 0x1000))
    image[:0x100] = header.ljust(64, b"\0") + segments + bytes(0x100 - 64 - len(segments))
    image[size:size + len(tail)] = tail
    return image


class Emulator(unittest.TestCase):
    def test_store(self):
        self.assertEqual(emulator.find_store(VMRUN), (0x30, 6))

    def test_unknown_store(self):
        """Without the NMI's store, the store, or the delivery, or with two of them."""
        for code in (VMRUN[1:], VMRUN[:2] + VMRUN[3:], VMRUN[:3], VMRUN + VMRUN[3:4],
                     VMRUN[:3] + VMRUN[2:], []):
            with self.assertRaises(emulator.Unknown):
                emulator.find_store(code)

    def test_call(self):
        self.assertEqual(emulator.find_call(WRITE_CR), CALL)

    def test_unknown_call(self):
        """Without the jump, one of the lock's functions, or with two of them; or with a call
        in place of the jump, after which the lock may well be given back."""
        called = (0x70, b"\xe8\x8b\x1f\0\0", "call   2000 <cpu_interrupt@@Base>")
        short = (0x70, b"\xeb\x10", "jmp    82 <cpu_interrupt@@Base>")
        for code in (WRITE_CR[:1] + WRITE_CR[2:], WRITE_CR[:2] + WRITE_CR[3:], WRITE_CR[:3],
                     WRITE_CR + WRITE_CR[1:2], WRITE_CR + WRITE_CR[2:3], [],
                     WRITE_CR[:1] + [called] + WRITE_CR[2:],
                     WRITE_CR[:1] + [short] + WRITE_CR[2:]):
            with self.assertRaises(emulator.Unknown):
                emulator.find_call(code)

    def test_locked(self):
        """What is called, in which order, and that the stack is as it was."""
        code = emulator.locked(CALL, 0x5000)
        self.assertEqual(code[-len(emulator.WHO):], emulator.WHO)
        self.assertEqual(code[:3] + code[17:21] + code[26:27], b"\x57\x56\x50\x58\x5e\x5f\x50\x58")
        targets = [(code[at:at + 1], 0x5005 + at + struct.unpack_from("<i", code, at + 1)[0])
                   for at in (12, 21, 27)]
        self.assertEqual(targets, [(b"\xe8", 0x3000), (b"\xe8", 0x2000), (b"\xe9", 0x4000)])
        who, = struct.unpack_from("<i", code, 6)
        self.assertEqual(code[10 + who:], emulator.WHO)

    def test_append(self):
        image = program_file()
        before = bytes(image)
        # The page is full: the segment ends where a page does.
        with self.assertRaises(emulator.Unknown):
            emulator.append_code(image, lambda at: b"code")
        self.assertEqual(image, before)
        image = program_file(0xffc)
        self.assertEqual(emulator.append_code(image, lambda at: b"code"), 0xffc)
        self.assertEqual(image[0xffc:0x1001], b"code\0")
        self.assertEqual(struct.unpack_from("<QQ", image, 64 + 56 + 32), (0x1000, 0x1000))

    def test_no_room(self):
        """Too much for the page, something in it, or memory that is cleared."""
        for image in (program_file(0xffd), program_file(0xff0, tail=b"\1"),
                      program_file(0xff0, tail=b"\0" * 15 + b"\1"),
                      program_file(0xff0, memory=0x1000)):
            before = bytes(image)
            with self.assertRaises(emulator.Unknown):
                emulator.append_code(image, lambda at: b"code")
            self.assertEqual(image, before)

    def test_other_program(self):
        for name in (emulator.VMRUN, emulator.WRITE_CR):
            with self.assertRaises(emulator.Unknown):
                emulator.disassemble(sys.executable, name)

    def test_left_alone(self):
        """One that is not known is not copied."""
        with (tempfile.TemporaryDirectory() as directory,
              mock.patch.object(emulator, "PACKAGED", Path(sys.executable))):
            with self.assertRaises(emulator.Unknown):
                emulator.mended(Path(directory))
            self.assertEqual(list(Path(directory).iterdir()), [])

    def test_half_known(self):
        """Nor is one that has but one of the defects."""
        for codes in ((VMRUN, []), ([], WRITE_CR)):
            with self.assertRaises(emulator.Unknown):
                emulator.mend(program_file(0xf00), *codes)

    def test_copy(self):
        """Six bytes are NOPs, a jump goes to the end of the code, and all else is as it
        was but for that and its size."""
        codes = {emulator.VMRUN: VMRUN, emulator.WRITE_CR: WRITE_CR}
        original = program_file(0xf00)
        original[0x30:0x36], original[0x70:0x75] = VMRUN[2][1], WRITE_CR[1][1]
        with (tempfile.TemporaryDirectory() as directory,
              tempfile.NamedTemporaryFile() as packaged,
              mock.patch.object(emulator, "PACKAGED", Path(packaged.name)),
              mock.patch.object(emulator, "disassemble", side_effect=lambda _, name: codes[name])):
            packaged.write(original)
            packaged.flush()
            copy = emulator.mended(Path(directory)).read_bytes()
        added = emulator.locked(CALL, 0xf00)
        original[0x30:0x36] = b"\x90" * 6
        original[0x70:0x75] = b"\xe9" + struct.pack("<i", 0xf00 - 0x75)
        original[0xf00:0xf00 + len(added)] = added
        struct.pack_into("<QQ", original, 64 + 56 + 32, *(2 * [0xf00 + len(added)]))
        self.assertEqual(copy, original)


class Qemu:
    """A monitor on a socket: answers each command with what answer(name, number) returns,
    lines of JSON without the command's id; ends when that is None."""

    def __init__(self, answer, greeting='{"QMP": {}}'):
        self._directory = tempfile.TemporaryDirectory()
        self.probe_path = self.path = Path(self._directory.name) / "monitor"
        # As probe.py finds a VM.
        self.name, self.started = "vm", time.monotonic()
        self.process = types.SimpleNamespace(poll=lambda: None)
        self._answer, self._greeting = answer, greeting
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._listener.close()
        self._thread.join(10)
        self._directory.cleanup()

    def _serve(self):
        connection, _ = self._listener.accept()
        # Who asks may leave at any time.
        with contextlib.suppress(OSError), connection, connection.makefile("rw") as file:
            file.write(self._greeting + "\n")
            file.flush()
            for number, line in enumerate(file):
                request = json.loads(line)
                text = "{}" if request["execute"] == "qmp_capabilities" else self._answer(
                    request["execute"], number)
                if text is None:
                    return
                *before, last = text.split("\n")
                kind = "error" if "desc" in last else "return"
                message = {kind: json.loads(last), "id": request["id"]}
                file.write("\n".join([*before, json.dumps(message)]) + "\n")
                file.flush()


EVENT = '{"event": "RESUME"}\n{"return": {"of": "another"}, "id": "x"}\n'


class Monitor(unittest.TestCase):
    def test_answer(self):
        """Events and what others are answered come in between."""
        with (Qemu(lambda name, number: EVENT + json.dumps([name, number])) as qemu,
              qmp.Connection(qemu.path, 5) as monitor):
            self.assertEqual(monitor.command("one"), ["one", 1])
            self.assertEqual(monitor.command("two"), ["two", 2])

    def test_error(self):
        with (Qemu(lambda name, number: '{"desc": "no"}') as qemu,
              qmp.Connection(qemu.path, 5) as monitor,
              self.assertRaises(qmp.QmpError)):
            monitor.command("one")

    def test_gone(self):
        with (Qemu(lambda name, number: None) as qemu, qmp.Connection(qemu.path, 5) as monitor,
              self.assertRaisesRegex(OSError, "QEMU is gone")):
            monitor.command("one")

    def test_late(self):
        go_on = threading.Event()
        with (Qemu(lambda name, number: "{}" if go_on.wait(10) else None) as qemu,
              qmp.Connection(qemu.path, 5) as monitor):
            with self.assertRaises(TimeoutError):
                monitor.command("one", 0.1)
            go_on.set()


class Probe(unittest.TestCase):
    SLOW = 0.3

    def probe(self, slow):
        """A probe of 10 answers, of which one takes longer."""
        asked = threading.Event()

        def answer(_name, number):
            if number == 10:
                asked.set()
            if number == slow:
                time.sleep(self.SLOW)
            return "{}"
        with Qemu(answer) as qemu, probe.Probe(qemu) as found:
            self.assertTrue(asked.wait(10))
        return found

    def test_worst(self):
        found = self.probe(5)
        self.assertGreaterEqual(found.worst, self.SLOW)
        self.assertGreaterEqual(found.worst_at, 3 * probe.PAUSE)
        self.assertGreaterEqual(found.answers, 9)

    def test_last(self):
        """The answer that is due when it is stopped counts."""
        self.assertGreaterEqual(self.probe(10).worst, self.SLOW)

    def test_control(self):
        """QEMU builds its machine until the first answer; and nobody is slow."""
        self.assertLess(self.probe(1).worst, self.SLOW)
        self.assertLess(self.probe(None).worst, self.SLOW)

    def test_gone(self):
        """A QEMU that dies is no figure."""
        with (Qemu(lambda name, number: None if number == 5 else "{}") as qemu,
              self.assertRaisesRegex(OSError, "QEMU is gone")):
            found = probe.Probe(qemu)
            found._thread.join(10)  # pylint: disable=protected-access
            found.stop()


def demo_run(mode, size, kernel, worst, **more):
    return {"mode": mode, "size_gib": size, "qemu_init_s": 1, "kernel_s": kernel,
            "userspace_s": kernel + 5, "qmp_worst_s": worst, **more}


class Demo(unittest.TestCase):
    """Of 12 GiB by UEFI, a device adds 8 s to 5, and 1 with our modules."""

    def figures(self, unmapped=8, worst=0.3):
        at_kernel = {"deferred_bytes_at_kernel": 8, "unmapped_bytes_at_kernel": unmapped}
        return demo.Figures({"runs": [
            demo_run("uefi-floor", 4, 5, 0.1), demo_run("uefi-floor", 12, 5, 0.1),
            demo_run("uefi-stock", 4, 7, 0.2), demo_run("uefi-stock", 12, 13, 0.2),
            demo_run("uefi-deferred", 4, 6, worst, **at_kernel),
            demo_run("uefi-deferred", 12, 6, worst, **at_kernel),
            {"mode": "uefi-stock", "size_gib": 12, "error": "lost"}]})

    @staticmethod
    def bars(figures):
        """{beginning of its text: figure, comparison, limit}."""
        return {text.split(",")[0]: rest for text, *rest in demo.bars(figures)}

    def test_uefi(self):
        bars = self.bars(self.figures())
        self.assertEqual(bars["UEFI"][0], 1 / 8)
        self.assertEqual(bars["UEFI: until the kernel starts"][0], 0)
        self.assertEqual(bars["UEFI: RAM that is deferred and not mapped yet when the kernel "
                              "starts"][0], 1)
        self.assertAlmostEqual(bars["until QEMU"][0], 0.1)

    def verdicts(self, **different):
        """What is said of each bar, by the beginning of its text."""
        with contextlib.redirect_stdout(io.StringIO()) as out:
            demo.report_bars(self.figures(**different))
        return [line.split(maxsplit=1) for line in out.getvalue().splitlines()]

    def test_missed(self):
        """One VM of which something was mapped, or that kept somebody waiting."""
        missed = [text for word, text in self.verdicts() if word == "MISSED"]
        self.assertEqual(missed, [])
        for different, text in (({"unmapped": 7}, "UEFI: RAM"), ({"worst": 0.8}, "until QEMU")):
            missed = [line for word, line in self.verdicts(**different) if word == "MISSED"]
            self.assertEqual([line[:len(text)] for line in missed], [text])

    def test_verdict(self):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            demo.report_verdict(self.figures())
        self.assertEqual(out.getvalue(), "With a device, a VM of 12 GiB is in its user space "
                         "later than without: by 8.0 s (UEFI) on stock VFIO, by 1.0 s (UEFI) "
                         "with our modules.\n")

    def test_none(self):
        """Figures of before UEFI was measured are no reason to fail."""
        figures = demo.Figures({"runs": [demo_run("stock", 4, 3, None)]})
        self.assertEqual(self.bars(figures)["UEFI"][0], None)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            demo.report_verdict(figures)
        self.assertEqual(out.getvalue(), "")


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
