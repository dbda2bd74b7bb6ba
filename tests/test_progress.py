"""Progress: how far a loop has come, and who is told; with the client in progress_test.exs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import snex
from snex_node import Process
from snex_node.wire.terms import Atom
from snex_runtime import progress as module
from snex_runtime import serde
from tests.support.pair import Pair, pair

A = Atom


@pytest.fixture
async def both() -> AsyncIterator[Pair]:
    async with pair() as made:
        yield made


async def told(process: Process) -> list[tuple[Any, Any]]:
    """What has been told, to the end."""
    found: list[tuple[Any, Any]] = []
    ref = None
    while not found or found[-1][0] != found[-1][1]:
        message: Any = await process.receive(timeout=5)
        assert message[0] == "snex_progress"
        assert ref in (None, message[1])
        ref = message[1]
        assert message[4] >= 0
        found.append(message[2:4])
    return found


@pytest.mark.parametrize("executor", ["loop", "thread"])
async def test_the_option_of_a_request(both: Pair, executor: str) -> None:
    process = Process(both.peer)
    options = {A("progress"): process.pid, A("executor"): A(executor)}
    answer = await both.call("eval", "return sum(snex.progress([1, 2]))", {}, options)
    assert answer == ("ok", 3)
    assert await told(process) == [(0, 2), (2, 2)]
    code = "import asyncio\nawait asyncio.sleep(0)\nreturn list(snex.progress('ab'))"
    assert (await both.call("eval", code, {}, options))[0] == "ok"
    assert await told(process) == [(0, 2), (2, 2)]


async def test_the_option_of_a_call(both: Pair) -> None:
    process = Process(both.peer)
    await both.call("init", "import snex, sys\nsys.modules['told'] = snex", {})
    options = {A("progress"): process.pid}
    answer = await both.call("call", "told", "progress", [[1]], {}, options)
    assert answer[0] == "error"  # it is no value, but it knows whom to tell
    await both.call("init", "del sys.modules['told']", {})


async def test_a_name(both: Pair) -> None:
    process = Process(both.peer, name="teller")
    to = (A("teller"), A(both.peer.name))
    assert await both.run("return len(list(snex.progress((1, 2, 3), to=to)))", to=to) == 3
    assert await told(process) == [(0, 3), (3, 3)]


async def test_what_is_left_early_and_fails(both: Pair) -> None:
    process = Process(both.peer)
    code = "for n in snex.progress(range(9), to=to):\n  if n == 3: return n"
    assert await both.run(code, to=serde.Term(process.pid.external)) == 3
    messages: list[Any] = [await process.receive(timeout=5) for _ in range(2)]
    assert [message[2:4] for message in messages] == [(0, 9), (3, 9)]


async def test_no_more_often_than_it_should(both: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(both.peer)
    monkeypatch.setattr(module, "EVERY", 0.0)
    assert await both.run("return list(snex.progress([1, 2], to=to))", to=process.pid) == [1, 2]
    assert await told(process) == [(0, 2), (1, 2), (2, 2)]


async def test_asynchronous_items() -> None:
    async def items() -> AsyncIterator[int]:
        for each in range(3):
            await asyncio.sleep(0)
            yield each

    found = snex.progress(items(), total=3)
    assert [each async for each in found] == [0, 1, 2]
    assert found.done == 3


def test_without_anybody_to_tell() -> None:
    found = snex.progress(iter("ab"))
    assert list(found) == ["a", "b"]
    assert found.done == 2
    with pytest.raises(TypeError, match="progress takes what can be iterated over, not 5"):
        snex.progress(5)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="not connected"):
        snex.progress([], to="x")
