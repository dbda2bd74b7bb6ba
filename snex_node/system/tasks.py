"""Tasks that a node lives by, out of reach of code that cancels whatever it finds.

``for task in asyncio.all_tasks(): task.cancel()`` is how scripts clean up after themselves. Code
that a node runs for others shares the event loop with the node, and with the requests of others,
and means neither.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")
_left: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()


def start(
    work: Coroutine[Any, Any, _T], loop: asyncio.AbstractEventLoop | None = None
) -> asyncio.Task[_T]:
    """Start a task that `asyncio.all_tasks` does not know: whoever starts it has to end it."""
    task = (loop or asyncio.get_running_loop()).create_task(work)
    hide(task)
    return task


def hide(task: asyncio.Task[Any]) -> None:
    """Take ``task`` out of `asyncio.all_tasks`."""
    asyncio._unregister_task(task)  # noqa: SLF001 - public for those who implement tasks


def leave(task: asyncio.Task[Any]) -> None:
    """Put ``task``, which is cancelled, back: who ends the event loop then waits for it."""
    asyncio._register_task(task)  # noqa: SLF001 - likewise
    _left.add(task)


def is_left(task: asyncio.Task[Any]) -> bool:
    """Whether ``task`` was left cancelled: once more, and it could not clean up."""
    return task in _left


__all__ = ["hide", "is_left", "leave", "start"]
