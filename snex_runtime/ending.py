"""The end of a process that runs the code of others, within a time that was promised.

What has nothing to do is gone at once. Code that cleans up has until `GRACE`: ``except`` and
``finally`` blocks, also those that await, and ``atexit`` functions. Code that blocks the event loop
is interrupted by ``KeyboardInterrupt``, which is how it comes to clean up. Threads and the children
of `multiprocessing`, which nothing can interrupt, are given `OTHERS`; they are not waited for.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from snex_node.system import forks
from snex_runtime import interrupts

PATIENCE: Final = 0.3
"""Seconds that code which blocks the event loop has to give it a turn, before it is interrupted."""

AGAIN: Final = 1.0
"""Seconds after which code that took no notice of that, and is not cleaning up, is interrupted
once more."""

STUCK: Final = 0.5
"""Seconds after which a main thread that has not even noticed its interruption is given up."""

OTHERS: Final = 0.4
"""Seconds that threads and child processes have when all else is over."""

GRACE: Final = 3.5
"""Seconds after which the process exits, whatever runs. The BEAM's users were promised five."""

LAST: Final = 4.5
"""Seconds after which the watcher kills what is left."""

_POLL: Final = 0.02


class Ending:
    """Ends this process. Made on the main thread while the loop runs; `finish` runs on another.

    ``end`` is called on the loop to begin with, and has to make it come to `over`. ``grace`` is the
    time that all of it may take, in seconds.
    """

    def __init__(self, end: Callable[[], None], *, grace: float = GRACE) -> None:
        self._end = end
        self._grace = grace
        self._loop = asyncio.get_running_loop()
        self._main = threading.get_ident()
        self._over = threading.Event()
        self._exiting = threading.Lock()
        if interrupts.SIGNAL is not None and threading.current_thread() is threading.main_thread():
            forks.set_handler(interrupts.SIGNAL, interrupts.on_ending)

    def over(self) -> None:
        """No code of users runs any more, but for threads and functions of `atexit`."""
        atexit.register(self._begin_exit)  # the last one to come is the first to be called
        self._over.set()

    def finish(self, status: int = 0) -> None:
        """End this process with ``status``, or with 1 when it took all of its time."""
        deadline = time.monotonic() + self._grace
        interrupts.begin_ending()
        self._call_soon(self._end)
        if self._interrupt_until_over(deadline):
            if self._over.is_set():
                self._wait_for_exit(OTHERS)
            _terminate_children()
            if self._over.is_set():
                self._wait_for_exit(OTHERS / 2)
            if self._exiting.acquire(blocking=False):
                # The main thread waits for others.
                self._run_exit_functions(deadline)
                os._exit(status)
        time.sleep(max(0.0, deadline - time.monotonic()))
        # Something does not end: a `finally`, an `atexit` function.
        if self._exiting.acquire(blocking=False):
            self._run_exit_functions(deadline + (LAST - GRACE) / 2)
        os._exit(status or 1)

    def _begin_exit(self) -> None:
        if not self._exiting.acquire(blocking=False):
            threading.Event().wait()  # the other thread does this, and exits

    def _wait_for_exit(self, seconds: float) -> None:
        """Return when the main thread has come to the functions of `atexit`, or time is up."""
        deadline = time.monotonic() + seconds
        while not self._exiting.locked() and time.monotonic() < deadline:
            time.sleep(_POLL)

    def _call_soon(self, function: Callable[[], None]) -> bool:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:  # the loop is closed: the program is ending
            return False
        return True

    def _interrupt_until_over(self, deadline: float) -> bool:
        """Interrupt what blocks the loop, until nothing can; False when the deadline came first."""
        interrupted = 0.0
        work: FrameType | None = None
        noticed: Callable[[], bool] | None = None
        turn = threading.Event()
        self._call_soon(turn.set)
        while not self._over.is_set():
            if time.monotonic() >= deadline:
                return False
            if turn.wait(PATIENCE):
                self._over.wait(_POLL)
                turn.clear()
                if not self._call_soon(turn.set):
                    return True
                continue
            running = interrupts.running_on(self._main)
            now = time.monotonic()
            if noticed is not None and not noticed():
                if now - interrupted >= STUCK:
                    return True  # in a call into C: no `finally` of it will ever run
                continue
            due = running is not work or now - interrupted >= AGAIN
            if due and not self._cleaning_up():
                noticed = interrupts.interrupt(self._main)
                work, interrupted = running, now
        return True

    def _cleaning_up(self) -> bool:
        """Whether the main thread is in an ``except`` or ``finally`` of somebody's end."""
        of_threads: Callable[[], dict[int, Any]] = getattr(sys, "_current_exceptions", dict)
        handled = of_threads().get(self._main)
        # Until 3.11 it is a tuple.
        error: BaseException | None = handled[1] if isinstance(handled, tuple) else handled
        while error is not None:
            if isinstance(error, KeyboardInterrupt | asyncio.CancelledError | GeneratorExit):
                return True
            error = error.__context__
        return False

    def _run_exit_functions(self, deadline: float) -> None:
        def run() -> None:
            atexit.unregister(self._begin_exit)
            atexit._run_exitfuncs()  # noqa: SLF001 - no public way runs them now
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()

        running = threading.Thread(target=run, daemon=True)
        running.start()
        running.join(max(0.0, deadline - time.monotonic()))


def _terminate_children() -> None:
    """End those whom `multiprocessing` waits for at exit."""
    processes = sys.modules.get("multiprocessing.process")
    for child in processes.active_children() if processes is not None else ():
        with contextlib.suppress(Exception):
            child.terminate()


__all__ = ["AGAIN", "GRACE", "LAST", "OTHERS", "PATIENCE", "STUCK", "Ending"]
