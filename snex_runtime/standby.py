"""The task that code which does not await finds itself in, as `asyncio.current_task` tells.

Such code is run in the callback that reads its request, where there is no task. Libraries want one
(`asyncio.timeout`, anyio), and to make one for each request would cost twenty times as much. So
there is one for all: it does nothing, and nothing that code does to it matters to others.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

from snex_node.system import tasks
from snex_runtime.contexts import Enter

__all__ = ["Standby"]

T = TypeVar("T")
A = TypeVar("A")

# Public for those who implement event loops; 0.15 us together.
_enter_task: Final[Callable[..., None]] = asyncio.tasks._enter_task  # noqa: SLF001 - see above
_leave_task: Final[Callable[..., None]] = asyncio.tasks._leave_task  # noqa: SLF001 - see above

_log = logging.getLogger(__name__)


class Standby:
    """The task, on the loop that runs; from `close` on it is done."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()
        self._task = _Task(_until(self._closing), loop=self._loop, name="snex")
        # For `all_tasks` it is none: who cancels those, or waits for them, means what runs.
        tasks.hide(self._task)
        setattr(self._task, "_log_destroy_pending", False)  # noqa: B010 - of C; as `gather` does

    def close(self) -> None:
        """End the task."""
        self._closing.set()

    def run(self, enter: Enter, function: Callable[[A], T], argument: A) -> T:
        """Call ``function`` in this task, and in the context of ``enter``."""
        loop, task = self._loop, self._task
        try:
            _enter_task(loop, task)
        except RuntimeError:
            return self._run_inside(enter, function, argument)
        try:
            result: T = enter(function, argument)
            return result
        finally:
            try:
                _leave_task(loop, task)
            except RuntimeError:  # user code has left it itself
                _log.warning("evaluated code has changed which task is the current one")

    def _run_inside(self, enter: Enter, function: Callable[[A], T], argument: A) -> T:
        """The same while a task of ours runs, which user code must not see."""
        ours: Any = asyncio.current_task()
        _leave_task(self._loop, ours)
        _enter_task(self._loop, self._task)
        try:
            result: T = enter(function, argument)
            return result
        finally:
            _leave_task(self._loop, self._task)
            _enter_task(self._loop, ours)


class _Task(asyncio.Task[None]):
    """The task of a `Standby`."""

    def set_name(self, value: object, /) -> None:
        """Nothing: the name that one caller gives it would be that of all."""


async def _until(closing: asyncio.Event) -> None:
    """Wait for ``closing``, whoever cancels that."""
    task: Any = asyncio.current_task()
    while not closing.is_set():
        try:
            await closing.wait()
        except asyncio.CancelledError:
            if sys.version_info >= (3, 11):
                task.uncancel()
