"""The way of a request: to its handler, and to its one answer."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from snex_node.processes.process import Process
from snex_node.wire.terms import Reference
from tests.support.calling import (
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


class TestAnswers:
    async def test_ping(self, caller: Caller) -> None:
        assert await caller.call(A("ping")) == A("pong")
        assert await caller.call(A("ping"), to=await caller.env()) == A("pong")

    async def test_one_answer_each(self, caller: Caller) -> None:
        """The answers of wrong requests are counted by a process that calls by hand."""
        process = Process(caller.node)
        requests = [
            A("nope"),
            evaluate(b"return object()", {}),
            evaluate(b"import sys; sys.exit()", {}),
        ]
        everything: list[object] = [*requests, A("ping")]
        for number, request in enumerate(everything):
            tag = Reference(str(caller.node.name), 1, (number, 0, 0))
            process.send(caller.to, (A("$gen_call"), (process.pid, tag), request))
        answers: list[Any] = [await process.next(timeout=5) for _ in range(4)]
        assert [tag.words[0] for tag, _ in answers] == [0, 1, 2, 3]
        assert answers[-1][1] == A("pong")
        assert len(process) == 0


class TestCastsAndSends:
    async def test_a_cast_is_run(self, caller: Caller) -> None:
        env = await caller.env({"x": 1})
        caller.node.send(env, (A("$gen_cast"), evaluate(b"x = 2", {})))
        assert await caller.value("return x", to=env) == 2

    async def test_a_plain_send_is_run(self, caller: Caller) -> None:
        env = await caller.env({"x": 1})
        caller.node.send(env, evaluate(b"x = 3", {}))
        assert await caller.value("return x", to=env) == 3

    @pytest.mark.parametrize(
        ("request_", "logged"),
        [
            (A("nope"), "unknown request: :nope"),
            (evaluate(b"1 / 0", {}), "ZeroDivisionError: division by zero"),
            (evaluate(b"import asyncio\nawait asyncio.sleep(0)\n1/0", {}), "ZeroDivisionError"),
            (evaluate(b"return object()", {}), "Cannot serialize object"),
        ],
    )
    @pytest.mark.parametrize("wrap", [True, False], ids=["cast", "send"])
    async def test_a_failure_is_logged(
        self,
        caller: Caller,
        caplog: pytest.LogCaptureFixture,
        request_: object,
        logged: str,
        wrap: bool,
    ) -> None:
        caller.node.send(caller.to, (A("$gen_cast"), request_) if wrap else request_)
        await until(lambda: logged in caplog.text)
        [record] = [r for r in caplog.records if r.name == "snex_runtime.answers"]
        assert record.levelno == logging.ERROR
        assert record.getMessage().startswith("a request without an answer failed: ")
        assert await caller.call(A("ping")) == A("pong")

    async def test_a_cast_that_would_make_an_environment(
        self, caller: Caller, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Nobody would be told its pid."""
        caller.cast((A("make_env"), {}))
        await until(lambda: "make_env is a call" in caplog.text)
        assert len(caller.server.environments) == 0
