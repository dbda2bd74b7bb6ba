"""Where code is: what it runs or awaits at this moment, as file, line and function."""

from __future__ import annotations

import os
from types import FrameType
from typing import Any, Final

from snex_runtime import interrupts, sources

__all__ = ["MAX_AWAITED", "awaited", "innermost", "of_user"]

MAX_AWAITED: Final = 1000
"""Coroutines that await one another which are looked at, from the outermost on: as many as Python's
own limit on recursion lets run."""

_STANDARD: Final = os.path.dirname(os.__file__) + os.sep
_INSTALLED: Final = ("site-packages", "dist-packages")
_OWN: Final = interrupts.OWN


def innermost(frame: FrameType | None) -> str | None:
    """Where a thread is, as far in as it is in code that is neither ours nor Python's own; else as
    far in as it is.
    """
    inmost = None
    while frame is not None:
        if _is_users(frame):
            return _described(frame)
        own = frame.f_code.co_filename.startswith(_OWN)
        if not own:
            inmost = inmost or frame
        elif inmost is None:
            return _described(frame)
        frame = frame.f_back
    return None if inmost is None else _described(inmost)


def of_user(frame: FrameType | None) -> str | None:
    """Where a thread is in code that is neither ours nor Python's own; None: it is in none."""
    while frame is not None and not _is_users(frame):
        frame = frame.f_back
    return None if frame is None else _described(frame)


def awaited(awaitable: object) -> str | None:
    """Where a coroutine awaits that awaits others: as far in as that is code which is neither ours
    nor Python's own; None: it is in none.
    """
    found: FrameType | None = None
    for _ in range(MAX_AWAITED):
        frame, awaitable = _suspended(awaitable)
        if frame is not None and _is_users(frame):
            found = frame
        if awaitable is None:
            break
    return None if found is None else _described(found)


def _suspended(awaitable: Any) -> tuple[FrameType | None, object]:
    """The frame of a coroutine, and what it awaits."""
    for frame, awaits in (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom")):
        if hasattr(type(awaitable), frame):
            return getattr(awaitable, frame), getattr(awaitable, awaits)
    return None, None


def _is_users(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    if file.startswith(_OWN):
        return False
    return not file.startswith((_STANDARD, "<frozen")) or any(name in file for name in _INSTALLED)


def _described(frame: FrameType) -> str:
    return f"{sources.shown(frame.f_code.co_filename)}:{frame.f_lineno}, in {frame.f_code.co_name}"
