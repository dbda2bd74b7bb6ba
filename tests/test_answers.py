"""Answers: written, held, sent."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from snex_node.wire import control
from snex_node.wire.framing import FRAGMENT_SIZE
from snex_node.wire.gen import From
from snex_node.wire.pieces import Payload
from snex_node.wire.terms import Pid
from snex_runtime import lifetimes
from snex_runtime.answers import OK, OK_, OK_NIL, PONG, Answers, failed
from snex_runtime.errors import Failure
from tests.support.pair import pair
from tests.support.requests import PID, Line, Peer, Taker, by_alias, code_of, request_of, value


class Node:
    """Takes replies."""

    def __init__(self) -> None:
        self.replies: list[tuple[From, Payload, Pid | None]] = []

    def reply_encoded(self, to: From, reply: Payload, *, sender: Pid | None = None) -> None:
        self.replies.append((to, reply, sender))


class Logs:
    """Log records on their way, and what waits for them."""

    def __init__(self, records: int = 0, held: bool = True) -> None:
        self.records = ["record"] * records
        self.held: list[tuple[From, Callable[[], None]]] = []
        self._holds = held

    def hold(self, request: From, release: Callable[[], None]) -> bool:
        if self._holds:
            self.held.append((request, release))
        return self._holds


def asked(caller: From | None, line: Line | None = None) -> Any:
    return request_of(b"h\x03w\x04eval", caller=caller, remote=Peer(line))


class TestSend:
    def test_on_the_connection_to_the_alias(self) -> None:
        node, line, caller = Node(), Line(), by_alias()
        assert caller.alias is not None
        Answers(node, Logs()).send(asked(caller, line), OK)
        sender = Taker().pid
        message = control.alias_send(sender, caller.alias)
        assert line.sent == [(message, b"h\2" + caller.tag + OK, sender)]
        assert node.replies == []

    def test_to_a_caller_without_an_alias(self) -> None:
        node, line, caller = Node(), Line(), From(PID, b"w\3tag", None)
        Answers(node, Logs()).send(asked(caller, line), OK)
        assert node.replies == [(caller, OK, Taker().pid)]
        assert line.sent == []

    def test_to_a_node_that_is_not_connected(self) -> None:
        node, caller = Node(), by_alias()
        Answers(node, Logs()).send(asked(caller), OK)
        assert node.replies == [(caller, OK, Taker().pid)]

    def test_to_nobody(self) -> None:
        node, line = Node(), Line()
        Answers(node, Logs(1)).send(asked(None, line), OK)
        assert (node.replies, line.sent) == ([], [])

    def test_what_the_request_had_ends_before(self) -> None:
        node, line = Node(), Line()
        ended: list[int] = []

        class Held:
            def end(self) -> None:
                ended.append(len(line.sent))

        request = asked(by_alias(), line)
        lifetimes.hold(request, Held())
        Answers(node, Logs()).send(asked(by_alias(), line), OK)
        assert ended == []
        Answers(node, Logs()).send(request, OK)
        assert ended == [1]
        assert not lifetimes.holds

    def test_a_long_one_is_not_copied_for_its_head(self) -> None:
        node, line, caller = Node(), Line(), by_alias()
        answer = OK_ + b"m\0\1\0\0" + bytes(FRAGMENT_SIZE)
        Answers(node, Logs()).send(asked(caller, line), answer)
        assert line.sent[0][1] == b"h\2" + caller.tag + answer


class TestHolding:
    def test_until_records_have_arrived(self) -> None:
        node, logs, line, caller = Node(), Logs(1), Line(), by_alias()
        Answers(node, logs).send(asked(caller, line), OK)
        assert (node.replies, line.sent) == ([], [])
        [(request, release)] = logs.held
        assert request == caller
        release()
        assert node.replies == [(caller, OK, Taker().pid)]

    def test_not_for_records_of_others(self) -> None:
        line, logs = Line(), Logs(1, held=False)
        Answers(Node(), logs).send(asked(by_alias(), line), OK)
        assert len(line.sent) == 1


class TestLength:
    def test_one_that_is_too_long_is_told_of(self) -> None:
        node, caller = Node(), From(PID, b"w\3tag", None)
        answers = Answers(node, Logs(), max_reply=5)
        answers.send(asked(caller), b"w\3abc")
        answers.send(asked(caller), b"w\4abcd")
        (_, whole, _), (_, error, _) = node.replies
        assert whole == b"w\3abc"
        assert code_of(value(error)) == "python_runtime_error"
        assert "takes 6 bytes, and a reply has at most 5" in value(error)[1]["reason"]


def test_words() -> None:
    assert [value(word) for word in (OK, OK_NIL, PONG)] == ["ok", None, "pong"]


@pytest.mark.parametrize("caller", [None, by_alias()])
def test_a_failure_is_logged_where_nobody_waits(
    caplog: pytest.LogCaptureFixture, caller: From | None
) -> None:
    answer = failed(asked(caller), Failure("env_not_found", "no such"))
    assert code_of(value(answer)) == "env_not_found"
    logged = [(record.levelno, record.getMessage()) for record in caplog.records]
    text = "a request without an answer failed: env_not_found: no such"
    assert logged == ([(logging.ERROR, text)] if caller is None else [])


async def test_a_reply_has_a_bound() -> None:
    async with pair(max_reply=1000) as both:
        assert await both.run("return 'x' * 900") == "x" * 900
        late = "import asyncio; await asyncio.sleep(0); return 'x' * 1000"
        for code in ("return 'x' * 1000", late):
            status, error = await both.call("eval", code, {})
            assert status == "error"
            assert error["code"] == "python_runtime_error"
            # {ok, Binary}: 2 + 4 bytes and 5 + 1000.
            assert "the result takes 1011 bytes, and a reply has at most 1000" in error["reason"]
        assert await both.run("return 1") == 1
