#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Shows what deferral is worth: 'make demo'.

    demo.py                  measure, then report
    demo.py RESULTS.json     report on an earlier run

Starts VMs of several sizes in the nested test bed: without a device (floor), with
one on vfio_iommu_type1 alone (stock), and with our modules (deferred); some of them
with UEFI. Prints tables, what it comes to in a sentence, and the bars that the project
has set itself, draws a chart, and leaves all figures in build/demo/results.json. The
environment says what to measure:

    SIZES="4G 8G 12G"   RAM of the VMs
    RUNS=3              VMs of each size and mode
    KNOBS=""            knobs of the host module, such as "threshold_mib=1024 workers=1"

Exit status: 0 if all VMs were measured, whether or not a bar was met.
"""

import datetime
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import (
    linear_regression,
    median,
)

TOP = Path(__file__).resolve().parent.parent
OUT = TOP / "build/demo"
RUN = TOP / "build/run/demo"
GIB = 1 << 30

# What L1 needs beside its VM, and the emulator beside L1: GiB.
L1_OWN = 2
EMULATOR_OWN = 1.5

# Time for one VM, far beyond what any needs: seconds.
PATIENCE = 400

# GiB. Of larger VMs, q35 puts 2 GiB below 4 GiB, of smaller ones all.
SMALLEST = 3

# Processors that other work may keep busy before times are doubtful.
QUIET = 0.15

MODES = ("floor", "stock", "deferred")
UEFI = tuple(f"uefi-{mode}" for mode in MODES)


def sizes_from(text):
    """GiB of each word such as 4G, without repetition."""
    words = text.split()
    if not words or not all(re.fullmatch(r"[1-9]\d*G", word) for word in words):
        sys.exit(f'demo.py: SIZES="{text}": must be words such as 4G')
    sizes = sorted({int(word[:-1]) for word in words})
    if sizes[0] < SMALLEST:
        sys.exit(f'demo.py: SIZES="{text}": {SMALLEST}G is the least: smaller VMs have '
                 "no RAM above 4 GiB that could be deferred")
    return sizes


def check_memory(sizes):
    meminfo = Path("/proc/meminfo").read_text()
    free = int(re.search(r"MemAvailable:\s+(\d+)", meminfo).group(1)) / (1 << 20)
    need = max(sizes) + L1_OWN + EMULATOR_OWN
    if need > free:
        fits = int(free - L1_OWN - EMULATOR_OWN)
        advice = (f'free some, or set SIZES="4G {fits}G"' if fits > 4
                  else "free some")
        sys.exit(f"demo.py: a VM of {max(sizes)} GiB needs {need:.1f} GiB of memory, "
                 f"{free:.1f} GiB are available: {advice}")


class OtherWork:
    """How many processors are busy with what we have not started, or stolen by the
    machine that this one is a VM of, on average since the creation."""

    def __init__(self):
        self._started, self._busy = time.monotonic(), self._busy_seconds()

    @staticmethod
    def _busy_seconds():
        """Of all processors, without those of this program's children."""
        names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
        ticks = dict(zip(names, map(int, Path("/proc/stat").read_text().split()[1:])))
        all_ticks = sum(ticks.values()) - ticks["idle"] - ticks["iowait"]
        own = os.times()
        return (all_ticks / os.sysconf("SC_CLK_TCK")
                - own.children_user - own.children_system)

    def cpus(self):
        return max(0, (self._busy_seconds() - self._busy) / (time.monotonic() - self._started))


def measure(sizes, runs, knobs):
    """Measures in L1 and returns the results, with the circumstances."""
    check_memory(sizes)
    ends = len({min(sizes), max(sizes)})
    vms = len(sizes) * (runs * len(MODES) + 1) + runs * (2 + ends * len(UEFI))
    about = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "sizes_gib": sizes, "runs_each": runs, "vms": vms, "knobs": knobs,
        "cpus": os.cpu_count(),
    }
    other_work = OtherWork()
    results = RUN / "results/results.json"
    results.unlink(missing_ok=True)
    print(f"{vms} VMs of {', '.join(map(str, sizes))} GiB, one after the other, "
          f"in a host of {max(sizes) + L1_OWN} GiB", flush=True)
    status = subprocess.run(
        ["scripts/vm.py", "run", "--name", "demo", "--memory", f"{max(sizes) + L1_OWN}G",
         "--device", "edu", "--device", "nvme",
         "--time-limit", str((vms + 2 * runs + 1) * PATIENCE), "scripts/l1/bench.py",
         "--runs", str(runs), "--sizes", *map(str, sizes),
         *(f"--knob={knob}" for knob in knobs)], cwd=TOP, check=False).returncode
    if not results.exists():
        sys.exit("demo.py: nothing was measured: see above")
    command = (RUN / "command").read_text()
    about |= {"accel": re.search(r"-accel\n(\w+)", command).group(1),
              "kernel": re.search(r"modules/([^/]+)/vmlinuz", command).group(1),
              "other_cpus": other_work.cpus(), "status": status}
    data = about | json.loads(results.read_text())
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "results.json").write_text(json.dumps(data, indent=1) + "\n")
    return data


class Figures:
    """The results, by mode and size. Runs that failed have no figures."""

    def __init__(self, data):
        self.runs = [run for run in data["runs"] if "error" not in run]
        self.failed = [run for run in data["runs"] if "error" in run]
        self.sizes = sorted({run["size_gib"] for run in self.runs})
        self.maps = data.get("maps", [])
        self.reads = data.get("reads", [])

    def all(self, key, mode=None, size=None):
        return [run[key] for run in self.runs
                if run.get(key) is not None and mode in (None, run["mode"])
                and size in (None, run["size_gib"])]

    def median(self, key, mode, size):
        """None if there is no figure."""
        values = self.all(key, mode, size)
        return median(values) if values else None

    def kinds(self):
        """Of memory that was mapped without a VM."""
        return list(dict.fromkeys(row["kind"] for row in self.maps))

    def mapping(self, kind, threads):
        """Seconds for each GiB, a figure a round; threads 0: type1 alone."""
        return [row["seconds"] / row["gib"] for row in self.maps
                if (row["kind"], row["threads"]) == (kind, threads)]

    def reading(self, mode):
        """Seconds that an assigned disk took, a figure a VM."""
        return [row["seconds"] for row in self.reads if row["mode"] == mode]

    def slope(self, key, mode):
        """Seconds per GiB, by least squares through the medians."""
        points = [(size, y) for size in self.sizes
                  if (y := self.median(key, mode, size)) is not None]
        return linear_regression(*zip(*points)).slope if len(points) > 1 else None

    def added(self, key, mode, size):
        """Seconds more than without a device, by the same firmware."""
        floor = "uefi-floor" if mode.startswith("uefi-") else "floor"
        return minus(self.median(key, mode, size), self.median(key, floor, size))

    def waits(self, *words):
        """The longest wait for QEMU's monitor of each VM whose mode has one of the words."""
        return [run["qmp_worst_s"] for run in self.runs
                if run.get("qmp_worst_s") is not None
                and any(word in run["mode"] for word in words)]

    def held(self):
        """The runs in which the balloon was kept full, each with the floor's RSS
        at the same point."""
        return [(run, floor) for run in self.runs if run["mode"] == "deferred-hold"
                and (floor := self.median("rss_ready_bytes", "floor", run["size_gib"]))]


def ratio(above, below):
    """None as well where `below` is not positive: noise was larger than what
    was to be measured, and no quotient means anything."""
    return above / below if None not in (above, below) and below > 0 else None


def minus(left, right):
    return left - right if left is not None and right is not None else None


def middle(values):
    return median(values) if values else None


def most(values):
    return max(values, default=None)


def least(values):
    return min(values, default=None)


def bars(figures):
    """What the project has set itself: (text, figure or None, comparison, limit)."""
    small = 4 if 4 in figures.sizes else min(figures.sizes)
    big = 12 if 12 in figures.sizes else max(figures.sizes)

    def at(mode, key="qemu_init_s", size=big):
        return figures.median(key, mode, size)

    def added(mode, key="userspace_s"):
        return figures.added(key, mode, big)

    def slope(mode, key="qemu_init_s"):
        return figures.slope(key, mode)

    def unmapped():
        return [run["unmapped_bytes_at_kernel"] / run["deferred_bytes_at_kernel"]
                for run in figures.runs if run.get("deferred_bytes_at_kernel")]

    held = figures.held()
    # Both of RAM, at one size: in all, and the part that deferral has a hand in.
    backed, backed_high = ([f(run, floor) / (run["size_gib"] * GIB)
                            for run, floor in held if run["size_gib"] == big]
                           for f in (lambda run, floor: run["rss_ready_bytes"] - floor,
                                     # Below 4 GiB, firmware has some deferred again and again.
                                     lambda run, _: min(run["at_hold"]["deferred_bytes"],
                                                        run["size_gib"] * GIB)
                                     - run["at_hold"]["unmapped_bytes"]))
    messages = [(run["at_hold"]["messages"] - run["at_hold"]["commits"]) * GIB
                / run["at_hold"]["ballooned_bytes"] for run, _ in held]
    hits, misses = (sum(run["host"][key] for run in figures.runs
                        if run["mode"] == "deferred") for key in ("hits", "misses"))
    locked = [abs(difference) for size in figures.sizes
              if (difference := minus(at("deferred", "locked_bytes", size),
                                      at("stock", "locked_bytes", size))) is not None]
    l1, l2 = (sum(figures.all(f"{level}_complaints")) for level in ("l1", "l2"))
    init = "QEMU initialisation"
    return [
        (f"{init}, deferred, {big} GiB / {small} GiB",
         ratio(at("deferred"), at("deferred", size=small)) if big > small else None,
         "<=", 1.2),
        (f"{init} at {big} GiB, deferred / stock", ratio(at("deferred"), at("stock")),
         "<=", 0.35),
        (f"{init} per GiB, deferred / stock", ratio(slope("deferred"), slope("stock")),
         "<=", 0.08),
        (f"user space at {big} GiB, what the device adds, deferred / stock",
         ratio(added("deferred"), added("stock")), "<=", 0.35),
        (f"guest RAM backed after inflate at {big} GiB, above the floor, of RAM",
         most(backed), "<=", 0.05),
        ("inflate messages per GiB in the balloon", most(messages), "<=", 4),
        (f"maps by type1 in place of the RAM of {big} GiB",
         most(figures.all("inner_mappings", "deferred", big)), "<=", 24),
        ("deflations whose memory was mapped already, of all", ratio(hits, hits + misses),
         ">=", 0.99),
        (f"a guest without our driver, {big} GiB: until its device masters the bus, "
         "policy gate / stock", ratio(added("gate", "master_s"), added("stock", "master_s")),
         "<=", 0.5),
        (f"{init} at {big} GiB with RAM below 4 GiB deferred, / floor",
         ratio(at("deferred-low"), at("floor")), "<=", 1.3),
        (f"UEFI, {big} GiB: until the kernel starts, what the device adds, deferred / stock",
         ratio(added("uefi-deferred", "kernel_s"), added("uefi-stock", "kernel_s")),
         "<=", 0.35),
        ("UEFI: until the kernel starts, per GiB, deferred / stock",
         ratio(slope("uefi-deferred", "kernel_s"), slope("uefi-stock", "kernel_s")),
         "<=", 0.08),
        ("UEFI: RAM that is deferred and not mapped yet when the kernel starts, of all",
         least(unmapped()), ">=", 1),
        ("until QEMU, once up, answers, worst of all VMs with our modules - of all without, "
         "seconds", minus(most(figures.waits("deferred", "gate")),
                          most(figures.waits("floor", "stock"))), "<=", 0.5),
        *((f"until all is mapped, by 2 threads / by type1 in MAP_DMA, {kind}",
           ratio(middle(figures.mapping(kind, 2)), middle(figures.mapping(kind, 0))),
           "<=", 0.65) for kind in figures.kinds()),
        ("an assigned disk reads, when all is mapped, deferred / stock",
         ratio(middle(figures.reading("stock")), middle(figures.reading("deferred"))),
         ">=", 0.97),
        ("IOMMU faults", sum(figures.all("iommu_faults")), "<=", 0),
        ("WARN, BUG and Oops in host and guests", l1 + l2, "<=", 0),
        ("pages left pinned", most(map(abs, figures.all("pins_left"))), "<=", 0),
        ("bytes left in locked_vm after unplugging",
         most(figures.all("locked_left_bytes")), "<=", 0),
        ("bytes locked in the end, deferred - stock", most(locked), "<=", 0),
        (f"{init} at {big} GiB, stock / floor (else the test bed is wrong)",
         ratio(at("stock"), at("floor")), ">=", 5),
    ]


def report_bars(figures):
    if not {4, 12} <= set(figures.sizes):
        print(f"(SIZES lacks 4G or 12G: {min(figures.sizes)} and {max(figures.sizes)} GiB "
              "stand in where needed)")
    for text, figure, comparison, limit in bars(figures):
        if figure is None:
            verdict, shown = "none  ", "not measured"
        else:
            met = figure <= limit if comparison == "<=" else figure >= limit
            verdict, shown = "pass  " if met else "MISSED", f"{figure:.3g}"
        print(f"  {verdict} {text}: {shown} (bar: {comparison} {limit})")


def spread(values, unit=1):
    """Median (least–most)."""
    if not values:
        return "–"
    low, middle, high = (f(values) / unit for f in (min, median, max))
    return f"{middle:.2f}" if low == high else f"{middle:.2f} ({low:.2f}–{high:.2f})"


def worst(values, unit=1):
    """The most of all."""
    return f"{max(values) / unit:.2f}" if values else "–"


# The last is the worst of all VMs, and no median.
COLUMNS = (
    ("QEMU init s", "qemu_init_s", 1, spread),
    ("kernel s", "kernel_s", 1, spread),
    ("user space s", "userspace_s", 1, spread),
    ("all mapped s", "all_mapped_s", 1, spread),
    ("CPU s", "cpu_s", 1, spread),
    ("RSS at user space GiB", "rss_ready_bytes", GIB, spread),
    ("locked GiB", "locked_bytes", GIB, spread),
    ("worst QMP answer s", "qmp_worst_s", 1, worst),
)


def report_table(figures):
    rows = [["RAM", "mode", *(title for title, *_ in COLUMNS)]]
    for size in figures.sizes:
        for mode in (*MODES, "deferred-hold", "deferred-low", "gate", *UEFI):
            if not figures.all("qemu_init_s", mode, size):
                continue
            rows.append([f"{size} GiB", mode] + [
                show(figures.all(key, mode, size), unit) for _, key, unit, show in COLUMNS])
    print_rows(rows)
    rows = [["mapping s/GiB", "type1 alone", "1 thread", "2 threads"]]
    rows += [[kind, *(spread(figures.mapping(kind, threads)) for threads in (0, 1, 2))]
             for kind in figures.kinds()]
    if figures.maps:
        print()
        print_rows(rows)


def report_verdict(figures):
    """What it comes to, in a sentence for those who do not want to read a table."""
    size = max(figures.sizes)
    added = {firmware: [figures.added("userspace_s", prefix + mode, size)
                        for mode in ("stock", "deferred")]
             for firmware, prefix in (("BIOS", ""), ("UEFI", "uefi-"))}
    # More than none, else it is noise.
    firmwares = [name for name, figure in added.items() if None not in figure and min(figure) > 0]
    if firmwares:
        stock, ours = (" and ".join(f"{added[name][index]:.1f} s ({name})" for name in firmwares)
                       for index in (0, 1))
        print(f"With a device, a VM of {size} GiB is in its user space later than without: by "
              f"{stock} on stock VFIO, by {ours} with our modules.")


def print_rows(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def report(data):
    """Prints everything; returns the exit status."""
    figures = Figures(data)
    for run in figures.failed:
        print(f"FAILED: {run['size_gib']} GiB, {run['mode']}, run {run['run']}: {run['error']}")
    if missing := data["vms"] - len(data["runs"]):
        print(f"FAILED: {missing} of {data['vms']} VMs were not measured")
    if not figures.runs:
        return 1
    print(f"\nMedian (least–most) of {data['runs_each']} VMs each; linux {data['kernel']} "
          f"under {data['accel'].upper()}, {data['cpus']} CPUs, {data['date']}; "
          f"{data['other_cpus']:.2f} CPUs busy with other work"
          + "".join(f"; {knob}" for knob in data["knobs"]))
    report_table(figures)
    print()
    report_verdict(figures)
    print()
    report_bars(figures)
    fallbacks = sum(run["host"]["fallbacks"] for run in figures.runs if "host" in run)
    if fallbacks:
        print(f"NOTE: {fallbacks} guests did not commit in time and were mapped in the "
              "background: this machine was too slow or too busy")
    if false_starts := sum(figures.all("false_starts")):
        print(f"NOTE: {false_starts} VMs hung or were reset before their init ran, "
              "and were started again")
    if data["other_cpus"] > QUIET:
        print(f"NOTE: other work kept {data['other_cpus']:.2f} processors of this machine "
              "busy: times are not to be relied on")
    return int(bool(figures.failed or missing or data["status"]))


def main():
    if len(sys.argv) > 1:
        return report(json.loads(Path(sys.argv[1]).read_text()))
    runs = os.environ.get("RUNS") or "3"
    if not re.fullmatch(r"[1-9]\d*", runs):
        sys.exit(f'demo.py: RUNS="{runs}": must be a number')
    knobs = os.environ.get("KNOBS", "").split()
    if not all(re.fullmatch(r"\w+=\d+", knob) for knob in knobs):
        sys.exit(f'demo.py: KNOBS="{" ".join(knobs)}": must be words such as workers=1')
    data = measure(sizes_from(os.environ.get("SIZES") or "4G 8G 12G"), int(runs), knobs)
    status = report(data)
    subprocess.run(["scripts/in-root.sh", "scripts/plot.py", "build/demo/results.json",
                    "build/demo/boot-time"], cwd=TOP, check=True)
    print("build/demo/: results.json, boot-time.png, boot-time.svg")
    return status


if __name__ == "__main__":
    sys.exit(main())
