"""Once a second: how late the event loop is, and which peers have been heard.

To look at the clock with each read would cost every request; a second's precision is enough to see
that a peer has gone silent.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from typing import Final, Protocol

__all__ = ["INTERVAL", "KEPT", "Pulse"]

INTERVAL: Final = 1.0
"""Seconds between two looks."""

KEPT: Final = 10
"""Looks that are remembered: `lag` is the worst of them."""


class Line(Protocol):
    """A connection."""

    @property
    def bytes_in(self) -> int:
        """Bytes that have come."""


class Peer(Protocol):
    """Another node."""

    @property
    def connection(self) -> Line | None:
        """The connection to it, if there is one."""


class Home(Protocol):
    """A node."""

    @property
    def remotes(self) -> Iterable[Peer]:
        """The others that it knows."""


class Pulse:
    """Looks at the event loop that runs and at the peers of ``node``, from now until `close`."""

    def __init__(self, node: Home) -> None:
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._late: deque[float] = deque(maxlen=KEPT)
        self._heard: dict[Line, tuple[int, float]] = {}
        self._due = 0.0
        self._timer: asyncio.TimerHandle
        self._wait()

    def _wait(self) -> None:
        self._due = self._loop.time() + INTERVAL
        self._timer = self._loop.call_at(self._due, self._beat)

    def _beat(self) -> None:
        self._late.append(self._overdue)
        self._listen()
        self._wait()

    def _listen(self) -> None:
        now = time.monotonic()
        lines = [each.connection for each in self._node.remotes if each.connection is not None]
        before = self._heard
        self._heard = {line: (line.bytes_in, now) for line in lines}
        for line, (count, at) in before.items():
            if line in self._heard and line.bytes_in == count:
                self._heard[line] = count, at

    @property
    def _overdue(self) -> float:
        return max(0.0, self._loop.time() - self._due)

    @property
    def lag(self) -> float:
        """Seconds by which the loop was late, at the worst of the last `KEPT` looks, or is now."""
        return max(self._overdue, *self._late, 0.0)

    def silence(self, line: Line) -> float:
        """Seconds since something came on ``line``, as far as looks tell; 0.0 when it came since
        the last one.
        """
        count, at = self._heard.get(line, (-1, 0.0))
        return time.monotonic() - at if count == line.bytes_in else 0.0

    def close(self) -> None:
        """Look no more."""
        self._timer.cancel()
