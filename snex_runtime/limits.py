"""What a process that evaluates may have of its machine: limits that the system holds it to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["LimitError", "apply", "check_memory"]

RESOURCES: Final = {
    "rlimit_as": "RLIMIT_AS",
    "rlimit_cpu": "RLIMIT_CPU",
    "rlimit_nofile": "RLIMIT_NOFILE",
}
"""Resources that can be limited, by the names of the options. Address space is in bytes, processor
time in seconds; both limits of `resource.setrlimit` are set."""


FOR_THE_START: Final = 64 * 1024 * 1024
"""Bytes of address space that the threads of a node and its modules take."""


LEAST_FILES: Final = 64
"""Open files that a node is to have, beside those of the code that it evaluates."""


class LimitError(ValueError):
    """A limit cannot be set, or is less than what Python needs; the message says what would do."""


def apply(limits: Mapping[str, Any]) -> None:
    """Put this process into the control group ``cgroup`` (a directory of cgroup v2), and limit its
    resources; others than `RESOURCES` and that are ignored. Raises `LimitError`.
    """
    if limits.get("cgroup") is not None:
        _join(str(limits["cgroup"]))
    for name, of_system in RESOURCES.items():
        if limits.get(name) is not None:
            _limit(name, of_system, limits[name])


def _join(directory: str) -> None:
    try:
        with open(os.path.join(directory, "cgroup.procs"), "w") as file:
            file.write(str(os.getpid()))
    except OSError as error:
        raise LimitError(
            f"cannot join the control group {directory}: {error.strerror}. It has to be a "
            "directory of cgroup v2 that this user may write to"
        ) from None


def _limit(name: str, of_system: str, value: object) -> None:
    if type(value) is not int or value <= 0:
        raise LimitError(f"{name} is a positive integer, not {value!r}")
    if name == "rlimit_as":
        _check_address_space(value)
    if name == "rlimit_nofile" and value < LEAST_FILES:
        raise LimitError(f"rlimit_nofile is {value}, and a node needs {LEAST_FILES} open files")
    try:
        import resource  # noqa: PLC0415 - most processes have no limits, and Windows has no module

        resource.setrlimit(getattr(resource, of_system), (value, value))
    except (ImportError, AttributeError):
        raise LimitError(f"{name} is not known to this system") from None
    except (ValueError, OverflowError, OSError) as error:
        raise LimitError(f"{name} cannot be {value}: {error}") from None


def _check_address_space(most: int) -> None:
    """Raise `LimitError` for less than this process needs to start, where the system tells."""
    try:
        with open("/proc/self/statm", "rb") as file:
            have = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return
    if most < have + FOR_THE_START:
        raise LimitError(
            f"rlimit_as is {most} bytes, and Python takes {have} of address space already, and "
            f"{FOR_THE_START} more to start"
        )


def check_memory(most: int, have: int) -> None:
    """Raise `LimitError` unless a process that has ``have`` bytes may go on with ``most``."""
    if most and not have:
        raise LimitError("max_memory needs a system that tells of memory in /proc")
    if most and have >= most:
        raise LimitError(
            f"max_memory is {most} bytes, and Python with its init script takes {have} already"
        )
