"""Runs a function in a forked child: what it may break there, or end, is not the test's process."""

from __future__ import annotations

import atexit
import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import NamedTuple

SECONDS = 30


class Ended(NamedTuple):
    """How a child has ended, and what it and its own children wrote on either standard output."""

    status: int
    """As `subprocess` has it: of a signal its negative number."""
    output: str


def fork() -> int:
    """`os.fork`, which from Python 3.12 on warns of the threads that a process of tests has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def forked(function: Callable[[], object]) -> Ended:
    """Call ``function`` in a child; its status is 0, or 1 with a traceback, if that returns."""
    reader, writer = os.pipe()
    child = fork()
    if child == 0:
        _run(function, reader, writer)
    os.close(writer)
    with open(reader, encoding="utf-8", errors="replace") as file:
        output = file.read()
    _, status = os.waitpid(child, 0)
    return Ended(os.waitstatus_to_exitcode(status), output)


def _limit() -> None:
    """No child outlives a test that has failed, whatever keeps it."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)
    resource.setrlimit(
        resource.RLIMIT_CPU, (SECONDS, SECONDS)
    )  # its own children have this as well


def _run(function: Callable[[], object], reader: int, writer: int) -> None:
    status = 1
    try:
        _limit()
        atexit._clear()  # they are the parent's: temporary directories would go
        os.close(reader)
        for number in (1, 2):
            os.dup2(writer, number)
        os.close(writer)
        # pytest has others in their place.
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        # Its own children are another matter.
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork")
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
