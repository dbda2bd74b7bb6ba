"""Processes that tell calls, casts and system messages apart."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from snex_node import Atom, DecodeError, From, ImproperList, Node, Pid, Process, Reference
from snex_node.cluster.remote import RemoteNode
from snex_node.processes.genprocess import GenProcess
from snex_node.wire import etf
from snex_node.wire.gen import ALIAS, GEN_CALL, GEN_CAST, SYSTEM

encode = etf.Encoder().encode
decode = etf.Decoder().decode

PID = Pid("b@127.0.0.1", 5, 0, 77)
REF = Reference("b@127.0.0.1", 77, (1, 2, 3))
REF5 = Reference("b@127.0.0.1", 77, (1, 2, 3, 4, 5))
ALIAS_TAG = ImproperList([ALIAS], REF)


class Recorder(GenProcess):
    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.seen: list[tuple[object, ...]] = []

    def call_received(self, caller: From, request: object) -> None:
        self.seen.append(("call", caller, request))

    def cast_received(self, request: object) -> None:
        self.seen.append(("cast", request))

    def info_received(self, message: object) -> None:
        self.seen.append(("info", message))


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with Node("py@127.0.0.1", cookie="secret", epmd="none", listen=None) as node:
        yield node


@pytest.fixture
async def process(node: Node) -> Recorder:
    return Recorder(node)


@pytest.fixture
async def remote(node: Node) -> RemoteNode:
    return node.remote("b@127.0.0.1")


class TestGenProcess:
    """What it makes of a message is the same, decoded or not."""

    @pytest.mark.parametrize("external", [True, False])
    async def test_messages_are_told_apart(
        self, process: Recorder, remote: RemoteNode, external: bool
    ) -> None:
        caller = From.from_term((PID, ALIAS_TAG))
        messages: list[object] = [
            (GEN_CALL, (PID, ALIAS_TAG), 1),
            (GEN_CALL, Atom("broken"), 1),
            (GEN_CAST, 2),
            (GEN_CAST, 2, 3),
            (SYSTEM, Atom("broken"), 1),
            3,
            (Atom("EXIT"), PID, Atom("normal")),
        ]
        for message in messages:
            if external:
                process.external_received(encode(message), 0, remote)
            else:
                process.message_received(message)
        assert process.seen == [
            ("call", caller, 1),
            ("info", messages[1]),
            ("cast", 2),
            ("info", messages[3]),
            ("info", messages[4]),
            ("info", 3),
            ("info", messages[6]),
        ]

    @pytest.mark.parametrize("external", [True, False])
    async def test_system_messages(
        self, node: Node, process: Recorder, remote: RemoteNode, external: bool
    ) -> None:
        asking = Process(node)
        tag = ImproperList([Atom("by_hand")], 1)

        async def ask(request: object) -> object:
            message = (SYSTEM, (asking.pid, tag), request)
            if external:
                process.external_received(encode(message), 0, remote)
            else:
                process.message_received(message)
            return await asking.receive(timeout=1)

        unknown = (Atom("error"), (Atom("unknown_system_msg"), Atom("get_state")))
        assert await ask(Atom("get_state")) == (tag, unknown)
        assert process.alive
        assert await ask((Atom("terminate"), Atom("shutdown"))) == (tag, "ok")
        assert process.exit_reason == "shutdown"
        assert process.seen == []

    async def test_a_request_that_cannot_be_decoded_is_answered(
        self,
        node: Node,
        process: Recorder,
        remote: RemoteNode,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        asking = Process(node)
        data = encode((GEN_CALL, (asking.pid, Atom("tag")), 1))[:-2] + b"\xff"
        process.external_received(data, 0, remote)
        answer: Any = await asking.receive(timeout=1)
        tag, (error, (name, kind, text)) = answer
        assert (tag, error, name) == ("tag", "error", "python_error")
        assert kind.endswith(b"DecodeError")
        assert b"255" in text
        assert process.seen == []
        lines = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert len(lines) == 1
        assert lines[0].startswith("b@127.0.0.1: refused a call to")

    async def test_other_messages_that_cannot_be_decoded_are_errors(
        self, process: Recorder, remote: RemoteNode
    ) -> None:
        for head in (b"", encode((GEN_CAST, 1))[:-2], encode((SYSTEM, 1, 1))[:-2]):
            with pytest.raises(DecodeError):
                process.external_received(head + b"\xff", 0, remote)

    async def test_the_defaults_do_nothing(self, node: Node) -> None:
        process = GenProcess(node)
        for message in ((GEN_CALL, (PID, REF), 1), (GEN_CAST, 1), 1):
            process.message_received(message)
        assert process.alive
