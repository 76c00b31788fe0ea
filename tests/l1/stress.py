#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The long version of what the tests do a little of, in L1: hostile guests and sudden
ends. Every phase prints how far it is, and one result in TAP.

    stress.py PHASE... [NAME=VALUE...]

SEED=N is where all random numbers come from; without it, they are others each time.
What the other names mean, and their values without any, is said below.
"""

import contextlib
import random
import sys
import time

import bed
import guest
import host
import hostile
import rounds
import tap
from edu import Edu

DEFAULTS = {
    "SEED": 0,
    # Of the phase "attack": all cases, and those of one VM. Two VMs at a time.
    "CASES": 100_000, "CASES_VM": 5_000,
    # Rounds of the phases "kill", "load", "delete", "pair" and "eight".
    "KILLS": 200, "LOADS": 50, "DELETIONS": 10, "PAIRS": 10, "EIGHTS": 5,
}

# Seconds that a VM may take among others on an emulated machine, and an attack for
# each case.
BOOT = 600
CASE = 2

# Pairs of attackers that may fail until the rest is given up.
ATTEMPTS = 5


class Phase:
    """Says how far a phase is, and what has failed in it."""

    def __init__(self, name, total, unit, seed):
        self.name = name
        self.total = total
        self.unit = unit
        self.started = time.monotonic()
        self.failed = []
        self.lost = 0
        print(f"# {name}: {total} {unit}, seed {seed}", flush=True)

    def at(self, done, what=""):
        """So much is over."""
        print(f"# {self.name}: {done} of {self.total} {self.unit}, "
              f"{time.monotonic() - self.started:.0f} s; {what}", flush=True)

    @contextlib.contextmanager
    def round(self, number, what=""):
        """One round: an error in it is a failure, unless a VM was lost, and the next one
        begins."""
        seen = len(guest.STARTED)
        try:
            yield
            bed.expect_clean()
            bed.expect_quiet()
        except Exception as error:  # pylint: disable=broad-except
            if (why := guest.first_lost(seen)) and self.lost < bed.MOST_LOST:
                self.lost += 1
                print(f"# {self.name}: {self.unit} {number}: {why}", flush=True)
                return
            self.failed.append(f"{self.unit} {number}: {what}: {type(error).__name__}: {error}")
            print(f"# {self.name}: failed: {self.failed[-1]}", flush=True)

    def finish(self, reporter):
        """Reports the phase as one test."""
        minutes = (time.monotonic() - self.started) / 60
        text = f"{self.name}: {self.total} {self.unit} in {minutes:.1f} min"
        error = AssertionError(f"{len(self.failed)} failed") if self.failed else None
        reporter.report(text, error)


def attack_knobs(rng):
    """Knobs of the host for one pair of attackers."""
    return {**hostile.KNOBS, "hold": rng.choice((1, 1, 0)), "premap": rng.choice((0, 1)),
            "chunk_mib": rng.choice((2, 64, 1024)), "workers": rng.choice((1, 2, 4)),
            "populate": rng.choice((0, 1, 1))}


def attack_one(rng, attack, cases):
    """Begins an attack; how depends on chance. Returns that in words."""
    seed = rng.randrange(1 << 31)
    kind = rng.choice(("plain", "plain", "device", "limit"))
    if kind == "device":
        attack.vm.check("insmod /edu.ko", 120)
    elif kind == "limit":
        bed.limit_locked(attack.vm.pid, hostile.SIZE * 3 // 4)
    attack.begin(seed, cases, others=int(kind != "limit"))
    return f"seed {seed} {kind}"


def attack_pair(rng, cases):
    """Two VMs attack at the same time, and then have our own driver take over. Returns
    how many cases there were."""
    with bed.knobs_set(**attack_knobs(rng)), contextlib.ExitStack() as stack:
        attacks = []
        for number, address in enumerate(host.find_devices(host.EDU)[:2]):
            balloon = stack.enter_context(bed.balloon(f"attacked{number}"))
            attacks.append(stack.enter_context(hostile.start(
                address=address, balloon=balloon, prefix=bed.may_lock(5 * bed.GIB))))
        words = [attack_one(rng, attack, cases) for attack in attacks]
        try:
            reports = hostile.wait(attacks, 120 + cases * CASE)
        except hostile.Lost as error:
            print(f"# attack: {words} {error}", flush=True)
            return sum(attack.last for attack in attacks)
        print(f"# attack: {words} {reports}", flush=True)
        for attack, report in zip(attacks, reports):
            attack.expect_survived(report)
            attack.expect_quiet_log(len(attacks))
            bed.limit_locked(attack.vm.pid, 5 * bed.GIB)
            hostile.take_over(attack.vm)
            attack.vm.sh("insmod /edu.ko", 120)
            Edu(attack.vm).expect_dma(hostile.PAGE)
            attack.vm.quit()
    return 2 * cases


def attack(phase, rng, values):
    done = 0
    while done < values["CASES"] and len(phase.failed) < ATTEMPTS:
        cases = min(values["CASES_VM"], -(-(values["CASES"] - done) // 2))
        with phase.round(done):
            done += attack_pair(rng, cases)
        phase.at(done)


def kill(phase, rng, values):
    """Every fourth in a known phase of the VM's life, the others at any moment."""
    started = guest.time_init("deferred", rounds.MEMORY)["qmp"]
    kinds = [*rounds.PHASES, "gate"]
    for number in range(values["KILLS"]):
        kind = kinds[number // 4 % len(kinds)] if number % 4 == 0 else "any"
        what = kind
        with phase.round(number, kind):
            if kind == "any":
                what = rounds.kill_at(rng, rng.choice((2, 2, 2, 8)) * started)
            elif kind == "gate":
                rounds.kill_at_gate()
            else:
                what = rounds.kill_in(kind)
        phase.at(number + 1, what)


def load(phase, _rng, values):
    for number in range(values["LOADS"]):
        with phase.round(number):
            rounds.load()
        if (number + 1) % 10 == 0:
            phase.at(number + 1)
    with phase.round("the last"):
        rounds.expect_type1()


def delete(phase, _rng, values):
    for number in range(values["DELETIONS"]):
        with phase.round(number):
            rounds.delete_under_vm(paused=number % 2 == 0)
        phase.at(number + 1)


def pair(phase, rng, values):
    """Of two VMs one is killed at any moment, and the other goes on."""
    for number in range(values["PAIRS"]):
        moment = rng.uniform(0, 30)
        with phase.round(number, f"{moment:.1f} s"), \
             bed.knobs_set(threshold_mib=0, chunk_mib=rng.choice((2, 1024))), \
             rounds.several(2, rounds.MEMORY, modules=[bed.DRIVER, bed.EDU_DRIVER],
                            cmdline=hostile.RESERVED) as (victim, other):
            time.sleep(moment)
            victim.kill()
            other.wait_line("L2: ready", BOOT)
            Edu(other).expect_dma(hostile.PAGE)
            other.quit()
        phase.at(number + 1)


def eight(phase, rng, values):
    """Eight small VMs: in the first round they boot, in the others they do not get so
    far before they are killed in any order."""
    for number in range(values["EIGHTS"]):
        # However long all of them take to boot.
        with phase.round(number), bed.knobs_set(threshold_mib=0, fallback_timeout_ms=86_400_000):
            if number == 0:
                with rounds.several(8, "256M", modules=[bed.DRIVER, bed.EDU_DRIVER]) as vms:
                    for vm in vms:
                        vm.wait_line("L2: ready", 8 * BOOT)
                        bed.wait_mapped(vm.pid)
                        tap.equal("commits", bed.stat(vm.pid, "commits"), 1)
                    for vm in vms:
                        vm.quit()
            else:
                with rounds.several(8, "256M", modules=[bed.DRIVER],
                                    paused=number % 2 == 0, stubborn=False) as vms:
                    rng.shuffle(vms)
                    for vm in vms:
                        time.sleep(rng.uniform(0, 1))
                        vm.kill()
        phase.at(number + 1)


PHASES = {"attack": (attack, "CASES", "cases"), "kill": (kill, "KILLS", "rounds"),
          "load": (load, "LOADS", "rounds"), "delete": (delete, "DELETIONS", "rounds"),
          "pair": (pair, "PAIRS", "rounds"), "eight": (eight, "EIGHTS", "rounds")}


def main():
    values = dict(DEFAULTS)
    chosen = []
    for word in sys.argv[1:]:
        name, equals, value = word.partition("=")
        if name not in (values if equals else PHASES):
            sys.exit(f"stress.py: {word}: there are {' '.join(PHASES)} and "
                     f"{'=, '.join(values)}=")
        if equals:
            values[name] = int(value)
        else:
            chosen.append(name)
    values["SEED"] = values["SEED"] or random.SystemRandom().randrange(1, 1 << 31)
    reporter = tap.Reporter()
    guest.prepare("deferred")
    for name in chosen or PHASES:
        run, count, unit = PHASES[name]
        phase = Phase(name, values[count], unit, values["SEED"])
        run(phase, random.Random(f"{values['SEED']} {name}"), values)
        phase.finish(reporter)
    sys.exit(reporter.finish())


if __name__ == "__main__":
    main()
