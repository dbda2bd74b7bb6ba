"""Running the event loop: uvloop where it is installed, asyncio's own elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from importlib import import_module, util
from typing import Any, TypeVar

T = TypeVar("T")

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

    Raises what ``main`` raises, and ``ValueError`` as `loop_factory` does.
    """
    try:
        loop = loop_factory(choice)()
    except ValueError:
        main.close()  # or Python complains that it was never awaited
        raise
    try:
        asyncio.set_event_loop(loop)
        task = loop.create_task(main)
        try:
            return loop.run_until_complete(task)
        except (KeyboardInterrupt, SystemExit):
            if task.done() and not task.cancelled():
                task.exception()  # or it is reported as never retrieved, with a traceback
            raise
    finally:
        try:
            _cancel_all(loop)
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            asyncio.set_event_loop(None)
            loop.close()


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
