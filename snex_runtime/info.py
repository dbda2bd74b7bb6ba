"""What a runtime tells of itself: the answer to ``:info``."""

from __future__ import annotations

import asyncio
import os
import sys

from snex_node import __version__
from snex_node.processes.host import Host
from snex_node.wire.terms import Atom
from snex_runtime.blocking import Blocked
from snex_runtime.executors import Counts

__all__ = ["about"]

_IMPLEMENTATIONS = {"cpython": "CPython", "pypy": "PyPy"}


def about(
    node: Host,
    *,
    uptime: float,
    environments: int,
    requests_running: int,
    threads: Counts,
    blocked: Blocked,
) -> dict[Atom, object]:
    """Versions, process id, uptime (``uptime`` is in seconds, what is told in ms), traffic."""
    name = sys.implementation.name
    connections = [r.connection for r in node.remotes if r.connection is not None]
    return {
        Atom("node"): Atom(node.name),
        Atom("version"): __version__,
        Atom("python_version"): sys.version.split()[0],
        Atom("python_implementation"): _IMPLEMENTATIONS.get(name, name),
        Atom("loop"): type(asyncio.get_running_loop()).__module__.partition(".")[0],
        Atom("executable"): sys.executable,
        Atom("os_pid"): os.getpid(),
        Atom("uptime_ms"): int(uptime * 1000),
        Atom("environments"): environments,
        Atom("requests_running"): requests_running,
        Atom("requests_queued"): threads.queued,
        Atom("threads"): threads.threads,
        Atom("threads_busy"): threads.busy,
        Atom("threads_lost"): threads.lost,
        Atom("loop_blocked_ms"): int(blocked.seconds * 1000),
        Atom("loop_blocked_max_ms"): int(blocked.longest * 1000),
        Atom("loop_blocked_at"): blocked.place,
        Atom("nodes"): [Atom(name) for name in node.nodes],
        Atom("bytes_in"): sum(c.bytes_in for c in connections),
        Atom("bytes_out"): sum(c.bytes_out for c in connections),
    }
