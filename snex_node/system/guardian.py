"""The guardian: an OS thread that keeps connections alive while the event loop is blocked.

User code may run for minutes without giving the loop a turn. Peers take a node that is silent for
their ``net_ticktime`` for lost, so ticks, and what waits to be written, cannot depend on the loop.

The thread needs the interpreter for a moment twice a second: pure Python code and calls that
release the GIL (sleeping, I/O, most of what runs long) leave it that; a single C call that keeps
the GIL does not.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Protocol

TICK_INTERVAL = 0.5
"""Seconds without a write after which a connection gets a tick.

The peer's net_ticktime is not on the wire and its ticks cannot be read while the loop is blocked,
so the interval serves a peer with a net_ticktime of 1 s (it counts four intervals of 0.25 s), at
the price of 8 bytes a second on an idle connection."""

_log = logging.getLogger(__name__)


Check = Callable[[], float | None]


class Ticking(Protocol):
    """A connection that must not be silent. Both methods are called on the guardian's thread."""

    def tick_due(self, now: float, interval: float) -> bool:
        """Whether output waits, or nothing has been written for ``interval`` seconds."""

    def tick(self) -> None:
        """Write what waits, or else a tick."""


class Guardian:
    """Watches the connections of one node. `watch` and `unwatch` may be called from any thread.

    ``interval`` is the silence on our side, in seconds, after which a connection gets a tick.
    """

    def __init__(self, interval: float = TICK_INTERVAL) -> None:
        self._interval = interval
        self._connections: set[Ticking] = set()
        self._checks: list[Check] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, a daemon: it never keeps a process alive. Once is enough."""
        if self._thread is not None:
            return
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="snex-guardian", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def watch(self, connection: Ticking) -> None:
        """Keep ``connection`` ticking until it is unwatched."""
        with self._lock:
            self._connections.add(connection)

    def unwatch(self, connection: Ticking) -> None:
        """Leave ``connection`` alone; unknown ones are ignored."""
        with self._lock:
            self._connections.discard(connection)

    def add_check(self, check: Check) -> None:
        """Call ``check`` on the guardian's thread, twice per interval, for what else it guards.

        It may return in how many seconds it is to be called again, if that is sooner.
        """
        with self._lock:
            self._checks.append(check)

    def remove_check(self, check: Check) -> None:
        """Call it no more; unknown ones are ignored."""
        with self._lock, contextlib.suppress(ValueError):
            self._checks.remove(check)

    def _run(self) -> None:
        # Half the interval, so that no connection is silent for longer than one and a half.
        pause = usual = self._interval / 2
        while not self._stopping.wait(pause):
            with self._lock:
                connections = list(self._connections)
                checks = list(self._checks)
            for connection in connections:
                self._tick(connection)
            pause = min((usual, *map(self._check, checks)))

    def _check(self, check: Check) -> float:
        """Call it; returns when it is to be called again."""
        try:
            soon = check()
        except Exception:
            _log.exception("a check of the guardian failed")
            return math.inf
        return math.inf if soon is None else soon

    def _tick(self, connection: Ticking) -> None:
        try:
            if connection.tick_due(time.monotonic(), self._interval):
                connection.tick()
        except Exception:
            # One connection's failure must not end the thread that keeps the others alive.
            _log.exception("%r: ticking failed", connection)
