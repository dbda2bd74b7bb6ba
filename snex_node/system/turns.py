"""The event loop as a node uses it: tasks that end with it, and calls in turns of their own."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from snex_node.errors import NodeStartError
from snex_node.system import tasks

_T = TypeVar("_T")


class Turns:
    """The turns of the event loop that one node, ``name``, gets while it runs."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        # What tasks run in: whoever made us dial would be in the context of all that arrives.
        self._context = contextvars.Context()
        self._tasks: set[asyncio.Task[Any]] = set()
        # Tasks have been cancelled: one that began now would not be.
        self._ending = False

    @property
    def running(self) -> bool:
        """Whether the node has a loop."""
        return self._loop is not None

    @property
    def here(self) -> bool:
        """Whether this is the thread of the loop."""
        return threading.get_ident() == self._thread

    def begin(self) -> None:
        """Take the loop that runs."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._context = contextvars.copy_context()

    async def end_tasks(self) -> None:
        """Cancel what runs and wait for it; nothing begins any more."""
        self._ending = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def end(self) -> None:
        """Leave the loop."""
        self._loop = None
        self._ending = False

    def require(self) -> None:
        """Raise `NodeStartError` when the node does not run."""
        if self._loop is None:
            raise self._not_running()

    def run(self, work: Coroutine[object, object, _T]) -> asyncio.Task[_T]:
        """Start a task that ends with the node at the latest. Raises `NodeStartError`."""
        if self._loop is None or self._ending:
            work.close()
            raise self._not_running()
        task = self._context.copy().run(tasks.start, work, self._loop)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def next(self) -> None:
        """Wait for a turn: everything that was to be called soon has been."""
        await asyncio.sleep(0)

    def call_soon(self, function: Callable[..., object], *args: object) -> None:
        """Call ``function`` in a turn of its own, from any thread. Raises `NodeStartError`."""
        loop = self._loop
        if loop is None:
            raise self._not_running()
        if threading.get_ident() == self._thread:
            loop.call_soon(function, *args)
        else:
            loop.call_soon_threadsafe(function, *args)

    def _not_running(self) -> NodeStartError:
        return NodeStartError(f"{self._name} is not running: start it first")
