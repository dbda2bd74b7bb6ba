"""Handles of shared memory that other processes have lent: ``Snex.Shared`` in Elixir.

A handle stands for a binary. What it names is mapped where it is decoded, and who has lent it is
told when the last view of it is gone.

Source: "Shared memory" in docs/architecture.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from snex_node.errors import NodeError
from snex_node.wire.terms import Atom, Pid
from snex_runtime.regions import HEADER, RegionError, open_region

__all__ = ["NAME", "Drops", "as_binary", "load", "with_data"]

NAME: Final = "Elixir.Snex.Shared"
"""The name of the struct."""

_DROPPED: Final = Atom("snex_shared_dropped")

Tell = Callable[[Pid, bytes], None]

_tell: Tell | None = None
_numbers: Final = itertools.count()
_mapped: Final[dict[int, Callable[[], object]]] = {}
"""What takes back that the end of each view is told."""


def load(handle: Mapping[Any, object]) -> memoryview:
    """The data that a handle stands for, with these fields: a view that is not to be changed.

    Raises `RegionError`, a ``ValueError``, where it cannot be had.
    """
    fields = {str(name): value for name, value in handle.items()}
    process, file, size = fields.get("os_pid"), fields.get("fd"), fields.get("size")
    name, owner = fields.get("id"), fields.get("owner")
    if not (type(process) is type(file) is type(size) is int and isinstance(owner, Pid)):
        raise RegionError("shared data cannot be read: the handle is none")
    if not isinstance(name, bytes | memoryview):
        raise RegionError("shared data cannot be read: the handle has no id")
    try:
        mapped = open_region(process, file, bytes(name), size)
    except RegionError as error:
        raise RegionError(f"shared data of {size} bytes cannot be read: {error}") from None
    _await_end(mapped, owner, bytes(name))
    return memoryview(mapped).toreadonly()[HEADER:]


def with_data(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a struct, with its ``data`` in place of a handle. Raises `RegionError`."""
    data = fields.get("data")
    if isinstance(data, dict) and data.get("__struct__") == NAME:
        fields["data"] = load(data)
    return fields


def as_binary(handle: Mapping[Any, object], binary_as: str) -> str | bytes | bytearray:
    """The data of a handle as what a binary becomes. Raises ``ValueError``."""
    data = load(handle)
    if binary_as == "str":
        return str(data, "utf-8")
    return bytearray(data) if binary_as == "bytearray" else bytes(data)


def _await_end(mapped: object, owner: Pid, name: bytes) -> None:
    number = next(_numbers)
    finalizer = weakref.finalize(mapped, _ended, number, owner, name)
    finalizer.atexit = False
    _mapped[number] = finalizer.detach


def _ended(number: int, owner: Pid, name: bytes) -> None:
    """In any thread, wherever that was interrupted: what is locked here may be locked already."""
    _mapped.pop(number, None)
    tell = _tell
    if tell is not None:
        tell(owner, name)


def _keep() -> None:
    """A forked child will see what is mapped now: it must never be used again for other data."""
    for detach in list(_mapped.values()):
        detach()
    _mapped.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_keep)


class Sends(Protocol):
    """Sends messages to the nodes that it is connected to: a node."""

    @property
    def nodes(self) -> list[str]:
        """Their names."""

    def send(self, to: Any, message: object) -> None:
        """Send ``message`` to a process. Raises `NodeError`."""


class Drops:
    """Tells lenders through ``node``, on the event loop, what is not used any more.

    There is one for a process, the last; `close` it.
    """

    def __init__(self, node: Sends) -> None:
        global _tell  # noqa: PLW0603 - finalizers know nothing else
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Pid, bytes]] = deque()
        _tell = self.told

    def told(self, owner: Pid, name: bytes) -> None:
        """What ``owner`` has lent as ``name`` is dropped. From any thread, at any moment."""
        self._waiting.append((owner, name))
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._send)

    def _send(self) -> None:
        nodes = self._node.nodes
        while self._waiting:
            owner, name = self._waiting.popleft()
            if owner.node in nodes:  # else it has given up what it lent
                with contextlib.suppress(NodeError):
                    self._node.send(owner, (_DROPPED, name))

    def close(self) -> None:
        """Tell nobody any more."""
        global _tell  # noqa: PLW0603
        if _tell == self.told:
            _tell = None
