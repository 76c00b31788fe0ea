# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's own tests of VFIO pass with our module loaded exactly where they
pass without (I7)."""

import os
import re
import subprocess
from pathlib import Path

import guest
import host
from tap import Skip, at_least, equal, group

PROGRAMS = Path("/payload/selftests")
# A network card that the tests have a driver for, to make it do DMA.
IGB = "8086:10c9"


def verdicts():
    """{test: "ok", "not ok" or "SKIP"} of all programs."""
    found = {}
    for program, device in (("vfio_dma_mapping_test", host.EDU),
                            ("vfio_dma_mapping_mmio_test", host.EDU),
                            ("vfio_pci_device_test", host.EDU),
                            ("vfio_pci_device_test", IGB),
                            ("vfio_pci_driver_test", IGB)):
        address = host.bind_to_vfio(device)
        done = subprocess.run([PROGRAMS / program, address], text=True, check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              env={**os.environ, "VFIO_SELFTESTS_BDF": address})
        (guest.RESULTS / f"{program}-{len(found)}.tap").write_text(done.stdout)
        for line in done.stdout.splitlines():
            result = re.match(r"(ok|not ok) \d+ (?:- )?(\S+)(?:.*# (SKIP))?", line)
            if result:
                name = f"{program} of {device}: {result[2]}"
                found[name] = result[3] or result[1]
    return found


@group("the kernel's own tests of VFIO")
def selftests():
    if not PROGRAMS.exists():
        raise Skip("only run by tests/run.py selftests")
    guest.prepare("stock")
    stock = verdicts()
    guest.prepare("deferred")
    yield stock


@selftests.test("I7", "they test something: some pass on type1 alone")
def pass_somewhere(stock):
    passed = [name for name, verdict in stock.items() if verdict == "ok" and "type1" in name]
    at_least("tests of type1 that pass", len(passed), 20)
    at_least("of them, with DMA", len([name for name in passed if "driver_test" in name]), 5)


@selftests.test("I7", "with our module loaded the same pass")
def same(stock):
    equal("verdicts", verdicts(), stock)
