# SPDX-License-Identifier: GPL-2.0-only
"""DMA of the edu device in an L2, by tests/guest/edu_dma.c in its kernel."""

import re

from tap import equal

PAGE = 4096


class Edu:
    """The device, bound to edu_dma in `vm`."""

    PATH = "/sys/bus/pci/drivers/edu_dma/0000:*"

    def __init__(self, vm):
        self._vm = vm

    def _run(self, command, timeout):
        return self._vm.check(f"cd {self.PATH} && {command}", timeout)

    def _result(self, file, value, timeout):
        text = self._run(f"echo {value} >{file} && cat result", timeout)
        return {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", text)}

    def started(self):
        """Microseconds that setting the bus-master bit took the driver, and its first
        access to a register after that, by L2's clock."""
        text = self._run("cat started", 60)
        times = {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", text)}
        return times["set_us"], times["touch_us"]

    def alloc(self, count):
        """Takes pages above 4 GiB; returns the addresses of the latest, up to 300."""
        text = self._run(f"echo {count} >alloc && cat alloc", 60)
        return [int(line, 16) for line in text.split()][:min(count, 300)]

    def wrong_bytes(self, gpa):
        """How many bytes of a page the device has (read, written) wrong: one of
        alloc(), or one that the kernel does not use."""
        result = self._result("gpa", f"{gpa:x}", 60)
        return result["read_wrong"], result["write_wrong"]

    def changed_bytes(self, gpa):
        """How many bytes of a page in the balloon change when the device writes
        other ones."""
        return self._result("probe_ballooned", f"{gpa:x}", 60)["changed"]

    def expect_dma(self, *pages):
        for gpa in pages:
            equal(f"wrong bytes (read, written) of the page at {gpa:#x}",
                  self.wrong_bytes(gpa), (0, 0))

    def expect_all(self, count):
        """Takes pages and tests all that were taken."""
        self.alloc(count)
        result = self._result("all", 1, 60 + 2 * count)
        equal("wrong bytes of all pages", (result["read_wrong"], result["write_wrong"]),
              (0, 0))
