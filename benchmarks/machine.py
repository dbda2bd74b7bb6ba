"""The machine: which core a process runs on, and what memory it has."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

CALLER, CALLED = 0, 1
"""The two cores: those who call share one, those who are called, of all sides, the other."""


def cores() -> list[int]:
    """The cores that this process may use; none where the system cannot say which."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def core(role: int) -> int | None:
    """The core of a role, `CALLER` or `CALLED`; both have the only one where there is one."""
    usable = cores()
    return usable[role % len(usable)] if usable else None


@contextlib.contextmanager
def pinned(role: int | None) -> Iterator[None]:
    """Have processes that are started meanwhile, by this thread, run on the core of a role.

    None: they run on all.
    """
    chosen = None if role is None else core(role)
    if chosen is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {chosen})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def pinning(role: int) -> list[str]:
    """What to put before a command that somebody else starts, to the same end."""
    chosen = core(role)
    taskset = shutil.which("taskset")
    return [] if chosen is None or taskset is None else [taskset, "-c", str(chosen)]


def resident(pid: int) -> int | None:
    """Bytes of memory that a process has; None where nobody tells."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError):
        found = subprocess.run(
            ["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False
        ).stdout.strip()
        if found:
            return int(found) * 1024
    return None


def described() -> dict[str, str | int | bool]:
    """What a reader of figures wants to know of the machine."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "pinned": bool(cores()),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
