# SPDX-License-Identifier: GPL-2.0-only
"""Tests in groups, reported as TAP.

    @group("what the tests of the group have in common")
    def stock():                      # a fixture: it yields what the tests get
        with guest.Guest("stock") as vm:
            yield vm

    @stock.test("I2", "what holds")
    def name_of_the_test(vm):
        equal("what", got, wanted)

The tests of a group run in their order, in one fixture. One that raises anything
but Skip has failed; if the fixture fails, all of them have.
"""

import contextlib
import os
import re
import signal
import time
import traceback

from channel import TIME_FACTOR

GROUPS = []

# Groups of which the results are known: DONE= on L1's kernel command line.
DONE = os.environ.get("DONE", "").split(",")

# No test takes this long, not even on a busy emulated machine; seconds.
TIME_LIMIT = int(400 * TIME_FACTOR)


class Skip(Exception):
    """The test cannot run here; args[0] is why."""


class Group:
    """Tests that share a fixture."""

    def __init__(self, title, fixture):
        self.title = title
        self.name = fixture.__name__
        self.module = fixture.__module__
        self.fixture = contextlib.contextmanager(fixture)
        self.tests = []

    def test(self, item, description, name=None):
        """Adds a test; `item` names what it proves, of the contract's I1 to I7, and
        `name` the test, if its function's does not."""
        def add(function):
            self.tests.append((function, f"{self.name}.{name or function.__name__}: "
                                         f"{item}: {description}"))
            return function
        return add


def group(title):
    """Makes a group of its fixture."""
    def add(fixture):
        GROUPS.append(Group(title, fixture))
        return GROUPS[-1]
    return add


def groups(modules=None):
    """Those that are to be run: of some modules, if there are any named, whose tests may
    have been imported by others' for what they share."""
    return [entry for entry in GROUPS if entry.name not in DONE
            and (modules is None or entry.module in modules)]


def equal(what, got, wanted):
    if got != wanted:
        raise AssertionError(f"{what} is {got!r}, not {wanted!r}")


def at_least(what, got, least):
    if not got >= least:
        raise AssertionError(f"{what} is {got!r}, not at least {least!r}")


def at_most(what, got, most):
    if not got <= most:
        raise AssertionError(f"{what} is {got!r}, not at most {most!r}")


def matches(what, got, pattern):
    if not re.search(pattern, got):
        raise AssertionError(f"{what} is {got!r}: nothing in it matches {pattern!r}")


def eventually(what, condition, timeout=60, pause=0.1):
    """Waits until condition() is true; returns what it returned."""
    timeout *= TIME_FACTOR
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(pause)
    return result


@contextlib.contextmanager
def time_limit(seconds):
    def expire(_signal, _frame):
        raise TimeoutError(f"cut off after {seconds} s")
    signal.signal(signal.SIGALRM, expire)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def attempt(function, *args):
    """Calls it; returns the exception that it ended with, or None."""
    try:
        with time_limit(TIME_LIMIT):
            function(*args)
    except Exception as error:  # pylint: disable=broad-except
        return error
    return None


class Reporter:
    """Numbers the results, prints and counts them."""

    def __init__(self):
        self.number = self.failed = 0
        print("TAP version 13", flush=True)

    def note(self, text):
        for line in str(text).splitlines():
            print(f"# {line}", flush=True)

    def report(self, description, error=None):
        """Prints one result: passed, failed by an exception, or skipped by one."""
        self.number += 1
        if isinstance(error, Skip):
            print(f"ok {self.number} - {description} # SKIP {error}", flush=True)
        elif error is None:
            print(f"ok {self.number} - {description}", flush=True)
        else:
            self.failed += 1
            print(f"not ok {self.number} - {description}", flush=True)
            frames = traceback.extract_tb(error.__traceback__)
            where = "; ".join(f"{frame.name}:{frame.lineno}" for frame in frames[-3:])
            self.note(f"{type(error).__name__}: {error} ({where})")

    def run(self, description, function, *args):
        """Runs one test; returns whether it did not fail."""
        error = attempt(function, *args)
        self.report(description, error)
        return error is None or isinstance(error, Skip)

    def finish(self):
        """Prints the plan; returns the exit status."""
        print(f"1..{self.number}", flush=True)
        return 1 if self.failed else 0


class Again(Exception):
    """A test has failed, and that says nothing; args[0] is why."""


def run_group(reporter, entry, excuse=lambda: None):
    """Runs all tests of a group. One has failed: `excuse` is asked why that says nothing.
    If it knows, the group is run again, until the test has a result that says something."""
    reporter.note(f"{entry.name}: {entry.title}")
    started = time.monotonic()
    left = list(entry.tests)
    again = True
    while again:
        try:
            _run_tests(reporter, entry, left, excuse)
            again = False
        except Again as error:
            reporter.note(f"{entry.name}: {error}: it is run again")
    reporter.note(f"{entry.name}: {time.monotonic() - started:.0f} s")


def _run_tests(reporter, entry, left, excuse):
    """Runs them, and reports those that are left, which it takes away."""
    try:
        with contextlib.ExitStack() as stack:
            with time_limit(TIME_LIMIT):
                value = stack.enter_context(entry.fixture())
            for function, description in entry.tests:
                error = attempt(function, value)
                if error and not isinstance(error, Skip) and (why := excuse()):
                    raise Again(why)
                if (function, description) in left:
                    left.remove((function, description))
                    reporter.report(description, error)
    except Again:
        raise
    except Exception as error:  # pylint: disable=broad-except
        if why := excuse():
            raise Again(why) from error
        if not left:
            reporter.report(f"{entry.name}: taking the fixture down", error)
        for _, description in left:
            reporter.report(description, error)
