"""What a runtime tells of itself."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
import threading
from collections.abc import AsyncIterator
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import snex_node
from snex_runtime import info as info_room
from snex_runtime import places
from snex_runtime.sizes import Budget
from tests.support.calling import (
    OK,
    A,
    Caller,
    calling,
    evaluate,
    snex_code,
)
from tests.support.waiting import until


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

    async def test_how_long_requests_took(self, caller: Caller) -> None:
        for _ in range(3):
            await caller.value("return 1")
        await caller.value("import time\ntime.sleep(0.01)")
        latency = (await caller.call(A("info")))[1][A("latency")]
        assert latency[A("count")] == 4
        assert 0 < latency[A("p50_us")] <= latency[A("p90_us")] <= latency[A("max_us")]
        assert latency[A("p99_us")] == latency[A("max_us")] >= 10_000
        assert sum(latency[A("buckets")].values()) == 4

    async def test_the_process_and_its_loop(self, caller: Caller) -> None:
        _, info = await caller.call(A("info"))
        assert 2**20 < info[A("memory_bytes")] < 2**40
        assert 0 <= info[A("loop_lag_ms")] < 60_000

    async def test_memory_where_the_system_does_not_tell(
        self, caller: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("snex_runtime.info.resident_memory", lambda process: 0)
        assert (await caller.call(A("info")))[1][A("memory_bytes")] is None

    async def test_peers(self, caller: Caller) -> None:
        _, info = await caller.call(A("info"))
        (peer,) = info[A("peers")]
        assert peer[A("node")] == caller.node.name
        assert (peer[A("bytes_in")], peer[A("bytes_out")]) == (
            info[A("bytes_in")],
            info[A("bytes_out")],
        )
        assert peer[A("pending")] == 0
        assert 0 <= peer[A("last_heard_ms")] <= peer[A("connected_ms")] + 1000 < 61_000

    async def test_info_of_an_environment(self, caller: Caller) -> None:
        code, reason = await caller.error(A("info"), to=await caller.env())
        assert (code, "unknown request" in reason) == ("bad_request", True)


class TestRunning:
    async def running(self, caller: Caller) -> list[dict[str, Any]]:
        _, info = await caller.call(A("info"))
        return [{str(name): value for name, value in each.items()} for each in info[A("running")]]

    async def test_what_awaits(self, started: Caller) -> None:
        env = await started.env()
        code = snex_code(b"\nasync def f():\n  began.set()\n  await ended.wait()\nawait f()")
        waiting = asyncio.ensure_future(started.eval(code, to=env))
        await started.server.root["began"].wait()  # type: ignore[attr-defined]
        second = asyncio.ensure_future(started.eval("await ended.wait()"))
        await until(lambda: len(started.server._coroutines) == 2)
        first, later = await self.running(started)
        assert (first["kind"], first["where"]) == (A("eval"), b"f.py:4, in f")
        assert first["caller"].node == started.node.name
        assert (first["environment"], later["environment"]) == (env, None)
        assert first["age_ms"] >= later["age_ms"] >= 0
        assert later["where"] == b"<Snex.Code>:1, in <module>"
        started.server.root["ended"].set()  # type: ignore[attr-defined]
        await asyncio.gather(waiting, second)
        assert await self.running(started) == []

    async def test_what_runs_in_a_thread(self, caller: Caller) -> None:
        began, ended = threading.Event(), threading.Event()
        caller.server.provide(began=began, ended=ended)
        code = "def f():\n  began.set()\n  ended.wait()\nf()"
        options = {A("executor"): A("thread")}
        waiting = asyncio.ensure_future(caller.eval(code, options=options))
        await asyncio.to_thread(began.wait)
        await until(lambda: (places.of_user(thread_frame()) or "").endswith(":3, in f"))
        (running,) = await self.running(caller)
        assert running["where"] == b"<Snex.Code>:3, in f"
        ended.set()
        await waiting

    async def test_what_waits_for_a_thread_is_where_its_code_is(self) -> None:
        async with calling(threads=1) as caller:
            ended = threading.Event()
            caller.server.provide(ended=ended)
            options = {A("executor"): A("thread")}
            calls = [
                asyncio.ensure_future(
                    caller.eval(snex_code(b"ended.wait()", line=n), None, options)
                )
                for n in (5, 6)
            ]
            await until(lambda: len(caller.server._coroutines) == 2)
            told = await self.running(caller)
            assert told[1]["where"] == b"f.py:6"
            ended.set()
            await asyncio.gather(*calls)

    async def test_the_oldest(self, started: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(info_room, "MAX_RUNNING", 1)
        calls = [asyncio.ensure_future(started.eval("await ended.wait()")) for _ in range(3)]
        await until(lambda: len(started.server._coroutines) == 3)
        assert len(await self.running(started)) == 1
        started.server.root["ended"].set()  # type: ignore[attr-defined]
        await asyncio.gather(*calls)

    async def test_a_cast_has_no_caller(self, started: Caller) -> None:
        started.cast(evaluate(b"await ended.wait()", {}))
        await until(lambda: len(started.server._coroutines) == 1)
        (running,) = await self.running(started)
        assert running["caller"] is None
        started.server.root["ended"].set()  # type: ignore[attr-defined]
        await until(lambda: len(started.server._coroutines) == 0)


def thread_frame() -> FrameType | None:
    """The frame of the only thread of a pool."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames().items()
    return next((f for ident, f in frames if names.get(ident, "").startswith("snex-thread")), None)


class TestEnvironments:
    async def told(self, caller: Caller) -> list[dict[str, Any]]:
        ok, told = await caller.call((A("info"), A("environments")))
        assert ok == OK
        return [{str(name): value for name, value in each.items()} for each in told]

    async def test_them(self, caller: Caller) -> None:
        assert await self.told(caller) == []
        first = await caller.env({"x": 1})
        second = await caller.env({"text": b"x" * 100_000}, handle=A("none"))
        one, other = await self.told(caller)
        assert (one["env"], other["env"]) == (first, second)
        assert one["handle"].node == caller.node.name
        assert other["handle"] is None
        assert (one["variables"], other["variables"]) == (1, 1)
        assert 20 < one["bytes"] < 100
        assert 100_000 < other["bytes"] < 101_000
        assert one["bytes_complete"] is other["bytes_complete"] is True
        assert 0 <= other["age_ms"] <= one["age_ms"] < 60_000

    async def test_what_the_root_has_is_not_theirs(self, caller: Caller) -> None:
        await caller.call((A("init"), b"model = 'x' * 1_000_000", {}))
        env = await caller.env()
        assert (await self.told(caller))[0]["variables"] == 0
        await caller.value("model = model + 'y'", to=env)
        assert (await self.told(caller))[0]["bytes"] > 1_000_000

    async def test_one_cannot_take_it_all_from_the_others(
        self, caller: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(info_room, "Budget", lambda: Budget(objects=1000, seconds=60.0))
        large = await caller.env()
        await caller.value("x = list(range(10**6, 10**6 + 5000))", to=large)
        await caller.env({"x": 1})
        one, other = await self.told(caller)
        assert (one["bytes_complete"], other["bytes_complete"]) == (False, True)

    async def test_the_oldest(self, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(info_room, "MAX_ENVIRONMENTS", 2)
        envs = [await caller.env() for _ in range(3)]
        assert [each["env"] for each in await self.told(caller)] == envs[:2]

    @pytest.mark.parametrize(
        ("request_", "message"),
        [
            ((A("info"), A("nope")), "info there is of :environments, not of :nope"),
            ((A("info"), A("environments"), 1), "an info request is :info or"),
            ((A("info"),), "an info request is :info or"),
        ],
    )
    async def test_bad_requests(self, caller: Caller, request_: object, message: str) -> None:
        code, reason = await caller.error(request_)
        assert (code, message in reason) == ("bad_request", True)

    async def test_not_of_an_environment(self, caller: Caller) -> None:
        request = A("info"), A("environments")
        code, reason = await caller.error(request, to=await caller.env())
        assert (code, "to the server" in reason) == ("bad_request", True)


def test_the_client_has_the_same_version() -> None:
    mix = (Path(__file__).parents[1] / "elixir/mix.exs").read_text()
    assert f'@version "{snex_node.__version__}"' in mix
    assert metadata.version("snex-node") == snex_node.__version__
