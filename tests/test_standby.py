"""The task that code which does not await finds itself in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextvars import copy_context
from typing import Any

import pytest

from snex_runtime import serde
from snex_runtime.standby import Standby
from tests.support.pair import Pair, pair


@pytest.fixture
async def both() -> AsyncIterator[Pair]:
    async with pair() as made:
        yield made


async def make_env(both: Pair, **options: Any) -> Any:
    ok, env = await both.call("make_env", {}, options)
    assert ok == "ok", env
    return serde.to_typed(env)


async def evaluate(both: Pair, code: str, to: Any = None, **variables: object) -> Any:
    ok, value = await both.call("eval", code, variables, to=to)
    assert ok == "ok", value
    return value


class TestCurrentTask:
    async def test_synchronous_code_has_one(self, both: Pair) -> None:
        code = "import asyncio\nname = asyncio.current_task().get_name()"
        for to in (None, await make_env(both)):
            assert await evaluate(both, f"{code}\nreturn name", to) == "snex"
        assert await both.call("init", code, {}) == ("ok", None)
        assert await evaluate(both, "return name") == "snex"

    async def test_it_is_over_when_the_code_is(self, both: Pair) -> None:
        assert await evaluate(both, "1") is None
        seen: list[Any] = []
        asyncio.get_running_loop().call_soon(lambda: seen.append(asyncio.current_task()))
        await asyncio.sleep(0)
        assert seen == [None]

    async def test_cancelling_it_cancels_nothing_of_ours(self, both: Pair) -> None:
        cancel = (
            "import asyncio\ntask = asyncio.current_task()\ntask.set_name('theirs')\n"
            "return task.cancel()"
        )
        ask = "import asyncio\ntask = asyncio.current_task()\nreturn task.get_name(), task.done()"
        for _ in range(3):
            assert await evaluate(both, cancel) is True
            assert await evaluate(both, ask) == ("snex", False)

    async def test_code_that_leaves_it_harms_nobody(self, both: Pair) -> None:
        code = (
            "import asyncio\nfrom asyncio import tasks\n"
            "tasks._leave_task(asyncio.get_running_loop(), asyncio.current_task())"
        )
        for _ in range(2):
            assert await evaluate(both, code) is None
            assert await evaluate(both, "import asyncio\nawait asyncio.sleep(0)\nreturn 1") == 1

    async def test_nobody_waits_for_it(self, both: Pair) -> None:
        code = "import asyncio\nreturn asyncio.current_task() in asyncio.all_tasks()"
        assert await evaluate(both, code) is False

    async def test_a_request_that_a_task_of_ours_hands_on(self, both: Pair) -> None:
        """What comes together with the end of a handshake is handled in the task that made it."""
        names: list[str] = []
        both.server.provide(names=names)
        code = "import asyncio\nnames.append(asyncio.current_task().get_name())"
        own = asyncio.current_task()
        remote = both.node.remote(both.peer.name)
        both.server.external_received(_request(code), 0, remote)
        assert names == ["snex"]
        assert asyncio.current_task() is own


def _request(code: str) -> bytes:
    text = code.encode()
    return b"h\x03w\x04evalm" + len(text).to_bytes(4, "big") + text + b"t\0\0\0\0"


class TestAlone:
    async def test_in_a_callback(self) -> None:
        standby = Standby()
        seen = asyncio.get_running_loop().create_future()

        def look(argument: str) -> str:
            task = asyncio.current_task()
            assert task is not None
            return f"{argument} {task.get_name()}"

        def callback() -> None:
            told = standby.run(copy_context().run, look, "task")
            seen.set_result((told, asyncio.current_task()))

        asyncio.get_running_loop().call_soon(callback)
        assert await seen == ("task snex", None)
        standby.close()

    async def test_in_a_task(self) -> None:
        standby, own = Standby(), asyncio.current_task()

        def fail(argument: object) -> None:
            assert asyncio.current_task() is not own
            raise LookupError(argument)

        with pytest.raises(LookupError, match="of the function"):
            standby.run(copy_context().run, fail, "of the function")
        assert asyncio.current_task() is own
        standby.close()

    async def test_it_is_done_when_closed_however_often_it_was_cancelled(self) -> None:
        standby = Standby()
        found: list[Any] = []
        standby.run(copy_context().run, lambda _: found.append(asyncio.current_task()), None)
        [task] = found
        await asyncio.sleep(0)  # it begins
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert not task.done()
        standby.close()
        await asyncio.wait_for(task, 5)

    async def test_code_that_leaves_the_task(self, caplog: pytest.LogCaptureFixture) -> None:
        standby = Standby()
        done = asyncio.get_running_loop().create_future()

        def leave(loop: asyncio.AbstractEventLoop) -> None:
            getattr(asyncio.tasks, "_leave_task")(loop, asyncio.current_task())  # noqa: B009

        def callback() -> None:
            standby.run(copy_context().run, leave, asyncio.get_running_loop())
            done.set_result(asyncio.current_task())

        asyncio.get_running_loop().call_soon(callback)
        assert await done is None
        assert "has changed which task is the current one" in caplog.text
        standby.close()
