#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Keeps L1's emulated processors awake: one process for each, as long as L1 runs.

QEMU 10.0 at times loses an interrupt between two of its steps. Either the local APIC
has it in service and the processor never runs its handler, so that nobody ever ends it
and no interrupt of that or a lower priority is delivered again; or it is pending and
the processor is not told before the next one comes (helper_vmrun() changes
interrupt_request without a lock, until QEMU 10.2). If that was the processor's timer,
whoever waits for this processor waits for ever, and soon all of L1 does.

Interrupts by which one processor wakes another are of the highest priority and still
come through. So each process wakes the next one every second; and since none of L1's
interrupts is in service while a program runs, what is then was lost, and is ended.

L1's kernel must have been booted with iomem=relaxed.
"""

import mmap
import os
import select

# The local APIC's registers, each the first four of 16 bytes: Intel's manual, volume 3,
# "Local APIC Register Address Map".
APIC = 0xFEE00000
EOI = 0xB0
IN_SERVICE = 0x100
WORDS = 8

# Seconds between two looks.
PAUSE = 1


def in_service(registers):
    """The vectors that this processor's APIC has in service."""
    return [32 * word + bit for word in range(WORDS) for bit in range(32)
            if registers[(IN_SERVICE + 16 * word) // 4] >> bit & 1]


def watch(cpu, mine, others):
    """Is woken by `mine`, or else wakes the next processor by `others`."""
    os.sched_setaffinity(0, {cpu})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    with open("/dev/mem", "r+b", buffering=0) as memory, open("/dev/kmsg", "w") as log:
        registers = memoryview(mmap.mmap(memory.fileno(), 4096, offset=APIC)).cast("I")
        while True:
            if select.select([mine], [], [], PAUSE)[0]:
                os.read(mine, 4096)
            else:
                os.write(others, b"\0")
            for vector in in_service(registers):
                log.write(f"awake: CPU {cpu} lost interrupt {vector} while it was in service\n")
                log.flush()
                registers[EOI // 4] = 0


def main():
    cpus = sorted(os.sched_getaffinity(0))
    pipes = [os.pipe() for _ in cpus]
    for number, cpu in enumerate(cpus):
        if os.fork() == 0:
            watch(cpu, pipes[number][0], pipes[(number + 1) % len(cpus)][1])


if __name__ == "__main__":
    main()
