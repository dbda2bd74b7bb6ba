"""Running the event loop: asyncio's own, or uvloop.

They are nearly as fast here, as a connection reads and writes its socket itself: no difference with
one caller, nor with fifty and more, and uvloop up to 10 per cent ahead with ten. It takes 30 ms of
a start and 2 MB, so it is for those who ask for it: their own code may gain by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import selectors
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from importlib import import_module, util
from types import FrameType
from typing import Any, Final, TypeVar

from snex_node.system import forks, tasks

T = TypeVar("T")

_log = logging.getLogger(__name__)

CHOICES = ("auto", "asyncio", "uvloop")


def loop_factory(choice: str = "asyncio") -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes event loops of the kind ``choice``. ``ValueError`` when it is not installed.

    ``"auto"`` is uvloop where it is installed.
    """
    installed = util.find_spec("uvloop") is not None
    if choice == "uvloop" and not installed:
        raise ValueError("uvloop is not installed: pip install uvloop, or use --loop asyncio")
    if choice == "asyncio" or not installed:
        return asyncio.new_event_loop if sys.platform == "win32" else _SelectorLoop
    factory: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
    return factory


class _SelectorLoop(asyncio.SelectorEventLoop):
    """asyncio's loop, which `nest_asyncio` does not get to patch.

    Run inside of one of its callbacks, a loop that is patched finds our socket readable, cannot
    enter the callback again that would read it, and spins.
    """

    @property
    def _nest_patched(self) -> bool:
        raise RuntimeError(
            "nest_asyncio cannot patch the event loop of a snex-node: code that is evaluated may "
            "await at its top level (`return await f()`), and asyncio.run() works in a thread"
        )


_SelectorLoop.__module__ = asyncio.SelectorEventLoop.__module__


def loop_of_thread() -> asyncio.AbstractEventLoop:
    """An event loop for the thread that calls this, of asyncio's kind; whoever has it closes it."""
    selector = selectors.DefaultSelector()
    loop = _SelectorLoop(selector)
    # Only the poller of Linux is inherited by forked children.
    inherited = isinstance(selector, getattr(selectors, "EpollSelector", ()))
    forks.adopt_loop(loop, [selector.fileno()] if inherited else [])
    return loop


def run(main: Coroutine[Any, Any, T], choice: str = "asyncio") -> T:
    """Run ``main`` on a loop of its own, then end what it left running, and the loop.

    Raises what ``main`` raises, ``KeyboardInterrupt`` when Ctrl-C cancelled it, and ``ValueError``
    as `loop_factory` does.
    """
    try:
        make = loop_factory(choice)
    except ValueError:
        main.close()  # or Python complains that it was never awaited
        raise
    with forks.owning_loop(make) as loop:
        runner = Runner(loop)
        try:
            asyncio.set_event_loop(loop)
            return runner.run_main(main)
        finally:
            try:
                runner.run(end_tasks())
                runner.run(loop.shutdown_default_executor())
            finally:
                asyncio.set_event_loop(None)
                loop.close()


async def end_tasks() -> None:
    """Cancel all other tasks but the library's, wait for their clean-up, end async generators."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        if not tasks.is_left(task):
            task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


class Runner:
    """Runs coroutines on ``loop``, each to its end, whatever happens elsewhere on the loop.

    The loop serves many: ``sys.exit()``, ``KeyboardInterrupt`` and ``loop.stop()`` in a task or
    callback of user code would leave it as if it were over. They are that code's end, and not the
    process's.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: Final = loop
        self._interrupts = 0
        self._warned: dict[str, float] = {}

    def run_main(self, main: Coroutine[Any, Any, T]) -> T:
        """Run ``main``, which Ctrl-C cancels."""
        task = tasks.start(main, self.loop)
        with self._cancelled_at_interrupt(task):
            return self._run_until_done(task)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` to its end."""
        return self._run_until_done(tasks.start(work, self.loop))

    def _run_until_done(self, task: asyncio.Task[T]) -> T:
        stopped = False
        while True:
            try:
                if stopped:
                    # `nest_asyncio` would find the loop stopped for ever.
                    stopped = False
                    self.loop.call_soon(self.loop.stop)
                    self.loop.run_forever()
                return self.loop.run_until_complete(task)
            except BaseException as error:
                forks.end_if_inherited(self.loop, error)
                what = self._elsewhere(error)
                if task.done() or what is None:
                    raise
                stopped = isinstance(error, RuntimeError)
                self._warn(f"code on the event loop {what}")

    def _elsewhere(self, error: BaseException) -> str | None:
        """What code has done that ends the loop with ``error``; None when it is no such thing."""
        if isinstance(error, SystemExit):
            return "called sys.exit(): only that code has ended"
        if isinstance(error, KeyboardInterrupt):
            # Ctrl-C, the second time or with Python's own handler, is not code's.
            real = self._interrupts > 1 or (
                threading.current_thread() is threading.main_thread()
                and signal.getsignal(signal.SIGINT) is signal.default_int_handler
            )
            return None if real else "raised KeyboardInterrupt: only that code has ended"
        if isinstance(error, RuntimeError) and str(error).startswith("Event loop stopped before"):
            return "stopped the loop, which is not its own: it goes on"
        return None

    def _warn(self, text: str) -> None:
        """Log ``text``, not more often than once a second: code may do this at every turn."""
        now = time.monotonic()
        if now - self._warned.get(text, -math.inf) >= 1.0:
            self._warned[text] = now
            _log.warning("%s", text)

    @contextlib.contextmanager
    def _cancelled_at_interrupt(self, main: asyncio.Task[Any]) -> Iterator[None]:
        """Ctrl-C cancels ``main``, as under `asyncio.run` from Python 3.11 on.

        Raised in the middle of the loop's own work, KeyboardInterrupt leaves it in any state.
        """

        def on_interrupt(number: int, frame: FrameType | None) -> None:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt
            self.loop.call_soon_threadsafe(main.cancel)

        ours = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if ours:
            forks.set_handler(signal.SIGINT, on_interrupt)
        try:
            yield
        except asyncio.CancelledError:
            if self._interrupts:
                raise KeyboardInterrupt from None
            raise
        finally:
            if ours and forks.has_handler(signal.SIGINT):
                forks.reset_handler(signal.SIGINT, signal.default_int_handler)
