#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Runs all tests, each part as TAP, and counts: the last line is the sum.

    tests/run.py                    everything, two parts at a time where the machine has
                                    the memory: what `make check` runs
    tests/run.py PART...            some parts: style, unit, fuzz, driver, host, the
                                    kernel's own tests of VFIO, selftests, or guests
                                    with systemd, distro
    tests/run.py host -- PATTERN... of the host's, groups that match a pattern
    tests/run.py host -- N/2        the first half of them, or the second
    tests/run.py distro -- ROUNDS [PATTERN...]
    tests/run.py stress -- [PHASE...] [NAME=VALUE...]
                                    hostile guests, sudden ends and many boots, for two
                                    hours: what `make stress` runs, see tests/l1/stress.py

The modules must have been built. Exit status 0 means that nothing failed. In the
environment, THREADS=multi has L1's processors run at the same time.
"""

import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import lanes

TOP = Path(__file__).resolve().parent.parent
OUT = TOP / "build/tests"
IN_ROOT = "scripts/in-root.sh"
RESULT = re.compile(r"(not )?ok (\d+)(?: - (.*?))?\s*(# (?:SKIP|TODO).*)?$")

# What runs in L1 or L2 and is no module, and what it is made of.
PROGRAMS = {
    "vdpa_ioctl": [f"tests/host/vdpa_{name}.c" for name in ("ioctl", "hostile", "rig", "stalls")],
    "open_again": ["tests/host/open_again.c"],
    "map_costs": ["tests/host/map_costs.c"],
    "kexec_into": ["tests/guest/kexec_into.c"],
    "touch_memory": ["tests/guest/touch_memory.c"],
}

# Of L1: the largest VM that is tested has 4 GiB. Seconds that the tests may take, and
# in which none may have a result: more than twice tap.TIME_LIMIT.
MEMORY = "5200M"
TIME_LIMIT = 2400
# How scripts/watch.py begins to say that an emulated processor has failed L1, and how
# often it may in one run of this program.
RESET = "L1 was reset after a triple fault"
MOST_RESETS = 2
# The plan of a program all of whose groups were done before.
EMPTY = "1..0"
SILENCE = 900
# Of QEMU's emulator, for the processors of L1, see README.md.
THREADS = os.environ.get("THREADS", "single")
# GiB that a part needs: L1's memory, and what QEMU and compilers take.
PART_GIB = 7
# Two nodes, whose memory stays where it was put.
NUMA = ("--append", "numa=fake=2U", "--append", "numa_balancing=disable")

# Phases of the stress tests, the longest first, and what one of them may take. "distro" is
# the part of that name, so often, unless BOOTS= says otherwise.
STRESS = ["distro", "attack", "kill", "load", "delete", "pair", "eight"]
BOOTS = 20
STRESS_LIMIT = 4 * 3600


class Count:
    """What came out.

    results   [(part, good, name, skipped)]
    programs  that have counted for themselves, see lanes.py
    resets    boots of L1 that ended in the middle, see run_l1()
    """

    def __init__(self):
        self.results = []
        self.programs = []
        self.resets = 0

    def add(self, part, good, name, skipped=False):
        self.results.append((part, good, name, skipped))

    @property
    def failed(self):
        return ([f"{part}: {name}" for part, good, name, _ in self.results if not good]
                + [name for program in self.programs for name in program.failed])

    def done(self):
        """The groups of tests that have all their results; "quiet" is the last of each."""
        found = (re.match(r"(\w+)\.quiet:", name) for _, _, name, _ in self.results)
        return {match[1] for match in found if match}

    def keep(self, groups):
        """Forgets all results but those of some groups."""
        self.results = [result for result in self.results
                        if re.split("[.:]", result[2])[0] in groups]

    def summary(self):
        skipped = sum(good and skip for _, good, _, skip in self.results)
        failed = sum(not good for _, good, _, _ in self.results)
        sums = [(len(self.results) - failed - skipped, failed, skipped),
                *(program.sum for program in self.programs)]
        return lanes.text_of(*map(sum, zip(*sums)))

    def finish(self):
        """Says what has failed, and the sum last; ends the program."""
        for name in self.failed:
            print(f"# failed: {name}")
        print(self.summary())
        sys.exit(1 if self.failed else 0)


class Stream:
    """TAP of one or more programs, one after the other."""

    def __init__(self, part, count):
        self.part = part
        self.count = count
        self.seen = 0
        self.planned = None
        self.open = False

    def feed(self, line):
        result = RESULT.match(line)
        plan = re.match(r"1\.\.(\d+)", line)
        if result:
            self.open = True
            self.seen += 1
            bad, _, name, skip = result.groups()
            self.count.add(self.part, not bad, name or line, bool(skip))
        elif plan:
            # Before the tests or after them.
            self.planned = int(plan[1])
            if not self.planned:
                self.count.add(self.part, True, line, skipped=True)
            if self.seen:
                self.close()
        elif line.startswith("Bail out!"):
            self.count.add(self.part, False, line)
        elif line.startswith("TAP version"):
            self.close()

    def close(self):
        """A program has ended, or should have: were all its tests there?"""
        if self.open and self.planned != self.seen:
            self.count.add(self.part, False, f"{self.seen} results, {self.planned} were planned")
        self.open = False
        self.seen = 0
        self.planned = None


def run_tap(part, count, command):
    """Runs a program that prints TAP."""
    failed = len(count.failed)
    stream = Stream(part, count)
    with subprocess.Popen(command, cwd=TOP, stdout=subprocess.PIPE, text=True,
                          errors="replace") as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            stream.feed(line.rstrip("\n"))
    stream.close()
    if process.returncode and len(count.failed) == failed:
        count.add(part, False, f"exit status {process.returncode}")


def run_command(part, count, name, command):
    """Runs a program whose exit status is the result."""
    done = subprocess.run(command, cwd=TOP, check=False, text=True, errors="replace",
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    good = done.returncode == 0
    print("".join(f"# {line}\n" for line in done.stdout.splitlines() if not good), end="")
    print(f"{'ok' if good else 'not ok'} - {name}", flush=True)
    count.add(part, good, name)
    return good


def style(count, _patterns):
    for target, name in (("fmt-check", "Rust is formatted"), ("clippy", "the kernel's Rust lints"),
                         ("lint", "shellcheck and pyflakes"),
                         ("checkpatch", "the kernel's style of C")):
        run_command("style", count, name, ["make", "--no-print-directory", target])


def unit(count, _patterns):
    run_tap("unit", count, [IN_ROOT, "tests/unit/run.sh"])
    run_command("unit", count, "what runs the tests counts what fails",
                [IN_ROOT, "tests/unit/test_programs.py"])
    run_command("unit", count, "another struct vfio_iommu_driver_ops is refused",
                [IN_ROOT, "tests/unit/test_layout.py"])
    run_command("unit", count, "a kernel that cannot be built for is named, with the reason",
                [IN_ROOT, "tests/unit/test_build.py"])


def fuzz(count, _patterns):
    run_tap("fuzz", count, [IN_ROOT, "tests/fuzz/fuzz.py", "check"])


def build(part, count):
    """Builds what is run in L1 and L2."""
    if os.environ.get("BUILT"):
        return True
    OUT.mkdir(parents=True, exist_ok=True)
    compiler = "x86_64-linux-gnu-gcc-14"
    return (all(run_command(part, count, f"modules of {where} build",
                            ["scripts/build.sh", where, "modules"])
                for where in ("tests/guest", "tests/hostile", "tests/host"))
            and all(run_command(part, count, f"{name} builds",
                                [IN_ROOT, compiler, "-O2", "-Wall", "-Werror", "-static",
                                 "-I", "include/uapi", "-o", f"build/tests/{name}", *sources])
                    for name, sources in PROGRAMS.items()))


def has_complained(run):
    """Whether L1's kernel has, of more than of what a device did, which tests provoke."""
    lines = (run / "complaints").read_text().splitlines()
    return any(not line.endswith(" DMAR fault") for line in lines)


def run_l1(part, count, *words, limit=TIME_LIMIT, memory=MEMORY, silence=SILENCE, rounds=1):
    """Runs a program of tests/ in L1, after options of vm.py. If L1 resets itself without
    a word of its kernel, the groups of tests that have not all their results are run again,
    or all if there are more rounds of them: see README.md, "What an emulated processor
    does"."""
    run = TOP / "build/run" / f"test-{part}"
    done = set()
    while True:
        results = Count()
        run_tap(part, results, ["scripts/vm.py", "run", "--name", run.name,
                                "--threads", THREADS,
                                "--memory", memory, "--time-limit", str(limit),
                                "--silence", str(silence), f"--append=DONE={','.join(done)}",
                                *words])
        ended = run / "ended"
        why = ended.read_text().strip() if ended.exists() else None
        if (not why or not why.startswith(RESET) or has_complained(run)
                or count.resets == MOST_RESETS):
            break
        count.resets += 1
        results.keep(results.done() if rounds == 1 else ())
        done |= results.done()
        count.results += results.results
        print(f"# {part}: {why}: it is run again without {len(done)} groups that were done",
              flush=True)
    if why:
        results.add(part, False, why)
    count.results += [result for result in results.results if result[2] != EMPTY]


def boot_l1(part, count, *words, devices=("edu", "edu", "nvme", "e1000e"), **limits):
    """The same, with all that the host's and the driver's tests need."""
    run_l1(part, count, *(word for device in devices for word in ("--device", device)),
           *(word for name in PROGRAMS for word in ("--add", f"build/tests/{name}")),
           *words, **limits)


def in_l1(part, count, *words):
    """The same, after what it needs was built."""
    if build(part, count):
        boot_l1(part, count, *NUMA, *words)


def selftests(count, patterns):
    """The kernel's own; with the pattern "driver", those too that need igb's."""
    if (build("selftests", count)
            and run_command("selftests", count, "the kernel's selftests build",
                            [IN_ROOT, "tests/l1/selftests/build.sh"])):
        run_tap("selftests", count, ["tests/selftests.py",
                                     *(f"--{word}" for word in patterns)])


def driver(count, patterns):
    in_l1("driver", count, "tests/guest/balloon.py", *patterns)


def host(count, patterns):
    half = re.fullmatch("([12])/2", " ".join(patterns))
    in_l1(f"host-{half[1]}" if half else "host", count, "tests/l1/suite.py", *patterns)


def stress(count, words):
    """Each phase has a boot of L1 for itself: there may be little left of it."""
    chosen = [word for word in words if "=" not in word] or STRESS
    values = [word for word in words if "=" in word]
    if not any(word.startswith("SEED=") for word in values):
        values.append(f"SEED={random.SystemRandom().randrange(1, 1 << 31)}")
    print(f"# stress: {' '.join(chosen + values)}", flush=True)
    boots = [word.partition("=")[2] for word in values if word.startswith("BOOTS=")]
    if not all(re.fullmatch(r"[1-9]\d*", number) for number in boots):
        sys.exit("run.py: BOOTS= is a number, 1 or more")
    if not build("stress", count):
        return
    if len(chosen) > 1:
        side_by_side(count, [["stress", "--", phase, *values] for phase in chosen])
    elif chosen == ["distro"]:
        distro(count, boots[-1:] or [str(BOOTS)])
    else:
        values = [word for word in values if not word.startswith("BOOTS=")]
        boot_l1(f"stress-{chosen[0]}", count, "tests/l1/stress.py", *chosen, *values,
                devices=["edu"] * 8, limit=STRESS_LIMIT)


def distro(count, words):
    """Debian guests that boot from the assigned disk. Words: how often, and which."""
    kver = os.environ.get("KVER") or (TOP / "build/kver").read_text().strip()
    image = f"build/guest-{kver}"
    images = [word for name in ("initramfs-tools", "dracut", "race", "lost-initramfs-tools",
                               "lost-dracut")
              for word in ("--add", f"{image}-{name}.initrd")]
    rounds = int(words[0]) if words else 1
    if run_command("distro", count, "the guests' images build", ["scripts/guest-image.sh"]):
        run_l1("distro", count, "--device", "nvme", "--nvme-image", f"{image}.ext4",
               *images, "tests/l1/test_distro.py", *words, limit=rounds * TIME_LIMIT,
               rounds=rounds)


PARTS = {"style": style, "unit": unit, "fuzz": fuzz, "driver": driver, "host": host,
         "selftests": selftests, "distro": distro, "stress": stress}

# All of them, but for "stress", as they are run side by side: what takes long is not last.
EVERYTHING = [["style", "unit", "fuzz"], ["host", "--", "1/2"], ["host", "--", "2/2"],
              ["distro"], ["driver"], ["selftests"]]


def side_by_side(count, commands, gib=PART_GIB):
    """Runs this program with different words, more than one at a time if there is memory:
    each takes so many GiB."""
    if build("tests", count):
        os.environ["BUILT"] = "1"
        number = lanes.available(gib)
        print(f"# {number} at a time", flush=True)
        count.programs = lanes.run([[sys.argv[0], *words] for words in commands], number)


def main():
    words, _, patterns = " ".join(sys.argv[1:]).partition("--")
    unknown = set(words.split()) - set(PARTS)
    if unknown:
        sys.exit(f"run.py: no such part: {' '.join(unknown)}; there are {' '.join(PARTS)}")
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    count = Count()
    if not words:
        side_by_side(count, EVERYTHING)
    for part in words.split():
        started = time.monotonic()
        print(f"# --- {part}", flush=True)
        PARTS[part](count, patterns.split())
        print(f"# --- {part}: {time.monotonic() - started:.0f} s", flush=True)
    count.finish()


if __name__ == "__main__":
    main()
