"""``snex.batched``: calls of one item each, from many evaluations, become calls with a list.

Items gather on one event loop, the home of a batched function: that of the node, where there is
one. Callers on other loops and threads have theirs brought there.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import inspect
import math
import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Any, Final, Generic, Protocol, TypeVar, overload

from snex_node.system import tasks
from snex_node.wire.describe import short, type_name
from snex_runtime import contexts, interface

__all__ = ["MAX_SIZE", "Batched", "batched"]

T = TypeVar("T")
R = TypeVar("R")

BatchFunction = Callable[[list[T]], Sequence[R | Exception] | Awaitable[Sequence[R | Exception]]]
"""What is batched: it takes a list of items, and returns a list with one result for each, in their
order. An exception among them is raised for the caller of that item."""

MAX_SIZE: Final = 100_000
"""Items that a batch may have at most."""


class Decorator(Protocol):
    """What ``batched(...)`` gives."""

    def __call__(self, function: BatchFunction[T, R], /) -> Batched[T, R]:
        """The function, batched."""


@overload
def batched(function: BatchFunction[T, R], /) -> Batched[T, R]: ...


@overload
def batched(*, max_size: int = 32, max_wait: float = 0.005, isolate: bool = True) -> Decorator: ...


def batched(
    function: BatchFunction[Any, Any] | None = None,
    /,
    *,
    max_size: int = 32,
    max_wait: float = 0.005,
    isolate: bool = True,
) -> Any:
    """Make of a function of a list, plain or ``async``, an async function of one item.

    Calls that come within ``max_wait`` seconds of the first, at most ``max_size``, become one call
    of the function, on the event loop of the node. It returns a list with one result for each item,
    in their order. An exception among them is raised for the caller of that item alone. When the
    function raises, the items are run one by one, so that only the bad one fails; with
    ``isolate=False`` all callers get the exception. A caller that is cancelled drops out, and so
    does the call when nobody waits for it any more. The time limit of one caller does not interrupt
    it.

    It is for functions, not for methods. Raises ``TypeError`` for what is none, and ``ValueError``
    for numbers that mean nothing.

    >>> @batched(max_size=32, max_wait=0.005)
    ... def embed(texts: list[str]) -> list[int]:
    ...     return [len(text) for text in texts]
    >>> async def one(text: str) -> int:
    ...     return await embed(text)
    >>> asyncio.run(one("four"))
    4
    """
    if type(max_size) is not int or not 1 <= max_size <= MAX_SIZE:
        raise ValueError(f"max_size is a number of items, 1 to {MAX_SIZE}, not {short(max_size)}")
    if not 0 <= max_wait < math.inf:
        raise ValueError(f"max_wait is a number of seconds, 0 or more, not {short(max_wait)}")
    if function is None:
        return functools.partial(batched, max_size=max_size, max_wait=max_wait, isolate=isolate)
    if not callable(function):
        raise TypeError(f"a function is batched, not {short(function)}")
    return Batched(function, max_size, float(max_wait), isolate)


class Batched(Generic[T, R]):
    """A batched function: call it with one item, and await the result.

    ``function`` is the one that takes a list, also as ``__wrapped__``.

    >>> async def both(embed: Batched[str, int]) -> list[int]:
    ...     return await asyncio.gather(embed("one"), embed("three"))
    """

    def __init__(
        self, function: BatchFunction[T, R], max_size: int, max_wait: float, isolate: bool
    ) -> None:
        self.function: Final = function
        self.max_size: Final = max_size
        self.max_wait: Final = max_wait
        self.isolate: Final = isolate
        self._lock = threading.Lock()
        self._home: _Home[T, R] | None = None
        functools.update_wrapper(self, function)

    async def __call__(self, item: T, /) -> R:
        """The result for ``item``.

        Raises what the function raises for it, ``TypeError`` when that returns no list, and
        ``ValueError`` when it has not one result for each item.
        """
        home = self._find_home()
        if home.loop is asyncio.get_running_loop():
            return await home.join(item)
        work = asyncio.run_coroutine_threadsafe(_joined(home, item), home.loop)
        return await asyncio.wrap_future(work)

    def sync(self, item: T, /, timeout: float | None = None) -> R:
        """The same for threads without an event loop; waits at most ``timeout`` seconds.

        Raises ``TimeoutError`` when they are over, and ``RuntimeError`` on the thread of the event
        loop, which would wait for itself, and where there is no event loop yet.
        """
        home = self._find_home()
        if home.loop is _running_loop():
            raise RuntimeError(
                f"{self!r}.sync would keep the event loop waiting for itself: await it instead"
            )
        work = asyncio.run_coroutine_threadsafe(_joined(home, item), home.loop)
        try:
            return work.result(timeout)
        except concurrent.futures.TimeoutError as error:
            if work.done() and not work.cancelled():
                raise  # the function's own
            work.cancel()
            raise TimeoutError(f"no result within {timeout} s") from error

    def __repr__(self) -> str:
        return f"<snex.batched {getattr(self, '__qualname__', type_name(type(self.function)))}>"

    def _find_home(self) -> _Home[T, R]:
        with self._lock:
            node = interface.node_loop()
            home = self._home
            if home is None or not home.is_alive() or (node is not None and home.loop is not node):
                loop = node or _running_loop()
                if loop is None:
                    raise RuntimeError(
                        f"there is no event loop that {self!r} could run on: await it once before, "
                        "or use it in code that a node evaluates"
                    )
                home = self._home = _Home(self, loop)
            return home


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def _joined(home: _Home[T, R], item: T) -> R:
    return await home.join(item)


class _Batch(Generic[T, R]):
    """Items that gather, or are under way; its first caller's context is that of the call."""

    __slots__ = ("context", "futures", "items", "task", "timer", "waiting")

    def __init__(self, timer: asyncio.TimerHandle | None, context: Context) -> None:
        self.items: list[T] = []
        self.futures: list[asyncio.Future[R]] = []
        self.timer = timer
        self.context = context
        self.task: asyncio.Task[None] | None = None
        self.waiting = 0

    def left(self, future: asyncio.Future[R]) -> None:
        """Somebody has his result, or waits no more; nobody waiting, the call is cancelled."""
        self.waiting -= 1
        if self.waiting == 0 and self.task is not None:
            self.task.cancel()


class _Home(Generic[T, R]):
    """Where items gather, and the function runs: one event loop."""

    def __init__(self, batched: Batched[T, R], loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._pid = os.getpid()
        self._batched = batched
        self._open: _Batch[T, R] | None = None

    def is_alive(self) -> bool:
        """Whether the loop runs still, and in this process: forked children have none of it."""
        return self._pid == os.getpid() and self.loop.is_running()

    def join(self, item: T) -> asyncio.Future[R]:
        """Put an item into the batch that gathers; on the loop. The future gets its result."""
        batch = self._open
        if batch is None:
            batch = self._open = _Batch(None, contexts.copy_for_thread())
            batch.timer = self.loop.call_later(self._batched.max_wait, self._send, batch)
        future: asyncio.Future[R] = self.loop.create_future()
        batch.items.append(item)
        batch.futures.append(future)
        if len(batch.items) >= self._batched.max_size:
            self._send(batch)
        return future

    def _send(self, batch: _Batch[T, R]) -> None:
        if batch.timer is not None:
            batch.timer.cancel()
        self._open = None
        pairs = zip(batch.items, batch.futures, strict=True)
        kept = [(item, future) for item, future in pairs if not future.done()]
        if not kept:
            return
        batch.items = [item for item, _ in kept]
        batch.futures = [future for _, future in kept]
        batch.waiting = len(kept)
        for future in batch.futures:
            future.add_done_callback(batch.left)
        batch.task = batch.context.run(tasks.start, self._run(batch))

    async def _run(self, batch: _Batch[T, R]) -> None:
        try:
            await self._answer(batch)
        except asyncio.CancelledError:  # nobody waits, or the function was cancelled by others
            for future in batch.futures:
                future.cancel()
            raise

    async def _answer(self, batch: _Batch[T, R]) -> None:
        results = await self._results(batch.items)
        if isinstance(results, BaseException) and self._batched.isolate and len(batch.items) > 1:
            for item, future in zip(batch.items, batch.futures, strict=True):
                if not future.done():
                    _settle([future], await self._results([item]))
        else:
            _settle(batch.futures, results)

    async def _results(self, items: list[T]) -> Sequence[R | Exception] | BaseException:
        """What the function returns, checked, or what it raises."""
        try:
            # A list of its own: what the function does to it is no matter.
            returned: Any = self._batched.function(list(items))
            if inspect.isawaitable(returned):
                returned = await returned
        except asyncio.CancelledError:
            raise
        except StopIteration as error:  # no future takes it
            return _runtime_error(error)
        except BaseException as error:  # `sys.exit` too: it ends the call, and not the loop
            return error
        return self._checked(items, returned)

    def _checked(self, items: list[T], returned: Any) -> Sequence[R | Exception]:
        expected = f"{self._batched!r} returns a list with one result for each item"
        if not isinstance(returned, list | tuple):
            return [TypeError(f"{expected}, not {short(returned)}")] * len(items)
        if len(returned) != len(items):
            wrong = ValueError(f"{expected}: {len(returned)} for {len(items)}")
            return [wrong] * len(items)
        return returned


def _runtime_error(error: StopIteration) -> RuntimeError:
    raised = RuntimeError("a batched function raised StopIteration")
    raised.__cause__ = error
    return raised


def _settle(
    futures: list[asyncio.Future[R]], results: Sequence[R | Exception] | BaseException
) -> None:
    """Give each who waits still his result."""
    for number, future in enumerate(futures):
        if not future.done():
            result = results if isinstance(results, BaseException) else results[number]
            if isinstance(result, StopIteration):
                result = _runtime_error(result)
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)
