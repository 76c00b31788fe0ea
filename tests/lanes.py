# SPDX-License-Identifier: GPL-2.0-only
"""Runs programs that count tests, such as run.py itself, side by side. What they print
appears program by program, in the order in which they were named, and each as it comes
when those before it have ended."""

import concurrent.futures
import os
import queue
import re
import subprocess
from pathlib import Path

SUM = re.compile(r"(\d+) passed, (\d+) failed(?:, (\d+) skipped)?$")
FAILED = re.compile(r"# failed: (.*)")


def text_of(passed, failed, skipped):
    """The sum of tests, as a line."""
    return f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else "")


def available(memory_gib):
    """How many programs that need so much memory can run at a time: two at most, on two
    processors, or one."""
    meminfo = Path("/proc/meminfo").read_text()
    free = int(re.search(r"MemAvailable:\s+(\d+)", meminfo)[1]) / (1 << 20)
    return 2 if len(os.sched_getaffinity(0)) > 1 and free >= 2 * memory_gib else 1


class Program:
    """One of them.

    words    what it is called by
    lines    what it has printed, and None when it has ended
    failed   names of tests that failed
    sum      how many tests [passed, failed, skipped]
    """

    def __init__(self, words):
        self.words = words
        self.lines = queue.SimpleQueue()
        self.failed = []
        self.sum = [0, 0, 0]

    def run(self):
        """Runs it to its end, in a thread of its own."""
        last = None
        try:
            with subprocess.Popen(self.words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  text=True, errors="replace") as process:
                for line in process.stdout:
                    line = last = line.rstrip("\n")
                    if match := FAILED.match(line):
                        self.failed.append(match[1])
                    elif not SUM.match(line):
                        self.lines.put(line)
        finally:
            self.lines.put(None)
        if match := SUM.match(last or ""):
            self.sum = [int(number or 0) for number in match.groups()]
        else:
            self.failed.append(f"{' '.join(self.words)}: ended with status "
                               f"{process.returncode} and no sum")
            self.sum = [0, len(self.failed), 0]


def run(commands, number):
    """Runs commands, so many at a time; returns them as Program, ended."""
    programs = [Program(words) for words in commands]
    with concurrent.futures.ThreadPoolExecutor(number) as pool:
        futures = [pool.submit(program.run) for program in programs]
        for program, future in zip(programs, futures):
            print(f"# === {' '.join(program.words)}", flush=True)
            while (line := program.lines.get()) is not None:
                print(line, flush=True)
            future.result()
            print(f"# === {text_of(*program.sum)}", flush=True)
    return programs
