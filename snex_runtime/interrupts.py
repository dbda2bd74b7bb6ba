"""Ending code that blocks the event loop beyond its time.

The guardian's thread sees that an evaluation is over its deadline and directs a signal at the main
thread; the handler, which runs there between two instructions of whatever is running, raises in
exactly that evaluation. It ends ``while True``, ``time.sleep``, waits for locks and child
processes at once; a single call into C that does not look at signals, when it returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from types import CodeType, FrameType
from typing import Final, TypeVar

import snex_node
from snex_node import services
from snex_node.system import forks
from snex_runtime import loops

T = TypeVar("T")

SIGNAL: Final = getattr(signal, "SIGURG", None)
"""The signal used. Nothing else in Python uses it, and it is ignored where no handler is set."""

GRACE: Final = 0.05
"""Seconds beyond its deadline after which code that awaits is taken to block the loop: before that
it is cancelled, when the loop has a turn."""

CLEANUP: Final = 1.0
"""Seconds that the ``finally`` blocks of cancelled work may block, before they too are interrupted;
on the event loop they may take any time that leaves the loop its turns."""

OWN: Final = tuple(
    os.path.dirname(os.path.abspath(file)) + os.sep for file in (snex_node.__file__, __file__)
)
"""Where files of this library are."""

# Where asyncio's loop calls a callback or a task, and, as uvloop has no frames, what runs the loop:
# neither is library code that user code called.
_LOOP: Final = asyncio.Handle._run.__code__  # noqa: SLF001 - its frames tell
_LOOPS: Final = loops.run.__code__.co_filename
_TURN: Final = asyncio.BaseEventLoop._run_once.__code__  # type: ignore[attr-defined]  # noqa: SLF001 - so do these


class Interrupted(BaseException):
    """Raised in code that runs beyond its deadline without giving way; ``why`` tells the caller."""

    def __init__(
        self, text: str = "the evaluation is over its deadline", why: str = "timeout"
    ) -> None:
        super().__init__(text)
        self.why = why


class Deadline:
    """Work that has to be done within ``timeout`` seconds (None: no limit); ``over`` when it is.

    ``thread`` is the identifier of the thread that it runs in, None for that of the event loop.
    """

    __slots__ = ("deadline", "over", "thread")

    def __init__(self, timeout: float | None) -> None:
        self.deadline = math.inf if timeout is None else time.monotonic() + timeout
        self.over = False
        self.thread: int | None = None

    @property
    def here(self) -> bool:
        """Whether it runs in this thread; one that was handed its context runs something else."""
        if self.thread is None:
            return threading.current_thread() is threading.main_thread()
        return self.thread == threading.get_ident()


class Now:
    """What runs on the event loop at this moment, whatever thread asks.

    A request while its handler runs, work while one of its steps does; None for all else.
    """

    __slots__ = ("running",)

    running: object

    def __init__(self) -> None:
        self.running = None


now: Final = Now()
"""That of this process."""

current: ContextVar[Deadline | None] = ContextVar("snex_deadline", default=None)
"""The deadline of what is running; tasks started by it inherit it."""


def checkpoint() -> None:
    """Raise `Interrupted` in an evaluation that blocks beyond its deadline.

    For the library's own functions that user code calls: they are not interrupted inside, and code
    that does little else would hardly ever be met outside of them.
    """
    work = current.get()
    if (
        work is not None
        and not work.over
        and time.monotonic() >= work.deadline + GRACE
        and work.here
    ):
        if work.thread is not None:
            work.deadline = time.monotonic() + CLEANUP
        raise Interrupted


class Interrupter:
    """Watches the work of one runtime; `check` is called by the guardian's thread.

    ``boundaries`` are the code objects that call user code: a frame of this library that is no
    boundary, met on the way out of the interrupted frame, is library code that user code called,
    and is left to finish.
    """

    def __init__(self, boundaries: Iterable[CodeType] = ()) -> None:
        self.blocking: Deadline | None = None
        """What runs without awaiting right now, if it has a deadline."""
        self._watched: set[Deadline] = set()
        # Requests and work whose callers have given up while it blocks the loop, and when it may be
        # interrupted; the guardian's thread puts in a whole new one.
        self._unwanted: dict[object, float] = {}
        _boundaries.update(boundaries)
        self._thread = threading.get_ident()
        self._before: object = None
        self.installed = False
        """Whether code that blocks can be ended: on the main thread of a POSIX system."""

    def install(self) -> None:
        """Set the signal handler, where there can be one."""
        if SIGNAL is None or threading.current_thread() is not threading.main_thread():
            return
        self._before = forks.set_handler(SIGNAL, self._on_signal)
        self.installed = True

    def remove(self) -> None:
        """Set the handler that was there before."""
        if self.installed and SIGNAL is not None:
            forks.reset_handler(SIGNAL, self._before)
            self.installed = False

    def watch(self, work: Deadline) -> None:
        """From now on `check` looks at ``work``, which awaits; `unwatch` it when it is over."""
        self._watched.add(work)

    def unwatch(self, work: Deadline) -> None:
        """Undo `watch`; again: nothing."""
        self._watched.discard(work)

    def run(self, work: Deadline, function: Callable[[], T]) -> T:
        """Call ``function``, which is interrupted when it goes beyond the deadline of ``work``."""
        token = current.set(work)
        before, self.blocking = self.blocking, work
        try:
            return function()
        finally:
            work.over = True
            self.blocking = before
            current.reset(token)

    def give_up(self, running: Iterable[object]) -> None:
        """End what blocks the loop, if it is one of ``running``, of which nobody waits any more.

        From another thread; again and again, as it may be in library code. None: it is over.
        """
        before = self._unwanted
        self._unwanted = {each: before.get(each, 0.0) for each in running}
        if self._unwanted and self.installed and SIGNAL is not None and not _ending:
            signal.pthread_kill(self._thread, SIGNAL)

    def check(self) -> None:
        """Signal the main thread when something there is over its deadline."""
        if not self.installed or SIGNAL is None or _ending:
            return
        at = time.monotonic()
        blocking = self.blocking
        if (blocking is not None and at >= blocking.deadline) or any(
            at >= work.deadline + GRACE and not work.over for work in _snapshot(self._watched)
        ):
            signal.pthread_kill(self._thread, SIGNAL)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        on_ending(number, frame)
        work = current.get()
        if work is not None and work.over:
            return
        at = time.monotonic()
        if work is not None and at >= work.deadline and _user_frame(frame) is not None:
            raise Interrupted
        unwanted = self._unwanted
        if unwanted and not _ending:
            found = now.running if now.running in unwanted else work
            if found in unwanted and at >= unwanted[found] and _user_frame(frame) is not None:
                unwanted[found] = at + CLEANUP
                raise Interrupted("nobody waits for it any more", "its caller has given up")


_boundaries: Final = {Interrupter.run.__code__, _LOOP, *services.BOUNDARIES}


def _user_frame(frame: FrameType | None) -> FrameType | None:
    """The outermost frame of the user code that runs in ``frame``; None when library code does."""
    found = None
    while frame is not None:
        code = frame.f_code
        if code in _boundaries or code.co_filename == _LOOPS:
            return found
        if code is _TURN or code.co_filename.startswith(OWN):
            return None
        found = frame
        frame = frame.f_back
    return found


def _in_callback(frame: FrameType | None) -> bool:
    """Whether the loop may be in a callback that is a function in C, and has no frame."""
    return frame is not None and (frame.f_code is _LOOP or frame.f_code.co_filename == _LOOPS)


# --- the end of the process -----------------------------------------------------------------------

_ending = False
_handled = 0


def begin_ending() -> None:
    """From now on nothing has a deadline of its own: `interrupt` ends what blocks."""
    global _ending  # noqa: PLW0603 - a process ends once
    _ending = True


def on_ending(number: int, frame: FrameType | None) -> None:
    """The handler of `SIGNAL` where there is no `Interrupter`: raises in user code at the end."""
    global _handled  # noqa: PLW0603 - there is one main thread
    _handled += 1
    if _ending and (_user_frame(frame) is not None or _in_callback(frame)):
        raise KeyboardInterrupt("this process ends")


def interrupt(thread: int) -> Callable[[], bool]:
    """Raise ``KeyboardInterrupt`` in the user code that runs on ``thread``, the main one.

    What is returned tells whether the thread has taken notice: it does not while it is in C code.
    """
    before = _handled
    if SIGNAL is not None:
        with contextlib.suppress(ProcessLookupError):
            signal.pthread_kill(thread, SIGNAL)
    return lambda: _handled != before


def running_on(thread: int) -> FrameType | None:
    """The outermost frame of the user code that runs on ``thread``, if any does."""
    return _user_frame(sys._current_frames().get(thread))  # noqa: SLF001 - documented


def runs_user_code(thread: int, *, on_loop: bool) -> bool:
    """Whether ``thread``, one of a pool, is in code of users, and not in library code.

    ``on_loop``: it runs an event loop for that code, whose own work is no user's. Any other loop
    there is part of that code.
    """
    frame = sys._current_frames().get(thread)  # noqa: SLF001 - documented
    if on_loop:
        return _user_frame(frame) is not None
    called = False
    while frame is not None:
        if frame.f_code.co_filename.startswith(OWN):
            return called and frame.f_code in _boundaries
        called = True
        frame = frame.f_back
    return False


def _snapshot(watched: set[Deadline]) -> list[Deadline]:
    """A list of what another thread changes; made by one C call, it is never half of a change."""
    return list(watched)


__all__ = [
    "CLEANUP",
    "GRACE",
    "OWN",
    "SIGNAL",
    "Deadline",
    "Interrupted",
    "Interrupter",
    "Now",
    "begin_ending",
    "checkpoint",
    "current",
    "interrupt",
    "now",
    "on_ending",
    "running_on",
    "runs_user_code",
]
