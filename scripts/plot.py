#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Draws the figures of 'make demo'. Runs in the toolchain root, for matplotlib.

    plot.py RESULTS.json OUTPUT      makes OUTPUT.png and OUTPUT.svg

Three panels over the size of guest RAM: how long QEMU initialises, and how long it takes
to the user space of a guest, by BIOS or UEFI. Lines join medians; bars go from least to
most.
"""

import json
import sys
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
# The same data make the same file.
matplotlib.rcParams["svg.hashsalt"] = "vfio-deferred"

import matplotlib.pyplot as plt  # noqa: E402, the backend is chosen first.

MODES = (
    ("stock", "stock vfio_iommu_type1", "#c1440e", "s"),
    ("deferred", "deferred", "#1f5fa8", "o"),
    ("floor", "no device", "#777777", "^"),
)
# Key, what a mode's name begins with, title.
PANELS = (("qemu_init_s", "", "QEMU initialisation"),
          ("userspace_s", "", "boot to user space, BIOS"),
          ("userspace_s", "uefi-", "boot to user space, UEFI"))


def series(runs, mode, key):
    """Sizes, medians, and distances from these to least and most."""
    values = {}
    for run in runs:
        if run["mode"] == mode and run.get(key) is not None:
            values.setdefault(run["size_gib"], []).append(run[key])
    sizes = sorted(values)
    middle = [median(values[size]) for size in sizes]
    below = [y - min(values[size]) for size, y in zip(sizes, middle)]
    above = [max(values[size]) - y for size, y in zip(sizes, middle)]
    return sizes, middle, (below, above)


def draw(data):
    figure, axes = plt.subplots(1, len(PANELS), figsize=(14, 4), layout="constrained")
    for axis, (key, prefix, title) in zip(axes, PANELS):
        for mode, label, color, marker in MODES:
            sizes, middle, errors = series(data["runs"], prefix + mode, key)
            axis.errorbar(sizes, middle, yerr=errors, label=label, color=color,
                          marker=marker, capsize=3)
        axis.set_title(title)
        axis.set_xlabel("guest RAM (GiB)")
        axis.set_ylabel("seconds since QEMU was executed")
        axis.set_xticks(sorted({run["size_gib"] for run in data["runs"]}))
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center",
                  ncols=len(MODES))
    figure.suptitle(f"Start of a VM with a passed-through device: medians of "
                    f"{data['runs_each']}, nested under {data['accel'].upper()}")
    return figure


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: plot.py RESULTS.json OUTPUT")
    figure = draw(json.loads(Path(sys.argv[1]).read_text()))
    figure.savefig(f"{sys.argv[2]}.png", dpi=150)
    figure.savefig(f"{sys.argv[2]}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
