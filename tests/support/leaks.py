"""Finds processes that a test run started, those included that made themselves daemons."""

from __future__ import annotations

import os
import secrets
import signal
import time
from pathlib import Path
from typing import NamedTuple

MARK = "SNEX_TEST_RUN"
"""Environment variable that every process started by the test run inherits."""


class Leftover(NamedTuple):
    """A process that outlived what started it."""

    pid: int
    command: str


def mark_this_process() -> str:
    """Put a value into the environment that all children, and theirs, will carry; return it."""
    mark = os.environ[MARK] = secrets.token_hex(8)
    return mark


def processes_marked(mark: str) -> list[Leftover]:
    """Return the living processes, this one excepted, that carry `mark`.

    Reads `/proc`; on systems without it there is nothing to see and the list is empty.
    """
    # The environment that /proc shows is the one at exec: this process set the mark later,
    # so it is excluded by that as well as by its number.
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        if int(entry.name) == os.getpid():
            continue
        try:
            if wanted not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            command = (
                (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            )
        except OSError:  # gone in the meantime, or not ours to read
            continue
        found.append(Leftover(int(entry.name), command.strip()))
    return found


def wait_until_gone(mark: str, seconds: float) -> list[Leftover]:
    """Give processes that are ending up to `seconds`; return those that stay."""
    deadline = time.monotonic() + seconds
    while (left := processes_marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def group(leader: int) -> list[int]:
    """The living processes of a process group."""
    members = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if fields[0] != "Z" and int(fields[2]) == leader:
            members.append(int(entry.name))
    return members


def kill(leftovers: list[Leftover]) -> None:
    """End each of them at once, by its number."""
    for process in leftovers:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
