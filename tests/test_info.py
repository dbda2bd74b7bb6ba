"""What a runtime tells of itself."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import AsyncIterator
from importlib import metadata
from pathlib import Path

import pytest

import snex_node
from tests.support.calling import (
    OK,
    A,
    Caller,
    calling,
)


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    async with calling() as made:
        yield made


@pytest.fixture
async def started(caller: Caller) -> Caller:
    """A caller that knows when code has begun to wait: ``began.set()`` in that code."""
    caller.server.provide(began=asyncio.Event(), ended=asyncio.Event(), asyncio=asyncio)
    return caller


class TestInfo:
    async def test_info(self, caller: Caller) -> None:
        await caller.env()
        ok, info = await caller.call(A("info"))
        assert ok == OK
        assert info[A("os_pid")] == os.getpid()
        assert info[A("python_version")].decode() == platform.python_version()
        assert info[A("node")] == caller.server.node.name
        assert info[A("nodes")] == [caller.node.name]
        assert info[A("environments")] == 1
        assert info[A("requests_running")] == 0
        assert 0 <= info[A("uptime_ms")] < 60_000
        later = (await caller.call(A("info")))[1]
        assert later[A("bytes_in")] > info[A("bytes_in")] > 0
        assert later[A("bytes_out")] > info[A("bytes_out")] > 0
        assert later[A("uptime_ms")] >= info[A("uptime_ms")]

    async def test_info_counts_what_runs(self, started: Caller) -> None:
        waiting = asyncio.ensure_future(started.eval("began.set()\nawait ended.wait()"))
        await started.server.root["began"].wait()  # type: ignore[attr-defined]
        assert (await started.call(A("info")))[1][A("requests_running")] == 1
        started.server.root["ended"].set()  # type: ignore[attr-defined]
        assert await waiting == (OK, None)
        assert (await started.call(A("info")))[1][A("requests_running")] == 0

    async def test_info_of_an_environment(self, caller: Caller) -> None:
        code, reason = await caller.error(A("info"), to=await caller.env())
        assert (code, "unknown request" in reason) == ("bad_request", True)


def test_the_client_has_the_same_version() -> None:
    mix = (Path(__file__).parents[1] / "elixir/mix.exs").read_text()
    assert f'@version "{snex_node.__version__}"' in mix
    assert metadata.version("snex-node") == snex_node.__version__
