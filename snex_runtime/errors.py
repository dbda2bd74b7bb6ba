"""What goes wrong in a request, as the ``Snex.Error`` that its caller gets.

On the wire it is a map with ``__struct__: Snex.Error``: an exception struct where the Elixir client
is loaded, a readable map where it is not.

Source: "Snex.Error" in the contract (docs/architecture.md).
"""

from __future__ import annotations

import asyncio
import builtins
import os
import sys
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import dropwhile, islice
from typing import Final, Literal, TypeAlias

import snex_node
from snex_node.wire.describe import text_of, type_name
from snex_node.wire.etf import EncodeError
from snex_node.wire.terms import Atom
from snex_runtime import sources

__all__ = [
    "MAX_CHAIN",
    "MAX_FRAMES",
    "MAX_TEXT",
    "MAX_TRACEBACK",
    "BadRequest",
    "ErrorCode",
    "Failure",
    "bad_request",
    "cancelled",
    "format_traceback",
    "from_exception",
    "overloaded",
]

MAX_TEXT: Final = 64 * 1024
"""Characters of a reason, or of one entry of a traceback; the rest is cut off. An exception's text
can be as large as the data that it complains about."""

MAX_TRACEBACK: Final = 1024 * 1024
"""Characters of a whole traceback. The first entries are left out, as the last ones tell most."""

MAX_FRAMES: Final = 1000
"""Frames of a traceback, divided among the exceptions that it tells of; the outermost are left out.
It is Python's own limit on recursion; so many frames cost some 5 ms."""

MAX_CHAIN: Final = 100
"""Exceptions that a traceback tells of: causes, contexts and members of groups. Of more, which code
that tries again inside its own ``except`` makes, only the last one is told."""

_MAX_NOTES: Final = 100

_SNIPPETS: Final = "__snex__."  # the module of what snippets define

ErrorCode: TypeAlias = Literal[
    "python_runtime_error",
    "internal_error",
    "env_not_found",
    "env_key_not_found",
    "init_script_timeout",
    "response_timeout",
    "call_failed",
    "interpreter_exited",
    "bad_request",
    "cancelled",
    "overloaded",
    "worker_exited",
    "killed",
    "memory_limit",
]


def _directory(file: str) -> str:
    return os.path.dirname(os.path.abspath(file)) + os.sep


_RUNTIME: Final = _directory(__file__)
_FACADE: Final = os.path.join(os.path.dirname(os.path.dirname(_RUNTIME)), "snex") + os.sep
_OWN: Final = (_directory(snex_node.__file__), _RUNTIME, _FACADE)
# What calls user code: the frames of compiled uvloop have a relative path.
_CALLERS: Final = (*_OWN, _directory(asyncio.__file__), "uvloop" + os.sep)

_GROUP: Final[type[BaseException] | None] = getattr(builtins, "BaseExceptionGroup", None)


class BadRequest(Exception):
    """A request that cannot be understood; the message says what would be."""


class Failure(Exception):
    """An error as a caller gets it.

    ``reason`` is any term, ``traceback`` is what ``traceback.format_exception`` gives, or None, and
    ``type`` the name of the exception's type; None where no exception was raised.

    >>> Failure("env_not_found", "#PID<0.7.0> is no environment").to_term()[Atom("code")]
    :env_not_found
    """

    def __init__(
        self,
        code: ErrorCode,
        reason: object,
        traceback: list[str] | None = None,
        type: str | None = None,  # noqa: A002 - the name of the field
    ) -> None:
        super().__init__(code, reason)
        self.code: ErrorCode = code
        self.reason = reason
        self.traceback = traceback
        self.type = type

    def to_term(self) -> dict[Atom, object]:
        """The ``%Snex.Error{}`` map."""
        return {
            Atom("__struct__"): Atom("Elixir.Snex.Error"),
            Atom("__exception__"): True,
            Atom("code"): Atom(self.code),
            Atom("reason"): self.reason,
            Atom("traceback"): self.traceback,
            Atom("type"): self.type,
        }

    def describe(self) -> str:
        """The error for a log: the traceback where there is one."""
        if self.traceback:
            return "".join(self.traceback).rstrip()
        return f"{self.code}: {self.reason}"


def bad_request(reason: str) -> Failure:
    """A request that cannot be understood."""
    return Failure("bad_request", _bounded(reason))


def cancelled(why: str) -> Failure:
    """Work that was stopped before it was done."""
    return Failure("cancelled", _bounded(why))


def overloaded(why: str) -> Failure:
    """A request that is not taken because too many wait; ``why`` says what to do about it."""
    return Failure("overloaded", _bounded(why))


def from_exception(error: BaseException, code: ErrorCode = "python_runtime_error") -> Failure:
    """What user code raised: ``str(error)``, and a traceback that holds the user's frames only.

    An exception without a text has the name of its type for a reason.
    With the code ``internal_error`` all frames are kept: then they are what one wants to see. A
    `Failure` is returned as it is.

    Never raises, whatever the exception does when it is looked at. Takes the tracebacks off
    ``error`` and all that it is chained to: they have been told, and as long as user code keeps the
    exception they would keep the variables of all their frames.

    >>> from_exception(ZeroDivisionError("division by zero")).reason
    'division by zero'
    """
    if isinstance(error, Failure):
        return error
    kind = _kind(error)
    reason = _reason(error) or kind
    if isinstance(error, EncodeError):
        lines = _format_encode_error(error, reason)
    else:
        lines = format_traceback(error, user_frames_only=code != "internal_error")
    _drop_tracebacks(error)
    return Failure(code, reason, lines, kind)


def _format_encode_error(error: EncodeError, reason: str) -> list[str]:
    """A value of the user that has no term: where in the codec that was found tells nothing.

    Where a custom encoder refused it is told, as one exception with the place of the value.
    """
    cause = error.__cause__
    told = f"{_kind(error)}: {reason}\n"
    if cause is None or not _has_user_frames(cause):
        return [told]
    lines = format_traceback(cause)
    if lines[-1] == _bounded(_last_line(cause)):
        lines[-1] = told
    else:  # notes, say, follow what it says
        lines.append(told)
    return lines


def _has_user_frames(error: BaseException | None) -> bool:
    trace = None if error is None else error.__traceback__
    frames = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace))
    return any(not file.startswith(_OWN) for file in frames)


def format_traceback(error: BaseException, *, user_frames_only: bool = True) -> list[str]:
    """What ``traceback.format_exception`` gives for ``error``, bounded and fit for UTF-8.

    With ``user_frames_only`` without the frames of this library, and without those of asyncio
    above the user's. Lines are shown of files that can be read within bounds. Columns are marked
    (``^^^^``) only in files of Python: elsewhere code is embedded, and indented, in its file. Never
    raises.
    """
    files = _Files()
    try:
        exceptions = list(islice(_related(error), MAX_CHAIN + 1))
        if len(exceptions) > MAX_CHAIN:
            return _bounded_lines(_format_alone(error, user_frames_only, files))
        told = traceback.TracebackException(
            type(error),
            error,
            error.__traceback__,
            limit=-(MAX_FRAMES // len(exceptions)),
            lookup_lines=False,
            compact=True,
        )
        for each in _told_with(told):
            each.stack[:] = _frames_to_show(each.stack, user_frames_only, files)
            _shorten(each)
        return _bounded_lines(told.format())
    except BaseException:  # methods of the user's exception run in there, and may raise anything
        return [_bounded(_last_line(error))]
    finally:
        sources.forget_lines(files.unread)


def _related(error: BaseException) -> Iterator[BaseException]:
    """``error`` and all that it is chained to or holds, each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += (each.__cause__, each.__context__)
            if _GROUP is not None and isinstance(each, _GROUP):
                waiting += getattr(each, "exceptions", ())


def _told_with(told: traceback.TracebackException) -> Iterator[traceback.TracebackException]:
    waiting: list[traceback.TracebackException | None] = [told]
    while waiting:
        each = waiting.pop()
        if each is not None:
            yield each
            waiting += (each.__cause__, each.__context__)
            waiting += getattr(each, "exceptions", None) or ()


def _frames_to_show(
    stack: Iterable[traceback.FrameSummary], user_frames_only: bool, files: _Files
) -> list[traceback.FrameSummary]:
    frames = list(stack)
    if user_frames_only:
        called = list(dropwhile(lambda frame: frame.filename.startswith(_CALLERS), frames))
        # Where none is the user's, asyncio's were not above the user's.
        frames = [each for each in called or frames if not each.filename.startswith(_OWN)]
    return [_as_shown(frame, files) for frame in frames]


class _Files(dict[str, bool]):
    """Whether lines of a file are shown, by its name; ``unread`` are those not read before."""

    def __init__(self) -> None:
        super().__init__()
        self.unread: list[str] = []

    def __missing__(self, file: str) -> bool:
        self[file] = bounded = file != sources.VIRTUAL_FILE and sources.is_bounded(file)
        if bounded and not sources.is_read(file):
            self.unread.append(file)
        return bounded


def _as_shown(frame: traceback.FrameSummary, files: _Files) -> traceback.FrameSummary:
    file = sources.shown(frame.filename)
    if file != frame.filename or not files[file]:
        return traceback.FrameSummary(file, frame.lineno, frame.name, lookup_line=False, line="")
    if sys.version_info >= (3, 11) and not file.endswith(".py"):
        frame.colno = frame.end_colno = None
        frame.end_lineno = frame.lineno
    return frame


def _shorten(told: traceback.TracebackException) -> None:
    """Cut texts before they are formatted, which copies them some times: one may be of 1 GB."""
    for name in ("_str", "text", "msg"):  # the last two are those of a SyntaxError
        text = getattr(told, name, None)
        if isinstance(text, str) and len(text) > MAX_TEXT:
            setattr(told, name, _bounded(text))
    notes = getattr(told, "__notes__", None)
    if isinstance(notes, list):
        cut = [_bounded(note) if isinstance(note, str) else note for note in notes[:_MAX_NOTES]]
        setattr(told, "__notes__", cut)  # noqa: B010 - unknown to the types of 3.10


def _format_alone(error: BaseException, user_frames_only: bool, files: _Files) -> Iterator[str]:
    stack = traceback.StackSummary.extract(
        traceback.walk_tb(error.__traceback__), limit=-MAX_FRAMES, lookup_lines=False
    )
    stack[:] = _frames_to_show(stack, user_frames_only, files)
    yield f"[more than {MAX_CHAIN} chained exceptions are left out]\n"
    if stack:
        yield "Traceback (most recent call last):\n"
        yield from stack.format()
    yield _last_line(error)


def _last_line(error: BaseException) -> str:
    name, text = type_name(type(error)), text_of(error)
    return f"{name}: {text}\n" if text else f"{name}\n"


def _reason(error: BaseException) -> str:
    text = text_of(error)
    return "" if text.isspace() else _bounded(text)


def _kind(error: BaseException) -> str:
    """The name of the error's type, as tracebacks have it; that of a snippet's without a module.

    What the codec raises is told as the exception of Python that it is, or as what user code raised
    that it asked.
    """
    if isinstance(error, EncodeError):
        cause = error.__cause__
        if cause is not None and _has_user_frames(cause):
            return _kind(cause)
        return "TypeError" if isinstance(error, TypeError) else "ValueError"
    return _bounded(type_name(type(error)).removeprefix(_SNIPPETS))


def _bounded_lines(lines: Iterable[str]) -> list[str]:
    kept: deque[str] = deque()
    length = left_out = 0
    for line in map(_bounded, lines):
        kept.append(line)
        length += len(line)
        while length > MAX_TRACEBACK:
            length -= len(kept.popleft())
            left_out += 1
    if left_out:
        kept.appendleft(f"[{left_out} earlier entries are left out]\n")
    return list(kept)


def _bounded(text: str) -> str:
    if len(text) > MAX_TEXT:
        end = "\n" if text.endswith("\n") else ""
        text = f"{text[:MAX_TEXT]}... ({len(text)} characters){end}"
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _drop_tracebacks(error: BaseException) -> None:
    try:
        for each in islice(_related(error), MAX_CHAIN):
            each.__traceback__ = None
    except BaseException:  # as in format_traceback; then the exception keeps its frames
        return
