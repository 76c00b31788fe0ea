#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Runs the kernel's own tests of VFIO in L1 and leaves their verdicts.

    verdicts.py [--driver] MODE...    of stock, deferred, gate

--driver adds those that make an igb interrupt and do DMA, also where nothing is
mapped.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

sys.path += ["/payload/l1", "/payload/tests/l1"]

import guest  # noqa: E402
import host  # noqa: E402

PROGRAMS = Path("/payload/selftests")
# A network card that the tests have a driver for, to make it do DMA.
IGB = host.IGB
# Seconds; each takes a few.
LIMIT = 240


def run(program, device):
    """{test: "ok", "not ok" or "SKIP"} of one program."""
    address = host.bind_to_vfio(device)
    try:
        output = subprocess.run([PROGRAMS / program, address], text=True, check=False,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LIMIT,
                                env={**os.environ, "VFIO_SELFTESTS_BDF": address}).stdout
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode() + f"\nnot ok 0 - within {LIMIT} s\n"
    (guest.RESULTS / f"{program}-{device.replace(':', '.')}.tap").write_text(output)
    found = {}
    for line in output.splitlines():
        result = re.match(r"(ok|not ok) \d+ (?:- )?(\S+)(?:.*# (SKIP))?", line)
        if result:
            found[f"{program} of {device}: {result[2]}"] = result[3] or result[1]
    return found


PLAIN = (("vfio_dma_mapping_test", host.EDU), ("vfio_dma_mapping_mmio_test", host.EDU),
         ("vfio_pci_device_test", host.EDU))
DRIVER = (("vfio_pci_device_test", IGB), ("vfio_pci_driver_test", IGB))


def verdicts(mode, programs):
    """Of all programs, in L1 as the mode wants it."""
    guest.prepare("stock" if mode == "stock" else "deferred")
    if mode == "gate":
        host.set_knob("policy", "gate")
        # Their IOVAs begin at the bottom.
        host.set_knob("threshold_mib", 0)
    found = {}
    for program, device in programs:
        found.update(run(program, device))
        print(f"# {mode}: {program} of {device}: {len(found)} verdicts", flush=True)
    return found


def main():
    words = sys.argv[1:]
    driver = "--driver" in words
    found = {mode: verdicts(mode, PLAIN + DRIVER if driver else PLAIN)
             for mode in words if mode != "--driver"}
    (guest.RESULTS / "verdicts.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
