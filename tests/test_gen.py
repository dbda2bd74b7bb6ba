"""Calls, casts and system messages: read from their bytes, told apart, answered."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snex_node import Atom, DecodeError, From, ImproperList, Node, Pid, Process, Reference
from snex_node.cluster.remote import RemoteNode
from snex_node.processes.gen import (
    ALIAS,
    GEN_CALL,
    GEN_CAST,
    SYSTEM,
    GenProcess,
    alias_in,
    call_head,
    parse_call,
    parse_cast,
    parse_system,
    parse_term,
)
from snex_node.wire import etf

encode = etf.Encoder().encode
decode = etf.Decoder().decode

PID = Pid("b@127.0.0.1", 5, 0, 77)
REF = Reference("b@127.0.0.1", 77, (1, 2, 3))
REF5 = Reference("b@127.0.0.1", 77, (1, 2, 3, 4, 5))
ALIAS_TAG = ImproperList([ALIAS], REF)

# Every form of a tag, and the alias that is to be answered to.
TAGS: list[tuple[object, Reference | None]] = [
    (ALIAS_TAG, REF),
    (ImproperList([ALIAS], REF5), REF5),
    (ImproperList([ALIAS_TAG], REF5), REF),
    ([ALIAS_TAG], REF),
    ([ALIAS_TAG, 1], REF),
    (REF, None),
    (Atom("tag"), None),
    ([], None),
    ([ALIAS], None),
    ([[ALIAS_TAG]], None),
    (ImproperList([ALIAS, ALIAS], REF), None),
    (ImproperList([Atom("other")], REF), None),
    (ImproperList([ALIAS], Atom("no_ref")), None),
    ((1, 2.5), None),
]


def as_latin1(data: bytes) -> bytes:
    """The same term with its first atom as SMALL_ATOM_EXT, as old nodes send it."""
    return data.replace(b"w", b"s", 1)


def as_long(data: bytes) -> bytes:
    """The same term with its first atom as ATOM_UTF8_EXT."""
    at = data.index(b"w")
    return data[:at] + b"v\0" + data[at + 1 :]


class TestFrom:
    @pytest.mark.parametrize(("tag", "alias"), TAGS)
    def test_of_a_term(self, tag: object, alias: Reference | None) -> None:
        caller = From.from_term((PID, tag))
        assert caller is not None
        assert caller.pid == PID
        assert caller.tag == encode(tag)
        assert caller.alias == (alias.external if alias else None)
        assert alias_in(tag) == alias

    @pytest.mark.parametrize("term", [None, PID, (PID,), (PID, 1, 2), (Atom("x"), 1), [PID, 1]])
    def test_of_what_is_none(self, term: object) -> None:
        assert From.from_term(term) is None

    def test_ref_is_what_the_caller_monitors_with(self) -> None:
        def ref_of(tag: object) -> bytes | None:
            caller = From.from_term((PID, tag))
            assert caller is not None
            return caller.ref

        assert ref_of(ALIAS_TAG) == REF.external
        assert ref_of(REF5) == REF5.external
        assert ref_of(Atom("tag")) is None

    def test_comparable(self) -> None:
        one, two = From.from_term((PID, ALIAS_TAG)), From.from_term((PID, ALIAS_TAG))
        other = From.from_term((PID, REF))
        assert one == two
        assert hash(one) == hash(two)
        assert one != other
        assert one != 1
        assert {one: 1}[two] == 1
        assert repr(one) == "<From #PID<b@127.0.0.1.5.0>>"


class TestParseCall:
    @pytest.mark.parametrize(("tag", "alias"), TAGS)
    @pytest.mark.parametrize("form", [bytes, as_latin1, as_long])
    @pytest.mark.parametrize("before", [b"", b"before"])
    def test_every_form(
        self, tag: object, alias: Reference | None, form: type, before: bytes
    ) -> None:
        data = before + form(encode((GEN_CALL, (PID, tag), (Atom("request"), 1))))
        found = parse_call(data, len(before))
        assert found is not None
        caller, offset = found
        assert caller == From.from_term((PID, tag))
        assert caller.alias == (alias.external if alias else None)
        assert decode(data, offset) == (("request", 1), len(data))

    def test_a_long_node_name(self) -> None:
        node = "ä" * 130 + "@host"  # no node has it, but the bytes may come
        pid, ref = Pid(node, 1, 2, 3), Reference(node, 3, (1, 2, 3))
        for caller_pid, tag in ((pid, ALIAS_TAG), (PID, ImproperList([ALIAS], ref))):
            data = encode((GEN_CALL, (caller_pid, tag), 1))
            found = parse_call(data, 0)
            assert found is not None
            assert found[0] == From.from_term((caller_pid, tag))
            assert data[found[1] :] == b"a\x01"

    @pytest.mark.parametrize(
        "term",
        [
            1,
            (),
            GEN_CALL,
            (GEN_CALL,),
            (GEN_CALL, (PID, ALIAS_TAG)),
            (GEN_CALL, (PID, ALIAS_TAG), 1, 2),
            (GEN_CALL, PID, 1),
            (GEN_CALL, (Atom("x"), ALIAS_TAG), 1),
            (GEN_CALL, (PID,), 1),
            (Atom("$gen_calls"), (PID, ALIAS_TAG), 1),
            (Atom("x$gen_call"), (PID, ALIAS_TAG), 1),
            (b"$gen_call", (PID, ALIAS_TAG), 1),
            (GEN_CAST, 1),
            (SYSTEM, (PID, ALIAS_TAG), 1),
            [GEN_CALL, (PID, ALIAS_TAG), 1],
        ],
    )
    def test_what_is_no_call(self, term: object) -> None:
        assert parse_call(encode(term), 0) is None
        assert parse_term(term) is None

    @pytest.mark.parametrize("tag", [tag for tag, _ in TAGS])
    @pytest.mark.parametrize("form", [bytes, as_latin1])
    def test_cut_off_anywhere(self, tag: object, form: type) -> None:
        """None, or a `DecodeError`; and never a request that begins behind the end."""
        whole = form(encode((GEN_CALL, (PID, tag), 1)))
        for length in range(len(whole)):
            try:
                found = parse_call(whole[:length], 0)
            except DecodeError:
                continue
            assert found is None or found[1] <= length

    @given(st.binary(max_size=80), st.integers(0, 100))
    def test_arbitrary_bytes_behind_the_head(self, junk: bytes, cut: int) -> None:
        head = encode((GEN_CALL, (PID, ALIAS_TAG), 1))[:cut]
        try:
            found = parse_call(head + junk, 0)
        except DecodeError:
            return
        assert found is None or found[1] <= len(head + junk)

    def test_references_of_too_many_words(self) -> None:
        data = bytearray(encode((GEN_CALL, (PID, ALIAS_TAG), 1)))
        at = data.index(b"Z\x00\x03") + 2
        data[at] = 6
        with pytest.raises(DecodeError):
            parse_call(bytes(data) + bytes(12), 0)

    def test_the_head_that_we_write(self) -> None:
        expected = encode((GEN_CALL, (PID, ALIAS_TAG), (Atom("request"), [1])))
        assert call_head(PID, REF) + encode((Atom("request"), [1])) == expected


class TestOtherMessages:
    def test_casts(self) -> None:
        data = b"before" + encode((GEN_CAST, [1]))
        offset = parse_cast(data, 6)
        assert offset is not None
        assert decode(data, offset) == ([1], len(data))
        for term in (GEN_CAST, (GEN_CALL, 1), (GEN_CAST, 1, 2), (Atom("$gen_casting"), 1)):
            assert parse_cast(encode(term), 0) is None

    def test_system_messages(self) -> None:
        message = (SYSTEM, (PID, REF), (Atom("terminate"), Atom("normal")))
        assert parse_system(message) == (From.from_term((PID, REF)), message[2])
        for term in (1, (SYSTEM,), (SYSTEM, 1, 2), (GEN_CALL, (PID, REF), 1)):
            assert parse_system(term) is None


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
                process.receive_external(encode(message), 0, remote)
            else:
                process.receive(message)
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
                process.receive_external(encode(message), 0, remote)
            else:
                process.receive(message)
            return await asking.next(timeout=1)

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
        process.receive_external(data, 0, remote)
        answer: Any = await asking.next(timeout=1)
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
                process.receive_external(head + b"\xff", 0, remote)

    async def test_the_defaults_do_nothing(self, node: Node) -> None:
        process = GenProcess(node)
        for message in ((GEN_CALL, (PID, REF), 1), (GEN_CAST, 1), 1):
            process.receive(message)
        assert process.alive
