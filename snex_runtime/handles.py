"""Processes that are kept by others: each by its handle, a process of the BEAM, until that ends.

Environments and objects are such.
"""

from __future__ import annotations

from typing import Protocol

from snex_node.processes.process import DOWN, NORMAL, BaseProcess
from snex_node.wire.terms import Pid, Reference

__all__ = ["Handles", "Kept"]


class Kept(Protocol):
    """A process with a handle."""

    handle: Pid | None

    def exit(self, reason: object) -> None:
        """End it."""

    def __hash__(self) -> int: ...


class Handles:
    """What keeps them. ``server`` monitors the handles: each once, however many it keeps."""

    def __init__(self, server: BaseProcess) -> None:
        self._server = server
        self._all: dict[Pid, tuple[Reference, set[Kept]]] = {}

    def set(self, kept: Kept, handle: Pid | None) -> None:
        """Make ``handle`` what keeps it; None keeps it until somebody ends it."""
        if kept.handle == handle:
            return
        self.release(kept)
        kept.handle = handle
        if handle is None:
            return
        held = self._all.get(handle)
        if held is None:
            self._all[handle] = held = (self._server.monitor(handle), set())
        held[1].add(kept)

    def release(self, kept: Kept) -> None:
        """It has ended, or has another handle."""
        handle, kept.handle = kept.handle, None
        if handle is None:
            return
        reference, others = self._all[handle]
        others.discard(kept)
        if not others:
            del self._all[handle]
            self._server.demonitor(reference)

    def down(self, message: tuple[object, ...]) -> bool:
        """Take a DOWN message of the server; False when it is about no handle."""
        if message[0] != DOWN or not isinstance(message[3], Pid):
            return False
        held = self._all.pop(message[3], None)
        if held is None:
            return False
        for kept in held[1]:
            kept.handle = None
            kept.exit(message[4] if message[4] == "noconnection" else NORMAL)
        return True
