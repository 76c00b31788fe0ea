# SPDX-License-Identifier: GPL-2.0-only
"""How long an L2's QEMU makes others wait for an answer.

    with Guest("deferred") as vm, Probe(vm) as probe:
        vm.wait_line("L2: ready")
    print(f"{probe.worst:.3f} s, {probe.worst_at:.1f} s after the start")

What keeps QEMU's main lock, or its main thread, keeps its monitor from answering, and with
it whoever manages the VM.
"""

import threading
import time

from channel import TIME_FACTOR
from qmp import Connection

# Seconds between an answer and the next question; that QEMU gets to begin, and to answer.
PAUSE = 0.02
PATIENCE = 120


class Probe:
    """Asks a VM's QEMU for its status, by a monitor of its own, time and again: from its
    first answer, before which the machine is not built, until stop() or the end of a `with`.

    answers   how many there were, without the first
    worst     seconds that the slowest took
    worst_at  when it was asked for, in seconds since QEMU was executed
    """

    def __init__(self, vm):
        self.answers = 0
        self.worst = 0.0
        self.worst_at = None
        self._vm = vm
        self._error = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind:
            # That is what is to be told.
            self._stopped.set()
        else:
            self.stop()

    def stop(self):
        """Waits for the answer that is due, which counts. Raises what has gone wrong: an
        answer that did not come at all is no figure."""
        self._stopped.set()
        self._thread.join()
        if self._error:
            raise self._error
        if not self.answers:
            raise RuntimeError(f"{self._vm.name}: QEMU was not asked for its status")

    def _run(self):
        try:
            with self._connect() as monitor:
                monitor.command("query-status", PATIENCE * TIME_FACTOR)
                while True:
                    asked = time.monotonic()
                    monitor.command("query-status", PATIENCE * TIME_FACTOR)
                    self._count(asked, time.monotonic() - asked)
                    if self._stopped.wait(PAUSE):
                        return
        except Exception as error:  # Whatever it is, stop() raises it.
            self._error = error

    def _count(self, asked, took):
        self.answers += 1
        if took > self.worst:
            self.worst, self.worst_at = took, asked - self._vm.started

    def _connect(self):
        """QEMU makes the socket as it starts."""
        deadline = time.monotonic() + PATIENCE * TIME_FACTOR
        while True:
            try:
                return Connection(self._vm.probe_path, PATIENCE * TIME_FACTOR)
            except (FileNotFoundError, ConnectionRefusedError):
                if self._vm.process.poll() is not None or time.monotonic() > deadline:
                    raise
            if self._stopped.wait(PAUSE):
                raise RuntimeError(f"{self._vm.name}: QEMU was not up")
