"""The way of a request: to its handler, and to its one answer."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextvars import copy_context
from typing import Any

import pytest

from snex_node.processes.process import Process
from snex_node.system import forks
from snex_node.wire.etf import DecodeError
from snex_node.wire.terms import Reference, Term
from snex_runtime.answers import OK_, PONG
from snex_runtime.coroutines import Work
from snex_runtime.dispatch import Dispatcher, Handler, Kinds
from snex_runtime.errors import BadRequest, Failure
from snex_runtime.interrupts import Interrupted
from snex_runtime.origin import origin
from snex_runtime.requests import Request, typed
from tests.support.calling import (
    A,
    Caller,
    calling,
    evaluate,
)
from tests.support.requests import PID, Peer, Sent, Taker, Unforked, code_of, encode
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
        answers: list[Any] = [await process.receive(timeout=5) for _ in range(4)]
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


class Begun:
    """Takes work."""

    def __init__(self) -> None:
        self.work: list[Work] = []
        self.given: list[bytes] = []

    def begin(self, work: Work) -> None:
        self.work.append(work)

    def given_up(self, ref: bytes) -> None:
        self.given.append(ref)


class Origins:
    last_origin: str | None = None


class Alone:
    """A `Dispatcher` without a runtime; the handler of a kind is one of the functions below."""

    def __init__(self, node: Any = None) -> None:
        self.sent, self.begun, self.origins = Sent(), Begun(), Origins()
        self.taker = Taker({})
        self.dispatcher = Dispatcher(node or Unforked(), self.sent, self.begun, self.origins)
        tuples: dict[bytes, Handler] = {b"echo": echo, b"arity": arity, b"who": who}
        tuples |= {b"fails": fails, b"work": work}
        self.dispatcher.open(Kinds(tuples=tuples, atoms={b"ping": pong, b"long_word": pong}))

    def receive(self, message: object) -> None:
        data = message if isinstance(message, bytes) else encode(message)
        enter = copy_context().run
        self.dispatcher.received(self.taker, enter, b"!" + data, 1, Peer())

    def ask(self, request: object) -> Any:
        """The answer to a call."""
        before = len(self.sent.answers)
        term = Term(request) if isinstance(request, bytes) else request
        self.receive((A("$gen_call"), (PID, A("tag")), term))
        assert len(self.sent.answers) == before + 1
        return self.sent.last


def echo(request: Request) -> bytes:
    return OK_ + encode(request.read(typed))


def arity(request: Request) -> bytes:
    return OK_ + encode(request.arity)


def who(request: Request) -> bytes:
    asked = origin.get()
    assert asked is not None
    assert asked[1] is request.caller
    return OK_ + encode(asked[0].name.encode())


def work(request: Request) -> Work:
    async def nothing() -> None:
        pass

    return Work(request, nothing())


def pong(request: Request) -> bytes:
    assert request.arity == 0
    return PONG


ERRORS: dict[str, BaseException] = {
    "bad": BadRequest("not so"),
    "decode": DecodeError("no term", 3),
    "failure": Failure("env_not_found", "none"),
    "late": Interrupted(),
    "exit": SystemExit("bye"),
    "user": KeyError("key"),
}


def fails(request: Request) -> bytes:
    raise ERRORS[request.read(typed)]


@pytest.fixture
async def alone() -> AsyncIterator[Alone]:
    made = Alone()
    yield made
    made.dispatcher.close()


class TestAlone:
    @pytest.mark.parametrize(
        ("request_", "answer"),
        [
            ((A("echo"), 7), 7),  # found by its first eight bytes
            ((A("who"),), "app@host"),  # these are not
            ((A("arity"), 1, 2, 3, 4, 5, 6), 7),
            ((A("arity"),), 1),
            (A("ping"), "pong"),
            (b"d\0\4ping", "pong"),  # as older nodes write atoms
            (b"v\0\4ping", "pong"),
            (A("long_word"), "pong"),
        ],
    )
    async def test_the_handler_of_its_kind(
        self, alone: Alone, request_: object, answer: object
    ) -> None:
        assert alone.ask(request_) == answer
        assert alone.origins.last_origin == "app@host"
        assert alone.sent.answers[-1][0].process is alone.taker

    @pytest.mark.parametrize(
        "request_",
        [
            A("echo"),
            (A("ping"),),
            (A("ech"), 1),
            (b"echo", 1),
            b"ping",
            7,
            A("pin"),
            (A("long_word"),),
        ],
    )
    async def test_there_is_none(self, alone: Alone, request_: object) -> None:
        term = Term(encode(request_)) if isinstance(request_, bytes) else request_
        alone.receive((A("$gen_call"), (PID, A("tag")), term))
        assert code_of(alone.sent.last) == "bad_request"
        assert alone.sent.last[1]["reason"].startswith("unknown request: ")

    @pytest.mark.parametrize("length", range(8))
    async def test_cut_off_in_its_kind(self, alone: Alone, length: int) -> None:
        assert code_of(alone.ask(encode((A("echo"), 1))[:length])) == "bad_request"

    @pytest.mark.parametrize(
        ("which", "code", "reason"),
        [
            ("bad", "bad_request", "not so"),
            ("decode", "bad_request", "the request cannot be decoded: no term"),
            ("failure", "env_not_found", "none"),
            ("late", "cancelled", "timeout"),
            ("exit", "python_runtime_error", "bye"),
            ("user", "python_runtime_error", "'key'"),
        ],
    )
    async def test_what_a_handler_raises(
        self, alone: Alone, which: str, code: str, reason: str
    ) -> None:
        answer = alone.ask((A("fails"), which.encode()))
        assert code_of(answer) == code
        assert answer[1]["reason"].startswith(reason)

    async def test_what_has_to_be_awaited(self, alone: Alone) -> None:
        alone.receive((A("$gen_call"), (PID, A("tag")), (A("work"),)))
        [begun] = alone.begun.work
        assert alone.sent.answers == []
        begun.awaited.close()

    async def test_system_messages(self, alone: Alone) -> None:
        alone.receive((A("system"), (PID, A("tag")), A("get_state")))
        [(caller, request)] = alone.taker.system
        assert (caller.pid, request) == (PID, "get_state")
        alone.receive((A("system"), A("nobody"), A("get_state")))
        assert len(alone.taker.system) == 1
        assert (alone.sent.answers, alone.origins.last_origin) == ([], None)

    async def test_whoever_has_given_up(self, alone: Alone) -> None:
        alone.dispatcher.given_up(b"ref")
        assert alone.begun.given == [b"ref"]

    @pytest.mark.parametrize("wrapped", [True, False])
    async def test_without_a_caller(self, alone: Alone, wrapped: bool) -> None:
        request: object = (A("echo"), 7)
        alone.receive((A("$gen_cast"), request) if wrapped else request)
        [(made, _)] = alone.sent.answers
        assert made.caller is None
        assert alone.sent.last == 7

    async def test_a_forked_child_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Forked:
            forked = True

        ends: list[BaseException] = []

        def end(error: BaseException) -> None:
            ends.append(error)

        monkeypatch.setattr(forks, "end_child", end)
        alone = Alone(Forked())
        alone.ask((A("fails"), b"user"))
        assert ends == [ERRORS["user"]]
        alone.dispatcher.close()
