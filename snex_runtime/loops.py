"""Running the event loop: uvloop where it is installed, asyncio's own elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from importlib import import_module, util
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

_log = logging.getLogger(__name__)

CHOICES = ("auto", "asyncio", "uvloop")


def loop_factory(choice: str = "auto") -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes event loops of the kind ``choice``. ``ValueError`` when it is not installed."""
    installed = util.find_spec("uvloop") is not None
    if choice == "uvloop" and not installed:
        raise ValueError("uvloop is not installed: pip install uvloop, or use --loop asyncio")
    if choice == "asyncio" or not installed:
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
    return factory


def run(main: Coroutine[Any, Any, T], choice: str = "auto") -> T:
    """Run ``main`` on a loop of its own, then end what it left running, and the loop.

    Raises what ``main`` raises, ``KeyboardInterrupt`` when Ctrl-C cancelled it, and ``ValueError``
    as `loop_factory` does.
    """
    try:
        loop = loop_factory(choice)()
    except ValueError:
        main.close()  # or Python complains that it was never awaited
        raise
    try:
        asyncio.set_event_loop(loop)
        task = loop.create_task(main)
        with _cancelled_at_interrupt(task):
            return _run_until_done(loop, task)
    finally:
        try:
            _cancel_all(loop)
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            asyncio.set_event_loop(None)
            loop.close()


def _run_until_done(loop: asyncio.AbstractEventLoop, main: asyncio.Task[T]) -> T:
    """Run ``main`` to its end, whatever happens elsewhere on the loop.

    ``sys.exit()`` in a task or callback of user code leaves the loop as if it were over; it is that
    code's end, and not the process's.
    """
    while True:
        try:
            return loop.run_until_complete(main)
        except SystemExit:
            if main.done():
                raise
            _log.warning("code on the event loop called sys.exit(): only that code has ended")


@contextlib.contextmanager
def _cancelled_at_interrupt(main: asyncio.Task[Any]) -> Iterator[None]:
    """Ctrl-C cancels ``main``, as under `asyncio.run` from Python 3.11 on.

    Raised in the middle of the loop's own work, KeyboardInterrupt leaves it in any state.
    """
    interrupted = False

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = True
        main.get_loop().call_soon_threadsafe(main.cancel)

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    except asyncio.CancelledError:
        if interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        if ours and signal.getsignal(signal.SIGINT) is on_interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
