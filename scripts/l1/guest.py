# SPDX-License-Identifier: GPL-2.0-only
"""L2: a VM inside L1, with or without an assigned device.

    prepare("deferred")
    with Guest("deferred", memory="4G") as vm:
        vm.wait_line("L2: ready")
        status, output = vm.sh("cat /proc/uptime")
        print(vm.times)

Everything here runs in L1. All times are seconds since QEMU was executed.
"""

import contextlib
import itertools
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import host
import initramfs
import processors
from channel import TIME_FACTOR, Channel, Closed, Qmp
from qmp import QmpError

# L2's kernel: L1's, unless L1 was booted with L2_KVER=RELEASE.
KVER = os.environ.get("L2_KVER") or os.uname().release
KERNEL = Path(f"/usr/lib/modules/{KVER}/vmlinuz")
RESULTS = Path("/results")
SOCKETS = Path("/run")
MODES = ("floor", "stock", "deferred")

# Options of QEMU for the balloon device; they come before any vfio-pci.
BALLOON = ("-device", "vhost-vdpa-device-pci,vhostdev=/dev/vhost-vdpa-0")

# What firmware="uefi" is: OVMF's code, and its variables, of which each VM has a copy.
OVMF = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
OVMF_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")

# Seconds that L2 may take to its init, by its firmware, and how often that is tried.
BOOT = {"bios": 90, "uefi": 240}
BOOTS = 3

# Seconds in which QEMU has ended of which something has failed.
GOING = 5

# What a kernel prints just before its init runs, whatever that is.
LAST_OF_KERNEL = "Key type encrypted registered"

# The console is a serial port, so a line costs up to 0.1 s: notices and worse are
# printed ("Linux version" is one), the rest is in dmesg. Emulated processors stand
# still at times; that is no fault of the guest.
CMDLINE = ("console=ttyS0 loglevel=6 panic=-1 mitigations=off tsc=reliable no_timer_check "
           "watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=120")

# What a kernel says when it goes down by itself.
LAST_WORDS = re.compile(r"reboot: |Kernel panic|Oops|BUG: ")

# All L2 that were started, in that order.
STARTED = []

_images = {}
_names = itertools.count(1)


def prepare(mode, device=host.EDU):
    """Brings L1 into the state that a mode needs: modules loaded or unloaded,
    the balloon device made, the device bound to vfio-pci."""
    host.load_kvm()
    if mode == "deferred":
        host.load_deferred()
    else:
        host.unload_deferred()
    if mode != "floor":
        host.bind_to_vfio(device)


def l2_image(modules=(), files=None, init=None):
    """An initramfs for L2; the same arguments give the same image at no cost."""
    init = init or (Path(__file__).parent / "init-l2").read_text()
    key = (tuple(map(str, modules)), repr(files), init)
    if key not in _images:
        path = Path(f"/tmp/l2-{len(_images)}.cpio")
        path.write_bytes(initramfs.build(KVER, init, modules, files))
        _images[key] = path
    return _images[key]


class Guest:
    """A running L2.

    mode      floor (no device), stock (vfio-pci) or deferred (and the balloon)
    memory    as for -m
    backend   None for anonymous memory with THP, else a -object without id and
              size, such as "memory-backend-memfd,share=on"
    paused    -S: QEMU starts, the guest does not run
    modules   for L2, names or paths of .ko files, inserted in this order
    files     for L2's initramfs, {name: path or bytes}; may replace others
    init      text of L2's /init, instead of init-l2
    cmdline   appended to the kernel's command line
    args      further words for QEMU's command line
    devices   PCI addresses in L1 to assign, instead of the edu device's
    balloon   in mode deferred, words for another balloon device than the first
    prefix    words put before QEMU, such as ("prlimit", "--memlock=...")
    initrd    path of an initramfs, instead of one made of modules, files and init
    kernel    False: none is given to QEMU, and L2 does what its firmware finds
    stubborn  if L2's kernel does not get as far as its init, reset L2 and try
              again: on an emulated processor it hangs or resets itself at times
              in its first second, in every mode
    patience  seconds that L2 may take to its init before that
    firmware  bios (SeaBIOS) or uefi (OVMF)
    name      of the logs in /results, instead of NN-mode
    """

    def __init__(self, mode, memory="4G", *, backend=None, cpus=1, paused=False,
                 modules=(), files=None, init=None, initrd=None, cmdline="", args=(),
                 devices=None, balloon=BALLOON, prefix=(), name=None, kernel=True,
                 stubborn=True, patience=None, firmware="bios"):
        if mode not in MODES:
            raise ValueError(f"{mode} is not one of {MODES}")
        self.mode = mode
        self.name = name or f"{next(_names):02d}-{mode}"
        self.times = {}
        self._lost = None
        self._described = False
        self._booted = not (stubborn and kernel)
        self._patience = patience or BOOT[firmware]
        self._alive = LAST_OF_KERNEL if initrd else "L2: init"
        stem = SOCKETS / f"l2-{self.name}"
        self.probe_path = Path(f"{stem}.probe")
        self.console = Channel(f"{stem}.console", log=RESULTS / f"{self.name}.console")
        self._shell = Channel(f"{stem}.shell")
        self.qmp = Qmp(f"{stem}.qmp", log=RESULTS / f"{self.name}.qmp")
        channels = (("console", self.console), ("shell", self._shell), ("qmp", self.qmp))
        command = [*prefix, "qemu-system-x86_64", "-nodefaults", "-display", "none",
                   "-action", "reboot=reset" if stubborn else "reboot=shutdown",
                   "-accel", "kvm", "-cpu", "host",
                   "-M", "q35" + (",memory-backend=ram" if backend else ""),
                   "-m", memory, "-smp", str(cpus),
                   # Where each processor was when it was reset: the only trace of a
                   # triple fault.
                   "-d", "cpu_reset", "-D", str(RESULTS / f"{self.name}.reset")]
        if backend:
            command += ["-object", f"{backend},id=ram,size={memory}"]
        for chardev, channel in channels:
            command += ["-chardev", f"socket,id={chardev},path={channel.path}"]
        # Every byte that passes a serial port is an exit from L2 to QEMU; the
        # shell's port is virtio's, which passes a buffer at a time.
        command += ["-serial", "chardev:console", "-device", "virtio-serial-pci",
                    "-device", "virtconsole,chardev=shell",
                    "-mon", "chardev=qmp,mode=control",
                    # For probe.py.
                    "-chardev", f"socket,id=probe,path={self.probe_path},server=on,wait=off",
                    "-mon", "chardev=probe,mode=control"]
        if mode == "deferred":
            command += balloon
        if mode != "floor":
            for address in devices or [host.find_device(host.EDU)]:
                command += ["-device", f"vfio-pci,host={address}"]
        if firmware == "uefi":
            variables = Path(f"/tmp/l2-{self.name}.variables")
            shutil.copy(OVMF_VARIABLES, variables)
            flash = "if=pflash,format=raw,unit="
            command += ["-drive", f"{flash}0,readonly=on,file={OVMF}",
                        "-drive", f"{flash}1,file={variables}"]
        if paused:
            command.append("-S")
        if kernel:
            initrd = initrd or l2_image(modules, files, init)
            command += ["-kernel", str(KERNEL), "-initrd", str(initrd),
                        "-append", f"{CMDLINE} {cmdline}"]
        command += args
        self.started = time.monotonic()
        with open(RESULTS / f"{self.name}.qemu", "wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log)
        for _, channel in channels:
            channel.start(self.started, self.process)
        STARTED.append(self)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind:
            # Afterwards nobody can tell any more.
            self._lost = self.lost()
        self.kill()

    @property
    def pid(self):
        return self.process.pid

    def wait_qmp(self, timeout=120):
        """Waits until QEMU has built the machine, which is when it answers a
        command; its greeting comes before. Returns the time of that answer."""
        if "qmp" not in self.times:
            self.qmp.greet(timeout)
            self.qmp.command("query-status", timeout)
            self.times["qmp"] = time.monotonic() - self.started
        return self.times["qmp"]

    def wait_line(self, pattern, timeout=120):
        """Waits for a console line that matches. Returns (time, line), the time
        being that of the line's arrival."""
        self._boot()
        with self._answering():
            when, line = self.console.wait(pattern, timeout)
        self.times.setdefault(pattern, when)
        return when, line

    @contextlib.contextmanager
    def _answering(self):
        """If L2 does not answer in time, says where its processors are, once."""
        try:
            yield
        except TimeoutError:
            if not self._described:
                self._described = True
                for line in self._ask(lambda qmp: list(processors.describe(qmp))) or ():
                    print(f"# {self.name}: {line}", flush=True)
            raise

    def _ask(self, function):
        """What function(self.qmp) returns; None if QEMU does not answer."""
        if "qmp" in self.times and self.process.poll() is None:
            with contextlib.suppress(Closed, TimeoutError, OSError, QmpError):
                return function(self.qmp)
        return None

    def _boot(self):
        """Sees to it that L2's kernel boots; from then on a reset ends QEMU."""
        if self._booted:
            return
        self._booted = True
        self.wait_qmp()
        for left in reversed(range(BOOTS)):
            try:
                self.console.wait(self._alive, self._patience)
                break
            except TimeoutError:
                if not left:
                    raise
                print(f"# {self.name}: L2 hangs before its init, and is reset", flush=True)
                self.qmp.command("system_reset")
        self.qmp.command("set-action", reboot="shutdown")

    def send(self, command):
        """Gives L2's shell a command that it will not come back from."""
        self._shell.send(f"{command}\n")

    def sh(self, command, timeout=60):
        """Runs a command in L2's shell. Returns (exit status, output)."""
        self.wait_line("L2: ready", timeout)
        token = os.urandom(4).hex()
        self._shell.send(f"echo \"<{token}>\"; ( {command}\n) </dev/null 2>&1; "
                         f"echo \"<{token} $?>\"\n")
        with self._answering():
            # OVMF has cleared this screen as well.
            self._shell.wait_text(rf"<{token}>\n", timeout)
            _, text = self._shell.wait_text(rf"<{token} (\d+)>\n", timeout)
        return int(text.group(1)), text.string[:text.start()]

    def check(self, command, timeout=60):
        """Like sh(), but returns the output and raises if the command fails."""
        status, output = self.sh(command, timeout)
        if status:
            raise RuntimeError(f"in L2: {command}: status {status}: {output}")
        return output.strip()

    def lost(self):
        """How the emulated processor, on which L1 runs KVM, has failed the VM, or None. At
        times it interrupts an access to a device's registers in a way that no processor
        does, or resets the VM, whose kernel then has had no last words, or it loses an
        interrupt or delivers one twice, see processors.py."""
        if self._lost:
            return self._lost
        if "KVM internal error" in (RESULTS / f"{self.name}.qemu").read_text(errors="replace"):
            return f"KVM internal error in {self.name}"
        with contextlib.suppress(subprocess.TimeoutExpired):
            # It may be about to end.
            self.process.wait(GOING)
        if (self.process.poll() == 0 and any('"guest-reset"' in line for _, line in self.qmp.lines)
                and not any(LAST_WORDS.search(line) for _, line in self.console.lines)):
            registers = (RESULTS / f"{self.name}.reset").read_text()
            where = re.findall(r"\b[ER]IP=(\w+)", registers)
            return f"{self.name} reset itself, at {where[-1] if where else 'nowhere'}"
        if why := self._ask(processors.failure):
            return f"{self.name}: {why}"
        return None

    def memory(self):
        """QEMU's memory in KiB by the names of /proc/PID/status: VmRSS, VmLck,
        VmPin and the rest."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return {name: int(value) for name, value in
                re.findall(r"^(Vm\w+|Rss\w+):\s+(\d+) kB$", text, re.M)}

    def cpu_seconds(self):
        """Processor time of QEMU so far, its vCPUs and kernel threads in its
        name included."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wait_exit(self, timeout=60):
        """Waits until QEMU has ended; returns its exit status."""
        status = self.process.wait(timeout * TIME_FACTOR)
        self.times.setdefault("exit", time.monotonic() - self.started)
        return status

    def quit(self, timeout=60):
        """Ends QEMU by QMP; returns its exit status."""
        self.wait_qmp(timeout)
        self.qmp.command("quit", timeout=timeout)
        return self.wait_exit(timeout)

    def kill(self):
        """Ends QEMU at once, if it still runs, and closes the channels."""
        self.process.kill()
        self.wait_exit()
        for channel in (self.console, self._shell, self.qmp):
            channel.close()


def first_lost(number):
    """Guest.lost() of the first of the VMs after the first `number` that is, or None."""
    return next(filter(None, (vm.lost() for vm in STARTED[number:])), None)


def time_init(mode, memory, **options):
    """Times QEMU's start with a guest that never runs: start to the answer of
    query-status, and to the end after a quit. Returns {"qmp":, "exit":}."""
    with Guest(mode, memory, paused=True, **options) as vm:
        vm.wait_qmp()
        vm.quit()
        return vm.times
