# SPDX-License-Identifier: GPL-2.0-only
"""The excuse that tests have, and no other: an L2 that the emulated processor has
failed, see guest.Guest.lost()."""

import contextlib

import bed
import guest
import tap
from channel import Closed
from tap import equal, eventually, group, matches

# In L2; and a processor whose interrupts end as an L1's do, which that module knows.
LOSE = {"lose.ko": "/payload/tests/host/lose_interrupt.ko"}
PLAIN = ("-cpu", "host,x2apic=off,kvm-pv-eoi=off")

END = "echo 1 >/proc/sys/kernel/sysrq; echo {} >/proc/sysrq-trigger"


@group("VMs that are lost, and VMs that end in another way")
def lost():
    guest.prepare("deferred")
    yield None


@contextlib.contextmanager
def victim(**options):
    """A VM whose end excuses nothing."""
    with guest.Guest("floor", "512M", **options) as vm:
        guest.STARTED.remove(vm)
        yield vm


@lost.test("-", "one that resets itself without a word is lost")
def reset(_):
    with victim() as vm:
        vm.wait_line("L2: ready", bed.BOOT)
        equal("lost", vm.lost(), None)
        vm.send(END.format("b"))
        equal("how QEMU ended", vm.wait_exit(), 0)
        matches("lost", str(vm.lost()), "reset itself, at [0-9a-f]{8}")


@lost.test("-", "one whose kernel panics is not, nor is one that is killed")
def panic(_):
    with victim() as vm:
        vm.wait_line("L2: ready", bed.BOOT)
        bed.provoked_panic(vm)
        vm.send(END.format("c"))
        equal("how QEMU ended", vm.wait_exit(), 0)
        equal("lost", vm.lost(), None)
    with victim(paused=True) as vm:
        vm.wait_qmp()
        vm.kill()
        equal("lost", vm.lost(), None)


@lost.test("-", "nobody waits for one that is stopped")
def stopped(_):
    with victim(paused=True) as vm:
        vm.wait_qmp()
        vm.qmp.command("cont")
        # The event comes before the answer.
        with contextlib.suppress(Closed):
            vm.qmp.command("stop")
        equal("how QEMU ended", vm.wait_exit(), -9)


@lost.test("-", "one whose processor has lost an interrupt is lost, one that is busy is not")
def interrupt(_):
    with victim(cpus=2, files=LOSE, args=PLAIN) as vm:
        vm.wait_line("L2: ready", bed.BOOT)
        vm.check("insmod /lose.ko")
        for _ in range(2):
            vm.check("(while :; do :; done) &")
        equal("lost", vm.lost(), None)
        vm.check("echo 1 >/sys/module/lose_interrupt/parameters/cpu")
        matches("lost", eventually("it is lost", vm.lost), "processor 1 lost interrupt [0-9]+ while")


class Record(tap.Reporter):
    """Keeps the results instead of printing them."""

    def __init__(self):  # pylint: disable=super-init-not-called
        self.results = []

    def note(self, text):
        pass

    def report(self, description, error=None):
        self.results.append((description, type(error).__name__))


@lost.test("-", "what fails with an excuse is run again, what fails without one has failed")
def again(_):
    for excuses, wanted in ((["lost"], "NoneType"), ([], "AssertionError")):
        def fixture():
            yield None

        runs = []
        entry = tap.Group("", fixture)
        entry.test("-", "holds")(lambda _: runs.append("holds"))
        entry.test("-", "fails once")(lambda _, runs=runs: (
            runs.append("fails"), equal("runs", runs.count("fails"), 2)))
        record = Record()
        tap.run_group(record, entry, lambda excuses=excuses: excuses.pop() if excuses else None)
        equal("results", [error for _, error in record.results], ["NoneType", wanted])
