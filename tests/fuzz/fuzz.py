#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Coverage-guided fuzzing of include/logic with libFuzzer, in the toolchain root.

    fuzz.py check           replays the corpus, fuzzes each target for 10 s and
                            looks for known faults in broken copies, as TAP
    fuzz.py run SECONDS     fuzzes each target that long
    fuzz.py merge           makes the corpus of the repository from what there is

corpus/TARGET.hex holds one input a line; found ones are in build/fuzz/TARGET.
FUZZ_SEED= and FUZZ_TARGETS= choose the random numbers and the targets.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent.parent
HERE = TOP / "tests/fuzz"
OUT = TOP / "build/fuzz"
TARGETS = os.environ.get("FUZZ_TARGETS", "vring protocol table").split()
SECONDS = 10
# For a fault that was built in, which mostly takes a second: a bound for slow machines.
PATIENCE = 600
MAX_LEN = {"vring": 512, "protocol": 256, "table": 512}

# Broken copies: target, file, what it says, what it is made to say.
FAULTS = [
    ("vring", "vring.rs", "if index >= self.size {", "if index > self.size {"),
    ("vring", "chain.rs", "reply.len() as u64 <= room)",
     "reply.len() as u64 <= room.saturating_add(1))"),
    ("protocol", "protocol.rs", "if reserved != 0 {", "if reserved > 1 {"),
    ("protocol", "protocol.rs", ".filter(|range| range.is_aligned(GRANULE))",
     ".filter(|range| range.is_aligned(Align::of_shift(20)))"),
    ("table", "table.rs", "sums.mapping_outside | sums.mapping_balloon != 0",
     "sums.mapping_outside != 0"),
    ("table", "state.rs", "Self::Failed(place) => Self::Unmapped(place),",
     "Self::Failed(_) => Self::Unmapped(Place::Outside),"),
    ("table", "extents.rs", "max.down(run.start()).max(self.range.start())",
     "self.range.start()"),
]


def build(target, top=TOP, out=OUT):
    """Compiles a target; its path."""
    out.mkdir(parents=True, exist_ok=True)
    libdir = subprocess.run(["llvm-config", "--libdir"], check=True, text=True,
                            stdout=subprocess.PIPE).stdout.strip()
    coverage = ["level=4", "inline-8bit-counters", "pc-table", "trace-compares"]
    command = ["rustc", "--edition", "2021", "--check-cfg", "cfg(MODULE, test)", "-D", "warnings",
               "-C", "opt-level=2", "-C", "debug-assertions=on", "-C", "overflow-checks=on",
               "-C", "panic=abort", "-C", "codegen-units=1", "-C", "passes=sancov-module"]
    for option in coverage:
        command += ["-C", f"llvm-args=-sanitizer-coverage-{option}"]
    command += ["-C", "linker=clang", "-C", f"link-arg={libdir}/libFuzzer.a",
                "-C", "link-args=-lstdc++ -lm -lgcc_s -lc", "-o", out / f"fuzz-{target}",
                top / f"tests/fuzz/{target}.rs"]
    subprocess.run(command, check=True, cwd=top)
    return out / f"fuzz-{target}"


def unpack(target):
    """The committed corpus, as files; the found one beside it."""
    seeds = OUT / target / "seeds"
    shutil.rmtree(seeds, ignore_errors=True)
    for folder in (seeds, OUT / target / "corpus"):
        folder.mkdir(parents=True, exist_ok=True)
    listed = HERE / f"corpus/{target}.hex"
    lines = listed.read_text().split() if listed.exists() else []
    for number, line in enumerate(lines):
        (seeds / f"{number:04}").write_bytes(bytes.fromhex(line))
    return seeds, len(lines)


def fresh(target):
    """An empty folder for what is found: earlier findings make no difference to a check."""
    folder = OUT / target / "check"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def fuzz(program, target, folders, *options):
    """Runs libFuzzer; whether it found nothing, its log, and what it found."""
    prefix = OUT / target / f"{program.parent.name}-crash-"
    for old in prefix.parent.glob(f"{prefix.name}*"):
        old.unlink()
    done = subprocess.run([program, f"-artifact_prefix={prefix}", "-timeout=60",
                           f"-max_len={MAX_LEN[target]}", "-print_final_stats=1",
                           *options, *folders], check=False, text=True, errors="replace",
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    found = [path.read_bytes().hex() for path in prefix.parent.glob(f"{prefix.name}*")]
    return done.returncode == 0, done.stdout, found


def summary(log):
    """What was covered and executed."""
    covered = re.findall(r"cov: (\d+) ft: (\d+)", log) or [("0", "0")]
    runs = re.search(r"number_of_executed_units: (\d+)", log)
    edges, features = covered[-1]
    return f"{edges} edges, {features} features, {runs[1] if runs else '?'} executions"


def explain(log, found):
    for line in log.splitlines()[-40:]:
        print(f"#   {line}")
    for hexed in found:
        print(f"# add to the corpus: {hexed}")


def seed():
    return int(os.environ.get("FUZZ_SEED", time.time_ns() % 2**31)) or 1


class Tap:
    """One line for each test."""

    def __init__(self, planned):
        self.number = 0
        self.failed = False
        print(f"1..{planned}", flush=True)

    def result(self, good, name):
        self.number += 1
        self.failed |= not good
        print(f"{'ok' if good else 'not ok'} {self.number} - {name}", flush=True)


def check_target(tap, target):
    seeds, count = unpack(target)
    program = build(target)
    good, log, found = fuzz(program, target, [seeds], "-runs=0")
    print(f"# {target}: {summary(log)}")
    if not good:
        explain(log, found)
    tap.result(good and count > 0, f"{target}: the {count} inputs of the corpus")
    number = seed()
    good, log, found = fuzz(program, target, [fresh(target), seeds],
                            f"-max_total_time={SECONDS}", f"-seed={number}")
    print(f"# {target}: FUZZ_SEED={number}: {summary(log)}")
    if not good:
        explain(log, found)
    tap.result(good, f"{target}: inputs that the fuzzer makes up")


def check_fault(tap, number, fault):
    target, name, old, new = fault
    copy = OUT / f"fault-{number}"
    shutil.rmtree(copy, ignore_errors=True)
    for part in ("include/logic", "tests/fuzz", "tests/unit"):
        shutil.copytree(TOP / part, copy / part)
    path = copy / "include/logic" / name
    text = path.read_text()
    claim = f"{target}: the fuzzer finds the fault '{new}' in {name}"
    if text.count(old) < 1:
        print(f"# {name} no longer has '{old}'")
        tap.result(False, claim)
        return
    path.write_text(text.replace(old, new))
    seeds, _ = unpack(target)
    good, log, found = fuzz(build(target, copy, copy), target, [fresh(target), seeds],
                            f"-max_total_time={PATIENCE}", f"-seed={seed()}")
    print(f"# {target}: {summary(log)}")
    tap.result(not good and bool(found) and "panicked at" in log, claim)


def check():
    faults = [fault for fault in FAULTS if fault[0] in TARGETS]
    tap = Tap(2 * len(TARGETS) + len(faults))
    for target in TARGETS:
        check_target(tap, target)
    for number, fault in enumerate(faults):
        check_fault(tap, number, fault)
    return 1 if tap.failed else 0


def run(seconds):
    status = 0
    for target in TARGETS:
        seeds, _ = unpack(target)
        number = seed()
        good, log, found = fuzz(build(target), target, [OUT / target / "corpus", seeds],
                                f"-max_total_time={seconds}", f"-seed={number}")
        print(f"{target}: FUZZ_SEED={number}: {summary(log)}", flush=True)
        if not good:
            explain(log, found)
            status = 1
    return status


def merge():
    """The fewest inputs that cover the same edges, the short ones first."""
    for target in TARGETS:
        seeds, _ = unpack(target)
        small = OUT / target / "small"
        shutil.rmtree(small, ignore_errors=True)
        small.mkdir()
        good, log, found = fuzz(build(target), target,
                                [small, seeds, OUT / target / "corpus"], "-set_cover_merge=1",
                                "-use_counters=0")
        if not good:
            explain(log, found)
            return 1
        lines = sorted((path.read_bytes().hex() for path in small.iterdir()),
                       key=lambda line: (len(line), line))
        (HERE / "corpus").mkdir(exist_ok=True)
        (HERE / f"corpus/{target}.hex").write_text("".join(f"{line}\n" for line in lines))
        print(f"{target}: {len(lines)} inputs")
    return 0


def main():
    words = sys.argv[1:]
    if words == ["check"]:
        return check()
    if words[:1] == ["run"] and len(words) == 2:
        return run(int(words[1]))
    if words == ["merge"]:
        return merge()
    sys.exit(__doc__)


if __name__ == "__main__":
    sys.exit(main())
