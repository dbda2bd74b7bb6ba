"""Code that blocks the event loop: it is noticed, told of, and ended when nobody waits for it.

The guardian's thread looks four times a second where the main thread is. When that is in code of
users, or with a request, it asks the event loop for a sign, and when none comes for `BLOCKED_AFTER`
the loop is blocked. Then others cannot be answered, and what they send is not read: so the guardian
reads it ahead, to learn whether the caller of what blocks has given up.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from snex_node.cluster.connection import Ahead
from snex_node.errors import NodeError
from snex_node.wire.control import (
    ControlMessage,
    DemonitorP,
    Exit,
    MonitorP,
    MonitorPExit,
    PayloadExit,
    PayloadMonitorPExit,
)
from snex_node.wire.gen import From
from snex_node.wire.terms import Atom, Pid, Reference
from snex_runtime import interrupts, journal, places
from snex_runtime.coroutines import Work
from snex_runtime.interrupts import Deadline, Interrupter, now
from snex_runtime.requests import Line, Request

__all__ = ["AGAIN", "BLOCKED_AFTER", "TOLD_AFTER", "Blocked", "Watch"]

BLOCKED_AFTER: Final = 0.2
"""Seconds without a sign after which the loop is blocked. The look before may have been 0.25 s
after the code began, and a caller that gave up meanwhile is to be noticed within half a second."""

AGAIN: Final = 0.1
"""Seconds between two looks while it is blocked."""

TOLD_AFTER: Final = 1.0
"""Seconds after which a blocked loop is told of in the log, once."""

_log: Final = logging.getLogger(__name__)


class Blocked(NamedTuple):
    """How the event loop is, and was, blocked."""

    seconds: float = 0.0
    """For how long now; 0.0 when it is not."""

    longest: float = 0.0
    """The longest time."""

    place: str | None = None
    """Where in the code it was the last time: file, line and function."""


class Host(Protocol):
    """Sends signals: a node."""

    def remote(self, name: str) -> Sends:
        """A node."""

    def make_ref(self) -> Reference:
        """A new reference."""


class Sends(Protocol):
    """A node that signals can be sent to."""

    def send(self, message: ControlMessage, payload: bytes = b"", sender: object = None) -> None:
        """Send one, from any thread. Raises `NodeError`."""


class UnderWay(Protocol):
    """Knows the work that awaits."""

    def on_loop(self) -> list[Work]:
        """What of it the event loop runs, from any thread."""


class Watch:
    """Watches the event loop that runs; `check` is called by the guardian's thread.

    Callers are monitored in the name of ``pid``.
    """

    def __init__(self, host: Host, pid: Pid, interrupter: Interrupter, works: UnderWay) -> None:
        self._host = host
        self._pid = pid
        self._interrupter = interrupter
        self._works = works
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self.blocked = Blocked()
        """How it is."""
        # When the sign was asked for that has not been seen yet, and when the loop gave it.
        self._asked: float | None = None
        self._given: float | None = None
        self._told = False
        self._monitors: dict[Pid, Reference] = {}
        self.abandoned: Final[set[Request]] = set()
        """Requests of which others know that nobody waits for them. From any thread."""

    def check(self) -> float | None:
        """Look after the loop; returns when to look again, if that is soon."""
        at = time.monotonic()
        if self._asked is None:
            if now.running is None and interrupts.running_on(self._thread) is None:
                return None
            return self._ask(at)
        if self._given is None:
            seconds = at - self._asked
            if seconds < BLOCKED_AFTER:
                return BLOCKED_AFTER - seconds
            self._is_blocked(seconds)
            return AGAIN
        if self.blocked.seconds:
            self._is_over(self._given - self._asked)
        self._asked = None
        return None

    def _ask(self, at: float) -> float | None:
        self._asked, self._given = at, None
        try:
            self._loop.call_soon_threadsafe(self._give)
        except RuntimeError:  # it is closed, as the process ends
            self._asked = None
            return None
        return BLOCKED_AFTER

    def _give(self) -> None:
        self._given = time.monotonic()

    def _is_blocked(self, seconds: float) -> None:
        running = now.running
        frame = sys._current_frames().get(self._thread)  # noqa: SLF001 - documented
        place = places.innermost(frame)
        self.blocked = Blocked(seconds, max(seconds, self.blocked.longest), place)
        if seconds >= TOLD_AFTER and not self._told and type(running) is not Deadline:
            self._told = True
            _log.warning(
                "the event loop has been blocked for %.1f s by %s, which runs for %s: all others "
                "wait. Await there, limit it with `timeout:`, or run it with `executor: :thread`",
                *(seconds, place, _caller_text(running)),
            )
        self._interrupter.give_up(list(self._given_up(running)))

    def _is_over(self, seconds: float) -> None:
        _, longest, place = self.blocked
        self.blocked = Blocked(0.0, max(seconds, longest), place)
        if self._told:
            self._told = False
            _log.info("the event loop goes on, after %.1f s", seconds)
        self._interrupter.give_up(())
        monitors, self._monitors = self._monitors, {}
        for pid, ref in monitors.items():
            self._send(pid, DemonitorP(self._pid, pid, ref))

    # --- callers --------------------------------------------------------------------------------

    def _given_up(self, running: object) -> Iterator[object]:
        """Of what may block the loop, that for which nobody waits any more."""
        gone: dict[Line, _Gone] = {}
        for each in [running] if running is not None else self._works.on_loop():
            work = each if isinstance(each, Work) else None
            request = each if work is None else work.request
            if not isinstance(request, Request):
                continue
            if takers := request.takers:
                if all(line is None or who in _ahead_of(line, gone) for line, who in takers):
                    yield each
                continue
            if request.caller is None:
                continue
            if request.goes_on if work is None else work.continues:
                continue
            if request in self.abandoned:
                yield each
            if request.watched_elsewhere:
                continue
            connection = request.remote.connection
            if connection is None:
                yield each
                continue
            if request.caller in _ahead_of(connection, gone):
                yield each
            elif work is None or work.monitor is None:
                self._monitor(request, request.caller)

    def _monitor(self, request: Request, caller: From) -> None:
        """Have the end of a caller told that does not monitor us, and so would not be missed."""
        pid, ref = caller.pid, caller.ref
        if pid in self._monitors or (ref is not None and request.process.is_monitored_with(ref)):
            return
        self._monitors[pid] = monitor = self._host.make_ref()
        self._send(pid, MonitorP(self._pid, pid, monitor))

    def _send(self, pid: Pid, message: ControlMessage) -> None:
        try:
            self._host.remote(pid.node).send(message, sender=self._pid)
        except NodeError:  # too much waits for its node: then it is lost, or will be
            self._monitors.pop(pid, None)


class _Gone:
    """Callers that wait no more, as what has come on a connection tells."""

    def __init__(self, ahead: Ahead) -> None:
        self._all = ahead.ended
        self._refs: set[bytes] = set()
        self._pids: set[Pid | Atom] = set()
        for signal in ahead.signals:
            if isinstance(signal, DemonitorP):
                self._refs.add(signal.ref.external)
            elif isinstance(signal, MonitorPExit | PayloadMonitorPExit | Exit | PayloadExit):
                self._pids.add(signal.from_)

    def __contains__(self, caller: From) -> bool:
        return self._all or caller.ref in self._refs or caller.pid in self._pids


def _ahead_of(line: Line, known: dict[Line, _Gone]) -> _Gone:
    """Who is gone by what has come on ``line``, which is looked through once."""
    if line not in known:
        known[line] = _Gone(line.look_ahead())
    return known[line]


def _caller_text(running: object) -> str:
    request = running.request if isinstance(running, Work) else running
    if not isinstance(request, Request):
        return "no request"
    return journal.caller_of(request)
