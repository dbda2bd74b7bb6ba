"""What a node tells of itself, for Prometheus: over HTTP, as a scraper has it."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from snex_node.wire.terms import Atom
from snex_runtime import metrics
from snex_runtime.latency import BOUNDS, Counts
from snex_runtime.metrics import Exporter, MetricsError
from tests.support.pair import pair
from tests.support.ports import free_port


class Scraped:
    """What was told, by the names and labels of samples."""

    def __init__(self, text: str) -> None:
        self.types: dict[str, str] = {}
        self.samples: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        for family in text_string_to_metric_families(text):
            self.types[family.name] = family.type
            assert family.documentation
            for sample in family.samples:
                self.samples[sample.name, tuple(sorted(sample.labels.items()))] = sample.value

    def get(self, name: str, **labels: str) -> float | None:
        return self.samples.get((name, tuple(sorted(labels.items()))))


def fetch(url: str) -> Scraped:
    with urllib.request.urlopen(url, timeout=20.0) as answer:
        return Scraped(answer.read().decode())


async def scrape(exporter: Exporter) -> Scraped:
    return await asyncio.to_thread(fetch, exporter.url)


class Serving:
    """Exporters of what a test says, which are closed after it."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.told: dict[Atom, object] = {}

    async def gather(self) -> dict[Atom, object]:
        return self.told

    def start(self, gather: Any = None, host: str = "127.0.0.1", port: int = 0) -> Exporter:
        exporter = Exporter(host, port, gather or self.gather)
        self._stack.push_async_callback(exporter.close)
        return exporter


@pytest.fixture
async def serving() -> AsyncIterator[Serving]:
    async with AsyncExitStack() as stack:
        yield Serving(stack)


async def test_of_a_runtime(serving: Serving) -> None:
    async with pair() as both:

        async def gather() -> dict[Atom, object]:
            return both.server.info()

        exporter = serving.start(gather)
        for _ in range(5):
            await both.run("return 1")
        await both.call("make_env", {})
        told = await scrape(exporter)
        assert told.get("snex_fresh") == 1
        assert told.get("snex_requests_total") == 6
        assert told.get("snex_environments") == 1
        assert told.get("snex_requests_running") == told.get("snex_requests_queued") == 0
        assert told.get("snex_request_duration_seconds_count") == 6
        assert told.get("snex_request_duration_seconds_bucket", le="+Inf") == 6
        assert 2**20 < (told.get("snex_resident_bytes") or 0) < 2**40
        assert 0 <= (told.get("snex_loop_lag_seconds") or 0) < 60
        assert 0 < (told.get("snex_uptime_seconds") or 0) < 60
        peer = str(both.peer.name)
        assert (told.get("snex_peer_bytes_total", peer=peer, direction="in") or 0) > 100
        assert (told.get("snex_peer_bytes_total", peer=peer, direction="out") or 0) > 100
        assert told.get("snex_peer_pending_bytes", peer=peer) == 0
        assert told.get("snex_workers") is None
        assert told.types["snex_requests"] == "counter"
        assert told.types["snex_request_duration_seconds"] == "histogram"


async def test_of_workers(serving: Serving) -> None:
    names = {"node": "py@h", "version": "1.2.3", "python_version": "3.13.1"}
    workers = {"workers": [{}, {}], "worker_restarts": 3, "loop_lag_ms": 1500}
    serving.told = {Atom(name): value for name, value in {**names, **workers}.items()}
    told = await scrape(serving.start())
    assert told.get("snex_node", node="py@h", version="1.2.3", python="3.13.1") == 1
    assert (told.get("snex_workers"), told.get("snex_worker_restarts_total")) == (2, 3)
    assert told.get("snex_loop_lag_seconds") == 1.5
    assert told.get("snex_requests_total") == 0
    assert told.get("snex_environments") is None


async def test_the_histogram(serving: Serving) -> None:
    counts = Counts()
    for bucket in (0, 3, 4, 40, len(BOUNDS) - 1):
        counts.buckets[bucket] += 1
    serving.told = {Atom("latency"): counts.summary()}
    told = await scrape(serving.start())
    buckets = {
        float(dict(labels)["le"]): value
        for (name, labels), value in told.samples.items()
        if name == "snex_request_duration_seconds_bucket"
    }
    assert list(buckets.values()) == sorted(buckets.values())
    edges = sorted(buckets)
    assert edges[0] == 4096 / 1e9
    assert all(2 * low == pytest.approx(high) for low, high in pairwise(edges[:-1]))
    assert [buckets[edges[at]] for at in (0, 1, -2, -1)] == [2, 3, 4, 5]
    assert told.get("snex_request_duration_seconds_sum") == pytest.approx(counts.total / 1e9)


async def test_while_the_loop_is_blocked(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last numbers are told, and that they are old."""
    monkeypatch.setattr(metrics, "PATIENCE", 0.1)
    serving.told = {Atom("environments"): 7}
    exporter = serving.start()
    found: list[Scraped] = []
    thread = threading.Thread(target=lambda: found.append(fetch(exporter.url)))
    thread.start()
    thread.join()  # this blocks the loop
    assert found.pop().get("snex_fresh") == 0
    assert (await scrape(exporter)).get("snex_fresh") == 1
    thread = threading.Thread(target=lambda: found.append(fetch(exporter.url)))
    thread.start()
    thread.join()
    assert (found[0].get("snex_fresh"), found[0].get("snex_environments")) == (0, 7)


async def test_the_port_is_taken(serving: Serving) -> None:
    port = free_port()
    serving.start(port=port)
    with pytest.raises(MetricsError, match=rf"at 127.0.0.1, port {port} \(Address .* choose"):
        serving.start(port=port)


async def test_it_is_not_installed(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MetricsError, match=r"pip install 'snex-node\[metrics\]'"):
        serving.start()


@pytest.mark.parametrize(
    ("host", "level"), [("127.0.0.1", logging.INFO), ("0.0.0.0", logging.WARNING)]
)
async def test_who_can_reach_it_is_logged(
    serving: Serving, caplog: pytest.LogCaptureFixture, host: str, level: int
) -> None:
    caplog.set_level(logging.INFO, metrics.__name__)
    exporter = serving.start(host=host)
    assert [record.levelno for record in caplog.records] == [level]
    assert exporter.url in caplog.text
