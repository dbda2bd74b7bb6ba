"""How far a loop has come, told to a process of the BEAM.

Source: "Progress" in elixir/guides/streams.md.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sized
from typing import Any, Final, Generic, TypeVar

from snex_node.wire.describe import short
from snex_node.wire.terms import Atom
from snex_runtime import interface
from snex_runtime.interface import NodeBackend
from snex_runtime.mailboxes import running

__all__ = ["EVERY", "Progress", "progress"]

T = TypeVar("T")

EVERY: Final = 0.1
"""Seconds between two messages, at least."""


class Progress(Generic[T]):
    """An iterable that tells how far it has come while it is iterated over, once.

    For ``for`` and ``async for``, as what it is made of.
    """

    def __init__(
        self, items: Iterable[T] | AsyncIterable[T], total: int | None, to: object
    ) -> None:
        self._items: Any = items
        self._total = total
        self.done = 0
        """How many items have been given."""
        self._began = time.monotonic()
        self._told = -EVERY
        backend = interface.get_backend() if to is not None else None
        if isinstance(backend, NodeBackend):
            self._backend: NodeBackend | None = backend
            self._to = backend.destination(to)
            self._ref = backend.node.make_ref()
        else:
            self._backend = None

    def _tell(self, *, at_once: bool = False) -> None:
        if self._backend is None:
            return
        seconds = time.monotonic() - self._began
        if not at_once and seconds - self._told < EVERY:
            return
        self._told = seconds
        message = (Atom("snex_progress"), self._ref, self.done, self._total, seconds)
        self._backend.post(self._to, message)

    def __iter__(self) -> Iterator[T]:
        self._tell(at_once=True)
        try:
            for item in self._items:
                yield item
                self.done += 1
                self._tell()
        finally:
            self._tell(at_once=True)

    async def __aiter__(self) -> AsyncIterator[T]:
        self._tell(at_once=True)
        try:
            async for item in self._items:
                yield item
                self.done += 1
                self._tell()
        finally:
            self._tell(at_once=True)


def progress(
    items: Iterable[T] | AsyncIterable[T], *, total: int | None = None, to: object = None
) -> Progress[T]:
    """``items``, as they are, with messages that tell how far they have come.

    ``{:snex_progress, ref, done, total, seconds}`` goes to ``to``, a pid or a name, at the begin,
    at the end, and at most every `EVERY` seconds between; ``ref`` is the same in all of them. By
    default it goes where the request says (the option ``progress:``), and nowhere if it does not.
    ``total`` is by default what ``len`` says, or None.

    Raises ``TypeError`` for what cannot be iterated over, or is no destination, and
    ``RuntimeError`` where no node is in this process and ``to`` is given.

    >>> sum(progress([1, 2, 3]))
    6
    """
    if not (hasattr(items, "__iter__") or hasattr(items, "__aiter__")):
        raise TypeError(f"progress takes what can be iterated over, not {short(items)}")
    if total is None and isinstance(items, Sized):
        total = len(items)
    if to is None:
        to = getattr(running(), "progress", None)
    return Progress(items, total, to)
