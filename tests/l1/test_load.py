# SPDX-License-Identifier: GPL-2.0-only
"""Whether the module may be loaded: what it says of a type1 that is not what it knows, and
of parameters."""

import subprocess

import guest
import host
from tap import at_least, equal, group
from test_scope import KNOBS

TYPE1 = "vfio_iommu_type1"
FAKE = f"/payload/tests/host/{TYPE1}.ko"

# What is wrong with type1, by the name that the fake has for it, and what is logged.
FAULTS = {
    "name": "the operations of vfio_iommu_type1 have another name",
    "owner": "vfio_iommu_type1_open",
    "swapped": "is where vfio_iommu_type1_register_device of vfio_iommu_type1 should be",
    "missing": "is where vfio_iommu_type1_dma_rw of vfio_iommu_type1 should be",
    "other": "kfree+0x0/",
    "shifted": "is where vfio_iommu_type1_detach_group of vfio_iommu_type1 should be",
}


def refusal(*words):
    """The error that insmod of our module tells, or None, and what was logged meanwhile."""
    log = host.KernelLog()
    done = subprocess.run(["insmod", host.MODULE_FILE, *words], text=True, check=False,
                          stderr=subprocess.PIPE)
    lines = [line for line in log.update() if f"{host.MODULE}: " in line]
    if not done.returncode:
        return None, lines
    # The kernel's word for it is all that insmod says: "Operation not supported".
    return done.stderr.strip().rpartition(": ")[2], lines


@group("a type1 that is not what it should be")
def foreign():
    guest.prepare("deferred")
    host.unload_deferred()
    host.run("rmmod", TYPE1)
    yield None
    if host.is_loaded(TYPE1):
        host.run("rmmod", TYPE1)
    host.run("modprobe", TYPE1)
    host.load_deferred()


def load_fake(fault):
    if host.is_loaded(TYPE1):
        host.run("rmmod", TYPE1)
    host.run("insmod", FAKE, f"fault={fault}")


@foreign.test("I7", "negative control: one that looks as it should is taken for type1")
def control(_):
    load_fake("nothing")
    equal("refusal", refusal()[0], None)
    host.run("rmmod", host.MODULE)


@foreign.test("I7", "one whose operations are others is refused, in a sentence that says which")
def refused(_):
    for fault, words in FAULTS.items():
        load_fake(fault)
        error, lines = refusal()
        equal(f"error for {fault!r}", error, "Operation not supported")
        equal(f"lines logged for {fault!r}", len(lines), 1)
        equal(f"{words!r} is in {lines!r}", words in lines[0], True)
        equal("references to type1", host.run("lsmod").split(f"{TYPE1} ")[1].split()[1], "0")


@group("knobs as parameters of the module")
def parameters():
    guest.prepare("deferred")
    host.unload_deferred()
    yield None
    host.unload_deferred()
    host.load_deferred()


@parameters.test("I6", "each knob is one, and there are no others")
def each_knob(_):
    described = host.run("modinfo", "-F", "parm", host.MODULE_FILE).splitlines()
    equal("parameters", sorted(line.split(":")[0] for line in described), sorted(KNOBS))


@parameters.test("I6", "each takes the least and the most of its range")
def good_parameters(_):
    for which in (0, 1):
        chosen = {name: str(good[which]) for name, (good, _) in KNOBS.items()}
        equal("refusal", refusal(*(f"{name}={value}" for name, value in chosen.items()))[0],
              None)
        equal("knobs", {name: host.knob(name) for name in chosen}, chosen)
        host.run("rmmod", host.MODULE)


@parameters.test("I6", "each refuses what is out of its range or no number: nothing is loaded")
def bad_parameters(_):
    tried = 0
    for name, (_, bad) in KNOBS.items():
        # The kernel cuts parameters at white space that is not quoted.
        for word in (name, *(f'{name}="{value}"' for value in bad)):
            equal(f"error for {word}", refusal(word)[0], "Invalid parameters")
            equal(f"loaded with {word}", host.is_loaded(host.MODULE), False)
            tried += 1
    at_least("values tried", tried, 70)
