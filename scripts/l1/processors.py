# SPDX-License-Identifier: GPL-2.0-only
"""Where the processors of an L2 are, as QEMU's monitor has it: for one that does not
answer any more.

L1 runs KVM on an emulated processor, which may lose an interrupt that KVM gives to an L2: the
local APIC that KVM keeps for the L2 has it in service, its handler never runs and so never
ends it, and none of that or a lower priority comes again.
"""

import functools
import re
import time
from bisect import bisect
from pathlib import Path
from typing import NamedTuple

# Looks at a processor and seconds between two of them. KVM may be about to deliver what
# is in service already, but not time and again.
LOOKS = 5
PAUSE = 0.5

# RFLAGS: interrupts are enabled.
ENABLED = 1 << 9

# Where Linux maps the table of its interrupts' handlers, CPU_ENTRY_AREA_RO_IDT, and the
# first of them.
IDT = 0xfffffe0000000000
FIRST = "asm_exc_divide_error"

# Words of the stack that are searched for return addresses.
STACK = 256

# Who handles interrupts, and what is on the stack when they call, struct pt_regs.
ENTRY = r"asm_(sysvec_|common_interrupt)"
FRAME = ("r15 r14 r13 r12 bp bx r11 r10 r9 r8 ax cx dx si di orig_ax ip cs flags sp "
         "ss").split()


class Processor(NamedTuple):
    """One processor at one moment.

    at, stack   address of the instruction, and of the stack's end
    halted      it waits for an interrupt
    enabled     it takes interrupts
    in_service  vectors that its local APIC has given to it, and that have not ended
    pending     those that wait
    """

    at: int
    stack: int
    halted: bool
    enabled: bool
    in_service: tuple
    pending: tuple

    def lost(self):
        """The vectors that are in service although none can be: Linux ends each one before
        it enables interrupts."""
        return self.in_service if self.enabled else ()


@functools.cache
def _symbols():
    """The functions of L1's kernel without its modules, (addresses, names), sorted."""
    rows = (line.split() for line in Path("/proc/kallsyms").read_text().splitlines())
    return tuple(zip(*sorted((int(row[0], 16), row[2]) for row in rows
                             if row[1] in "tT" and len(row) == 3)))


def _symbol(address):
    """An address of L1's kernel without its modules in words, or None."""
    addresses, names = _symbols()
    at = bisect(addresses, address) - 1
    return f"{names[at]}+{address - addresses[at]:#x}" if 0 <= at < len(names) - 1 else None


def _words(qmp, cpu, address, count):
    """So many words of 8 bytes of an L2's memory, as far as there are any."""
    text = qmp.human(f"x /{count}gx {address:#x}", cpu)
    return [int(word, 16) for word in re.findall(r"\b0x([0-9a-f]{16})\b", text)]


def _moved(qmp):
    """By how much L2's kernel is off L1's, if they are the same otherwise."""
    words = _words(qmp, 0, IDT, 2)
    if len(words) < 2:
        return 0
    handler = words[0] & 0xffff | words[0] >> 48 << 16 | (words[1] & 0xffffffff) << 32
    addresses, names = _symbols()
    return handler - addresses[names.index(FIRST)]


def _vectors(lapic, name):
    line = re.search(rf"^{name}\s+(.*)", lapic, re.M)
    return tuple(int(number) for number in re.findall(r"\d+", line[1])) if line else ()


def look(qmp):
    """All processors, [Processor]."""
    found = []
    texts = re.split(r"^CPU#\d+", qmp.human("info registers -a"), flags=re.M)[1:]
    for cpu, text in enumerate(texts):
        lapic = qmp.human(f"info lapic {cpu}")
        at, flags, halted = re.search(
            r"\b[RE]IP=(\w+) [RE]FL=(\w+).*HLT=(\d)", text).groups()
        stack = re.search(r"\b[RE]SP=(\w+)", text)[1]
        found.append(Processor(int(at, 16), int(stack, 16), halted == "1",
                               bool(int(flags, 16) & ENABLED),
                               _vectors(lapic, "ISR"), _vectors(lapic, "IRR")))
    return found


def failure(qmp):
    """How the emulated processor has failed the L2, or None."""
    lost = set()
    for turn in range(LOOKS):
        seen = {(vector, cpu) for cpu, processor in enumerate(look(qmp))
                for vector in processor.lost()}
        lost = lost & seen if turn else seen
        if not lost:
            return None
        time.sleep(PAUSE)
    return "processor {1} lost interrupt {0} while it was in service".format(*min(lost))


def _calls(words, moved):
    """What called what: guessed, each word on a stack that is an address of a function.
    With a handler of interrupts comes what it has interrupted, by the names of FRAME."""
    for at, word in enumerate(words):
        name = _symbol(word - moved)
        frame = words[at + 1:at + 1 + len(FRAME)]
        if name and re.match(ENTRY, name) and len(frame) == len(FRAME):
            yield name, dict(zip(FRAME, frame))
        elif name:
            yield name, None


def _stacks(qmp):
    """For each processor (itself, its _calls(), by how much its kernel is off L1's)."""
    moved = _moved(qmp)
    for cpu, processor in enumerate(look(qmp)):
        words = _words(qmp, cpu, processor.stack, STACK)
        yield processor, list(_calls(words, moved)), moved


def describe(qmp):
    """Where each processor is, in lines. Functions have names only where L2's kernel is
    L1's."""
    for cpu, (processor, calls, moved) in enumerate(_stacks(qmp)):
        names = (f"{name} (flags {frame['flags']:#x})" if frame else name
                 for name, frame in calls)
        yield (f"processor {cpu}: {'halted' if processor.halted else 'running'} at "
               f"{_symbol(processor.at - moved) or hex(processor.at)}, interrupts "
               f"{'on' if processor.enabled else 'off'}, in service "
               f"{list(processor.in_service)}, pending {list(processor.pending)}; "
               f"calls: {' '.join(names)}")
