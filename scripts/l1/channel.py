# SPDX-License-Identifier: GPL-2.0-only
"""Character devices of an L2: consoles and QMP over Unix sockets.

This side listens before QEMU starts, so that not a byte is lost. One thread per
channel reads; everything else waits on the channel's condition.
"""

import json
import os
import re
import socket
import subprocess
import threading
import time

from qmp import Monitor

# By this factor L1 is slower than it would be with a stock kernel, and each time limit
# is longer: TIME_FACTOR= on its kernel's command line, which hands it to init.
TIME_FACTOR = float(os.environ.get("TIME_FACTOR", "1"))


class Closed(Exception):
    """The other side is gone: QEMU ended or died."""


class Channel:
    """A stream of bytes from QEMU, split into lines with the time of arrival.

    path  socket that QEMU is told to connect to
    log   file that gets a copy, or None
    """

    def __init__(self, path, log=None):
        self.path = path
        self.lines = []
        self._text = ""
        self._rest = ""
        self._taken = 0
        self._closed = False
        self._changed = threading.Condition()
        self._log = open(log, "w", encoding="utf-8") if log else None
        self._listener = socket.socket(socket.AF_UNIX)
        if os.path.exists(path):
            os.unlink(path)
        self._listener.bind(path)
        self._listener.listen(1)
        self._connection = None
        self._started = self._process = self._reader = None

    def start(self, started, process):
        """Begins to read. Times of lines count from `started`."""
        self._started = started
        self._process = process
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _accept(self):
        """QEMU's connection, or None if QEMU ended without making one, or if the
        channel was closed before."""
        while True:
            try:
                self._listener.settimeout(1)
                return self._listener.accept()[0]
            except TimeoutError:
                if self._process.poll() is not None:
                    return None
            except OSError:
                return None

    def _read(self):
        connection = self._accept()
        with self._changed:
            self._connection = connection
            self._changed.notify_all()
        while connection:
            try:
                data = connection.recv(65536)
            except OSError:
                break
            if not data:
                break
            now = time.monotonic() - self._started
            self._store(data.decode(errors="replace").replace("\r", ""), now)
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _store(self, text, now):
        with self._changed:
            self._text += text
            *complete, self._rest = (self._rest + text).split("\n")
            self.lines += [(now, line) for line in complete]
            if self._log and complete:
                self._log.writelines(f"{now:8.3f} {line}\n" for line in complete)
                self._log.flush()
            self._changed.notify_all()

    def _wait(self, found, what, timeout):
        """Waits until found() returns something true, and returns that."""
        timeout *= TIME_FACTOR
        deadline = time.monotonic() + timeout
        with self._changed:
            while not (result := found()):
                if self._closed:
                    raise Closed(f"{what}: {self._end()}")
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"{what}: not within {timeout} s")
                self._changed.wait(left)
            return result

    def _end(self):
        """How QEMU ended, as far as this side can tell."""
        try:
            status = f"with status {self._process.wait(5)}"
        except subprocess.TimeoutExpired:
            status = "the connection"
        last = f"{self.lines[-1][1]!r}" if self.lines else "nothing"
        return (f"QEMU ended {status} before it came, after {last}; see "
                f"{os.path.basename(self.path)} in the results")

    def wait(self, pattern, timeout):
        """The first (time, line) whose line matches."""
        regex = re.compile(pattern)
        position = 0

        def found():
            nonlocal position
            while position < len(self.lines):
                position += 1
                if regex.search(self.lines[position - 1][1]):
                    return self.lines[position - 1]
            return None

        return self._wait(found, f"console line /{pattern}/", timeout)

    def wait_text(self, pattern, timeout):
        """Waits for a pattern in all that came since the last call that matched.
        Returns (time, match)."""
        regex = re.compile(pattern)

        def found():
            return regex.search(self._text[self._taken:])

        match = self._wait(found, f"/{pattern}/", timeout)
        self._taken += match.end()
        return time.monotonic() - self._started, match

    def send(self, text, timeout=60):
        """Writes to the device, once QEMU has connected."""
        connection = self._wait(lambda: self._connection, f"{self.path}", timeout)
        connection.sendall(text.encode())

    def close(self):
        """Ends the reader; QEMU must have ended."""
        if self._connection:
            self._connection.close()
        self._listener.close()
        if self._reader:
            self._reader.join()
        if self._log:
            self._log.close()


class Qmp(Channel, Monitor):
    """QEMU's monitor. Events stay in self.lines.

    may_stop  the VM is stopped, and goes on, for a test's sake
    """

    may_stop = False

    def _store(self, text, now):
        super()._store(text, now)
        if not self.may_stop and any('"event": "STOP"' in line for _, line in self.lines):
            # QEMU itself has stopped the VM, since KVM has failed it. Nothing will come from
            # it any more: better that who waits sees it end.
            self._process.kill()

    def _find(self, wanted):
        for _, line in self.lines:
            message = json.loads(line)
            if wanted(message):
                return message
        return None

    def receive(self, wanted, what, timeout):
        return self._wait(lambda: self._find(wanted), what, timeout)
