"""Ending code that runs in a thread of the pool.

A signal reaches the main thread alone; into any other an exception is put by CPython's
``PyThreadState_SetAsyncExc``, and raised between two instructions of whatever runs there then. It
is meant for the code of one request, and must not come to ours, or to the next request. So

* whoever interrupts looks where the thread is, and does nothing while that is in library code;
* the thread says when the code is over, waits then for who is about to interrupt it, and has what
  has not been raised yet raised where it is caught (`Interruption.settle`).

Until 3.12 CPython has all threads look for such an exception before every jump, until one has been
raised anywhere: where the thread is in a call into C, that costs all others much, and under a
tracer they hang. So whoever interrupts raises one in itself as well. The thread that it is meant
for looks again when it gets the interpreter back.

It ends ``while True``; a call into C, ``time.sleep`` and waits for locks among them, when that
returns.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable
from functools import lru_cache
from threading import Lock, get_ident
from typing import Any, Final

from snex_runtime import interrupts
from snex_runtime.interrupts import CLEANUP, GRACE, Deadline, Interrupted

__all__ = ["Interruption"]

Raiser = Callable[[int], bool]

_log: Final = logging.getLogger(__name__)


class Interruption:
    """Interrupts the work of ``limit``, in the thread that this says, once it is beyond that.

    Code that awaits is cancelled first, by ``cancel``, and interrupted when it blocks for longer
    than `GRACE`. What cleans up has `CLEANUP` seconds before it is interrupted as well.
    """

    __slots__ = (
        "_attempts",
        "_interrupting",
        "_unsettled",
        "cancel",
        "cancelled",
        "interrupted",
        "limit",
    )

    def __init__(self, limit: Deadline) -> None:
        self.limit = limit
        self.cancel: Callable[[], None] | None = None
        """Cancels what awaits, from any thread; None while nothing does."""
        self.cancelled = False
        self.interrupted = False
        """Whether anything has been raised."""
        self._interrupting = self._unsettled = False
        self._attempts = Lock()

    def stop(self) -> None:
        """Its time is over now, and it is interrupted as soon as it can be: see `attempt`."""
        if not self.cancelled and not self.interrupted:
            self.limit.deadline = min(self.limit.deadline, time.monotonic())
        self.attempt()

    def attempt(self) -> None:
        """Interrupt the work if it is due, and in code of users. Call it from other threads."""
        with self._attempts:
            limit = self.limit
            now = time.monotonic()
            if limit.over or limit.thread is None or now < limit.deadline:
                return
            if self.cancel is not None and not self.cancelled:
                self.cancelled = True
                limit.deadline = now + GRACE
                self.cancel()
            elif self._interrupt(limit.thread):
                limit.deadline = now + CLEANUP

    def _interrupt(self, thread: int) -> bool:
        raise_in = _raiser()
        if raise_in is None:
            return False
        # Whoever gets the interpreter may keep it for a while: what is seen of the thread is still
        # so when it is interrupted.
        time.sleep(0)
        if not interrupts.runs_user_code(thread, on_loop=self.cancel is not None):
            return False
        self._interrupting = True
        try:
            if not self.limit.over:
                self.interrupted = self._unsettled = raise_in(thread)
        finally:
            self._interrupting = False
        return True

    def settle(self) -> None:
        """The code is over: nothing is raised any more in this thread, which ran it."""
        while True:
            try:
                self.limit.over = True
                while self._interrupting:
                    time.sleep(0)
                raise_in = _raiser() if self._unsettled else None
                if raise_in is not None:
                    self._unsettled = False
                    raise_in(get_ident())
                return
            except Interrupted:
                continue


@lru_cache(maxsize=1)
def _raiser() -> Raiser | None:
    """What raises `Interrupted` in a thread; it tells whether there is that thread.

    In the thread that calls it, it is caught there, in the place of what has not been raised yet.
    """
    try:
        ctypes: Any = importlib.import_module("ctypes")
        # One of our own: others may use the function with types of theirs.
        prototype = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.py_object)
        function = prototype(("PyThreadState_SetAsyncExc", ctypes.pythonapi))
    except (ImportError, AttributeError) as error:
        _log.warning(
            "this Python cannot interrupt threads (%s): callers are answered in time, and code "
            "that runs in a thread goes on to its end; what awaits there is cancelled",
            error,
        )
        return None
    interrupted = ctypes.py_object(Interrupted)

    def raise_in(thread: int) -> bool:
        found = False
        try:
            # No function of Python's comes between these two.
            found = function(thread, interrupted) == 1
            function(get_ident(), interrupted)
            while True:
                time.sleep(0)
        except Interrupted:
            return found

    return raise_in
