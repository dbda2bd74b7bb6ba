"""epmd's messages as bytes: every one both ways, and what is none."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snex_node.epmd import (
    NodeInfo,
    NodeType,
    check_name,
    messages,
)
from snex_node.epmd.messages import (
    AliveAnswer,
    AliveRequest,
    DebugRequest,
    MalformedError,
    NamesRequest,
    Opcode,
    PortRequest,
    encode_alive_answer,
    encode_alive_request,
    encode_names_answer,
    encode_names_request,
    encode_port_answer,
    encode_port_request,
    parse_alive_answer,
    parse_names_answer,
    parse_port_answer,
    parse_request,
)
from tests.support.epmd import from_hex

PY25 = NodeInfo("py25", 0x8A29)


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        # As a hidden node of ours and as nodes of OTP 25 and 29 put it on the wire.
        (encode_alive_request(PY25), "0011 78 8a29 48 00 0006 0005 0004 70793235 0000"),
        (
            encode_alive_request(NodeInfo("b", 4660, NodeType.NORMAL, extra=b"xy")),
            "0010 78 1234 4d 00 0006 0005 0001 62 0002 7879",
        ),
        (encode_port_request("dupx"), "0005 7a 64757078"),
        (encode_names_request(), "0001 6e"),
        (encode_alive_answer(AliveAnswer(0, 0x6B02C74A), 6), "76 00 6b02c74a"),
        (encode_alive_answer(AliveAnswer(1, 99), 6), "76 01 00000063"),
        (encode_alive_answer(AliveAnswer(0, 1), 5), "79 00 0001"),
        (
            encode_port_answer(NodeInfo("dupx", 0x15B3)),
            "77 00 15b3 48 00 0006 0005 0004 64757078 0000",
        ),
        (encode_port_answer(None), "77 01"),
        (
            encode_names_answer(4369, [PY25, NodeInfo("b", 1)]),
            "00001111" + b"name py25 at port 35369\nname b at port 1\n".hex(),
        ),
    ],
)
def test_messages_as_bytes(encoded: bytes, expected: str) -> None:
    assert encoded == from_hex(expected)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("78 8a29 48 00 0006 0005 0004 70793235 0000", AliveRequest(PY25)),
        ("7a 64757078", PortRequest("dupx")),
        ("6e", NamesRequest()),
        ("6b", DebugRequest(Opcode.KILL_REQ)),
        ("73 62", DebugRequest(Opcode.STOP_REQ)),
        ("64", DebugRequest(Opcode.DUMP_REQ)),
    ],
)
def test_requests_are_parsed(body: str, expected: messages.Request) -> None:
    assert parse_request(from_hex(body)) == expected


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("", "empty request"),
        ("05", "unknown request 5"),
        ("78 8a29 48", "end after 4 of 11 bytes"),
        ("78 8a29 48 00 0006 0005 0004 7079", "a name of 4 bytes in a message of 13"),
        ("78 8a29 48 00 0006 0005 0001 62 0009 00", "an extra field of 9 bytes"),
        ("78 8a29 48 00 0006 0005 0000 0000", "must not be empty"),
        ("78 8a29 48 00 0006 0005 0001 ff 0000", "not UTF-8"),
        ("7a", "must not be empty"),
        ("7a" + "61" * 256, "at most 255 bytes, not 256"),
        ("7a" + b"py\nname evil at port 1".hex(), r"must not contain '\\n'"),
        ("7a" + b"py@host".hex(), "must not contain '@'"),
        ("7a c328", "not UTF-8"),
    ],
)
def test_malformed_requests(body: str, why: str) -> None:
    with pytest.raises(MalformedError, match=why):
        parse_request(from_hex(body))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("", "of 0 bytes"),
        ("77 00", "begins with 118 or 121, not with 119"),
        ("76 00 0000", "of 4 bytes instead of 6"),
        ("79 00 000000", "of 5 bytes instead of 4"),
    ],
)
def test_malformed_alive_answers(data: str, why: str) -> None:
    with pytest.raises(MalformedError, match=why):
        parse_alive_answer(from_hex(data))


@pytest.mark.parametrize("data", ["", "77", "78 00", "77 00", "77 00 15b3 48 00 0006 0005 0004 64"])
def test_malformed_port_answers(data: str) -> None:
    with pytest.raises(MalformedError):
        parse_port_answer(from_hex(data))


@pytest.mark.parametrize("data", [b"", b"\0\0\0", b"\0\0\x11\x11nonsense\n"])
def test_malformed_names_answers(data: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_names_answer(data)


def test_names_with_blanks_and_bytes_that_are_no_text() -> None:
    # The epmd of OTP registers them.
    data = b"\0\0\x11\x11name a at port b at port 7\nname \xff at port 8\n"
    assert parse_names_answer(data) == [("a at port b", 7), ("\\xff", 8)]


@pytest.mark.parametrize("name", ["", "a@b", "a b", "a\0", "ä" * 128, "\ud800"])
def test_names_no_node_can_have(name: str) -> None:
    with pytest.raises(ValueError, match="name of a node"):
        check_name(name)
    with pytest.raises(ValueError, match="name of a node"):
        encode_port_request(name)


@pytest.mark.parametrize(
    "node", [NodeInfo("py", 65536), NodeInfo("py", -1), NodeInfo("py", 1, extra=bytes(65536))]
)
def test_fields_out_of_range(node: NodeInfo) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        encode_alive_request(node)


def numbers(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, 2**bits - 1)


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except ValueError:
        return False
    return True


names_of_nodes = st.text(min_size=1, max_size=255).filter(_is_name)
nodes = st.builds(
    NodeInfo,
    names_of_nodes,
    numbers(16),
    numbers(8),
    numbers(8),
    numbers(16),
    numbers(16),
    st.binary(max_size=300),
)


class TestEveryMessageComesBack:
    @given(nodes)
    def test_nodes(self, node: NodeInfo) -> None:
        request = encode_alive_request(node)
        assert int.from_bytes(request[:2], "big") == len(request) - 2
        assert parse_request(request[2:]) == AliveRequest(node)
        assert parse_port_answer(encode_port_answer(node)) == node

    @given(names_of_nodes)
    def test_names(self, name: str) -> None:
        assert parse_request(encode_port_request(name)[2:]) == PortRequest(name)

    @given(st.lists(nodes))
    def test_lists(self, listed: list[NodeInfo]) -> None:
        answer = encode_names_answer(4369, listed)
        assert parse_names_answer(answer) == [(node.name, node.port) for node in listed]

    @given(numbers(8), numbers(32))
    def test_creations(self, result: int, creation: int) -> None:
        answer = AliveAnswer(result, creation)
        assert parse_alive_answer(encode_alive_answer(answer, 6)) == answer


class TestAnyBytes:
    """A message, or the documented error; never anything else."""

    likely = st.builds(
        lambda head, tail: head + tail,
        st.sampled_from([b"", b"x", b"z", b"n", b"v", b"y", b"w\0", b"w\1", b"\0\0\x11\x11name "]),
        st.binary(max_size=40),
    )

    @given(likely)
    def test_parsing(self, data: bytes) -> None:
        for parse in (parse_request, parse_alive_answer, parse_port_answer, parse_names_answer):
            with contextlib.suppress(MalformedError):
                parse(data)

    @given(nodes, st.data())
    def test_cut_short(self, node: NodeInfo, data: st.DataObject) -> None:
        body = encode_alive_request(node)[2:]
        cut = data.draw(st.integers(0, len(body) - 1))
        with pytest.raises(MalformedError):
            parse_request(body[:cut])
