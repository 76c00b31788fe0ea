# SPDX-License-Identifier: GPL-2.0-only
"""L1 as seen from outside: one that says nothing any more is looked at, and ended."""

import os
import re
import threading
import time

import qmp

# Seconds between two looks at the clock.
PAUSE = 1

# Seconds until L1 is up: many times what it takes on a busy machine.
BOOTING = 300

# Seconds that L1's kernel gets to print what it is asked for; QEMU's monitor to answer.
PRINTING = 10
ANSWER = 20


def options(run):
    """Words for QEMU: L1's two serial ports, of which the second is this program's
    output, a monitor, and a log of resets. `run` is the directory of the run."""
    os.mkfifo(run / "keys")
    return ["-d", "cpu_reset", "-D", f"{run}/resets",
            "-chardev", f"file,id=console,path={run}/console.log,input-path={run}/keys",
            "-serial", "chardev:console",
            "-chardev", "stdio,id=results,signal=off", "-serial", "chardev:results",
            "-chardev", f"socket,id=monitor,path={run}/monitor,server=on,wait=off",
            "-mon", "chardev=monitor,mode=control"]


def is_up(run):
    """Whether L1 has come to its first program, see l1/boot.sh."""
    return (run / "results/started").exists()


def was_reset(run):
    """That L1's kernel was reset, and where its processors were, or None."""
    path = run / "resets"
    log = path.read_text() if path.exists() else ""
    # A processor that no kernel has brought up yet has an EIP.
    where = re.findall(r"^CPU Reset \(CPU \d+\)\n(?:.*\n){4}RIP=(\w+)", log, re.M)
    if not where:
        return None
    how = "after a triple fault" if "Triple fault" in log else "without a fault"
    return f"L1 was reset {how}, its processors at {', '.join(where)}"


class Watch:
    """Watches L1, and ends it if that has to be.

    run         directory of the run
    process     QEMU
    time_limit  seconds that L1 may take
    silence     seconds that may pass between two lines of its program, or None
    verdict     why it was ended, or None
    """

    def __init__(self, run, process, time_limit, silence):
        self.verdict = None
        self._run = run
        self._process = process
        self._time_limit = time_limit
        self._silence = silence
        self._started = time.monotonic()
        self._last = None
        self._ended = threading.Event()
        # For reading too: whoever opens it for one of both waits for the other.
        self._keys = os.open(run / "keys", os.O_RDWR)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def heard(self, line):
        """A line has come."""
        self._last = time.monotonic(), line.decode(errors="replace").strip()

    def end(self):
        """QEMU has ended."""
        self._ended.set()
        self._thread.join()
        os.close(self._keys)

    def _reason(self, now):
        """Why L1 has to be ended now, or None."""
        when, line = self._last or (now, "")
        if now - self._started > self._time_limit:
            return f"L1 did not end within {self._time_limit} s, after {line!r}"
        if self._silence and now - when > self._silence:
            return f"nothing came from L1 for {self._silence} s, after {line!r}"
        if now - self._started > BOOTING and not is_up(self._run):
            return f"L1 was not up within {BOOTING} s"
        return None

    def _watch(self):
        while not self._ended.wait(PAUSE):
            if why := was_reset(self._run):
                # Before much is printed by the next one.
                self._process.kill()
                self.verdict = why
                return
            if why := self._reason(time.monotonic()):
                self.verdict = f"{why}; its processors: {self._look()}"
                self._process.kill()
                return

    def _look(self):
        """Has L1's kernel print which tasks are blocked and what its processors do, and
        keeps what QEMU knows of those. Returns where they are."""
        try:
            with qmp.Connection(self._run / "monitor", ANSWER) as monitor:
                for key in b"wl":
                    monitor.command("chardev-send-break", ANSWER, id="console")
                    # What comes together with a break is taken for it.
                    self._ended.wait(0.5)
                    os.write(self._keys, bytes([key]))
                    self._ended.wait(0.5)
                self._ended.wait(PRINTING)
                registers = monitor.human("info registers -a")
                count = len(re.findall(r"^CPU#", registers, re.M))
                lapics = "".join(monitor.human(f"info lapic {cpu}") for cpu in range(count))
            (self._run / "processors").write_text(registers + lapics)
        except (OSError, qmp.QmpError) as error:
            return f"QEMU's monitor: {error}"
        return ", ".join("halted" if halted == "1" else f"at {where}" for where, halted in
                         re.findall(r"\bRIP=(\w+).*?HLT=(\d)", registers, re.S))
