"""What goes wrong in a request, as the ``Snex.Error`` that its caller gets.

Source: "Snex.Error" in the contract (docs/architecture.md). On the wire it is a map with
``__struct__: Snex.Error``: an exception struct where the Elixir client is loaded, a readable map
where it is not.
"""

from __future__ import annotations

import asyncio
import os
import traceback
from typing import Final

import snex_node
from snex_node.etf import EncodeError
from snex_node.terms import Atom

MAX_TEXT: Final = 64 * 1024
"""Characters of a reason, or of one entry of a traceback, that are sent; the rest is cut off.

An exception's text can be as large as the data that it complains about."""

MAX_FRAMES: Final = 100
"""Frames of one traceback that are sent: the outer and the inner half of this."""

_OWN: Final = tuple(
    os.path.dirname(os.path.abspath(file)) + os.sep for file in (snex_node.__file__, __file__)
)
_ASYNCIO: Final = os.path.dirname(os.path.abspath(asyncio.__file__)) + os.sep


class BadRequest(Exception):
    """A request that cannot be understood; the message says what would be."""


class Failure(Exception):
    """An error as it is answered: ``code`` (an atom's name), ``reason``, Python ``traceback``."""

    def __init__(self, code: str, reason: object, traceback: list[str] | None = None) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
        self.traceback = traceback

    def to_term(self) -> dict[Atom, object]:
        """The ``Snex.Error`` map."""
        return {
            Atom("__struct__"): Atom("Elixir.Snex.Error"),
            Atom("__exception__"): True,
            Atom("code"): Atom(self.code),
            Atom("reason"): self.reason,
            Atom("traceback"): self.traceback,
        }

    def describe(self) -> str:
        """The error for a log: the traceback where there is one."""
        if self.traceback:
            return "".join(self.traceback).rstrip()
        return f"{self.code}: {self.reason}"


def bad_request(reason: str) -> Failure:
    """A request that cannot be understood."""
    return Failure("bad_request", _clean(reason))


def cancelled(why: str) -> Failure:
    """Work that was stopped before it was done."""
    return Failure("cancelled", why)


def from_exception(error: BaseException) -> Failure:
    """What user code raised: its text, and a traceback that holds the user's frames only.

    It never fails itself, whatever the exception does when it is looked at.
    """
    if isinstance(error, EncodeError) and not _has_user_frames(error.__cause__):
        kind = "TypeError" if isinstance(error, TypeError) else "ValueError"
        reason = _clean(_text(error))
        return Failure("python_runtime_error", reason, [f"{kind}: {reason}\n"])
    return Failure("python_runtime_error", _clean(_text(error)), format_traceback(error))


def format_traceback(error: BaseException) -> list[str]:
    """The lines of ``traceback.format_exception``, without the frames of this library."""
    try:
        summary = traceback.TracebackException.from_exception(error, limit=None, compact=True)
        _remove_own_frames(summary)
        return [_clean(line) for line in summary.format()]
    except Exception as failure:
        return [f"{type(error).__name__}: (no traceback: {type(failure).__name__})\n"]


def _remove_own_frames(outermost: traceback.TracebackException) -> None:
    waiting: list[traceback.TracebackException | None] = [outermost]
    while waiting:
        summary = waiting.pop()
        if summary is None:
            continue
        frames = [frame for frame in summary.stack if not frame.filename.startswith(_OWN)]
        while frames and frames[0].filename.startswith(_ASYNCIO):
            del frames[0]
        if len(frames) > MAX_FRAMES:
            frames = frames[: MAX_FRAMES // 2] + frames[-MAX_FRAMES // 2 :]
        summary.stack[:] = frames
        waiting += [summary.__cause__, summary.__context__]
        waiting += getattr(summary, "exceptions", None) or []


def _has_user_frames(error: BaseException | None) -> bool:
    frame = None if error is None else error.__traceback__
    while frame is not None:
        if not frame.tb_frame.f_code.co_filename.startswith(_OWN):
            return True
        frame = frame.tb_next
    return False


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failure:
        return f"<{type(error).__name__}, whose text raised {type(failure).__name__}>"


def _clean(text: str) -> str:
    """Text that fits a message: UTF-8, of bounded length."""
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}... ({len(text)} characters)\n"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
