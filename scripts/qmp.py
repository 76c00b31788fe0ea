# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's monitor: what a client says and hears. Used on the machine, for L1's QEMU, and in
L1, for those of its VMs: vm.py copies this file there.

    with Connection("/run/vm.qmp", timeout=20) as monitor:
        print(monitor.command("query-status"))
"""

import itertools
import json
import socket
import time

# Seconds that an answer may take.
ANSWER = 60


class QmpError(Exception):
    """QEMU refused a command; args[0] is its error object."""


class Monitor:
    """The protocol. A class that derives from this brings the wire:

    send(text, timeout)             says something
    receive(wanted, what, timeout)  the first message of all that wanted(message) is true
                                    of, waiting for it; `what` is its name
    """

    _names = itertools.count(1)

    def greet(self, timeout=ANSWER):
        """Hears QEMU's greeting, which comes before the machine is built, and goes on to
        commands."""
        self.receive(lambda message: "QMP" in message, "QMP greeting", timeout)
        self.command("qmp_capabilities", timeout)

    def command(self, name, timeout=ANSWER, **arguments):
        """Executes a command and returns what it returned."""
        ident = f"{name}-{next(self._names)}"
        request = {"execute": name, "id": ident}
        if arguments:
            request["arguments"] = arguments
        self.send(json.dumps(request) + "\n", timeout)
        answer = self.receive(lambda message: message.get("id") == ident,
                              f"answer to {name}", timeout)
        if "error" in answer:
            raise QmpError(answer["error"])
        return answer["return"]

    def human(self, line, cpu=0):
        """What the monitor for people answers, as of a processor."""
        return self.command("human-monitor-command",
                            **{"command-line": line, "cpu-index": cpu})

    def wait_event(self, name, timeout):
        """The first event of this name."""
        return self.receive(lambda message: message.get("event") == name,
                            f"event {name}", timeout)


class Connection(Monitor):
    """A monitor on whose socket QEMU listens. What is not waited for is thrown away. Raises
    OSError if QEMU is gone, and TimeoutError, which is one, if it does not answer in
    time."""

    def __init__(self, path, timeout=ANSWER):
        self._rest = b""
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(str(path))
            self.greet(timeout)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send(self, text, timeout):
        self._socket.settimeout(timeout)
        self._socket.sendall(text.encode())

    def receive(self, wanted, what, timeout):
        deadline = time.monotonic() + timeout
        while True:
            line, end, rest = self._rest.partition(b"\n")
            if end:
                self._rest = rest
                message = json.loads(line)
                if wanted(message):
                    return message
                continue
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{what}: not within {timeout} s")
            self._socket.settimeout(left)
            data = self._socket.recv(65536)
            if not data:
                raise OSError(f"{what}: QEMU is gone")
            self._rest += data

    def close(self):
        self._socket.close()
