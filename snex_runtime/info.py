"""What a runtime tells of itself: the answer to ``:info``."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from importlib import import_module
from typing import Any

from snex_node.processes.host import Host
from snex_node.wire.terms import Atom

__all__ = ["about", "version"]


def about(
    node: Host, *, uptime: float, environments: int, requests_running: int
) -> dict[Atom, object]:
    """Versions, process id, uptime (``uptime`` is in seconds, what is told in ms), traffic."""
    connections = [r.connection for r in node.remotes if r.connection is not None]
    return {
        Atom("node"): Atom(node.name),
        Atom("version"): version(),
        Atom("python_version"): platform.python_version(),
        Atom("python_implementation"): platform.python_implementation(),
        Atom("loop"): type(asyncio.get_running_loop()).__module__.partition(".")[0],
        Atom("executable"): sys.executable,
        Atom("os_pid"): os.getpid(),
        Atom("uptime_ms"): int(uptime * 1000),
        Atom("environments"): environments,
        Atom("requests_running"): requests_running,
        Atom("nodes"): [Atom(name) for name in node.nodes],
        Atom("bytes_in"): sum(c.bytes_in for c in connections),
        Atom("bytes_out"): sum(c.bytes_out for c in connections),
    }


def version() -> str:
    """The version of this package; ``unknown`` where it runs from its source alone."""
    global _version  # noqa: PLW0603 - read once
    if _version is None:
        # Imported only when it is asked for: it takes 1.2 MiB and 20 ms.
        metadata: Any = import_module("importlib.metadata")
        try:
            _version = str(metadata.version("snex-node"))
        except metadata.PackageNotFoundError:
            _version = "unknown"
    return _version


_version: str | None = None
