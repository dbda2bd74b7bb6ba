"""What a node tells of itself, for Prometheus: the numbers of ``:info``, by ``prometheus_client``.

They are gathered when somebody asks: a thread of the HTTP server has the event loop do that. While
code blocks the loop, the last numbers are told.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, Final

from snex_node.system import forks
from snex_node.system.addresses import is_loopback
from snex_runtime.latency import BOUNDS, Counts

__all__ = ["PATIENCE", "Exporter", "MetricsError", "check"]

PATIENCE: Final = 2.0
"""Seconds in which the event loop has to gather numbers; a scrape has ten, where not told."""

_EDGES: Final = BOUNDS[3:110:4]
"""Bounds of the histogram, each twice the one before: 4 us to 9 minutes."""

_GAUGES: Final = (
    ("environments", "environments", 1, "Environments that there are"),
    ("streams", "streams", 1, "Streams that there are"),
    ("objects", "objects", 1, "Objects that are kept for others"),
    ("requests_running", "requests_running", 1, "Requests that await or run in threads"),
    ("requests_queued", "requests_queued", 1, "Requests that wait for a thread or a worker"),
    ("threads", "threads", 1, "Threads for requests"),
    ("threads_busy", "threads_busy", 1, "Threads that run a request"),
    ("threads_lost", "threads_lost", 1, "Threads that take no notice of their interruption"),
    ("loop_lag_seconds", "loop_lag_ms", 1e-3, "How late the event loop was in the last seconds"),
    ("loop_blocked_seconds", "loop_blocked_ms", 1e-3, "For how long the event loop is blocked"),
    ("resident_bytes", "memory_bytes", 1, "Memory that is resident, of workers too"),
    ("uptime_seconds", "uptime_ms", 1e-3, "For how long the node runs"),
)
"""Names, keys of ``:info``, what one of them is, and what is said of it."""

_log: Final = logging.getLogger(__name__)

Gather = Callable[[], Awaitable[Mapping[Any, Any]]]
"""Gives what ``:info`` tells, on the event loop."""


class MetricsError(Exception):
    """Metrics cannot be served; the message says what to do."""


def check() -> Any:
    """The module ``prometheus_client``. Raises `MetricsError` where it is not installed."""
    try:
        return import_module("prometheus_client")
    except ImportError as error:
        raise MetricsError(
            f"--metrics needs prometheus_client ({error}): pip install 'snex-node[metrics]'"
        ) from None


class Exporter:
    """Serves what ``gather`` gives at ``host`` and ``port`` (0: a free one), from a thread, until
    it is closed. Raises `MetricsError`.
    """

    def __init__(self, host: str, port: int, gather: Gather) -> None:
        client = check()
        registry = client.CollectorRegistry()
        registry.register(_Collector(asyncio.get_running_loop(), gather))
        try:
            self._server, self._thread = client.start_wsgi_server(port, host, registry)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise MetricsError(
                f"cannot serve metrics at {host}, port {port} ({why}): choose another "
                "--metrics HOST:PORT"
            ) from None
        forks.keep_from_children(self._server.socket)
        shown = f"[{host}]" if ":" in host else host
        self.url: Final = f"http://{shown}:{self._server.server_port}/metrics"
        """Where they are."""
        level = logging.INFO if is_loopback(host) else logging.WARNING
        _log.log(level, "metrics are at %s, for whoever can reach that", self.url)

    async def close(self) -> None:
        """Serve no more; takes half a second at most."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Collector:
    """Makes metrics of what is gathered, in threads of the server."""

    def __init__(self, loop: asyncio.AbstractEventLoop, gather: Gather) -> None:
        self._loop = loop
        self._gather = gather
        self._last: Mapping[Any, Any] | None = None
        self._lock = threading.Lock()

    async def _gathered(self) -> Mapping[Any, Any]:
        return await self._gather()

    def collect(self) -> Iterator[Any]:
        """The metrics of now; of before, where the event loop does not gather them in time."""
        with self._lock:  # one at a time: strangers cannot have many of them wait for the loop
            work = asyncio.run_coroutine_threadsafe(self._gathered(), self._loop)
            try:
                self._last = work.result(PATIENCE)
                fresh = 1
            except (asyncio.TimeoutError, concurrent.futures.TimeoutError):
                work.cancel()
                fresh = 0
            told = self._last
        core = import_module("prometheus_client.core")
        what = "Whether these are the numbers of now: 0 while code blocks the event loop"
        yield core.GaugeMetricFamily("snex_fresh", what, fresh)
        if told is not None:
            yield from _metrics_of(core, told)


def _metrics_of(core: Any, told: Mapping[Any, Any]) -> Iterator[Any]:
    known = core.GaugeMetricFamily(
        "snex_node", "Which node it is", labels=("node", "version", "python")
    )
    known.add_metric([str(told.get(k)) for k in ("node", "version", "python_version")], 1)
    yield known
    for name, key, unit, what in _GAUGES:
        value = told.get(key)
        if value is not None:
            yield core.GaugeMetricFamily(f"snex_{name}", what, value * unit)
    yield from _latency(core, told.get("latency"))
    workers = told.get("workers")
    if workers is not None:
        yield core.GaugeMetricFamily("snex_workers", "Workers that there are", len(workers))
        what = "Workers started in the place of others"
        yield core.CounterMetricFamily("snex_worker_restarts", what, told["worker_restarts"])
    yield from _peers(core, told.get("peers", ()))


def _latency(core: Any, summary: Mapping[Any, Any] | None) -> Iterator[Any]:
    counts = Counts()
    counts.include(summary)
    yield core.CounterMetricFamily("snex_requests", "Requests that were answered", counts.count)
    buckets: list[tuple[str, float]] = []
    done = at = 0
    for edge in _EDGES:
        end = BOUNDS.index(edge) + 1
        done += sum(counts.buckets[at:end])
        at = end
        buckets.append((repr(edge / 1e9), done))
    buckets.append(("+Inf", counts.count))
    what = "From when a request was read to its answer; the sum is an estimate, by buckets"
    family = core.HistogramMetricFamily("snex_request_duration_seconds", what)
    family.add_metric([], buckets, counts.total / 1e9)
    yield family


def _peers(core: Any, peers: Any) -> Iterator[Any]:
    what = "Bytes from and to a node, since it was connected"
    traffic = core.CounterMetricFamily("snex_peer_bytes", what, labels=("peer", "direction"))
    what = "Bytes that wait to be written to a node"
    pending = core.GaugeMetricFamily("snex_peer_pending_bytes", what, labels=("peer",))
    for peer in peers:
        name = str(peer["node"])
        traffic.add_metric([name, "in"], peer["bytes_in"])
        traffic.add_metric([name, "out"], peer["bytes_out"])
        pending.add_metric([name], peer["pending"])
    yield traffic
    yield pending
