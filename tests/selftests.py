#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's own tests of VFIO (tools/testing/selftests/vfio) have to give the
same verdicts with type1 alone, with our module, and with its policy "gate", which
defers what they map (I7). Prints TAP; the programs and modules must have been built.

    selftests.py           those that need no more than edu
    selftests.py --driver  those too that make an igb work
"""

import json
import subprocess
import sys
from pathlib import Path

import run

TOP = Path(__file__).resolve().parent.parent
NAME = "test-selftests"
MODES = ("stock", "deferred", "gate")

# Of the boot of L1, in seconds: with igb it takes 280 on two cores.
LIMIT = 1200


def boot(*words):
    """{mode: verdicts} of one boot of L1; empty if that went wrong."""
    devices = ["edu", "igb"] if "--driver" in words else ["edu"]
    done = subprocess.run(["scripts/vm.py", "run", "--name", NAME, "--memory", "5200M",
                           "--threads", run.THREADS,
                           "--time-limit", str(LIMIT), *(f"--device={device}" for device in devices),
                           "--add", "build/tests/selftests",
                           "tests/l1/selftests/verdicts.py", *words], cwd=TOP, check=False)
    path = TOP / "build/run" / NAME / "results/verdicts.json"
    if done.returncode or not path.exists():
        return {}
    return json.loads(path.read_text())


def main():
    number = 0
    failed = False

    def report(good, text):
        nonlocal number, failed
        number += 1
        failed |= not good
        print(f"{'ok' if good else 'not ok'} {number} - {text}", flush=True)

    print("TAP version 13", flush=True)
    driver = sys.argv[1:] == ["--driver"]
    found_in = boot(*sys.argv[1:], *MODES)
    stock = found_in.get("stock")
    passed = [name for name, verdict in (stock or {}).items()
              if verdict == "ok" and "type1" in name]
    with_dma = [name for name in passed if "driver_test" in name]
    report(len(passed) >= 8 and (not driver or len(with_dma) >= 5),
           f"selftests.worth: I7: on type1 alone {len(passed)} pass, {len(with_dma)} with DMA")
    for mode in MODES[1:]:
        found = found_in.get(mode)
        differ = sorted(name for name in {*(stock or {}), *(found or {})}
                        if not found or not stock or found.get(name) != stock.get(name))
        report(stock is not None and found is not None and not differ,
               f"selftests.{mode}: I7: the same {len(stock or {})} verdicts")
        for name in differ:
            print(f"# {name}: {(found or {}).get(name)}, but {(stock or {}).get(name)} on type1")
    print(f"1..{number}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
