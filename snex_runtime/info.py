"""What a runtime tells of itself: the answers to ``:info`` and ``{:info, :environments}``."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FrameType
from typing import Final, Protocol

from snex_node import __version__
from snex_node.processes.host import Host
from snex_node.wire.terms import Atom, Pid
from snex_runtime import places
from snex_runtime.blocking import Blocked
from snex_runtime.coroutines import Work
from snex_runtime.environments import Environment
from snex_runtime.executors import Counts
from snex_runtime.latency import Counts as Latencies
from snex_runtime.namespace import Variables
from snex_runtime.pulse import Pulse
from snex_runtime.sizes import Budget, size_of
from snex_runtime.watcher import resident_memory

__all__ = ["MAX_ENVIRONMENTS", "MAX_RUNNING", "about", "environments", "peers", "running"]

MAX_RUNNING: Final = 100
"""Requests under way that are told of one by one, the oldest."""

MAX_ENVIRONMENTS: Final = 1000
"""Environments that are told of one by one, the oldest."""

_IMPLEMENTATIONS = {"cpython": "CPython", "pypy": "PyPy"}


def about(
    node: Host,
    *,
    uptime: float,
    environments: int,
    streams: int,
    objects: int,
    requests_running: int,
    threads: Counts,
    blocked: Blocked,
    pulse: Pulse,
    works: Sequence[Work] = (),
    latency: Latencies,
) -> dict[Atom, object]:
    """Versions, process id, uptime (``uptime`` is in seconds, what is told in ms), traffic, and
    what runs: ``works``.
    """
    name = sys.implementation.name
    connections = [r.connection for r in node.remotes if r.connection is not None]
    told: dict[str, object] = {
        "node": Atom(node.name),
        "version": __version__,
        "python_version": sys.version.split()[0],
        "python_implementation": _IMPLEMENTATIONS.get(name, name),
        "loop": type(asyncio.get_running_loop()).__module__.partition(".")[0],
        "executable": sys.executable,
        "os_pid": os.getpid(),
        "uptime_ms": int(uptime * 1000),
        "environments": environments,
        "streams": streams,
        "objects": objects,
        "requests_running": requests_running,
        "requests_queued": threads.queued,
        "threads": threads.threads,
        "threads_busy": threads.busy,
        "threads_lost": threads.lost,
        "loop_blocked_ms": int(blocked.seconds * 1000),
        "loop_blocked_max_ms": int(blocked.longest * 1000),
        "loop_blocked_at": blocked.place,
        "loop_lag_ms": int(pulse.lag * 1000),
        "memory_bytes": resident_memory(os.getpid()) or None,
        "latency": _named(latency.summary()),
        "running": running(works),
        "nodes": [Atom(name) for name in node.nodes],
        "peers": peers(node, pulse),
        "bytes_in": sum(c.bytes_in for c in connections),
        "bytes_out": sum(c.bytes_out for c in connections),
    }
    return _named(told)


def running(works: Iterable[Work]) -> list[dict[Atom, object]]:
    """What is under way, the oldest first: who asked for it, for how long, and where it is."""
    now = time.perf_counter_ns()
    frames = sys._current_frames()  # noqa: SLF001 - documented
    oldest = sorted(works, key=lambda work: work.request.began)[:MAX_RUNNING]
    return [
        _named(
            {
                "caller": None if work.request.caller is None else work.request.caller.pid,
                "kind": Atom(work.request.called),
                "age_ms": (now - work.request.began) // 1_000_000,
                "where": _where(work, frames.get) or work.request.place,
                "environment": _environment_of(work),
            }
        )
        for work in oldest
    ]


def _where(work: Work, frame_of: Callable[[int], FrameType | None]) -> str | None:
    if not work.threaded:
        return places.awaited(work.awaited)
    return None if work.thread is None else places.of_user(frame_of(work.thread))


def _environment_of(work: Work) -> Pid | None:
    process = work.request.process
    return None if process.variables is None else process.pid


def peers(node: Host, pulse: Pulse) -> list[dict[Atom, object]]:
    """The connections of ``node``: traffic, what waits to be written, since when, and for how long
    nothing has come.
    """
    now = time.monotonic()
    lines = [(r.name, r.connection) for r in node.remotes if r.connection is not None]
    return [
        _named(
            {
                "node": Atom(name),
                "bytes_in": line.bytes_in,
                "bytes_out": line.bytes_out,
                "pending": line.pending,
                "connected_ms": int((now - line.since) * 1000),
                "last_heard_ms": int(pulse.silence(line) * 1000),
            }
        )
        for name, line in lines
    ]


class Kept(Protocol):
    """The environments of a runtime."""

    def all(self) -> list[Environment]:
        """All of them."""

    def own(self, environment: Environment) -> Variables:
        """The variables of ``environment`` that neither every one has nor the root's are."""


def environments(kept: Kept) -> list[dict[Atom, object]]:
    """What environments there are, the oldest first: who keeps each, and how much it holds."""
    oldest = sorted(kept.all(), key=lambda each: each.since)[:MAX_ENVIRONMENTS]
    budget = Budget()
    now = time.monotonic()
    told = []
    for left, environment in zip(range(len(oldest), 0, -1), oldest, strict=True):
        own = kept.own(environment)
        share = budget.share(left)
        granted = share.objects
        size = size_of(own.values(), share)
        budget.objects -= granted - share.objects
        told.append(
            _named(
                {
                    "env": environment.pid,
                    "handle": environment.handle,
                    "age_ms": int((now - environment.since) * 1000),
                    "variables": len(own),
                    "bytes": size.bytes,
                    "bytes_complete": size.complete,
                }
            )
        )
    return told


def _named(values: Mapping[str, object]) -> dict[Atom, object]:
    return {Atom(name): value for name, value in values.items()}
