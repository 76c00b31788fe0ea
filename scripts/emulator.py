#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The emulator that L1 runs in: Debian's QEMU without two of its defects, which QEMU 10.0
and 11.1 have. The copy of QEMU that is made here, build/l0/qemu-..., lacks them.

- Where KVM in L1 enters an L2 with an interrupt to inject, helper_vmrun() of QEMU's
  target/i386/tcg/system/svm_helper.c delivers it and leaves its vector in
  CPUState::exception_index. If the processor is then wanted for something else before that
  L2 exits, cpu_handle_exception() of accel/tcg/cpu-exec.c delivers it once more, whatever
  the L2 is doing by then and although it may have switched interrupts off. With
  "thread=single" that happens all the time, no L2 gets up; else a few times in an hour.
  The store that leaves the vector serves a message of a log only: the copy does without.

- Where an L2 writes CR8 while KVM has an interrupt for it, helper_write_crN() of
  misc_helper.c, in the same directory, ends in cpu_interrupt() without QEMU's big lock, and
  QEMU aborts: "assertion failed: (bql_locked())". OVMF writes CR8 whenever it holds
  interrupts back. In the copy that last call goes to a few instructions that are put where
  the code ends: they take the lock, make the call, and give the lock back. A lock is what
  is missing, and safe to take there: the same function takes and gives it for the write
  itself, if no L2 runs, and it has no other use for it. So the copy is right with a thread
  for each processor, too, and not only where all of them have one.

Only L0 needs that: what is in L1's image, and runs L2s, is QEMU as Debian packages it.
"""

import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

PACKAGED = Path("/usr/bin/qemu-system-x86_64")
VMRUN = "helper_vmrun"
DELIVER = "do_interrupt_x86_hardirq"
WRITE_CR = "helper_write_crN"

# A line of objdump's: address, bytes, instruction.
LINE = re.compile(r"\s*([0-9a-f]+):\t((?:[0-9a-f]{2} )+)\s*\t(.*)")

# The vector of an NMI, and the most instructions between the store and the delivery.
NMI = 2
DISTANCE = 16

NOP = b"\x90"

# Instructions with an address of 32 bits, relative to the next one.
CALL = b"\xe8"
JUMP = b"\xe9"
NEAR = struct.Struct("<i")

# What the lock is told of who takes it, for messages.
WHO = b"emulator.py\0"

# Of a 64-bit ELF file: where its program headers are, their size and number; the fields
# of one: type, flags, offset, two addresses, sizes in the file and in memory, alignment.
HEADERS_AT = 0x20
HEADER_COUNT_AT = 0x36
HEADER = struct.Struct("<IIQQQQQQ")
LOADED = 1
EXECUTABLE = 1
PAGE = 4096


class Unknown(Exception):
    """This QEMU does not look like one that has the defects."""


class LockedCall(NamedTuple):
    """Offsets in the file: the jump that has to become a call with the lock held, where
    it goes, and the functions that take and give the lock."""

    jump: int
    function: int
    lock: int
    unlock: int


def disassemble(path, function):
    """A function's instructions, [(offset in the file, bytes, text)]."""
    text = subprocess.run(
        ["objdump", "-d", "-F", "--insn-width=16", f"--disassemble={function}", str(path)],
        stdout=subprocess.PIPE, text=True, check=True).stdout
    start = re.search(rf"^([0-9a-f]+) <{function}.*\(File Offset: 0x([0-9a-f]+)\):$", text, re.M)
    if not start:
        raise Unknown(f"it has no symbol {function}")
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


def find_call(code):
    """The LockedCall. That it is a jump, the function's last act, shows that nobody holds
    the lock there: nobody could give it back."""
    def only(opcode, text):
        found = [(offset, offset + len(raw) + NEAR.unpack(raw[1:])[0])
                 for offset, raw, line in code
                 if re.match(text, line) and raw[:1] == opcode and len(raw) == 1 + NEAR.size]
        if len(found) != 1:
            raise Unknown(f"{len(found)} times {text}")
        return found[0]

    jump, function = only(JUMP, r"jmp\s.*<cpu_interrupt\b")
    _, lock = only(CALL, r"call\s.*<bql_lock_impl\b")
    _, unlock = only(CALL, r"call\s.*<bql_unlock\b")
    return LockedCall(jump, function, lock, unlock)


def near(opcode, at, to):
    """The instruction at an offset that has the address of another as its operand."""
    return opcode + NEAR.pack(to - at - len(opcode) - NEAR.size)


def locked(call, at):
    """The instructions for `at` that make a LockedCall with its two arguments."""
    code = b"\x57\x56\x50"                                  # push %rdi, %rsi, %rax
    who = len(code)
    code += near(b"\x48\x8d\x3d", 0, 0)                     # lea WHO(%rip), %rdi
    code += b"\x31\xf6"                                     # xor %esi, %esi
    code += near(CALL, at + len(code), call.lock)
    code += b"\x58\x5e\x5f\x50"                             # pop %rax, %rsi, %rdi; push %rax
    code += near(CALL, at + len(code), call.function)
    code += b"\x58"                                         # pop %rax
    code += near(JUMP, at + len(code), call.unlock)
    lea = near(b"\x48\x8d\x3d", who, len(code))
    return code[:who] + lea + code[who + len(lea):] + WHO


def append_code(image, make):
    """Puts what make(offset) returns where the code of an ELF file ends, in the rest of its
    last page, which is mapped with it. Returns the offset."""
    at, = struct.unpack_from("<Q", image, HEADERS_AT)
    size, count = struct.unpack_from("<HH", image, HEADER_COUNT_AT)
    headers = [(at + index * size, HEADER.unpack_from(image, at + index * size))
               for index in range(count)]
    code = [(place, header) for place, header in headers
            if header[0] == LOADED and header[1] & EXECUTABLE]
    if len(code) != 1:
        raise Unknown(f"{len(code)} segments of code")
    place, (kind, flags, offset, virtual, physical, length, memory, align) = code[0]
    end = offset + length
    made = make(end)
    free = -end % PAGE
    if length != memory or len(made) > free or any(image[end:end + free]):
        raise Unknown(f"its code ends with {free} bytes of a page, which are not free")
    image[end:end + len(made)] = made
    HEADER.pack_into(image, place, kind, flags, offset, virtual, physical,
                     length + len(made), memory + len(made), align)
    return end


def mend(image, vmrun, write_cr):
    """Mends a bytearray of the file, with the instructions of the two functions."""
    offset, length = find_store(vmrun)
    call = find_call(write_cr)
    image[offset:offset + length] = NOP * length
    new = append_code(image, lambda at: locked(call, at))
    jump = near(JUMP, call.jump, new)
    image[call.jump:call.jump + len(jump)] = jump


def mended(directory):
    """Path of a QEMU without the defects below a directory, made if it is not there yet.
    Raises Unknown if the packaged one does not look as expected."""
    status = PACKAGED.stat()
    # What is mended, and how.
    how = zlib.crc32(Path(__file__).read_bytes())
    path = directory / f"qemu-{status.st_size}-{int(status.st_mtime)}-{how:08x}"
    if not path.exists():
        image = bytearray(PACKAGED.read_bytes())
        mend(image, disassemble(PACKAGED, VMRUN), disassemble(PACKAGED, WRITE_CR))
        directory.mkdir(parents=True, exist_ok=True)
        # Others may be making it as well.
        new = directory / f".new-{os.getpid()}"
        new.write_bytes(image)
        new.chmod(0o755)
        new.replace(path)
    return path


if __name__ == "__main__":
    print(mended(Path(sys.argv[1])))
