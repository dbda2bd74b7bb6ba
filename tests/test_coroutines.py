"""Requests that have something to await: what ends them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from snex_node.errors import CallTimeoutError, ProcessExitError
from tests.support.calling import (
    OK,
    A,
    Caller,
    calling,
    evaluate,
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


FINALLY = """
began.set()
try:
    await asyncio.sleep(60)
finally:
    ended.set()
"""


class TestGivingUp:
    async def test_a_caller_whose_time_is_over(self, started: Caller) -> None:
        root: dict[str, Any] = started.server.root
        with pytest.raises(CallTimeoutError):
            await started.call(evaluate(FINALLY.encode(), {}), timeout=0.2)
        gave_up = time.monotonic()
        await asyncio.wait_for(root["ended"].wait(), 5)
        assert time.monotonic() - gave_up < 0.1
        await until(lambda: started.server.info()[A("requests_running")] == 0)

    async def test_a_caller_that_is_lost_with_its_node(self, started: Caller) -> None:
        root: dict[str, Any] = started.server.root
        call = asyncio.ensure_future(started.eval(FINALLY))
        await root["began"].wait()
        started.node.disconnect(str(started.server.node.name))
        await asyncio.wait_for(root["ended"].wait(), 5)
        with pytest.raises(ProcessExitError):
            await call

    async def test_work_that_goes_on(self, started: Caller) -> None:
        root: dict[str, Any] = started.server.root
        root["go"] = asyncio.Event()
        code = b"began.set()\nawait go.wait()\nended.set()"
        options = {A("on_timeout"): A("continue")}
        with pytest.raises(CallTimeoutError):
            await started.call(evaluate(code, {}, options), timeout=0.2)
        assert await started.call(A("ping")) == A("pong")
        root["go"].set()
        await asyncio.wait_for(root["ended"].wait(), 5)

    async def test_one_caller_s_giving_up_is_not_another_s(self, started: Caller) -> None:
        root: dict[str, Any] = started.server.root
        root["go"] = asyncio.Event()
        other = asyncio.ensure_future(started.eval("await go.wait()\nreturn 1"))
        with pytest.raises(CallTimeoutError):
            await started.call(evaluate(FINALLY.encode(), {}), timeout=0.1)
        await asyncio.wait_for(root["ended"].wait(), 5)
        root["go"].set()
        assert await other == (OK, 1)

    @pytest.mark.parametrize("turns", range(6))
    async def test_before_the_work_has_begun(self, started: Caller, turns: int) -> None:
        """The request and its withdrawal may arrive in one read."""
        for _ in range(20):
            call = asyncio.ensure_future(started.eval("await asyncio.sleep(60)"))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait([call])
            assert call.cancelled()
        await until(lambda: started.server.info()[A("requests_running")] == 0)
        assert await started.value("return 1") == 1

    async def test_in_an_environment(self, started: Caller) -> None:
        root: dict[str, Any] = started.server.root
        env = await started.env()
        with pytest.raises(CallTimeoutError):
            await started.call(evaluate(FINALLY.encode(), {}), to=env, timeout=0.2)
        await asyncio.wait_for(root["ended"].wait(), 5)
        assert await started.call(A("ping"), to=env) == A("pong")

    async def test_a_function_called(self, started: Caller) -> None:
        with pytest.raises(CallTimeoutError):
            await started.call((A("call"), b"asyncio", b"sleep", [60]), timeout=0.1)
        await until(lambda: started.server.info()[A("requests_running")] == 0)


class TestTimeout:
    async def test_work_that_awaits(self, started: Caller) -> None:
        root: dict[str, Any] = started.server.root
        begun = time.monotonic()
        code, reason = await started.error(evaluate(FINALLY.encode(), {}, {A("timeout"): 100}))
        assert (code, reason) == ("cancelled", "timeout")
        assert root["ended"].is_set()
        assert 0.1 <= time.monotonic() - begun < 2

    async def test_what_its_finally_returns_is_the_value(self, started: Caller) -> None:
        code = "try:\n  await asyncio.sleep(60)\nexcept asyncio.CancelledError:\n  return 'late'"
        assert await started.eval(code, {}, {A("timeout"): 50}) == (OK, b"late")

    async def test_work_that_is_done_in_time(self, started: Caller) -> None:
        code = "await asyncio.sleep(0)\nreturn 1"
        assert await started.eval(code, {}, {A("timeout"): 10_000}) == (OK, 1)

    async def test_work_that_blocks(self, caller: Caller) -> None:
        options = {A("timeout"): 100}
        for code in (b"while True: pass", b"import time\ntime.sleep(60)"):
            begun = time.monotonic()
            assert await caller.error(evaluate(code, {}, options)) == ("cancelled", "timeout")
            assert time.monotonic() - begun < 5
            assert await caller.value("return 1") == 1
