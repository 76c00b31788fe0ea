#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The emulator that L1 runs in: Debian's QEMU without one of its defects.

Where KVM in L1 enters an L2 with an interrupt to inject, helper_vmrun() of QEMU's
target/i386/tcg/system/svm_helper.c delivers it and leaves its vector in
CPUState::exception_index. If the processor is then wanted for something else before that
L2 exits, cpu_handle_exception() of accel/tcg/cpu-exec.c delivers it once more, whatever
the L2 is doing by then and although it may have switched interrupts off. With
"thread=single" that happens all the time, no L2 gets up; else a few times in an hour.
QEMU 10.0 and 11.1 have it. The store that leaves the vector serves a message of a log
only, so the copy of QEMU that is made here, build/l0/qemu-..., lacks it.

Only L0 needs that: what is in L1's image, and runs L2s, is QEMU as Debian packages it.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

PACKAGED = Path("/usr/bin/qemu-system-x86_64")
FUNCTION = "helper_vmrun"
DELIVER = "do_interrupt_x86_hardirq"

# A line of objdump's: address, bytes, instruction.
LINE = re.compile(r"\s*([0-9a-f]+):\t((?:[0-9a-f]{2} )+)\s*\t(.*)")

# The vector of an NMI, and the most instructions between the store and the delivery.
NMI = 2
DISTANCE = 16

NOP = b"\x90"


class Unknown(Exception):
    """This QEMU does not look like one that has the defect."""


def disassemble(path):
    """The function's instructions, [(offset in the file, bytes, text)]."""
    text = subprocess.run(
        ["objdump", "-d", "-F", "--insn-width=16", f"--disassemble={FUNCTION}", str(path)],
        stdout=subprocess.PIPE, text=True, check=True).stdout
    start = re.search(rf"^([0-9a-f]+) <{FUNCTION}.*\(File Offset: 0x([0-9a-f]+)\):$", text, re.M)
    if not start:
        raise Unknown(f"it has no symbol {FUNCTION}")
    shift = int(start[1], 16) - int(start[2], 16)
    return [(int(match[1], 16) - shift, bytes.fromhex(match[2]), match[3].strip())
            for match in map(LINE.match, text.splitlines()) if match]


def find_store(code):
    """(offset, length) of the instruction that leaves the vector of an interrupt that was
    delivered. Of an NMI, which is left there to be delivered, the vector is a constant: so
    the place is known."""
    places = {match[1] for _, _, text in code
              if (match := re.fullmatch(rf"movl\s+\$0x{NMI:x},(-?0x\w+\(%\w+\))", text))}
    calls = [index for index, (_, _, text) in enumerate(code)
             if re.match(rf"call\s.*<{DELIVER}\b", text)]
    if len(places) != 1 or len(calls) != 1:
        raise Unknown(f"{len(places)} places for an NMI, {len(calls)} deliveries")
    store = re.compile(rf"mov\s+%e\w+,{re.escape(places.pop())}")
    found = [(offset, len(raw)) for offset, raw, text in code[calls[0] - DISTANCE:calls[0]]
             if store.fullmatch(text)]
    if len(found) != 1:
        raise Unknown(f"{len(found)} stores before the delivery")
    return found[0]


def mended(directory):
    """Path of a QEMU without the defect below a directory, made if it is not there yet.
    Raises Unknown if the packaged one does not look as expected."""
    status = PACKAGED.stat()
    path = directory / f"qemu-{status.st_size}-{int(status.st_mtime)}"
    if not path.exists():
        offset, length = find_store(disassemble(PACKAGED))
        image = bytearray(PACKAGED.read_bytes())
        image[offset:offset + length] = NOP * length
        directory.mkdir(parents=True, exist_ok=True)
        # Others may be making it as well.
        new = directory / f".new-{os.getpid()}"
        new.write_bytes(image)
        new.chmod(0o755)
        new.replace(path)
    return path


if __name__ == "__main__":
    print(mended(Path(sys.argv[1])))
