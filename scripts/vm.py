#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Boots L1, the virtual host in which the modules are loaded and VMs started.

    vm.py run [OPTION...] PROGRAM [ARGUMENT...]   run a program inside L1
    vm.py shell [OPTION...]                       L1 with a shell on this terminal

The program is copied into L1 together with scripts/l1, scripts/qmp.py, tests and
the built modules, as /payload. Its output appears here as it comes; what it leaves in
/results is found in build/run/NAME/results, beside L1's console. The exit status
is the program's, or 1 if L1 crashed or was cut off; what L1's kernel and QEMU say
of an L1 that stands still is then at the end of the console and in "processors".
One that does not even get up is booted again, twice at most.

L1 has an emulated Intel IOMMU and devices to assign to VMs. It runs under KVM
where that works, nested, and under QEMU's emulator otherwise.
"""

import argparse
import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import emulator
import tsc
import watch

TOP = Path(__file__).resolve().parent.parent
BUILD = TOP / "build"

# TCG emulates "rep stosb" a byte at a time: without ERMS the kernel clears pages
# at a sane cost. Its SVM is what lets L1 use KVM. "check=off" keeps it from listing
# what else it lacks.
CPU = {"tcg": "EPYC-Milan,-erms,-fsrm,check=off", "kvm": "host"}
ACCEL = {"tcg": "tcg,thread={threads},tb-size=1024", "kvm": "kvm"}

# What a VM gets from e1000e's network, by TFTP, is in /results.
DEVICES = {
    "e1000e": ["-netdev", "user,id=e1000e,restrict=on,tftp={run}/results,bootfile=boot",
               "-device", "e1000e,netdev=e1000e"],
    "edu": ["-device", "edu,dma_mask=0xffffffffffffffff"],
    "igb": ["-netdev", "hubport,id=igb,hubid=0", "-device", "igb,netdev=igb"],
    "nvme": ["-drive", "if=none,id=nvme,format=raw,cache=unsafe,file={scratch}",
             "-device", "nvme,serial=scratch,drive=nvme"],
}

# Before awake.py runs in L1, its processors may stand still: so often it is booted.
BOOTS = 3

# What awake.py says of an interrupt.
LOST = "awake: CPU"

# What must not appear in L1's kernel log, by the name under which it is counted.
COMPLAINTS = {
    "WARNING": r"WARNING: ",
    "BUG": r"BUG: |kernel BUG at",
    "panic": r"Kernel panic",
    "Oops": r"Oops: |general protection fault|Unable to handle",
    "lockdep": r"possible (circular|recursive) locking|suspicious RCU usage",
    "hang": r"blocked for more than|soft lockup|rcu.*detected stalls",
    "DMAR fault": r"DMAR: .*[Ff]ault",
}


def kernel_release():
    """The release to boot: KVER, else the one that root.sh chose."""
    return os.environ.get("KVER") or (BUILD / "kver").read_text().strip()


def enter_root():
    """Starts this program again inside the toolchain root, where QEMU is."""
    if os.environ.get("IN_ROOT") != "1":
        script = TOP / "scripts/in-root.sh"
        os.execv(script, [str(script), "python3", "/src/scripts/vm.py", *sys.argv[1:]])


def boot_files(release, args=None):
    kernel = args and args.kernel or f"/usr/lib/modules/{release}/vmlinuz"
    initrd = args and args.initrd or BUILD / f"l1-{release}.cpio"
    return ["-kernel", str(kernel), "-initrd", str(initrd)]


def gib(text):
    """GiB of a size such as 6G or 5632M."""
    match = re.fullmatch(r"(\d+)([MG])", text)
    if not match:
        sys.exit(f"vm.py: --memory {text}: must be a size such as 6G or 5632M")
    return int(match[1]) / (1 if match[2] == "G" else 1024)


def check_memory(memory):
    """L1's memory is allocated at once: better refuse than be killed."""
    meminfo = Path("/proc/meminfo").read_text()
    free = int(re.search(r"MemAvailable:\s+(\d+)", meminfo)[1]) / (1 << 20)
    if gib(memory) + 1 > free:
        sys.exit(f"vm.py: L1 of {memory} does not fit into the {free:.1f} GiB that are "
                 "free: stop other programs, or choose a smaller --memory")


def kvm_works(release):
    """Whether KVM boots this kernel and offers nesting: /dev/kvm alone proves
    neither. The verdict is kept until the machine reboots."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    cache = BUILD / "kvm-probe"
    key = f"{boot_id} {release} "
    if cache.exists() and cache.read_text().startswith(key):
        return cache.read_text().endswith("yes\n")
    print("vm.py: trying whether KVM can boot L1 (20 s at most)", file=sys.stderr)
    command = ["qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-M", "q35",
               "-m", "512M", "-nodefaults", "-display", "none", "-no-reboot",
               "-serial", "stdio", *boot_files(release),
               "-append", "console=ttyS0 panic=-1 l1=probe"]
    try:
        output = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=20,
                                capture_output=True, check=False).stdout
    except subprocess.TimeoutExpired:
        output = b""
    works = b"l1: probe passed" in output
    cache.write_text(key + ("yes\n" if works else "no\n"))
    return works


def make_payload(run, args):
    """Copies everything that L1 is to see: a snapshot, so that work in the tree
    goes on while L1 runs."""
    payload = run / "payload"
    ignore = shutil.ignore_patterns("__pycache__", "*.o", ".*")
    for name, source in (("l1", TOP / "scripts/l1"), ("tests", TOP / "tests")):
        if source.is_dir():
            shutil.copytree(source, payload / name, ignore=ignore)
    # What both sides use.
    shutil.copy2(TOP / "scripts/qmp.py", payload / "l1")
    modules = [TOP / "host/vfio_iommu_deferred.ko",
               TOP / "guest/virtio_balloon_deferred.ko"]
    for path in [path for path in modules if path.exists()] + args.add:
        if path.is_dir():
            shutil.copytree(path, payload / path.name, ignore=ignore)
        else:
            shutil.copy2(path, payload / path.name)
    if args.command == "run":
        # A program of the tree is found at its place, so that it finds others.
        program = Path(args.program[0]).resolve()
        shutil.copy2(program, payload / "program")
        command = ["/payload/program"]
        for name, source in (("l1", TOP / "scripts/l1"), ("tests", TOP / "tests")):
            if program.is_relative_to(source):
                command = [f"/payload/{name}/{program.relative_to(source)}"]
        words = " ".join("'" + word.replace("'", "'\\''") + "'"
                         for word in command + args.program[1:])
        (payload / "run").write_text(f"#!/bin/bash\nexec {words}\n")
        (payload / "run").chmod(0o755)
        (payload / "program").chmod(0o755)
    return payload


def emulate(args):
    """QEMU to emulate with, and how many of its threads L1's processors get."""
    try:
        return emulator.mended(BUILD / "l0"), args.threads
    except emulator.Unknown as why:
        print(f"vm.py: QEMU is used as it is, {why}: VMs may be lost", file=sys.stderr)
        return emulator.PACKAGED, "multi"


def qemu_command(run, payload, args, accel):
    release = kernel_release()
    scratch = run / "nvme.img"
    append = ["console=ttyS0", "panic=-1", "intel_iommu=on", "iommu=nopt",
              "log_buf_len=4M", "sysrq_always_enabled",
              "loglevel=5" if args.command == "shell" else "loglevel=7"]
    if accel == "tcg":
        # Emulated processors stand still at times; that is no fault.
        append += ["mitigations=off", "tsc=reliable", "no_timer_check", "watchdog_thresh=60",
                   "rcupdate.rcu_cpu_stall_timeout=120", "iomem=relaxed", "AWAKE=1",
                   f"tsc_early_khz={tsc.khz()}"]
    if args.command == "shell":
        append.append("l1=shell")
    qemu, threads = emulate(args) if accel == "tcg" else (emulator.PACKAGED, None)
    command = [
        str(qemu), "-nodefaults", "-display", "none",
        "-accel", ACCEL[accel].format(threads=threads), "-cpu", CPU[accel],
        "-smp", str(args.cpus),
        "-M", "q35,kernel-irqchip=split,memory-backend=ram", "-m", args.memory,
        # First touch of the memory must not fall on whatever is measured first.
        "-object", f"memory-backend-ram,id=ram,size={args.memory},prealloc=on,"
                   f"prealloc-threads={args.cpus}",
        "-device", "intel-iommu,intremap=on,aw-bits=48",
        *boot_files(release, args), "-append", " ".join(append + args.append),
        "-drive", f"if=none,id=root,format=raw,readonly=on,"
                  f"file={BUILD}/l1-{release}.erofs",
        "-device", "virtio-blk-pci,drive=root",
        "-virtfs", f"local,mount_tag=payload,path={payload},"
                   "security_model=none,readonly=on",
        "-virtfs", f"local,mount_tag=results,path={run}/results,security_model=none",
    ]
    if args.command == "shell":
        command += ["-serial", "mon:stdio", "-no-reboot"]
    else:
        command += watch.options(run)
    for device in args.device:
        if device == "nvme" and args.nvme_image:
            # A copy, and no more of it than is in use.
            subprocess.run(["cp", "--sparse=always", args.nvme_image, scratch], check=True)
        elif device == "nvme":
            with open(scratch, "wb") as file:
                file.truncate(1 << 30)
        command += [word.format(run=run, scratch=scratch) for word in DEVICES[device]]
    return command


def run_qemu(run, command, args):
    """Runs L1 and copies its results port to our output. Returns QEMU's exit
    status, and why L1 was cut off if it was."""
    log = open(run / "qemu.log", "wb")
    if args.command == "shell":
        return subprocess.run(command, stderr=log, check=False).returncode, None
    with log, subprocess.Popen(command, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=log) as qemu:
        outside = watch.Watch(run, qemu, args.time_limit, args.silence)
        try:
            for line in qemu.stdout:
                outside.heard(line)
                sys.stdout.buffer.write(line)
                sys.stdout.flush()
            qemu.wait()
        finally:
            qemu.kill()
            outside.end()
    return qemu.returncode, outside.verdict


def tail(path, lines=25):
    if path.exists():
        text = path.read_text(errors="replace").splitlines()[-lines:]
        print(f"--- the end of {path.relative_to(TOP)}", *text, sep="\n", file=sys.stderr)


def kernel_log(run):
    """L1's kernel log; its console where L1 did not live to save the log."""
    log = run / "results/dmesg"
    log = log if log.exists() else run / "console.log"
    return log.read_text(errors="replace") if log.exists() else ""


def complaints(text):
    """Counts what the kernel complained about in its log."""
    return {name: count for name, pattern in COMPLAINTS.items()
            if (count := len(re.findall(pattern, text)))}


def last_words(text):
    """What a kernel that crashed has said of it: what happened first, and where."""
    # Tests provoke faults of the IOMMU.
    patterns = [pattern for name, pattern in COMPLAINTS.items() if name != "DMAR fault"]
    first = re.search("|".join(patterns), text)
    if not first:
        return ""
    lines = text[text.rfind("\n", 0, first.start()) + 1:].splitlines()
    words = [lines[0], *[line for line in lines if "RIP: " in line][:1]]
    return "; L1's kernel: " + "; ".join(re.sub(r"^\[[ .\d]*\] ", "", line) for line in words)


def finish(run, qemu_status, cut, started):
    """Reports how a run ended and returns the exit status."""
    log = kernel_log(run)
    counts = complaints(log)
    print(f"vm.py: {time.monotonic() - started:.0f} s, L1's kernel log: "
          + (", ".join(f"{count} {name}" for name, count in counts.items())
             or "no complaints"), file=sys.stderr)
    if lost := log.count(LOST):
        print(f"vm.py: L1's processors have lost {lost} interrupts", file=sys.stderr)
    (run / "complaints").write_text(
        "".join(f"{count} {name}\n" for name, count in counts.items()))
    status = run / "results/status"
    if qemu_status == 0 and status.exists():
        return int(status.read_text())
    why = (cut or f"L1 crashed: its QEMU ended with status {qemu_status}") + last_words(log)
    (run / "ended").write_text(f"{why}\n")
    print(f"vm.py: {why}", file=sys.stderr)
    tail(run / "qemu.log", 5)
    tail(run / "console.log")
    consoles = sorted((run / "results").glob("*.console"), key=os.path.getmtime)
    for console in consoles[-1:]:
        tail(console)
    return 1


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "shell"):
        sub = commands.add_parser(name)
        sub.add_argument("--name", default=name, help="directory below build/run")
        sub.add_argument("--memory", default="6G", help="of L1 (%(default)s)")
        sub.add_argument("--cpus", type=int, default=2, help="of L1 (%(default)s)")
        sub.add_argument("--device", action="append", choices=DEVICES,
                         help="to be assigned, repeatable (default: edu)")
        sub.add_argument("--nvme-image", type=Path, metavar="FILE",
                         help="what is on the nvme device's disk, instead of nothing")
        sub.add_argument("--add", action="append", type=Path, default=[],
                         metavar="FILE", help="copied into /payload, repeatable")
        sub.add_argument("--append", action="append", default=[], metavar="WORD",
                         help="for L1's kernel command line, repeatable")
        sub.add_argument("--kernel", type=Path, help="of L1, instead of the stock one")
        sub.add_argument("--initrd", type=Path, help="that goes with it")
        sub.add_argument("--accel", choices=("auto", "tcg", "kvm"), default="auto")
        sub.add_argument("--threads", choices=("single", "multi"), default="multi",
                         help="if emulated: one for all of L1's processors, which never "
                              "do anything at the same time then, or one for each")
        sub.add_argument("--qemu", action="append", default=[], metavar="WORD",
                         help="for QEMU's command line, repeatable")
        if name == "run":
            sub.add_argument("--time-limit", type=int, default=600, metavar="SECONDS")
            sub.add_argument("--silence", type=int, metavar="SECONDS",
                             help="longest time between two lines of the program")
            sub.add_argument("program", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    if args.command == "run" and not args.program:
        parser.error("which program shall run in L1?")
    args.device = args.device or ["edu"]
    return args


def claim(run):
    """Keeps others out of a run's directory as long as what this returns is open."""
    run.parent.mkdir(parents=True, exist_ok=True)
    lock = open(f"{run}.lock", "wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"vm.py: {run.relative_to(TOP)} is in use by another run: wait for its end, "
                 "or choose another --name")
    return lock


def boot(run, args, accel):
    """Boots L1 once, see run_qemu()."""
    shutil.rmtree(run, ignore_errors=True)
    (run / "results").mkdir(parents=True)
    payload = make_payload(run, args)
    command = qemu_command(run, payload, args, accel) + args.qemu
    (run / "command").write_text("\n".join(command) + "\n")
    return run_qemu(run, command, args)


def main():
    args = arguments()
    enter_root()
    check_memory(args.memory)
    started = time.monotonic()
    accel = args.accel
    if accel == "auto":
        accel = "kvm" if kvm_works(kernel_release()) else "tcg"
    run = BUILD / "run" / args.name
    lock = claim(run)  # noqa: F841 Open to the end.
    status, cut = boot(run, args, accel)
    if args.command == "shell":
        return status
    for _ in range(BOOTS - 1):
        # An L1 that was never up has run nothing: it says nothing about what is tested.
        if not cut or watch.is_up(run):
            break
        print(f"vm.py: {cut}: it is booted again", file=sys.stderr)
        status, cut = boot(run, args, accel)
    return finish(run, status, cut, started)


if __name__ == "__main__":
    sys.exit(main())
