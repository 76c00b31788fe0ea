#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What the emulated processors alone do to VMs: some without any device, our module not
loaded, whose processors wake and sleep all the time.

    scripts/vm.py run --memory 3G --time-limit 3000 tests/l1/soak.py [VMS [SECONDS]]

It says which are lost, and why. Beside other work on the machine more are.
"""

import contextlib
import sys
import time

import guest
from channel import Closed

CPUS = 2
# Seconds that each may take to its init among the others.
BOOT = 600
WORK = ("for i in 1 2 3; do (while :; do usleep 1000; done) & done; "
        "(while :; do echo; done | while read -r line; do :; done) &")


def is_alive(vm):
    """Whether it answers; if not, says what is known of it."""
    try:
        vm.check("true")
        return True
    except (Closed, OSError, TimeoutError) as error:
        print(f"# {vm.name}: {error}: {vm.lost() or 'not known why'}", flush=True)
        return False


def main():
    words = dict(enumerate(map(int, sys.argv[1:])))
    count, seconds = words.get(0, 4), words.get(1, 600)
    guest.prepare("floor")
    with contextlib.ExitStack() as stack:
        vms = [stack.enter_context(guest.Guest("floor", "256M", cpus=CPUS,
                                               patience=BOOT))
               for _ in range(count)]
        for vm in vms:
            vm.wait_line("L2: ready", BOOT)
            vm.check(WORK)
        until = time.monotonic() + seconds
        while vms and time.monotonic() < until:
            vms = [vm for vm in vms if is_alive(vm)]
            time.sleep(1)
    print(f"# of {count} VMs {count - len(vms)} were lost in {seconds} s", flush=True)


if __name__ == "__main__":
    main()
